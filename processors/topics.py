"""Topic names, topic filters and topic templates, as far as users write them (MQTT 5, section 4.7)."""

from __future__ import annotations

from typing import Final

LONGEST: Final = 65_535
"""Bytes of the longest topic that MQTT can express."""


def check_topic(topic: str) -> None:
    """Check a topic name.

    Raises:
        ValueError: it is empty or too long, has a wildcard or U+0000 in it, or is no UTF-8.
    """
    if not topic:  # [MQTT-4.7.3-1]
        raise ValueError("the topic is empty")
    if "+" in topic or "#" in topic:  # [MQTT-4.7.0-1]
        raise ValueError(f"topic {topic!r} has a wildcard in it")
    if "\0" in topic:  # [MQTT-4.7.3-2]
        raise ValueError(f"topic {topic!r} has U+0000 in it")
    if len(topic.encode()) > LONGEST:  # [MQTT-4.7.3-3]
        raise ValueError(f"topic {topic[:40]!r}... is longer than {LONGEST} bytes")


def check_filter(filter: str) -> None:
    """Check a topic filter that a processor reads.

    Raises:
        ValueError: it is empty or too long, a wildcard stands where none may, or it is a shared subscription.
    """
    if not filter:  # [MQTT-4.7.3-1]
        raise ValueError("the topic filter is empty")
    if filter.startswith("$share/"):
        raise ValueError(f"{filter!r} is a shared subscription; give the filter behind the share name")
    levels = filter.split("/")
    if any("+" in level and level != "+" for level in levels):  # [MQTT-4.7.1-2]
        raise ValueError(f"'+' is not a whole level of topic filter {filter!r}")
    if any("#" in level for level in levels[:-1]) or ("#" in levels[-1] and levels[-1] != "#"):  # [MQTT-4.7.1-1]
        raise ValueError(f"'#' is not the whole last level of topic filter {filter!r}")
    if "\0" in filter:  # [MQTT-4.7.3-2]
        raise ValueError(f"topic filter {filter!r} has U+0000 in it")
    if len(filter.encode()) > LONGEST:  # [MQTT-4.7.3-3]
        raise ValueError(f"topic filter {filter[:40]!r}... is longer than {LONGEST} bytes")


class Template:
    """A topic with a place in it for one value, such as `stats/{key}`.

    Raises:
        ValueError: braces stand for anything else, or what is around the place can't be a topic.
    """

    __slots__ = ("_parts", "text")

    def __init__(self, text: str, place: str) -> None:
        self.text = text
        self._parts = text.split("{" + place + "}")
        if any("{" in part or "}" in part for part in self._parts):
            raise ValueError(f"topic template {text!r} can have {{{place}}} in it, and no other braces")
        check_topic(self.fill("x"))

    def fill(self, value: str) -> str:
        """The topic, not checked again: a value can make it invalid."""
        return value.join(self._parts)

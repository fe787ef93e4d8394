"""Topic names and topic filters: what is valid, and what matches what (MQTT 5, section 4.7).

A topic is its levels, separated by `/`; a level may be empty. In a filter `+` stands for one level and a last level `#`
for any number of them, none included. Nothing is normalised: two topics are equal where their characters are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from broker.mqtt.errors import ProtocolError
from broker.mqtt.reason import Reason

SHARE: Final = "$share/"
"""How a shared subscription begins, in every version: before MQTT 5, too, a leading $ is for the server to define."""
REPLAY: Final = "$replay/"
"""How a subscription begins that asks for what is in the log already."""


def validate_name(topic: str) -> None:
    """Check a topic name.

    Raises:
        ProtocolError: it is empty, or has a wildcard or U+0000 in it.
    """
    if not topic:
        raise ProtocolError(Reason.TOPIC_NAME_INVALID, "topic name is empty", "MQTT-4.7.3-1")
    if "+" in topic or "#" in topic:
        raise ProtocolError(Reason.TOPIC_NAME_INVALID, "topic name has a wildcard in it", "MQTT-4.7.0-1")
    if "\0" in topic:
        raise ProtocolError(Reason.MALFORMED_PACKET, "topic name has U+0000 in it", "MQTT-4.7.3-2")


def validate_filter(filter: str) -> None:
    """Check a topic filter, shared subscriptions (`$share/<name>/<filter>`) included.

    Raises:
        ProtocolError: it is empty, a wildcard stands where none may, or the share is ill-formed.
    """
    if filter.startswith(SHARE):
        filter = _split_share(filter)[1]
    if not filter:
        raise ProtocolError(Reason.TOPIC_FILTER_INVALID, "topic filter is empty", "MQTT-4.7.3-1")
    if "\0" in filter:
        raise ProtocolError(Reason.MALFORMED_PACKET, "topic filter has U+0000 in it", "MQTT-4.7.3-2")
    if "#" in filter and filter != "#" and (not filter.endswith("/#") or filter.count("#") > 1):
        raise ProtocolError(
            Reason.TOPIC_FILTER_INVALID, "'#' is not the whole last level of the topic filter", "MQTT-4.7.1-1"
        )
    if "+" in filter and any("+" in level and level != "+" for level in filter.split("/")):
        raise ProtocolError(Reason.TOPIC_FILTER_INVALID, "'+' is not a whole level of the topic filter", "MQTT-4.7.1-2")


def parse_share(filter: str) -> tuple[str, str] | None:
    """The share name and the filter of a shared subscription, or None where it is not one.

    Raises:
        ProtocolError: it starts like a shared subscription and has no valid name or no filter.
    """
    return _split_share(filter) if filter.startswith(SHARE) else None


def _split_share(filter: str) -> tuple[str, str]:
    name, _, rest = filter[len(SHARE) :].partition("/")
    if not name or not rest:
        clause = "MQTT-4.8.2-2" if name else "MQTT-4.8.2-1"
        raise ProtocolError(
            Reason.TOPIC_FILTER_INVALID, "a shared subscription needs a share name and a topic filter", clause
        )
    if "+" in name or "#" in name:
        raise ProtocolError(Reason.TOPIC_FILTER_INVALID, "share name has a wildcard in it", "MQTT-4.8.2-2")
    return name, rest


def matches(filter: str, topic: str) -> bool:
    """Whether a valid topic filter matches a valid topic name. A share prefix must have been taken off."""
    if filter[0] in "+#" and topic[0] == "$":  # [MQTT-4.7.2-1]
        return False
    if "+" not in filter:
        if not filter.endswith("#"):
            return filter == topic  # [MQTT-4.7.3-4]
        return filter == "#" or topic.startswith(filter[:-1]) or topic == filter[:-2]
    wanted = filter.split("/")
    levels = topic.split("/")
    if wanted[-1] == "#":
        wanted.pop()
        if len(levels) < len(wanted):
            return False
    elif len(levels) != len(wanted):
        return False
    return all(want in ("+", level) for want, level in zip(wanted, levels, strict=False))


def compile_filters(filters: Iterable[str]) -> Callable[[str], bool]:
    """A predicate: whether any of these valid filters matches a valid topic name.

    Each level of the topic is looked at once, beside at most as many places as filters reach that level. The predicate
    changes nothing, so threads may share it.
    """
    exact: set[str] = set()
    root: _Node = {}
    for filter in filters:
        if "+" not in filter and not filter.endswith("#"):
            exact.add(filter)
            continue
        node = root
        for level in filter.split("/"):
            node = node.setdefault(level, {})
        if not filter.endswith("#"):
            node[END] = {}
    if not root:
        return frozenset(exact).__contains__
    return _Matcher(frozenset(exact), root)


_Node = dict[str, "_Node"]
END: Final = "\0"
"""A key that no level can be: a filter ends here."""


class _Matcher:
    """Filters with wildcards as a tree of levels, and those without as a set."""

    __slots__ = ("_exact", "_root")

    def __init__(self, exact: frozenset[str], root: _Node) -> None:
        self._exact = exact
        self._root = root

    def __call__(self, topic: str) -> bool:
        if topic in self._exact:
            return True
        places = [self._root]
        wild = topic[0] != "$"  # [MQTT-4.7.2-1]
        for level in topic.split("/"):
            following: list[_Node] = []
            for place in places:
                if wild:
                    if "#" in place:
                        return True
                    if "+" in place:
                        following.append(place["+"])
                if level in place:
                    following.append(place[level])
            if not following:
                return False
            places = following
            wild = True
        return any(END in place or "#" in place for place in places)

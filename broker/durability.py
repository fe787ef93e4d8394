"""How long each message is to be kept: by its QoS, by the rules for topics, and by what room the disk has.

While the disk is short of room QoS 0 messages are kept in memory only; then nothing is stored for publishers at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from broker.router import REMEMBERED
from storage.interface import FSYNC, MEMORY, OS

_RULES_KEPT: Final = 10_000


class Durability:
    """What a node keeps. `rule` answers what a rule says for a topic, or None; without it there are no rules."""

    __slots__ = ("_found", "_rule", "plain", "refusing", "sparing", "unstored")

    def __init__(self, rule: Callable[[str], int | None] | None) -> None:
        self.plain = rule is None
        """Whether the QoS alone says how long a message is kept."""
        self.sparing = False
        """Whether the disk has so little room that QoS 0 messages are not stored."""
        self.refusing = False
        """Whether it has so little that nothing is stored for publishers."""
        self.unstored = 0
        """QoS 0 messages that were not stored, to spare the disk."""
        self._rule = rule
        self._found: dict[str, int | None] = {}

    @property
    def has_rules(self) -> bool:
        """Whether some messages may be meant to be kept in memory only."""
        return self._rule is not None

    def ration(self, *, qos0: bool, all_qos: bool) -> None:
        """The disk is short of room, or no longer: whether to store no QoS 0 messages, and none of any publisher."""
        self.sparing, self.refusing = qos0, all_qos
        self.plain = self._rule is None and not qos0 and not all_qos

    def of(self, topic: str, qos: int) -> int:
        """The durability that a message gets."""
        asked = self.asked(topic, qos)
        if self.sparing and not qos and asked:
            self.unstored += 1
            return MEMORY
        return asked

    def asked(self, topic: str, qos: int) -> int:
        """The durability that it is to have."""
        rule = None
        if self._rule is not None:
            found = self._found
            if topic in found:
                rule = found[topic]
            else:
                rule = self._rule(topic)
                if len(topic) <= REMEMBERED:
                    if len(found) >= _RULES_KEPT:
                        found.clear()
                    found[topic] = rule
        if rule is None:
            return FSYNC if qos else OS
        return rule if qos else min(rule, OS)

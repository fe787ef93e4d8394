"""Topic aliases towards one client: numbers that stand for topics on its connection (MQTT 5, section 3.3.2.3.4).

The rules:

1. A packet with topic and alias sets the alias; until it is set anew, later packets carry it with an empty topic.
2. What the client knows is what the wire has carried, in its order. So an alias is set by a packet that certainly goes
   out, and a packet that waits while others overtake it has none.
3. As long as an alias is free, each new topic gets one. Then a topic that comes again before many others takes that of
   the topic that was not used for longest; one that comes once changes nothing, however many such topics there are.
"""

from __future__ import annotations

from typing import Final

_WORTH: Final = 3
"""Bytes that an alias takes in a packet: a topic that is no longer gains nothing by it."""
_LONGEST: Final = 1024
"""Characters of a topic that may be kept here: they stay in memory for as long as the connection."""


class Aliases:
    """The aliases of one connection, from 1 to `most`."""

    __slots__ = ("_aliases", "_met", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._aliases: dict[str, int] = {}
        """By topic; the one not used for longest is the first."""
        self._met: dict[str, None] = {}
        """Topics that have come lately and have none."""

    def find(self, topic: str) -> int:
        """The alias that the client knows for this topic; 0: none."""
        alias = self._aliases.pop(topic, 0)
        if alias:
            self._aliases[topic] = alias
        return alias

    def offer(self, topic: str) -> int:
        """An alias that may be set for a topic that has none; 0: none."""
        if not _WORTH < len(topic) <= _LONGEST:
            return 0
        if len(self._aliases) < self._most:
            return len(self._aliases) + 1
        if topic in self._met:
            return next(iter(self._aliases.values()))
        if len(self._met) >= self._most:
            del self._met[next(iter(self._met))]
        self._met[topic] = None
        return 0

    def set(self, topic: str, alias: int) -> None:
        """A packet goes out that sets the alias that was offered for this topic."""
        self._met.pop(topic, None)
        if alias <= len(self._aliases):
            del self._aliases[next(iter(self._aliases))]
        self._aliases[topic] = alias

"""How far the readers of the log are behind, and what is under way to clients: found out a slice at a time.

There may be a hundred thousand sessions, and looking at all of them at once would hold up everybody else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from broker.hub import Hub
    from broker.session import Session

SLICE: Final = 2000
"""Sessions that one step looks at; at five steps a second, a hundred thousand in ten seconds."""


@dataclass(slots=True)
class Findings:
    """What all sessions come to."""

    inflight: int = 0
    """QoS 1 and 2 messages that were sent and are not acknowledged."""
    lowest: int = -1
    """The position of the session with subscriptions, connected or not, that is most behind; -1: there is none."""


class Survey:
    """One look at all sessions after another."""

    __slots__ = ("_found", "_hub", "_left", "last")

    def __init__(self, hub: Hub) -> None:
        self.last = Findings()
        """Of the survey that was finished last."""
        self._hub = hub
        self._found = Findings()
        self._left: Iterator[Session] | None = None

    def begin(self) -> None:
        """Begin anew, unless one is under way."""
        if self._left is None:
            self._left = iter(list(self._hub.sessions.all.values()))
            self._found = Findings()

    def step(self) -> None:
        """Go on with the one that is under way, if one is."""
        if self._left is None:
            return
        found = self._found
        looked = 0
        for session in islice(self._left, SLICE):
            looked += 1
            found.inflight += len(session.unacked) + len(session.unreceived) + len(session.uncompleted)
            if session.grants and (found.lowest < 0 or session.position < found.lowest):
                found.lowest = session.position
        if looked < SLICE:
            self._left = None
            self.last = found

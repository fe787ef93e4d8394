"""What has to be sent, and stored, once a group has committed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from storage.interface import FSYNC, Event

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.session import Session

Acknowledgement = tuple["Connection", bytes, Event | None]
"""Whom to send what once this event is kept; None: a message that is not to be kept at all."""
EARLIER: Final = Event(0, 0, "", b"", 2, False, "", b"", 0, FSYNC)
"""Stands in an acknowledgement for the event of a message that is repeated."""
ENVELOPE: Final = 100
"""Bytes that something to be sent after a commit takes in memory beside its own."""
_MANY: Final = 20
"""Things to be sent after a commit, at which those for connections that are gone are looked for."""


class Promises:
    """Those of one group."""

    __slots__ = ("_many", "acknowledgements", "sessions", "then")

    def __init__(self) -> None:
        self.acknowledgements: list[Acknowledgement] = []
        self.then: list[tuple[Connection, bytes]] = []
        self.sessions: set[Session] = set()
        """Whose row goes with the group."""
        self._many = _MANY

    def __bool__(self) -> bool:
        return bool(self.acknowledgements or self.then)

    def add(self, connection: Connection, data: bytes) -> None:
        """Send this, behind what was promised before."""
        self.then.append((connection, data))
        if len(self.then) > self._many:  # nothing commits, and clients come and go
            self.then = [each for each in self.then if not each[0].closed]
            self._many = 2 * len(self.then) + _MANY

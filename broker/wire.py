"""What a connection needs of the transport under it."""

from __future__ import annotations

from typing import Protocol


class Wire(Protocol):
    """The transport under a connection."""

    peer: str
    """Who is at the other end, for people: `127.0.0.1:50123`."""
    host: str
    """The address of the other end, without a port; empty where it has none."""
    identity: str
    """Who the transport has proved the other end to be, such as a certificate's common name; empty: nobody."""

    @property
    def unfinished(self) -> int:
        """Bytes that have come of a frame that is not whole."""

    def write(self, data: bytes) -> None:
        """Send, or keep until it can be sent."""

    def close(self) -> None:
        """Close once everything written has been sent."""

    def abort(self) -> None:
        """Close at once."""

    def pause_reading(self) -> None:
        """Let the peer wait."""

    def resume_reading(self) -> None:
        """Let the peer go on."""


class Gone:
    """In the place of a transport that has ended, for as long as what came on it is still being handled."""

    def __init__(self, wire: Wire) -> None:
        self.peer = wire.peer
        self.host = wire.host
        self.identity = wire.identity
        self.unfinished = 0

    def write(self, data: bytes) -> None:
        """Nobody is there."""

    def close(self) -> None:
        """It is."""

    def abort(self) -> None:
        """It is."""

    def pause_reading(self) -> None:
        """Nothing comes."""

    def resume_reading(self) -> None:
        """Nothing comes."""

"""What may lie between a socket's bytes and MQTT's: TLS, WebSocket. Sans-IO: bytes in, bytes out.

Layers stand in a stack, the lowest next to the socket. What the socket read goes up: each layer takes off what it has
put around (`receive`). What MQTT writes goes down: each wraps it (`send`). What a layer has to say itself, such as the
answer to a handshake or to a ping, it keeps for `take`, to be asked for after each `receive`.

A peer that breaks a layer's rules is like one that breaks MQTT's: what it sent before counts, then `error` says why
the connection ends, and `take` has what the peer is told.
"""

from __future__ import annotations

from typing import Protocol


class Layer(Protocol):
    """One protocol around another."""

    STRETCH: int
    """Bytes that it should be given at a time: what they hold takes little time, whatever it is."""
    work: int
    """How many frames the last `receive` took apart; 1 where it has none, or they cost next to nothing."""
    ended: bool
    """The peer has said that nothing more comes from it."""
    error: str
    """How the peer has broken the rules; empty while it has not."""

    @property
    def unfinished(self) -> int:
        """Bytes that it holds of a frame that is not whole."""

    def receive(self, data: bytes) -> bytes:
        """What these bytes from below carried."""

    def send(self, data: bytes) -> bytes:
        """These bytes, wrapped. The handshake is over: nothing is said to a peer that has said nothing."""

    def take(self) -> bytes:
        """What the layer itself has to say now."""

    def close(self) -> bytes:
        """The last thing to say; nothing where that was said, or can't be."""

"""What has gone over all connections since the start: plain numbers, added to where the bytes pass."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Traffic:
    """Counts of MQTT alone: what TLS and WebSocket add to it is not in them."""

    sockets: int = 0
    """Connections that peers have opened."""
    connects: int = 0
    """CONNECT packets."""
    bytes_received: int = 0
    bytes_sent: int = 0
    packets_received: int = 0
    packets_whole: int = 0
    """Packets sent in one piece: all but PUBLISH at QoS 0 and 1."""
    publishes_whole: int = 0
    """Those of them that are PUBLISH, at QoS 2."""
    received: int = 0
    """PUBLISH packets of clients, but for those that repeat a QoS 2 message."""
    payload_received: int = 0
    """Bytes of their payloads."""
    delivered: int = 0
    """PUBLISH packets sent to clients."""
    payload_sent: int = 0
    """The same of what was sent; in MQTT 5 with the properties."""

    @property
    def packets_sent(self) -> int:
        """MQTT packets of any type."""
        return self.packets_whole + self.delivered - self.publishes_whole

    def publish_whole(self, size: int) -> None:
        """A PUBLISH is sent in one piece, with `size` bytes behind its packet identifier."""
        self.delivered += 1
        self.publishes_whole += 1
        self.payload_sent += size

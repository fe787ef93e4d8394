"""PUBLISH packets, put together in one step: what the codec does in general, for the one packet that must be fast."""

from __future__ import annotations

from typing import Final

from broker.mqtt.wire import encode_varint

_PUBLISH: Final = 0x30
_RETAIN: Final = 0x01


def publish(
    topic: bytes, payload: bytes, qos: int, retain: bool, packet_id: int, properties: bytes | None = None
) -> bytes:
    """One PUBLISH packet; `properties` in wire encoding without their length, or None for MQTT 3.1.1."""
    head = _PUBLISH | qos << 1 | _RETAIN if retain else _PUBLISH | qos << 1
    name = b"%b%b" % (len(topic).to_bytes(2, "big"), topic)
    if qos:
        name += packet_id.to_bytes(2, "big")
    if properties is not None:
        name += encode_varint(len(properties)) + properties
    return b"%c%b%b%b" % (head, encode_varint(len(name) + len(payload)), name, payload)

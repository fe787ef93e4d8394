"""PUBLISH frames for many subscribers: encoded once per shape, with only the packet identifier differing.

A frame is handed out as its head (fixed header and topic) and its tail (properties and payload); for QoS 1 and 2 the
packet identifier stands between them. Both are shared by reference until a connection writes them.
"""

from __future__ import annotations

from broker.mqtt.wire import encode_string, encode_varint
from broker.router import REMEMBERED
from storage.interface import Event

_HEADERS = [encode_varint(n) for n in range(2048)]
_TOPICS_KEPT = 4096

Frame = tuple[bytes, bytes]


class FrameCache:
    """The frames of the event at hand: fan-out asks for the same few again and again, then goes on to the next."""

    __slots__ = ("_event", "_frames", "_topics")

    def __init__(self) -> None:
        self._event: Event | None = None
        self._frames: dict[int, Frame] = {}
        self._topics: dict[str, bytes] = {}

    def frame(self, event: Event, v5: bool, qos: int, retain: bool) -> Frame:
        """Head and tail for a subscriber without any properties of its own. DUP is not set."""
        first = 0x30 | qos << 1 | retain
        shape = first << 1 | v5
        frames = self._frames
        if self._event is not event:
            self._event = event
            frames.clear()
        elif (frame := frames.get(shape)) is not None:
            return frame
        payload = event.payload
        if not v5:
            tail = payload
        elif event.properties:
            tail = encode_varint(len(event.properties)) + event.properties + payload
        else:
            tail = b"\x00" + payload
        frames[shape] = frame = self.build(event.topic, first, qos, tail)
        return frame

    def build(self, topic: str, first: int, qos: int, tail: bytes) -> Frame:
        """Head and tail, for a first byte and a tail that are already made."""
        name = self._topics.get(topic)
        if name is None:
            name = encode_string(topic)
            if len(topic) <= REMEMBERED:
                if len(self._topics) >= _TOPICS_KEPT:
                    self._topics.clear()
                self._topics[topic] = name
        size = len(name) + len(tail) + (2 if qos else 0)
        header = _HEADERS[size] if size < 2048 else encode_varint(size)
        return bytes((first,)) + header + name, tail

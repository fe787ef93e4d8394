"""Bytes to packets.

Whatever bytes arrive, in whatever pieces, `feed` returns the same packets in the same order, and then at most one
ProtocolError is in `error`, and never is anything else raised.

A packet is judged when it is whole, except for what its fixed header already says (type, flags, length). What has not
arrived takes no memory. PUBLISH with a known topic and no properties, and acknowledgements of four bytes, are taken
apart in the loop itself, since nearly all packets are these; `decode` handles the others and says what is wrong.
"""

from __future__ import annotations

from typing import Final

from broker.mqtt.decode import TOPICS, check_first_byte, decode_packet, read_version
from broker.mqtt.encode import encode
from broker.mqtt.errors import ProtocolError
from broker.mqtt.packets import Packet, Puback, Pubcomp, Publish, Pubrec, Pubrel
from broker.mqtt.reason import Reason
from broker.mqtt.wire import Reader

__all__ = ["Decoder", "encode"]

MAX_PACKET_SIZE: Final = 268_435_460
"""The size of the largest packet that MQTT can express, in bytes with its fixed header."""

MAX_CONNECT_SIZE: Final = 256 << 10
"""The size of the largest CONNECT: nobody knows yet from whom it comes."""

_ACKNOWLEDGEMENTS: Final[dict[int, type[Puback] | type[Pubrec] | type[Pubrel] | type[Pubcomp]]] = {
    0x40: Puback,
    0x50: Pubrec,
    0x62: Pubrel,
    0x70: Pubcomp,
}

_PUBLISHES: Final = {
    0x30 | dup << 3 | qos << 1 | retain: (qos, bool(retain), bool(dup))
    for dup in (0, 1)
    for qos in (0, 1, 2)
    for retain in (0, 1)
    if qos or not dup
}
"""QoS, RETAIN and DUP by the first byte of a valid PUBLISH."""


class Decoder:
    """The packets of one direction of one connection.

    `version` is that of the connection; 0 means that a CONNECT comes first and tells it. `max_packet_size` is in bytes,
    with the fixed header.
    """

    __slots__ = ("_at", "_data", "_held", "_wanted", "error", "looks", "max_packet_size", "version")

    def __init__(self, version: int = 0, max_packet_size: int = MAX_PACKET_SIZE) -> None:
        self.version = version
        self.max_packet_size = max_packet_size
        self.error: ProtocolError | None = None
        """What broke the stream. Nothing is decoded after it."""
        self._held = bytearray()
        """The beginning of a packet that is not whole; empty while there are bytes at hand."""
        self._wanted = 0
        """How many bytes must be held before it makes sense to look again."""
        self.looks = 0
        """How often it has looked for packets: not while it waits for the rest of one."""
        self._data = b""
        self._at = 0
        """From here on `_data` has not been looked at."""

    @property
    def unfinished(self) -> int:
        """Bytes that have come of a packet that is not whole."""
        return len(self._held)

    @property
    def at_hand(self) -> int:
        """Bytes that have come and were not looked at: `more` decodes them."""
        return len(self._data) - self._at

    def feed(self, data: bytes, stretch: int = MAX_PACKET_SIZE) -> list[Packet]:
        """Every packet that these bytes complete, in order; on an error those before it.

        With `stretch`, only those that begin in the next so many bytes; then there may be something `at_hand`.
        """
        if self._held:
            self._held += data
            if len(self._held) < self._wanted:
                return []
            data = bytes(self._held)
            self._held = bytearray()
        self._data = data if not self._data else self._data[self._at :] + data
        self._at = 0
        return self.more(stretch)

    def keep(self, data: bytes) -> None:
        """Have these bytes at hand, for later."""
        self._data = b"".join((self._held, self._data[self._at :], data))
        self._at = 0
        self._held = bytearray()

    def more(self, stretch: int = MAX_PACKET_SIZE) -> list[Packet]:
        """Go on with what is at hand."""
        packets: list[Packet] = []
        self.looks += 1
        data = self._data
        size = len(data)
        if self.error is None:
            try:
                at = self._decode(data, self._at, min(self._at + stretch, size - 1), packets)
            except ProtocolError as error:
                self.error = error
            else:
                if self._wanted:
                    self._held += data[at:] if at else data
                elif at < size:
                    self._at = at
                    return packets
        self._data = b""
        self._at = 0
        return packets

    def _decode(self, data: bytes, at: int, stop: int, packets: list[Packet]) -> int:
        """Append every whole packet that begins before `stop`; where the next begins, or one that is not whole."""
        append = packets.append
        topics = TOPICS
        publishes = _PUBLISHES
        acknowledgements = _ACKNOWLEDGEMENTS
        version = self.version
        limit = self.max_packet_size if version else min(self.max_packet_size, MAX_CONNECT_SIZE)
        size = len(data)
        self._wanted = 0
        while at < stop:
            first = data[at]
            length = data[at + 1]
            body = at + 2
            if length > 0x7F:
                length, body = self._long_length(data, at)
                if not body:
                    return at
            end = body + length
            if end > size or end - at > limit:
                self._unfinished(first, end - at, limit)
                return at
            flags = publishes.get(first)
            if flags is not None and length > 2 and version:
                name_end = body + 2 + (data[body] << 8 | data[body + 1])
                topic = topics.get(data[body + 2 : name_end])
                if topic is not None:
                    qos, retain, dup = flags
                    start = name_end + 2 if qos else name_end
                    if version == 5:
                        start += 1
                    if start <= end and (version < 5 or not data[start - 1]):
                        packet_id = data[name_end] << 8 | data[name_end + 1] if qos else 0
                        if packet_id or not qos:
                            append(Publish(topic, data[start:end], qos, retain, dup, packet_id))
                            at = end
                            continue
            elif length == 2 and version:
                acknowledgement = acknowledgements.get(first)
                if acknowledgement is not None:
                    packet_id = data[body] << 8 | data[body + 1]
                    if packet_id:
                        append(acknowledgement(packet_id))
                        at = end
                        continue
            if not version:
                check_first_byte(first, 0)
                self.version = read_version(Reader(data, body, end))
                _check_minimal(length, body - at - 1, self.version)
                limit = self.max_packet_size
            append(decode_packet(first, data, body, end, version))
            version = self.version
            at = end
        if at == size - 1:
            check_first_byte(data[at], version)
            self._wanted = 2
        return at

    def _long_length(self, data: bytes, at: int) -> tuple[int, int]:
        """The remaining length of the packet at `at`, and where its body begins: 0 while the length is not whole."""
        check_first_byte(data[at], self.version)
        stop = min(at + 5, len(data))
        length = 0
        for i in range(at + 1, stop):
            byte = data[i]
            length |= (byte & 0x7F) << 7 * (i - at - 1)
            if byte < 0x80:
                _check_minimal(length, i - at, self.version)
                return length, i + 1
        if stop == at + 5:
            raise ProtocolError(Reason.MALFORMED_PACKET, "remaining length has more than four bytes", "section 2.1.4")
        self._wanted = stop - at + 1
        return 0, 0

    def _unfinished(self, first: int, total: int, limit: int) -> None:
        """Judge by its fixed header a packet of `total` bytes, and wait for the rest of it."""
        check_first_byte(first, self.version)
        if total > limit:
            raise ProtocolError(
                Reason.PACKET_TOO_LARGE,
                f"packet of {total} bytes, above the maximum of {limit}",
                "MQTT-3.2.2-15",
            )
        self._wanted = total


def _check_minimal(length: int, size: int, version: int) -> None:
    """Check that a remaining length has no more bytes than it needs. Before MQTT 5 it may have."""
    if version == 5 and size > 1 and length < 1 << 7 * (size - 1):
        raise ProtocolError(Reason.MALFORMED_PACKET, "remaining length is longer than it need be", "MQTT-1.5.5-1")

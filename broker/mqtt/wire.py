"""The data types of the wire (MQTT 5, section 1.5): a bounded reader, and functions that write them."""

from __future__ import annotations

from typing import Final

from broker.mqtt.errors import ProtocolError
from broker.mqtt.reason import Reason

VARINT_MAX: Final = 268_435_455
"""The largest number that four bytes of a variable byte integer hold."""


class Reader:
    """Takes one value after another from `data[at:end]`; whatever is not there, or is not valid, is a ProtocolError."""

    __slots__ = ("at", "data", "end")

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self.data = data
        self.at = at
        self.end = end

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        start = self.at
        self.at = stop = start + size
        if stop > self.end:
            raise ProtocolError(Reason.MALFORMED_PACKET, "packet ends inside a field")
        return self.data[start:stop]

    def byte(self) -> int:
        """An unsigned number of one byte."""
        at = self.at
        if at >= self.end:
            raise ProtocolError(Reason.MALFORMED_PACKET, "packet ends inside a field")
        self.at = at + 1
        return self.data[at]

    def two_bytes(self) -> int:
        """An unsigned number of two bytes."""
        at = self.at
        if at + 2 > self.end:
            raise ProtocolError(Reason.MALFORMED_PACKET, "packet ends inside a field")
        self.at = at + 2
        return self.data[at] << 8 | self.data[at + 1]

    def four_bytes(self) -> int:
        """An unsigned number of four bytes."""
        return int.from_bytes(self.take(4), "big")

    def varint(self) -> int:
        """A variable byte integer, in the fewest bytes that hold it."""
        value = shift = 0
        while shift < 28:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if shift and not byte:
                    raise ProtocolError(
                        Reason.MALFORMED_PACKET, "variable byte integer is longer than it need be", "MQTT-1.5.5-1"
                    )
                return value
            shift += 7
        raise ProtocolError(Reason.MALFORMED_PACKET, "variable byte integer has more than four bytes", "section 1.5.5")

    def binary(self) -> bytes:
        """Bytes behind their length of two bytes."""
        return self.take(self.two_bytes())

    def string(self) -> str:
        """A UTF-8 string behind its length of two bytes."""
        return decode_text(self.binary())

    def packet_id(self) -> int:
        """A packet identifier, which is never 0."""
        packet_id = self.two_bytes()
        if not packet_id:
            raise ProtocolError(Reason.PROTOCOL_ERROR, "packet identifier is 0", "MQTT-2.2.1-3")
        return packet_id

    def pair(self) -> tuple[str, str]:
        """Two UTF-8 strings, a name and a value."""
        return self.string(), self.string()  # [MQTT-1.5.7-1]

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(self.end - self.at)

    def finish(self) -> None:
        """Check that nothing is left."""
        if self.at != self.end:
            raise ProtocolError(Reason.MALFORMED_PACKET, "packet is longer than its fields")


def decode_text(data: bytes) -> str:
    """UTF-8 without surrogates and without U+0000.

    Raises:
        ProtocolError: it is not that.
    """
    try:
        text = data.decode()  # [MQTT-1.5.4-3]
    except UnicodeDecodeError as error:
        raise ProtocolError(Reason.MALFORMED_PACKET, "string is not UTF-8", "MQTT-1.5.4-1") from error
    if "\0" in text:
        raise ProtocolError(Reason.MALFORMED_PACKET, "string has U+0000 in it", "MQTT-1.5.4-2")
    return text


def encode_varint(n: int) -> bytes:
    """A variable byte integer of one to four bytes.

    Raises:
        ValueError: the number is negative or above 268,435,455.
    """
    if 0 <= n < 0x80:
        return bytes((n,))
    if not 0 <= n <= VARINT_MAX:
        raise ValueError(f"{n} does not fit into a variable byte integer")
    written = bytearray()
    while n > 0x7F:
        written.append(n & 0x7F | 0x80)
        n >>= 7
    written.append(n)
    return bytes(written)


def encode_binary(data: bytes) -> bytes:
    """Bytes behind their length of two bytes.

    Raises:
        ValueError: there are more than 65,535.
    """
    if len(data) > 0xFFFF:
        raise ValueError(f"{len(data)} bytes do not fit into a field of at most 65535")
    return len(data).to_bytes(2, "big") + data


def encode_string(s: str) -> bytes:
    """A UTF-8 string behind its length of two bytes.

    Raises:
        ValueError: it has more than 65,535 bytes, or a surrogate or U+0000 in it.
    """
    if "\0" in s:
        raise ValueError("U+0000 cannot be in a string")
    return encode_binary(s.encode())

"""The retained messages in Mosquitto's persistence file, mosquitto.db, of versions 5 and 6 (Mosquitto 1.6 to 2.x).

The format: a magic number of 15 bytes, a checksum that is not used, and the version; then chunks, each with its type
and the length of what follows. A message is a chunk of its own, with a number; a retained one is another chunk, with
the number of the message. These numbers, and times, are in the byte order of the machine that wrote the file; all else
is in network order. There are no times of publishing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from struct import error as StructError  # noqa: N812 - it is an exception
from typing import BinaryIO, Final

from broker.mqtt.errors import ProtocolError
from broker.mqtt.packets import Publish
from broker.mqtt.properties import Property, encode_properties, read_properties
from broker.mqtt.wire import Reader

MAGIC: Final = b"\x00\xb5\x00mosquitto db"
VERSIONS: Final = (5, 6)
SECOND: Final = 1_000_000
"""µs"""

_HEADER: Final = Struct(">II")
_CONFIGURATION: Final = 1
_MESSAGE: Final = 2
_RETAINED: Final = 4
_NUMBERS: Final = Struct("=Qq")
"""Of a message: its number, and when it expires, in s since the Unix epoch (0: never)."""
_LENGTHS: Final = Struct(">IHHHHHBB")
"""Of its payload; its packet identifier; of client identifier, user name and topic; port, QoS, retain flag."""
_NUMBER: Final = Struct("=Q")

_TRAVELS_NOT: Final = frozenset(
    (Property.TOPIC_ALIAS, Property.SUBSCRIPTION_IDENTIFIER, Property.MESSAGE_EXPIRY_INTERVAL)
)


class FormatError(ValueError):
    """It is no such file, or damaged; the message says what and where."""


@dataclass(frozen=True, slots=True)
class RetainedMessage:
    """One of them. `expires` is in µs since the Unix epoch, 0: never; `properties` are in wire encoding."""

    topic: str
    payload: bytes
    qos: int
    client: str
    properties: bytes
    expires: int


def read_retained(file: BinaryIO) -> Iterator[RetainedMessage]:
    """The retained messages, in the order in which they were published, but for those of Mosquitto itself ($SYS).

    Raises:
        FormatError: it is no such file, or damaged.
        OSError: it can't be read.
    """
    at = _check_head(file)
    size = os.fstat(file.fileno()).st_size
    places: dict[int, tuple[int, int]] = {}
    retained: list[int] = []
    while at < size:
        file.seek(at)
        kind, length = _HEADER.unpack(_take(file, _HEADER.size, at))
        start, at = at + _HEADER.size, at + _HEADER.size + length
        if at > size:
            raise FormatError(f"ends in the middle of the chunk at byte {start - _HEADER.size}")
        if kind in (_MESSAGE, _RETAINED):
            (number,) = _NUMBER.unpack(_take(file, _NUMBER.size, start))
            if kind == _MESSAGE:
                places[number] = start, length
            else:
                retained.append(number)
        elif not _CONFIGURATION <= kind < 16:
            raise FormatError(f"has no chunk at byte {start - _HEADER.size}")
    missing = [number for number in retained if number not in places]
    if missing:
        raise FormatError(f"has no message {missing[0]}, which it says is retained")
    for start, length in sorted(places[number] for number in retained):
        file.seek(start)
        message = _parse(_take(file, length, start), start)
        if not message.topic.startswith("$SYS/"):
            yield message


def _check_head(file: BinaryIO) -> int:
    """Check magic number and version; where the chunks begin."""
    file.seek(0)
    head = file.read(len(MAGIC) + 8)
    if not head.startswith(MAGIC) or len(head) < len(MAGIC) + 8:
        raise FormatError("is no persistence file of Mosquitto")
    version = int.from_bytes(head[-4:], "big")
    if version not in VERSIONS:
        raise FormatError(
            f"is version {version} of Mosquitto's persistence file, not 5 or 6; "
            "let a Mosquitto 2.0 read and write it once"
        )
    return len(head)


def _take(file: BinaryIO, size: int, at: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise FormatError(f"ends in the middle of the chunk at byte {at}")
    return data


def _parse(data: bytes, at: int) -> RetainedMessage:
    try:
        _, expires = _NUMBERS.unpack_from(data)
        payload, _, client, user, topic, _, qos, _ = _LENGTHS.unpack_from(data, _NUMBERS.size)
        parts: list[bytes] = []
        start = _NUMBERS.size + _LENGTHS.size
        for length in (client, user, topic, payload):
            parts.append(data[start : start + length])
            start += length
        if start > len(data):
            raise ValueError("it is too short")
        return RetainedMessage(
            parts[2].decode(), parts[3], qos, parts[0].decode(), _properties(data, start), expires * SECOND
        )
    except (ValueError, StructError, ProtocolError) as error:
        raise FormatError(f"has a damaged message at byte {at}: {error}") from None


def _properties(data: bytes, start: int) -> bytes:
    """What travels with the message, from properties with their length in front."""
    if start == len(data):
        return b""
    reader = Reader(data, start, len(data))
    length = reader.varint()
    if reader.at + length != len(data):
        raise ValueError("the length of its properties is wrong")
    found = read_properties(Reader(data, reader.at, len(data)), Publish.TYPE)
    return encode_properties(tuple(each for each in found if each[0] not in _TRAVELS_NOT))

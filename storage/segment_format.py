"""How a sealed segment is laid out in its file: docs/segments.md in code. Nothing here opens a file.

The rules:

1. A file is a header, blocks, an index and a copy of the header. All numbers are little-endian.
2. Everything has a CRC-32, and nothing is believed before it was checked: the header's own, each block's header's, and
   that of each block's data.
3. A block can be read with nothing but the block: it has the names of its topics and clients. So the index is a
   convenience; where it is damaged it is made anew from the blocks.
4. Numbers stand in columns: what all values have in common once, and of the rest one byte plane after another, so that
   bytes that are alike stand together. What columns leave to be said, Zstandard says in fewer bytes.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from itertools import accumulate, chain, pairwise, repeat
from operator import sub
from struct import Struct
from typing import Final
from zlib import crc32

VERSION: Final = 1
MAGIC: Final = b"BERM\r\n\x1a\n"
"""The first bytes of a segment; the line ends show when a transfer has changed them."""
BLOCK_MAGIC: Final = b"BLK\x1a"
INDEX: Final = 0xFFFFFFFF
"""What the index has for the number of its block."""
ID_BYTES: Final = 8
SALT_BYTES: Final = 16
CHECK_BYTES: Final = 12
TAG_BYTES: Final = 16
"""What encryption adds to a block."""
MOST_VALUES: Final = 1 << 24
"""No column of an index has more."""
MOST_RAW_BYTES: Final = 1 << 30
"""No part of a block is longer, uncompressed; one that says so is damaged."""

_START: Final = Struct("<8sHH")
"""Magic, version, length of the header. Together with their CRC-32 these come first in every version."""
_CRC: Final = Struct("<I")
_SUMMARY: Final = Struct(f"<QQqqQQQIIII{ID_BYTES}s{SALT_BYTES}s{CHECK_BYTES}s")
_BLOCK: Final = Struct("<4s8sIIIQQIIIII")
_COLUMN: Final = Struct("<IBq")
_FIRST: Final = Struct("<q")

START_BYTES: Final = _START.size + _CRC.size
HEADER_BYTES: Final = START_BYTES + _SUMMARY.size + _CRC.size
BLOCK_HEADER_BYTES: Final = _BLOCK.size + _CRC.size

_ARRAYS: Final = {1: "B", 2: "H", 3: "I", 4: "I", 5: "Q", 6: "Q", 7: "Q", 8: "Q"}
"""What holds values of so many bytes."""


class Damaged(Exception):
    """What was read isn't what was written."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a segment says of itself. Times are in µs since the epoch, sizes in bytes."""

    first: int
    """The seq of its first event."""
    last: int
    first_ts: int
    last_ts: int
    events: int
    content: int
    """Of all payloads and properties, uncompressed."""
    index_at: int
    index_bytes: int
    blocks: int
    stripes: int
    key: int
    """Which key its blocks are encrypted with; 0: with none."""
    id: bytes
    """Eight bytes that no other segment has; every block repeats them. They begin each block's nonce."""
    salt: bytes = bytes(SALT_BYTES)
    """What the segment's own key is derived with."""
    check: bytes = bytes(CHECK_BYTES)
    """What is derived beside that key, to tell whether it is the right one."""

    def pack(self) -> bytes:
        """Its bytes."""
        start = _START.pack(MAGIC, VERSION, HEADER_BYTES)
        return _sealed(_sealed(start) + _SUMMARY.pack(*astuple(self)))

    @classmethod
    def unpack(cls, data: bytes) -> Header:
        """The header that these bytes are.

        Raises:
            Damaged: they are none.
        """
        if version_of(data) != VERSION:
            raise Damaged("it is of another version")
        if len(data) != HEADER_BYTES or not _sound(data):
            raise Damaged("its checksum does not match")
        return cls(*_SUMMARY.unpack_from(data, START_BYTES))


def version_of(data: bytes) -> int:
    """The version of a header, whichever it is.

    Raises:
        Damaged: this is no header.
    """
    start = data[:START_BYTES]
    if not start.startswith(MAGIC) or len(start) != START_BYTES or not _sound(start):
        raise Damaged("it does not begin as a segment does")
    version: int = _START.unpack_from(start)[1]
    return version


@dataclass(frozen=True, slots=True)
class BlockHeader:
    """What stands before the data of a block."""

    id: bytes
    """Of the segment: nothing that looks like a block, in a payload or left on the disk, is taken for one of it."""
    number: int
    """Counted from 0 through the file."""
    stripe: int
    events: int
    first: int
    """The seq of the first event of the block's stripe."""
    last: int
    """The seq of the last event of the block's stripe."""
    head_bytes: int
    head_raw: int
    """Bytes of the head, uncompressed."""
    body_bytes: int
    body_raw: int
    checksum: int
    """CRC-32 of head and body, as they are stored."""

    @property
    def size(self) -> int:
        """Bytes of the whole block."""
        return BLOCK_HEADER_BYTES + self.head_bytes + self.body_bytes

    def pack(self) -> bytes:
        """Its bytes."""
        return _sealed(_BLOCK.pack(BLOCK_MAGIC, *astuple(self)))

    def bound(self) -> bytes:
        """Its bytes without the two checksums: what encryption binds the block to."""
        return self.pack()[: -2 * _CRC.size]

    @classmethod
    def unpack(cls, data: bytes) -> BlockHeader:
        """The header that these bytes are.

        Raises:
            Damaged: they are none.
        """
        if len(data) != BLOCK_HEADER_BYTES or not data.startswith(BLOCK_MAGIC) or not _sound(data):
            raise Damaged("the checksum of its header does not match")
        header = cls(*_BLOCK.unpack_from(data)[1:])
        if max(header.head_raw, header.body_raw) > MOST_RAW_BYTES:
            raise Damaged("it would be too long")
        return header


def _sealed(data: bytes) -> bytes:
    return data + _CRC.pack(crc32(data))


def _sound(data: bytes) -> bool:
    (checksum,) = _CRC.unpack(data[-_CRC.size :])
    return crc32(data[: -_CRC.size]) == int(checksum)


# -- columns


def numbers(values: Sequence[int]) -> bytes:
    """A column: how many values, bytes of each, the least value; then what each has above it, plane by plane."""
    if not values:
        return _COLUMN.pack(0, 0, 0)
    base = min(values)
    width = ((max(values) - base).bit_length() + 7) // 8
    if not width:
        return _COLUMN.pack(len(values), 0, base)
    above = array(_ARRAYS[width], [value - base for value in values] if base else values)
    if sys.byteorder == "big":
        above.byteswap()
    data, step = above.tobytes(), above.itemsize
    return _COLUMN.pack(len(values), width, base) + b"".join([data[plane::step] for plane in range(width)])


def differences(values: Sequence[int]) -> bytes:
    """A column of numbers that grow: the first of them, and a column of how far each is from the one before."""
    return _FIRST.pack(values[0]) + numbers(list(map(sub, values[1:], values)))


def strings(values: Sequence[str]) -> bytes:
    """A column of texts: one of their lengths in bytes, and all of them in UTF-8."""
    encoded = [value.encode() for value in values]
    return numbers(list(map(len, encoded))) + b"".join(encoded)


class Columns:
    """Reads columns one after another, none of which has more than `most` values.

    Its methods raise `struct.error`, `ValueError` or `IndexError` where the bytes are no such column.
    """

    __slots__ = ("_at", "_data", "_most")

    def __init__(self, data: bytes, most: int) -> None:
        self._data = data
        self._most = most
        self._at = 0

    def numbers(self) -> Sequence[int]:
        """What `numbers` has packed."""
        count, width, base = _COLUMN.unpack_from(self._data, self._at)
        self._at += _COLUMN.size
        if count > self._most:
            raise ValueError("a column has too many values")
        if not width:
            return [base] * count
        if width not in _ARRAYS:
            raise ValueError("the values of a column are too wide")
        above = array(_ARRAYS[width])
        raw = bytearray(count * above.itemsize)
        for plane in range(width):
            raw[plane :: above.itemsize] = self._data[self._at : self._at + count]
            self._at += count
        above.frombytes(raw)
        if sys.byteorder == "big":
            above.byteswap()
        return [base + value for value in above] if base else above

    def differences(self) -> Sequence[int]:
        """What `differences` has packed."""
        (first,) = _FIRST.unpack_from(self._data, self._at)
        self._at += _FIRST.size
        return list(accumulate(self.numbers(), initial=first))

    def strings(self) -> list[str]:
        """What `strings` has packed."""
        ends = list(accumulate(self.numbers(), initial=self._at))
        data = self._data
        self._at = ends[-1]
        return [str(data[begin:end], "utf-8") for begin, end in pairwise(ends)]

    def end(self) -> None:
        """Nothing may follow, and nothing may be missing."""
        if self._at != len(self._data):
            raise ValueError("the columns are not as long as they should be")


def expand(values: Iterable[str], counts: Iterable[int]) -> Iterable[str]:
    """Each value as often as it says."""
    return chain.from_iterable(map(repeat, values, counts))

"""Reads the pages of a SQLite database by itself, whatever is wrong with them: https://sqlite.org/fileformat2.html.

SQLite stops at the first page that isn't as it must be, and with it all that lies behind it in a tree. Here a damaged
page costs what is on it: rows are in leaves, and a leaf can be read by itself.

The rules:

1. Nothing is changed. Pages are those of the last commit: the file's, and over them those of the WAL, as far as its
   checksums prove them. Where its header is damaged, each of its frames proves the one that follows it.
2. Whatever a page says is checked before it is used. What doesn't fit is `Unreadable`, and nothing else is ever raised
   but `OSError`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from struct import error as struct_error
from typing import Final

from storage.interface import Row, Value

USUAL_BYTES: Final = 4096
"""Of a page, where the database doesn't say."""
LEAF: Final = 0x0D
INTERIOR: Final = 0x05
INDEX_LEAF: Final = 0x0A
INDEX_INTERIOR: Final = 0x02

WAL_HEADER: Final = Struct(">8I")
"""Magic, format, page size, checkpoint, two salts, two checksums."""
_FRAME: Final = Struct(">6I")
WAL_MAGIC: Final = {0x377F0682: "<", 0x377F0683: ">"}
"""The WAL's magic numbers, and the byte order in which its checksums are made."""
_U32: Final = Struct(">I")
_U16: Final = Struct(">H")
_HEADER: Final = b"SQLite format 3\0"
_INTEGERS: Final = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
"""Bytes of integers, by serial type."""


class Unreadable(Exception):
    """What stands there isn't what must stand there."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A row of a table, as it stands in a leaf."""

    rowid: int
    row: Row


class Pages:
    """The pages of a database, from 1."""

    def __init__(self, path: Path) -> None:
        """Open it, and read its WAL. Where only that is there, it may have all of it.

        Raises:
            OSError: it can't be read.
        """
        self._file = os.open(path if path.exists() else os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            head = os.pread(self._file, 100, 0)
            self.bytes = _page_bytes(head)
            self.count = os.fstat(self._file).st_size // self.bytes
            self._wal = _Wal(Path(f"{path}-wal"), self.bytes)
            self.count = self._wal.count or self.count
        except BaseException:
            os.close(self._file)
            raise
        self.usable = self.bytes
        """Berm reserves no bytes at the end of pages."""

    def close(self) -> None:
        """Give the files back."""
        os.close(self._file)
        self._wal.close()

    def page(self, number: int) -> bytes:
        """All bytes of a page.

        Raises:
            Unreadable: there is none, or the disk can't read it.
        """
        if not 0 < number <= self.count:
            raise Unreadable(f"there is no page {number}")
        try:
            data = self._wal.page(number) or os.pread(self._file, self.bytes, (number - 1) * self.bytes)
        except OSError as error:
            raise Unreadable(f"the disk can't read page {number}") from error
        if len(data) != self.bytes:
            raise Unreadable(f"the file ends before page {number}")
        return data

    # -- trees

    def kind(self, number: int) -> int:
        """The kind of a page of a tree; anything else is no such page."""
        try:
            return self.page(number)[_start(number)]
        except Unreadable:
            return 0

    def children(self, number: int) -> list[tuple[int, int | None]]:
        """The pages below an interior page of a table, each with the highest rowid on it; of the last it is not said.

        Raises:
            Unreadable: it is none.
        """
        page = self.page(number)
        start = _start(number)
        if page[start] != INTERIOR:
            raise Unreadable("it is no interior page")
        try:
            found: list[tuple[int, int | None]] = [
                (_U32.unpack_from(page, place)[0], _signed(_varint(page, place + 4)[0]))
                for place in _places(page, start, 12)
            ]
        except IndexError:
            raise Unreadable("it goes beyond its page") from None
        return [*found, (_U32.unpack_from(page, start + 8)[0], None)]

    def cells(self, number: int) -> tuple[list[Cell], int]:
        """The rows on a leaf of a table that can be read, and how many can't.

        Raises:
            Unreadable: it is no leaf.
        """
        page = self.page(number)
        start = _start(number)
        if page[start] != LEAF:
            raise Unreadable("it is no leaf of a table")
        found: list[Cell] = []
        bad = 0
        for place in _places(page, start, 8):
            try:
                size, at = _varint(page, place)
                rowid, at = _varint(page, at)
                found.append(Cell(_signed(rowid), record(self._payload(page, at, size, self.usable - 35))))
            except (Unreadable, IndexError, struct_error, UnicodeDecodeError):
                bad += 1
        return found, bad

    def keys(self, number: int) -> tuple[list[Row], list[int]]:
        """The records on a page of an index that can be read, and the pages below it.

        Raises:
            Unreadable: it is none.
        """
        page = self.page(number)
        start = _start(number)
        if page[start] not in (INDEX_LEAF, INDEX_INTERIOR):
            raise Unreadable("it is no page of an index")
        interior = page[start] == INDEX_INTERIOR
        found: list[Row] = []
        below = [_U32.unpack_from(page, start + 8)[0]] if interior else []
        most = (self.usable - 12) * 64 // 255 - 23
        for place in _places(page, start, 12 if interior else 8):
            try:
                if interior:
                    below.append(_U32.unpack_from(page, place)[0])
                size, at = _varint(page, place + 4 * interior)
                found.append(record(self._payload(page, at, size, most)))
            except (Unreadable, IndexError, struct_error, UnicodeDecodeError):
                continue
        return found, below

    def free(self) -> set[int]:
        """The pages that are not in use, as far as the list of them can be read."""
        found: set[int] = set()
        try:
            number = _U32.unpack_from(self.page(1), 32)[0]
            while number and number not in found:
                page = self.page(number)
                found.add(number)
                number, count = Struct(">2I").unpack_from(page)
                if count > self.usable // 4 - 2:
                    break
                found.update(Struct(f">{count}I").unpack_from(page, 8))
        except Unreadable:
            pass
        return found

    def maps(self) -> range:
        """The pages that say what other pages are, which a database with auto_vacuum has."""
        step = self.usable // 5 + 1
        try:
            return range(2, self.count + 1, step) if any(self.page(1)[52:56]) else range(0)
        except Unreadable:
            return range(0)

    @property
    def version(self) -> int:
        """The schema's version, as the first page says; 0 where that can't be read."""
        try:
            page = self.page(1)
        except Unreadable:
            return 0
        number: int = Struct(">i").unpack_from(page, 60)[0]
        return number if page.startswith(_HEADER) else 0

    def _payload(self, page: bytes, at: int, size: int, most: int) -> bytes:
        """The bytes of a cell, with those on pages of their own."""
        if size > self.count * self.bytes:
            raise Unreadable("it is longer than the database")
        if size <= most:
            if at + size > self.usable:
                raise Unreadable("it goes beyond its page")
            return page[at : at + size]
        least = (self.usable - 12) * 32 // 255 - 23
        here = least + (size - least) % (self.usable - 4)
        here = here if here <= most else least
        if at + here + 4 > self.usable:
            raise Unreadable("it goes beyond its page")
        parts, left = [page[at : at + here]], size - here
        number = _U32.unpack_from(page, at + here)[0]
        while left > 0:
            more = self.page(number)
            number = _U32.unpack_from(more)[0]
            parts.append(more[4 : 4 + min(left, self.usable - 4)])
            left -= len(parts[-1])
        return b"".join(parts)


def record(data: bytes) -> Row:
    """The values of a record.

    Raises:
        Unreadable, IndexError, UnicodeDecodeError: it is none.
    """
    end, at = _varint(data, 0)
    if end > len(data):
        raise Unreadable("its header goes beyond it")
    values: list[Value] = []
    place = end
    while at < end:
        kind = data[at]
        if kind < 0x80:
            at += 1
        else:
            kind, at = _varint(data, at)
        if kind >= 12:
            size = (kind - 12) >> 1
            part = data[place : place + size]
            values.append(part.decode() if kind & 1 else part)
        elif kind in _INTEGERS:
            size = _INTEGERS[kind]
            values.append(int.from_bytes(data[place : place + size], "big", signed=True))
        elif kind in (8, 9):
            size = 0
            values.append(kind - 8)
        elif kind == 0:
            size = 0
            values.append(None)
        else:
            raise Unreadable(f"nothing of Berm's has the type {kind}")
        place += size
    if at != end or place != len(data):
        raise Unreadable("its length is another than it says")
    return tuple(values)


def _page_bytes(head: bytes) -> int:
    size = int.from_bytes(head[16:18], "big")
    size = 65536 if size == 1 else size
    return size if head.startswith(_HEADER) and size >= 512 and not size & (size - 1) else USUAL_BYTES


def _start(number: int) -> int:
    """Where the tree's part of a page begins."""
    return 100 if number == 1 else 0


def _places(page: bytes, start: int, header: int) -> Iterator[int]:
    """Where the cells of a page are."""
    begin = start + header
    (count,) = _U16.unpack_from(page, start + 3)
    end = begin + 2 * count
    if end > len(page):
        count = (len(page) - begin) // 2  # it can't be so many: those that there are show by themselves
        end = begin + 2 * count
    for at in range(begin, end, 2):
        (place,) = _U16.unpack_from(page, at)
        if begin < place <= len(page) - 4:
            yield place


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    value = byte & 0x7F
    for number in range(1, 9):
        byte = data[at + number]
        if number == 8:
            return value << 8 | byte, at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + number + 1
    raise AssertionError("a number ends with its ninth byte")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


class _Wal:
    """The pages that a write-ahead log has of what was committed."""

    def __init__(self, path: Path, size: int) -> None:
        self.count = 0
        """Of the database's pages, after the last commit; 0: there is none."""
        self.whole = True
        """Whether its header is sound."""
        self._size = size
        self._places: dict[int, int] = {}
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._file = -1
            return
        self._read(os.fstat(self._file).st_size)

    def close(self) -> None:
        """Give the file back."""
        if self._file >= 0:
            os.close(self._file)

    def page(self, number: int) -> bytes | None:
        """A page; None: it is that of the file."""
        place = self._places.get(number)
        return None if place is None else os.pread(self._file, self._size, place)

    def _read(self, end: int) -> None:
        begin = self._begin()
        if begin is None:
            return
        order, salts, sums = begin
        open_pages: dict[int, int] = {}
        place, step = WAL_HEADER.size, _FRAME.size + self._size
        while place + step <= end:
            frame = os.pread(self._file, step, place)
            first = place == WAL_HEADER.size
            if len(frame) < step or not self._follows(frame, order, salts, None if first and not self.whole else sums):
                return
            number, count, *_, one, two = _FRAME.unpack_from(frame)
            sums = one, two
            open_pages[number] = place + _FRAME.size
            if count:
                self._places |= open_pages
                self.count = count
                open_pages.clear()
            place += step

    def _begin(self) -> tuple[str, list[int], tuple[int, int]] | None:
        """The byte order of checksums, the salts, and the checksum that the first frame goes on with."""
        head = os.pread(self._file, WAL_HEADER.size, 0)
        if len(head) < WAL_HEADER.size:
            return None
        magic, _, _, _, *salts, first, second = WAL_HEADER.unpack(head)
        order = WAL_MAGIC.get(magic)
        if order is not None and summed(head[:24], (0, 0), order) == (first, second):
            return order, salts, (first, second)
        self.whole = False
        step = _FRAME.size + self._size
        one, two = (os.pread(self._file, step, WAL_HEADER.size + number * step) for number in range(2))
        if len(two) < step:
            return None  # nothing proves a single frame
        _, _, *salts, first, second = _FRAME.unpack_from(one)
        for order in WAL_MAGIC.values():
            if self._follows(two, order, salts, (first, second)):
                return order, salts, (0, 0)
        return None

    @staticmethod
    def _follows(frame: bytes, order: str, salts: list[int], sums: tuple[int, int] | None) -> bool:
        """Whether a frame comes behind one with this checksum; None: it isn't known."""
        _, _, *given, one, two = _FRAME.unpack_from(frame)
        if given != salts:
            return False
        return sums is None or summed(frame[_FRAME.size :], summed(frame[:8], sums, order), order) == (one, two)


def summed(data: bytes, sums: tuple[int, int], order: str) -> tuple[int, int]:
    """The checksum of the WAL's format, gone on with."""
    one, two = sums
    words = Struct(f"{order}{len(data) // 4}I").unpack(data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        one = (one + even + two) & 0xFFFFFFFF
        two = (two + odd + one) & 0xFFFFFFFF
    return one, two

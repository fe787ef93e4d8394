"""The file of a sealed segment: its header, blocks and index are read here and checked, or found to be damaged."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from struct import error as struct_error
from typing import TYPE_CHECKING, Final
from zlib import crc32

from zstandard import ZstdDecompressor, ZstdError

from storage.interface import StorageError
from storage.segment_block import Block, decompress
from storage.segment_format import (
    BLOCK_HEADER_BYTES,
    BLOCK_MAGIC,
    HEADER_BYTES,
    INDEX,
    VERSION,
    BlockHeader,
    Damaged,
    Header,
    version_of,
)
from storage.segment_index import Index
from storage.segment_writer import SegmentInfo

if TYPE_CHECKING:
    from storage.datakey import Keys
    from storage.segment_cipher import SegmentCipher

_WINDOW: Final = 1 << 20
"""Bytes in which a block is looked for at a time."""


class SegmentDamaged(StorageError):
    """The file is no segment, or so little of one that nothing can be read from it."""


class SegmentLocked(StorageError):
    """The segment is intact, but encrypted with a key that isn't at hand. `info` is what can be told without it."""

    def __init__(self, problem: str, info: SegmentInfo) -> None:
        super().__init__(problem)
        self.info = info


class SegmentFile:
    """One open file. `notes` say what is wrong with it that costs no event."""

    __slots__ = ("_cipher", "_decompressor", "_file", "header", "notes", "path", "size")

    def __init__(self, path: Path, keys: Keys | None = None) -> None:
        """Open it and read its header.

        Raises:
            SegmentDamaged: it is no segment, or its header and the copy of it are both damaged.
            SegmentLocked: it is encrypted, and these keys don't open it.
            StorageError: it is a newer Berm's, or can't be read.
        """
        self.path = path
        self.notes: list[str] = []
        self._decompressor = ZstdDecompressor()
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would make it wait
        except OSError as error:
            raise self._unreadable(error) from error
        try:
            status = os.fstat(self._file)
            self.size = status.st_size if stat.S_ISREG(status.st_mode) else 0
            self.header = self._header()
            self._cipher = self._unlocked(keys) if self.header.key else None
        except BaseException:
            os.close(self._file)
            raise

    def close(self) -> None:
        """Give the file back."""
        os.close(self._file)

    def block(self, number: int, place: int, size: int) -> Block:
        """The block with this number.

        Raises:
            Damaged: it can't be read.
            StorageError: nothing can be read at the moment.
        """
        data = self._read(place, size)
        header = self._checked(data)
        if header.number != number or header.size != size:
            raise Damaged("another block stands in its place")
        return Block(header, self._content(header, data), self._decompressor)

    def index(self) -> Index:
        """What is where.

        Raises:
            Damaged: it can't be read.
            StorageError: nothing can be read at the moment.
        """
        data = self._read(self.header.index_at, self.header.index_bytes)
        header = self._checked(data)
        if header.number != INDEX:
            raise Damaged("a block stands in its place")
        head = memoryview(self._content(header, data))[: header.head_bytes]
        try:
            return Index.unpack(decompress(self._decompressor, head, header.head_raw))
        except (struct_error, ValueError, IndexError, OverflowError, ZstdError) as error:
            raise Damaged(f"it is none: {error}") from error

    # -- blocks, where the index isn't known

    def block_header(self, place: int) -> BlockHeader:
        """That of the block which begins there.

        Raises:
            Damaged: none does, or it can't be read.
            StorageError: nothing can be read at the moment.
        """
        return self._checked(self._read(place, BLOCK_HEADER_BYTES))

    def find_block(self, begin: int, end: int) -> int:
        """Where the next block seems to begin; `end` where none does before that.

        Raises:
            StorageError: nothing can be read at the moment.
        """
        mark = BLOCK_MAGIC + self.header.id
        while begin < end:
            size = min(_WINDOW, end - begin)
            with suppress(Damaged):  # a sector that can't be read has no block to offer
                found = self._read(begin, size).find(mark)
                if found >= 0:
                    return begin + found
            begin += size if size < _WINDOW else size - len(mark)
        return end

    def _checked(self, data: bytes) -> BlockHeader:
        header = BlockHeader.unpack(data[:BLOCK_HEADER_BYTES])
        if header.id != self.header.id:
            raise Damaged("a block of another segment stands in its place")
        return header

    def _content(self, header: BlockHeader, data: bytes) -> bytes:
        """Head and body of a block, as they were before they were encrypted.

        Raises:
            Damaged: they aren't what was written.
        """
        data = data[BLOCK_HEADER_BYTES:]
        if len(data) != header.head_bytes + header.body_bytes or crc32(data) != header.checksum:
            raise Damaged("the checksum of its data does not match")
        return data if self._cipher is None else self._cipher.open(header, data)

    # -- the header

    def _header(self) -> Header:
        found: list[Header] = []
        for name, place in (("header", 0), ("copy of the header", self.size - HEADER_BYTES)):
            try:
                data = self._read(place, HEADER_BYTES)
                if version_of(data) > VERSION:
                    raise StorageError(
                        f"{self.path} was written by a newer Berm (segment format {version_of(data)}, this one knows "
                        f"{VERSION}); install that version, or set storage.path to another directory"
                    )
                found.append(Header.unpack(data))
            except Damaged as error:
                self.notes.append(f"the {name} is damaged ({error}); no event is lost by that")
        if not found:
            raise SegmentDamaged(
                f"{self.path} is not a sealed segment, or its header and the copy of it are damaged; "
                "move it out of the data directory"
            )
        header = found[0]
        whole = header.index_at + header.index_bytes + HEADER_BYTES
        if self.size != whole:
            self.notes.append(f"the file has {self.size} bytes where it should have {whole}")
        return header

    def _unlocked(self, keys: Keys | None) -> SegmentCipher:
        """What decrypts it.

        Raises:
            SegmentLocked: no key at hand does.
        """
        from storage.segment_cipher import SegmentCipher  # what isn't encrypted can do without

        number = self.header.key
        info = SegmentInfo(self.path, self.header, self.size)
        about = f"{self.path} is intact, but encrypted with data key {number}"
        if keys is None:
            raise SegmentLocked(f"{about}, and there is no key; say in [encryption] where it is", info)
        key = keys(number)
        if key is None:
            raise SegmentLocked(
                f"{about}, which this data directory does not have; restore its keys from a backup", info
            )
        cipher = SegmentCipher(key, self.header.salt)
        if cipher.check != self.header.check:
            raise SegmentLocked(
                f"{about} of another data directory; move it to that one, or restore the keys it belongs to", info
            )
        return cipher

    def _read(self, place: int, size: int) -> bytes:
        """So many bytes from there.

        Raises:
            Damaged: the file or the disk hasn't got them any more.
            StorageError: nothing can be read at the moment.
        """
        if place < 0 or place + size > self.size:
            raise Damaged("the file ends before it")
        parts: list[bytes] = []
        try:
            while size:
                part = os.pread(self._file, size, place)
                if not part:
                    raise Damaged("the file ends before it")
                parts.append(part)
                place += len(part)
                size -= len(part)
        except OSError as error:
            if error.errno == errno.EIO:  # a bad sector will not get better
                raise Damaged(f"the disk can't read it: {error.strerror}") from error
            raise self._unreadable(error) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _unreadable(self, error: OSError) -> StorageError:
        return StorageError(f"reading {self.path}: {error.strerror}; see whether the node may read it")

"""Writes a run of the log as one sealed segment, in small steps.

The rules:

1. A file has its name only once all of it is on the disk: it is written under another name, fsynced, renamed, and the
   directory is fsynced. Whatever ends the process before leaves a `.partial` file, which is worth nothing.
2. A step takes a few milliseconds: it takes up some events, or compresses one block, or writes it. The disk is asked
   from time to time to begin with what it was given, so that the fsync at the end has little to wait for.
3. What is wrong with the disk costs the file that is being written and nothing else.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final
from zlib import crc32

from zstandard import ZstdCompressor

from storage.files import sync_directory
from storage.interface import Event, StorageError, StorageFull
from storage.segment_block import Run, encode, runs, weight
from storage.segment_format import (
    HEADER_BYTES,
    ID_BYTES,
    INDEX,
    MOST_RAW_BYTES,
    MOST_VALUES,
    TAG_BYTES,
    BlockHeader,
    Header,
)
from storage.segment_index import Index

if TYPE_CHECKING:
    from storage.datakey import DataKey
    from storage.segment_cipher import SegmentCipher

PARTIAL: Final = ".partial"
"""What the name of a file that is being written ends in."""
LEVEL: Final = 9
"""Of Zstandard's compression."""
STRIPE_EVENTS: Final = 16384
STRIPE_BYTES: Final = 4 << 20
"""Of payloads, properties and names: a stripe ends with the event that makes it reach either bound."""
BLOCK_EVENTS: Final = 256
BLOCK_BYTES: Final = 128 << 10
"""A block ends near the first of these bounds; see `segment_block.runs`."""

_TAKE: Final = 512
"""Events that one step takes up."""
_PIECE: Final = 256 << 10
"""Bytes that one step compresses or writes."""
_BEGIN_BYTES: Final = 1 << 20
"""Bytes after which the disk is asked to begin writing."""

Steps = Generator[None, None, None]


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """What there is to know of a segment without looking into it."""

    path: Path
    header: Header
    size: int
    """Of the file, in bytes."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How a segment is cut and compressed. A reader need not know."""

    level: int = LEVEL
    stripe_events: int = STRIPE_EVENTS
    block_events: int = BLOCK_EVENTS


def write_segment(
    path: Path, events: Iterable[Event], shape: Shape = Shape(), key: DataKey | None = None
) -> SegmentInfo:
    """Write these events, in ascending order of their seqs, to a file that must not be there yet.

    With a data key, its blocks and its index are encrypted.

    Raises:
        ValueError: there is no event, one is out of order, or there are more than a segment can hold.
        StorageFull: no room.
        StorageError: the file is there already, or can't be written. Nothing of it is left.
    """
    sealing = Sealing(path, events, shape, key)
    while (info := sealing.step()) is None:
        pass
    return info


class Sealing:
    """The writing of one segment. Each step takes a few milliseconds, beside what the iterable itself needs."""

    def __init__(self, path: Path, events: Iterable[Event], shape: Shape = Shape(), key: DataKey | None = None) -> None:
        self.path = path
        self._written = path.with_name(path.name + PARTIAL)
        """Under which name it is in the directory."""
        self._shape = shape
        self._compressor = ZstdCompressor(level=shape.level)
        self._index = Index()
        self._id = os.urandom(ID_BYTES)
        self._cipher = None if key is None else _cipher(key)
        self._at = HEADER_BYTES
        self._begun = 0
        """Up to where the disk was asked to begin writing."""
        self._content = 0
        self._info: SegmentInfo | None = None
        self._file: int | None = None
        self._steps = self._run(events)

    def step(self) -> SegmentInfo | None:
        """Go on a little; what the segment is, once all of it is on the disk. Errors are those of `write_segment`."""
        try:
            next(self._steps, None)
        except BaseException as error:
            self.abandon()
            if isinstance(error, OSError):
                kind = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
                raise kind(
                    f"sealing {self.path}: {error.strerror}; nothing is lost, the events are where they were: "
                    "see whether there is room on the disk and whether it is sound"
                ) from error
            raise
        return self._info

    def abandon(self) -> None:
        """Leave nothing behind, unless all is done. No further step may follow."""
        self._steps.close()
        if self._file is not None:
            os.close(self._file)
            self._file = None
            with suppress(OSError):  # the next start removes it
                self._written.unlink()

    # -- steps

    def _run(self, events: Iterable[Event]) -> Steps:
        if self.path.exists():
            raise StorageError(f"{self.path} is there already, and a segment is never changed; see whose it is")
        self._file = os.open(self._written, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        by_topic: dict[str, list[Event]] = {}
        first = last = None
        count = size = 0
        for event in events:
            if last is not None and event.seq <= last.seq:
                raise ValueError(f"the event {event.seq} comes after {last.seq}")
            if first is None:
                first = event
            last = event
            by_topic.setdefault(event.topic, []).append(event)
            count += 1
            size += weight(event)
            self._content += len(event.payload) + len(event.properties)
            if count >= self._shape.stripe_events or size >= STRIPE_BYTES:
                yield from self._stripe(by_topic, first, last)
                by_topic = {}
                first = None
                count = size = 0
            elif not count % _TAKE:
                yield
        if first is not None and last is not None:
            yield from self._stripe(by_topic, first, last)
        if last is None:
            raise ValueError("a segment has at least one event")
        yield from self._finish()

    def _stripe(self, by_topic: dict[str, list[Event]], first: Event, last: Event) -> Steps:
        yield
        stripes = self._index.stripes
        number = len(stripes.first)
        for block in runs(by_topic, self._shape.block_events, BLOCK_BYTES):
            yield from self._block(block, number, first.seq, last.seq)
        stripes.add(first.seq, last.seq, first.ts, last.ts, len(self._index.events))

    def _block(self, block: list[Run], stripe: int, first: int, last: int) -> Steps:
        head, body, clients = encode(block)
        counts = {topic: len(events) for topic, events in block}
        place = self._at
        size = yield from self._put(len(self._index.events), stripe, clients.total(), first, last, head, body)
        self._index.add(place, size, counts, clients)

    def _put(
        self, number: int, stripe: int, events: int, first: int, last: int, head: bytes, body: bytes
    ) -> Generator[None, None, int]:
        """Compress, encrypt and write one block; its size."""
        if max(len(head), len(body)) > MOST_RAW_BYTES:
            raise ValueError("more than a segment can hold; seal fewer events at a time")
        heads = yield from self._compress(head)
        bodies = yield from self._compress(body)
        sizes = sum(map(len, heads)), len(head), sum(map(len, bodies)), len(body)
        header = BlockHeader(self._id, number, stripe, events, first, last, *sizes, 0)
        pieces = [*heads, *bodies]
        if self._cipher is not None:
            header = replace(header, body_bytes=header.body_bytes + TAG_BYTES)
            pieces = yield from self._encrypt(self._cipher, header, pieces)
        checksum = 0
        for piece in pieces:
            checksum = crc32(piece, checksum)
        header = replace(header, checksum=checksum)
        begin = len(heads) + 1
        self._write(b"".join((header.pack(), *pieces[:begin])))
        for piece in pieces[begin:]:
            yield
            self._write(piece)
        yield
        return header.size

    def _compress(self, data: bytes) -> Generator[None, None, list[bytes]]:
        if len(data) <= _PIECE:
            return [self._compressor.compress(data)]
        frame = self._compressor.compressobj(size=len(data))
        view = memoryview(data)
        pieces = []
        for at in range(0, len(data), _PIECE):
            pieces.append(frame.compress(view[at : at + _PIECE]))
            yield
        pieces.append(frame.flush())
        return pieces

    def _encrypt(
        self, cipher: SegmentCipher, header: BlockHeader, pieces: list[bytes]
    ) -> Generator[None, None, list[bytes]]:
        """The pieces of a block, encrypted; the tag stands behind the last of them."""
        encryptor = cipher.sealing(header)
        encrypted = []
        for piece in pieces:
            encrypted.append(encryptor.update(piece))
            if len(pieces) > 2:
                yield
        encrypted[-1] += encryptor.finalize() + encryptor.tag
        return encrypted

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        _write_all(self._file, data, self._at)
        self._at += len(data)
        if sys.platform == "linux" and self._at - self._begun >= _BEGIN_BYTES:
            os.posix_fadvise(self._file, self._begun, self._at - self._begun, os.POSIX_FADV_DONTNEED)
            self._begun = self._at

    def _finish(self) -> Steps:
        index, stripes = self._index, self._index.stripes
        parts = []
        if sum(index.events) > MOST_VALUES:
            raise ValueError("more events than a segment can hold; seal fewer at a time")
        for part in index.pack():
            parts.append(part)
            yield
        first, last, at = stripes.first[0], stripes.last[-1], self._at
        size = yield from self._put(INDEX, INDEX, 0, first, last, b"".join(parts), b"")
        header = Header(
            first,
            last,
            stripes.first_ts[0],
            stripes.last_ts[-1],
            sum(index.events),
            self._content,
            at,
            size,
            len(index.events),
            len(stripes.first),
            0,
            self._id,
        )
        if self._cipher is not None:
            cipher = self._cipher
            header = replace(header, key=cipher.number, salt=cipher.salt, check=cipher.check)
        self._write(header.pack())
        file = self._file
        assert file is not None
        _write_all(file, header.pack(), 0)
        yield
        os.fsync(file)
        yield
        os.rename(self._written, self.path)
        self._written = self.path
        sync_directory(self.path.parent)
        self._file = None
        os.close(file)
        self._info = SegmentInfo(self.path, header, self._at)


def _cipher(key: DataKey) -> SegmentCipher:
    from storage.segment_cipher import SegmentCipher  # what isn't encrypted can do without

    return SegmentCipher(key)


def remove_partial(directory: Path) -> None:
    """Remove what was being written when a process ended."""
    for path in directory.glob(f"*{PARTIAL}"):
        path.unlink(missing_ok=True)


def _write_all(file: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, at)
        at += written
        view = view[written:]

"""The index of a sealed segment, made anew from its blocks where it is damaged or cut off, and what is missing then.

Blocks are found one behind the other; after one with a damaged header, by looking for the next that bears the segment's
id. Their numbers tell where some are missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby

from storage.segment_file import SegmentFile
from storage.segment_format import HEADER_BYTES, BlockHeader, Damaged
from storage.segment_index import Index

Range = tuple[int, int]
"""First and last seq."""


@dataclass(slots=True)
class Loss:
    """How many events can't be found, and where their seqs lie: there may be others that never were an event's."""

    events: int = 0
    ranges: list[Range] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Found:
    """A sound block, without its body."""

    header: BlockHeader
    place: int
    topics: dict[str, int]
    clients: dict[str, int]
    seqs: Sequence[int]
    times: Sequence[int]


def rebuild(file: SegmentFile) -> tuple[Index, Loss]:
    """An index of all blocks that can be read, and what the others cost.

    Raises:
        StorageError: nothing can be read at the moment.
    """
    index, loss = Index(), Loss()
    stripes = index.stripes
    upto = file.header.first - 1
    unsure: list[Range] = []
    """Seqs of the stripe before that were not found: lost, if the block that follows it is missing."""
    for _, group in groupby(_blocks(file), key=lambda found: found.header.stripe):
        blocks = list(group)
        first, last = blocks[0].header.first, blocks[0].header.last
        numbers = [block.header.number for block in blocks]
        gaps = missing(chain.from_iterable([block.seqs for block in blocks]), first, last)
        if numbers[0] != len(index.events):
            loss.ranges += [*unsure, *missing((), upto + 1, first - 1), *gaps]
            unsure = []
        elif numbers[-1] - numbers[0] >= len(numbers):
            loss.ranges += gaps
            unsure = []
        else:
            unsure = gaps
        for block in blocks:
            index.skip(block.header.number)
            index.add(block.place, block.header.size, block.topics, block.clients)
        times = [time for block in blocks for time in block.times]
        stripes.add(first, last, min(times), max(times), len(index.events))
        upto = last
    if len(index.events) < file.header.blocks:
        loss.ranges += [*unsure, *missing((), upto + 1, file.header.last)]
    loss.events = file.header.events - sum(index.events)
    return index, loss


def missing(seqs: Iterable[int], first: int, last: int) -> list[Range]:
    """The ranges between `first` and `last` that have none of these."""
    ranges: list[Range] = []
    for seq in sorted(seqs):
        if seq > first:
            ranges.append((first, seq - 1))
        first = seq + 1
    if first <= last:
        ranges.append((first, last))
    return ranges


def _blocks(file: SegmentFile) -> Iterator[_Found]:
    place, end = HEADER_BYTES, min(file.header.index_at, file.size)
    while place < end:
        try:
            header = file.block_header(place)
        except Damaged:
            place = file.find_block(place + 1, end)
            continue
        try:
            block = file.block(header.number, place, header.size)
        except Damaged:
            pass  # its number will be missing
        else:
            yield _Found(header, place, block.topics, block.clients, block.seqs, block.times)
        place += header.size

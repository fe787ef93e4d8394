"""Reads sealed segments: by seq, topic, client and time, around whatever is damaged.

The rules:

1. A reader holds one stripe, or as many as it was allowed, and the index while it is used. It reads the file and
   doesn't map it: then a bad sector is an error that can be handled, not the end of the process.
2. What can't be read costs itself: a damaged block the events in it, a damaged index nothing, since it is made anew
   from the blocks. It is reported once, with the seqs that are lost, and everything else is served.
3. One thread reads. Another one opens the file for itself.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from storage.interface import Accepts, Event, Latest
from storage.segment_block import Block, weight
from storage.segment_file import SegmentFile
from storage.segment_format import Damaged
from storage.segment_index import Index
from storage.segment_rebuild import Range, missing, rebuild
from storage.segment_writer import SegmentInfo

if TYPE_CHECKING:
    from storage.datakey import Keys

READ_BYTES: Final = 4 << 20
"""Bytes of topics, clients, properties and payloads after which a read returns with what it has."""
SCAN_BLOCKS: Final = 128
"""Blocks that one read opens, roughly."""
FILTERS: Final = 16
"""Filters of which it is remembered which blocks they concern."""


_seq = attrgetter("seq")


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with a segment, how many events that costs, and where their seqs lie.

    The ranges may hold other seqs too, that never were an event's.
    """

    path: Path
    reason: str
    events: int = 0
    ranges: tuple[Range, ...] = ()
    """First and last seq of each."""


Damages = Callable[[Damage], None]


@dataclass(slots=True, eq=False)
class _View:
    """What a filter lets through."""

    topics: frozenset[str] | None
    """None: all."""
    concerned: bytearray | None
    """For each block, whether it has any of these; None: all have."""


@dataclass(slots=True)
class _Stripe:
    """The events of a stripe that a filter has let through, in order."""

    seqs: list[int]
    events: list[Event]


class Recent:
    """The stripes that were read last, of any number of segments: readers come again for the rest of them.

    Each takes as much memory as its events, some megabytes; there are never more than `most`, which is 1 at least.
    """

    __slots__ = ("_most", "_stripes")

    def __init__(self, most: int = 1) -> None:
        self._most = most
        self._stripes: dict[tuple[Segment, int, _View], _Stripe] = {}

    def _get(self, key: tuple[Segment, int, _View]) -> _Stripe | None:
        stripe = self._stripes.pop(key, None)
        if stripe is not None:
            self._stripes[key] = stripe  # used last
        return stripe

    def _make_room(self) -> None:
        while len(self._stripes) >= self._most:
            del self._stripes[next(iter(self._stripes))]

    def _put(self, key: tuple[Segment, int, _View], stripe: _Stripe) -> None:
        self._stripes[key] = stripe

    def _forget(self, segment: Segment) -> None:
        for key in [key for key in self._stripes if key[0] is segment]:
            del self._stripes[key]


class Segment:
    """One open segment. `damaged` is told of each damage once, when it is met."""

    def __init__(self, path: Path, damaged: Damages, recent: Recent, keys: Keys | None = None) -> None:
        self._file = file = SegmentFile(path, keys)
        self.info = SegmentInfo(path, file.header, file.size)
        self._damaged = damaged
        self._index: Index | None = None
        self._recent = recent
        self._everything = _View(None, None)
        self._views: dict[int, tuple[Accepts, _View]] = {}
        """By the identity of their filters, which must live as long; those that were used last come last."""
        self._reported: set[int] = set()
        """Stripes; -1 is the index."""
        for note in file.notes:
            damaged(Damage(path, note))

    @classmethod
    def open(
        cls,
        path: Path,
        damaged: Damages = lambda damage: None,
        recent: Recent | None = None,
        keys: Keys | None = None,
    ) -> Self:
        """Open a segment. Its header is checked now, everything else as it is read.

        Readers in one thread may share what is kept of their segments.

        Raises:
            SegmentDamaged: it is no segment, or its header and the copy of it are both damaged.
            SegmentLocked: it is encrypted, and these keys don't open it; it is intact.
            StorageError: it is a newer Berm's, or can't be read.
        """
        return cls(path, damaged, Recent() if recent is None else recent, keys)

    def close(self) -> None:
        """Give back the file and all memory."""
        self.release()
        self._file.close()

    def release(self) -> None:
        """Hold as little memory as possible until the next call."""
        self._index = None
        self._views.clear()
        self._recent._forget(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # -- reading

    def read(
        self, after: int, upto: int, limit: int, accepts: Accepts | None = None, max_bytes: int = READ_BYTES
    ) -> tuple[list[Event], int]:
        """At most `limit` accepted events with after < seq <= upto, in order, and the seq up to which was looked.

        As of `Engine.read`, one call looks at a bounded stretch and returns a bounded number of bytes. What a filter
        says of a topic must not change as long as the filter lives.

        Raises:
            StorageError: the file can't be read at the moment.
        """
        found: list[Event] = []
        index = self._loaded()
        view = self._view(index, accepts)
        stripes = index.stripes
        opened = 0
        for number in range(bisect_right(stripes.last, after), len(stripes.last)):
            if stripes.first[number] > upto:
                break
            if opened >= SCAN_BLOCKS:
                return found, after
            wanted = _wanted(index, number, view.concerned)
            if wanted:
                stripe = self._events(index, number, view, wanted)
                opened += len(wanted)
                begin = bisect_right(stripe.seqs, after)
                end = min(bisect_right(stripe.seqs, upto), begin + limit - len(found))
                for event in stripe.events[begin:end]:
                    found.append(event)
                    max_bytes -= weight(event)
                    if max_bytes <= 0:
                        return found, event.seq
                if len(found) >= limit:
                    return found, found[-1].seq
            after = stripes.last[number]
        return found, upto

    def get(self, seqs: Sequence[int]) -> list[Event]:
        """The events with these seqs that can be read, in order."""
        index = self._loaded()
        stripes = index.stripes
        found: dict[int, Event] = {}
        wanted: dict[int, set[int]] = {}
        for seq in seqs:
            number = bisect_left(stripes.last, seq)
            if number < len(stripes.last) and seq >= stripes.first[number]:
                wanted.setdefault(number, set()).add(seq)
        for number, left in wanted.items():
            for block in self._blocks(index, number, _wanted(index, number)):
                for seq in left.intersection(block.seqs):
                    found[seq] = block.event(block.seqs.index(seq))
                if len(found) == len(seqs):
                    break
        return [found[seq] for seq in sorted(found)]

    def last_of(self, topic: str, count: int) -> list[Event]:
        """The last `count` events of a topic, in order."""
        index = self._loaded()
        found: list[Event] = []
        for block in reversed(index.topics.blocks.get(topic, ())):
            if len(found) >= count:
                break
            number = bisect_right(index.stripes.begin, block) - 1
            for each in self._blocks(index, number, (block,)):
                found[:0] = each.events_of((topic,))
        return found[-count:]

    def latest(self, found: Latest, after: int, before: int) -> int:
        """Add to `found` what the last stripe that has something wanted has of it, with after < seq < before.

        The seq below which to go on: `after` + 1 where no stripe is left.

        Raises:
            StorageError: the file can't be read at the moment.
        """
        index = self._loaded()
        stripes = index.stripes
        topics = {topic for topic in index.topics.blocks if found.wants(topic)}
        concerned = _mask(index, [index.topics.blocks[topic] for topic in topics]) if topics else None
        for number in range(bisect_left(stripes.first, before) - 1, -1, -1):
            if concerned is None:
                break
            if wanted := _wanted(index, number, concerned):
                events = [event for block in self._blocks(index, number, wanted) for event in block.events_of(topics)]
                for event in sorted(events, key=_seq, reverse=True):
                    if after < event.seq < before:
                        found.add(event.seq, event.topic)
                return max(after + 1, stripes.first[number])
        return after + 1

    def of_client(self, client: str) -> Iterator[Event]:
        """All events that a client has published, in order."""
        index = self._loaded()
        concerned = _mask(index, (index.clients.blocks.get(client, ()),))
        for number in range(len(index.stripes.last)):
            blocks = self._blocks(index, number, _wanted(index, number, concerned))
            events = [event for block in blocks for event in block.events() if event.client == client]
            yield from sorted(events, key=lambda event: event.seq)

    def seq_at(self, ts: int) -> int:
        """The seq of the first event that came at this time or later; one above the last seq where there is none."""
        index = self._loaded()
        stripes = index.stripes
        for number in range(bisect_left(stripes.last_ts, ts), len(stripes.last_ts)):
            seqs = [
                seq
                for block in self._blocks(index, number, _wanted(index, number))
                for seq, time in zip(block.seqs, block.times, strict=True)
                if time >= ts
            ]
            if seqs:
                return min(seqs)
        return self.info.header.last + 1

    @property
    def topics(self) -> dict[str, int]:
        """Every topic, and how many events of it there are."""
        return self._loaded().topics.events

    @property
    def clients(self) -> dict[str, int]:
        """Every client, and how many events it has published."""
        return self._loaded().clients.events

    # -- stripes

    def _loaded(self) -> Index:
        if self._index is None:
            try:
                self._index = self._file.index()
            except Damaged as error:
                self._index, loss = rebuild(self._file)
                self._report(-1, f"the index is damaged ({error}) and was made anew", loss.events, loss.ranges)
        return self._index

    def _view(self, index: Index, accepts: Accepts | None) -> _View:
        """What a filter lets through; of those used last it is remembered."""
        if accepts is None:
            return self._everything
        _, view = self._views.pop(id(accepts), (accepts, None))
        if view is None:
            names = index.topics.blocks
            topics = frozenset(filter(accepts, names))
            view = self._everything
            if len(topics) < len(names):
                view = _View(topics, _mask(index, [names[topic] for topic in topics]))
            if len(self._views) >= FILTERS:
                del self._views[next(iter(self._views))]
        self._views[id(accepts)] = accepts, view
        return view

    def _events(self, index: Index, number: int, view: _View, wanted: Sequence[int]) -> _Stripe:
        """What a filter lets through of a stripe."""
        key = self, number, view
        stripe = self._recent._get(key)
        if stripe is not None:
            return stripe
        self._recent._make_room()
        topics = view.topics
        by_seq: dict[int, Event] = {}
        for block in self._blocks(index, number, wanted):
            if topics is None:
                by_seq.update(zip(block.seqs, block.events(), strict=True))
            else:
                by_seq.update([(event.seq, event) for event in block.events_of(topics)])
        seqs = sorted(by_seq)
        stripe = _Stripe(seqs, list(map(by_seq.__getitem__, seqs)))
        self._recent._put(key, stripe)
        return stripe

    def _blocks(self, index: Index, stripe: int, wanted: Sequence[int]) -> Iterator[Block]:
        """These blocks of a stripe, as far as they can be read."""
        for number in wanted:
            try:
                yield self._block(index, number)
            except Damaged as error:
                self._lost(index, stripe, number, error)

    def _block(self, index: Index, number: int) -> Block:
        if not index.sizes[number]:
            raise Damaged("it was not found")
        return self._file.block(number, index.places[number], index.sizes[number])

    def _lost(self, index: Index, stripe: int, number: int, error: Damaged) -> None:
        """Report a damaged block together with all others of its stripe."""
        if stripe in self._reported or not index.sizes[number]:
            return  # what was not found when the index was made anew has been reported
        begin, end = index.stripes.begin[stripe : stripe + 2]
        seqs: list[int] = []
        events = 0
        for each in range(begin, end):
            try:
                seqs += self._block(index, each).seqs
            except Damaged:
                events += index.events[each]
        ranges = missing(seqs, index.stripes.first[stripe], index.stripes.last[stripe])
        self._report(stripe, f"block {number} is damaged: {error}", events, ranges)

    def _report(self, what: int, reason: str, events: int, ranges: Sequence[Range]) -> None:
        if what not in self._reported:
            self._reported.add(what)
            self._damaged(Damage(self.info.path, reason, events, tuple(ranges) if events else ()))


def verify(path: Path, keys: Keys | None = None) -> list[Damage]:
    """Read all of a segment; what is wrong with it.

    Raises:
        StorageError: it can't be opened, see `Segment.open`.
    """
    found: list[Damage] = []
    with Segment.open(path, found.append, None, keys) as segment:
        index = segment._loaded()
        for number in range(len(index.stripes.last)):
            for _ in segment._blocks(index, number, _wanted(index, number)):
                pass
    return found


def _mask(index: Index, places: Iterable[Iterable[int]]) -> bytearray:
    """For each block, whether it is among these."""
    mask = bytearray(len(index.events))
    for number in chain.from_iterable(places):
        mask[number] = 1
    return mask


def _wanted(index: Index, stripe: int, concerned: bytearray | None = None) -> Sequence[int]:
    """The blocks of a stripe that must be opened."""
    begin, end = index.stripes.begin[stripe : stripe + 2]
    if concerned is None:
        return range(begin, end)
    return [number for number in range(begin, end) if concerned[number]]

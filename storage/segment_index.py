"""What is where in a sealed segment: stripes by seq and time, blocks, and the blocks of each topic and client."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, pairwise

from storage.segment_format import HEADER_BYTES, MOST_VALUES, Columns, differences, numbers, strings


@dataclass(slots=True)
class Stripes:
    """The stripes of a segment, one column for each of their properties."""

    first: list[int] = field(default_factory=list)
    """Seqs of their first events."""
    last: list[int] = field(default_factory=list)
    first_ts: list[int] = field(default_factory=list)
    last_ts: list[int] = field(default_factory=list)
    begin: list[int] = field(default_factory=lambda: [0])
    """Where their blocks begin, and one more: where the last of them end."""

    def add(self, first: int, last: int, first_ts: int, last_ts: int, end: int) -> None:
        """One more, whose blocks end before the one with the number `end`."""
        self.first.append(first)
        self.last.append(last)
        self.first_ts.append(first_ts)
        self.last_ts.append(last_ts)
        self.begin.append(end)


class Postings:
    """Names, and for each the numbers of the blocks that have it, ascending, and how many events these are."""

    __slots__ = ("blocks", "events")

    def __init__(self) -> None:
        self.blocks: dict[str, Sequence[int]] = {}
        self.events: dict[str, int] = {}

    def add(self, block: int, counts: Mapping[str, int]) -> None:
        """A further block has so many events of these names."""
        for name, count in counts.items():
            places = self.blocks.setdefault(name, array("I"))
            assert isinstance(places, array), "an index that was read gets no more blocks"
            places.append(block)
            self.events[name] = self.events.get(name, 0) + count

    def pack(self) -> bytes:
        """Its columns."""
        names = sorted(self.blocks)
        places = list(chain.from_iterable(map(self.blocks.__getitem__, names)))
        return (
            strings(names)
            + numbers(list(map(self.events.__getitem__, names)))
            + numbers([len(self.blocks[name]) for name in names])
            + numbers(places)
        )

    @classmethod
    def read(cls, columns: Columns) -> Postings:
        """What `pack` has made."""
        postings = cls()
        names = columns.strings()
        events = columns.numbers()
        ends = list(accumulate(columns.numbers(), initial=0))
        places = columns.numbers()  # not differences: they would take as long to read as all the rest
        if not len(names) == len(events) == len(ends) - 1 or ends[-1] != len(places):
            raise ValueError("the places of names are not as many as they should be")
        postings.events.update(zip(names, events, strict=True))
        for name, (begin, end) in zip(names, pairwise(ends), strict=True):
            postings.blocks[name] = places[begin:end]
        return postings


@dataclass(slots=True)
class Index:
    """All of it. The number of a block is its place in the columns."""

    stripes: Stripes = field(default_factory=Stripes)
    events: list[int] = field(default_factory=list)
    """Of each block, how many."""
    places: list[int] = field(default_factory=list)
    """Where in the file each block begins."""
    sizes: list[int] = field(default_factory=list)
    """Bytes of each block, its header included; 0 for one that was not found when the index was made anew."""
    topics: Postings = field(default_factory=Postings)
    clients: Postings = field(default_factory=Postings)

    def add(self, place: int, size: int, topics: Mapping[str, int], clients: Mapping[str, int]) -> None:
        """One more block, and how many events of each topic and client it has."""
        number = len(self.events)
        self.events.append(sum(topics.values()))
        self.places.append(place)
        self.sizes.append(size)
        self.topics.add(number, topics)
        self.clients.add(number, clients)

    def skip(self, number: int) -> None:
        """The blocks before this one that are not there yet can't be found."""
        missing = [0] * (number - len(self.events))
        self.events += missing
        self.places += missing
        self.sizes += missing

    def pack(self) -> Iterator[bytes]:
        """Its bytes, in a few steps."""
        stripes = self.stripes
        columns = (stripes.first, stripes.last, stripes.first_ts, stripes.last_ts, stripes.begin)
        yield b"".join(map(differences, columns)) + numbers(self.events) + numbers(self.sizes)
        yield self.topics.pack()
        yield self.clients.pack()

    @classmethod
    def unpack(cls, data: bytes) -> Index:
        """The index that these bytes are.

        Raises:
            ValueError, IndexError, OverflowError, struct.error: they are none.
        """
        columns = Columns(data, MOST_VALUES)
        stripes = Stripes(*(list(columns.differences()) for _ in range(5)))
        events = list(columns.numbers())
        sizes = list(columns.numbers())
        places = list(accumulate(sizes[:-1], initial=HEADER_BYTES))
        index = cls(stripes, events, places, sizes, Postings.read(columns), Postings.read(columns))
        columns.end()
        if stripes.begin[-1] != len(events) or len(sizes) != len(events):
            raise ValueError("it has not as many blocks as it should")
        return index

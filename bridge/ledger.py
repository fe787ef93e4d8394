"""The cloud's side of the proof: counts what arrives, drops what arrives twice, and finds what never arrived.

The theory: a message that says `prev` asserts that its chain has no event between `prev` and its own seq. Let `head` be
the highest seq that has arrived. A message with prev <= head continues the chain, or repeats it. A message with
prev > head proves that something in (head, prev] is missing: at the least the event `prev` itself. That interval is an
open gap. A message that arrives inside a gap closes the part (its prev, its seq] of it. So an event is a duplicate if
and only if it is at or below head and in no open gap, and memory is bounded by the number of open gaps.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter

_upper = itemgetter(1)

ChainKey = tuple[str, int, str]
"""Edge, epoch, route."""


@dataclass(slots=True)
class Chain:
    """What has arrived of one route of one edge."""

    received: int = 0
    """Different events."""
    duplicates: int = 0
    head: int = 0
    """The highest seq that has arrived."""
    gaps: list[tuple[int, int]] = field(default_factory=list)
    """Open gaps (after, upto) in order: the event `upto` is missing, and perhaps others above `after`."""

    def feed(self, seq: int, prev: int) -> bool:
        """Whether this event is new; False for one that has arrived before."""
        if seq > self.head:
            if prev > self.head:
                self.gaps.append((self.head, prev))
            self.head = seq
        elif not self._fill(seq, prev):
            self.duplicates += 1
            return False
        self.received += 1
        return True

    def _fill(self, seq: int, prev: int) -> bool:
        gaps = self.gaps
        index = bisect_left(gaps, seq, key=_upper)
        if index == len(gaps) or gaps[index][0] >= seq:
            return False
        after, upto = gaps[index]
        gaps[index : index + 1] = [gap for gap in ((after, prev), (seq, upto)) if gap[0] < gap[1]]
        return True


class Ledger:
    """Proves, message by message, that a consumer has everything that bridges forwarded.

    With `whole` (the default) it has listened since each chain began, so a chain that begins in its middle is a gap.
    Without, a chain is taken up wherever it is first seen.
    """

    __slots__ = ("_chains", "_whole")

    def __init__(self, whole: bool = True) -> None:
        self._whole = whole
        self._chains: dict[ChainKey, Chain] = {}

    def feed(self, edge: str, epoch: int, seq: int, prev: int, route: str = "") -> bool:
        """Count one message; whether it is new. False: a copy of it has been counted, so drop this one."""
        key = (edge, epoch, route)
        chain = self._chains.get(key)
        if chain is None:
            chain = self._chains[key] = Chain(head=0 if self._whole else prev)
        return chain.feed(seq, prev)

    def chains(self) -> Iterator[tuple[ChainKey, Chain]]:
        """Every chain seen so far."""
        return iter(self._chains.items())

    @property
    def received(self) -> int:
        """Different events that have arrived."""
        return sum(chain.received for chain in self._chains.values())

    @property
    def duplicates(self) -> int:
        """Copies beyond the first."""
        return sum(chain.duplicates for chain in self._chains.values())

    @property
    def gaps(self) -> int:
        """Open gaps: at least this many events are missing. 0 is the proof."""
        return sum(len(chain.gaps) for chain in self._chains.values())

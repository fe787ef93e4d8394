"""The acknowledgement window: what is on its way to the peer, and how far everything has arrived.

The theory: a route reads its cursor in log order, and its peer acknowledges in any order. Each event taken from the
cursor becomes an `Entry` at the right end of its route's `Lane`. An entry is settled once its fate is known: the peer
acknowledged it, or refused it, or it is one that is not sent. The floor is the seq up to which every entry is settled;
it moves when the leftmost entries are, so each event passes it exactly once, which is where events are counted.

When a connection ends, everything above the floor is unknown, and is sent again from there. That makes the floor the
only thing worth keeping on disk: it is never beyond an event whose fate is open.

A `Window` belongs to the connection: packet identifiers, and the bounds by count and by bytes that all lanes share.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import Final

LAST_PACKET_ID: Final = 65535


class Outcome(IntEnum):
    """What became of one event that a route took from its cursor."""

    ACKNOWLEDGED = 0
    """The peer has acknowledged it."""
    WRITTEN = 1
    """QoS 0: handed to the transport, which is all that QoS 0 promises."""
    REFUSED = 2
    """The peer will never take it."""
    OVERSIZED = 3
    """It doesn't fit the peer's Maximum Packet Size, or its topic with the prefix doesn't fit MQTT's 65,535 bytes."""
    EXPIRED = 4
    """Its message expiry interval ran out before it was sent."""
    LOOPED = 5
    """It has been here before, or has been over too many bridges."""


class Entry:
    """One event between its cursor and its fate."""

    __slots__ = ("lane", "linked", "outcome", "seq", "size")

    def __init__(self, lane: Lane, seq: int, size: int, linked: bool) -> None:
        self.lane = lane
        self.seq = seq
        self.size = size
        """Bytes of its frame; 0 where nothing waits for the peer."""
        self.linked = linked
        """Whether the next event says that it comes after this one."""
        self.outcome: Outcome | None = None


class Lane:
    """One route's entries in log order, at most `limit` of them, and the floor below them.

    `floor` is the seq to go on from; `last` the seq of the last linked entry that has passed the floor, 0 for none.
    """

    __slots__ = ("_entries", "counts", "floor", "last", "limit")

    def __init__(self, limit: int, floor: int, last: int) -> None:
        self.limit = limit
        self.floor = floor
        self.last = last
        self.counts = [0] * len(Outcome)
        """Events past the floor, by outcome."""
        self._entries: deque[Entry] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def full(self) -> bool:
        """Whether it takes no further entry until the floor moves."""
        return len(self._entries) >= self.limit

    def add(self, seq: int, size: int, linked: bool) -> Entry:
        """The next event, whose fate is open."""
        entry = Entry(self, seq, size, linked)
        self._entries.append(entry)
        return entry

    def skip(self, seq: int, outcome: Outcome, linked: bool) -> None:
        """The next event is not sent at all."""
        self.settle(self.add(seq, 0, linked), outcome)

    def settle(self, entry: Entry, outcome: Outcome) -> None:
        """The entry's fate is known; the floor moves over all that are settled in a row."""
        entry.outcome = outcome
        entries = self._entries
        counts = self.counts
        while entries and (outcome_of := entries[0].outcome) is not None:
            first = entries.popleft()
            counts[outcome_of] += 1
            self.floor = first.seq
            if first.linked:
                self.last = first.seq

    def reach(self, position: int) -> None:
        """The cursor stands at `position`: where nothing is open, all up to there is done with."""
        if not self._entries and position > self.floor:
            self.floor = position

    def clear(self) -> None:
        """The connection is gone, and with it what it knew above the floor."""
        self._entries.clear()


class Window:
    """What waits for an acknowledgement on one connection: at most `limit` packets, and about `limit_bytes` bytes.

    It is full once the bytes are reached, so the last packet may stand out over them: one that is larger than the
    whole window still gets through, alone.
    """

    __slots__ = ("_entries", "_last_id", "_size", "limit", "limit_bytes")

    def __init__(self, limit: int, limit_bytes: int) -> None:
        self.limit = limit
        self.limit_bytes = limit_bytes
        self._entries: dict[int, Entry] = {}
        self._last_id = 0
        self._size = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes that wait for an acknowledgement."""
        return self._size

    @property
    def full(self) -> bool:
        """Whether nothing more may be sent at QoS 1 before an acknowledgement comes."""
        return len(self._entries) >= self.limit or self._size >= self.limit_bytes

    def next_id(self) -> int:
        """The packet identifier that the next `open` takes: never 0, never one in use. [MQTT-2.2.1-3]"""
        packet_id = self._last_id
        while True:
            packet_id = packet_id + 1 if packet_id < LAST_PACKET_ID else 1
            if packet_id not in self._entries:
                return packet_id

    def open(self, packet_id: int, entry: Entry) -> None:
        """The entry is on its way under this packet identifier."""
        self._entries[packet_id] = entry
        self._last_id = packet_id
        self._size += entry.size

    def close(self, packet_id: int) -> Entry | None:
        """The peer has answered: the entry, or None where nothing waits under this packet identifier."""
        entry = self._entries.pop(packet_id, None)
        if entry is not None:
            self._size -= entry.size
        return entry

"""Reads history out of the log, beside a running node or without one.

The theory: `ts` never decreases along the log, so a time is a place in it that is found by halving, some thirty reads
in a log of any length. From there a replay is a cursor like any other: it reads forward, in bounded steps, and holds
no transaction between them, so the node is never in its way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from berm.times import format_time
from broker.mqtt.topic import compile_filters
from storage.interface import Accepts, Engine, Event

READ_LIMIT: Final = 1000
"""Events that one read brings at most."""


class RangeError(Exception):
    """There can be nothing in this range of the log; the message says why, and what there is instead."""


class NothingFoundError(Exception):
    """No event matches; the message says which were looked for."""


@dataclass(frozen=True, slots=True)
class Query:
    """Which events: those whose topic matches one of `topics` (none: all topics), with start <= time < end.

    `start` and `end` are in µs since the Unix epoch; a `client` is the publisher's client identifier; `from_seq` is the
    first seq that is looked at.
    """

    topics: tuple[str, ...] = ()
    start: int | None = None
    end: int | None = None
    client: str | None = None
    limit: int | None = None
    from_seq: int | None = None

    def accepts(self) -> Accepts | None:
        """The filter over topic names; None where all are wanted."""
        return compile_filters(self.topics) if self.topics else None


class Replay:
    """One run through what a query asks for, up to the last event that is in the log at the begin.

    Raises:
        StorageError: the log can't be read.
    """

    def __init__(self, engine: Engine, query: Query) -> None:
        self.upto = engine.last() if query.end is None else seek_time(engine, query.end)
        self.start = self.position = locate(engine, query)
        """The seq after which it began, and the seq up to which it has looked."""
        self.count = 0
        """Events found so far."""
        self._engine = engine
        self._query = query
        self._accepts = query.accepts()

    def batches(self) -> Iterator[list[Event]]:
        """The events in order; an empty list where a stretch of the log has none. Holds one list at a time."""
        query = self._query
        left = query.limit
        while self.position < self.upto and left != 0:
            events, self.position = self._engine.read(self.position, self.upto, READ_LIMIT, self._accepts)
            if query.client is not None:
                events = [event for event in events if event.client == query.client]
            if left is not None:
                del events[left:]
                left -= len(events)
            self.count += len(events)
            yield events

    def __iter__(self) -> Iterator[Event]:
        for events in self.batches():
            yield from events

    def require(self) -> None:
        """Check, at the end, that a query for certain topics or a client has found something.

        Raises:
            NothingFoundError: it has not.
        """
        query = self._query
        if self.count or not (query.topics or query.client is not None):
            return
        wanted = [f"topic {topic}" for topic in query.topics]
        if query.client is not None:
            wanted.append(f"client {query.client!r}")
        span = "" if query.start is query.end is query.from_seq is None else " in this range"
        raise NothingFoundError(f"nothing matches {', '.join(wanted)}{span}")


def select(engine: Engine, query: Query) -> Iterator[Event]:
    """The events that a query asks for, in order, up to the last one that is in the log at the first call.

    Raises:
        StorageError: the log can't be read.
    """
    yield from Replay(engine, query)


def locate(engine: Engine, query: Query) -> int:
    """The position after which a query begins."""
    position = 0 if query.start is None else seek_time(engine, query.start)
    return position if query.from_seq is None else max(position, query.from_seq - 1)


def check_range(engine: Engine, query: Query, now: int) -> None:
    """Check that a query asks for a part of the log that is there, or may yet come to be.

    Raises:
        RangeError: it is gone, or in the future.
        StorageError: the log can't be read.
    """
    last = engine.last()
    if query.start is not None and query.start > max(now, engine.last_ts()):
        raise RangeError(f"{format_time(query.start)} is in the future: it is {format_time(now)}")
    first = next_event(engine, 0, last)
    if query.from_seq is not None:
        if first is None:
            raise RangeError(f"there is no seq {query.from_seq}: the log is empty")
        if query.from_seq > last:
            raise RangeError(f"there is no seq {query.from_seq} yet: the log ends with {last}")
        if query.from_seq < first.seq:
            raise RangeError(f"seq {query.from_seq} is not kept any more: the log begins with {first.seq}")
    if query.end is not None and first is not None and query.end <= first.ts:
        raise RangeError(f"nothing before {format_time(query.end)} is kept: the log begins at {format_time(first.ts)}")


def seek_time(engine: Engine, ts: int) -> int:
    """The position from which a reader gets exactly the events with a time of `ts` (µs) or later."""
    low, high = 0, engine.last()
    last = high
    while low < high:
        middle = (low + high) // 2
        event = next_event(engine, middle, last)
        if event is not None and event.ts < ts:
            low = event.seq
        else:
            high = middle
    return low


def next_event(engine: Engine, after: int, upto: int) -> Event | None:
    """The first event with after < seq <= upto; None where there is none."""
    while after < upto:
        events, after = engine.read(after, upto, 1, None)
        if events:
            return events[0]
    return None

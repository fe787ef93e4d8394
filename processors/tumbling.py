"""A tumbling window per key: each event falls into one window, and each window is published once, when it is over.

The rules:

1. An event's time is its time of ingest. It never decreases along the log, so one window is open at a time, for all
   keys: `[start, start + size)`, with starts at multiples of the size since the Unix epoch.
2. The window closes when an event at or after its end comes, or when the horizon of the log has reached its end. After
   that no event of it can come any more: there are no late events, and a replay gives the same windows.
3. Each key of the open window has one row of state, in the partition that its crc32 says. Closing a key deletes its row
   and publishes its result, in one step, so a window may close over several steps.
4. An event counts in all aggregates or in none. What can't be computed or kept makes a dead letter of that one event.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, Generic, TypeVar
from zlib import crc32

import orjson

from processors.aggregates import Aggregate
from processors.errors import StateError
from processors.event import Event
from processors.message import encode
from processors.step import NEVER, USER_ERRORS, Step, moment
from processors.topics import LONGEST, Template, check_topic
from storage.interface import Event as Stored
from storage.interface import Row

V = TypeVar("V")

RESERVED: Final = frozenset(("key", "start", "end"))
"""Names in a result that no aggregate can have."""

_PLAIN: Final = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
"""Refuse what would be read back as something else."""

_ts = attrgetter("ts")


@dataclass(frozen=True, slots=True)
class Window(Generic[V]):
    """What a tumbling window does. `size` in µs; `key` None: the topic is the key."""

    size: int
    value: Callable[[Event], V | None]
    key: Callable[[Event], str] | None
    aggregates: Sequence[Aggregate[V]]
    to: Template
    qos: int
    retain: bool
    partitions: int
    max_keys: int


class Tumbling(Generic[V]):
    """The state of one windowed processor, and what events do to it."""

    def __init__(self, name: str, client: str, window: Window[V]) -> None:
        self.due = NEVER
        """The end of the open window."""
        self._name = name
        self._client = client
        self._window = window
        self._names = [aggregate.name for aggregate in window.aggregates]
        self._adds = [aggregate.add for aggregate in window.aggregates]
        self._keys: dict[str, list[object]] = {}
        """The accumulators of each key of the open window. A list here is replaced, never changed."""
        self._start = 0
        self._floor = 0
        """The end of the last window: no other begins before it."""
        self._closing: list[str] | None = None
        """The keys that are still to be closed, last to first; None while the window is not being closed."""

    def restore(self, rows: list[Row]) -> None:
        """Take up the open window of an earlier run.

        Raises:
            StateError: it has another size, other aggregates or other partitions than this definition.
        """
        for _, partition, key, value in rows:
            assert isinstance(key, str)
            assert isinstance(value, bytes)
            start, end, kept = orjson.loads(value)
            same = list(kept) == self._names and end - start == self._window.size
            if not same or partition != self._partition(key) or (self._keys and start != self._start):
                raise StateError(
                    f"an earlier definition of processor {self._name!r} left an open window of "
                    f"{(end - start) / 1_000_000:g} s with {', '.join(kept)}; put that definition back until the "
                    "window has closed, or give this one another name"
                )
            self._open(start)
            self._keys[key] = list(kept.values())

    def forget(self, accepts: Callable[[str], bool]) -> list[Row]:
        """Have no state of these keys, and publish nothing of them; the keys of their rows."""
        gone = [key for key in self._keys if accepts(key)]
        for key in gone:
            del self._keys[key]
        if self._closing is not None:
            self._closing = [key for key in self._closing if key in self._keys]
        return [self._row(key) for key in gone]

    def step(self, events: list[Stored], horizon: int) -> Step:
        """Take events until all are taken or the step is full; close the windows that are over."""
        step = Step()
        while step.taken < len(events):
            ts = events[step.taken].ts
            if (ts >= self.due or self._closing is not None) and not self._close(step):
                return step
            if self.due == NEVER:
                self._open(max(ts - ts % self._window.size, self._floor))
            stop = bisect_left(events, self.due, lo=step.taken, key=_ts)
            self._take(step, events[step.taken : stop])
            if step.full:
                return step
        if horizon >= self.due:
            self._close(step)
        return step

    def _open(self, start: int) -> None:
        self._start = start
        self.due = start + self._window.size

    def _take(self, step: Step, events: list[Stored]) -> None:
        """Let events of the open window count, and note the rows that change.

        Whether the accumulators can be kept shows once per key and step. Where one can't, the events count again, each
        looked at, to find whose fault it is.
        """
        mark = step.mark()
        before: dict[str, list[object] | None] = {}
        self._count(step, events, before, None)
        rows: dict[Row, Row | None]
        try:
            rows = {self._row(key): (self._encode(self._keys[key]),) for key in before}
        except TypeError:
            step.rewind(mark)
            for key, kept in before.items():
                if kept is None:
                    del self._keys[key]
                else:
                    self._keys[key] = kept
            rows = {}
            self._count(step, events, {}, rows)
        step.rows.update(rows)

    def _count(
        self,
        step: Step,
        events: list[Stored],
        before: dict[str, list[object] | None],
        rows: dict[Row, Row | None] | None,
    ) -> None:
        """Let events count. `before` gets what each changed key had; `rows`, if given, what it is to be kept as."""
        keys, adds, client = self._keys, self._adds, self._client
        value_of, key_of = self._window.value, self._window.key
        for stored in events:
            step.taken += 1
            if stored.client == client:
                continue
            event = Event(stored.topic, stored.payload, stored.qos, stored.retain, stored.client, stored.seq, stored.ts)
            try:
                value = value_of(event)
                if value is None:
                    continue
                key = event.topic if key_of is None else key_of(event)
                kept = keys.get(key)
                after = [add(each, value) for add, each in zip(adds, kept or self._begin(key), strict=True)]
                if rows is not None:
                    rows[self._row(key)] = (self._encode(after),)
            except USER_ERRORS as error:
                step.fail(self._name, error, stored)
                if step.full:
                    return
            else:
                if key not in before:
                    before[key] = kept
                keys[key] = after

    def _begin(self, key: object) -> list[object]:
        """The accumulators of a key that is new in this window.

        Raises:
            TypeError: it is no text.
            ValueError: its result could not be published or kept, or there are too many keys.
        """
        if not isinstance(key, str):
            raise TypeError(f"the key is a {type(key).__name__}, not a str")
        if len(key.encode()) > LONGEST:
            raise ValueError(f"key {key[:40]!r}... is longer than {LONGEST} bytes")
        check_topic(self._window.to.fill(key))
        if len(self._keys) >= self._window.max_keys:
            raise ValueError(f"key {key[:40]!r} is one more than max_keys, {self._window.max_keys}, in one window")
        return [aggregate.init() for aggregate in self._window.aggregates]

    def _close(self, step: Step) -> bool:
        """Publish the open window, key by key; whether all of it is out."""
        if self._closing is None:
            self._closing = sorted(self._keys, reverse=True)
        start, end = moment(self._start), moment(self.due)
        while self._closing:
            if step.full:
                return False
            key = self._closing.pop()
            kept = self._keys.pop(key)
            step.rows[self._row(key)] = None
            result: dict[str, object] = {"key": key, "start": start, "end": end}
            try:
                for aggregate, each in zip(self._window.aggregates, kept, strict=True):
                    result[aggregate.name] = aggregate.result(each)
                payload = encode(orjson.dumps(result, option=orjson.OPT_UTC_Z))
            except USER_ERRORS as error:
                step.fail_window(self._name, error, key, self._start, self.due)
            else:
                step.send((self._window.to.fill(key), payload, self._window.qos, self._window.retain))
        self._closing = None
        self._floor = self.due
        self.due = NEVER
        return True

    def _partition(self, key: str) -> int:
        return crc32(key.encode()) % self._window.partitions

    def _row(self, key: str) -> Row:
        return (self._name, self._partition(key), key)

    def _encode(self, kept: list[object]) -> bytes:
        """The value of a key's row.

        Raises:
            TypeError: JSON can't hold an accumulator.
        """
        return orjson.dumps((self._start, self.due, dict(zip(self._names, kept, strict=True))), option=_PLAIN)

"""Retention: which sealed segments are old enough, or too many, and how they go.

The rules:

1. Nothing is ever taken from the tail of the log: an event lives until it is sealed at least. Whole segments go. Where
   rules give topics ages of their own, a segment is written anew without what is expired of it, once that is worth it.
2. A segment has an age only as a whole: that of its last event. So an event lives for as long as was said, and then for
   as long as its segment spans.
3. No row of a segment that goes may be left in the tail, where a power cut brings back deleted rows, or it would be
   found there again. So the sealer tidies up first, and what is to go is written down in a transaction that is fsynced,
   and everything that was committed before with it.
4. What readers lose by it is found out before, and stands in that same row, beside the segment's id. After a crash in
   between it counts if the segment is gone, or has become another one; otherwise it is found out anew.
5. The loop and other processes see `Record`, which is never changed, only replaced.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from time import time_ns
from typing import Any, Final, Protocol

import orjson

from storage.background import Whole, beside
from storage.catalog import Stretch
from storage.files import sync_directory
from storage.history import History
from storage.interface import META, Accepts, StorageError, StorageFailed
from storage.losses import NOTHING, Compile, Losses, Readers, Survey
from storage.rewrite import Rewriting

SECOND: Final = 1_000_000
"""µs."""
LOOK: Final = SECOND
"""µs between two looks at what there is to do."""
PAUSE: Final = 600 * SECOND
"""µs to wait after something went wrong."""
WORTH: Final = 8
"""The part of a segment's events that must be expired before it is written anew: an eighth."""
ROW: Final = ("retention",)
"""The row of META where the record is."""

_PUT: Final = f"INSERT OR REPLACE INTO {META.name} VALUES (?, ?)"
_GET: Final = f"SELECT value FROM {META.name} WHERE name = ?"

Steps = Generator[bool, None, None]
"""Each says whether it had to wait for something."""
Share = Callable[[], float]
"""What part of the time may be taken beside the load: see `SegmentThread`."""

_logger = logging.getLogger("berm.storage")


@dataclass(frozen=True, slots=True)
class Rule:
    """How long events of some topics are kept, in µs; 0: for ever."""

    accepts: Accepts
    age: int


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept. Without anything here, that is everything for ever."""

    age: int = 0
    """µs; 0: for ever."""
    bytes: int = 0
    """Of all segments; 0: any number."""
    free: int = 0
    """Bytes of the disk; 0: whatever is free."""
    rules: tuple[Rule, ...] = ()
    """Ages by topic: the first that accepts a topic counts."""
    cursors: Mapping[str, Accepts] = field(default_factory=dict)
    """What those read whose places are in the table of cursors, by their names there."""
    compile: Compile | None = None
    """Makes a predicate over topics of topic filters. None: they are nobody's business, and erasures have to wait."""

    def age_of(self, topic: str) -> int:
        """How long events of a topic are kept, in µs; 0: for ever."""
        return next((rule.age for rule in self.rules if rule.accepts(topic)), self.age)

    def __bool__(self) -> bool:
        return bool(self.age or self.bytes or self.free or any(rule.age for rule in self.rules))


EVERYTHING: Final = Retention()


@dataclass(frozen=True, slots=True)
class Record:
    """What retention has taken since the log began."""

    segments: int = 0
    events: int = 0
    bytes: int = 0
    losses: Losses = NOTHING

    def plus(self, other: Record) -> Record:
        """The sum."""
        return Record(
            self.segments + other.segments,
            self.events + other.events,
            self.bytes + other.bytes,
            self.losses.plus(other.losses),
        )


@dataclass(frozen=True, slots=True)
class _Taking:
    """A segment that is about to go, or to become another one; and what that costs."""

    name: str
    id: str
    record: Record


class Database(Protocol):
    """What is to be around whatever is done with the connection that commits."""

    def reading(self) -> AbstractContextManager[object]:
        """Errors are explained."""

    def changing(self, size: int, *, sync: bool = False) -> AbstractContextManager[object]:
        """One transaction, of so many bytes; with `sync`, it is fsynced."""


class Keeper:
    """Takes from one data directory what need not be kept any more.

    `connection` is the one that commits, `reader` one that nobody uses at the same time. `room` gives the free bytes of
    the disk and those that it has in all, `clock` µs since the epoch.
    """

    def __init__(
        self,
        database: Database,
        connection: sqlite3.Connection,
        reader: sqlite3.Connection,
        history: History,
        retention: Retention,
        room: Callable[[], tuple[int, int]],
        clock: Callable[[], int] = lambda: time_ns() // 1000,
    ) -> None:
        self._database = database
        self._connection = connection
        self._readers = Readers(reader, database.reading, retention.cursors, retention.compile)
        self._history = history
        self._retention = retention
        self._room = room
        self._clock = clock
        self._ages: dict[Stretch, dict[int, int]] = {}
        """How many events of each segment have which age, where there are rules."""
        self._next_look = 0
        self._next_attempt = 0
        self._complained = False
        with database.reading():
            self.record = self._recall()

    # -- what there is to do

    def work(self, share: Share) -> Steps | None:
        """What is to be done now, in steps, by the thread that commits.

        No row that is sealed may be left in the tail.
        """
        now = self._clock()
        if not self._retention or now < self._next_look or now < self._next_attempt:
            return None
        self._next_look = now + LOOK
        try:
            found = self._choose(now, share)
        except OSError as error:
            self._give_up(error)
            return None
        return None if found is None else self._careful(found)

    def _choose(self, now: int, share: Share) -> Steps | None:
        files, retention = self._history.files, self._retention
        if not files:
            return None
        if retention.bytes and sum(file.size for file in files) > retention.bytes:
            return self._take(files[0], share, f"there are more than {retention.bytes:,} bytes of them")
        if retention.free:
            free, total = self._room()
            if free < min(retention.free, total // 2):
                return self._take(files[0], share, f"the disk has {free >> 20:,} MiB free")
        for stretch in self._ages.keys() - {*files}:
            del self._ages[stretch]
        unreadable: Stretch | None = None
        """The first that can't be read. It goes with what came later."""
        for stretch in files:
            ages = self._ages.get(stretch) if retention.rules else {retention.age: stretch.events}
            if not stretch.sound:
                unreadable = unreadable or stretch
            elif ages is None:
                return self._judge(stretch, share)
            else:
                expired = sum(events for age, events in ages.items() if age and stretch.last_ts < now - age)
                if expired == stretch.events:
                    return self._take(unreadable or stretch, share, "its time is over")
                if expired and expired * WORTH >= stretch.events:
                    return self._thin(stretch, now, share)
        return None

    def _careful(self, steps: Steps) -> Steps:
        """What goes wrong is said once, and tried again after a while."""
        try:
            yield from steps
        except (StorageError, OSError, ValueError) as error:
            self._give_up(error)
        else:
            self._complained = False
            self._next_look = 0

    def _give_up(self, error: Exception) -> None:
        self._next_attempt = self._clock() + PAUSE
        if not self._complained and not isinstance(error, StorageFailed):
            self._complained = True
            _logger.error("retention: %s; more is kept than was asked, and it is tried again from time to time", error)

    # -- work, in steps

    def _judge(self, stretch: Stretch, share: Share) -> Steps:
        """Find out how long the events of a segment are to be kept."""

        def look() -> dict[int, int]:
            ages: dict[int, int] = {}
            with self._history.examine(stretch) as segment:
                for topic, events in segment.topics.items():
                    age = self._retention.age_of(topic)
                    ages[age] = ages.get(age, 0) + events
            return ages

        self._ages[stretch] = yield from beside(Whole(look), share)

    def _take(self, stretch: Stretch, share: Share, why: str) -> Steps:
        """Remove a whole segment."""
        served = stretch in self._history.chain.stretches
        losses = NOTHING
        if served:
            losses = yield from beside(Survey(self._readers, self._history, stretch, None), share)
        cost = Record(1, stretch.events if served else 0, stretch.size, losses)
        self._begin(stretch, cost)
        self._history.remove(stretch)
        yield from beside(Whole(lambda: _unlink(stretch.path)), share)
        self._end(stretch, cost)
        while not self._history.let_go():
            yield True
        _logger.info("retention: removed %s, %d events, since %s", stretch.path.name, stretch.events, why)

    def _thin(self, stretch: Stretch, now: int, share: Share) -> Steps:
        """Write a segment anew without what is expired of it."""
        retention = self._retention

        def expired(topic: str) -> bool:
            age = retention.age_of(topic)
            return age > 0 and stretch.last_ts < now - age

        losses = yield from beside(Survey(self._readers, self._history, stretch, expired), share)
        rewriting = Rewriting(self._history, stretch, lambda event: expired(event.topic), self._history.data_key)
        rewritten = yield from beside(rewriting, share)
        cost = Record(0, rewritten.removed, stretch.size - rewritten.size, losses)
        self._begin(stretch, cost)
        yield from rewritten.replace(self._history, share)
        self._end(stretch, cost)
        _logger.info("retention: took %d expired events out of %s", rewritten.removed, stretch.path.name)

    # -- what is remembered

    def _begin(self, stretch: Stretch, cost: Record) -> None:
        """Write down that a segment is about to go, and with it everything that was committed before."""
        taking = _Taking(stretch.path.name, stretch.id.hex(), cost)
        value = orjson.dumps({"taken": self.record, "taking": taking}).decode()
        with self._database.changing(len(value), sync=True):
            self._connection.execute(_PUT, (*ROW, value))

    def _end(self, stretch: Stretch, cost: Record) -> None:
        """It has gone."""
        self.record = self.record.plus(cost)
        for name, events in cost.losses.cursors.items():
            _logger.warning(
                "retention: %s had not read %d events of %s, which are gone", name, events, stretch.path.name
            )
        if cost.losses.sessions or cost.losses.shares:
            _logger.warning(
                "retention: %d sessions and %d shared subscriptions had not read all of %s, which is gone; "
                "that costs them %d messages at most",
                cost.losses.sessions,
                cost.losses.shares,
                stretch.path.name,
                cost.losses.messages,
            )

    def _recall(self) -> Record:
        """What earlier runs have taken."""
        row = self._connection.execute(_GET, ROW).fetchone()
        if row is None:
            return Record()
        record, taking = read(row[0])
        if taking is None or any(
            file.path.name == taking.name and file.id.hex() == taking.id for file in self._history.files
        ):
            return record  # the process ended before it was done
        return record.plus(taking.record)


def read(value: str) -> tuple[Record, _Taking | None]:
    """What stands in the row of META, and what was about to go when it was written."""
    found = orjson.loads(value)
    taking = found["taking"]
    return _record(found["taken"]), _Taking(taking["name"], taking["id"], _record(taking["record"]))


def summed(value: str) -> Record:
    """The same for whoever looks at it from outside: what was about to go has gone."""
    record, taking = read(value)
    return record if taking is None else record.plus(taking.record)


def _record(found: dict[str, Any]) -> Record:
    return Record(found["segments"], found["events"], found["bytes"], Losses(**found["losses"]))


def _unlink(path: Path) -> bool:
    path.unlink(missing_ok=True)
    sync_directory(path.parent)
    return True

"""Seals the oldest part of the tail, and then deletes it there.

What changes the database happens on the thread that commits, between groups. The segment itself is written beside that,
in a thread of its own, by a connection that only reads: compressing it takes as long as committing it did.

The rules:

1. A part is sealed once it has come to so many bytes, or has become so old. Up to where it goes is known beforehand:
   it ends with a group. What came in last stays in the tail.
2. Only what has been fsynced is sealed. A segment lasts; if it had events of a group that a power cut takes back, that
   group's rows of state would be gone, and its events would not.
3. The segment is in its place, and the directory was fsynced, before the first of its rows is deleted. Rows go in small
   transactions that no fsync waits for: those that a power cut brings back are not looked at, and deleted again.
4. A step takes a few milliseconds. While groups come, both threads take their share of the time, and no more; a tail
   that grows makes that share grow. While nothing comes, they have all of it.
5. What goes wrong costs nothing but time: all events are in the tail still, and it is tried again, some time later.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Final, Protocol

from storage.background import beside
from storage.catalog import LARGEST
from storage.database import PAGE_BYTES
from storage.history import History
from storage.interface import Event, StorageError, StorageFailed, StorageFull
from storage.segment_writer import LEVEL, Sealing, Shape
from storage.tail import Tail
from storage.topics import Topics

if TYPE_CHECKING:
    from storage.values import Opener

SECOND: Final = 1_000_000
"""µs."""
FULL_PAUSE: Final = 60 * SECOND
"""How long to wait after the disk was full."""
FAILED_PAUSE: Final = 600 * SECOND
"""How long to wait after anything else went wrong."""
MOST_EVENTS: Final = 1 << 22
"""Events that a part has whatever their bytes. With one group more it is far from what a segment can hold."""
ROW_BYTES: Final = 50
"""What a row takes beside its payload and properties."""
SHARE: Final = 0.125
"""Of the time that groups take: what deleting may take beside them."""
SEALING_SHARE: Final = 0.15
"""Of all the time: what writing a segment takes while groups come."""
BACKLOG: Final = 8
"""Parts that wait to be sealed before these shares grow, and less is compressed."""
QUIET: Final = 0.05
"""Seconds without a group after which nothing is going on."""
_LEVEL_IN_A_HURRY: Final = 3
"""Zstandard's level then: twice as quick, for a quarter more bytes."""
_MOST_CREDIT: Final = 0.004
"""Seconds that deleting takes at a time at most while groups wait, but for the end of a step."""
_KEPT: Final = 8
"""The part of `bytes` that must have come in after a part before that is sealed: an eighth."""

_COUNTED_ROWS: Final = 2048
_TAKEN_ROWS: Final = 512
_DELETED_ROWS: Final = 1024
_DELETED_BYTES: Final = 1 << 20
_SHRUNK_PAGES: Final = 64
_SPARE: Final = 1
"""Free pages that the database keeps, for what comes next: as many as the rows of so many parts need."""

_COUNT: Final = f"""SELECT count(*), sum(size), max(seq), min(ts)
    FROM (
        SELECT seq, ts, length(payload) + length(properties) + {ROW_BYTES} AS size
        FROM tail WHERE seq > ? ORDER BY seq LIMIT {_COUNTED_ROWS}
    )"""
_FIRST: Final = "SELECT min(seq) FROM tail WHERE seq > ?"
_SIZES: Final = f"""SELECT seq, length(payload) + length(properties) + {ROW_BYTES}
    FROM tail WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT {_DELETED_ROWS}"""
_DELETE: Final = "DELETE FROM tail WHERE seq > ? AND seq <= ?"

Steps = Generator[bool, None, None]
"""Each says whether it had to wait for something."""

_logger = logging.getLogger("berm.storage")


@dataclass(frozen=True, slots=True)
class Policy:
    """When a part of the tail is sealed."""

    bytes: int = 64 << 20
    """Once it has so many, with what its rows take beside their content; 0: never."""
    age: int = 86_400 * SECOND
    """Once its first event is so old, in µs."""
    level: int = LEVEL
    """Of Zstandard's compression."""


USUAL: Final = Policy()


class Database(Protocol):
    """What is to be around whatever is done with the connection that commits."""

    def reading(self) -> AbstractContextManager[object]:
        """Errors are explained."""

    def changing(self, size: int) -> AbstractContextManager[object]:
        """One transaction, of so many bytes, that no fsync waits for."""


class Chore(Protocol):
    """What else is to be done with segments."""

    def work(self, share: Callable[[], float]) -> Steps | None:
        """What there is to do now, in steps. Asked whenever nothing that is sealed is in the tail any more.

        `share` says what part of the time may be taken beside the load.
        """


@dataclass(slots=True)
class _Part:
    """A stretch of the tail that is to be one segment."""

    last: int = 0
    first_ts: int = 0
    events: int = 0
    bytes: int = 0


class Sealer:
    """What is to be sealed of one data directory, and how far that has come.

    `connection` is the one that commits, `reader` one that nobody else uses, and `opener` opens what it
    reads where that is encrypted. `chores` are done before anything is sealed. `clock` gives µs since the epoch.
    """

    def __init__(
        self,
        database: Database,
        connection: sqlite3.Connection,
        reader: sqlite3.Connection,
        topics: Topics,
        history: History,
        policy: Policy,
        opener: Opener | None,
        chores: Sequence[Chore],
        clock: Callable[[], int] = lambda: time_ns() // 1000,
    ) -> None:
        self._database = database
        self._connection = connection
        self._tail = Tail(reader, opener)
        self._topics = topics
        self._history = history
        self._policy = policy
        self._chores = chores
        self._clock = clock
        self._counted = history.chain.last
        """The seq up to which events are in one of the parts."""
        with database.reading():
            self._last = Tail(connection).last()
        self._synced = 0
        """The seq up to which all is known to be fsynced."""
        self._parts: deque[_Part] = deque()
        """Those that are complete."""
        self._part = _Part()
        """The one that grows."""
        self._untidy = True
        """Whether there may be rows that are sealed, or topics without any."""
        self._spacious = True
        """Whether the database may have more free pages than it needs."""
        self._work: Steps | None = None
        self._waits = False
        """Whether the last step had to wait for something."""
        self._next_attempt = 0
        self._complained = False
        self._credit = 0.0
        """Seconds that deleting may take before the next group."""
        self._pressed = False
        """Whether a group has come since the last turn."""
        self._latest = 0.0
        """When the last group came, by `perf_counter`."""

    def close(self) -> None:
        """Leave nothing half done."""
        if self._work is not None:
            self._work.close()
            self._work = None

    # -- what there is to seal

    def committed(self, events: int, size: int, first_ts: int, last: int, sync: bool, seconds: float) -> None:
        """A group has been committed: so many events of so many bytes, the last of which is `last` (0: none).

        `sync` says whether it was fsynced, and `seconds` how long that took.
        """
        if last:
            if self._policy.bytes and self._counted >= self._last:
                self._count(events, size, first_ts, last)
            self._last = last
        if sync:
            self._synced = self._last
        self._credit = min(_MOST_CREDIT, self._credit + seconds * SHARE * self._hurry())
        self._pressed = True
        self._latest = perf_counter()

    def _count(self, events: int, size: int, first_ts: int, last: int) -> None:
        part = self._part
        if not part.events:
            part.first_ts = first_ts
        part.events += events
        part.bytes += size
        part.last = self._counted = last
        if part.bytes >= self._policy.bytes or part.events >= MOST_EVENTS:
            self._parts.append(part)
            self._part = _Part()

    def _hurry(self) -> float:
        """How much more of the time than usual must be taken."""
        return max(1.0, len(self._parts) / BACKLOG)

    def _share(self) -> float:
        """What part of the time the thread that writes a segment may take."""
        return 1.0 if perf_counter() - self._latest > QUIET else min(1.0, SEALING_SHARE * self._hurry())

    def _due(self) -> _Part | None:
        """What is to be sealed now."""
        parts, part, now = self._parts, self._part, self._clock()
        oldest = parts[0] if parts else part
        old = oldest.events > 0 and oldest.first_ts <= now - self._policy.age
        if not parts and old and part.last == self._synced:
            self._part = _Part()
            parts.append(part)
        if not parts or parts[0].last > self._synced:
            return None
        enough = old or len(parts) > 1 or self._part.bytes * _KEPT >= self._policy.bytes
        return parts[0] if enough else None

    # -- turns

    def turn(self) -> bool:
        """Go on a little; whether there is more to do."""
        if not self._pressed:
            return self._step()
        self._pressed = False
        more = True
        while more and self._credit > 0:
            began = perf_counter()
            more = self._step()
            if self._waits:
                break
            self._credit -= perf_counter() - began
        return more

    def _step(self) -> bool:
        self._waits = False
        if self._work is None:
            self._work = self._next_work()
            if self._work is None:
                return False
        try:
            self._waits = next(self._work)
        except StopIteration:
            self._work = None
        except (StorageError, ValueError, OSError) as error:
            self._work = None
            self._give_up(error)
            return False
        return True

    def _next_work(self) -> Steps | None:
        if not self._untidy:
            for chore in self._chores:
                if (work := chore.work(self._share)) is not None:
                    return work
        if not self._policy.bytes and not self._untidy:
            return None
        if self._next_attempt and self._clock() < self._next_attempt:
            return None
        if self._untidy:
            return self._tidy()
        if self._counted < self._last:
            return self._count_rows()
        part = self._due()
        if part is not None:
            return self._seal(part)
        return self._shrink() if self._spacious else None

    def _give_up(self, error: Exception) -> None:
        """Try again later. What the engine must know of, it knows."""
        full = isinstance(error, StorageFull)
        self._next_attempt = self._clock() + (FULL_PAUSE if full else FAILED_PAUSE)
        if not self._complained and not isinstance(error, StorageFailed):
            self._complained = True
            _logger.log(
                logging.WARNING if full else logging.ERROR,
                "%s; the oldest events stay in the tail of the log, and it is tried again from time to time",
                error,
            )

    # -- work, in steps

    def _count_rows(self) -> Steps:
        """Count what was there at the start."""
        while self._counted < self._last:
            with self._database.reading():
                events, size, last, first_ts = self._connection.execute(_COUNT, (self._counted,)).fetchone()
            if not events:
                self._counted = self._last
                return
            self._count(events, size, first_ts, last)
            yield False

    def _seal(self, part: _Part) -> Steps:
        with self._database.reading():
            (first,) = self._connection.execute(_FIRST, (self._history.chain.last,)).fetchone()
        if first is None or first > part.last:
            self._parts.popleft()  # all of it has been erased
            return
        level = self._policy.level if len(self._parts) < BACKLOG else min(self._policy.level, _LEVEL_IN_A_HURRY)
        path = self._history.path(first, part.last)
        sealing = Sealing(path, self._events(first - 1, part.last), Shape(level), self._history.data_key)
        info = yield from beside(sealing, self._share)
        self._history.add(info)
        self._parts.popleft()
        self._untidy = True
        self._complained = False
        self._next_attempt = 0

    def _events(self, after: int, upto: int) -> Iterator[Event]:
        while after < upto:
            with self._database.reading():
                events, after = self._tail.read(after, upto, _TAKEN_ROWS, None)
            yield from events

    def _tidy(self) -> Steps:
        """Delete rows that are sealed, and topics that have none."""
        chain, after = self._history.chain, 0
        while after < chain.last:
            with self._database.reading():
                (seq,) = self._connection.execute(_FIRST, (after,)).fetchone()
            if seq is None:
                break
            stretch, after = chain.find(seq - 1)
            if stretch is not None and stretch.sound:
                yield from self._delete(seq - 1, after)
            yield False
        for _ in self._topics.sweep(self._database.reading, lambda: self._database.changing(0)):
            yield False
        self._untidy = False
        self._spacious = True

    def _shrink(self) -> Steps:
        """Give the file system back what of the database is free: much of it is where sealing has lagged behind."""
        spare = _SPARE * self._policy.bytes // PAGE_BYTES
        before = LARGEST
        while spare < (free := self._free_pages()) < before:  # a database of before it could shrink stays as it is
            before = free
            with self._database.changing(_SHRUNK_PAGES * PAGE_BYTES):
                for _ in range(_SHRUNK_PAGES):  # a call takes one step, whatever number it is given
                    self._connection.execute("PRAGMA incremental_vacuum(1)")
            yield False
        self._spacious = False

    def _free_pages(self) -> int:
        with self._database.reading():
            free: int = self._connection.execute("PRAGMA freelist_count").fetchone()[0]
        return free

    def _delete(self, after: int, upto: int) -> Steps:
        while after < upto:
            with self._database.reading():
                rows = self._connection.execute(_SIZES, (after, upto)).fetchall()
            if not rows:
                return
            number = size = 0
            while number < len(rows) and size < _DELETED_BYTES:
                size += rows[number][1]
                number += 1
            last = rows[number - 1][0]
            with self._database.changing(size):
                self._connection.execute(_DELETE, (after, last))
            after = last
            yield False

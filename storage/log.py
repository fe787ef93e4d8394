"""The log as the loop sees it: groups on their way to the engine, and cursors over what has committed.

The rules:

1. Events get their seq when they are appended. The open group gathers everything that arrives while the group before it
   is on its way to the engine; one group is on its way at a time.
2. The events of a committed group go to the ring's youngest chunk, or become one, by reference, in log order: however
   few events a group has, a reader passes many at a step, and a chunk without a topic for it as a whole. The ring is
   bounded by bytes, those of the group on its way included, and drops its oldest chunks; a cursor that is further
   behind reads from the engine, up to where the ring begins, and then goes on in the ring. Both hold the same events
   under the same seqs, so there is no seam.
3. A group that the engine refuses is the open group again, with what has arrived since. `retry` tries it anew, and
   reads that failed too.
4. A group of which nothing is to be kept (memory events alone) commits without the engine, in its turn.
5. A seq means one event for ever, also one that a crash took back after somebody had seen it (those kept in memory, or
   not fsynced). So seqs are reserved ahead, in a row that is fsynced before the first of them can be read; a log that
   was not drained goes on above all that were reserved, and the seqs between are a gap.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from operator import attrgetter
from typing import Final

from storage.interface import (
    FSYNC,
    MEMORY,
    META,
    Accepts,
    Engine,
    Event,
    Group,
    Latest,
    Listener,
    Row,
    StorageError,
    StorageFailed,
    Table,
    Worker,
)

READ_LIMIT: Final = 500
"""Events that one read from the engine brings at most."""
RESERVED: Final = 1 << 16
"""Seqs that are reserved at a time."""
EVENT_BYTES: Final = 300
"""What an event weighs in memory beside its texts, properties and payload."""
JUDGED: Final = 1024
"""Topics of which one cursor remembers whether they are accepted."""

CHUNK_EVENTS: Final = 256
"""Events that groups are gathered up to in one chunk of the ring."""
CHUNKS: Final = 32
"""Chunks at least that a full ring has: it drops a whole one at a time."""

_RESERVATION: Final = ("reserved",)
"""The row of META that says up to where seqs may have been given out."""

_seq = attrgetter("seq")
_last = attrgetter("last")
_logger = logging.getLogger("berm.storage")


class _Chunk:
    """The events of some committed groups, as the ring holds them. The youngest chunk grows at its end."""

    __slots__ = ("_topics", "events", "last", "weight")

    def __init__(self, events: list[Event], weight: int) -> None:
        self.events = events
        self.last = events[-1].seq
        self.weight = weight
        self._topics: frozenset[str] | None = None

    def add(self, events: list[Event], weight: int) -> None:
        """Grow."""
        self.events += events
        self.last = events[-1].seq
        self.weight += weight

    @property
    def topics(self) -> frozenset[str]:
        """Those of its events. Only to be asked once it grows no more."""
        if self._topics is None:
            self._topics = frozenset([event.topic for event in self.events])
        return self._topics


def _nothing() -> None:
    """What the writer does where only upkeep is due."""


def _ignore(result: object, error: BaseException | None) -> None:
    """There is none."""


def _reservation(engine: Engine) -> int:
    return next((int(value) for name, value in engine.rows(META) if (name,) == _RESERVATION and value), 0)


class _Silent:
    """The listener of a log that nobody listens to."""

    def sealing(self, group: Group) -> None:
        """Add nothing."""

    def committed(self, group: Group) -> None:
        """Tell nobody."""

    def refused(self, group: Group, error: StorageError) -> None:
        """Try all of it again."""


class Log:
    """The log over one engine. Every call comes from the loop's thread.

    `writer` and `reader` run the engine's blocking calls; `memory_bytes` bounds the ring.
    """

    def __init__(self, engine: Engine, writer: Worker, reader: Worker, memory_bytes: int = 12 << 20) -> None:
        self.engine = engine
        self.listener: Listener = _Silent()
        self.open = Group()
        self._reserved = max(engine.last(), _reservation(engine))
        self.last = self._reserved
        self.last_ts = engine.last_ts()
        self.committed = self.last
        self.failure: StorageError | None = None
        self.evicted = 0
        """Events with durability MEMORY that have left the ring, and with it the log."""
        self._writer = writer
        self._reader = reader
        self._flying: Group | None = None
        self._quiet = False
        """Whether no group went to the engine since the last `retry`."""
        self._ring: deque[_Chunk] = deque()
        self._ring_base = self.last
        self._stored = self.last
        """The seq of the last event that the engine keeps."""
        self._ring_weight = 0
        self._memory_bytes = memory_bytes
        self._waiting: set[LogCursor] = set()
        """To be woken by the next events."""
        self._waking: set[LogCursor] = set()
        """Of these, those that are being woken now."""
        self._unread: list[Callable[[], None]] = []
        """Reads that failed, to be tried again."""
        self._drained: Callable[[], None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a group is on its way to the engine."""
        return self._flying is not None

    def append(
        self,
        ts: int,
        topic: str,
        payload: bytes,
        qos: int,
        retain: bool,
        client: str,
        properties: bytes,
        expires: int,
        durability: int,
    ) -> Event:
        """Add one event to the open group and give it its seq. `ts` that runs backwards is held at the last one."""
        if ts < self.last_ts:
            ts = self.last_ts
        self.last_ts = ts
        self.last = seq = self.last + 1
        event = Event(seq, ts, topic, payload, qos, retain, client, properties, expires, durability)
        group = self.open
        group.events.append(event)
        group.weight += EVENT_BYTES + len(topic) + len(payload) + len(client) + len(properties)
        if durability > group.durability:
            group.durability = durability
        return event

    def flush(self) -> None:
        """Hand the open group over, unless one is on its way or the engine takes none."""
        if self._flying is None and self.failure is None and self.open:
            self._seal()

    def retry(self) -> None:
        """Try again what failed: reads, and a refused group; a failed engine is never given another group.

        The engine's upkeep goes on as well, where no group brings it.
        """
        unread, self._unread = self._unread, []
        for read in unread:
            read()
        if self.failure is not None and not isinstance(self.failure, StorageFailed) and self._flying is None:
            if self.open:
                self._seal()
            else:
                self.failure = None
        if self._quiet and self._flying is None:
            self._writer.submit(_nothing, _ignore, self.engine.upkeep)
        self._quiet = True

    def drain(self, done: Callable[[], None]) -> None:
        """Call `done` once nothing is on its way any more: everything has committed, or can't. For the end."""
        self._drained = done
        self._reserve(self.last)
        self.flush()
        self._check_drained()

    def forget(self, unwanted: Callable[[Event], bool]) -> None:
        """Have nothing of this in memory any more, of all that has committed. What readers have in hand they keep."""
        ring: deque[_Chunk] = deque()
        for chunk in self._ring:
            events = [event for event in chunk.events if not unwanted(event)]
            if len(events) == len(chunk.events):
                ring.append(chunk)
            elif events:
                kept = _Chunk(events, chunk.weight)
                kept.last = chunk.last
                ring.append(kept)
            else:
                self._ring_weight -= chunk.weight
                if ring:
                    ring[-1].last = chunk.last
                else:
                    self._ring_base = chunk.last
        self._ring = ring

    def uncommitted(self) -> Iterable[Event]:
        """The events of the group on its way and of the open one, in order."""
        return chain(self._flying.events if self._flying else (), self.open.events)

    def horizon(self, now: int) -> int:
        """No event that is still to be committed will have a `ts` below this."""
        for event in self.uncommitted():
            return event.ts
        # `append` holds whoever has an older time to what is said here.
        self.last_ts = max(now, self.last_ts)
        return self.last_ts

    @property
    def edge(self) -> int:
        """The seq up to which events kept in memory only are the next to go; 0 while there is room."""
        ring = self._ring
        return ring[len(ring) // 2].last if self._ring_weight * 2 > self._memory_bytes else 0

    @property
    def remembered(self) -> int:
        """The seq after which memory has every event that can be read; what is before only the engine has."""
        return self._ring_base

    def cursor(self, position: int, accepts: Accepts | None, wake: Callable[[], None]) -> LogCursor:
        """A reader of every event after `position` whose topic is accepted (None: all)."""
        return LogCursor(self, position, accepts, wake)

    def get(self, seqs: Sequence[int], done: Callable[[list[Event]], None]) -> None:
        """Call `done` with those of these events that are still kept, in order: at once where memory has them all."""
        found: list[Event] = []
        missing: list[int] = []
        for seq in seqs:
            event = self._remembered(seq)
            if event is not None:
                found.append(event)
            elif seq <= self._ring_base:
                missing.append(seq)
        if not missing:
            done(sorted(found, key=_seq))
            return

        def read() -> None:
            self._reader.submit(lambda: self.engine.get(missing), loaded)

        def loaded(result: object, error: BaseException | None) -> None:
            if error is not None:
                self._read_failed(read, error)
                return
            assert isinstance(result, list)
            done(sorted(found + result, key=_seq))

        read()

    @property
    def oldest(self) -> tuple[int, int]:
        """The seq and the time of the oldest event that is kept, or of an older one; zeros for a new log."""
        return self.engine.oldest()

    def seek(self, ts: int, done: Callable[[int], None]) -> None:
        """Call `done` with a position behind which every stored event lies that came at `ts` or later."""

        def read() -> None:
            self._reader.submit(lambda: self.engine.seq_before(ts), loaded)

        def loaded(result: object, error: BaseException | None) -> None:
            if error is not None:
                self._read_failed(read, error)
                return
            assert isinstance(result, int)
            done(result)

        read()

    def latest(self, accepts: Accepts, count: int, most: int, done: Callable[[list[int]], None]) -> None:
        """Call `done` with the seqs of the last `count` stored events of each accepted topic, `most` in all."""
        found = Latest(accepts, count, most)
        before = self.committed + 1

        def read() -> None:
            self._reader.submit(lambda: self.engine.latest(found, before), loaded)

        def loaded(result: object, error: BaseException | None) -> None:
            nonlocal before
            if error is not None:
                self._read_failed(read, error)
                return
            assert isinstance(result, int)
            before = result
            if before and not found.full:
                read()
            else:
                done(found.seqs[::-1])

        read()

    def rows(self, table: Table) -> list[Row]:
        """Every row of a table, as committed. Blocks: for the start."""
        return self.engine.rows(table)

    def _seal(self) -> None:
        group = self.open
        self.listener.sealing(group)
        if self.last > self._reserved:
            self._reserve(self.last + RESERVED)
        self.open = Group()
        self._trim(group.weight)
        if group.durability == MEMORY:
            self._complete(group)
            return
        self._flying = group
        self._quiet = False
        sync = group.durability == FSYNC
        engine = self.engine
        self._writer.submit(lambda: engine.commit(group.events, group.state, sync), self._written, engine.upkeep)

    def _reserve(self, upto: int) -> None:
        self._reserved = upto
        self.open.put(META, _RESERVATION, (str(upto),))
        self.open.durability = FSYNC

    def _written(self, _: object, error: BaseException | None) -> None:
        group = self._flying
        assert group is not None
        self._flying = None
        if error is None:
            self.failure = None
            self._complete(group)
        elif isinstance(error, StorageError):
            self._refuse(group, error)
        else:
            _logger.critical("writing a group failed in a way that nobody has thought of", exc_info=error)
            self._refuse(group, StorageFailed(f"writing the log: {error!r}; start the node again"))
        self._check_drained()

    def _complete(self, group: Group) -> None:
        if group.events:
            self._remember(group.events, group.weight)
            self._ring_weight += group.weight
            self.committed = group.events[-1].seq
            if group.durability > MEMORY:
                self._stored = next((e.seq for e in reversed(group.events) if e.durability), self._stored)
            self._trim(0)
        self.listener.committed(group)
        if group.events and self._waiting:
            self._waking |= self._waiting
            self._waiting.clear()
            while self._waking:
                self._waking.pop().wake()
        self.flush()

    def _remember(self, events: list[Event], weight: int) -> None:
        """Put events at the end of the ring."""
        ring = self._ring
        if len(events) >= CHUNK_EVENTS:
            ring.append(_Chunk(events, weight))
            return
        if ring:
            youngest = ring[-1]
            if (
                len(youngest.events) + len(events) <= CHUNK_EVENTS
                and youngest.weight + weight <= self._memory_bytes // CHUNKS
            ):
                youngest.add(events, weight)
                return
        ring.append(_Chunk(events.copy(), weight))  # the group's own list does not grow

    def _refuse(self, group: Group, error: StorageError) -> None:
        newer = self.open
        group.events += newer.events
        for table, rows in newer.state.items():
            group.state.setdefault(table, {}).update(rows)
        group.durability = max(group.durability, newer.durability)
        group.weight += newer.weight
        self.open = group
        self.failure = error
        self.listener.refused(group, error)

    def _read_failed(self, again: Callable[[], None], error: BaseException) -> None:
        """Try a read again at the next `retry`."""
        if not self._unread:
            _logger.error("%s; trying again", error)
        self._unread.append(again)

    def _wait(self, cursor: LogCursor) -> None:
        self._waking.discard(cursor)
        self._waiting.add(cursor)

    def _wait_no_more(self, cursor: LogCursor) -> None:
        self._waking.discard(cursor)
        self._waiting.discard(cursor)

    def _trim(self, beside: int) -> None:
        """Keep the ring, and what there is `beside` it, within their bytes."""
        ring = self._ring
        while self._ring_weight + beside > self._memory_bytes and len(ring) > 1:
            chunk = ring.popleft()
            self._ring_weight -= chunk.weight
            self._ring_base = chunk.last
            for event in chunk.events:
                if event.durability == MEMORY:
                    self.evicted += 1

    def _find(self, position: int) -> _Chunk | None:
        """The chunk that holds the first event after `position`, or None where only the engine has it."""
        if position < self._ring_base:
            return None
        ring = self._ring
        return ring[bisect_right(ring, position, key=_last)]

    def _remembered(self, seq: int) -> Event | None:
        if not self._ring_base < seq <= self.committed:
            return None
        chunk = self._find(seq - 1)
        assert chunk is not None
        index = bisect_right(chunk.events, seq - 1, key=_seq)
        event = chunk.events[index]
        return event if event.seq == seq else None

    def _check_drained(self) -> None:
        if self._drained is not None and self._flying is None and (self.failure is not None or not self.open):
            done, self._drained = self._drained, None
            done()


class LogCursor:
    """A place in the log. It holds one chunk, or one batch that the engine brought, at a time."""

    __slots__ = (
        "_accepts",
        "_closed",
        "_end",
        "_events",
        "_index",
        "_judged",
        "_loading",
        "_log",
        "_released",
        "_ticket",
        "position",
        "wake",
    )

    def __init__(self, log: Log, position: int, accepts: Accepts | None, wake: Callable[[], None]) -> None:
        self.position = position
        self.wake = wake
        self._log = log
        self._accepts = accepts
        self._judged: dict[str, bool] = {}
        """What `accepts` said of topics that were met in memory: the same few come again and again."""
        self._events: Sequence[Event] = ()
        self._index = 0
        self._end = 0
        self._loading = False
        self._released = False
        """Whether what is being read shall not be held when it comes."""
        self._ticket = 0
        """Numbers the reads: one that `seek` has overtaken is thrown away."""
        self._closed = False

    def next(self) -> Event | None:
        """The next event that matches, or None; then `wake` is called once there may be one."""
        judged = self._judged
        anything = self._accepts is None
        while True:
            events = self._events
            for index in range(self._index, len(events)):
                event = events[index]
                topic = event.topic
                if anything or (judged[topic] if topic in judged else self._judge(topic)):
                    self._index = index + 1
                    self.position = event.seq
                    return event
            if self._end > self.position:
                self.position = self._end
            if not self._load():
                return None

    def batch(self, limit: int) -> list[Event]:
        """The next events that match, at most `limit`; fewer mean what None means to `next`."""
        found: list[Event] = []
        while len(found) < limit and (event := self.next()) is not None:
            found.append(event)
        return found

    @property
    def caught_up(self) -> bool:
        """Whether the position has reached the last committed event."""
        return self.position >= self._log.committed

    def seek(self, position: int) -> None:
        """Go on after this seq. No call of `wake` is due any more."""
        self._stop_waiting()
        self._drop()
        self.position = position

    def release(self) -> None:
        """Hold no events in memory until the next call."""
        self._drop()
        self._judged.clear()
        self._released = True

    def close(self) -> None:
        """Never wake again."""
        self._stop_waiting()
        self._drop()
        self._closed = True

    def _drop(self) -> None:
        self._events = ()
        self._index = 0
        self._end = 0

    def _stop_waiting(self) -> None:
        self._loading = False
        self._log._wait_no_more(self)

    def _judge(self, topic: str) -> bool:
        assert self._accepts is not None
        if len(self._judged) >= JUDGED:
            self._judged.clear()
        self._judged[topic] = accepted = self._accepts(topic)
        return accepted

    def _load(self) -> bool:
        log = self._log
        self._drop()
        self._released = False
        if self._closed or self._loading:
            return False
        if self.position >= log.committed:
            log._wait(self)
            return False
        if log._stored <= self.position < log._ring_base:
            self.position = log._ring_base  # what was between was kept in memory only
        chunk = log._find(self.position)
        if chunk is None:
            self._read(log._ring_base)
            return False
        self._end = chunk.last
        if chunk is log._ring[-1] or self._concerns(chunk):
            events = chunk.events
            self._events = events
            self._index = 0 if events[0].seq > self.position else bisect_right(events, self.position, key=_seq)
        return True

    def _concerns(self, chunk: _Chunk) -> bool:
        """Whether there may be something in it that is accepted."""
        if self._accepts is None:
            return True
        judged = self._judged
        for topic in chunk.topics:  # noqa: SIM110 - a generator takes twice as long
            if judged[topic] if topic in judged else self._judge(topic):
                return True
        return False

    def _read(self, upto: int) -> None:
        log = self._log
        self._loading = True
        self._ticket = ticket = self._ticket + 1
        position, accepts = self.position, self._accepts

        def read() -> None:
            if self._loading and self._ticket == ticket:
                log._reader.submit(lambda: log.engine.read(position, upto, READ_LIMIT, accepts), loaded)

        def loaded(result: object, error: BaseException | None) -> None:
            if not self._loading or self._ticket != ticket:
                return
            if error is not None:
                log._read_failed(read, error)
                return
            self._loading = False
            if not self._released:
                assert isinstance(result, tuple)
                self._events, self._end = result
                self._index = 0
            self.wake()

        read()

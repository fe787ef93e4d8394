"""What every writer and reader of the log agrees on. No engine in it.

The rules:

1. Every accepted PUBLISH becomes one `Event` with the next sequence number (`seq`), counted from 1.
2. What is written together is one `Group`: its events and its rows of state commit in one transaction, or not at all.
3. One group commits at a time, in the order of its events. `Log.committed` is the seq up to which the log can be read.
4. A reader is a `Cursor`: a position, and a filter. Everything up to its position it has taken. It never notices
   whether an event came from the engine or from memory.
5. An `Engine` keeps groups and gives them back. It is called from worker threads only, and blocks.

An event whose durability is `MEMORY` takes its place in the same order but never reaches the engine: it lives in the
log's bounded ring in memory. Sequence numbers may have gaps (refused groups, memory events of an earlier run).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

MEMORY: Final = 0
"""Durability: kept in a bounded ring in memory, gone with the process."""
OS: Final = 1
"""Durability: committed without an fsync; survives the death of the process, not of the machine."""
FSYNC: Final = 2
"""Durability: committed and fsynced."""

DURABILITY: Final = {"memory": MEMORY, "os": OS, "fsync": FSYNC}


@dataclass(slots=True)
class Event:
    """One accepted PUBLISH. Treat it as frozen: readers share it by reference.

    `ts` is the time of ingest and `expires` the end of the message expiry interval (0: never), both in microseconds
    since the Unix epoch; `ts` never decreases along the log. `properties` are the MQTT 5 properties that travel with
    the message, in wire encoding without their length. `client` is the publisher's client identifier.
    """

    seq: int
    ts: int
    topic: str
    payload: bytes
    qos: int
    retain: bool
    client: str
    properties: bytes
    expires: int
    durability: int

    @property
    def early(self) -> bool:
        """Whether subscribers get it at once, before any commit: nobody was promised that it is kept."""
        return self.qos == 0 or self.durability == MEMORY


Value = int | str | bytes | None
Row = tuple[Value, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A table of state beside the log: key columns and value columns, each `name TYPE` in SQLite's words."""

    name: str
    key: tuple[str, ...]
    values: tuple[str, ...]


META = Table("meta", ("name TEXT",), ("value TEXT",))
SESSIONS = Table(
    "sessions",
    ("client_id TEXT",),
    (
        "version INTEGER",
        "expiry INTEGER",  # session expiry interval in s; 0xFFFFFFFF: never
        "connected INTEGER",  # 1 while a connection holds it: after a crash this tells which were live
        "ended INTEGER",  # when the connection ended, µs since the epoch; 0 while connected
        "position INTEGER",  # every event up to this seq was given, is in `inflight`, or did not match
        "inflight BLOB",  # outbound, unacknowledged: packed (packet id, stage, seq)
        "received BLOB",  # inbound QoS 2 packet identifiers awaiting PUBREL
        "shared BLOB",  # which of `inflight` came of shared subscriptions: packed (filter, packet ids)
        "username TEXT",  # whose it is; empty: nobody's in particular
    ),
)
SHARES = Table(
    "shares",
    ("filter TEXT",),  # of the shared subscription, `$share/<name>/` included
    (
        "position INTEGER",  # every event up to this seq was given to a member, is in `returned`, or did not match
        "returned BLOB",  # seqs that are to be given to another member: packed
    ),
)
SUBSCRIPTIONS = Table(
    "subscriptions",
    ("client_id TEXT", "filter TEXT"),
    ("options INTEGER", "identifier INTEGER", "since INTEGER"),
)
WILLS = Table(
    "wills",
    ("client_id TEXT",),
    (
        "due INTEGER",  # µs since the epoch; 0 while the client is connected
        "delay INTEGER",  # s
        "topic TEXT",
        "payload BLOB",
        "qos INTEGER",
        "retain INTEGER",
        "properties BLOB",
    ),
)
RETAINED = Table(
    "retained",
    ("topic TEXT",),
    (
        "seq INTEGER",
        "ts INTEGER",
        "payload BLOB",
        "qos INTEGER",
        "client TEXT",
        "properties BLOB",
        "expires INTEGER",
    ),
)
CURSORS = Table("cursors", ("name TEXT",), ("position INTEGER",))
STATE = Table("processor_state", ("processor TEXT", "partition INTEGER", "key TEXT"), ("value BLOB",))

TABLES: Final = (META, SESSIONS, SHARES, SUBSCRIPTIONS, WILLS, RETAINED, CURSORS, STATE)


class StorageError(Exception):
    """The engine can't do it; the message says what was done, to which path, why it failed and what to do now."""


class StorageFull(StorageError):
    """No room. Nothing of the group was kept; the same group may be tried again."""


class StorageFailed(StorageError):
    """A write or an fsync failed. Nothing later can be trusted to last; the engine accepts no further group."""


class Group:
    """What commits together: events in order, and rows of state, where the last change of a key wins."""

    __slots__ = ("durability", "events", "state", "weight")

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.state: dict[Table, dict[Row, Row | None]] = {}
        self.durability = MEMORY
        """The most that anything in it asks for: MEMORY reaches no engine, FSYNC waits for the disk."""
        self.weight = 0
        """Bytes it holds in memory, roughly: what bounds a group."""

    def put(self, table: Table, key: Row, values: Row) -> None:
        """Insert or replace one row."""
        self._change(table, key, values)

    def delete(self, table: Table, key: Row) -> None:
        """Delete one row, where there is one."""
        self._change(table, key, None)

    def _change(self, table: Table, key: Row, values: Row | None) -> None:
        if self.durability < OS:
            self.durability = OS
        self.state.setdefault(table, {})[key] = values

    def __bool__(self) -> bool:
        return self.durability > MEMORY or bool(self.events)


Accepts = Callable[[str], bool]
"""A filter over topic names. Called from worker threads too: it must not change anything it shares."""


class Latest:
    """The seqs of the last few events of each topic, as they are gathered from the end of the log backwards.

    It takes no more than `most` seqs in all: those of the newest events.
    """

    __slots__ = ("_accepts", "_count", "_left", "_most", "_refused", "seqs")

    _REMEMBERED: Final = 10_000
    """Topics that are not accepted of which that is remembered."""

    def __init__(self, accepts: Accepts, count: int, most: int) -> None:
        self.seqs: list[int] = []
        """Descending."""
        self._accepts = accepts
        self._count = count
        self._most = most
        self._left: dict[str, int] = {}
        """How many more are wanted of a topic."""
        self._refused: set[str] = set()

    @property
    def full(self) -> bool:
        """Whether it takes no more."""
        return len(self.seqs) >= self._most

    def wants(self, topic: str) -> int:
        """How many more events of this topic it takes."""
        left = self._left.get(topic)
        if left is not None:
            return left
        if topic in self._refused:
            return 0
        if self._accepts(topic):
            return self._count
        if len(self._refused) >= self._REMEMBERED:
            self._refused.clear()
        self._refused.add(topic)
        return 0

    def add(self, seq: int, topic: str) -> None:
        """Take an event that is older than those before, if it is wanted."""
        if (left := self.wants(topic)) and not self.full:
            self._left[topic] = left - 1
            self.seqs.append(seq)


class Engine(Protocol):
    """Keeps groups and gives them back. Every call blocks. Writing comes from one thread, reading from another."""

    def commit(self, events: Sequence[Event], state: dict[Table, dict[Row, Row | None]], sync: bool) -> None:
        """Keep all of it in one transaction; with `sync`, on the disk itself, before returning.

        Events with durability MEMORY are skipped.

        Raises:
            StorageFull: no room; nothing of it was kept.
            StorageFailed: this and every later call fails.
        """

    def upkeep(self) -> bool:
        """A little of what must be done from time to time; whether there is more to do.

        Called after each commit, about once a second where there are none, and again for as long as no group waits.
        """

    def read(self, after: int, upto: int, limit: int, accepts: Accepts | None) -> tuple[list[Event], int]:
        """At most `limit` accepted events with after < seq <= upto, in order, and the seq up to which was looked.

        One call looks at a bounded stretch: an empty list with a seq below `upto` means "go on from there".
        """

    def get(self, seqs: Sequence[int]) -> list[Event]:
        """The events with these seqs that are still kept, in order."""

    def oldest(self) -> tuple[int, int]:
        """The seq and the time of the oldest event that is kept, or of an older one; zeros for a new log.

        Alone of all calls it may come from the loop, since it doesn't block.
        """

    def seq_before(self, ts: int) -> int:
        """The seq of the last event that came before this time (µs); 0 where there is none."""

    def latest(self, found: Latest, before: int) -> int:
        """Add to `found` what a bounded stretch below the seq `before` has; the seq below which to go on, or 0."""

    def rows(self, table: Table) -> list[Row]:
        """Every row of a table: key columns, then value columns."""

    def last(self) -> int:
        """The highest seq that was ever committed; 0 for a new log."""

    def last_ts(self) -> int:
        """The time of the last committed event; 0 for a new log."""

    def close(self) -> None:
        """Give back every resource. Committed groups stay."""


class Worker(Protocol):
    """Runs blocking calls one after another, away from the loop, and hands each result back to the loop."""

    def submit(
        self,
        work: Callable[[], object],
        done: Callable[[object, BaseException | None], None],
        after: Callable[[], object] | None = None,
    ) -> None:
        """Run `work`; then have `done(result, None)` or `done(None, error)` called on the loop, and run `after`.

        If `after` returns True, it is run again whenever nothing else waits, until it doesn't.
        """


class Cursor(Protocol):
    """One reader's place in the log."""

    position: int
    """Every event up to this seq was taken or did not match."""

    def next(self) -> Event | None:
        """The next event that matches, or None where none is at hand; `wake` is then called once there may be one."""

    def batch(self, limit: int) -> list[Event]:
        """The next events that match, at most `limit`; fewer mean what None means to `next`."""

    @property
    def caught_up(self) -> bool:
        """Whether the position has reached the last committed event."""

    def seek(self, position: int) -> None:
        """Go on after this seq. No call of `wake` is due any more, until the next call has asked for one."""

    def release(self) -> None:
        """Hold no events in memory until the next call: for a reader that can take no more for now."""

    def close(self) -> None:
        """Never wake again."""


class Listener(Protocol):
    """Who is told of what becomes of groups: the hub."""

    def sealing(self, group: Group) -> None:
        """The open group is about to be handed to the engine: add what must go with it."""

    def committed(self, group: Group) -> None:
        """All of it is kept as was asked."""

    def refused(self, group: Group, error: StorageError) -> None:
        """Nothing of it is kept. It is the open group again; take out of it what need not be tried again."""


class Log(Protocol):
    """The log as the loop sees it. Nothing here blocks but `rows`, which is for the start."""

    open: Group
    last: int
    """The seq given out last."""
    committed: int
    """The seq up to which cursors may read."""
    last_ts: int
    """The time of the last event, µs since the epoch."""
    failure: StorageError | None
    """Why nothing can be stored at the moment; None while all is well."""
    listener: Listener

    @property
    def busy(self) -> bool:
        """Whether a group is on its way to the engine."""

    @property
    def edge(self) -> int:
        """The seq up to which events kept in memory only are the next to go; 0 while there is room."""

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
        """Add one event to the open group and give it its seq. Nothing is kept before the group commits."""

    def flush(self) -> None:
        """Hand the open group over, unless one is on its way; then it goes with the next turn of the writer."""

    def retry(self) -> None:
        """Try again what failed: reads, and a refused group; a failed engine is never given another group.

        To be called about once a second.
        """

    def uncommitted(self) -> Iterable[Event]:
        """The events of the group on its way and of the open one, in order."""

    def horizon(self, now: int) -> int:
        """No event that is still to be committed will have a `ts` below this."""

    def cursor(self, position: int, accepts: Accepts | None, wake: Callable[[], None]) -> Cursor:
        """A reader of every event after `position` whose topic is accepted (None: all)."""

    def get(self, seqs: Sequence[int], done: Callable[[list[Event]], None]) -> None:
        """Call `done` on the loop with those of these events that are still kept, in order."""

    @property
    def oldest(self) -> tuple[int, int]:
        """The seq and the time of the oldest event that is kept, or of an older one; zeros for a new log."""

    def seek(self, ts: int, done: Callable[[int], None]) -> None:
        """Call `done` on the loop with a position behind which every stored event lies that came at `ts` or later."""

    def latest(self, accepts: Accepts, count: int, most: int, done: Callable[[list[int]], None]) -> None:
        """Call `done` on the loop with the seqs, in order, of the last `count` stored events of each accepted topic.

        No more than `most` in all, the newest. Those that are kept in memory only are not among them.
        """

    def rows(self, table: Table) -> list[Row]:
        """Every row of a table, as committed. Blocks."""

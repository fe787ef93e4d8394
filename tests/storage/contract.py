"""What the contract suites run over: every engine, each in a store that it can be opened from again.

A further engine is one more class here and one more entry of STORES.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Final, Protocol

from storage.interface import FSYNC, Accepts, Engine, Event, Group, Latest, Row, StorageError, Table
from storage.keysource import OPERATOR_KEY_BYTES
from storage.log import Log
from storage.memory import MemoryEngine
from storage.sealer import Policy
from storage.sqlite import SQLiteEngine
from storage.values import Unlock
from storage.vault import Vault

START: Final = 1_700_000_000_000_000
"""The time of the first event, µs since the epoch."""

State = dict[Table, dict[Row, Row | None]]
Done = Callable[[object, BaseException | None], None]


class Store(Protocol):
    """Where one log is kept."""

    def open(self) -> Engine:
        """The engine over all that was committed. The one before it has been closed, or its process has died."""


class MemoryStore:
    """Lasts as long as it is referred to."""

    def __init__(self, directory: Path) -> None:
        self._engine = MemoryEngine()

    def open(self) -> Engine:
        """The same engine: it forgets nothing when it is closed."""
        return self._engine


TAIL_ONLY: Final = Policy(age=1 << 62)
"""Nothing is sealed for its age, which is years by any clock: all stays in the tail."""


class SQLiteStore:
    """A data directory, in which nothing is sealed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def open(self) -> Engine:
        """A new engine over the same files."""
        return SQLiteEngine(self._directory, policy=TAIL_ONLY)


class _Sealing(SQLiteEngine):
    """One that has sealed all but the last group when `commit` returns, and has deleted what it has sealed."""

    def __init__(self, directory: Path, unlock: Unlock = lambda: None) -> None:
        super().__init__(directory, policy=Policy(bytes=1, age=1 << 62), unlock=unlock)

    def commit(self, events: Sequence[Event], state: State, sync: bool) -> None:
        """Commit with an fsync, since nothing else is sealed."""
        super().commit(events, state, sync=True)
        while self.upkeep():
            sleep(0)  # for the thread that writes the segment


class SealingStore:
    """A data directory where a segment follows each group."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def open(self) -> Engine:
        """A new engine over the same files."""
        return _Sealing(self._directory)


@dataclass(frozen=True, slots=True)
class OperatorKey:
    """An operator's key that is at hand."""

    key: bytes = b"\xa5" * OPERATOR_KEY_BYTES

    def read(self) -> bytes:
        """The key."""
        return self.key


def vault(directory: Path) -> Vault:
    """What encrypts in a data directory, with the same operator's key each time."""
    return Vault(directory, (OperatorKey(),), START, 0)


class EncryptedStore:
    """A data directory in which all is encrypted, and where a segment follows each group."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def open(self) -> Engine:
        """A new engine over the same files."""
        return _Sealing(self._directory, lambda: vault(self._directory))


class EncryptedTailStore:
    """A data directory in which all is encrypted, and nothing is sealed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def open(self) -> Engine:
        """A new engine over the same files."""
        return SQLiteEngine(self._directory, policy=TAIL_ONLY, unlock=lambda: vault(self._directory))


STORES: Final[tuple[Callable[[Path], Store], ...]] = (
    MemoryStore,
    SQLiteStore,
    SealingStore,
    EncryptedStore,
    EncryptedTailStore,
)


def event(
    seq: int,
    topic: str = "plant/line1",
    payload: bytes = b"21.5",
    *,
    durability: int = FSYNC,
    qos: int = 1,
    ts: int | None = None,
) -> Event:
    """An event; those with a higher seq are later by as many µs."""
    return Event(seq, START + seq if ts is None else ts, topic, payload, qos, False, "press-7", b"", 0, durability)


def read_all(engine: Engine, accepts: Accepts | None = None, after: int = 0, limit: int = 500) -> list[Event]:
    """Everything that is accepted, going on from wherever a read ends."""
    upto = engine.last()
    found: list[Event] = []
    while after < upto:
        events, reached = engine.read(after, upto, limit, accepts)
        assert reached > after
        found += events
        after = reached
    return found


class Turns:
    """A worker that works when it is told to, so that a test decides who comes first."""

    def __init__(self) -> None:
        self._queue: deque[tuple[Callable[[], object], Done, Callable[[], object] | None]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def submit(self, work: Callable[[], object], done: Done, after: Callable[[], object] | None = None) -> None:
        """Remember it."""
        self._queue.append((work, done, after))

    def turn(self) -> None:
        """Do the oldest piece of work, if there is one."""
        if self._queue:
            work, done, after = self._queue.popleft()
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 - handed over, as the thread does
                done(None, error)
            else:
                done(result, None)
            while after is not None and after() is True:
                pass

    def run(self) -> None:
        """Work until nothing is left, that which comes meanwhile included."""
        while self._queue:
            self.turn()

    def close(self) -> None:
        """Finish."""
        self.run()


class Unreliable:
    """An engine that fails when it is told to, and is another one otherwise."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.commit_fails: list[Exception] = []
        """What the next commits raise, one after another."""
        self.read_fails: list[Exception] = []
        """What the next reads raise."""
        self.commits = 0
        self.reads = 0
        self.upkeeps = 0

    def commit(self, events: Sequence[Event], state: State, sync: bool) -> None:
        """Commit, or fail and keep nothing."""
        self.commits += 1
        if self.commit_fails:
            raise self.commit_fails.pop(0)
        self._engine.commit(events, state, sync)

    def upkeep(self) -> bool:
        """Count it."""
        self.upkeeps += 1
        return self._engine.upkeep()

    def read(self, after: int, upto: int, limit: int, accepts: Accepts | None) -> tuple[list[Event], int]:
        """Read, or fail."""
        self._reading()
        return self._engine.read(after, upto, limit, accepts)

    def get(self, seqs: Sequence[int]) -> list[Event]:
        """Read, or fail."""
        self._reading()
        return self._engine.get(seqs)

    def oldest(self) -> tuple[int, int]:
        """As the other does."""
        return self._engine.oldest()

    def seq_before(self, ts: int) -> int:
        """Look, or fail."""
        self._reading()
        return self._engine.seq_before(ts)

    def latest(self, found: Latest, before: int) -> int:
        """Look, or fail."""
        self._reading()
        return self._engine.latest(found, before)

    def _reading(self) -> None:
        self.reads += 1
        if self.read_fails:
            raise self.read_fails.pop(0)

    def rows(self, table: Table) -> list[Row]:
        """As the other does."""
        return self._engine.rows(table)

    def last(self) -> int:
        """As the other does."""
        return self._engine.last()

    def last_ts(self) -> int:
        """As the other does."""
        return self._engine.last_ts()

    def close(self) -> None:
        """Close the other."""
        self._engine.close()


class Told:
    """A listener that writes down what it is told, and may take events out of a refused group."""

    def __init__(self) -> None:
        self.committed_groups: list[Group] = []
        self.errors: list[StorageError] = []
        self.taken_out: list[Event] = []
        self.adds: list[tuple[Table, Row, Row]] = []
        """Rows that go with the next group."""
        self.keeps: Callable[[Event], bool] = lambda event: True

    def sealing(self, group: Group) -> None:
        """Add the rows."""
        for table, key, values in self.adds:
            group.put(table, key, values)
        self.adds.clear()

    def committed(self, group: Group) -> None:
        """Write it down."""
        self.committed_groups.append(group)

    def refused(self, group: Group, error: StorageError) -> None:
        """Take out what need not be tried again."""
        self.errors.append(error)
        self.taken_out += [event for event in group.events if not self.keeps(event)]
        group.events[:] = [event for event in group.events if self.keeps(event)]

    @property
    def committed_events(self) -> list[Event]:
        """All of them, in the order in which they committed."""
        return [event for group in self.committed_groups for event in group.events]


class Rig:
    """A log over an engine that can fail, with workers that wait to be told."""

    def __init__(self, store: Store, memory_bytes: int = 1 << 20) -> None:
        self.engine = Unreliable(store.open())
        self.writer = Turns()
        self.reader = Turns()
        self.log = Log(self.engine, self.writer, self.reader, memory_bytes)
        self.told = self.log.listener = Told()
        self.now = self.log.last_ts or START

    def append(
        self, topic: str = "plant/line1", payload: bytes = b"21.5", durability: int = FSYNC, qos: int = 1
    ) -> Event:
        """One more event, a µs after the last."""
        self.now += 1
        return self.log.append(self.now, topic, payload, qos, False, "press-7", b"", 0, durability)

    def commit(self, *durabilities: int, topic: str = "plant/line1") -> list[Event]:
        """Append events with these durabilities as one group, and have it commit."""
        events = [self.append(topic, durability=durability) for durability in durabilities]
        self.log.flush()
        self.writer.run()
        return events

    def drain(self) -> bool:
        """Drain the log; whether that is done."""
        done: list[bool] = []
        self.log.drain(lambda: done.append(True))
        self.writer.run()
        return bool(done)


class Reader:
    """A cursor, and how often it was woken."""

    def __init__(self, rig: Rig, position: int = 0, accepts: Accepts | None = None) -> None:
        self.woken = 0
        self.cursor = rig.log.cursor(position, accepts, self._wake)
        self._rig = rig

    def _wake(self) -> None:
        self.woken += 1

    def read(self) -> list[int]:
        """The seqs of everything that can be read, with as many reads of the engine as it takes."""
        found: list[int] = []
        while True:
            event = self.cursor.next()
            if event is not None:
                found.append(event.seq)
            elif len(self._rig.reader):
                self._rig.reader.run()
            else:
                return found

"""The engine that lasts: a SQLite database in WAL mode, `berm.db`, with the log's tail and all state in one file.

What is older than the tail lies beside it in sealed segments: sealer.py makes them, history.py reads them.

The rules:

1. One connection writes: all commits and all checkpoints are its own, one after another. Another one reads, in short
   transactions that never outlast a call, and can't checkpoint.
2. A group is one transaction. Where it must last, the commit ends with an fsync of the WAL (`synchronous=FULL`);
   otherwise it leaves that to a later one (`NORMAL`), and survives the death of the process but not of the machine.
3. An fsync that failed is never tried again as if nothing had happened: the engine takes no further group, and leaves
   the WAL as it is for the next start, which takes from it what its checksums prove.
4. A read looks at a bounded stretch and returns a bounded number of bytes.
5. A full disk refuses a group and is tried again; so is a quota, which SQLite calls an error of the disk: whether it is
   one is found out by writing a small file. The reserve (see guard.py) is given back for what comes next.

Why so much is asked of one statement: each call into SQLite gives the interpreter lock away, and beside a busy loop it
takes a while to get it back. One INSERT of 256 rows does so once where `executemany` does 256 times, and a list goes
through JSON where a row for each of its elements would.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cache
from operator import attrgetter
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Final, NoReturn

from storage.catalog import DIRECTORY, Chain, Stretch
from storage.database import (
    BUSY_SECONDS,
    CHECK_SECONDS,
    DATABASE,
    PAGE_BYTES,
    SUSPECT,
    WAL_BYTES,
    hold,
    is_damage,
    open_reader,
    open_writer,
)
from storage.erasure import Eraser
from storage.guard import NO_ROOM, RESERVE, Reserve, measure, probe
from storage.history import History
from storage.interface import (
    META,
    Accepts,
    Event,
    Latest,
    Row,
    StorageError,
    StorageFailed,
    StorageFull,
    Table,
    Value,
)
from storage.keysource import KeysError
from storage.retention import EVERYTHING, Keeper, Record, Retention
from storage.schema import KINDS
from storage.sealer import ROW_BYTES, USUAL, Chore, Policy, Sealer
from storage.segment_block import weight
from storage.tail import READ_BYTES, SCAN_ROWS, SEALED, Tail
from storage.topics import Topics
from storage.transition import OWN, check, encrypt

if TYPE_CHECKING:
    from storage.datakey import DataKey
    from storage.values import Cipher, Opener, Unlock

CHECKPOINT_PAGES: Final = 4000
"""Pages in the WAL after which they are copied into the database."""
READERS_SECONDS: Final = 0.1
"""How long a checkpoint of a WAL that has become long waits for other programs to end their transactions."""

_ROWS: Final = (256, 64, 16, 4, 1)
"""Rows that one statement brings: the fewest statements that make up any number."""
_COLUMNS: Final = 8

_FLAGS: Final = 3
_PROPERTIES: Final = 5
_PAYLOAD: Final = 6
"""Which columns these are."""

_INSERT: Final = "INSERT INTO tail (seq, ts, topic, flags, client, properties, payload, expires)"

_FULL: Final = frozenset((sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE))
"""What a full disk gives: the second where it is the index of the WAL that can't grow."""
_UNWRITTEN: Final = frozenset(
    (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_TRUNCATE, sqlite3.SQLITE_IOERR_SHMOPEN, sqlite3.SQLITE_CANTOPEN)
)
"""What a quota gives, or a file system that has become read-only, or a disk that is broken."""

_seq = attrgetter("seq")
_logger = logging.getLogger("berm.storage")


class SQLiteEngine:
    """The log in a directory. `commit` and `upkeep` come from one thread, `read` and `get` from another.

    `policy` says when the oldest part of the log is sealed. With `readonly` nothing is written, and a node may be
    running on the directory. `unlock` gives what encrypts and decrypts, and is called once the directory is held.

    Raises:
        KeysError: the directory is encrypted, and the keys are not at hand.
        StorageError: the directory can't be used, or another node uses it.
    """

    def __init__(
        self,
        directory: Path,
        *,
        readonly: bool = False,
        policy: Policy = USUAL,
        unlock: Unlock = lambda: None,
        retention: Retention = EVERYTHING,
        check_seconds: float = CHECK_SECONDS,
    ) -> None:
        self.path = directory / DATABASE
        self.quarantined: Path | None = None
        """Where a damaged database now is; None where there was none."""
        self.reserve = Reserve(directory / RESERVE)
        self._suspect = directory / SUSPECT
        self._failure: StorageFailed | None = None
        self._full = True
        """Whether the writer's commits fsync at the moment."""
        self._gathered = CHECKPOINT_PAGES
        """Pages written to the WAL since the last checkpoint, roughly; at the start it may hold some."""
        self._announced = WAL_BYTES
        """The length of the WAL that was last complained of."""
        self._reading = Lock()
        """Held during each transaction of the reader."""
        self._lock: int | None = None
        self.eraser: Eraser | None = None
        """Carries out erasures; None where filters are nobody's business."""
        try:
            if not readonly:
                self._lock = hold(directory)
            try:
                self._open(directory, policy, unlock, retention, check_seconds)
            except StorageError as error:
                if readonly or not _without_room(error) or not self.reserve.release():
                    raise
                self._open(directory, policy, unlock, retention, check_seconds)
        except OSError as error:
            self._release()
            raise StorageError(
                f"cannot use the data directory {directory}: {error.filename or directory}: {error.strerror}; "
                f"set storage.path to one that can be {'read' if readonly else 'written'}"
            ) from error
        except BaseException:
            self._release()
            raise

    def _open(
        self, directory: Path, policy: Policy, unlock: Unlock, retention: Retention, check_seconds: float
    ) -> None:
        readonly = self._lock is None
        self._opener, self._cipher = _unlocked(directory, unlock)
        keys = None if self._opener is None else self._opener.key
        with ExitStack() as opened, self._explained("opening"):
            if readonly:
                self._reader = self._writer = open_reader(self.path)
                check(self._reader, self._opener, directory)
            else:
                self._writer, self.quarantined = open_writer(directory, check_seconds)
                opened.callback(self._writer.close)
                if self._cipher is None:
                    check(self._writer, None, directory)
                else:
                    encrypt(self._writer, self._cipher, directory)
                self._reader = open_reader(self.path)
            opened.callback(self._reader.close)
            self._sealing = open_reader(self.path)
            opened.callback(self._sealing.close)
            self._tail = Tail(self._reader, self._opener)
            self._first = Tail(self._writer).oldest()
            self._topics = Topics(self._writer)
            self._history = History(directory / DIRECTORY, readonly=readonly, keys=keys, data_key=self._data_key)
            self._keeper = Keeper(self, self._writer, self._sealing, self._history, retention, self._room)
            chores: tuple[Chore, ...] = (self._keeper,)
            if retention.compile is not None:
                self.eraser = Eraser(
                    directory,
                    self,
                    self._writer,
                    self._sealing,
                    self._opener,
                    self._topics,
                    self._history,
                    retention.compile,
                )
                chores = (self.eraser, self._keeper)
            self._sealer = Sealer(
                self, self._writer, self._sealing, self._topics, self._history, policy, self._opener, chores
            )
            opened.pop_all()

    def _data_key(self) -> DataKey | None:
        return None if self._cipher is None else self._cipher.data_key

    # -- writing

    def commit(self, events: Sequence[Event], state: dict[Table, dict[Row, Row | None]], sync: bool) -> None:
        """Keep all of it in one transaction; with `sync`, on the disk itself, before returning."""
        if self._failure is not None:
            raise self._failure
        try:
            with self._explained("writing"):
                self._write(events, state, sync)
        except StorageFull:
            self.reserve.release()
            raise
        if not self._first[0]:
            self._first = next(((event.seq, event.ts) for event in events if event.durability), self._first)

    def _write(self, events: Sequence[Event], state: dict[Table, dict[Row, Row | None]], sync: bool) -> None:
        began = perf_counter()
        try:
            with self._transaction(sync):
                number, size, first_ts, last = self._insert(events)
                written = size
                for table, rows in state.items():
                    written += self._change(table, rows)
        except BaseException:
            self._topics.forget()  # ids given in this transaction are gone with it
            raise
        self._gathered += 2 + written // PAGE_BYTES
        self._sealer.committed(number, size, first_ts, last, sync, perf_counter() - began)

    @contextmanager
    def _transaction(self, sync: bool) -> Iterator[None]:
        writer = self._writer
        if sync is not self._full:
            writer.execute(f"PRAGMA synchronous={'FULL' if sync else 'NORMAL'}")
            self._full = sync
        writer.execute("BEGIN IMMEDIATE")
        try:
            yield
            writer.execute("COMMIT")
        except BaseException:
            if writer.in_transaction:
                writer.execute("ROLLBACK")
            raise

    def upkeep(self) -> bool:
        """Copy what has gathered in the WAL into the database, once it is long enough; otherwise go on sealing.

        Between groups. Whether there is more to do.
        """
        if self._failure is not None or self._lock is None:
            return False
        if self._gathered < CHECKPOINT_PAGES:
            return self._sealer.turn()
        self._gathered = 0  # where it can't be done now, it is tried again after as many pages
        try:
            with self._explained("checkpointing"):
                self._checkpoint()
        except StorageFailed:
            return False  # the next group is told
        except StorageFull as error:
            if self.reserve.release():
                self._gathered = CHECKPOINT_PAGES
            _logger.warning("%s; the WAL grows until it can be copied into the database", error)
        except StorageError as error:
            _logger.warning("%s; the WAL grows until it can be copied into the database", error)
        return True

    def _checkpoint(self) -> None:
        """Copy the WAL into the database, so that the next group begins it anew.

        It can't as long as anybody reads from the WAL: a reader that takes no breath would keep it growing for ever.
        So once it is long, the node's own reader stands back for a moment, and others are waited for.
        """
        pages = self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
        if pages * PAGE_BYTES < WAL_BYTES:
            self._announced = WAL_BYTES
            return
        self._writer.execute(f"PRAGMA busy_timeout={READERS_SECONDS * 1000:.0f}")
        try:
            with self._reading:
                blocked = self._writer.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0]
        finally:
            self._writer.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000:.0f}")
        if blocked and pages * PAGE_BYTES >= 2 * self._announced:
            self._announced = pages * PAGE_BYTES
            _logger.warning(
                "the WAL of %s has grown to %d MB, since another program reads it without a pause; end that one",
                self.path,
                self._announced >> 20,
            )

    def _insert(self, events: Sequence[Event]) -> tuple[int, int, int, int]:
        """Insert all but those that are kept in memory only.

        How many these are, their size in bytes, the time of the first and the seq of the last of them.
        """
        ids = self._topics.ids(events)
        values: list[Value] = []
        size = first_ts = last = 0
        for event in events:
            durability = event.durability
            if durability:
                first_ts = first_ts or event.ts
                last = event.seq
                size += ROW_BYTES + len(event.payload) + len(event.properties)
                values += (
                    last,
                    event.ts,
                    ids[event.topic],
                    event.qos | event.retain << 2 | durability << 3,
                    event.client,
                    event.properties,
                    event.payload,
                    event.expires,
                )
        if self._cipher is not None:
            kept = [event for event in events if event.durability]
            values[_FLAGS::_COLUMNS] = [SEALED | e.qos | e.retain << 2 | e.durability << 3 for e in kept]
            values[_PROPERTIES::_COLUMNS] = [b""] * len(kept)
            values[_PAYLOAD::_COLUMNS] = self._cipher.seal_events(kept)
        self._execute(_insert, values, _COLUMNS)
        return len(values) // _COLUMNS, size, first_ts, last

    def _change(self, table: Table, rows: dict[Row, Row | None]) -> int:
        """Change rows of state; the bytes of the pages that this touches, at the most but for large values."""
        put: list[Value] = []
        gone: list[Value] = []
        for key, values in (rows if self._cipher is None else self._cipher.seal_rows(table, rows)).items():
            if values is None:
                gone += key
            else:
                put += key
                put += values
        self._execute(lambda count: _upsert(table, count), put, len(table.key) + len(table.values))
        self._execute(lambda count: _delete(table, count), gone, len(table.key))
        return len(rows) * PAGE_BYTES

    def _execute(self, statement: Callable[[int], str], values: list[Value], columns: int) -> None:
        """Execute what `statement` says for so many rows, until all `values` have been taken."""
        at, end = 0, len(values)
        for rows in _ROWS:
            size = rows * columns
            while end - at >= size:
                self._writer.execute(statement(rows), values if size == end else values[at : at + size])
                at += size

    def reading(self) -> AbstractContextManager[None]:
        """For the sealer: what it reads may fail without harm."""
        return self._explained("reading")

    @contextmanager
    def changing(self, size: int, *, sync: bool = False) -> Iterator[None]:
        """For the sealer: a transaction of so many bytes, which waits for an fsync only if it is to."""
        self._gathered += 2 + size // PAGE_BYTES
        with self._explained("tidying up"), self._transaction(sync=sync):
            yield

    def cut(self) -> bool:
        """For erasure: copy all of the WAL into the database, and cut it to nothing; whether nobody was in the way."""
        self._writer.execute(f"PRAGMA busy_timeout={READERS_SECONDS * 1000:.0f}")
        try:
            with self._reading, self._explained("checkpointing"):
                blocked: int = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        finally:
            self._writer.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000:.0f}")
        return not blocked

    @property
    def retention(self) -> Record:
        """What retention has taken. Alone with `oldest` it may be asked from the loop."""
        return self._keeper.record

    def _room(self) -> tuple[int, int]:
        free, total = measure(self.path.parent)
        return free + self.reserve.held, total

    # -- reading

    def read(self, after: int, upto: int, limit: int, accepts: Accepts | None) -> tuple[list[Event], int]:
        """At most `limit` accepted events with after < seq <= upto, in order, and the seq up to which was looked."""
        found: list[Event] = []
        room, left = READ_BYTES, SCAN_ROWS
        while True:
            events, reached, end = self._read_part(after, upto, limit - len(found), accepts, room)
            found += events
            if reached < end or end == upto or len(found) == limit:
                return found, reached
            left -= reached - after
            room -= sum(map(weight, events))
            if left <= 0 or room <= 0:
                return found, reached
            after = reached

    def _read_part(
        self, after: int, upto: int, limit: int, accepts: Accepts | None, room: int
    ) -> tuple[list[Event], int, int]:
        """The same of whoever serves what comes next, a segment or the tail; and up to where it does."""
        while True:
            chain = self._history.chain
            stretch, end = chain.find(after)
            end = min(end, upto)
            if stretch is not None:
                return *self._history.read(stretch, after, end, limit, accepts, room), end
            with self._reading, self._explained("reading"):
                events, reached = self._tail.read(after, end, limit, accepts, room)
            if not self._history.changed(chain):
                return events, reached, end

    def get(self, seqs: Sequence[int]) -> list[Event]:
        """The events with these seqs that are still kept, in order."""
        while True:
            chain = self._history.chain
            sealed: dict[Stretch, list[int]] = {}
            rest: list[int] = []
            for seq in seqs:
                stretch, _ = chain.find(seq - 1)
                (rest if stretch is None else sealed.setdefault(stretch, [])).append(seq)
            with self._reading, self._explained("reading"):
                found = self._tail.get(rest) if rest else []
            if not rest or not self._history.changed(chain):
                break
        for stretch, some in sealed.items():
            found += self._history.get(stretch, some)
        return sorted(found, key=_seq) if sealed else found

    def oldest(self) -> tuple[int, int]:
        """The seq and the time of the oldest event that is kept, or of an older one; zeros for a new log."""
        stretches = self._history.chain.stretches
        return (stretches[0].after + 1, stretches[0].first_ts) if stretches else self._first

    def seq_before(self, ts: int) -> int:
        """The seq of the last event that came before this time; 0 where there is none."""
        while True:
            chain = self._latest()
            for stretch in chain.stretches:
                if stretch.sound and stretch.last_ts >= ts:
                    return self._history.seq_before(stretch, ts)
            with self._reading, self._explained("reading"):
                found = self._tail.seq_before(ts, chain.last)
            if not self._history.changed(chain):
                return found

    def latest(self, found: Latest, before: int) -> int:
        """Add to `found` what a bounded stretch below the seq `before` has; the seq below which to go on, or 0."""
        while True:
            chain = self._history.chain
            stretch, after = chain.find_below(before)
            if stretch is not None:
                reached = self._history.latest(stretch, found, before)
                break
            with self._reading, self._explained("reading"):
                names, reached = self._tail.names(after, before)
            if not self._history.changed(chain):
                for seq, topic in names:
                    found.add(seq, topic)
                break
        return reached if reached > 1 else 0

    def rows(self, table: Table) -> list[Row]:
        """Every row of a table: key columns, then value columns."""
        kinds = [KINDS[column.partition(" ")[2]] for column in table.key + table.values]
        with self._reading, self._explained("reading"):
            rows: list[Row] = self._reader.execute(f"SELECT * FROM {table.name}").fetchall()
            for row in rows:
                for value, kind in zip(row, kinds, strict=True):
                    if value is not None and type(value) is not kind:
                        raise sqlite3.DatabaseError(f"the row {row[0]!r} of {table.name} is damaged")
            encrypted = self._cipher is not None or check(self._reader, self._opener, self.path.parent)
        if not encrypted or self._opener is None:
            return rows
        return [row for row in self._opener.rows(table, rows) if table is not META or row[0] not in OWN]

    @property
    def segments(self) -> list[Stretch]:
        """Every sealed segment, in order."""
        self._latest()
        return self._history.files

    def unsealed(self, after: int) -> int:
        """How many events above a seq are in the tail of the log, and not sealed."""
        with self._reading, self._explained("reading"):
            number: int = self._reader.execute(
                "SELECT count(*) FROM tail WHERE seq > ?", (max(after, self._latest().last),)
            ).fetchone()[0]
        return number

    def last(self) -> int:
        """The highest seq that was ever committed and is still there; 0 for a new log."""
        with self._reading, self._explained("reading"):
            last = self._tail.last()
        return max(last, self._latest().last)

    def last_ts(self) -> int:
        """The time of the last committed event; 0 for a new log."""
        with self._reading, self._explained("reading"):
            last_ts = self._tail.last_ts()
        return max(last_ts, *(stretch.last_ts for stretch in self._latest().stretches[-1:]), 0)

    def _latest(self) -> Chain:
        """The segments as they are now that the tail has been looked at."""
        self._history.changed(self._history.chain)
        return self._history.chain

    # -- the end, and when SQLite fails

    def close(self) -> None:
        """Give back every resource. Committed groups stay."""
        self._sealer.close()
        self._sealing.close()
        self._history.close()
        # The last connection to be closed copies the WAL into the database, if it may write. After a failure none may.
        if self._failure is None:
            self._reader.close()
            self._writer.close()
        else:
            self._writer.close()
            self._reader.close()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            self._fail(doing, error)

    def _fail(self, doing: str, error: sqlite3.Error) -> NoReturn:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
        what = f"{doing} {self.path}: {error}"
        full = code in _FULL
        if code in _UNWRITTEN and self._lock is not None and (why := probe(self.path.parent)):
            what = f"{what} ({os.strerror(why)})"
            full = why in NO_ROOM
        if full:
            raise StorageFull(f"{what}; free some space on its disk") from error
        if code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StorageError(f"{what}; another program holds it, end that") from error
        if is_damage(error) and self._lock is not None:
            with suppress(OSError):  # on a full or broken disk the next start looks at the ends only
                self._suspect.touch()
        if doing in ("reading", "opening"):
            raise StorageError(f"{what}; see whether the disk is sound") from error
        self._failure = StorageFailed(f"{what}; see whether the disk is sound, then start the node again")
        raise self._failure from error


def _unlocked(directory: Path, unlock: Unlock) -> tuple[Opener | None, Cipher | None]:
    """What opens values in a directory, and what seals them where they are to be sealed."""
    found = unlock()
    if found is None:
        return None, None
    from storage.values import Cipher, Opener  # where nothing is encrypted, none of it is needed
    from storage.vault import Vault

    if isinstance(found, Vault):
        cipher = Cipher(found, directory)
        return cipher, cipher
    return Opener(found, directory), None


def _without_room(error: StorageError) -> bool:
    """Whether a full disk is why a directory can't be opened."""
    cause = error.__cause__
    return isinstance(error, StorageFull) or (
        isinstance(error, KeysError) and isinstance(cause, OSError) and cause.errno in NO_ROOM
    )


@cache
def _insert(rows: int) -> str:
    return f"{_INSERT} VALUES {_places(rows, _COLUMNS)}"


@cache
def _upsert(table: Table, rows: int) -> str:
    values = [_name(column) for column in table.values]
    return (
        f"INSERT INTO {table.name} VALUES {_places(rows, len(table.key) + len(values))} "
        f"ON CONFLICT ({', '.join(map(_name, table.key))}) "
        f"DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in values)}"
    )


@cache
def _delete(table: Table, rows: int) -> str:
    same = " AND ".join(f"{_name(column)} = column{at}" for at, column in enumerate(table.key, 1))
    return (
        f"DELETE FROM {table.name} WHERE rowid IN (SELECT {table.name}.rowid "
        f"FROM (VALUES {_places(rows, len(table.key))}) CROSS JOIN {table.name} ON {same})"
    )


def _places(rows: int, columns: int) -> str:
    return ", ".join([f"({', '.join('?' * columns)})"] * rows)


def _name(column: str) -> str:
    return column.partition(" ")[0]

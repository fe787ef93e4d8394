"""The engine that lasts: one SQLite database in WAL mode, `berm.db`, with the log and all state in one file.

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

import json
import logging
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Final, NoReturn

from storage.database import (
    BUSY_SECONDS,
    DATABASE,
    SUSPECT,
    WAL_BYTES,
    hold,
    is_damage,
    open_reader,
    open_writer,
)
from storage.guard import NO_ROOM, RESERVE, Reserve, probe
from storage.interface import (
    Accepts,
    Event,
    Row,
    StorageError,
    StorageFailed,
    StorageFull,
    Table,
    Value,
)
from storage.schema import KINDS

PAGE_BYTES: Final = 4096
CHECKPOINT_PAGES: Final = 4000
"""Pages in the WAL after which they are copied into the database."""
READERS_SECONDS: Final = 0.1
"""How long a checkpoint of a WAL that has become long waits for other programs to end their transactions."""
SCAN_ROWS: Final = 16384
"""Rows that one read looks at, whether they are accepted or not."""
READ_BYTES: Final = 4 << 20
"""Bytes of topics, clients, properties and payloads after which a read returns with what it has."""

_ROWS: Final = (256, 64, 16, 4, 1)
"""Rows that one statement brings: the fewest statements that make up any number."""
_COLUMNS: Final = 8
_SHORTEST_STRETCH: Final = 256
"""Rows that a read with a filter looks at first."""
_ROW_BYTES: Final = 50
"""What a row takes beside its payload and properties."""
_TOPIC_BYTES: Final = 8 << 20
"""Bytes that remembered ids of topics take before they are forgotten."""
_ID_BYTES: Final = 150
"""What one takes beside the topic's name."""

_INSERT: Final = "INSERT INTO tail (seq, ts, topic, flags, client, properties, payload, expires)"
_SELECT: Final = """SELECT seq, ts, topic, name, flags, client, properties, payload, expires
    FROM tail LEFT JOIN topics ON topics.id = tail.topic"""
_READ: Final = f"{_SELECT} WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?"
_READ_TOPICS: Final = f"""{_SELECT} WHERE seq > ? AND seq <= ? AND topic IN (SELECT value FROM json_each(?))
    ORDER BY seq LIMIT ?"""
_GET: Final = f"{_SELECT} WHERE seq IN (SELECT value FROM json_each(?)) ORDER BY seq"
_TOPICS_IN: Final = """SELECT sum(rows), max(last), json_group_array(json_array(topic, name))
    FROM (
        SELECT topic, count(*) AS rows, max(seq) AS last
        FROM (SELECT seq, topic FROM tail WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?)
        GROUP BY topic
    )
    LEFT JOIN topics ON topics.id = topic"""
"""The topics of a stretch; how many rows it has, and where it ends. Payloads are not touched."""
_NEW_TOPICS: Final = "INSERT OR IGNORE INTO topics (name) SELECT value FROM json_each(?)"
_TOPIC_IDS: Final = """SELECT json_group_array(json_array(name, id)) FROM topics
    WHERE name IN (SELECT value FROM json_each(?))"""

_FULL: Final = frozenset((sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE))
"""What a full disk gives: the second where it is the index of the WAL that can't grow."""
_UNWRITTEN: Final = frozenset(
    (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_TRUNCATE, sqlite3.SQLITE_IOERR_SHMOPEN, sqlite3.SQLITE_CANTOPEN)
)
"""What a quota gives, or a file system that has become read-only, or a disk that is broken."""

_logger = logging.getLogger("berm.storage")


class SQLiteEngine:
    """The log in a directory. `commit` and `upkeep` come from one thread, `read` and `get` from another.

    With `readonly` nothing is written, and a node may be running on the directory.

    Raises:
        StorageError: the directory can't be used, or another node uses it.
    """

    def __init__(self, directory: Path, *, readonly: bool = False) -> None:
        self.path = directory / DATABASE
        self.quarantined: Path | None = None
        """Where a damaged database now is; None where there was none."""
        self.reserve = Reserve(directory / RESERVE)
        self._suspect = directory / SUSPECT
        self._failure: StorageFailed | None = None
        self._ids: dict[str, int] = {}
        """Topic names to ids, as committed."""
        self._ids_weight = 0
        self._full = True
        """Whether the writer's commits fsync at the moment."""
        self._gathered = CHECKPOINT_PAGES
        """Pages written to the WAL since the last checkpoint, roughly; at the start it may hold some."""
        self._announced = WAL_BYTES
        """The length of the WAL that was last complained of."""
        self._reading = Lock()
        """Held during each transaction of the reader."""
        self._lock: int | None = None
        if readonly:
            with self._explained("opening"):
                self._reader = self._writer = open_reader(self.path)
            return
        try:
            self._lock = hold(directory)
            try:
                self._open(directory)
            except StorageFull:
                if not self.reserve.release():
                    raise
                self._open(directory)
        except OSError as error:
            self._release()
            raise StorageError(
                f"cannot use the data directory {directory}: {error.filename or directory}: {error.strerror}; "
                "set storage.path to one that can be written"
            ) from error
        except BaseException:
            self._release()
            raise

    def _open(self, directory: Path) -> None:
        with self._explained("opening"):
            self._writer, self.quarantined = open_writer(directory)
            try:
                self._reader = open_reader(self.path)
            except BaseException:
                self._writer.close()
                raise

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

    def _write(self, events: Sequence[Event], state: dict[Table, dict[Row, Row | None]], sync: bool) -> None:
        writer = self._writer
        try:
            if sync is not self._full:
                writer.execute(f"PRAGMA synchronous={'FULL' if sync else 'NORMAL'}")
                self._full = sync
            writer.execute("BEGIN IMMEDIATE")
            written = self._insert(events)
            for table, rows in state.items():
                written += self._change(table, rows)
            writer.execute("COMMIT")
            self._gathered += 2 + written // PAGE_BYTES
        except BaseException:
            self._forget()  # ids given in this transaction are gone with it
            if writer.in_transaction:
                writer.execute("ROLLBACK")
            raise

    def upkeep(self) -> None:
        """Copy what has gathered in the WAL into the database, once it is long enough. Between groups."""
        if self._failure is not None or self._gathered < CHECKPOINT_PAGES:
            return
        self._gathered = 0  # where it can't be done now, it is tried again after as many pages
        try:
            with self._explained("checkpointing"):
                self._checkpoint()
        except StorageFailed:
            pass  # the next group is told
        except StorageFull as error:
            if self.reserve.release():
                self._gathered = CHECKPOINT_PAGES
            _logger.warning("%s; the WAL grows until it can be copied into the database", error)
        except StorageError as error:
            _logger.warning("%s; the WAL grows until it can be copied into the database", error)

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

    def _insert(self, events: Sequence[Event]) -> int:
        """Insert all but those that are kept in memory only; their size in bytes, roughly."""
        ids = self._topic_ids(events)
        values: list[Value] = []
        written = 0
        for event in events:
            durability = event.durability
            if durability:
                written += _ROW_BYTES + len(event.payload) + len(event.properties)
                values += (
                    event.seq,
                    event.ts,
                    ids[event.topic],
                    event.qos | event.retain << 2 | durability << 3,
                    event.client,
                    event.properties,
                    event.payload,
                    event.expires,
                )
        self._execute(_insert, values, _COLUMNS)
        return written

    def _topic_ids(self, events: Sequence[Event]) -> dict[str, int]:
        """The ids of these events' topics, and of others; new topics are given theirs."""
        ids = self._ids
        topics = {event.topic for event in events if event.durability}
        if not topics <= ids.keys():
            if self._ids_weight > _TOPIC_BYTES:
                self._forget()
            names = json.dumps([topic for topic in topics if topic not in ids])
            self._writer.execute(_NEW_TOPICS, (names,))
            for topic, id in json.loads(self._writer.execute(_TOPIC_IDS, (names,)).fetchone()[0]):
                ids[topic] = id
                self._ids_weight += _ID_BYTES + len(topic)
        return ids

    def _forget(self) -> None:
        self._ids.clear()
        self._ids_weight = 0

    def _change(self, table: Table, rows: dict[Row, Row | None]) -> int:
        """Change rows of state; the bytes of the pages that this touches, at the most but for large values."""
        put: list[Value] = []
        gone: list[Value] = []
        for key, values in rows.items():
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

    # -- reading

    def read(self, after: int, upto: int, limit: int, accepts: Accepts | None) -> tuple[list[Event], int]:
        """At most `limit` accepted events with after < seq <= upto, in order, and the seq up to which was looked."""
        found: list[Event] = []
        with self._reading, self._explained("reading"):
            if accepts is not None:
                return found, self._read_accepted(found, after, upto, limit, accepts)
            room = self._take(found, READ_BYTES, _READ, (after, upto, limit))
        return found, upto if room > 0 and len(found) < limit else found[-1].seq

    def _read_accepted(self, found: list[Event], after: int, upto: int, limit: int, accepts: Accepts) -> int:
        """Fill `found`, stretch by stretch, each longer than the one before; the seq up to which was looked."""
        room = READ_BYTES
        left, stretch = SCAN_ROWS, max(limit, _SHORTEST_STRETCH)
        while left > 0 and after < upto:
            stretch = min(stretch, left)
            rows, last, topics = self._reader.execute(_TOPICS_IN, (after, upto, stretch)).fetchone()
            if not rows:
                return upto
            wanted = [topic for topic, name in json.loads(topics) if accepts(_known(topic, name))]
            if wanted:
                room = self._take(found, room, _READ_TOPICS, (after, last, json.dumps(wanted), limit - len(found)))
                if room <= 0 or len(found) == limit:
                    return found[-1].seq
            after = last
            left -= rows
            stretch *= 4
        return after

    def _take(self, found: list[Event], room: int, query: str, parameters: Sequence[Value]) -> int:
        """Add the events that a query gives, while there is room for them; the bytes of room that are left."""
        with closing(self._reader.execute(query, parameters)) as rows:
            for seq, ts, id, topic, flags, client, properties, payload, expires in rows:
                if not (
                    type(properties) is type(payload) is bytes
                    and type(topic) is type(client) is str
                    and type(ts) is type(flags) is type(expires) is int
                ):
                    raise sqlite3.DatabaseError(f"the event {seq}, of topic {id}, is damaged")
                found.append(
                    Event(seq, ts, topic, payload, flags & 3, flags & 4 != 0, client, properties, expires, flags >> 3)
                )
                room -= len(topic) + len(client) + len(properties) + len(payload)
                if room <= 0:
                    break
        return room

    def get(self, seqs: Sequence[int]) -> list[Event]:
        """The events with these seqs that are still kept, in order."""
        found: list[Event] = []
        with self._reading, self._explained("reading"):
            self._take(found, sys.maxsize, _GET, (json.dumps(list(seqs)),))
        return found

    def rows(self, table: Table) -> list[Row]:
        """Every row of a table: key columns, then value columns."""
        kinds = [KINDS[column.partition(" ")[2]] for column in table.key + table.values]
        with self._reading, self._explained("reading"):
            rows: list[Row] = self._reader.execute(f"SELECT * FROM {table.name}").fetchall()
            for row in rows:
                for value, kind in zip(row, kinds, strict=True):
                    if value is not None and type(value) is not kind:
                        raise sqlite3.DatabaseError(f"the row {row[0]!r} of {table.name} is damaged")
        return rows

    def last(self) -> int:
        """The highest seq that was ever committed and is still there; 0 for a new log."""
        return self._number("SELECT max(seq) FROM tail")

    def last_ts(self) -> int:
        """The time of the last committed event; 0 for a new log."""
        return self._number("SELECT ts FROM tail ORDER BY seq DESC LIMIT 1")

    def _number(self, query: str) -> int:
        with self._reading, self._explained("reading"):
            row = self._reader.execute(query).fetchone()
        return row[0] or 0 if row else 0

    # -- the end, and when SQLite fails

    def close(self) -> None:
        """Give back every resource. Committed groups stay."""
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


def _known(topic: object, name: object) -> str:
    if not isinstance(name, str):
        raise sqlite3.DatabaseError(f"the topic {topic} has no name")
    return name


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

"""The engine that lasts: one SQLite database in WAL mode, `berm.db`, with the log and all state in one file.

The rules:

1. One connection writes: all commits and all checkpoints are its own, one after another. Another one reads, in short
   transactions that never outlast a call, and can't checkpoint.
2. A group is one transaction. Where it must last, the commit ends with an fsync of the WAL (`synchronous=FULL`);
   otherwise it leaves that to a later one (`NORMAL`), and survives the death of the process but not of the machine.
3. An fsync that failed is never tried again as if nothing had happened: the engine takes no further group.
4. Whatever stands in the directory, a node starts: a damaged database is set aside under another name, whole.

Why rows are inserted many at a time: each call into SQLite gives the interpreter lock away, and beside a busy loop it
takes a while to get it back. One statement for 256 rows does so once where `executemany` does 256 times.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import time
from typing import Final, NoReturn

from storage.interface import (
    TABLES,
    Accepts,
    Event,
    Row,
    StorageError,
    StorageFailed,
    StorageFull,
    Table,
    Value,
)

DATABASE: Final = "berm.db"
LOCK: Final = "berm.lock"
"""Held locked by the node that runs on the directory, with its process id in it."""
SUSPECT: Final = "berm.db.suspect"
"""Stands there after SQLite has reported damage: the next start examines every page."""
VERSION: Final = 1
"""Of the schema, kept in the database's `user_version`."""

PAGE_BYTES: Final = 4096
CHECKPOINT_PAGES: Final = 4000
"""Pages in the WAL after which they are copied into the database."""
WAL_BYTES: Final = 64 << 20
"""What the WAL file is cut back to, where a burst has made it longer."""
SCAN_ROWS: Final = 4096
"""Rows that one read looks at, whether they are accepted or not."""
READ_BYTES: Final = 4 << 20
"""Bytes of payloads and properties after which a read returns with what it has."""
BUSY_SECONDS: Final = 5.0
"""How long to wait where another program holds the database."""

_ROWS: Final = (256, 64, 16, 4, 1)
"""Rows that one INSERT brings: the fewest statements that make up any number."""
_COLUMNS: Final = 8
_ROW_BYTES: Final = 50
"""What a row takes beside its payload and properties."""
_LOOKUPS: Final = 500
"""Seqs that one SELECT looks for."""
_TOPICS_KEPT: Final = 50_000

_INSERTS: Final = {
    rows: "INSERT INTO tail (seq, ts, topic, flags, client, properties, payload, expires) VALUES "
    + ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?)"] * rows)
    for rows in _ROWS
}
_SELECT: Final = "SELECT seq, ts, topic, flags, client, properties, payload, expires FROM tail "

_SCHEMA: Final = (
    """CREATE TABLE tail (
        seq INTEGER PRIMARY KEY,
        ts INTEGER NOT NULL,
        topic INTEGER NOT NULL,
        flags INTEGER NOT NULL,
        client TEXT NOT NULL,
        properties BLOB NOT NULL,
        payload BLOB NOT NULL,
        expires INTEGER NOT NULL
    )""",
    "CREATE TABLE topics (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    """CREATE VIEW events AS
        SELECT seq, strftime('%Y-%m-%dT%H:%M:%f', ts / 1e6, 'unixepoch') || 'Z' AS time, name AS topic,
            flags & 3 AS qos, flags >> 2 & 1 AS retain, client, payload, properties, ts, expires
        FROM tail JOIN topics ON topics.id = tail.topic""",
    *(
        f"CREATE TABLE {table.name} ({', '.join(table.key + table.values)}, "
        f"PRIMARY KEY ({', '.join(column.partition(' ')[0] for column in table.key)}))"
        for table in TABLES
    ),
)

_DAMAGE: Final = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN))

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
        self._suspect = directory / SUSPECT
        self._failure: StorageFailed | None = None
        self._ids: dict[str, int] = {}
        """Topic names to ids, as committed: the writer's."""
        self._names: dict[int, str] = {}
        """Ids to topic names: the reader's."""
        self._full = True
        """Whether the writer's commits fsync at the moment."""
        self._gathered = CHECKPOINT_PAGES
        """Pages that the WAL holds, roughly; at the start it may hold some."""
        self._lock: int | None = None
        if readonly:
            with self._explained("opening"):
                self._reader = self._writer = _open(self.path, readonly=True)
                self._check_version(self._reader)
            return
        try:
            _make_directory(directory)
            self._lock = _lock(directory)
        except OSError as error:
            raise StorageError(
                f"cannot use the data directory {directory}: {error.strerror}; "
                "set storage.path to one that can be written"
            ) from error
        try:
            self._writer = self._start()
            self._reader = _open(self.path, readonly=True)
        except BaseException:
            os.close(self._lock)
            raise

    # -- writing

    def commit(self, events: Sequence[Event], state: dict[Table, dict[Row, Row | None]], sync: bool) -> None:
        """Keep all of it in one transaction; with `sync`, on the disk itself, before returning."""
        if self._failure is not None:
            raise self._failure
        writer = self._writer
        known = len(self._ids)
        with self._explained("writing"):
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
                if len(self._ids) != known:
                    self._ids.clear()  # those given in this transaction are gone with it
                if writer.in_transaction:
                    writer.execute("ROLLBACK")
                raise

    def upkeep(self) -> None:
        """Copy what has gathered in the WAL into the database, once it is long enough. Between groups."""
        if self._failure is None and self._gathered >= CHECKPOINT_PAGES:
            try:
                with self._explained("checkpointing"):
                    _, pages, copied = self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                    self._gathered = pages - copied
            except StorageFailed:
                pass  # the next group is told
            except StorageError as error:
                _logger.warning("%s; the WAL grows until it can", error)

    def _insert(self, events: Sequence[Event]) -> int:
        """Insert all but those that are kept in memory only; their size in bytes, roughly."""
        if len(self._ids) > _TOPICS_KEPT:
            self._ids.clear()
        ids = self._ids
        values: list[Value] = []
        written = 0
        for event in events:
            durability = event.durability
            if durability:
                topic = event.topic
                written += _ROW_BYTES + len(event.payload) + len(event.properties)
                values += (
                    event.seq,
                    event.ts,
                    ids[topic] if topic in ids else self._new_id(topic),
                    event.qos | event.retain << 2 | durability << 3,
                    event.client,
                    event.properties,
                    event.payload,
                    event.expires,
                )
        execute = self._writer.execute
        at, end = 0, len(values)
        for rows in _ROWS:
            size = rows * _COLUMNS
            while end - at >= size:
                execute(_INSERTS[rows], values if size == end else values[at : at + size])
                at += size
        return written

    def _new_id(self, topic: str) -> int:
        execute = self._writer.execute
        found = execute("SELECT id FROM topics WHERE name = ?", (topic,)).fetchone()
        id = found[0] if found else execute("INSERT INTO topics (name) VALUES (?)", (topic,)).lastrowid
        assert isinstance(id, int)
        self._ids[topic] = id
        return id

    def _change(self, table: Table, rows: dict[Row, Row | None]) -> int:
        """Change rows of state; the bytes of the pages that this touches, at the most but for large values."""
        put = [key + values for key, values in rows.items() if values is not None]
        gone = [key for key, values in rows.items() if values is None]
        if put:
            places = ", ".join("?" * len(put[0]))
            self._writer.executemany(f"INSERT OR REPLACE INTO {table.name} VALUES ({places})", put)
        if gone:
            where = " AND ".join(f"{column.partition(' ')[0]} = ?" for column in table.key)
            self._writer.executemany(f"DELETE FROM {table.name} WHERE {where}", gone)
        return len(rows) * PAGE_BYTES

    # -- reading

    def read(self, after: int, upto: int, limit: int, accepts: Accepts | None) -> tuple[list[Event], int]:
        """At most `limit` accepted events with after < seq <= upto, in order, and the seq up to which was looked."""
        found: list[Event] = []
        room = READ_BYTES
        looked = 0
        accepted: dict[int, bool] = {}
        with self._explained("reading"):
            rows = self._reader.execute(
                f"{_SELECT} WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?", (after, upto, SCAN_ROWS)
            )
            try:
                for row in rows:
                    looked += 1
                    after, topic = row[0], row[2]
                    wanted = accepted.get(topic)
                    if wanted is None:
                        wanted = accepted[topic] = accepts is None or accepts(self._name(topic))
                    if wanted:
                        event = self._event(row)
                        found.append(event)
                        room -= len(event.payload) + len(event.properties)
                        if len(found) == limit or room <= 0:
                            return found, after
            finally:
                rows.close()
        return found, after if looked == SCAN_ROWS else upto

    def get(self, seqs: Sequence[int]) -> list[Event]:
        """The events with these seqs that are still kept, in order."""
        found: list[Event] = []
        with self._explained("reading"):
            for at in range(0, len(seqs), _LOOKUPS):
                part = seqs[at : at + _LOOKUPS]
                rows = self._reader.execute(f"{_SELECT} WHERE seq IN ({', '.join('?' * len(part))})", part).fetchall()
                found += map(self._event, rows)
        found.sort(key=lambda event: event.seq)
        return found

    def rows(self, table: Table) -> list[Row]:
        """Every row of a table: key columns, then value columns."""
        with self._explained("reading"):
            return self._reader.execute(f"SELECT * FROM {table.name}").fetchall()

    def last(self) -> int:
        """The highest seq that was ever committed and is still there; 0 for a new log."""
        return self._number("SELECT max(seq) FROM tail")

    def last_ts(self) -> int:
        """The time of the last committed event; 0 for a new log."""
        return self._number("SELECT ts FROM tail ORDER BY seq DESC LIMIT 1")

    def _number(self, query: str) -> int:
        with self._explained("reading"):
            row = self._reader.execute(query).fetchone()
        return row[0] or 0 if row else 0

    def _event(self, row: tuple[int, int, int, int, str, bytes, bytes, int]) -> Event:
        seq, ts, topic, flags, client, properties, payload, expires = row
        return Event(
            seq, ts, self._name(topic), payload, flags & 3, bool(flags & 4), client, properties, expires, flags >> 3
        )

    def _name(self, topic: int) -> str:
        name = self._names.get(topic)
        if name is None:
            row = self._reader.execute("SELECT name FROM topics WHERE id = ?", (topic,)).fetchone()
            if row is None:
                raise sqlite3.DatabaseError(f"no topic has the id {topic}")
            if len(self._names) >= _TOPICS_KEPT:
                self._names.clear()
            name = self._names[topic] = row[0]
        return name

    # -- the start and the end

    def close(self) -> None:
        """Give back every resource. Committed groups stay."""
        self._reader.close()
        if self._lock is not None:
            self._writer.close()
            os.close(self._lock)
            self._lock = None

    def _start(self) -> sqlite3.Connection:
        if self._suspect.exists() or not _sound(self.path):
            self._examine()
        with self._explained("opening"):
            writer = _open(self.path, readonly=False)
            try:
                _migrate(writer)
                self._check_version(writer)
            except BaseException:
                writer.close()
                raise
        return writer

    def _examine(self) -> None:
        """Look at every page, and set the database aside where one is damaged."""
        if self.path.exists() and not _sound(self.path, every_page=True):
            stamp = int(time())
            for suffix in ("", "-wal", "-shm"):
                part = Path(f"{self.path}{suffix}")
                if part.exists():
                    part.rename(f"{self.path}.damaged-{stamp}{suffix}")
            self.quarantined = Path(f"{self.path}.damaged-{stamp}")
            _sync_directory(self.path.parent)
        self._suspect.unlink(missing_ok=True)

    def _check_version(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise StorageError(
                f"{self.path} was written by a newer Berm (schema {version}, this one knows {VERSION}); "
                "install that version, or set storage.path to another directory"
            )

    # -- when SQLite fails

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            self._fail(doing, error)

    def _fail(self, doing: str, error: sqlite3.Error) -> NoReturn:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
        what = f"{doing} {self.path}: {error}"
        if code == sqlite3.SQLITE_FULL:
            raise StorageFull(f"{what}; free some space on its disk") from error
        if code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StorageError(f"{what}; another program holds it, end that") from error
        if code & 0xFF in _DAMAGE and self._lock is not None:
            self._suspect.touch()
        if doing in ("reading", "opening"):
            raise StorageError(f"{what}; see whether the disk is sound") from error
        self._failure = StorageFailed(f"{what}; see whether the disk is sound, then start the node again")
        raise self._failure from error


def _open(path: Path, *, readonly: bool) -> sqlite3.Connection:
    mode = "ro" if readonly else "rwc"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        if readonly:
            connection.execute("PRAGMA query_only=ON")
        else:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA wal_autocheckpoint=0")
            connection.execute(f"PRAGMA journal_size_limit={WAL_BYTES}")
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema up to date; each step and the record of it commit together."""
    if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
        connection.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version={VERSION}")
        connection.execute("COMMIT")


def _sound(path: Path, *, every_page: bool = False) -> bool:
    """Whether a database can be opened and the ends of its log can be read; with `every_page`, all of it."""
    if not path.exists():
        return True
    try:
        connection = _open(path, readonly=False)
    except sqlite3.DatabaseError as error:
        return not _damaged(error)
    try:
        if every_page:
            return bool(connection.execute("PRAGMA integrity_check(1)").fetchone() == ("ok",))
        if connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'tail'").fetchone()[0]:
            for order in ("ASC", "DESC"):
                connection.execute(f"{_SELECT} ORDER BY seq {order} LIMIT 100").fetchall()
            for table in TABLES:
                connection.execute(f"SELECT * FROM {table.name} LIMIT 100").fetchall()
    except sqlite3.DatabaseError as error:
        return not _damaged(error)
    else:
        return True
    finally:
        connection.close()


def _damaged(error: sqlite3.DatabaseError) -> bool:
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _make_directory(directory: Path) -> None:
    if not directory.exists():
        directory.mkdir(parents=True)
        _sync_directory(directory.parent)


def _sync_directory(directory: Path) -> None:
    """Make what was created or renamed in it last."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(directory: Path) -> int:
    """Hold the directory for this process; the descriptor that does.

    Raises:
        StorageError: another process holds it.
    """
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        raise StorageError(
            f"the data directory {directory} is in use by the node with process id {holder or 'unknown'}; "
            "stop that one, or set storage.path to another directory"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor

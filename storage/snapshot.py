"""Copies the database of a running node into a new one, as of one commit, without being in the node's way.

SQLite's own backup begins anew whenever somebody commits between two of its steps, which under load is for ever; in one
step, or inside a transaction, it keeps the WAL growing until all is copied, and a slow card takes long. So rows are
copied instead of pages, in order, which takes advantage of what they are:

1. Rows of the tail never change. Nearly all of them are copied in short transactions, one after another. Those that
   are deleted before their turn are in a segment that has its name by then; those that are in one already are left out.
2. The last transaction reads the rows that have come since, and all state: what it sees is the commit that the copy is
   of. It takes as long as the state does, however long the tail is.
3. Segments are listed right after that transaction has begun. Every event up to the last one of the copy is in the copy
   or in one of these.
4. A topic has the id in the copy that the copy gave it: the node may give ids anew meanwhile.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from storage import schema
from storage.database import BUSY_SECONDS, open_reader
from storage.interface import META
from storage.sealed import Files, Sealed

_ROWS: Final = 2048
"""Rows of the tail that one transaction copies."""
_ROUNDS: Final = 8
"""How often it is tried to catch up with a node that goes on, before the last transaction takes what is left."""
_LEFT_ROWS: Final = 16384
"""Rows that the last transaction may take."""

_UPTO: Final = """SELECT max(seq), sum(length(payload) + length(properties))
    FROM (SELECT seq, payload, properties FROM tail WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?)"""
_TOPICS: Final = """INSERT OR IGNORE INTO copy.topics (name) SELECT DISTINCT topics.name
    FROM tail JOIN topics ON topics.id = tail.topic WHERE seq > ? AND seq <= ?"""
_TAIL: Final = """INSERT INTO copy.tail SELECT seq, ts, given.id, flags, client, properties, payload, expires
    FROM tail JOIN topics ON topics.id = tail.topic JOIN copy.topics AS given ON given.name = topics.name
    WHERE seq > ? AND seq <= ?"""
_COUNT: Final = "SELECT count(*) FROM tail WHERE seq > ? AND seq <= ?"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was copied."""

    first: int
    """The lowest seq in the copy; 0 where it has no rows."""
    last: int
    """No event of the copy, or of the segments that belong to it, has a higher seq."""
    meta: dict[str, str]


def new_database(path: Path) -> sqlite3.Connection:
    """A database without rows that is written without regard to crashes: it is worth nothing before it is complete."""
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    connection.execute("PRAGMA journal_mode=OFF")
    connection.execute("PRAGMA synchronous=OFF")
    schema.create(connection)
    return connection


def copy_database(source: Path, path: Path, sealed: Sealed, pace: Pace) -> Snapshot:
    """Copy a database to a path where nothing is worth keeping.

    Raises:
        OSError, sqlite3.Error: it can't be read, or the copy can't be written.
        StorageError: there is no log, or that of a newer Berm.
    """
    new_database(path).close()
    with closing(open_reader(source)) as connection:
        connection.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000:.0f}")
        connection.execute("PRAGMA query_only=OFF")  # the source is opened to be read only all the same
        connection.execute("ATTACH ? AS copy", (f"{path.absolute().as_uri()}?mode=rw",))
        connection.execute("PRAGMA copy.journal_mode=OFF")
        connection.execute("PRAGMA copy.synchronous=OFF")
        return _Copying(connection, sealed, pace).run()


Pace = Callable[[int], None]
"""Is told how many bytes were written, and takes its time where that is too many."""


class _Copying:
    __slots__ = ("_connection", "_pace", "_position", "_sealed")

    def __init__(self, connection: sqlite3.Connection, sealed: Sealed, pace: Pace) -> None:
        self._connection = connection
        self._sealed = sealed
        self._pace = pace
        self._position = 0
        """Up to here every row is in the copy, or an event of a segment."""

    def run(self) -> Snapshot:
        for _ in range(_ROUNDS):
            (last,) = self._one("SELECT max(seq) FROM tail")
            self._follow(last or 0)
            (left,) = self._one(
                f"SELECT count(*) FROM (SELECT 1 FROM tail WHERE seq > ? LIMIT {_LEFT_ROWS})", last or 0
            )
            if left < _LEFT_ROWS:
                break
        while True:
            before = self._sealed.files()
            with self._transaction():
                (last,) = self._one("SELECT max(seq) FROM tail")
                files = self._sealed.files()
                if last is None and files != before:
                    continue  # which of them belong to this commit can't be told
                return self._finish(last or 0, files if last is None else before)

    def _follow(self, upto: int) -> None:
        """Copy rows up to there."""
        while self._position < upto:
            sealed, end = self._sealed.find(self._position)
            end = min(end, upto)
            if sealed:
                self._position = end
                continue
            with self._transaction():
                last, size = self._one(_UPTO, self._position, end, _ROWS)
                if last is not None:
                    self._copy_rows(last)
            self._position = end if last is None else last
            self._pace(size or 0)

    def _copy_rows(self, upto: int) -> None:
        span = self._position, upto
        self._connection.execute(_TOPICS, span)
        copied = self._connection.execute(_TAIL, span).rowcount
        if self._one(_COUNT, *span) != (copied,):
            raise sqlite3.DatabaseError(f"an event between {span[0]} and {span[1]} has a topic without a name")

    def _finish(self, last: int, sealed: Files) -> Snapshot:
        """Copy what is left, and all state."""
        if last > self._position:
            self._copy_rows(last)
        for name, columns in schema.LAYOUTS[schema.VERSION].items():
            if name not in ("tail", "topics"):
                listed = ", ".join(column.partition(" ")[0] for column in columns)
                self._connection.execute(f"INSERT INTO copy.{name} ({listed}) SELECT {listed} FROM {name}")
        (first,) = self._one("SELECT min(seq) FROM copy.tail")
        meta = dict(self._connection.execute(f"SELECT name, value FROM {META.name}").fetchall())
        return Snapshot(first or 0, max(last, *(int(name[21:41]) for name in sealed), 0), meta)

    def _one(self, query: str, *parameters: int) -> tuple[int, ...]:
        row: tuple[int, ...] = self._connection.execute(query, parameters).fetchone()
        return row

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            if self._connection.in_transaction:
                self._connection.execute("COMMIT")

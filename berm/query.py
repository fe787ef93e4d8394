"""SQL over history: a range of the log is copied into a temporary SQLite database, and asked there.

The theory: an unnamed SQLite database lives in a cache of bounded size, and goes to an unlinked file (below `TMPDIR`)
where it outgrows that. So memory stays bounded, the node's own database is not touched, and nothing is left behind.

What is asked may only read: an authorizer refuses everything else, and one statement is all there can be.
"""

from __future__ import annotations

import asyncio
import csv
import sqlite3
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from io import StringIO
from itertools import islice
from typing import TYPE_CHECKING, Final

import orjson

from berm.export import Step, make_tables, retained_messages
from berm.formats import EVENT_COLUMNS, INSERT_EVENT, INSERT_RETAINED, RETAINED_COLUMNS, to_row
from berm.replay import Query, Replay
from storage.interface import Engine, Event, Value

if TYPE_CHECKING:
    import aiosqlite

CACHE_KIB: Final = 32 << 10
"""KiB that the temporary database keeps in memory."""
ROWS: Final = 256
"""Rows of an answer that are fetched at a time, and by whose widths the columns of a table are laid out."""
FORMATS: Final = ("table", "ndjson", "csv")

_INSTRUCTIONS: Final = 50_000
"""Steps of SQLite's machine after which a signal, such as Ctrl-C, is noticed."""
_READING: Final = frozenset(
    (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)
)
_SETTINGS: Final = (f"PRAGMA cache_size=-{CACHE_KIB}", "PRAGMA temp_store=FILE", "PRAGMA journal_mode=OFF")
_FAMILIAR: Final = "SELECT 1 FROM json_each('[]'), json_tree('[]')"
"""SQLite makes these tables when they are first met, which is more than reading: so they are met before."""
_INDEX: Final = "CREATE INDEX events_by_topic ON events (topic)"

SQLRow = tuple[float | Value, ...]
Answer = tuple[Sequence[str], Iterator[SQLRow]]
"""The names of the columns, and the rows."""


class QueryError(Exception):
    """The statement can't be run; the message says why."""


def authorize(action: int, *_: object) -> int:
    """Whether a statement may do this, for SQLite: read, and nothing else."""
    return sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY


def _explained(error: Exception) -> QueryError:
    """What is wrong with a statement, in words."""
    text = str(error).rstrip(".")
    if (
        "not authorized" in text
        or "prohibited" in text
        or isinstance(error, sqlite3.ProgrammingError | sqlite3.Warning)
    ):
        return QueryError(f"{text}; only one SELECT over the tables events and retained can be run")
    return QueryError(text)


@contextmanager
def asked(engine: Engine, query: Query, sql: str, step: Step) -> Iterator[Answer]:
    """The answer to a statement over what matches a query.

    Raises:
        NothingFoundError: nothing matches the query.
        QueryError: the statement is none, or would do more than read.
        StorageError: the log can't be read.
    """
    with closing(sqlite3.connect("", isolation_level=None)) as database:
        try:
            _check(sql)
            for setting in _SETTINGS:
                database.execute(setting)
            make_tables(database)
            database.executemany(INSERT_RETAINED, map(to_row, retained_messages(engine, query)))
            replay = Replay(engine, query)
            database.execute("BEGIN")
            for events in replay.batches():
                database.executemany(INSERT_EVENT, map(to_row, events))
                step(replay)
            database.execute(_INDEX)
            database.execute("COMMIT")
            replay.require()
            database.execute(_FAMILIAR)
            database.set_authorizer(authorize)
            # Only between two calls of Python's can a signal be handled: without this one Ctrl-C would wait.
            database.set_progress_handler(lambda: 0, _INSTRUCTIONS)
            cursor = database.execute(sql)
            yield [column[0] for column in cursor.description], cursor
        except (sqlite3.Error, sqlite3.Warning) as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
                raise KeyboardInterrupt from None
            raise _explained(error) from None


def _check(sql: str) -> None:
    """Check a statement before anything is copied for it: over empty tables it is only prepared.

    Raises:
        sqlite3.Error: it can't be prepared.
    """
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
        make_tables(database)
        database.execute(_FAMILIAR)
        database.set_authorizer(authorize)
        # What explains itself is not run. Whether there is more than one statement is told by this, too.
        database.execute(f"EXPLAIN {sql}")


async def ask_async(
    batches: AsyncIterator[list[Event]], retained: Iterable[Event], sql: str
) -> AsyncGenerator[SQLRow, None]:
    """The rows of the answer to a statement over these events; SQLite runs in a thread of its own.

    Raises:
        QueryError: the statement is none, or would do more than read.
    """
    import aiosqlite  # only who embeds a node needs it

    try:
        await asyncio.to_thread(_check, sql)
        async with aiosqlite.connect("", isolation_level=None) as database:
            await _fill(database, batches, retained)
            await database.execute(_FAMILIAR)
            await database.set_authorizer(authorize)
            try:
                async with database.execute(sql) as cursor:
                    while rows := list(await cursor.fetchmany(ROWS)):
                        for row in rows:
                            yield tuple(row)
            except (asyncio.CancelledError, GeneratorExit):
                await database.interrupt()  # nobody waits for the rest
                raise
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise _explained(error) from None


async def _fill(database: aiosqlite.Connection, batches: AsyncIterator[list[Event]], retained: Iterable[Event]) -> None:
    for setting in _SETTINGS:
        await database.execute(setting)
    await database.execute(f"CREATE TABLE events ({EVENT_COLUMNS})")
    await database.execute(f"CREATE TABLE retained ({RETAINED_COLUMNS})")
    await database.executemany(INSERT_RETAINED, map(to_row, retained))
    await database.execute("BEGIN")
    async for events in batches:
        await database.executemany(INSERT_EVENT, map(to_row, events))
    await database.execute(_INDEX)
    await database.execute("COMMIT")


# -- answers, written


def written(answer: Answer, format: str) -> Iterator[bytes]:
    """An answer in one of `FORMATS`, piece by piece."""
    names, rows = answer
    if format == "ndjson":
        return _ndjson(names, rows)
    return _csv(names, rows) if format == "csv" else _table(names, rows)


def _ndjson(names: Sequence[str], rows: Iterator[SQLRow]) -> Iterator[bytes]:
    for row in rows:
        fields = dict(zip(names, map(_shown, row), strict=True))
        yield orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def _csv(names: Sequence[str], rows: Iterator[SQLRow]) -> Iterator[bytes]:
    text = StringIO(newline="")
    lines = csv.writer(text)
    lines.writerow(names)
    for row in rows:
        lines.writerow(map(_shown, row))
        yield text.getvalue().encode()
        text.seek(0)
        text.truncate()
    yield text.getvalue().encode()


def _table(names: Sequence[str], rows: Iterator[SQLRow]) -> Iterator[bytes]:
    """Aligned columns, as wide as the first rows need."""
    first = list(islice(rows, ROWS))
    columns = list(zip(names, *([_cell(value) for value in row] for row in first), strict=True))
    widths = [max(map(len, column)) for column in columns]
    numeric = [
        all(isinstance(row[at], int | float | None) for row in first) and any(row[at] is not None for row in first)
        for at in range(len(names))
    ]

    def line(cells: Iterable[str]) -> bytes:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        )
        return "  ".join(padded).rstrip().encode() + b"\n"

    yield line(names)
    yield line("-" * width for width in widths)
    for row in first:
        yield line(map(_cell, row))
    for row in rows:
        yield line(map(_cell, row))


def _shown(value: float | Value) -> float | str | None:
    return f"base64:{b64encode(value).decode()}" if isinstance(value, bytes) else value


def _cell(value: float | Value) -> str:
    """A value in one line, without what would change the terminal."""
    text = "" if value is None else str(_shown(value))
    return "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in text)

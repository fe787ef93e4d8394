"""Writes history, and what else the log keeps of messages, to a file: SQLite, NDJSON, CSV or Parquet.

The rules:

1. The file appears whole or not at all: it is written under another name beside it, fsynced, and renamed.
2. A SQLite file and NDJSON have the retained messages too; for one client also its session, its subscriptions and its
   will: that is what is kept of it. CSV and Parquet have events only.
3. What `berm import` needs is in it; see imports.py.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from berm.formats import (
    EVENT_COLUMNS,
    INSERT_EVENT,
    INSERT_RETAINED,
    RETAINED_COLUMNS,
    RETAINED_KIND,
    CsvWriter,
    JsonWriter,
    Writer,
    state_fields,
    to_fields,
    to_row,
)
from berm.replay import Query, Replay
from storage.files import sync_directory, sync_file
from storage.interface import OS, RETAINED, SESSIONS, SUBSCRIPTIONS, WILLS, Engine, Event, Row, Table

SUFFIXES: Final = {
    ".sqlite": "sqlite",
    ".sqlite3": "sqlite",
    ".db": "sqlite",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".csv": "csv",
    ".parquet": "parquet",
}
"""What a file's name says of its format."""
FORMATS: Final = ("sqlite", "ndjson", "csv", "parquet")
APPLICATION_ID: Final = 0x4265726D
"""In the header of a SQLite file: what it is. The bytes of `Berm`."""
VERSION: Final = 1
"""Of what such a file has in it."""

_OF_A_CLIENT: Final = (SESSIONS, SUBSCRIPTIONS, WILLS)
"""Tables whose first column is the client identifier."""

Step = Callable[[Replay], None]
"""Called after each step of a long run."""


class ExportError(Exception):
    """The file can't be written; the message says which, why, and what to do."""


@dataclass(slots=True)
class Report:
    """What is in the file."""

    events: int = 0
    retained: int = 0
    others: int = 0
    """Rows of state: a session, subscriptions, a will."""

    def __str__(self) -> str:
        parts = [f"{self.events:,} events"]
        if self.retained:
            parts.append(f"{self.retained:,} retained messages")
        if self.others:
            parts.append(f"{self.others:,} rows of a session, its subscriptions and its will")
        return ", ".join(parts)


def format_of(path: Path, asked: str | None) -> str:
    """The format to write: the one that is asked for, or what the file's name says.

    Raises:
        ValueError: there is no such format, or the name says none.
    """
    if asked is not None:
        if asked not in FORMATS:
            raise ValueError(f"{asked!r} is not a format; there are {', '.join(FORMATS)}")
        return asked
    found = SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise ValueError(f"{path}: its name does not say the format; add --format {', '.join(FORMATS)}, or a suffix")
    return found


def writer(format: str, out: BinaryIO) -> Writer:
    """A writer of events in one of the formats that are streams.

    Raises:
        ImportError: pyarrow is not installed.
    """
    if format == "parquet":
        from berm.parquet import ParquetWriter  # only installed with an extra

        return ParquetWriter(out)
    return CsvWriter(out) if format == "csv" else JsonWriter(out)


def export(engine: Engine, query: Query, path: Path, format: str, step: Step, *, force: bool = False) -> Report:
    """Write what matches a query to a file.

    With a client in the query, also what else there is of it. `force` replaces a file that is there.

    Raises:
        ExportError: the file is there, or can't be written.
        ImportError: pyarrow is not installed.
        NothingFoundError: nothing matches.
        StorageError: the log can't be read.
    """
    with replaced(path, force=force) as temporary:
        replay = Replay(engine, query)
        kept = _Kept(engine, query)
        if format == "sqlite":
            report = _to_sqlite(replay, kept, temporary, step)
        else:
            with temporary.open("wb") as out:
                report = _to_stream(replay, kept, writer(format, out), step)
        if not report.retained and not report.others:
            replay.require()
    return report


@contextmanager
def replaced(path: Path, *, force: bool) -> Iterator[Path]:
    """A new file to be written, which takes its name at the end; where anything fails, nothing is left of it.

    Raises:
        ExportError: the file is there already, or can't be written.
    """
    _refuse_existing(path, force)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            # What is exported is nobody else's to read, as the log itself.
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o640))
            yield temporary
            sync_file(temporary)
            _refuse_existing(path, force)
            temporary.rename(path)
            sync_directory(path.parent)
        except (OSError, sqlite3.Error) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise ExportError(f"{path}: cannot be written: {why}; nothing is left of it") from error
    finally:
        for each in (temporary, Path(f"{temporary}-journal")):
            with suppress(OSError):
                each.unlink()


def _refuse_existing(path: Path, force: bool) -> None:
    if path.is_dir():
        raise ExportError(f"{path}: is a directory; name a file")
    if path.exists() and not force:
        raise ExportError(f"{path}: is there already; name another file, or replace it with --force")


class _Kept:
    """What is kept beside the events, as far as a query concerns it, as it was at the begin."""

    def __init__(self, engine: Engine, query: Query) -> None:
        self.retained = {event.topic: event for event in retained_messages(engine, query)}
        self.others: Sequence[tuple[Table, Row]] = (
            [(table, row) for table in _OF_A_CLIENT for row in engine.rows(table) if row[0] == query.client]
            if query.client is not None
            else []
        )


def retained_messages(engine: Engine, query: Query) -> Iterator[Event]:
    """The retained messages that match a query."""
    accepts = query.accepts()
    for row in engine.rows(RETAINED):
        event = retained_event(row)
        if (
            (accepts is None or accepts(event.topic))
            and query.client in (None, event.client)
            and (query.start is None or event.ts >= query.start)
            and (query.end is None or event.ts < query.end)
            and (query.from_seq is None or event.seq >= query.from_seq)
        ):
            yield event


def retained_event(row: Row) -> Event:
    """The event that a row of retained messages was made of."""
    topic, seq, ts, payload, qos, client, properties, expires = row
    assert isinstance(seq, int)
    assert isinstance(ts, int)
    assert isinstance(qos, int)
    assert isinstance(expires, int)
    assert isinstance(payload, bytes)
    assert isinstance(properties, bytes)
    return Event(seq, ts, str(topic), payload, qos, True, str(client), properties, expires, OS)


def _to_stream(replay: Replay, kept: _Kept, writer: Writer, step: Step) -> Report:
    """Events, and where the format has room for more, what is kept beside them and was not among them."""
    report = Report()
    rest = {event.seq: event for event in kept.retained.values()}
    for events in replay.batches():
        writer.write(events)
        for event in events:
            if event.retain:
                rest.pop(event.seq, None)
        step(replay)
    report.events = replay.count
    if isinstance(writer, JsonWriter):
        for event in rest.values():
            writer.write_other(RETAINED_KIND, to_fields(event))
        for table, row in kept.others:
            writer.write_other(table.name, state_fields(table, row))
        report.retained, report.others = len(kept.retained), len(kept.others)
    writer.close()
    return report


def _to_sqlite(replay: Replay, kept: _Kept, path: Path, step: Step) -> Report:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        # Nobody sees the file before it is whole and fsynced, so nothing has to be undone.
        database.execute("PRAGMA journal_mode=OFF")
        database.execute("PRAGMA synchronous=OFF")
        database.execute(f"PRAGMA application_id={APPLICATION_ID}")
        database.execute(f"PRAGMA user_version={VERSION}")
        database.execute("BEGIN")
        make_tables(database)
        for events in replay.batches():
            database.executemany(INSERT_EVENT, map(to_row, events))
            step(replay)
        database.executemany(INSERT_RETAINED, map(to_row, kept.retained.values()))
        for table, row in kept.others:
            columns = ", ".join(table.key + table.values)
            database.execute(f"CREATE TABLE IF NOT EXISTS {table.name} ({columns})")
            database.execute(f"INSERT INTO {table.name} VALUES ({', '.join('?' * len(row))})", row)
        # An index is made faster, and smaller, once all rows are there.
        database.execute("CREATE INDEX events_by_topic ON events (topic, ts)")
        database.execute("CREATE INDEX events_by_time ON events (time)")
        database.execute("COMMIT")
    return Report(replay.count, len(kept.retained), len(kept.others))


def make_tables(database: sqlite3.Connection) -> None:
    """The tables `events` and `retained`, empty."""
    database.execute(f"CREATE TABLE events ({EVENT_COLUMNS})")
    database.execute(f"CREATE TABLE retained ({RETAINED_COLUMNS})")

"""The commands about history: replay, export, import, query. What a command needs is imported by that command."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Annotated, Final

import typer

from berm.shell import (
    ConfigOption,
    DataOption,
    SetOption,
    asked_to_stop,
    fail,
    interruptible,
    opened_log,
    settings_for,
)

if TYPE_CHECKING:
    from berm.export import Step
    from berm.imports import Checked, Report
    from berm.publish import Target
    from berm.replay import Query, Replay
    from storage.sqlite import SQLiteEngine

STREAMS: Final = ("ndjson", "csv", "parquet")
"""Formats that `berm replay` prints."""

TopicOption = Annotated[
    list[str] | None, typer.Option("--topic", "-t", metavar="FILTER", help="Topic filter. Repeatable; none: all.")
]
SinceOption = Annotated[
    str | None,
    typer.Option("--since", "--from", metavar="T", help="First time, such as 10:00, 5m ago or 2026-03-01T10:00Z."),
]
UntilOption = Annotated[str | None, typer.Option("--until", "--to", metavar="T", help="Time before which it ends.")]
SeqOption = Annotated[
    int | None, typer.Option("--from-seq", metavar="SEQ", min=1, help="First sequence number that is looked at.")
]
LimitOption = Annotated[int | None, typer.Option("--limit", "-n", metavar="N", min=1, help="At most N events.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(short_help="Read history out of the log.")(replay)
    app.command(short_help="Write history to a file.")(export)
    app.command("import", short_help="Put the messages of a file into the log of a stopped node.")(import_)
    app.command(short_help="Ask history in SQL.")(query)


def replay(
    topics: TopicOption = None,
    start: SinceOption = None,
    end: UntilOption = None,
    from_seq: SeqOption = None,
    client: Annotated[
        str | None, typer.Option("--client", metavar="ID", help="Only what this client has published.")
    ] = None,
    limit: LimitOption = None,
    format: Annotated[str, typer.Option("--format", "-f", metavar="FORMAT", help=f"{', '.join(STREAMS)}.")] = "ndjson",
    target: Annotated[
        str | None,
        typer.Option("--publish", metavar="URL", help="Publish to mqtt://[user[:password]@]host[:port], don't print."),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    data: DataOption = None,
) -> None:
    """Read history out of the log, beside a running node; print it as NDJSON, CSV or Parquet, or publish it."""
    if format not in STREAMS:
        fail(f"--format: {format!r} is not a format; there are {', '.join(STREAMS)}", 2)
    if format == "parquet" and sys.stdout.isatty():
        fail("--format parquet is not for a terminal; redirect it to a file", 2)
    asked = _query(topics, start, end, from_seq, client, limit)
    broker = None if target is None else _target(target)
    with opened_log(settings_for(config, overrides, data)) as engine, interruptible(), _judged(engine, asked):
        from berm.replay import Replay

        found = Replay(engine, asked)
        if broker is None:
            _print(found, format)
        else:
            _publish(found, broker)
        found.require()


def export(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write: .sqlite, .ndjson, .csv, .parquet.")],
    format: Annotated[
        str | None,
        typer.Option("--format", "-f", metavar="FORMAT", help="sqlite, ndjson, csv or parquet; otherwise by suffix."),
    ] = None,
    topics: TopicOption = None,
    start: SinceOption = None,
    end: UntilOption = None,
    from_seq: SeqOption = None,
    client: Annotated[
        str | None,
        typer.Option("--client", metavar="ID", help="Everything of this client: its session and its will, too."),
    ] = None,
    limit: LimitOption = None,
    force: ForceOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    data: DataOption = None,
) -> None:
    """Write history and retained messages to a file, beside a running node. The file appears whole or not at all."""
    from berm.export import ExportError, export, format_of

    try:
        kind = format_of(path, format)
    except ValueError as error:
        fail(str(error), 2)
    if client is not None and kind not in ("sqlite", "ndjson"):
        fail(f"{kind} has no room for all that is a client's; write sqlite or ndjson, or use berm replay --client", 2)
    asked = _query(topics, start, end, from_seq, client, limit)
    with opened_log(settings_for(config, overrides, data)) as engine, interruptible(), _judged(engine, asked):
        try:
            with _progress("exporting") as step:
                report = export(engine, asked, path, kind, step, force=force)
        except (ExportError, ImportError) as error:
            fail(str(error), 2)
    print(f"{path}: {report}", file=sys.stderr)


def import_(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="What berm export has written (not Parquet), or a mosquitto.db.")
    ],
    retained: Annotated[
        bool, typer.Option("--retained", help="Set the retained messages, too. Of a mosquitto.db they always are.")
    ] = False,
    now: Annotated[
        bool, typer.Option("--now", help="Give all messages the time of the import, not their own.")
    ] = False,
    skip: Annotated[
        int, typer.Option("--skip", metavar="N", min=0, help="Messages at the begin that are in the log already.")
    ] = 0,
    config: ConfigOption = None,
    overrides: SetOption = None,
    data: DataOption = None,
) -> None:
    """Put the messages of a file into the log of a node that is stopped. All of the file is checked first."""
    from berm.imports import Options, check
    from berm.sources import SourceError

    options = Options(retained, now, skip)
    at = time_ns() // 1000
    with interruptible():
        try:
            checked = check(path, options, at)
        except SourceError as error:
            fail(f"{error}; nothing was changed", 2)
    _import(checked, at, config, overrides, data)


def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One SELECT over the tables events and retained.")],
    topics: TopicOption = None,
    start: SinceOption = None,
    end: UntilOption = None,
    from_seq: SeqOption = None,
    format: Annotated[
        str | None,
        typer.Option("--format", "-f", metavar="FORMAT", help="table, ndjson or csv; otherwise table on a terminal."),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    data: DataOption = None,
) -> None:
    """Ask a range of history in SQL, beside a running node.

    Columns of events and retained: seq, time, topic, qos, retain, client, payload, expires, properties, ts.
    """
    from berm.query import FORMATS, QueryError, asked, written

    shape = format or ("table" if sys.stdout.isatty() else "ndjson")
    if shape not in FORMATS:
        fail(f"--format: {shape!r} is not a format; there are {', '.join(FORMATS)}", 2)
    wanted = _query(topics, start, end, from_seq, None, None)
    with opened_log(settings_for(config, overrides, data)) as engine, interruptible(), _judged(engine, wanted):
        try:
            with _progress("reading") as step, asked(engine, wanted, sql, step) as answer:
                for piece in written(answer, shape):
                    sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()
        except QueryError as error:
            fail(str(error), 2)


def _import(checked: Checked, at: int, config: Path | None, overrides: list[str] | None, data: Path | None) -> None:
    from berm import keys
    from berm.imports import ImportRefusedError, Report, check_log, run
    from berm.parts import sealing
    from berm.progress import shown
    from berm.sources import SourceError
    from berm.status import DATABASE, lock_holder
    from storage.interface import StorageError
    from storage.sqlite import SQLiteEngine

    settings = settings_for(config, overrides, data)
    directory = settings.storage.path
    now = time_ns() // 1000
    if (directory / DATABASE).is_file() and lock_holder(directory) is None:
        # Whoever opens a log to write brings it up to date: it is first read, whether there is anything to write.
        with opened_log(settings) as log:
            try:
                check_log(log, checked)
            except ImportRefusedError as error:
                fail(f"{error}; nothing was changed", 2)
    try:
        engine = SQLiteEngine(directory, policy=sealing(settings), unlock=lambda: keys.vault(settings, now))
    except StorageError as error:
        fail(f"{error}; nothing was imported", 2)
    report = Report()
    try:
        with asked_to_stop() as stopped, shown("importing") as told:
            complete = run(engine, checked, at, report, told, stopped)
    except ImportRefusedError as error:
        fail(f"{error}; nothing was changed", 2)
    except (StorageError, SourceError) as error:
        fail(f"{error}; {report}; {_how_to_go_on(report)}", 1)
    finally:
        engine.close()
    print(f"{directory}: {report}", file=sys.stderr)
    if not complete:
        fail(f"stopped; {_how_to_go_on(report)}", 130)


def _how_to_go_on(report: Report) -> str:
    return f"go on with --skip {report.done}" if report.done else "nothing was changed"


def _query(
    topics: list[str] | None,
    start: str | None,
    end: str | None,
    from_seq: int | None,
    client: str | None,
    limit: int | None,
) -> Query:
    from berm.replay import Query
    from berm.times import parse_time
    from broker.mqtt.errors import ProtocolError
    from broker.mqtt.topic import validate_filter

    for topic in topics or ():
        try:
            validate_filter(topic)
        except ProtocolError as error:
            fail(f"--topic {topic}: {error}", 2)
    now = time_ns() // 1000
    try:
        since = None if start is None else parse_time(start, now)
    except ValueError as error:
        fail(f"--since: {error}", 2)
    try:
        until = None if end is None else parse_time(end, now, since)
    except ValueError as error:
        fail(f"--until: {error}", 2)
    if since is not None and until is not None and until <= since:
        fail(f"--until {end} is not after --since {start}", 2)
    return Query(tuple(topics or ()), since, until, client, limit, from_seq)


@contextmanager
def _judged(engine: SQLiteEngine, asked: Query) -> Iterator[None]:
    """End with one line where a range is not there, or nothing in it matches."""
    from berm.replay import NothingFoundError, RangeError, check_range

    try:
        check_range(engine, asked, time_ns() // 1000)
        yield
    except (RangeError, NothingFoundError) as error:
        fail(str(error), 2)


@contextmanager
def _progress(what: str, *, wanted: bool = True) -> Iterator[Step]:
    """A function that shows how far a replay is."""
    from berm.progress import shown

    with shown(what, wanted=wanted) as told:
        yield lambda found: told(found.position - found.start, found.upto - found.start)


def _print(found: Replay, format: str) -> None:
    from berm.export import writer

    out = sys.stdout.buffer
    try:
        lines = writer(format, out)
    except ImportError as error:
        fail(str(error), 2)
    # Where the events go to a terminal they show themselves how far it is.
    with _progress("reading", wanted=not sys.stdout.isatty()) as step:
        for events in found.batches():
            lines.write(events)
            step(found)
    lines.close()
    out.flush()


def _target(url: str) -> Target:
    from berm.publish import Target

    try:
        return Target.parse(url)
    except ValueError as error:
        fail(f"--publish: {error}", 2)


def _publish(found: Replay, target: Target) -> None:
    from berm.publish import PublishError, Report, publish

    report = Report()
    try:
        publish(found, target, report)
    except PublishError as error:
        fail(f"{error}; {report}", 1)
    print(report, file=sys.stderr)
    if not report.complete:
        raise typer.Exit(1)

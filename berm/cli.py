"""The command line. What a command needs is imported by that command, so that `berm run` carries nothing else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from berm import __version__
from berm.settings import Settings, SettingsError, find, load

if TYPE_CHECKING:
    from berm.publish import Target
    from berm.replay import Query
    from storage.interface import Event
    from storage.sqlite import SQLiteEngine

app = typer.Typer(
    name="berm",
    help="An edge MQTT broker that never loses an acknowledged message.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="FILE", help="TOML file; otherwise ./berm.toml, /etc/berm/berm.toml or the defaults."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.NAME=VALUE", help="Override one setting; the value is TOML. Repeatable."),
]
DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Data directory; then no configuration is read.")
]


def main() -> None:
    """Run the command that the process's arguments ask for, and exit."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        print(f"berm {__version__}")
        raise typer.Exit


@app.callback()
def berm(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """An edge MQTT broker that never loses an acknowledged message."""


@app.command(short_help="Run a node.")
def run(
    config: ConfigOption = None,
    overrides: SetOption = None,
    hints: Annotated[
        bool | None, typer.Option("--hints/--no-hints", help="Say what to try next; otherwise only on a terminal.")
    ] = None,
) -> None:
    """Run a node until SIGTERM or SIGINT."""
    settings = _load(config, overrides)
    from berm.app import main as run_node

    raise typer.Exit(run_node(settings, sys.stdout.isatty() if hints is None else hints))


@app.command(short_help="Tell whether a node could start.")
def check(config: ConfigOption = None, overrides: SetOption = None) -> None:
    """Tell whether a node could start: settings, data directory, processor files."""
    from berm.check import check as examine

    path = find(config)
    settings = _load(path, overrides)
    print(f"settings: {path or 'none found, so the defaults'}")
    problems = 0
    for fact in examine(settings):
        problems += fact.wrong
        print(fact.text, file=sys.stderr if fact.wrong else sys.stdout, flush=True)
    if problems:
        raise typer.Exit(2)
    print("ok")


@app.command(short_help="Read history out of the log.")
def replay(
    topics: Annotated[
        list[str] | None, typer.Option("--topic", "-t", metavar="FILTER", help="Topic filter. Repeatable; none: all.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="T", help="First time, such as 10:00, -5m or 2026-03-01T10:00Z.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="T", help="Time before which it ends.")] = None,
    client: Annotated[
        str | None, typer.Option("--client", metavar="ID", help="Only what this client has published.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", metavar="N", min=1, help="At most N events.")] = None,
    target: Annotated[
        str | None,
        typer.Option("--publish", metavar="URL", help="Publish to mqtt://[user[:password]@]host[:port], don't print."),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    data: DataOption = None,
) -> None:
    """Read history out of the log, beside a running node: one JSON object a line, or published to a broker."""
    from berm.replay import select

    query = _query(topics or [], start, end, client, limit)
    broker = None if target is None else _target(target)
    with _engine(_data(config, overrides, data)) as engine, _interruptible():
        events = select(engine, query)
        if broker is None:
            _print_events(events)
        else:
            _publish(events, broker)


@app.command(short_help="Tell what is in the log, and who reads it.")
def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    data: DataOption = None,
) -> None:
    """Tell what is in the log, who reads it and how far behind each reader is, running node or not."""
    from berm.status import gather, to_json, to_text

    directory = _data(config, overrides, data)
    with _engine(directory) as engine, _interruptible():
        found = gather(engine, directory)
        sys.stdout.buffer.write(to_json(found) if as_json else to_text(found).encode())
        sys.stdout.flush()


@app.command(short_help="Add, change or delete a user in a password file.")
def passwd(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The password file; one that is not there is made.")],
    user: Annotated[str, typer.Argument(metavar="USER", help="The user name.")],
    delete: Annotated[bool, typer.Option("--delete", help="Delete the user.")] = False,
    scram: Annotated[
        bool, typer.Option("--scram", help="Let the user log in by SCRAM-SHA-256, too, which never sends the password.")
    ] = False,
    stdin: Annotated[bool, typer.Option("--stdin", help="Read the password from the first line of stdin.")] = False,
) -> None:
    """Add, change or delete a user in a password file; ask for the password. A running node reads the file anew."""
    from berm import passwd as file_of

    try:
        if delete:
            print(file_of.delete(file, user))
        else:
            print(file_of.set_password(file, user, _password(user, stdin), scram))
    except file_of.PasswdError as error:
        _fail(str(error), 1)


def _password(user: str, stdin: bool) -> str:
    if stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        _fail("there is no terminal to ask for the password; give it on stdin, with --stdin", 2)
    password: str = typer.prompt(f"Password of {user}", hide_input=True, confirmation_prompt=True, err=True)
    return password


def _load(config: Path | None, overrides: list[str] | None) -> Settings:
    try:
        return load(find(config), overrides or ())
    except SettingsError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None


def _data(config: Path | None, overrides: list[str] | None, data: Path | None) -> Path:
    return _load(config, overrides).storage.path if data is None else data


def _query(topics: list[str], start: str | None, end: str | None, client: str | None, limit: int | None) -> Query:
    from berm.replay import Query
    from berm.times import parse_time
    from broker.mqtt.errors import ProtocolError
    from broker.mqtt.topic import validate_filter

    for topic in topics:
        try:
            validate_filter(topic)
        except ProtocolError as error:
            _fail(f"--topic {topic}: {error}", 2)
    now = time_ns() // 1000
    try:
        since = None if start is None else parse_time(start, now)
    except ValueError as error:
        _fail(f"--from: {error}", 2)
    try:
        until = None if end is None else parse_time(end, now, since)
    except ValueError as error:
        _fail(f"--to: {error}", 2)
    if since is not None and until is not None and until <= since:
        _fail(f"--to {end} is not after --from {start}", 2)
    return Query(tuple(topics), since, until, client, limit)


def _target(url: str) -> Target:
    from berm.publish import Target

    try:
        return Target.parse(url)
    except ValueError as error:
        _fail(f"--publish: {error}", 2)


@contextmanager
def _engine(data: Path) -> Iterator[SQLiteEngine]:
    """The log in a data directory, to be read only."""
    from berm.status import DATABASE
    from broker.mqtt.errors import ProtocolError
    from storage.interface import StorageError
    from storage.sqlite import SQLiteEngine

    if not (data / DATABASE).is_file():
        _fail(f"{data / DATABASE}: there is no log; name a node's data directory with --data, or its --config", 1)
    try:
        engine = SQLiteEngine(data, readonly=True)
        try:
            yield engine
        finally:
            engine.close()
    except (StorageError, ProtocolError) as error:
        _fail(str(error), 1)
    except PermissionError as error:
        _fail(f"{error.filename}: cannot be read: {error.strerror}", 1)


@contextmanager
def _interruptible() -> Iterator[None]:
    """End quietly where the reader of stdout has gone (0), or at Ctrl-C (130)."""
    try:
        yield
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it ends, and must not fail at that.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _print_events(events: Iterator[Event]) -> None:
    from berm.replay import to_json

    out = sys.stdout.buffer
    for event in events:
        out.write(to_json(event))
    out.flush()


def _publish(events: Iterator[Event], target: Target) -> None:
    from berm.publish import PublishError, Report, publish

    report = Report()
    try:
        publish(events, target, report)
    except PublishError as error:
        _fail(f"{error}; {report}", 1)
    print(report, file=sys.stderr)
    if not report.complete:
        raise typer.Exit(1)


def _fail(problem: str, code: int) -> NoReturn:
    print(f"berm: {problem}", file=sys.stderr)
    raise typer.Exit(code)

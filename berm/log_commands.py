"""The commands `berm log ...`: is the log of a data directory sound, and what can be done where it isn't.

What a command needs is imported by that command.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

from berm.backup import LimitOption, rate
from berm.shell import ConfigOption, DataOption, SetOption, fail, interruptible, settings_for

if TYPE_CHECKING:
    from berm.settings import Settings
    from storage.datakey import Keys

_SHOWN: Final = 20
"""Segments that are listed for people: the youngest."""
_WIDTH: Final = 160
"""Columns of what is not printed to a terminal."""

log_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.add_typer(log_app, name="log", short_help="Look after the log: what it takes, is it sound, and repair it.")


@log_app.callback()
def log() -> None:
    """Look after the log of a data directory."""


@log_app.command(short_help="Read all of the log, and tell what is damaged.")
def verify(
    deep: Annotated[
        bool, typer.Option("--deep", help="Have SQLite examine every page, and decode every event.")
    ] = False,
    limit: LimitOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    data: DataOption = None,
) -> None:
    """Read all of the log, beside a running node, and tell what is damaged and which sequence numbers that costs.

    The exit code is 1 where something is.
    """
    from berm.progress import shown
    from storage.database import DATABASE
    from storage.pace import Pace
    from storage.verify import examine_all, ranges_of

    try:
        pace = Pace(0 if limit is None else rate(limit))
    except ValueError as error:
        fail(f"--limit: {error}", 2)
    settings = settings_for(config, overrides, data)
    directory = settings.storage.path
    if not (directory / DATABASE).exists():
        fail(f"{directory / DATABASE}: there is no log; name a node's data directory with --data, or its --config", 2)
    keys = _keys(settings)
    with interruptible(), shown("verifying") as told:
        report = examine_all(directory, deep, keys, pace, told)
    for note in report.notes:
        print(f"note: {note}")
    for problem in report.problems:
        print(f"berm: {problem}", file=sys.stderr)
    print(
        f"{directory}: {report.segments} segments, {report.bytes / 1_000_000:,.1f} MB; {report.rows} events beside them"
    )
    if report.lost:
        print(f"lost: seqs {ranges_of(sorted(report.lost))}")
    if report.problems:
        raise typer.Exit(1)
    print("ok")


@log_app.command(short_help="Repair the log of a stopped node.")
def repair(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be done, and change nothing.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    data: DataOption = None,
) -> None:
    """Repair the log of a stopped node: set aside what is damaged, and put in its place what can be read of it.

    The exit code is 1 where something could not be repaired.
    """
    from berm.progress import shown
    from storage.interface import StorageError
    from storage.repair import repair
    from storage.verify import ranges_of

    settings = settings_for(config, overrides, data)
    directory = settings.storage.path
    keys = _keys(settings)
    with shown("repairing") as told:
        try:
            done = repair(directory, keys, dry_run, told)
        except StorageError as error:
            fail(str(error), 2)
    for line in done.lines:
        print(line)
    if done.lost:
        print(f"lost: seqs {ranges_of(sorted(done.lost))}")
    if not done.lines:
        print(f"{directory}: nothing is damaged")
    if done.left:
        raise typer.Exit(1)


@log_app.command(short_help="Tell what the log takes on the disk, and how long there will be room.")
def stat(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    data: DataOption = None,
) -> None:
    """Tell how many segments there are, of which size, how fast the log grows, and how long there will be room.

    It works beside a running node. With --data nothing is known of the bounds in its settings.
    """
    from time import time_ns

    from berm.shell import opened_log
    from berm.stat import facts, gather, size_of, to_json

    settings = settings_for(config, overrides, data)
    storage = settings.storage
    with opened_log(settings) as engine, interruptible():
        found = gather(engine, storage.path, storage.retention, storage.low_space, time_ns() // 1000)
        if as_json:
            sys.stdout.buffer.write(to_json(found))
            sys.stdout.flush()
            return
        from rich.console import Console
        from rich.table import Table

        console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _WIDTH)
        if found.segments:
            table = Table(box=None, pad_edge=False)
            for name in ("segment", "from", "to", "events", "size"):
                table.add_column(name, no_wrap=True, justify="right" if name in ("events", "size") else "left")
            for each in found.segments[-_SHOWN:]:
                times = (each.first_time or "unreadable", each.last_time or "unreadable")
                table.add_row(each.name, *times, f"{each.events:,}", size_of(each.bytes))
            console.print(table)
        for name, words in facts(found):
            console.print(f"{name:<10}  {words}", markup=False)


def _keys(settings: Settings) -> Keys | None:
    """What the data are encrypted with; None: nothing is, or there is no key at hand."""
    from berm.keys import reader
    from storage.keysource import KeysError

    try:
        found = reader(settings)
    except KeysError as error:
        print(f"berm: {error}", file=sys.stderr)
        return None
    return None if found is None else found.key

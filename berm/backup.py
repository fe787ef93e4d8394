"""The commands `berm backup` and `berm restore`. What they need is imported by them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Annotated, Final

import typer

from berm.shell import ConfigOption, DataOption, SetOption, data_directory, fail, interruptible

if TYPE_CHECKING:
    from storage.backup import Report

_RATE: Final = re.compile(r"(\d+(?:\.\d+)?) ?([kMG]?)B?(?:/s)?", re.ASCII)
_UNITS: Final = {"": 1, "k": 1_000, "M": 1_000_000, "G": 1_000_000_000}

LimitOption = Annotated[
    str | None,
    typer.Option("--limit", metavar="RATE", help="Bytes per second at most, such as 20MB/s; otherwise all there is."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(short_help="Back up a node, beside it as it runs.")(backup)
    app.command(short_help="Put a backup into a new data directory.")(restore)


def backup(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where backups are; it is made where it is not.")],
    keep: Annotated[
        int, typer.Option("--keep", metavar="N", min=0, help="Remove all but the last N backups; 0: none.")
    ] = 0,
    limit: LimitOption = None,
    link: Annotated[
        bool, typer.Option("--link", help="Link segments, don't copy them; DIR must be on the same file system.")
    ] = False,
    damaged: Annotated[bool, typer.Option("--damaged", help="Files that were set aside as damaged, too.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Read all of the backup again, and compare.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    data: DataOption = None,
) -> None:
    """Back up a data directory, beside a running node. Segments that are in DIR already are not copied again."""
    from berm import __version__
    from berm.progress import shown
    from storage.backup import Options, back_up
    from storage.manifest import BackupError, NotOursError

    try:
        options = Options(0 if limit is None else rate(limit), keep, link, damaged, check)
    except ValueError as error:
        fail(f"--limit: {error}", 2)
    source = data_directory(config, overrides, data)
    with interruptible(), shown("backing up") as told:
        try:
            report = back_up(source, directory, time_ns() // 1000, __version__, options, told)
        except NotOursError as error:
            fail(str(error), 2)
        except BackupError as error:
            fail(str(error), 1)
    for problem in report.problems:
        print(f"berm: {problem}", file=sys.stderr)
    print(_told(report, directory))
    if report.problems:
        raise typer.Exit(1)


def restore(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where backups are.")],
    to: Annotated[Path, typer.Option("--to", metavar="DATADIR", help="The data directory to make.")],
    at: Annotated[
        str, typer.Option("--at", metavar="T", help="The last backup up to this time, such as 2026-03-01T10:00Z.")
    ] = "latest",
) -> None:
    """Put a backup into a new data directory. All checksums are verified before; nothing is overwritten."""
    from berm.progress import shown
    from berm.times import format_time, parse_time
    from storage.manifest import BackupError, NotOursError
    from storage.restore import choose, restore

    now = time_ns() // 1000
    try:
        when = None if at == "latest" else parse_time(at, now)
    except ValueError as error:
        fail(f"--at: {error}", 2)
    with interruptible(), shown("verifying") as told:
        try:
            restored = restore(directory, choose(directory, when), to, now, told)
        except NotOursError as error:
            fail(str(error), 2)
        except BackupError as error:
            fail(str(error), 1)
    manifest = restored.manifest
    print(f"{to}: restored {_log(manifest.first, manifest.last)}, as of {format_time(manifest.taken)}")
    print(f"{to}: the log goes on above seq {restored.reserved}")


def rate(text: str) -> int:
    """Bytes per second.

    Raises:
        ValueError: it is no rate.
    """
    found = _RATE.fullmatch(text)
    if not found or not (bytes_per_second := int(float(found[1]) * _UNITS[found[2]])):
        raise ValueError(f"{text!r} is no rate; write it like 20MB/s or 500kB/s")
    return bytes_per_second


def _told(report: Report, directory: Path) -> str:
    manifest = report.manifest
    parts = [
        f"{directory / manifest.name}: {_log(manifest.first, manifest.last)}",
        f"{report.written / 1_000_000:,.1f} MB written",
        f"{report.reused} segments were there",
    ]
    if report.removed:
        parts.append(f"{report.removed} earlier backups removed")
    return ", ".join(parts)


def _log(first: int, last: int) -> str:
    return f"seqs {first} to {last}" if last else "a log without events"

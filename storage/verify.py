"""Reads all of a data directory, beside a running node, and tells what is wrong with it and which seqs that costs.

The rules:

1. Nothing is changed, and nothing is held for long: the database is read in short transactions. Only `deep` has SQLite
   examine it in one, which keeps the WAL from being used anew meanwhile.
2. What retention or an erasure has taken away meanwhile is no problem.
3. A problem is what costs something, or will. All else that an operator may want to know is a note.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from storage import schema
from storage.catalog import DAMAGED, DIRECTORY, seqs_in
from storage.database import DATABASE, SUSPECT, examine, look_through, open_reader
from storage.interface import StorageError
from storage.keysource import COPY, KEYS, is_encrypted
from storage.manifest import Told
from storage.sealed import Sealed
from storage.segment import Damage, Segment, verify
from storage.segment_file import SegmentLocked
from storage.segment_rebuild import Range

if TYPE_CHECKING:
    from storage.datakey import Keys

_READ: Final = 4096
_FOREVER: Final = float("inf")
_SHOWN: Final = 8


@dataclass(slots=True)
class Report:
    """What was found."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lost: list[Range] = field(default_factory=list)
    """Seqs that can't be read; there may be others among them that never were an event's."""
    rows: int = 0
    segments: int = 0
    bytes: int = 0
    """Of the segments."""


def ranges_of(lost: list[Range]) -> str:
    """Some of them, for people."""
    shown = ", ".join(f"{first} to {last}" for first, last in lost[:_SHOWN])
    return f"{shown} and {len(lost) - _SHOWN} more ranges" if len(lost) > _SHOWN else shown


def examine_all(
    data: Path,
    deep: bool = False,
    keys: Keys | None = None,
    pace: Callable[[int], None] = lambda size: None,
    told: Told = lambda done, total: None,
) -> Report:
    """Examine a data directory. `pace` is told how many bytes were read, and may take its time."""
    report = Report()
    _database(data, deep, report)
    sealed = Sealed(data / DIRECTORY)
    try:
        files = sealed.files()
    except OSError as error:
        report.problems.append(f"{error.filename}: {error.strerror}")
        files = {}
    total = sum(size for _, _, size in files.values())
    for name, key in sorted(files.items()):
        _segment(data / DIRECTORY / name, deep, keys, report)
        report.bytes += key[2]
        pace(key[2])
        told(report.bytes, total)
    _chain(sorted(files), report)
    _keys(data, report)
    for path in sorted((*data.glob(f"*{DAMAGED}*"), *(data / DIRECTORY).glob(f"*{DAMAGED}*"))):
        report.notes.append(f"{path} was set aside as damaged; it can be removed once nobody needs it")
    return report


def _database(data: Path, deep: bool, report: Report) -> None:
    path = data / DATABASE
    if (data / SUSPECT).exists():
        report.problems.append(f"{path}: SQLite has reported damage, and the next start examines every page")
    try:
        with closing(open_reader(path)) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version < schema.VERSION:
                report.notes.append(f"{path} has schema {version}; the next start brings it to {schema.VERSION}")
            layout = schema.LAYOUTS[version]
            sound = not (deep and not examine(connection, layout)) and look_through(
                connection, layout, _FOREVER, is_encrypted(data)
            )
            if not sound:
                report.problems.append(f"{path} is damaged; `berm log repair` reads from it what can be read")
            else:
                (report.rows,) = connection.execute("SELECT count(*) FROM tail").fetchone()
    except sqlite3.Error as error:
        report.problems.append(f"{path}: {error}; `berm log repair` reads from it what can be read")
    except StorageError as error:
        report.problems.append(str(error))


def _segment(path: Path, deep: bool, keys: Keys | None, report: Report) -> None:
    try:
        found = verify(path, keys)
        if deep and not found:
            found = _decoded(path, keys)
    except SegmentLocked as error:
        report.problems.append(str(error))
        return
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return  # retention has taken it
        seqs = seqs_in(path.name)
        report.problems.append(str(error))
        if seqs:
            report.lost.append(seqs)
        return
    report.segments += 1
    for damage in found:
        lost = list(damage.ranges)
        report.lost += lost
        cost = f"; {damage.events} events are lost, with seqs in {ranges_of(lost)}" if lost else ""
        report.problems.append(f"{path}: {damage.reason}{cost}")


def _decoded(path: Path, keys: Keys | None) -> list[Damage]:
    """Have every event made, and counted."""
    with Segment.open(path, keys=keys) as segment:
        header = segment.info.header
        after, number = header.first - 1, 0
        while after < header.last:
            events, after = segment.read(after, header.last, _READ)
            number += len(events)
    wrong = f"it has {number} events where it should have {header.events}"
    return (
        [] if number == header.events else [Damage(path, wrong, header.events - number, ((header.first, header.last),))]
    )


def _chain(names: list[str], report: Report) -> None:
    before = None
    for first, last in _ranges(names):
        if before is not None and first <= before:
            report.notes.append(f"two segments have the seqs {first} to {min(before, last)}; each event is served once")
        before = last if before is None else max(before, last)


def _ranges(names: list[str]) -> Iterator[Range]:
    for name in names:
        if seqs := seqs_in(name):
            yield seqs


def _keys(data: Path, report: Report) -> None:
    if not is_encrypted(data):
        return
    from storage.keys import KeysFile  # few directories are encrypted

    revisions = []
    for path in (data / KEYS, data / COPY):
        try:
            revisions.append(KeysFile.unpack(path.read_bytes(), path).revision)
        except OSError as error:
            report.problems.append(f"{path}: {error.strerror}; the next start makes it anew")
        except StorageError as error:
            report.problems.append(str(error))
    if len(set(revisions)) > 1:
        report.notes.append(f"{data / KEYS} and its copy differ; the next start makes them alike")

"""Repairs the data directory of a stopped node: what is damaged is set aside, what can be read of it takes its place.

The rules:

1. Nothing is thrown away: whatever is replaced stays under a name that ends in `.damaged-` and the time.
2. A file takes the place of another one in one step, once it is complete and on the disk. Killed at any point, the
   directory is as it was or repaired.
3. What can't be read at the moment, or for lack of a key, is left as it is.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Final

from storage.catalog import DAMAGED, DIRECTORY, readable, seqs_in
from storage.database import (
    DATABASE,
    SALVAGED,
    SUSPECT,
    finish_replacing,
    hold,
    is_sound,
    replace,
    salvaged_of,
)
from storage.files import sync_directory
from storage.interface import Event, StorageError
from storage.manifest import Told
from storage.salvage import describe, salvage
from storage.sealed import Sealed
from storage.segment import Segment, verify
from storage.segment_file import SegmentDamaged, SegmentLocked
from storage.segment_rebuild import Range
from storage.segment_writer import PARTIAL, remove_partial, write_segment

if TYPE_CHECKING:
    from storage.datakey import Keys

_READ: Final = 512


@dataclass(slots=True)
class Repaired:
    """What was done, or would be."""

    lines: list[str] = field(default_factory=list)
    lost: list[Range] = field(default_factory=list)
    left: int = 0
    """Files that could not be repaired."""


def repair(
    data: Path, keys: Keys | None = None, dry_run: bool = False, told: Told = lambda done, total: None
) -> Repaired:
    """Repair a data directory that no node runs on; with `dry_run`, tell what would be done.

    Raises:
        StorageError: a node runs on it, or it can't be read or written.
    """
    if not any((data / name).exists() for name in (DATABASE, DIRECTORY, SALVAGED)):
        raise StorageError(f"{data}: there is no log; name a node's data directory")
    report = Repaired()
    try:
        lock = hold(data)
    except OSError as error:
        raise StorageError(f"{error.filename or data}: {error.strerror}; see whether it may be written") from error
    try:
        _repair_database(data, dry_run, report)
        directory = data / DIRECTORY
        if directory.is_dir() and not dry_run:
            remove_partial(directory)
        names = sorted(Sealed(directory).files())
        for number, name in enumerate(names, 1):
            _repair_segment(directory / name, keys, dry_run, report)
            told(number, len(names))
    except OSError as error:
        raise StorageError(
            f"repairing {data}: {error.filename or ''}: {error.strerror}; what was not repaired is as it was; "
            "see whether there is room on the disk and whether it is sound"
        ) from error
    except sqlite3.Error as error:
        raise StorageError(
            f"repairing {data / DATABASE}: {error}; it is as it was; see whether there is room on the disk"
        ) from error
    finally:
        os.close(lock)
    return report


def _repair_database(data: Path, dry_run: bool, report: Repaired) -> None:
    path = data / DATABASE
    if not dry_run:
        finish_replacing(path)
    if is_sound(path):
        if not dry_run:
            (data / SUSPECT).unlink(missing_ok=True)
        return
    if dry_run:
        partial = salvaged_of(path).with_name(f"{salvaged_of(path).name}{PARTIAL}")
        try:
            found = salvage(path, partial)
        finally:
            partial.unlink(missing_ok=True)
        report.lines += [f"{path} is damaged", *(f"{path}: {line}" for line in describe(found))]
        report.lost += found.lost
        return
    moved, lines, lost = replace(path)
    (data / SUSPECT).unlink(missing_ok=True)
    report.lines += [f"{path} was damaged, and is now {moved.name}", *(f"{path}: {line}" for line in lines)]
    report.lost += lost


def _repair_segment(path: Path, keys: Keys | None, dry_run: bool, report: Repaired) -> None:
    try:
        damages = verify(path, keys)
    except SegmentDamaged:
        if not readable(path):
            report.lines.append(f"{path} can't be read, and was left as it is; see whether the disk is sound")
            report.left += 1
            return
        report.lost += [seqs for seqs in (seqs_in(path.name),) if seqs]
        if dry_run:
            report.lines.append(f"{path} is damaged as a whole, and would be set aside")
        else:
            moved = _aside(path)
            path.rename(moved)
            sync_directory(path.parent)
            report.lines.append(f"{path} was damaged as a whole, and is now {moved.name}")
        return
    except StorageError as error:
        report.lines.append(f"{error}; it was left as it is")
        report.left += 1
        return
    if not damages:
        return
    lost = [each for damage in damages for each in damage.ranges]
    report.lost += lost
    number = sum(damage.events for damage in damages)
    cost = f"{number} events are lost" if lost else "no event is lost"
    if dry_run:
        report.lines.append(f"{path}: {damages[0].reason}; it would be written anew; {cost}")
        return
    moved = _rewrite(path, keys)
    report.lines.append(
        f"{path}: {damages[0].reason}; it was written anew, and what it was is now {moved.name}; {cost}"
    )


def _rewrite(path: Path, keys: Keys | None) -> Path:
    """Put what can be read of a segment in its place; where it is now.

    Raises:
        OSError, StorageError: it can't be written.
    """
    moved, new = _aside(path), path.with_name(f"{path.name}.new{PARTIAL}")
    new.unlink(missing_ok=True)
    with Segment.open(path, keys=keys) as segment:
        number = segment.info.header.key
        key = keys(number) if keys is not None and number else None
        if number and key is None:
            raise SegmentLocked(f"{path} is encrypted, and its key isn't at hand", segment.info)
        try:
            write_segment(new, _events(segment), key=key)
        except ValueError:  # there is not one event left
            path.rename(moved)
            sync_directory(path.parent)
            return moved
    try:
        os.link(path, moved)
    except OSError:  # not every file system has links
        shutil.copyfile(path, moved)
    os.replace(new, path)
    sync_directory(path.parent)
    return moved


def _events(segment: Segment) -> Iterator[Event]:
    header = segment.info.header
    after = header.first - 1
    while after < header.last:
        events, after = segment.read(after, header.last, _READ)
        yield from events


def _aside(path: Path) -> Path:
    """A name that nothing has."""
    stamp = int(time())
    while (moved := path.with_name(f"{path.name}{DAMAGED}{stamp}")).exists():
        stamp += 1
    return moved

"""Puts a backup into a data directory that has nothing in it yet.

The rules:

1. Every checksum is verified before anything is written, and once more of what is written.
2. A data directory is there whole or not at all: it is made beside its place, fsynced, and then renamed.
3. A seq means one event for ever, also those that were given out after the backup was taken: other brokers and
   programs have seen them. So the log goes on far above: as many seqs further as µs have passed since, which is more
   than any node gives out, and 2^40 more, for clocks that were wrong. The numbering (`epoch`) stays, so that the events
   that are in the backup are known again by whom they were forwarded to.
4. Who had taken everything that is in the backup has taken everything below the new seqs: nothing is between.
5. Data keys are followed by a new one at the first start. What the node wrote after the backup was taken may have been
   encrypted with the same, in runs with the same epochs.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from hashlib import sha256
from pathlib import Path
from time import gmtime, strftime
from typing import Final

from storage import schema
from storage.catalog import DIRECTORY
from storage.database import DATABASE, make_directory
from storage.files import sync_directory, sync_file
from storage.interface import CURSORS, META, SESSIONS, SHARES
from storage.keysource import KEYS, RENEW
from storage.manifest import PIECE, BackupError, Manifest, NotOursError, Told, faults, held, manifests

MARGIN: Final = 1 << 40
"""Seqs that are left out whatever the clock says."""
RESERVED: Final = "reserved"
"""The row of META up to which seqs may have been given out: see log.py."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored, and above which seq the log goes on."""

    manifest: Manifest
    reserved: int


def choose(source: Path, at: int | None) -> Manifest:
    """The last backup that was taken at this time or before it; None: the last one.

    Raises:
        NotOursError: there is none.
    """
    found, problems = manifests(source)
    if not found:
        none = f"{source} is not a backup: there is no manifest in it; name the directory that was given to berm backup"
        raise NotOursError(problems[0] if problems else none)
    if at is None:
        return found[-1]
    before = [manifest for manifest in found if manifest.taken <= at]
    if not before:
        raise NotOursError(
            f"{source} has no backup of that time or before it: the first was taken {_time(found[0].taken)}"
        )
    return before[-1]


def restore(source: Path, manifest: Manifest, data: Path, now: int, told: Told | None = None) -> Restored:
    """Make a data directory of a backup, at `now` (µs since the epoch).

    Raises:
        BackupError: the backup is damaged, or the directory can't be made. Nothing was changed.
        NotOursError: what was named isn't what it must be. Nothing was changed.
    """
    told = told or (lambda done, total: None)
    _refuse(data)
    if manifest.schema > schema.VERSION:
        raise NotOursError(
            f"{source / manifest.name} is of a newer Berm ({manifest.version}, schema {manifest.schema}); "
            "install that version; nothing was changed"
        )
    with held(source, alone=False):
        if wrong := faults(source, manifest, told):
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise BackupError(f"{wrong[0]}{more}; nothing was changed; restore another backup with --at")
        data = data.absolute()
        made = data.with_name(f".{data.name}.restoring")
        try:
            make_directory(data.parent)
            descriptor = _begin(made)
            try:
                reserved = _fill(source, manifest, made, now)
                _own(data, made)
                made.rename(data)
                sync_directory(data.parent)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise BackupError(
                f"restoring to {data}: {error.filename or made}: {error.strerror}; {data} was not changed; see whether "
                "there is room, and name a directory that is not there yet, and no mount point"
            ) from error
        except sqlite3.Error as error:
            raise BackupError(f"restoring to {data}: {made / DATABASE}: {error}; {data} was not changed") from error
    return Restored(manifest, reserved)


def _refuse(data: Path) -> None:
    """Go no further where there is something.

    Raises:
        NotOursError: there is.
    """
    try:
        there: Sequence[str] = os.listdir(data)
    except FileNotFoundError:
        return
    except OSError as error:
        raise NotOursError(f"{data}: {error.strerror}; name a directory that is not there yet") from None
    if there:
        raise NotOursError(
            f"{data} is not empty (it has {sorted(there)[0]}), and nothing is overwritten; "
            "name a directory that is not there yet"
        )


def _begin(made: Path) -> int:
    """Make the directory, in the place of what a restore has left that was killed; a descriptor that holds it.

    Raises:
        BackupError: another restore is under way.
        OSError: it can't be made.
    """
    if made.exists():
        left = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flock(left, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            raise BackupError(f"{made} is being written by another restore; wait for its end") from None
        finally:
            os.close(left)
        shutil.rmtree(made)
    made.mkdir(0o750)
    descriptor = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    flock(descriptor, LOCK_EX | LOCK_NB)
    return descriptor


def _fill(source: Path, manifest: Manifest, made: Path, now: int) -> int:
    """Write all files, and fsync them; up to where seqs are not given out again."""
    (made / DIRECTORY).mkdir(0o750)
    for entry in manifest.files:
        path = made / entry.name
        if _copy(source / entry.file, path) != entry.sha256:
            raise BackupError(f"{source / entry.file} has changed while it was read; see whether its disk is sound")
        if entry.name == KEYS:
            (made / RENEW).touch(0o600)
    reserved = _go_on_above(made / DATABASE, manifest, now)
    for directory in (made / DIRECTORY, made):
        for path in directory.iterdir():
            sync_file(path)
        sync_directory(directory)
    return reserved


def _copy(source: Path, path: Path) -> str:
    checksum = sha256()
    mode = 0o600 if path.name.startswith(KEYS) else 0o640
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as copy, source.open("rb") as file:
        while piece := file.read(PIECE):
            checksum.update(piece)
            copy.write(piece)
    return checksum.hexdigest()


def _go_on_above(database: Path, manifest: Manifest, now: int) -> int:
    """Have the log go on above all seqs that may have been given out, and those who have all of it go on there."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        row = connection.execute(f"SELECT value FROM {META.name} WHERE name = ?", (RESERVED,)).fetchone()
        given = max(manifest.last, int(row[0]) if row else 0)
        reserved = given + max(0, now - manifest.taken) + MARGIN
        record = f"{_time(now)}, as of {_time(manifest.taken)}"
        put = f"INSERT OR REPLACE INTO {META.name} VALUES (?, ?)"
        connection.executemany(put, ((RESERVED, str(reserved)), ("restored", record)))
        for table in (SESSIONS, SHARES, CURSORS):
            connection.execute(f"UPDATE {table.name} SET position = ? WHERE position >= ?", (reserved, manifest.last))
        connection.execute("COMMIT")
    return reserved


def _own(data: Path, made: Path) -> None:
    """Give all of it to the owner of the empty directory whose place it takes."""
    if os.geteuid() or not data.exists():
        return
    owner = data.stat()
    for path in (made, *made.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)


def _time(ts: int) -> str:
    return strftime("%Y-%m-%dT%H:%M:%SZ", gmtime(ts // 1_000_000))

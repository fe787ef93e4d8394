"""Backs up a data directory, beside a running node: the database as of one commit, and the segments that belong to it.

The rules:

1. Nothing of the node's is locked or changed, and it waits for nobody. How its database is copied: see snapshot.py.
2. Segments never change, so those that the backup has already are not copied again. One is known by its seqs and its
   id, which is random: an erasure writes another one.
3. What retention removes meanwhile is gone for the node as well. After the copy the directory is listed again, until
   nothing has come that stands in the place of what was there.
4. Keys are copied last: what is encrypted with a key was written after that key was.
5. The manifest is written last, once all that it names has been fsynced. Killed before that, the backups that there
   were are whole, and the next one makes use of what was copied.
6. A sector of a segment that can't be read doesn't keep the rest from being copied: it is filled up with NUL bytes,
   which the segment's checksums tell.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Final

from storage import schema
from storage.catalog import DAMAGED, DIRECTORY, seqs_in
from storage.database import DATABASE, LOCK, make_directory
from storage.files import sync_directory, sync_file
from storage.keysource import COPY, KEYS
from storage.manifest import PIECE, BackupError, Entry, Manifest, NotOursError, Told, digest, faults, held, manifests
from storage.pace import Pace
from storage.sealed import Key, Sealed, header_of
from storage.segment_writer import PARTIAL
from storage.snapshot import Snapshot, copy_database

_OURS: Final = re.compile(r"(database|keys|quarantine)-\d{8}T\d{6}\.\d{6}Z\..+")
"""Files of one manifest only."""
_SEGMENT: Final = re.compile(r"\d{20}-\d{20}\..+\.segment")
_SECTOR: Final = 4096


@dataclass(frozen=True, slots=True)
class Options:
    """How to back up. `limit` is in bytes per second, 0 for none; `keep` in backups, 0 for all."""

    limit: int = 0
    keep: int = 0
    link: bool = False
    """Link segments instead of copying them: no room is taken, and no protection from a broken disk given."""
    quarantined: bool = False
    """Files that were set aside as damaged, too."""
    check: bool = False
    """Read all of the backup again at the end."""


@dataclass(slots=True)
class Report:
    """What was done. `copied` and `reused` are files, `written` is in bytes."""

    manifest: Manifest
    copied: int = 0
    reused: int = 0
    written: int = 0
    removed: int = 0
    """Earlier backups that were removed."""
    problems: list[str] = field(default_factory=list)
    """What is not in it, or not as it should be."""


def back_up(
    data: Path, target: Path, now: int, version: str, options: Options = Options(), told: Told | None = None
) -> Report:
    """Back up a data directory to another one, at `now` (µs since the epoch), by this version of Berm.

    Raises:
        BackupError: it can't be done. Earlier backups are whole.
        NotOursError: one of the directories isn't what it must be.
    """
    if not (data / DATABASE).is_file():
        raise NotOursError(f"{data / DATABASE}: there is no log; name a node's data directory")
    inside = data.resolve()
    if inside == target.resolve() or inside in target.resolve().parents:
        raise NotOursError(
            f"{target} is in the data directory {data}, and would be lost with it; name another directory"
        )
    if any((target / name).exists() for name in (DATABASE, LOCK)):
        raise NotOursError(f"{target} is a node's data directory; name another directory for the backup")
    try:
        make_directory(target)
        make_directory(target / DIRECTORY)
    except OSError as error:
        raise NotOursError(
            f"{error.filename or target}: {error.strerror}; name a directory that can be written"
        ) from None
    with held(target, alone=True):
        try:
            return _Backup(data, target, now, version, options, told).run()
        except OSError as error:
            raise BackupError(
                f"backing up {data} to {target}: {error.filename or ''} {error.strerror}; earlier backups are whole; "
                "see whether there is room on the disk and whether it is sound"
            ) from error
        except sqlite3.Error as error:
            raise BackupError(
                f"backing up {data / DATABASE}: {error}; earlier backups are whole; "
                "`berm log verify` tells whether it is damaged"
            ) from error


class _Backup:
    def __init__(self, data: Path, target: Path, now: int, version: str, options: Options, told: Told | None) -> None:
        self._data = data
        self._target = target
        self._segments = data / DIRECTORY
        self._now = now
        self._version = version
        self._options = options
        self._told = told or (lambda done, total: None)
        self._pace = Pace(options.limit)
        self._done = self._total = 0
        self._earlier, self._unknown = manifests(target)
        self._known = {entry.file: entry for manifest in self._earlier for entry in manifest.files}
        # Where the clock was set back, the order of backups is kept all the same.
        taken = max([now, *(manifest.taken + 1 for manifest in self._earlier)])
        self._manifest = Manifest(taken, version, schema.VERSION, "", 0, 0, ())
        self._report = Report(self._manifest, problems=list(self._unknown))

    def run(self) -> Report:
        for path in (*self._target.glob(f"*{PARTIAL}"), *(self._target / DIRECTORY).glob(f"*{PARTIAL}")):
            path.unlink()
        stamp = self._manifest.stamp
        snapshot = self._snapshot(f"database-{stamp}.db{PARTIAL}")
        files = [self._database(f"database-{stamp}.db")]
        files += self._sealed(snapshot.last)
        for name in (KEYS, COPY):
            files += self._single(self._data / name, name, f"keys-{stamp}.{name}")
        if self._options.quarantined:
            files += self._set_aside(stamp)
        self._sync()
        firsts = [seqs[0] for entry in files if (seqs := seqs_in(Path(entry.name).name))]
        self._write_manifest(snapshot, min(firsts, default=snapshot.first), tuple(files))
        if self._options.check and (wrong := faults(self._target, self._report.manifest, self._told)):
            (self._target / self._report.manifest.name).unlink()
            raise BackupError(f"{wrong[0]}; the backup was not kept; see whether the disk is sound")
        self._prune()
        return self._report

    # -- the database

    def _snapshot(self, name: str) -> Snapshot:
        return copy_database(self._data / DATABASE, self._target / name, Sealed(self._segments), self._moved)

    def _database(self, name: str) -> Entry:
        partial = self._target / f"{name}{PARTIAL}"
        size, checksum = digest(partial)
        self._report.copied += 1
        self._report.written += size
        return self._place(partial, Entry(DATABASE, name, size, checksum))

    def _moved(self, size: int) -> None:
        """So many bytes were written."""
        self._pace(size)
        self._done += size
        self._total = max(self._total, self._done)
        self._told(self._done, self._total)

    # -- segments

    def _sealed(self, last: int) -> list[Entry]:
        """Copy the segments up to this seq."""
        sealed = Sealed(self._segments)
        taken: dict[str, tuple[Key, Entry]] = {}
        while True:
            listed = {name: key for name, key in sealed.files().items() if (seqs := seqs_in(name)) and seqs[1] <= last}
            new = sorted(name for name, key in listed.items() if name not in taken or taken[name][0] != key)
            if not new:
                return [entry for name, (_, entry) in sorted(taken.items()) if name in listed]
            self._total = self._done + sum(listed[name][2] for name in new)
            for name in new:
                entry = self._segment(name)
                if entry is not None:
                    taken[name] = listed[name], entry

    def _segment(self, name: str) -> Entry | None:
        try:
            source = (self._segments / name).open("rb", buffering=0)
        except FileNotFoundError:
            return None
        with source:
            size = os.fstat(source.fileno()).st_size
            header = header_of(source.fileno())
            if header is None:
                return self._copy(source.fileno(), name, None)
            file = f"{DIRECTORY}/{name.removesuffix('.segment')}.{header.id.hex()}.segment"
            if (entry := self._there(name, file, size)) is not None:
                self._report.reused += 1
                self._total -= size
                return entry
            return self._copy(source.fileno(), name, file)

    def _there(self, name: str, file: str, size: int) -> Entry | None:
        """A segment that the backup has already. One that no manifest names was copied by a backup that was killed."""
        path = self._target / file
        try:
            if path.stat().st_size != size:
                return None
        except FileNotFoundError:
            return None
        known = self._known.get(file)
        return Entry(f"{DIRECTORY}/{name}", file, size, digest(path)[1] if known is None else known.sha256)

    def _copy(self, source: int, name: str, file: str | None) -> Entry:
        """Copy or link a segment that the backup has not."""
        partial = self._target / DIRECTORY / f"{name}{PARTIAL}"
        if self._options.link:
            os.link(self._segments / name, partial)
            size, found = digest(partial, self._moved)
        else:
            size, found = self._write_copy(source, name, partial)
            self._report.written += size
        self._report.copied += 1
        file = file or f"{DIRECTORY}/{name.removesuffix('.segment')}.damaged-{found[:16]}.segment"
        return self._place(partial, Entry(f"{DIRECTORY}/{name}", file, size, found))

    def _write_copy(self, source: int, name: str, partial: Path) -> tuple[int, str]:
        checksum, size = sha256(), 0
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        try:
            end = os.fstat(source).st_size
            while size < end:
                piece = self._read(source, size, min(PIECE, end - size), name)
                checksum.update(piece)
                _write(descriptor, piece)
                if sys.platform == "linux":
                    # Have the disk begin: a node that syncs beside this has less to wait for then.
                    os.posix_fadvise(descriptor, size, len(piece), os.POSIX_FADV_DONTNEED)
                size += len(piece)
                self._moved(len(piece))
        finally:
            os.close(descriptor)
        return size, checksum.hexdigest()

    def _read(self, source: int, place: int, size: int, name: str) -> bytes:
        """So many bytes from there, with NUL bytes where the disk has none."""
        try:
            return os.pread(source, size, place) or bytes(size)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            if size > _SECTOR:
                parts = range(place, place + size, _SECTOR)
                return b"".join([self._read(source, at, min(_SECTOR, place + size - at), name) for at in parts])
            self._report.problems.append(f"{self._segments / name}: the disk can't read {size} bytes at {place}")
            return bytes(size)

    # -- single files

    def _single(self, path: Path, name: str, file: str) -> Iterable[Entry]:
        """A file that is copied each time, where it is there."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return
        partial = self._target / f"{file}{PARTIAL}"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._report.written += len(content)
        yield self._place(partial, Entry(name, file, len(content), sha256(content).hexdigest()))

    def _set_aside(self, stamp: str) -> Iterable[Entry]:
        for number, path in enumerate(sorted((*self._data.glob(f"*{DAMAGED}*"), *self._segments.glob(f"*{DAMAGED}*")))):
            file = f"quarantine-{stamp}.{number}"
            partial = self._target / f"{file}{PARTIAL}"
            with path.open("rb") as source, partial.open("wb") as copy:
                while piece := source.read(PIECE):
                    copy.write(piece)
                    self._moved(len(piece))
            size, checksum = digest(partial)
            self._report.written += size
            yield self._place(partial, Entry(str(path.relative_to(self._data)), file, size, checksum))

    # -- the end

    def _place(self, partial: Path, entry: Entry) -> Entry:
        """Give a complete file its name."""
        sync_file(partial)
        partial.rename(self._target / entry.file)
        return entry

    def _sync(self) -> None:
        sync_directory(self._target / DIRECTORY)
        sync_directory(self._target)

    def _write_manifest(self, snapshot: Snapshot, first: int, files: tuple[Entry, ...]) -> None:
        node = snapshot.meta.get("node", "")
        manifest = replace(self._manifest, node=node, first=first, last=snapshot.last, files=files)
        partial = self._target / f"{manifest.name}{PARTIAL}"
        partial.write_bytes(manifest.pack())
        sync_file(partial)
        partial.rename(self._target / manifest.name)
        sync_directory(self._target)
        self._report.manifest = manifest

    def _prune(self) -> None:
        """Remove old backups, and what no backup needs."""
        kept = [*self._earlier, self._report.manifest]
        if self._options.keep and len(kept) > self._options.keep:
            for manifest in kept[: -self._options.keep]:
                (self._target / manifest.name).unlink(missing_ok=True)
                self._report.removed += 1
            kept = kept[-self._options.keep :]
            sync_directory(self._target)
        if self._unknown:
            return  # what a manifest needs that can't be read, can't be told
        needed = {entry.file for manifest in kept for entry in manifest.files}
        for directory, form in ((self._target, _OURS), (self._target / DIRECTORY, _SEGMENT)):
            for path in directory.iterdir():
                if form.fullmatch(path.name) and str(path.relative_to(self._target)) not in needed:
                    path.unlink()


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]

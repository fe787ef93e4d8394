"""What a backup consists of: one manifest for each time that one was taken, and the files that it names.

The rules:

1. A manifest is written last, and whole or not at all: a backup without one is none. Its own checksum is in it.
2. Sealed segments are shared by all manifests that name them. Everything else belongs to one manifest.
3. A file of the backup is named for what is in it, and never changed once it has its name.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from time import gmtime, strftime
from typing import Final

from storage.interface import StorageError

FORMAT: Final = 1
PIECE: Final = 1 << 20
"""Bytes that are read and written at a time."""

_MANIFEST: Final = re.compile(r"manifest-(\d{8}T\d{6}\.\d{6}Z)\.json")
_HEX: Final = re.compile(r"[0-9a-f]{64}")

Told = Callable[[int, int], None]
"""Is told how far something is: bytes done, of how many."""


class BackupError(StorageError):
    """It can't be backed up or restored; the message says why and what to do. What there was is unchanged."""


class NotOursError(BackupError):
    """What was named isn't what it must be."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: its path in the data directory, that in the backup, its bytes, and their SHA-256 in hexadecimal."""

    name: str
    file: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """One backup. `taken` is in µs since the epoch; `first` and `last` are the seqs of the log in it, 0 for none."""

    taken: int
    version: str
    """Of Berm."""
    schema: int
    node: str
    first: int
    last: int
    files: tuple[Entry, ...]

    @property
    def stamp(self) -> str:
        """When it was taken, as names of files have it."""
        return f"{strftime('%Y%m%dT%H%M%S', gmtime(self.taken // 1_000_000))}.{self.taken % 1_000_000:06}Z"

    @property
    def name(self) -> str:
        """What its file is called."""
        return f"manifest-{self.stamp}.json"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)

    def pack(self) -> bytes:
        """Its bytes."""
        content = {"format": FORMAT, **asdict(self)}
        return f"{json.dumps({'backup': content, 'sha256': _checksum(content)}, indent=1)}\n".encode()

    @classmethod
    def unpack(cls, data: bytes, path: Path) -> Manifest:
        """The manifest that these bytes are.

        Raises:
            NotOursError: they are none, or that of a newer Berm.
        """
        try:
            whole = json.loads(data)
            content = whole["backup"]
            number = content.pop("format")
            sound = _checksum({"format": number, **content}) == whole["sha256"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise NotOursError(f"{path} is damaged, or not the manifest of a backup") from None
        if not sound:
            raise NotOursError(f"{path} is damaged: its checksum does not match")
        if number > FORMAT:
            raise NotOursError(f"{path} was written by a newer Berm; install that version")
        try:
            files = tuple(Entry(**each) for each in content.pop("files"))
            found = cls(**content, files=files)
        except TypeError:
            raise NotOursError(f"{path} is not the manifest of a backup") from None
        if not all(_inside(entry.name) and _inside(entry.file) and _HEX.fullmatch(entry.sha256) for entry in files):
            raise NotOursError(f"{path} names files that no backup has")
        return found


def _checksum(content: object) -> str:
    return sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _inside(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/") and name != ""


def manifests(directory: Path) -> tuple[list[Manifest], list[str]]:
    """Those in a directory, oldest first, and what is wrong with others.

    Raises:
        NotOursError: it is no directory, or can't be read.
    """
    found: list[Manifest] = []
    problems: list[str] = []
    try:
        names = sorted(filter(_MANIFEST.fullmatch, os.listdir(directory)))
    except OSError as error:
        raise NotOursError(f"{directory}: {error.strerror}; name the directory of a backup") from None
    for name in names:
        path = directory / name
        try:
            found.append(Manifest.unpack(path.read_bytes(), path))
        except OSError as error:
            problems.append(f"{path}: {error.strerror}")
        except NotOursError as error:
            problems.append(str(error))
    return sorted(found, key=lambda manifest: manifest.taken), problems


@contextmanager
def held(directory: Path, *, alone: bool) -> Iterator[None]:
    """Keep others away who would change a backup, or `alone` all others.

    Raises:
        BackupError: somebody is there.
        NotOursError: it is no directory, or can't be read.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NotOursError(f"{directory}: {error.strerror}; name the directory of a backup") from None
    try:
        # Some network file systems have no locks for directories.
        with suppress(OSError):
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BackupError(f"{directory} is in use by another backup or restore; wait for its end") from None
        yield
    finally:
        os.close(descriptor)


def digest(path: Path, told: Callable[[int], None] = lambda size: None) -> tuple[int, str]:
    """The bytes that a file has, and their SHA-256; `told` is told how many were read.

    Raises:
        OSError: it can't be read.
    """
    checksum, size = sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            checksum.update(piece)
            size += len(piece)
            told(len(piece))
    return size, checksum.hexdigest()


def faults(directory: Path, manifest: Manifest, told: Told) -> list[str]:
    """Read all files of a backup; what is wrong with them."""
    found: list[str] = []
    total, done = manifest.size, 0

    def read(size: int) -> None:
        nonlocal done
        done += size
        told(done, total)

    for entry in manifest.files:
        path = directory / entry.file
        try:
            if digest(path, read) != (entry.size, entry.sha256):
                found.append(f"{path} is damaged: its checksum does not match")
        except OSError as error:
            found.append(f"{path}: {error.strerror}")
    return found

"""A disk whose power fails: what it held before, what a process did to it since, and what it may hold afterwards.

What was done is in a journal that `power.c` has written. The rules of the loss:

1. What was synced is there: the bytes and the size of a file as they were when an fsync or fdatasync began that has
   returned; the names in a directory likewise. `sync_file_range` is no sync.
2. Of what was done to a file since then, any part may have reached the disk: nothing, everything, the beginning with
   its last write torn, or sectors here and there (so writes change their order), each with one of the contents that it
   has had since. A sector is 512 bytes and is written as a whole or not at all.
3. The size of a file is kept apart from its bytes, and its changes keep their order: a file may have grown by a tail of
   NUL bytes.
4. Files lose independently of each other.
5. Changes of names (create, rename, link, remove) keep their order, and any number of the last ones may be lost. With
   `ordered_names`, syncing any file keeps all names that were changed before, as ext4 and XFS do; without, only syncing
   the directory does: POSIX promises no more.
6. SQLite's `-shm` never outlives a power cut: the file is gone, or it is full of noise.

The same journal and the same seed give the same disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from random import Random
from struct import Struct
from typing import BinaryIO, Final

SECTOR: Final = 512
RECORD: Final = Struct("<4I2Q")
"""The beginning of a record: operation, bytes of the path, bytes of the data, thread, inode, offset."""
_SCARCE: Final = (0.05, 0.5, 0.95)
"""Of the sectors of a file that lost some, how many were written, as a probability."""


class StrangeError(Exception):
    """The journal tells of something that the layer can't follow, or can't be right."""


class Operation(IntEnum):
    """As `power.c` numbers them."""

    CREATE = 1
    KNOW = 2
    WRITE = 3
    SIZE = 4
    GROW = 5
    SYNC_BEGIN = 6
    SYNC_END = 7
    RENAME = 8
    LINK = 9
    UNLINK = 10
    MKDIR = 11
    RMDIR = 12
    STRANGE = 13


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the journal; `data` is the second path of an operation that has two."""

    operation: Operation
    thread: int
    inode: int
    at: int
    path: str
    data: bytes


def records(journal: Path) -> Iterator[Record]:
    """Everything in a journal. The last record may be torn, where the process was killed as it wrote it."""
    content = journal.read_bytes() if journal.exists() else b""
    at = 0
    while at + RECORD.size <= len(content):
        operation, first, second, thread, inode, offset = RECORD.unpack_from(content, at)
        at += RECORD.size
        end = at + first + second
        if end > len(content):
            return
        path = content[at : at + first].decode(errors="surrogateescape")
        yield Record(Operation(operation), thread, inode, offset, path, content[at + first : end])
        at = end


@dataclass(frozen=True, slots=True)
class Change:
    """What was done to a file: bytes were written at an offset, or, where there are none, its size became `at`."""

    at: int
    data: bytes | None

    def apply(self, content: bytearray) -> None:
        """Do it."""
        if self.data is None:
            resize(content, self.at)
        else:
            resize(content, max(len(content), self.at))
            content[self.at : self.at + len(self.data)] = self.data


def resize(content: bytearray, size: int) -> None:
    """Cut it, or have it grow by NUL bytes."""
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


@dataclass(slots=True, eq=False)
class File:
    """A file's content as it certainly lasts, and what was done since."""

    stable: bytearray
    changes: list[Change] = field(default_factory=list)
    size: int = 0
    """Now."""

    def change(self, change: Change) -> None:
        """It is done, and need not last."""
        self.changes.append(change)
        end = change.at if change.data is None else max(self.size, change.at + len(change.data))
        self.size = end

    def sync(self, upto: int) -> None:
        """The first so many changes last from now on."""
        for change in self.changes[:upto]:
            change.apply(self.stable)
        del self.changes[:upto]

    def content(self) -> bytes:
        """As the process sees it."""
        content = bytearray(self.stable)
        for change in self.changes:
            change.apply(content)
        return bytes(content)

    def survivor(self, random: Random) -> bytes:
        """As it may be after a power cut."""
        if not self.changes:
            return bytes(self.stable)
        lost = random.choice((self._nothing, self._everything, self._in_order, self._in_order, self._scattered))
        return bytes(lost(random) if random.random() < 0.9 else self._grown(random))

    def _nothing(self, random: Random) -> bytearray:
        return bytearray(self.stable)

    def _everything(self, random: Random) -> bytearray:
        return bytearray(self.content())

    def _in_order(self, random: Random) -> bytearray:
        """The first changes, and the beginning of the next."""
        content = bytearray(self.stable)
        kept = random.randrange(len(self.changes))
        for change in self.changes[:kept]:
            change.apply(content)
        torn = self.changes[kept]
        if torn.data is not None:
            first = SECTOR - torn.at % SECTOR
            cuts = [0, *range(first, len(torn.data), SECTOR)]
            Change(torn.at, torn.data[: random.choice(cuts)]).apply(content)
            if random.random() < 0.3:
                resize(content, max(len(content), torn.at + len(torn.data)))
        return content

    def _grown(self, random: Random) -> bytearray:
        """The size, and none of the bytes."""
        content = bytearray(self.stable)
        resize(content, self.size)
        return content

    def _scattered(self, random: Random) -> bytearray:
        """Some sectors, each in one of the states that it was in; the size as of one moment."""
        versions: dict[int, list[int]] = {}
        for index, change in enumerate(self.changes):
            if change.data:
                for sector in range(change.at // SECTOR, (change.at + len(change.data) - 1) // SECTOR + 1):
                    versions.setdefault(sector, []).append(index)
        written = random.choice(_SCARCE)
        survivors: dict[int, list[int]] = {}
        for sector, indices in versions.items():
            if random.random() < written:
                survivors.setdefault(random.choice(indices), []).append(sector)
        sized = random.choice((len(self.changes), random.randint(0, len(self.changes))))
        size = len(self.stable)
        seen, kept = bytearray(self.stable), bytearray(self.stable)
        for index, change in enumerate(self.changes):
            change.apply(seen)
            if index < sized:
                size = len(seen)
                del kept[size:]
            for sector in survivors.get(index, ()):
                Change(sector * SECTOR, bytes(seen[sector * SECTOR : (sector + 1) * SECTOR])).apply(kept)
        resize(kept, size)
        return kept


Names = dict[str, File | None]
"""What is in a directory, by its path below the root; None for a directory."""


@dataclass(slots=True, eq=False)
class Disk:
    """A directory: read from where it is, then changed by what a journal tells.

    With `syncs` False no sync lasts: a disk that lies.
    """

    root: Path
    """Where the process saw it."""
    ordered_names: bool = True
    syncs: bool = True
    names: Names = field(default_factory=dict)
    lasting: Names = field(default_factory=dict)
    """The names as they were when they last were made to last."""
    renamed: list[tuple[str, Callable[[Names], None]]] = field(default_factory=list)
    """The changes of names since: in which directory, and what."""
    operations: dict[Operation, int] = field(default_factory=dict)
    """How many there were."""
    _files: dict[int, File] = field(default_factory=dict)
    _syncing: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def read(cls, base: Path, root: Path, *, ordered_names: bool = True, syncs: bool = True) -> Disk:
        """The disk as it is in `base`; all of it lasts."""
        disk = cls(root, ordered_names, syncs)
        for path in sorted(base.rglob("*")):
            name = str(path.relative_to(base))
            if path.is_dir():
                disk.names[name] = None
            elif path.is_file():
                content = bytearray(path.read_bytes())
                disk.names[name] = File(content, size=len(content))
        disk.lasting = dict(disk.names)
        return disk

    def replay(self, journal: Path) -> None:
        """Do everything that a journal tells.

        Raises:
            StrangeError: it tells of something that can't be followed.
        """
        for record in records(journal):
            self.operations[record.operation] = self.operations.get(record.operation, 0) + 1
            self._do(record)

    def _do(self, record: Record) -> None:
        match record.operation:
            case Operation.CREATE:
                file = self._files[record.inode] = File(bytearray())
                self._rename(record.path, lambda names, name: names.__setitem__(name, file))
            case Operation.KNOW:
                self._files[record.inode] = self._known(record.path)
            case Operation.WRITE:
                self._file(record).change(Change(record.at, record.data))
            case Operation.SIZE:
                self._file(record).change(Change(record.at, None))
            case Operation.GROW:
                file = self._file(record)
                if record.at > file.size:
                    file.change(Change(record.at, None))
            case Operation.SYNC_BEGIN:
                self._begin_sync(record)
            case Operation.SYNC_END:
                self._end_sync(record)
            case Operation.RENAME:
                target = self._name(record.data.decode(errors="surrogateescape"))
                self._rename(record.path, lambda names, name: _move(names, name, target))
            case Operation.LINK:
                target = self._name(record.data.decode(errors="surrogateescape"))
                self._rename(record.path, lambda names, name: names.__setitem__(target, names.get(name)))
            case Operation.UNLINK | Operation.RMDIR:
                self._rename(record.path, lambda names, name: names.pop(name, None))
            case Operation.MKDIR:
                self._rename(record.path, lambda names, name: names.__setitem__(name, None))
            case Operation.STRANGE:
                raise StrangeError(record.path)

    def _name(self, path: str) -> str:
        return str(Path(path).relative_to(self.root))

    def _known(self, path: str) -> File:
        file = self.names.get(self._name(path))
        if file is None:
            raise StrangeError(f"{path} was opened, and nothing has made it")
        return file

    def _file(self, record: Record) -> File:
        return self._files[record.inode]

    def _rename(self, path: str, change: Callable[[Names, str], object]) -> None:
        name = self._name(path)
        change(self.names, name)
        self.renamed.append((str(Path(name).parent), lambda names: (change(names, name), None)[1]))

    def _begin_sync(self, record: Record) -> None:
        file = self._files.get(record.inode)
        changes = len(file.changes) if file is not None and not record.path else 0
        self._syncing[record.thread, record.inode] = changes, len(self.renamed)

    def _end_sync(self, record: Record) -> None:
        changes, renamed = self._syncing.pop((record.thread, record.inode))
        if not self.syncs:
            return
        if not record.path:
            self._keep_changes(record.inode, changes)
            if self.ordered_names:
                self._keep_names(renamed)
            return
        directory = self._name(record.path)
        mine = [index for index, (where, _) in enumerate(self.renamed[:renamed]) if where == directory]
        self._keep_names(renamed if self.ordered_names else mine[-1] + 1 if mine else 0)

    def _keep_changes(self, inode: int, changes: int) -> None:
        """A file's first changes last; syncs of it that are under way have that much less to do."""
        file = self._files[inode]
        changes = min(changes, len(file.changes))
        file.sync(changes)
        for key, (begun, names) in self._syncing.items():
            if key[1] == inode:
                self._syncing[key] = max(begun - changes, 0), names

    def _keep_names(self, upto: int) -> None:
        for _, change in self.renamed[:upto]:
            change(self.lasting)
        del self.renamed[:upto]
        for key, (changes, names) in self._syncing.items():
            self._syncing[key] = changes, max(names - upto, 0)

    # -- what is left

    def write_all(self, directory: Path) -> None:
        """Make the disk as the process saw it."""
        _write(self.names, directory, File.content)

    def cut(self, directory: Path, random: Random) -> None:
        """Make the disk as it may be after a power cut."""
        names = dict(self.lasting)
        lost = random.choice((0, len(self.renamed), random.randint(0, len(self.renamed))))
        for _, change in self.renamed[: len(self.renamed) - lost]:
            change(names)
        for name in [name for name in names if name.endswith("-shm")]:
            del names[name]
            if random.random() < 0.5:
                noise = bytearray(random.randbytes(32768))
                names[name] = File(noise)
        left: dict[File, bytes] = {}  # a file may have several names

        def survivor(file: File) -> bytes:
            if file not in left:
                left[file] = file.survivor(random)
            return left[file]

        _write(names, directory, survivor)


def _move(names: Names, source: str, target: str) -> None:
    """Rename a file, or a directory with what is below it."""
    for name in [name for name in names if name == source or name.startswith(source + "/")]:
        names[target + name[len(source) :]] = names.pop(name)


def _write(names: Names, directory: Path, content: Callable[[File], bytes]) -> None:
    directory.mkdir(parents=True)
    for name in sorted(names):
        path = directory / name
        file = names[name]
        if not path.parent.is_dir():
            continue  # the directory has not survived, and nothing in it
        if file is None:
            path.mkdir()
        else:
            with path.open("wb") as out:
                _write_sparsely(out, content(file))


def _write_sparsely(out: BinaryIO, content: bytes) -> None:
    """Leave room that holds nothing as a hole."""
    out.write(content.rstrip(b"\0"))
    out.truncate(len(content))

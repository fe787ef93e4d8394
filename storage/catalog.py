"""What lies in `segments/`: which of the files there can be trusted, and which seqs each of them serves.

The rules:

1. A segment is named by its first and last seq, with leading zeros, so that any listing is in order. What it serves
   is said by its header.
2. Of two segments that overlap, the later one serves what the earlier one doesn't reach. No seq is served twice.
3. A segment without a sound header, or copy of it, is set aside under a name that ends in `.damaged-` and a time, and
   the node goes on without it. One that can't be read at the moment stays: to read it is tried again each time.
4. What was being written when a process ended is removed at the start. What is not ours is let be.
5. A segment from which events were taken out has come in the place of the whole one, under the same name, which says
   then where it was cut from the log. Its header, and its id, are its own.
"""

from __future__ import annotations

import logging
import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Final

from storage.database import make_directory
from storage.files import sync_directory
from storage.interface import StorageError
from storage.segment import Damage, Recent, Segment
from storage.segment_file import SegmentDamaged, SegmentLocked
from storage.segment_format import HEADER_BYTES
from storage.segment_rebuild import Range
from storage.segment_writer import PARTIAL, SegmentInfo, remove_partial

if TYPE_CHECKING:
    from storage.datakey import Keys

DIRECTORY: Final = "segments"
DAMAGED: Final = ".damaged-"
"""What stands in the name of a segment that was set aside, before the time."""
LARGEST: Final = (1 << 63) - 1
"""The highest seq that there can be."""

_NAME: Final = re.compile(r"([0-9]{20})-([0-9]{20})\.segment")

_logger = logging.getLogger("berm.storage")


@dataclass(frozen=True, slots=True)
class Stretch:
    """What one segment serves: the seqs above `after`, up to `last`, where none before it does."""

    path: Path
    after: int
    last: int
    last_ts: int
    events: int
    sound: bool
    """Whether its header could be read, and there is a key where it is encrypted."""
    first_ts: int = 0
    """When its first event came; 0 where that could not be read."""
    id: bytes = b""
    """That of the file: another one of this name has another."""
    size: int = 0
    """Of the file, in bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """The stretches that are served, in order. Where there is none between them, the tail serves."""

    stretches: tuple[Stretch, ...] = ()
    _lasts: Sequence[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_lasts", [stretch.last for stretch in self.stretches])

    @property
    def last(self) -> int:
        """The highest seq that is sealed; 0 where none is."""
        return self._lasts[-1] if self._lasts else 0

    def find(self, after: int) -> tuple[Stretch | None, int]:
        """Who serves the seq that follows this one, None for the tail, and up to which seq."""
        number = bisect_right(self._lasts, after)
        if number == len(self._lasts):
            return None, LARGEST
        stretch = self.stretches[number]
        return (None, stretch.after) if stretch.after > after else (stretch, stretch.last)

    def find_below(self, before: int) -> tuple[Stretch | None, int]:
        """Who serves the seq that precedes this one, None for the tail, and above which seq."""
        number = bisect_left(self._lasts, before - 1)
        if number < len(self._lasts) and self.stretches[number].after < before - 1:
            return self.stretches[number], self.stretches[number].after
        return None, self._lasts[number - 1] if number else 0


class Catalog:
    """The directory of segments. With `readonly` nothing in it is changed, and it need not be there.

    `damaged` is told of what is wrong with a segment; `keys` are those that some may be encrypted with.
    """

    def __init__(
        self,
        directory: Path,
        damaged: Callable[[Damage], None],
        *,
        readonly: bool = False,
        keys: Keys | None = None,
    ) -> None:
        self.directory = directory
        self._keys = keys
        self._damaged = damaged
        self._readonly = readonly
        self._known: dict[str, Stretch] = {}
        """What was found sound, by name, as if there was nothing else."""
        self._told: set[str] = set()
        """Names of which something was said."""
        if not readonly and directory.is_dir():
            remove_partial(directory)

    def path(self, first: int, last: int) -> Path:
        """What a segment with these seqs is called. Makes the directory where there is none."""
        make_directory(self.directory)
        return self.directory / f"{first:020}-{last:020}.segment"

    def chain(self) -> Chain:
        """What the segments serve that are there now.

        Raises:
            OSError: the directory can't be read.
            StorageError: there is a segment of a newer Berm.
        """
        names = self._names()
        for name in self._known.keys() - set(names):
            del self._known[name]
        for name in names:
            if name not in self._known and (stretch := self._opened(name)) is not None:
                self._known[name] = stretch
        return _without_overlaps(self._known.values())

    def add(self, info: SegmentInfo) -> Chain:
        """The chain with a segment that has just been sealed, or has come in the place of one of its name."""
        self._known[info.path.name] = _stretch(info)
        return _without_overlaps(self._known.values())

    def remove(self, stretch: Stretch) -> Chain:
        """The chain without this segment."""
        del self._known[stretch.path.name]
        return _without_overlaps(self._known.values())

    @property
    def files(self) -> list[Stretch]:
        """Every segment, in order: those too of which the others leave nothing to serve."""
        return sorted(self._known.values(), key=lambda stretch: (stretch.after, stretch.last))

    def _names(self) -> list[str]:
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        foreign = [name for name in names if not (_NAME.fullmatch(name) or DAMAGED in name or name.endswith(PARTIAL))]
        if new := sorted({*foreign} - self._told):
            self._told.update(new)
            _logger.warning("%s has files that are not Berm's, which are let be: %s", self.directory, ", ".join(new))
        return sorted({*names} - {*foreign} - {name for name in names if not _NAME.fullmatch(name)})

    def _opened(self, name: str) -> Stretch | None:
        """What a segment serves, by its header, which is read now; None where it serves nothing."""
        path = self.directory / name
        try:
            with Segment.open(path, self._damaged, Recent(), self._keys) as segment:
                return _stretch(segment.info)
        except SegmentDamaged as error:
            if readable(path):
                self._set_aside(name, error)
                return None
            why = f"{path} can't be read at the moment; see whether the disk is sound"
        except SegmentLocked as error:
            self._tell_later(name, str(error))
            return replace(_stretch(error.info), sound=False)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None  # it has gone since it was listed
            if not isinstance(error.__cause__, OSError):
                raise
            why = str(error)
        self._tell_later(name, why)
        first, last = _seqs(name)
        return Stretch(path, first - 1, last, 0, 0, sound=False, size=_size(path))

    def _tell_later(self, name: str, why: str) -> None:
        if name not in self._told:
            self._told.add(name)
            _logger.error("%s; what is in it is read as soon as it can be", why)

    def _set_aside(self, name: str, error: SegmentDamaged) -> None:
        path, lost = self.directory / name, _seqs(name)
        if self._readonly:
            if name not in self._told:
                self._told.add(name)
                self._damaged(Damage(path, "its header and the copy of it are damaged", ranges=(lost,)))
            return
        stamp = int(time())
        while (moved := path.with_name(f"{name}{DAMAGED}{stamp}")).exists():
            stamp += 1
        path.rename(moved)
        sync_directory(self.directory)
        _logger.error(
            "%s is damaged as a whole and is now %s (%s); seqs %d to %d are lost, unless %s has them still",
            path,
            moved.name,
            error,
            *lost,
            "the tail of the log",
        )


def readable(path: Path) -> bool:
    """Whether the system gives back both ends of a file, whatever is in them."""
    try:
        with path.open("rb") as file:
            file.read(HEADER_BYTES)
            file.seek(max(0, path.stat().st_size - HEADER_BYTES))
            file.read(HEADER_BYTES)
    except OSError:
        return False
    return True


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def seqs_in(name: str) -> Range | None:
    """The first and the last seq that a segment's name says; None where it is no name of a segment."""
    found = _NAME.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


def _seqs(name: str) -> Range:
    found = seqs_in(name)
    assert found is not None
    return found


def _stretch(info: SegmentInfo) -> Stretch:
    header = info.header
    return Stretch(
        info.path,
        header.first - 1,
        header.last,
        header.last_ts,
        header.events,
        True,
        header.first_ts,
        header.id,
        info.size,
    )


def _without_overlaps(stretches: Iterable[Stretch]) -> Chain:
    """In order, without those of which the others leave nothing: who reads on is beyond what it has read already."""
    served: list[Stretch] = []
    for each in sorted(stretches, key=lambda stretch: (stretch.after, -stretch.last)):
        if not served or each.last > served[-1].last:
            served.append(each)
    return Chain(tuple(served))

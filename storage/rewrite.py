"""Writes a sealed segment anew without some of its events, and puts it in the place of the whole one.

The rules:

1. The new file is written and fsynced under a name that ends in `.partial`, so whatever ends the process leaves
   nothing but the segment as it was. Then it is renamed over that one, in one step, and the directory is fsynced.
2. Whoever reads the segment meanwhile goes on in the file that it has open. It is closed once the new one has its
   place, so that what was taken out is on the disk no more.
3. Where nothing is left of it, the segment is removed.
4. What can't be read of it goes, too, and is counted: nobody can tell whose it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from storage.background import Whole, beside
from storage.files import sync_directory
from storage.history import History
from storage.interface import Event
from storage.segment_writer import PARTIAL, Sealing, SegmentInfo, Shape

if TYPE_CHECKING:
    from collections.abc import Generator

    from storage.catalog import Stretch
    from storage.datakey import DataKey

_READ: Final = 512
"""Events that are read at a time."""

Unwanted = Callable[[Event], bool]
"""Whether an event is to be taken out. It is called in another thread."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What is to come in the place of a segment, complete and on the disk."""

    stretch: Stretch
    info: SegmentInfo | None
    """None: nothing is left of it."""
    removed: int
    """Events that were taken out."""
    unread: int
    """Events that could not be read, and are gone with it."""

    @property
    def size(self) -> int:
        """Of the new file, in bytes."""
        return 0 if self.info is None else self.info.size

    def replace(self, history: History, share: Callable[[], float]) -> Generator[bool, None, None]:
        """Put it there, in steps, by the thread that commits. The tail may have none of what was taken out."""
        path, info = self.stretch.path, self.info
        if info is None:
            history.remove(self.stretch)
        yield from beside(Whole(self._exchange), share)
        if info is not None:
            history.add(replace(info, path=path))
        while not history.let_go():
            yield True

    def _exchange(self) -> bool:
        path = self.stretch.path
        if self.info is None:
            path.unlink(missing_ok=True)
        else:
            os.replace(self.info.path, path)
        sync_directory(path.parent)
        return True


class Rewriting:
    """A task: the new file. Its steps are those of `Sealing`, and as many more as there is nothing to write.

    Raises:
        StorageError: the segment can't be opened.
    """

    def __init__(self, history: History, stretch: Stretch, unwanted: Unwanted, key: DataKey | None) -> None:
        self._stretch = stretch
        self._unwanted = unwanted
        self._key = key
        self._removed = 0
        self._kept = 0
        self._segment = history.examine(stretch)
        self._events = self._wanted()
        self._sealing: Sealing | None = None

    def step(self) -> Rewritten | None:
        """Go on a little.

        Raises:
            StorageError: the segment can't be read, or the new one not be written.
        """
        if self._sealing is None:
            first = next(self._events, None)
            if first is None:
                return self._result(None)
            self._sealing = self._begin(first)
        info = self._sealing.step()
        return None if info is None else self._result(info)

    def abandon(self) -> None:
        """Leave nothing behind, unless all is done."""
        if self._sealing is not None:
            self._sealing.abandon()
        self._events.close()
        self._segment.close()

    def _begin(self, first: Event) -> Sealing:
        path = self._stretch.path
        target = path.with_name(f"{path.name}.new{PARTIAL}")
        target.unlink(missing_ok=True)  # one that was complete, and was not needed any more

        def events() -> Iterator[Event]:
            yield first
            yield from self._events

        return Sealing(target, events(), Shape(), self._key)

    def _result(self, info: SegmentInfo | None) -> Rewritten:
        unread = self._segment.info.header.events - self._kept - self._removed
        return Rewritten(self._stretch, info, self._removed, unread)

    def _wanted(self) -> Generator[Event, None, None]:
        segment, unwanted = self._segment, self._unwanted
        after, last = segment.info.header.first - 1, segment.info.header.last
        while after < last:
            events, after = segment.read(after, last, _READ)
            for event in events:
                if unwanted(event):
                    self._removed += 1
                else:
                    self._kept += 1
                    yield event

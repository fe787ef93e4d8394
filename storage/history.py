"""The sealed part of the log: reads across segments, and knows which seqs they serve.

The rules:

1. What a segment serves is read from it, even where the tail still has these rows. Everything else is the tail's.
2. Rows leave the tail only after the segment that has them has its name in the directory, and so is in the chain of
   whoever looks. So who has read the tail looks whether the chain is still the same, and reads again where it isn't:
   then no event can have been missed, or read twice. A node's own chain is changed by its writer. Another process
   lists the directory.
3. Headers are known of all segments. Of the few that were read last, the file is open and the index is kept, and
   their last stripes are shared out among all readers; so a thousand segments take no more memory than some.
4. One thread reads. Another one may add segments meanwhile, or take some away: it puts one chain in the place of
   another. Who still has the earlier one finds that a file is gone, and passes over it. What the reader holds open of
   it is closed by the other thread, in a moment in which it doesn't read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Final

from storage.catalog import Catalog, Chain, Stretch, readable
from storage.interface import Accepts, Event, Latest, StorageError
from storage.segment import Damage, Recent, Segment
from storage.segment_file import SegmentDamaged
from storage.segment_writer import SegmentInfo

if TYPE_CHECKING:
    from storage.datakey import DataKey, Keys

OPEN: Final = 8
"""Segments that are held open."""
STRIPES: Final = 4
"""Stripes that are kept, of all segments: as many readers far behind can be served without decoding any twice."""
_RANGES: Final = 8
"""Ranges of lost seqs that a report names at most."""

_logger = logging.getLogger("berm.storage")


class History:
    """All segments of a data directory. With `readonly` another process may add to them, and nothing is changed.

    `keys` are those that some of them may be encrypted with; `data_key` gives the one for those that are written now.

    Raises:
        OSError: the directory can't be read.
        StorageError: there is a segment of a newer Berm.
    """

    def __init__(
        self,
        directory: Path,
        *,
        readonly: bool = False,
        keys: Keys | None = None,
        data_key: Callable[[], DataKey | None] = lambda: None,
    ) -> None:
        self._readonly = readonly
        self._keys = keys
        self._data_key = data_key
        self._reported: set[tuple[str, str]] = set()
        """Name and reason of each damage that was told."""
        self._catalog = Catalog(directory, self._damaged, readonly=readonly, keys=keys)
        self._recent = Recent(STRIPES)
        self._open: dict[Stretch, Segment] = {}
        """Those that were read last come last."""
        self._reading = Lock()
        """Held while a segment is read, or closed."""
        self.chain = self._catalog.chain()

    def close(self) -> None:
        """Give back files and memory."""
        for segment in self._open.values():
            segment.close()
        self._open.clear()

    # -- what there is

    def changed(self, chain: Chain) -> bool:
        """Whether the segments are not those of this chain any more.

        Raises:
            StorageError: another process may have added to them, and the directory can't be read.
        """
        if self._readonly:
            try:
                found = self._catalog.chain()
            except OSError as error:
                raise StorageError(f"reading {error.filename}: {error.strerror}; see whether it may be read") from error
            if found.stretches != self.chain.stretches:
                self.chain = found
        return self.chain is not chain

    def path(self, first: int, last: int) -> Path:
        """Where a segment with these seqs is to be written."""
        return self._catalog.path(first, last)

    def add(self, info: SegmentInfo) -> None:
        """Serve a segment that has just been sealed, from now on. Called by the thread that seals."""
        self.chain = self._catalog.add(info)

    def remove(self, stretch: Stretch) -> None:
        """Serve a segment no more. Called by the thread that seals, as what follows."""
        self.chain = self._catalog.remove(stretch)

    @property
    def files(self) -> list[Stretch]:
        """Every segment, in order: those too of which the others leave nothing to serve."""
        return self._catalog.files

    def examine(self, stretch: Stretch) -> Segment:
        """A segment, opened apart from those that readers have. Of what is damaged in it nothing is said.

        Raises:
            StorageError: it can't be opened.
        """
        return Segment.open(stretch.path, keys=self._keys)

    @property
    def data_key(self) -> DataKey | None:
        """What a segment is to be encrypted with."""
        return self._data_key()

    def let_go(self) -> bool:
        """Close what is open of segments that are served no more; whether it could be done at once."""
        if not self._reading.acquire(blocking=False):
            return False
        try:
            for stretch in self._open.keys() - {*self.chain.stretches}:
                self._open.pop(stretch).close()
        finally:
            self._reading.release()
        return True

    # -- reading

    def read(
        self, stretch: Stretch, after: int, upto: int, limit: int, accepts: Accepts | None, room: int
    ) -> tuple[list[Event], int]:
        """What `Engine.read` gives of one stretch, with no more than `room` bytes.

        Raises:
            StorageError: the file can't be read at the moment.
        """
        with self._reading:
            segment = self._opened(stretch)
            return ([], upto) if segment is None else segment.read(after, upto, limit, accepts, room)

    def get(self, stretch: Stretch, seqs: Sequence[int]) -> list[Event]:
        """The events with these seqs, all of one stretch, that can be read.

        Raises:
            StorageError: the file can't be read at the moment.
        """
        with self._reading:
            segment = self._opened(stretch)
            return [] if segment is None else segment.get(seqs)

    def seq_before(self, stretch: Stretch, ts: int) -> int:
        """The seq of the last event of one stretch that came before this time, or of none between it and the next.

        Raises:
            StorageError: the file can't be read at the moment.
        """
        with self._reading:
            segment = self._opened(stretch)
            return stretch.after if segment is None else segment.seq_at(ts) - 1

    def latest(self, stretch: Stretch, found: Latest, before: int) -> int:
        """What `Engine.latest` gives of one stretch; at its beginning, the first seq it serves.

        Raises:
            StorageError: the file can't be read at the moment.
        """
        with self._reading:
            segment = self._opened(stretch)
            return stretch.after + 1 if segment is None else segment.latest(found, stretch.after, before)

    def _opened(self, stretch: Stretch) -> Segment | None:
        """The segment, open; None where nothing of it can be read any more, which is told once."""
        path = stretch.path
        segment = self._open.pop(stretch, None)
        if segment is None:
            try:
                segment = Segment.open(path, self._damaged, self._recent, self._keys)
            except SegmentDamaged as error:
                if not readable(path):
                    raise StorageError(f"reading {path}: the disk can't; see whether it is sound") from error
                self._damaged(Damage(path, str(error), stretch.events, ((stretch.after + 1, stretch.last),)))
                return None
            except StorageError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
                if stretch in self.chain.stretches and not self._readonly:
                    self._damaged(Damage(path, "it is gone", stretch.events, ((stretch.after + 1, stretch.last),)))
                return None
            while len(self._open) >= OPEN:
                self._open.pop(next(iter(self._open))).close()
        self._open[stretch] = segment
        return segment

    def _damaged(self, damage: Damage) -> None:
        """Tell of a damage, once."""
        key = damage.path.name, damage.reason
        if key in self._reported:
            return
        self._reported.add(key)
        if not damage.ranges:
            _logger.warning("%s: %s", damage.path, damage.reason)
            return
        shown = ", ".join(f"{first} to {last}" for first, last in damage.ranges[:_RANGES])
        more = f" and {len(damage.ranges) - _RANGES} more ranges" if len(damage.ranges) > _RANGES else ""
        number = f"{damage.events} events" if damage.events else "all events"
        _logger.error(
            "%s: %s; %s are lost, with seqs in %s%s; the rest is served",
            damage.path,
            damage.reason,
            number,
            shown,
            more,
        )

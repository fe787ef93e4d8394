"""The disk guard: how much room there must be, what is given up as it goes, and the reserve that is kept for the end.

The rules:

1. Below `low` free bytes QoS 0 messages are no longer stored. Below `least` nothing that clients publish is: what is
   left is for what the node itself must write, so that sessions, wills, processors and a clean stop go on.
2. What has been given up comes back by itself, once there is an eighth more free than where it went.
3. The reserve is a file that takes room away from everybody. It is removed when SQLite says that the disk is full, and
   when the node can't start for lack of room; until it could be made again, nothing that clients publish is stored.
   Whether there is room for it is found out by making it, twice as large as it has to be: of quotas `statvfs` knows
   nothing.
4. The file system is looked at about once a second, by the thread that commits, and never for a message.
5. Free is what a user without privileges may still write, and the reserve. Of a small file system the levels are parts,
   however large they are set: `low` a quarter at most, `least` an eighth, the reserve a sixty-fourth.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from storage.interface import Worker

RESERVE: Final = "reserve"
PROBE: Final = "probe"
"""A file that is written, and removed at once, to learn why a write failed."""
PROBE_BYTES: Final = 64 << 10
NO_ROOM: Final = frozenset((errno.ENOSPC, errno.EDQUOT))
"""What the system says where a file can't grow."""
SECOND: Final = 1_000_000
"""µs between two looks."""
PATIENCE: Final = 30 * SECOND
"""µs between two attempts to make the reserve: some file systems have to write all of it."""

_logger = logging.getLogger("berm.storage")


class Level(IntEnum):
    """How short of room the disk is."""

    PLENTY = 0
    LOW = 1
    """QoS 0 messages are not stored."""
    FULL = 2
    """Nor are others of clients."""


@dataclass(frozen=True, slots=True)
class Levels:
    """Free bytes below which something is given up, 0 for never, and the bytes of the reserve."""

    low: int
    least: int
    reserve: int

    def of(self, total: int) -> Levels:
        """What they come to on a file system of `total` bytes."""
        return Levels(min(self.low, total // 4), min(self.least, total // 8), min(self.reserve, total // 64))


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at the file system has shown, in bytes."""

    level: Level
    free: int
    spent: bool
    """Whether there is no room for the reserve."""
    levels: Levels


def measure(directory: Path) -> tuple[int, int]:
    """The bytes that may still be written on the directory's file system, and those that it has in all."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def judge(before: Level, free: int, levels: Levels) -> Level:
    """The level that follows `before`."""
    if free < (_again(levels.least) if before is Level.FULL else levels.least):
        return Level.FULL
    if free < (levels.low if before is Level.PLENTY else _again(levels.low)):
        return Level.LOW
    return Level.PLENTY


def _again(level: int) -> int:
    """Where what was given up at a level comes back."""
    return level + level // 8


def _enough(levels: Levels) -> int:
    """What there must be for the reserve to be made, so that this alone does not make anything be given up."""
    return _again(levels.least) + 2 * levels.reserve


def probe(directory: Path) -> int:
    """The error number with which a small file can't be written there; 0: it can."""
    path = directory / PROBE
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        try:
            left = PROBE_BYTES
            while left > 0:
                left -= os.write(descriptor, bytes(left))
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.errno or errno.EIO
    finally:
        with suppress(OSError):
            path.unlink()
    return 0


class Reserve:
    """The file that holds some room until it is needed. Used by one thread at a time, as the database is."""

    __slots__ = ("path", "spent")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spent = False
        """Whether it was released, or could not be made, for lack of room, and has not been made since."""

    @property
    def held(self) -> int:
        """The bytes that it takes."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def make(self, size: int) -> None:
        """Take `size` bytes from the disk, where as many remain.

        Raises:
            OSError: there is no room, or a file can't be made.
        """
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
            try:
                os.posix_fallocate(descriptor, 0, 2 * size)
                os.ftruncate(descriptor, size)
            finally:
                os.close(descriptor)
        except OSError as error:
            self.spent = error.errno in NO_ROOM
            self.remove()
            raise
        self.spent = False

    def remove(self) -> bool:
        """Give the room back; whether there was any."""
        try:
            self.path.unlink()
        except OSError:
            return False
        return True

    def release(self) -> bool:
        """The disk is full: give the room back, for what has to be written now; whether there was any."""
        if not self.remove():
            return False
        self.spent = True
        _logger.error(
            "the disk is full; gave back the room that %s held, so that the node can go on; free some space", self.path
        )
        return True


class Guard:
    """Watches the file system of a data directory. `tell` hears of each change of the level, on the loop.

    `worker` is the thread that commits; `examine` is for tests that have no file system to fill.
    """

    def __init__(
        self,
        reserve: Reserve,
        levels: Levels,
        worker: Worker,
        tell: Callable[[Level], None],
        examine: Callable[[Path], tuple[int, int]] = measure,
    ) -> None:
        self.level = Level.PLENTY
        self.free = 0
        """Bytes, as of the last look."""
        self._reserve = reserve
        self._directory = reserve.path.parent
        self._levels = levels
        self._worker = worker
        self._tell = tell
        self._examine = examine
        self._next_look = 0
        self._looking = False
        self._next_attempt = 0
        self._unmade = 0
        """The error number with which the reserve could not be made, other than for lack of room; 0: there was none."""
        self._blind = False
        """Whether the last look has failed."""

    def start(self, now: int) -> None:
        """The first look, before anything is taken on. Blocks."""
        try:
            look = self._look(now, self.level)
        except OSError as error:
            self._looked(None, error)
        else:
            self._looked(look, None)
        self._next_look = now + SECOND

    def tick(self, now: int) -> None:
        """Time has passed; µs since the epoch. To be called a few times a second."""
        if self._looking or not (now >= self._next_look or (self._reserve.spent and self.level < Level.FULL)):
            return
        self._next_look = now + SECOND
        self._looking = True
        before = self.level
        self._worker.submit(lambda: self._look(now, before), self._looked)

    def _look(self, now: int, before: Level) -> Look:
        free, total = self._examine(self._directory)
        levels = self._levels.of(total)
        free += self._reserve.held
        self._mend(now, free, levels)
        level = Level.FULL if self._reserve.spent else judge(before, free, levels)
        return Look(level, free, self._reserve.spent, levels)

    def _mend(self, now: int, free: int, levels: Levels) -> None:
        """Make the reserve where there is none, or one of another size, and there is room for it."""
        reserve, size = self._reserve, levels.reserve
        if reserve.held == size:
            return
        if not size:
            reserve.remove()
            reserve.spent = False
        elif now >= self._next_attempt and free >= _enough(levels) and not self._unmade:
            try:
                reserve.make(size)
            except OSError as error:
                self._next_attempt = now + PATIENCE
                if error.errno not in NO_ROOM:
                    self._unmade = error.errno or errno.EIO
                    _logger.warning(
                        "cannot make %s: %s; without it the node may not start on a full disk",
                        reserve.path,
                        error.strerror,
                    )

    def _looked(self, result: object, error: BaseException | None) -> None:
        self._looking = False
        if error is not None:
            if not self._blind:
                _logger.error("cannot see how much room %s has: %s", self._directory, error)
            self._blind = True
            return
        self._blind = False
        assert isinstance(result, Look)
        self.free = result.free
        if result.level is not self.level:
            before, self.level = self.level, result.level
            self._say(before, result)
            self._tell(self.level)

    def _say(self, before: Level, look: Look) -> None:
        room = f"the disk of {self._directory} has {_size(look.free)} free"
        levels = look.levels
        if look.level is Level.PLENTY:
            _logger.info("%s: everything is stored again", room)
        elif look.level is Level.LOW:
            taken = "QoS 1 and 2 are taken again, " if before is Level.FULL else ""
            again = _size(_again(levels.low))
            words = "%s: %sQoS 0 messages are delivered but not stored until there are %s"
            _logger.warning(words, room, taken, again)
        elif look.free >= _enough(levels):
            words = (
                "%s, but no room for the node's reserve of %s: QoS 1 and 2 are refused until there is; "
                "see whether there is a quota"
            )
            _logger.error(words, room, _size(levels.reserve))
        else:
            enough = _enough(levels) if look.spent else _again(levels.least)
            _logger.error("%s: QoS 1 and 2 are refused until there are %s; free some space", room, _size(enough))


def _size(number: int) -> str:
    return f"{number / (1 << 20):,.1f} MiB"

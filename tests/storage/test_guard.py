"""What is given up as the disk fills, and that it comes back: with a clock and a file system that the test moves."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.guard import PATIENCE, PROBE, RESERVE, SECOND, Guard, Level, Levels, Reserve, judge, probe

MIB = 1 << 20
LEVELS = Levels(low=256 * MIB, least=64 * MIB, reserve=16 * MIB)
TOTAL = 4096 * MIB
START = 1_700_000_000 * SECOND


class Turns:
    """A worker that works when it is told to."""

    def __init__(self) -> None:
        self.queue: list[tuple[Callable[[], object], Callable[[object, BaseException | None], None]]] = []

    def submit(
        self,
        work: Callable[[], object],
        done: Callable[[object, BaseException | None], None],
        after: Callable[[], object] | None = None,
    ) -> None:
        self.queue.append((work, done))

    def run(self) -> None:
        while self.queue:
            work, done = self.queue.pop(0)
            try:
                result = work()
            except OSError as error:
                done(None, error)
            else:
                done(result, None)

    def close(self) -> None:
        self.run()


class Rig:
    """A guard over a file system of which the test says how much is free. The reserve's file is a small one."""

    def __init__(self, directory: Path, levels: Levels = LEVELS, free: int = TOTAL // 2, total: int = TOTAL) -> None:
        self.levels = levels
        self.others_free = free
        """Free bytes, if there were no reserve."""
        self.total = total
        self.quota = 0
        """The error number that making the reserve gives; 0: it can be made."""
        self.looks = 0
        self.attempts = 0
        self.told: list[Level] = []
        self.now = START
        self.reserve = _Sparse(directory / RESERVE, self)
        self.worker = Turns()
        self.guard = Guard(self.reserve, levels, self.worker, self.told.append, self._examine)
        self.guard.start(self.now)

    def _examine(self, directory: Path) -> tuple[int, int]:
        assert directory == self.reserve.path.parent
        self.looks += 1
        if self.others_free < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self.others_free - self.reserve.held, self.total

    def tick(self, seconds: float = 1) -> Level:
        self.now += round(seconds * SECOND)
        self.guard.tick(self.now)
        self.worker.run()
        return self.guard.level

    def at(self, free: int) -> Level:
        self.others_free = free
        return self.tick()


class _Sparse(Reserve):
    """A reserve that takes no room of the machine that the test runs on."""

    def __init__(self, path: Path, rig: Rig) -> None:
        super().__init__(path)
        self.rig = rig

    def make(self, size: int) -> None:
        self.rig.attempts += 1
        if self.rig.quota:
            self.spent = self.rig.quota in (errno.ENOSPC, errno.EDQUOT)
            raise OSError(self.rig.quota, os.strerror(self.rig.quota))
        with self.path.open("wb") as file:
            file.truncate(size)
        self.spent = False


# -- levels


def test_what_is_given_up_on_the_way_down_comes_back_on_the_way_up_a_little_later(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    assert [rig.at(free * MIB) for free in (257, 256, 255, 256, 287)] == [Level.PLENTY] * 2 + [Level.LOW] * 3
    assert [rig.at(free * MIB) for free in (65, 64, 63, 64, 71)] == [Level.LOW] * 2 + [Level.FULL] * 3
    assert [rig.at(free * MIB) for free in (72, 100, 287, 288)] == [Level.LOW] * 3 + [Level.PLENTY]
    assert rig.told == [Level.LOW, Level.FULL, Level.LOW, Level.PLENTY]


def test_a_disk_that_fills_at_a_stroke_and_is_emptied_at_a_stroke_skips_the_level_between(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    assert [rig.at(0), rig.at(TOTAL)] == [Level.FULL, Level.PLENTY]


def test_a_node_that_starts_on_a_nearly_full_disk_knows_before_the_first_message(tmp_path: Path) -> None:
    rig = Rig(tmp_path, free=10 * MIB)
    assert rig.told == [Level.FULL]
    assert rig.looks == 1


@pytest.mark.parametrize("before", Level)
@pytest.mark.parametrize("free", [0, 1, 1 << 60])
def test_levels_that_are_turned_off_never_give_up_anything(before: Level, free: int) -> None:
    assert judge(before, free, Levels(0, 0, 0)) is Level.PLENTY


def test_of_a_small_disk_the_levels_are_parts() -> None:
    assert LEVELS.of(8 * MIB) == Levels(2 * MIB, MIB, MIB // 8)
    assert LEVELS.of(TOTAL) == LEVELS
    assert LEVELS.of(0) == Levels(0, 0, 0)


def test_each_change_is_one_line_that_says_how_much_is_free(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    rig = Rig(tmp_path)
    for free in (200, 199, 60, 59, 100, 101, 300, 400):
        rig.at(free * MIB)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            f"the disk of {tmp_path} has 200.0 MiB free: QoS 0 messages are delivered but not stored "
            "until there are 288.0 MiB",
        ),
        (
            "ERROR",
            f"the disk of {tmp_path} has 60.0 MiB free: QoS 1 and 2 are refused until there are 72.0 MiB; "
            "free some space",
        ),
        (
            "WARNING",
            f"the disk of {tmp_path} has 100.0 MiB free: QoS 1 and 2 are taken again, QoS 0 messages are delivered "
            "but not stored until there are 288.0 MiB",
        ),
        ("INFO", f"the disk of {tmp_path} has 300.0 MiB free: everything is stored again"),
    ]


def test_it_looks_once_a_second_and_never_while_a_look_is_under_way(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    for _ in range(50):
        rig.tick(0.2)
    assert rig.looks == 11
    for _ in range(50):  # the writer is busy with a commit that takes long
        rig.now += SECOND
        rig.guard.tick(rig.now)
    assert len(rig.worker.queue) == 1


def test_a_disk_that_can_not_be_looked_at_is_told_once_and_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(tmp_path)
    rig.at(100 * MIB)
    caplog.clear()
    assert [rig.at(-1) for _ in range(3)] == [Level.LOW] * 3
    (record,) = caplog.records
    assert record.getMessage() == f"cannot see how much room {tmp_path} has: [Errno 5] Input/output error"
    assert rig.at(TOTAL) is Level.PLENTY


# -- the reserve


def test_the_reserve_is_made_at_the_start_and_counts_as_free(tmp_path: Path) -> None:
    rig = Rig(tmp_path, free=120 * MIB)
    assert rig.reserve.held == 16 * MIB
    assert rig.guard.free == 120 * MIB
    assert rig.at(65 * MIB) is Level.LOW
    assert rig.guard.free == 65 * MIB


def test_where_there_is_no_room_for_the_reserve_it_is_made_once_there_is(tmp_path: Path) -> None:
    rig = Rig(tmp_path, free=80 * MIB)
    assert rig.reserve.held == 0
    assert rig.guard.level is Level.LOW, "it was not given back, so it is not what decides"
    rig.at(110 * MIB)
    assert rig.reserve.held == 16 * MIB


def test_once_the_reserve_is_given_back_nothing_is_taken_on_until_it_could_be_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(tmp_path)
    rig.others_free = 16 * MIB
    assert rig.reserve.release()
    assert rig.tick(0.2) is Level.FULL, "without waiting for the next second"
    assert not rig.reserve.release()
    assert [rig.at(free * MIB) for free in (16, 50, 80, 103)] == [Level.FULL] * 4
    assert caplog.messages[1:] == [
        f"the disk of {tmp_path} has 16.0 MiB free: QoS 1 and 2 are refused until there are 104.0 MiB; free some space"
    ]
    assert rig.at(104 * MIB) is Level.LOW
    assert rig.reserve.held == 16 * MIB
    assert not rig.reserve.spent


def test_a_quota_that_the_file_system_does_not_tell_of_is_tried_now_and_then(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(tmp_path)
    rig.quota = errno.EDQUOT
    rig.reserve.release()
    caplog.clear()
    rig.attempts = 0
    for _ in range(2 * PATIENCE // SECOND):
        assert rig.tick() is Level.FULL
    assert rig.attempts == 2
    (record,) = caplog.records
    assert record.getMessage() == (
        f"the disk of {tmp_path} has 2,048.0 MiB free, but no room for the node's reserve of 16.0 MiB: "
        "QoS 1 and 2 are refused until there is; see whether there is a quota"
    )
    rig.quota = 0
    rig.tick(PATIENCE // SECOND)
    assert rig.told == [Level.FULL, Level.PLENTY]


def test_a_node_that_starts_without_its_reserve_and_has_a_quota_in_the_way_takes_nothing_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.quota = errno.EDQUOT
    rig.reserve.remove()
    rig.guard = Guard(rig.reserve, rig.levels, rig.worker, rig.told.append, rig._examine)
    rig.guard.start(rig.now)
    assert rig.guard.level is Level.FULL


def test_a_reserve_that_can_not_be_made_for_another_reason_is_told_once_and_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(tmp_path)
    rig.quota = errno.EFBIG
    rig.reserve.remove()
    for _ in range(100):
        assert rig.tick() is Level.PLENTY
    (record,) = caplog.records
    assert record.getMessage() == (
        f"cannot make {tmp_path}/{RESERVE}: File too large; without it the node may not start on a full disk"
    )


def test_a_reserve_that_is_to_have_another_size_is_made_anew_and_one_that_is_not_wanted_goes(tmp_path: Path) -> None:
    Rig(tmp_path)
    rig = Rig(tmp_path, Levels(256 * MIB, 64 * MIB, 4 * MIB))
    assert rig.reserve.held == 4 * MIB
    rig = Rig(tmp_path, Levels(256 * MIB, 64 * MIB, 0))
    assert not rig.reserve.path.exists()
    assert not rig.reserve.release()
    assert rig.tick() is Level.PLENTY


def test_the_reserve_takes_real_room_and_no_more_than_its_size(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / RESERVE)
    reserve.make(MIB)
    found = reserve.path.stat()
    assert found.st_size == reserve.held == MIB
    assert found.st_blocks * 512 >= MIB
    assert found.st_blocks * 512 < 2 * MIB
    assert found.st_mode & 0o007 == 0
    assert reserve.release()
    assert reserve.spent
    assert reserve.held == 0


# -- the probe


def test_a_probe_leaves_nothing_behind_and_says_why_a_file_can_not_be_written(tmp_path: Path) -> None:
    assert probe(tmp_path) == 0
    assert list(tmp_path.iterdir()) == []
    assert probe(tmp_path / "gone") == errno.ENOENT
    (tmp_path / PROBE).mkdir()
    assert probe(tmp_path) == errno.EISDIR

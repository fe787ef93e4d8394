"""A segment is there once it is whole and on the disk, whatever ends its writing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from unittest.mock import patch

import pytest

from bench.segments import telemetry
from storage.interface import Event, StorageError, StorageFull
from storage.segment import Segment, verify
from storage.segment_writer import PARTIAL, STRIPE_BYTES, Sealing, SegmentInfo, Shape, remove_partial, write_segment
from tests.storage.contract import event
from tests.storage.test_segment import read_all

SHAPE = Shape(3, 1000, 100)
EVENTS = 3000
_CHILD = f"""
import os, signal, sys
from itertools import count, islice
from pathlib import Path
from bench.segments import telemetry
from storage.segment_writer import Sealing, Shape

directory, steps = Path(sys.argv[1]), int(sys.argv[2])
events = list(islice(telemetry(50), {EVENTS}))
print("ready", flush=True)
for number in count():
    sealing = Sealing(directory / f"{{number}}.segment", events, Shape(3, 1000, 100))
    while sealing.step() is None:
        if not steps:
            os.kill(os.getpid(), signal.SIGKILL)
        steps -= 1
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.segment"


@pytest.fixture(scope="module")
def plant() -> list[Event]:
    return list(islice(telemetry(50), EVENTS))


def _finish(sealing: Sealing) -> SegmentInfo:
    while (info := sealing.step()) is None:
        pass
    return info


def _child(directory: Path, steps: int) -> subprocess.Popen[bytes]:
    """Writes one segment after another; it kills itself in the middle of them, after so many steps."""
    process = subprocess.Popen([sys.executable, "-c", _CHILD, str(directory), str(steps)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as output:
        assert output.readline() == b"ready\n"
    return process


def _check(directory: Path, plant: list[Event]) -> tuple[int, int]:
    """Whatever has the name of a segment is one; how many of them there are, and how many other files."""
    segments = sorted(directory.glob("*.segment"))
    for path in segments:
        assert verify(path) == []
        with Segment.open(path) as segment:
            assert read_all(segment) == plant
    others = [path for path in directory.iterdir() if path not in segments]
    assert all(path.name.endswith(PARTIAL) for path in others)
    return len(segments), len(others)


def test_a_kill_after_any_step_leaves_a_whole_segment_or_none(tmp_path: Path, plant: list[Event]) -> None:
    sealing = Sealing(tmp_path / "counted", plant, SHAPE)
    steps = 0
    while sealing.step() is None:
        steps += 1
    for killed in (0, 1, steps // 2, steps - 3, steps - 2, steps - 1, steps + 3):
        directory = tmp_path / str(killed)
        directory.mkdir()
        process = _child(directory, killed)
        assert process.wait(20) == -signal.SIGKILL
        assert _check(directory, plant) == (int(killed >= steps), 1)
        remove_partial(directory)
        assert _check(directory, plant) == (int(killed >= steps), 0)


def test_a_kill_at_any_moment_leaves_whole_segments_only(tmp_path: Path, plant: list[Event]) -> None:
    random = Random(9)
    whole = 0
    for attempt in range(6):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        process = _child(directory, sys.maxsize)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(random.uniform(0.05, 0.3))
        process.kill()
        process.wait()
        segments, others = _check(directory, plant)
        assert others <= 1
        whole += segments
    assert whole


def test_a_segment_gets_its_name_when_all_of_it_is_on_the_disk(path: Path, plant: list[Event]) -> None:
    calls: list[str] = []

    def watched(name: str) -> object:
        call = getattr(os, name)

        def calling(*arguments: object) -> object:
            calls.append(name)
            if name != "rename":
                assert path.exists() == ("rename" in calls)
            return call(*arguments)

        return patch(f"os.{name}", calling)

    with watched("pwrite"), watched("fsync"), watched("rename"):  # type: ignore[attr-defined] # patches, all of them
        write_segment(path, plant, SHAPE)
    assert calls[-3:] == ["fsync", "rename", "fsync"]
    assert set(calls[:-3]) == {"pwrite"}


def test_no_step_takes_up_or_compresses_more_than_a_few_hundred_events(path: Path, plant: list[Event]) -> None:
    taken = 0

    def counted() -> Iterator[Event]:
        nonlocal taken
        for each in plant:
            taken += 1
            yield each

    sealing = Sealing(path, counted(), SHAPE)
    partial = path.with_name(path.name + PARTIAL)
    before = size = 0
    done = None
    while done is None:
        done = sealing.step()
        assert taken - before <= 512
        before = taken
        if done is None:
            assert partial.stat().st_size - size < 10_000, "one block"
            size = partial.stat().st_size


def test_a_large_event_takes_many_steps(path: Path) -> None:
    events = [event(1), event(2, payload=Random(1).randbytes(5 << 20)), event(3)]
    sealing = Sealing(path, events)
    written = []
    partial = path.with_name(path.name + PARTIAL)
    while sealing.step() is None:
        written.append(partial.stat().st_size)
    assert max(after - before for before, after in pairwise(written)) <= 1 << 20
    with Segment.open(path) as segment:
        assert read_all(segment) == events


@pytest.mark.parametrize(("topic", "size"), [("plant/line1", 400_000), ("t" * 60_000, 0)])
def test_a_stripe_holds_a_few_megabytes_whether_of_payloads_or_of_names(path: Path, topic: str, size: int) -> None:
    info = write_segment(path, (event(seq, topic + str(seq), bytes(size)) for seq in range(1, 101)), Shape(1))
    assert info.header.stripes >= 100 * (len(topic) + size) // STRIPE_BYTES
    assert verify(path) == []


def test_more_than_a_segment_can_hold_is_refused(path: Path) -> None:
    with patch("storage.segment_writer.MOST_VALUES", 9), pytest.raises(ValueError, match="seal fewer"):
        write_segment(path, (event(seq) for seq in range(1, 11)))
    with patch("storage.segment_writer.MOST_RAW_BYTES", 90), pytest.raises(ValueError, match="seal fewer"):
        write_segment(path, [event(1, payload=bytes(91))])
    assert list(path.parent.iterdir()) == []


def test_an_abandoned_segment_leaves_nothing(path: Path, plant: list[Event]) -> None:
    for steps in (0, 1, 20):
        sealing = Sealing(path, plant, SHAPE)
        for _ in range(steps):
            assert sealing.step() is None
        sealing.abandon()
        sealing.abandon()
        assert list(path.parent.iterdir()) == []


def test_abandoning_what_is_done_leaves_the_segment(path: Path, plant: list[Event]) -> None:
    sealing = Sealing(path, plant, SHAPE)
    info = _finish(sealing)
    sealing.abandon()
    assert verify(path) == []
    assert sealing.step() == info


def test_what_is_left_of_an_earlier_attempt_is_written_over(path: Path, plant: list[Event]) -> None:
    path.with_name(path.name + PARTIAL).write_bytes(bytes(1 << 20))
    write_segment(path, plant, SHAPE)
    assert verify(path) == []
    assert list(path.parent.iterdir()) == [path]


def test_a_segment_that_is_there_is_never_changed(path: Path, plant: list[Event]) -> None:
    write_segment(path, plant, SHAPE)
    before = path.read_bytes()
    with pytest.raises(StorageError, match="is there already"):
        write_segment(path, plant[:10], SHAPE)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_no_events_and_events_out_of_order_are_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="at least one event"):
        write_segment(path, [])
    for second in (1, 2):
        with pytest.raises(ValueError, match=f"the event {second} comes after 2"):
            write_segment(path, [event(2), event(second)])
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("call", "calls", "code", "kind"),
    [
        ("os.pwrite", 0, errno.ENOSPC, StorageFull),
        ("os.pwrite", 12, errno.ENOSPC, StorageFull),
        ("os.pwrite", 12, errno.EDQUOT, StorageFull),
        ("os.pwrite", 12, errno.EIO, StorageError),
        ("os.fsync", 0, errno.EIO, StorageError),
        ("os.rename", 0, errno.EROFS, StorageError),
        ("os.fsync", 1, errno.EIO, StorageError),
        ("os.open", 0, errno.EACCES, StorageError),
    ],
)
def test_an_error_of_the_disk_leaves_nothing_and_says_what_to_do(
    path: Path, plant: list[Event], call: str, calls: int, code: int, kind: type[StorageError]
) -> None:
    real = getattr(os, call.removeprefix("os."))
    left = calls

    def failing(*arguments: object, **named: object) -> object:
        nonlocal left
        if not left:
            raise OSError(code, os.strerror(code))
        left -= 1
        return real(*arguments, **named)

    sealing = Sealing(path, plant, SHAPE)
    with (
        patch(call, failing),
        pytest.raises(StorageError, match=f"sealing .*{os.strerror(code)}.*nothing is lost") as raised,
    ):
        _finish(sealing)
    assert type(raised.value) is kind
    assert list(path.parent.iterdir()) == []
    write_segment(path, plant, SHAPE)
    assert verify(path) == []


def test_an_error_of_the_source_leaves_nothing(path: Path, plant: list[Event]) -> None:
    def failing() -> Iterator[Event]:
        yield from plant[:1500]
        raise StorageError("the tail can't be read")

    with pytest.raises(StorageError, match="the tail can't be read"):
        write_segment(path, failing(), SHAPE)
    assert list(path.parent.iterdir()) == []


def test_writes_that_are_cut_short_are_continued(path: Path, plant: list[Event]) -> None:
    pwrite = os.pwrite
    with patch("os.pwrite", lambda file, data, place: pwrite(file, data[:700], place)):
        write_segment(path, plant, SHAPE)
    assert verify(path) == []
    assert _check(path.parent, plant) == (1, 0)

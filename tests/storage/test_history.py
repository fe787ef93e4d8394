"""Reading across segments and the tail, around whatever is wrong, and beside a node that seals meanwhile."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import sleep
from zlib import crc32

import pytest

import storage.history
from storage.catalog import Catalog
from storage.history import OPEN, STRIPES, History
from storage.interface import Event, StorageError
from storage.sealer import Policy
from storage.segment_format import HEADER_BYTES
from storage.segment_writer import Shape, write_segment
from storage.sqlite import SQLiteEngine
from tests.storage.contract import event, read_all

SMALL = Shape(level=1, stripe_events=16, block_events=4)


def fill(directory: Path, *ranges: range, shape: Shape = SMALL) -> list[Path]:
    """A segment with the events of each range."""
    segments = directory / "segments"
    segments.mkdir(parents=True, exist_ok=True)
    return [
        write_segment(
            segments / f"{seqs[0]:020}-{seqs[-1]:020}.segment", [event(seq, f"t/{seq % 5}") for seq in seqs], shape
        ).path
        for seqs in ranges
    ]


def seal_all(engine: SQLiteEngine) -> None:
    """Seal what is due, and tidy up."""
    while engine.upkeep():
        sleep(0)


def spoil_header(path: Path) -> None:
    """Nothing tells any more what is in the file."""
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    data[20 - HEADER_BYTES] ^= 1
    path.write_bytes(data)


def spoil_block(path: Path) -> None:
    """The first block of the file is not what was written."""
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + 70] ^= 0xFF
    path.write_bytes(data)


def seqs_of(events: list[Event]) -> list[int]:
    return [each.seq for each in events]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., SQLiteEngine]]:
    """Engines over the data directory, which are closed in the end."""
    engines: list[SQLiteEngine] = []

    def make(policy: Policy = Policy(bytes=0), *, readonly: bool = False) -> SQLiteEngine:  # noqa: B008 - a value
        engines.append(SQLiteEngine(tmp_path, readonly=readonly, policy=policy))
        return engines[-1]

    yield make
    for engine in reversed(engines):
        engine.close()


# -- without a seam


def test_segments_and_then_the_tail_are_one_log(tmp_path: Path, opened: Callable[..., SQLiteEngine]) -> None:
    fill(tmp_path, range(1, 41), range(41, 90), range(200, 220))
    engine = opened()
    engine.commit([event(seq, f"t/{seq % 5}") for seq in range(300, 320)], {}, True)
    everything = [*range(1, 90), *range(200, 220), *range(300, 320)]
    assert seqs_of(read_all(engine)) == everything
    assert seqs_of(read_all(engine, "t/3".__eq__)) == [seq for seq in everything if seq % 5 == 3]
    assert engine.read(0, 1000, 1000, None) == ([event(seq, f"t/{seq % 5}") for seq in everything], 1000)
    assert seqs_of(engine.read(38, 42, 500, None)[0]) == [39, 40, 41, 42]
    assert seqs_of(engine.get([319, 89, 90, 1, 300, 205, 150])) == [1, 89, 205, 300, 319]
    assert (engine.last(), engine.last_ts()) == (319, event(319).ts)


def test_where_the_tail_is_empty_the_last_event_is_that_of_the_last_segment(
    tmp_path: Path, opened: Callable[..., SQLiteEngine]
) -> None:
    fill(tmp_path, range(1, 41), range(41, 90))
    for readonly in (False, True):
        engine = opened(readonly=readonly)
        assert (engine.last(), engine.last_ts()) == (89, event(89).ts)
        assert seqs_of(read_all(engine)) == [*range(1, 90)]


def test_rows_that_are_sealed_are_read_from_the_segment_and_deleted(
    tmp_path: Path, opened: Callable[..., SQLiteEngine]
) -> None:
    engine = opened()
    engine.commit([event(seq, payload=b"row") for seq in range(1, 101)], {}, True)
    engine.close()
    fill(tmp_path, range(21, 61))
    engine = opened()
    found = read_all(engine)
    assert seqs_of(found) == [*range(1, 101)]
    assert {each.seq for each in found if each.payload == b"row"} == {*range(1, 21), *range(61, 101)}
    seal_all(engine)
    left = engine._writer.execute("SELECT seq FROM tail ORDER BY seq").fetchall()
    assert [seq for (seq,) in left] == [*range(1, 21), *range(61, 101)], "what no segment has stays"
    assert read_all(engine) == found


def test_of_segments_that_overlap_each_seq_is_served_once(tmp_path: Path, opened: Callable[..., SQLiteEngine]) -> None:
    fill(tmp_path, range(1, 51), range(30, 81), range(35, 45), range(81, 90), range(1, 40))
    engine = opened()
    assert seqs_of(read_all(engine)) == [*range(1, 90)]
    assert seqs_of(read_all(engine, "t/2".__eq__)) == [*range(2, 90, 5)]
    assert seqs_of(engine.get(range(100))) == [*range(1, 90)]


def test_of_many_segments_few_are_held_open_and_few_stripes_are_kept(
    tmp_path: Path, opened: Callable[..., SQLiteEngine]
) -> None:
    fill(tmp_path, *(range(at, at + 20) for at in range(1, 1001, 20)))
    engine = opened()
    for accepts in (None, "t/1".__eq__, lambda topic: topic in ("t/2", "t/3")):
        read_all(engine, accepts, limit=7)
    history = engine._history
    assert len(history._open) == OPEN
    assert len(history._recent._stripes) <= STRIPES
    files = [os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    assert sum(each.endswith(".segment") for each in files) == OPEN


# -- what is wrong


def test_a_segment_that_can_not_be_trusted_is_set_aside_and_the_node_runs(
    tmp_path: Path, opened: Callable[..., SQLiteEngine], caplog: pytest.LogCaptureFixture
) -> None:
    _, path, _ = fill(tmp_path, range(1, 41), range(41, 90), range(90, 100))
    spoil_header(path)
    data = path.read_bytes()
    engine = opened()
    assert seqs_of(read_all(engine)) == [*range(1, 41), *range(90, 100)]
    (message,) = caplog.messages
    assert "seqs 41 to 89 are lost" in message
    assert not path.exists()
    (moved,) = path.parent.glob(f"{path.name}.damaged-*")
    assert moved.read_bytes() == data, "not a byte of it is changed"
    engine.close()
    caplog.clear()
    assert seqs_of(read_all(opened())) == [*range(1, 41), *range(90, 100)]
    assert not caplog.messages, "it was said"


def test_rows_that_are_still_there_take_the_place_of_a_segment_that_was_set_aside(
    tmp_path: Path, opened: Callable[..., SQLiteEngine]
) -> None:
    engine = opened()
    engine.commit([event(seq) for seq in range(1, 61)], {}, True)
    engine.close()
    path, _ = fill(tmp_path, range(1, 31), range(31, 41))
    spoil_header(path)
    engine = opened()
    seal_all(engine)
    assert seqs_of(read_all(engine)) == [*range(1, 61)]


def test_whoever_only_reads_moves_nothing(
    tmp_path: Path, opened: Callable[..., SQLiteEngine], caplog: pytest.LogCaptureFixture
) -> None:
    opened().close()
    path, _ = fill(tmp_path, range(1, 41), range(41, 90))
    spoil_header(path)
    partial = path.with_name("x.segment.partial")
    partial.touch()
    reader = opened(readonly=True)
    assert seqs_of(read_all(reader)) == [*range(41, 90)]
    assert path.exists()
    assert partial.exists()
    assert len(caplog.messages) == 1


def test_a_segment_that_may_not_be_read_stays_where_it_is(
    tmp_path: Path,
    opened: Callable[..., SQLiteEngine],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path, _ = fill(tmp_path, range(1, 41), range(41, 90))
    open = os.open

    def refusing(file: Path, *arguments: int) -> int:
        if file == path:
            raise PermissionError(13, "Permission denied")
        return open(file, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refusing)
        engine = opened()
        why = f"reading {path}: Permission denied; see whether the node may read it"
        assert caplog.messages == [f"{why}; what is in it is read as soon as it can be"]
        with pytest.raises(StorageError, match=why):
            engine.read(0, 89, 10, None)
        assert seqs_of(engine.read(40, 89, 100, None)[0]) == [*range(41, 90)]
        assert path.exists()
    assert seqs_of(read_all(engine)) == [*range(1, 90)], "the operator has put it right"


def test_a_disk_that_does_not_give_the_header_back_moves_nothing_and_is_asked_again(
    tmp_path: Path,
    opened: Callable[..., SQLiteEngine],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path, _ = fill(tmp_path, range(1, 41), range(41, 90))
    bad = path.stat().st_ino
    pread = os.pread

    def failing(descriptor: int, size: int, place: int) -> bytes:
        if os.fstat(descriptor).st_ino == bad:
            raise OSError(5, "Input/output error")
        return pread(descriptor, size, place)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", failing)
        patched.setattr("storage.catalog.readable", lambda path: False)
        patched.setattr("storage.history.readable", lambda path: False)
        engine = opened()
        assert path.exists()
        assert "see whether the disk is sound" in caplog.messages[0]
        with pytest.raises(StorageError, match="see whether it is sound"):
            engine.read(0, 89, 10, None)
        assert seqs_of(engine.read(40, 89, 100, None)[0]) == [*range(41, 90)]
    assert seqs_of(read_all(engine)) == [*range(1, 90)], "the disk is well again"


def test_a_damaged_block_is_served_around_and_reported_once(
    tmp_path: Path,
    opened: Callable[..., SQLiteEngine],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage.history, "OPEN", 1)
    path, _ = fill(tmp_path, range(1, 41), range(41, 90))
    spoil_block(path)
    engine = opened()
    found = seqs_of(read_all(engine))
    assert 0 < 89 - len(found) <= 2 * SMALL.block_events
    for _ in range(3):  # with one file open it is opened anew each time
        assert seqs_of(read_all(engine)) == found
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    lost = sorted({*range(1, 90)} - {*found})
    assert f"{len(lost)} events are lost, with seqs in {lost[0]}" in record.getMessage()


def test_a_segment_that_loses_its_header_under_a_node_is_passed_over_and_reported_once(
    tmp_path: Path, opened: Callable[..., SQLiteEngine], caplog: pytest.LogCaptureFixture
) -> None:
    path, _ = fill(tmp_path, range(1, 41), range(41, 90))
    engine = opened()
    spoil_header(path)
    for _ in range(2):
        assert seqs_of(read_all(engine)) == [*range(41, 90)]
    assert len(caplog.messages) == 1
    assert "seqs in 1 to 40" in caplog.messages[0]
    assert path.exists(), "the next start sets it aside"


def test_a_foreign_file_is_let_be_and_told_of_once(
    tmp_path: Path, opened: Callable[..., SQLiteEngine], caplog: pytest.LogCaptureFixture
) -> None:
    opened().close()
    (path,) = fill(tmp_path, range(1, 41))
    foreign = path.with_name("notes.txt")
    foreign.write_text("mine")
    other = path.with_name("1-2.segment")
    other.write_text("mine too")
    reader = opened(readonly=True)
    for _ in range(3):
        assert seqs_of(read_all(reader)) == [*range(1, 41)]
    assert len(caplog.messages) == 1
    assert "notes.txt" in caplog.messages[0]
    assert (foreign.read_text(), other.read_text()) == ("mine", "mine too")


def test_what_was_being_written_is_removed_at_the_start(tmp_path: Path, opened: Callable[..., SQLiteEngine]) -> None:
    (path,) = fill(tmp_path, range(1, 41))
    partial = path.with_name(f"{41:020}-{80:020}.segment.partial")
    partial.write_bytes(b"half")
    assert seqs_of(read_all(opened())) == [*range(1, 41)]
    assert not partial.exists()


def test_a_segment_of_a_newer_berm_is_one_clear_error_and_nothing_is_changed(tmp_path: Path) -> None:
    (path,) = fill(tmp_path, range(1, 41))
    for place in (0, path.stat().st_size - HEADER_BYTES):
        data = bytearray(path.read_bytes())
        data[place + 8] = 99
        data[place + 12 : place + 16] = crc32(data[place : place + 12]).to_bytes(4, "little")
        path.write_bytes(data)
    with pytest.raises(StorageError, match="newer Berm"):
        SQLiteEngine(tmp_path)
    assert path.read_bytes() == data


# -- beside a node that seals


def test_a_reader_in_the_same_process_misses_nothing_when_rows_go_between_its_look_and_its_read(
    opened: Callable[..., SQLiteEngine],
) -> None:
    engine = opened(Policy(bytes=1, age=1 << 62))
    for at in range(1, 41, 10):
        engine.commit([event(seq, f"t/{seq % 5}") for seq in range(at, at + 10)], {}, True)
    engine._tail = _Overtaken(engine._tail, lambda: seal_all(engine))  # type: ignore[assignment]  # it stands for it
    assert engine._history.chain.last == 0
    assert seqs_of(engine.read(0, 40, 500, None)[0]) == [*range(1, 41)]
    assert engine._history.chain.last == 30
    engine.commit([event(41)], {}, True)
    assert seqs_of(engine.get([5, 35, 41])) == [5, 35, 41]
    assert engine._history.chain.last == 40


class _Overtaken:
    """The tail, where something happens just before each read."""

    def __init__(self, tail: object, first: Callable[[], None]) -> None:
        self._tail = tail
        self._first = first

    def __getattr__(self, name: str) -> object:
        self._first()
        return getattr(self._tail, name)


def test_another_process_misses_nothing_when_rows_go_between_its_look_and_its_read(
    opened: Callable[..., SQLiteEngine],
) -> None:
    engine = opened(Policy(bytes=1, age=1 << 62))
    for at in range(1, 41, 10):
        engine.commit([event(seq, f"t/{seq % 5}") for seq in range(at, at + 10)], {}, True)
    reader = opened(readonly=True)
    reader._tail = _Overtaken(reader._tail, lambda: seal_all(engine))  # type: ignore[assignment]  # it stands for it
    assert seqs_of(reader.read(0, 40, 500, None)[0]) == [*range(1, 41)]
    assert reader._history.chain.last == 30
    engine.commit([event(41)], {}, True)
    assert reader.last() == 41
    engine.commit([event(42)], {}, True)
    assert seqs_of(reader.get([5, 40, 41, 42])) == [5, 40, 41, 42]


_SEALS = """
import sys
from time import sleep
from pathlib import Path
import storage.sealer
from storage.sealer import Policy
from storage.interface import Event
from storage.sqlite import SQLiteEngine

storage.sealer.SEALING_SHARE = storage.sealer.SHARE = 1.0  # as fast as it can

engine = SQLiteEngine(Path(sys.argv[1]), policy=Policy(bytes=4000, level=1))
seq = engine.last()
while seq < 6000:
    group = [Event(seq + n, seq + n, f"t/{(seq + n) % 5}", b"x" * 50, 1, False, "c", b"", 0, 2) for n in range(1, 11)]
    seq += 10
    engine.commit(group, {}, True)
    for _ in range(10):
        engine.upkeep()
        sleep(0)  # for the thread that writes the segment
    print(seq, flush=True)
"""


def test_another_process_that_reads_all_the_time_never_sees_a_gap(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", _SEALS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    try:
        assert int(writer.stdout.readline()) == 10
        reader = SQLiteEngine(tmp_path, readonly=True)
        rounds = position = 0
        while position < 6000:
            upto = reader.last()
            after = max(0, position - 100)
            while after < upto:
                found, reached = reader.read(after, upto, 64, None)
                assert seqs_of(found) == [*range(after + 1, min(after + len(found), upto) + 1)]
                assert found[-1].seq == reached
                after = reached
            wanted = [1, upto // 2 or 1, upto]
            assert {*seqs_of(reader.get(wanted))} == {*wanted}
            position = upto
            rounds += 1
        assert rounds > 5
        assert reader._history.chain.last > 3000
        reader.close()
    finally:
        writer.stdout.close()
        writer.kill()
        writer.wait()


def test_a_thousand_segments_are_opened_by_their_headers_alone(tmp_path: Path) -> None:
    (first,) = fill(tmp_path, range(1, 3))
    for at in range(3, 2001, 2):
        write_segment(first.with_name(f"{at:020}-{at + 1:020}.segment"), [event(at), event(at + 1)], SMALL)
    history = History(first.parent)
    assert len(history.chain.stretches) == 1000
    assert not history._open
    names = {path.name for path in first.parent.iterdir()}
    assert Catalog(first.parent, lambda damage: None).chain().stretches == history.chain.stretches
    assert names == {path.name for path in first.parent.iterdir()}
    history.close()

"""`verify` finds what is damaged and says which seqs that costs; `repair` brings back all the rest."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from storage.database import DATABASE
from storage.datakey import KEY_BYTES, DataKey
from storage.interface import META, StorageError
from storage.repair import repair
from storage.sealer import Policy
from storage.segment import Segment
from storage.segment_format import HEADER_BYTES
from storage.segment_writer import write_segment
from storage.sqlite import SQLiteEngine
from storage.verify import examine_all
from tests.storage.contract import event, read_all

SMALL = Policy(bytes=100_000, age=1 << 62)
EVENTS = [event(seq, f"plant/{seq % 7}", random.Random(seq).randbytes(150)) for seq in range(1, 3001)]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    data = tmp_path_factory.mktemp("image")
    engine = SQLiteEngine(data, policy=SMALL)
    for at in range(0, 3000, 100):
        engine.commit(EVENTS[at : at + 100], {META: {("reserved",): ("5000",)}}, True)
        while engine.upkeep():
            pass
    engine.close()
    return {str(path.relative_to(data)): path.read_bytes() for path in data.rglob("*") if path.is_file()}


@pytest.fixture
def data(image: dict[str, bytes], tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    (directory / "segments").mkdir(parents=True)
    for name, content in image.items():
        (directory / name).write_bytes(content)
    return directory


def _segments(data: Path) -> list[Path]:
    return sorted((data / "segments").glob("*.segment"))


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


def _files(data: Path) -> dict[str, bytes]:
    """All that a reader of the database doesn't make."""
    others = (".lock", ".db-shm", ".db-wal")
    return {str(path): path.read_bytes() for path in data.rglob("*") if path.is_file() and path.suffix not in others}


def _started(data: Path) -> list[int]:
    engine = SQLiteEngine(data)
    try:
        assert engine.quarantined is None
        found = read_all(engine)
        assert all(EVENTS[each.seq - 1] == each for each in found)
        return [each.seq for each in found]
    finally:
        engine.close()


def test_of_a_sound_log_nothing_is_reported_and_nothing_is_repaired(data: Path) -> None:
    assert len(_segments(data)) > 2
    for deep in (False, True):
        report = examine_all(data, deep)
        assert not report.problems + report.notes
        assert not report.lost
        assert report.segments == len(_segments(data))
    before = _files(data)
    done = repair(data)
    assert (done.lines, done.lost, done.left) == ([], [], 0)
    assert _files(data) == before


def test_verify_works_beside_a_running_node_and_changes_nothing(data: Path) -> None:
    engine = SQLiteEngine(data)
    assert examine_all(data, deep=True).problems == []
    engine.close()


@pytest.mark.parametrize("seed", range(12))
def test_any_byte_of_a_segment_that_is_changed_is_found_and_repaired(data: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = _segments(data)[1]
    _flip(path, chance.randrange(path.stat().st_size))
    damaged = path.read_bytes()
    report = examine_all(data)
    assert len(report.problems) == 1
    before = _files(data)
    told = repair(data, dry_run=True)
    assert _files(data) == before
    done = repair(data)
    assert done.lost == told.lost == report.lost
    (moved,) = (data / "segments").glob("*.damaged-*")
    assert moved.read_bytes() == damaged, "nothing is thrown away"
    after = examine_all(data, deep=True)
    assert not after.problems
    assert not after.lost
    found = _started(data)
    lost = {seq for first, last in done.lost for seq in range(first, last + 1)}
    assert set(range(1, 3001)) - set(found) <= lost
    assert len(found) > 2400


@pytest.mark.parametrize("at", [0, -HEADER_BYTES])
def test_a_header_that_is_damaged_costs_nothing_and_is_there_again_after_a_repair(data: Path, at: int) -> None:
    path = _segments(data)[0]
    _flip(path, at + (path.stat().st_size if at < 0 else 0))
    assert "no event is lost" in repair(data).lines[0]
    assert examine_all(data).problems == []
    assert _started(data) == list(range(1, 3001))


def test_a_segment_of_which_nothing_can_be_told_is_set_aside(data: Path) -> None:
    path = _segments(data)[1]
    path.write_bytes(bytes(path.stat().st_size))
    first, last = int(path.name[:20]), int(path.name[21:41])
    report = examine_all(data)
    assert report.lost == [(first, last)]
    done = repair(data)
    assert done.lost == [(first, last)]
    assert not path.exists()
    after = examine_all(data)
    assert after.problems == []
    assert len(after.notes) == 1
    assert "was set aside" in after.notes[0]
    assert _started(data) == [seq for seq in range(1, 3001) if not first <= seq <= last]


def test_a_segment_of_which_no_event_is_left_is_set_aside(data: Path) -> None:
    path = _segments(data)[1]
    content = bytearray(path.read_bytes())
    content[HEADER_BYTES:-HEADER_BYTES] = bytes(len(content) - 2 * HEADER_BYTES)
    path.write_bytes(content)
    repair(data)
    assert not path.exists()
    assert examine_all(data).problems == []


def test_a_damaged_database_is_found_and_repaired(data: Path) -> None:
    with closing(sqlite3.connect(data / DATABASE)) as tool:
        pages = [
            page for (page,) in tool.execute("SELECT pageno FROM dbstat WHERE name = 'tail' AND pagetype = 'leaf'")
        ]
    _flip(data / DATABASE, (pages[3] - 1) * 4096)
    for deep in (False, True):
        (problem,) = examine_all(data, deep).problems
        assert "`berm log repair` reads from it what can be read" in problem
    told = repair(data, dry_run=True)
    done = repair(data)
    assert done.lost == told.lost != []
    (moved,) = data.glob("berm.db.damaged-*[0-9]")
    assert f"is now {moved.name}" in done.lines[0]
    assert examine_all(data, deep=True).problems == []
    lost = {seq for first, last in done.lost for seq in range(first, last + 1)}
    assert set(range(1, 3001)) - set(_started(data)) <= lost


def test_segments_that_overlap_are_noted(data: Path) -> None:
    first = _segments(data)[0]
    with Segment.open(first) as segment:
        events, _ = segment.read(0, 1 << 60, 10)
    write_segment(first.with_name(f"{5:020}-{14:020}.segment"), [EVENTS[n - 1] for n in range(5, 15)])
    assert events[0].seq == 1
    (note,) = examine_all(data).notes
    assert note == "two segments have the seqs 5 to 14; each event is served once"


def test_a_segment_whose_key_is_not_at_hand_is_left_as_it_is(data: Path) -> None:
    path = _segments(data)[0]
    key = DataKey(1, bytes(KEY_BYTES))
    with Segment.open(path) as segment:
        events, _ = segment.read(0, 1 << 60, 1 << 30)
    path.unlink()
    write_segment(path, events, key=key)
    before = path.read_bytes()
    report = examine_all(data)
    assert len(report.problems) == 1
    assert "is intact, but encrypted" in report.problems[0]
    assert report.lost == []
    done = repair(data)
    assert done.left == 1
    assert path.read_bytes() == before
    _flip(path, 5000)
    repair(data, {1: key}.get)
    with Segment.open(path, keys={1: key}.get) as segment:
        assert segment.info.header.key == 1, "it is encrypted still"
    assert examine_all(data, keys={1: key}.get).problems == []


def test_a_node_that_runs_is_not_repaired(data: Path) -> None:
    engine = SQLiteEngine(data)
    with pytest.raises(StorageError, match="is in use by the node"):
        repair(data)
    engine.close()


def test_a_directory_without_a_log_is_not_touched(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is no log"):
        repair(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_segment_that_retention_takes_meanwhile_is_no_problem(data: Path) -> None:
    paths = _segments(data)

    def taken(size: int) -> None:
        paths[-1].unlink(missing_ok=True)

    report = examine_all(data, pace=taken)
    assert report.problems == []
    assert report.segments == len(paths) - 1

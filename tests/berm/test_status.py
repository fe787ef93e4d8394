from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from berm.status import LOCK, SHOWN, gather, lock_holder, to_json, to_text
from storage.interface import CURSORS, FSYNC, META, SESSIONS, Event, Group
from storage.sqlite import SQLiteEngine


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[SQLiteEngine]:
    engine = SQLiteEngine(tmp_path)
    yield engine
    engine.close()


def fill(engine: SQLiteEngine) -> None:
    """Ten events, four sessions, two other cursors."""
    group = Group()
    group.events = [Event(seq, seq * 1_000_000, "t", b"x", 1, False, "c", b"", 0, FSYNC) for seq in range(3, 13)]
    group.put(META, ("node",), ("edge-7",))
    group.put(META, ("epoch",), ("42",))
    for name, connected, position in (("a", 1, 12), ("b", 0, 5), ("c\x1b[2J", 1, 5), ("d", 0, 99)):
        group.put(SESSIONS, (name,), (5, 60, connected, 0, position, b"", b"", b"", ""))
    group.put(CURSORS, ("bridge/cloud/all",), (10,))
    group.put(CURSORS, ("processor/hot",), (12,))
    engine.commit(group.events, group.state, True)


def test_it_tells_the_log_its_readers_and_how_far_behind_they_are(engine: SQLiteEngine, tmp_path: Path) -> None:
    fill(engine)
    status = gather(engine, tmp_path)
    assert (status.running, status.pid) == (True, os.getpid())
    assert (status.node, status.epoch, status.first_seq, status.last_seq) == ("edge-7", "42", 3, 12)
    assert (status.first_time, status.last_time) == ("1970-01-01T00:00:03.000000Z", "1970-01-01T00:00:12.000000Z")
    assert status.files["berm.db"] > 0
    assert (status.sessions, status.connected) == (4, 2)
    assert [(each.client_id, each.behind) for each in status.most_behind] == [
        ("b", 7),
        ("c\x1b[2J", 7),
        ("a", 0),
        ("d", 0),
    ]
    assert [(each.name, each.position, each.behind) for each in status.cursors] == [
        ("bridge/cloud/all", 10, 2),
        ("processor/hot", 12, 0),
    ]


def test_a_node_that_was_killed_has_no_connected_sessions(engine: SQLiteEngine, tmp_path: Path) -> None:
    fill(engine)
    engine.close()
    reader = SQLiteEngine(tmp_path, readonly=True)
    status = gather(reader, tmp_path)
    reader.close()
    assert (status.running, status.pid, status.connected) == (False, None, 0)


def test_only_the_sessions_most_behind_are_listed(engine: SQLiteEngine, tmp_path: Path) -> None:
    group = Group()
    group.events = [Event(1, 1, "t", b"", 1, False, "c", b"", 0, FSYNC)]
    for number in range(20):
        group.put(SESSIONS, (f"s{number:02}",), (5, 60, 0, 0, 0, b"", b"", b"", ""))
    engine.commit(group.events, group.state, True)
    status = gather(engine, tmp_path)
    assert [each.client_id for each in status.most_behind] == [f"s{number:02}" for number in range(SHOWN)]
    assert status.sessions == 20


def test_people_get_aligned_lines_and_no_control_characters(engine: SQLiteEngine, tmp_path: Path) -> None:
    fill(engine)
    text = to_text(gather(engine, tmp_path))
    assert "node      edge-7 (running, pid" in text
    assert "log       3 to 12, 1970-01-01T00:00:03.000000Z to " in text
    lines = [line.split() for line in text.splitlines()]
    assert ["b", "no", "5", "7"] in lines
    assert ["c\\x1b[2J", "yes", "5", "7"] in lines
    assert ["bridge/cloud/all", "10", "2"] in lines
    assert len({len(line) for line in text.splitlines()[-3:]}) == 1
    assert "\x1b" not in text


def test_a_new_log_is_told_as_such(engine: SQLiteEngine, tmp_path: Path) -> None:
    status = gather(engine, tmp_path)
    assert (status.first_seq, status.last_seq, status.first_time) == (0, 0, None)
    assert "never started" in to_text(status)
    assert "log       none yet" in to_text(status)


def test_programs_get_json(engine: SQLiteEngine, tmp_path: Path) -> None:
    fill(engine)
    found = orjson.loads(to_json(gather(engine, tmp_path)))
    assert (found["last_seq"], found["cursors"][0]["behind"]) == (12, 2)


def test_a_lock_file_that_nobody_holds_means_that_nothing_runs(tmp_path: Path) -> None:
    assert lock_holder(tmp_path) is None
    (tmp_path / LOCK).write_text("123\n")
    assert lock_holder(tmp_path) is None


def test_asking_who_runs_does_not_take_the_lock(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    assert lock_holder(tmp_path) is None
    engine = SQLiteEngine(tmp_path)
    assert lock_holder(tmp_path) == os.getpid()
    engine.close()

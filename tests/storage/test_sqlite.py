from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import storage.sqlite
import storage.topics
from storage.database import PAGE_BYTES, WAL_BYTES
from storage.interface import META, OS, STATE, Row, StorageError, StorageFailed
from storage.sqlite import CHECKPOINT_PAGES, SQLiteEngine
from storage.tail import READ_BYTES
from tests.storage.contract import START, event, read_all

PATIENCE = 60.0


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[SQLiteEngine]:
    opened = SQLiteEngine(tmp_path)
    yield opened
    opened.close()


# -- for everyone's tools


def test_the_log_can_be_read_with_any_sqlite_tool_while_the_node_runs(engine: SQLiteEngine) -> None:
    kept = event(7, "plant/öfen", b"\x00\xff", ts=START + 123_000, durability=OS, qos=2)
    kept.retain = True
    kept.properties = b"\x03\x00\x01x"
    kept.expires = START + 60_000_000
    engine.commit([kept], {}, True)
    with closing(sqlite3.connect(engine.path)) as tool:
        tool.row_factory = sqlite3.Row
        (row,) = tool.execute("SELECT * FROM events")
        assert dict(row) == {
            "seq": 7,
            "time": "2023-11-14T22:13:20.123Z",
            "topic": "plant/öfen",
            "qos": 2,
            "retain": 1,
            "client": "press-7",
            "payload": b"\x00\xff",
            "properties": b"\x03\x00\x01x",
            "ts": START + 123_000,
            "expires": START + 60_000_000,
        }
        assert tool.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def test_an_engine_for_reading_sees_each_group_as_it_commits_and_changes_nothing(engine: SQLiteEngine) -> None:
    engine.commit([event(1)], {META: {("a",): ("1",)}}, True)
    reader = SQLiteEngine(engine.path.parent, readonly=True)
    assert read_all(reader) == [event(1)]
    engine.commit([event(2)], {}, False)
    assert read_all(reader) == [event(1), event(2)]
    assert reader.rows(META) == [("a", "1")]
    with pytest.raises(StorageFailed, match="readonly"):
        reader.commit([event(3)], {}, True)
    reader.close()
    engine.commit([event(3)], {}, True)
    assert engine.last() == 3


def test_an_engine_for_reading_leaves_the_wal_to_the_writer(engine: SQLiteEngine) -> None:
    engine.commit([event(1, payload=b"x" * 100_000)], {}, True)
    size = _wal(engine).stat().st_size
    before = engine.path.read_bytes()
    reader = SQLiteEngine(engine.path.parent, readonly=True)
    read_all(reader)
    reader.close()
    assert _wal(engine).stat().st_size == size
    assert engine.path.read_bytes() == before


def test_a_stopped_node_can_be_read(tmp_path: Path) -> None:
    engine = SQLiteEngine(tmp_path)
    engine.commit([event(1)], {}, True)
    engine.close()
    for _ in range(2):
        reader = SQLiteEngine(tmp_path, readonly=True)
        assert read_all(reader) == [event(1)]
        reader.close()
    SQLiteEngine(tmp_path).close()


def test_where_there_is_no_log_an_engine_for_reading_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"berm\.db: unable to open"):
        SQLiteEngine(tmp_path, readonly=True)
    (tmp_path / "berm.db").touch()
    with pytest.raises(StorageError, match="holds no log yet"):
        SQLiteEngine(tmp_path, readonly=True)
    with pytest.raises(StorageError):
        SQLiteEngine(tmp_path / "absent", readonly=True)
    assert not (tmp_path / "absent").exists()


def test_a_node_that_stops_leaves_one_file_to_copy(tmp_path: Path) -> None:
    engine = SQLiteEngine(tmp_path)
    engine.commit([event(1)], {}, True)
    engine.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["berm.db", "berm.lock"]


# -- topics


def test_a_topic_of_a_group_that_failed_is_not_taken_for_a_known_one(engine: SQLiteEngine) -> None:
    engine._writer.execute(f"PRAGMA max_page_count={_pages(engine) + 40}")
    with pytest.raises(StorageError):
        engine.commit([event(1, "lost"), event(2, "lost too", payload=b"x" * 400_000)], {}, True)
    engine.commit([event(3, "first"), event(4, "lost")], {}, True)
    assert [each.topic for each in read_all(engine)] == ["first", "lost"]


def test_ids_of_topics_take_bounded_memory(engine: SQLiteEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.topics, "_MOST_BYTES", 10_000)
    topics = [f"device/{number}/{'x' * (number % 300)}" for number in range(2000)]
    for at in range(0, len(topics), 50):
        # each group names old topics beside new ones, so that what was forgotten is asked for again
        group = topics[at : at + 50] + topics[: at + 1 : 97]
        last = engine.last()
        engine.commit([event(last + 1 + n, topic) for n, topic in enumerate(group)], {}, False)
        assert sum(map(len, engine._topics._ids)) < 40_000
    stored = engine._reader.execute("SELECT count(*), count(DISTINCT name) FROM topics").fetchone()
    assert stored == (2000, 2000)
    assert {each.topic for each in read_all(engine)} == set(topics)


def test_a_group_of_many_topics_takes_few_statements(engine: SQLiteEngine) -> None:
    statements: list[str] = []
    engine._writer.set_trace_callback(statements.append)
    rows: dict[Row, Row | None] = {("sum", 0, f"k{number}"): (b"x",) if number % 2 else None for number in range(1000)}
    engine.commit([event(seq, f"new/{seq}") for seq in range(1, 1025)], {STATE: rows}, True)
    assert len(statements) < 30


# -- bounds of a read


def test_a_read_of_large_payloads_returns_before_it_has_too_many_bytes(engine: SQLiteEngine) -> None:
    payload = b"x" * 10_000_000
    engine.commit([event(seq, payload=payload) for seq in range(1, 4)], {}, False)
    found, reached = engine.read(0, 3, 500, None)
    assert ([each.seq for each in found], reached) == ([1], 1)
    found, reached = engine.read(1, 3, 500, "plant/line1".__eq__)
    assert ([each.seq for each in found], reached) == ([2], 2)
    assert len(read_all(engine)) == 3


@pytest.mark.parametrize("what", ["topic", "client", "properties", "payload"])
def test_whatever_a_client_can_make_long_counts_against_the_bytes_of_a_read(engine: SQLiteEngine, what: str) -> None:
    long = 60_000
    events = [event(seq) for seq in range(1, 201)]
    for each in events:
        match what:
            case "topic":
                each.topic = f"{each.seq:0{long}}"
            case "client":
                each.client = f"{each.seq:0{long}}"
            case "properties":
                each.properties = b"x" * long
            case _:
                each.payload = b"x" * long
    engine.commit(events, {}, False)
    for accepts in (None, lambda topic: True):
        found, reached = engine.read(0, 200, 500, accepts)
        assert reached == found[-1].seq == len(found)
        assert (len(found) - 1) * long < READ_BYTES <= len(found) * (long + 100)
    assert read_all(engine) == events


# -- another program


def test_while_another_program_holds_the_database_a_group_is_refused_and_kept_when_it_lets_go(
    engine: SQLiteEngine,
) -> None:
    engine.commit([event(1)], {}, True)
    engine._writer.execute("PRAGMA busy_timeout=50")
    with closing(sqlite3.connect(engine.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="another program") as refused:
            engine.commit([event(2)], {META: {("a",): ("1",)}}, True)
        assert not isinstance(refused.value, StorageFailed)
        assert read_all(engine) == [event(1)]
        other.execute("ROLLBACK")
    engine.commit([event(2)], {META: {("a",): ("1",)}}, True)
    assert read_all(engine) == [event(1), event(2)]
    assert engine.rows(META) == [("a", "1")]


# -- the WAL


def test_upkeep_copies_the_wal_so_that_it_is_begun_anew(engine: SQLiteEngine) -> None:
    longest = _write(engine, megabytes=200)
    assert longest < 2 * CHECKPOINT_PAGES * PAGE_BYTES
    assert engine.path.stat().st_size > 150_000_000


def test_the_wal_stays_bounded_beside_a_reader_that_takes_no_breath(engine: SQLiteEngine) -> None:
    engine.commit([event(seq) for seq in range(1, 20_001)], {}, False)
    stop, started = threading.Event(), threading.Event()

    def read() -> None:
        after = 0
        while not stop.is_set():
            found, after = engine.read(after % 20_000, 20_000, 5000, None)
            assert found
            started.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert started.wait(PATIENCE)
    try:
        longest = _write(engine, megabytes=200)
    finally:
        stop.set()
        reader.join()
    assert longest < WAL_BYTES + 2 * CHECKPOINT_PAGES * PAGE_BYTES


def test_a_program_that_never_ends_its_transaction_is_complained_of_and_stops_nothing(
    engine: SQLiteEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(storage.sqlite, "WAL_BYTES", 4 << 20)
    monkeypatch.setattr(storage.sqlite, "CHECKPOINT_PAGES", 300)
    monkeypatch.setattr(storage.sqlite, "READERS_SECONDS", 0.0)
    engine._announced = 4 << 20
    engine.commit([event(1)], {}, True)
    for _ in range(2):
        with closing(sqlite3.connect(engine.path, isolation_level=None)) as other:
            other.execute("BEGIN").execute("SELECT seq FROM tail").fetchall()
            assert _write(engine, megabytes=40) > 30_000_000
        assert 1 <= len(caplog.records) <= 4, "at each doubling, not at each group"
        assert "another program reads it without a pause" in caplog.messages[0]
        caplog.clear()
        _write(engine, megabytes=10)
        engine.commit([event(engine.last() + 1)], {}, True)
        assert _wal(engine).stat().st_size <= WAL_BYTES


def test_the_nodes_own_reader_stands_back_while_a_long_wal_is_begun_anew(
    engine: SQLiteEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.sqlite, "WAL_BYTES", 1 << 20)
    monkeypatch.setattr(storage.sqlite, "READERS_SECONDS", 0.0)
    engine.commit([event(seq) for seq in range(1, 10)], {}, True)
    reading, go_on = threading.Event(), threading.Event()

    class Announced:
        """The lock, and a sign for the reader that the writer is about to wait for it."""

        def __init__(self) -> None:
            self._lock = threading.Lock()

        def __enter__(self) -> None:
            if threading.current_thread() is threading.main_thread():
                go_on.set()
            self._lock.acquire()

        def __exit__(self, *_: object) -> None:
            self._lock.release()

    def read() -> None:
        with engine._reading, closing(engine._reader.execute("SELECT seq FROM tail")) as rows:
            rows.fetchone()
            reading.set()
            assert go_on.wait(PATIENCE)

    monkeypatch.setattr(engine, "_reading", Announced())
    reader = threading.Thread(target=read)
    reader.start()
    assert reading.wait(PATIENCE)
    engine.commit([event(10, payload=bytes(CHECKPOINT_PAGES * PAGE_BYTES))], {}, True)
    try:
        engine.upkeep()
    finally:
        go_on.set()
        reader.join()
    engine.commit([event(11)], {}, True)
    pages = engine._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
    assert pages < 10


def test_a_checkpoint_that_finds_no_room_is_tried_again_later(
    engine: SQLiteEngine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def full() -> None:
        tries.append(1)
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr(engine, "_checkpoint", full)
    engine.commit([event(1)], {}, True)
    engine.upkeep()
    engine.upkeep()
    assert len(tries) == 1
    assert caplog.records[0].levelno == logging.WARNING
    assert "free some space" in caplog.messages[0]
    engine.commit([event(2, payload=b"x" * CHECKPOINT_PAGES * PAGE_BYTES)], {}, False)
    engine.upkeep()
    assert len(tries) == 2


def _write(engine: SQLiteEngine, megabytes: int) -> int:
    """Commit so much, with upkeep; how long the WAL has been at most."""
    longest = 0
    last = engine.last()
    for seq in range(last + 1, last + 1 + megabytes):
        engine.commit([event(seq, payload=b"x" * 1_000_000)], {}, False)
        engine.upkeep()
        longest = max(longest, _wal(engine).stat().st_size)
    return longest


def _wal(engine: SQLiteEngine) -> Path:
    return Path(f"{engine.path}-wal")


def _pages(engine: SQLiteEngine) -> int:
    pages: int = engine._writer.execute("PRAGMA page_count").fetchone()[0]
    return pages


# -- sudden death

_COMMITS = """
import sys
from pathlib import Path
from storage.interface import META, Event
from storage.sqlite import SQLiteEngine

engine = SQLiteEngine(Path(sys.argv[1]))
seq = engine.last()
while True:
    group = [Event(seq + n, 1, f"t/{seq % 5}", b"x" * 300, 1, False, "c", b"", 0, 1 + seq % 2) for n in range(1, 6)]
    seq += 5
    engine.commit(group, {META: {("upto",): (str(seq),)}}, seq % 2 == 0)
    engine.upkeep()
    print(seq, flush=True)
"""


def test_whatever_was_committed_survives_sigkill_at_any_moment(tmp_path: Path) -> None:
    committed = 0
    for round in range(25):
        child = subprocess.Popen([sys.executable, "-c", _COMMITS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for _ in range(1 + round * 7 % 40):
            committed = int(child.stdout.readline())
        child.kill()
        for line in child.stdout.read().splitlines():
            committed = int(line)
        child.stdout.close()
        child.wait()
        engine = SQLiteEngine(tmp_path)
        assert engine.quarantined is None
        last = engine.last()
        assert committed <= last <= committed + 5
        assert last % 5 == 0, "a part of a group was kept"
        assert engine.rows(META) == [("upto", str(last))]
        assert [each.seq for each in read_all(engine)] == list(range(1, last + 1))
        engine.close()

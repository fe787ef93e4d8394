"""When the oldest part of the log is sealed, what goes from the tail then, and what an interruption leaves."""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import sleep

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import storage.sealer
import storage.topics
from storage.database import DATABASE
from storage.interface import META, Event, StorageFailed
from storage.sealer import FAILED_PAUSE, FULL_PAUSE, SECOND, Policy, Sealer
from storage.segment import verify
from storage.sqlite import CHECKPOINT_PAGES, SQLiteEngine
from tests.disks import fill, tmpfs
from tests.storage.contract import START, event, read_all

EVENT_BYTES = storage.sealer.ROW_BYTES + len(event(1).payload)
FOR_EVER = 1 << 62
TENS = Policy(bytes=10 * EVENT_BYTES, age=FOR_EVER)
"""Parts of ten events; the first of them is sealed once two more have come."""


class Clock:
    """A wall clock that is set by hand, µs."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of every sealer."""
    made = Clock()
    monkeypatch.setattr(Sealer.__init__, "__defaults__", (made,))
    return made


@pytest.fixture
def engine(tmp_path: Path, clock: Clock) -> Iterator[SQLiteEngine]:
    opened = SQLiteEngine(tmp_path, policy=TENS)
    yield opened
    opened.close()


def commit(engine: SQLiteEngine, number: int, topic: str = "plant/line1", *, sync: bool = True) -> None:
    """Commit so many events, one in a group."""
    last = engine.last()
    for seq in range(last + 1, last + 1 + number):
        engine.commit([event(seq, topic)], {}, sync)


def settle(engine: SQLiteEngine) -> None:
    """Go on until nothing is left to do."""
    while engine.upkeep():
        sleep(0)


def sealed(engine: SQLiteEngine) -> list[tuple[int, int]]:
    """First and last seq of each segment, by the names of the files."""
    names = sorted(path.name for path in engine.path.parent.glob("segments/*"))
    return [(int(name[:20]), int(name[21:41])) for name in names]


def tail(engine: SQLiteEngine) -> list[int]:
    return [seq for (seq,) in engine._writer.execute("SELECT seq FROM tail ORDER BY seq")]


def topics(engine: SQLiteEngine) -> set[str]:
    return {name for (name,) in engine._writer.execute("SELECT name FROM topics")}


def seqs(engine: SQLiteEngine) -> list[int]:
    return [each.seq for each in read_all(engine)]


# -- when


def test_a_part_is_sealed_once_it_has_its_bytes_and_some_more_have_come(engine: SQLiteEngine) -> None:
    commit(engine, 11)
    settle(engine)
    assert (sealed(engine), tail(engine)) == ([], [*range(1, 12)])
    commit(engine, 1)
    settle(engine)
    assert (sealed(engine), tail(engine)) == ([(1, 10)], [11, 12])
    commit(engine, 30)
    settle(engine)
    assert (sealed(engine), tail(engine)) == ([(1, 10), (11, 20), (21, 30), (31, 40)], [41, 42])
    assert seqs(engine) == [*range(1, 43)]


def test_a_part_is_sealed_once_its_first_event_has_its_age(tmp_path: Path, clock: Clock) -> None:
    engine = SQLiteEngine(tmp_path, policy=Policy(age=60 * SECOND))
    clock.now = START + 60 * SECOND
    commit(engine, 3)
    settle(engine)
    assert sealed(engine) == []
    clock.now += 1
    settle(engine)
    assert (sealed(engine), tail(engine)) == ([(1, 3)], [])
    for _ in range(3):
        clock.now += 600 * SECOND
        settle(engine)
    assert sealed(engine) == [(1, 3)], "there is nothing to seal"
    assert seqs(engine) == [1, 2, 3]
    engine.close()


def test_nothing_is_sealed_that_a_power_cut_could_take_back(engine: SQLiteEngine) -> None:
    commit(engine, 25, sync=False)
    settle(engine)
    assert sealed(engine) == []
    engine.commit([], {META: {("a",): ("1",)}}, True)
    settle(engine)
    assert sealed(engine) == [(1, 10), (11, 20)]


def test_nothing_is_sealed_where_it_is_not_wanted(tmp_path: Path) -> None:
    engine = SQLiteEngine(tmp_path, policy=Policy(bytes=0, age=1))
    commit(engine, 50)
    settle(engine)
    assert not (tmp_path / "segments").exists()
    engine.close()


def test_what_was_there_at_the_start_is_sealed_with_what_comes(engine: SQLiteEngine, tmp_path: Path) -> None:
    commit(engine, 35)
    engine.close()
    again = SQLiteEngine(tmp_path, policy=TENS)
    settle(again)
    assert sealed(again) == [], "what was found is only known to last once something has been fsynced"
    commit(again, 2)
    settle(again)
    assert sealed(again) == [(1, 35)], "it was counted some thousand rows at a step"
    commit(again, 11)
    settle(again)
    assert seqs(again) == [*range(1, 49)]
    again.close()


def test_an_engine_with_nothing_to_do_writes_nothing(engine: SQLiteEngine) -> None:
    commit(engine, 12)
    settle(engine)
    statements: list[str] = []
    engine._writer.set_trace_callback(statements.append)
    for _ in range(100):
        assert engine.upkeep() is False
    assert statements == []


def test_after_each_group_it_takes_a_step_or_two_and_no_more(engine: SQLiteEngine) -> None:
    commit(engine, 50)
    for _ in range(200):
        commit(engine, 1)
        engine._sealer._credit = 0.0
        engine.upkeep()
    assert len(sealed(engine)) <= 1, "it had no credit"
    settle(engine)
    assert len(sealed(engine)) > 20


# -- what goes from the tail


def test_topics_of_which_no_row_is_left_go_and_others_stay(engine: SQLiteEngine) -> None:
    for number in range(40):
        commit(engine, 1, f"once/{number}")
    commit(engine, 1, "once/3")
    settle(engine)
    assert tail(engine)[0] == 31
    assert topics(engine) == {"once/3", *(f"once/{number}" for number in range(30, 40))}
    commit(engine, 3, "once/7")
    assert [each.topic for each in read_all(engine)][-3:] == ["once/7"] * 3
    assert [each.topic for each in read_all(engine)][:40] == [f"once/{number}" for number in range(40)]


@pytest.mark.parametrize("most_bytes", [8 << 20, 0])
def test_a_topic_that_comes_again_while_topics_are_swept_stays(
    engine: SQLiteEngine, monkeypatch: pytest.MonkeyPatch, most_bytes: int
) -> None:
    monkeypatch.setattr(storage.topics, "_MOST_BYTES", most_bytes)  # 0: whatever is remembered is forgotten at once
    commit(engine, 1, "again")
    commit(engine, 1, "gone")
    engine._writer.execute("DELETE FROM tail")
    sweep = engine._topics.sweep(engine.reading, lambda: engine.changing(0))
    next(sweep)  # no row has it
    commit(engine, 1, "again")
    commit(engine, 1, "new")
    for _ in sweep:
        pass
    assert topics(engine) == {"again", "new"}
    assert not _without_a_topic(engine)
    commit(engine, 1, "gone")
    assert [each.topic for each in read_all(engine)][-1] == "gone"


def _without_a_topic(engine: SQLiteEngine) -> list[object]:
    return engine._writer.execute("SELECT seq FROM tail WHERE topic NOT IN (SELECT id FROM topics)").fetchall()


def test_with_ever_new_topics_their_table_stays_small(engine: SQLiteEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.topics, "_MOST_BYTES", 1000)  # what is remembered is forgotten again and again
    for number in range(600):
        commit(engine, 1, f"ever/new/{number}")
        engine.upkeep()
    settle(engine)
    assert len(topics(engine)) <= len(tail(engine)) + 1
    assert not _without_a_topic(engine)
    assert [each.topic for each in read_all(engine)] == [f"ever/new/{number}" for number in range(600)]


def test_the_pages_of_what_is_sealed_are_used_again(tmp_path: Path) -> None:
    engine = SQLiteEngine(tmp_path, policy=Policy(bytes=1 << 20, age=FOR_EVER, level=1))
    last, sizes = 0, []
    for _ in range(6):
        for _ in range(10):
            engine.commit([event(last + n, payload=bytes(2000)) for n in range(1, 101)], {}, True)
            last += 100
            settle(engine)
        sizes.append(engine.path.stat().st_size)
    assert max(sizes) < 4_000_000
    assert len(read_all(engine)) == last
    engine.close()


# -- what goes wrong


def test_a_database_that_has_grown_beyond_what_it_needs_is_made_smaller_again(tmp_path: Path) -> None:
    engine = SQLiteEngine(tmp_path, policy=Policy(200_000))
    try:
        engine.commit([event(seq, payload=bytes(1000)) for seq in range(1, 4001)], {}, sync=True)
        engine.commit([event(4001)], {}, sync=True)
        grown = (tmp_path / DATABASE).stat().st_size + (tmp_path / f"{DATABASE}-wal").stat().st_size
        settle(engine)
        engine._gathered = CHECKPOINT_PAGES
        settle(engine)
        assert (tmp_path / DATABASE).stat().st_size < 800_000 < grown / 4
        assert seqs(engine) == list(range(1, 4002))
    finally:
        engine.close()


def test_a_full_disk_puts_sealing_off_and_the_tail_keeps_everything(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with tmpfs(tmp_path / "disk", 8 << 20) as disk:
        engine = SQLiteEngine(disk / "data", policy=Policy(bytes=1 << 20, age=FOR_EVER))
        random = Random(1)
        for seq in range(1, 15):
            engine.commit([event(seq, payload=random.randbytes(100_000))], {}, True)
        engine._checkpoint()
        engine._gathered = 0
        ballast = fill(disk)
        settle(engine)
        assert not list(disk.glob("data/segments/*"))
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "No space left on device" in record.getMessage()
        clock.now += FULL_PAUSE - 1
        settle(engine)
        clock.now += 1
        settle(engine)
        assert len(caplog.records) == 1, "it is said once"
        ballast.unlink()
        settle(engine)
        assert not sealed(engine)
        clock.now += FULL_PAUSE
        settle(engine)
        assert len(sealed(engine)) == 1
        assert seqs(engine) == [*range(1, 15)]
        engine.close()


@pytest.mark.parametrize("what", ["write", "fsync", "rename"])
def test_a_disk_that_fails_puts_sealing_off_and_the_node_goes_on(
    engine: SQLiteEngine, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    def failing(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    commit(engine, 30)
    with monkeypatch.context() as patched:
        patched.setattr(os, {"write": "pwrite"}.get(what, what), failing)
        settle(engine)
        clock.now += FAILED_PAUSE
        settle(engine)
    assert not list((engine.path.parent / "segments").iterdir()), "nothing is left of it"
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "Input/output error" in record.getMessage()
    commit(engine, 1)
    clock.now += FAILED_PAUSE
    settle(engine)
    assert len(sealed(engine)) == 2
    assert seqs(engine) == [*range(1, 32)]


def test_a_row_that_is_damaged_is_not_sealed_and_nothing_is_deleted(
    engine: SQLiteEngine, caplog: pytest.LogCaptureFixture
) -> None:
    commit(engine, 30)
    engine._writer.execute("UPDATE tail SET payload = 'text' WHERE seq = 5")
    settle(engine)
    assert (sealed(engine), tail(engine)) == ([], [*range(1, 31)])
    assert "the event 5, of topic 1, is damaged" in caplog.messages[0]


def test_a_write_to_the_database_that_fails_while_rows_are_deleted_fails_the_engine(
    engine: SQLiteEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(engine, 30)

    def failing(*, sync: bool) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise error

    monkeypatch.setattr(engine, "_transaction", failing)
    settle(engine)
    with pytest.raises(StorageFailed, match="tidying up"):
        engine.commit([event(31)], {}, True)


def test_an_engine_that_is_closed_while_it_seals_leaves_nothing_behind(tmp_path: Path) -> None:
    engine = SQLiteEngine(tmp_path, policy=Policy(bytes=1 << 20, age=FOR_EVER))
    random = Random(1)
    for seq in range(1, 30):
        engine.commit([event(seq, payload=random.randbytes(100_000))], {}, True)
    while not list(tmp_path.glob("segments/*.partial")):
        assert engine.upkeep()
    engine.close()
    assert not list(tmp_path.glob("segments/*.partial"))
    engine = SQLiteEngine(tmp_path)
    assert seqs(engine) == [*range(1, 30)]
    engine.close()


# -- interrupted


_SEALS = """
import sys
from time import sleep
from pathlib import Path
from random import Random
from storage.interface import META, Event
import storage.sealer
from storage.sealer import Policy
from storage.sqlite import CHECKPOINT_PAGES, SQLiteEngine

storage.sealer.SEALING_SHARE = storage.sealer.SHARE = 1.0  # as fast as it can

engine = SQLiteEngine(Path(sys.argv[1]), policy=Policy(bytes=20_000, level=1))
seq = engine.last()
random = Random(seq)
while True:
    group = [
        Event(seq + n, seq + n, f"t/{(seq + n) // 40}", random.randbytes(100), 1, False, "c", b"", 0, 2)
        for n in range(1, 11)
    ]
    seq += 10
    engine.commit(group, {META: {("upto",): (str(seq),)}}, True)
    for _ in range(10):
        engine.upkeep()
        sleep(0)  # for the thread that writes the segment
    print(seq, flush=True)
"""


def test_sigkill_at_any_moment_of_sealing_loses_no_event_and_gives_none_twice(tmp_path: Path) -> None:
    random = Random(4)
    committed = segments = partial = both = 0
    for _ in range(20):
        child = subprocess.Popen([sys.executable, "-c", _SEALS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for _ in range(random.randrange(1, 120)):
            committed = int(child.stdout.readline())
        sleep(random.random() * 0.003)
        child.kill()
        for line in child.stdout.read().splitlines():
            committed = int(line)
        child.stdout.close()
        child.wait()
        partial += bool(list(tmp_path.glob("segments/*.partial")))
        reader = SQLiteEngine(tmp_path, readonly=True)
        last = reader.last()
        assert committed <= last <= committed + 10
        assert [each.seq for each in read_all(reader)] == [*range(1, last + 1)]
        assert reader.rows(META) == [("upto", str(last))]
        chain = reader._history.chain
        both += reader._writer.execute("SELECT count(*) FROM tail WHERE seq <= ?", (chain.last,)).fetchone()[0] > 0
        segments = len(chain.stretches)
        reader.close()
    assert segments > 10
    assert partial, "no kill hit the writing of a segment"
    assert both, "no kill hit the deletion of its rows"
    engine = SQLiteEngine(tmp_path, policy=Policy(bytes=0))
    assert not list(tmp_path.glob("segments/*.partial"))
    settle(engine)
    assert not set(tail(engine)) & set(range(1, engine._history.chain.last + 1))
    assert seqs(engine) == [*range(1, engine.last() + 1)]
    assert not [damage for path in tmp_path.glob("segments/*") for damage in verify(path)]
    engine.close()


# -- against a list


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_is_sealed_and_whenever_it_is_opened_again_it_reads_as_a_list(data: st.DataObject) -> None:
    events: list[Event] = []
    with TemporaryDirectory() as name:
        directory = Path(name)
        policy = Policy(bytes=data.draw(st.integers(1, 2000)), age=FOR_EVER, level=1)
        engine = SQLiteEngine(directory, policy=policy)
        reader = SQLiteEngine(directory, readonly=True)
        try:
            for _ in range(data.draw(st.integers(5, 25))):
                match data.draw(st.sampled_from(("commit", "commit", "upkeep", "reopen", "read", "get", "other"))):
                    case "commit":
                        last = events[-1].seq if events else 0
                        group = [
                            event(last := last + step, topic, b"x" * size, durability=durability)
                            for step, topic, size, durability in data.draw(
                                st.lists(
                                    st.tuples(
                                        st.integers(1, 30),
                                        st.sampled_from("abcd"),
                                        st.integers(0, 300),
                                        st.integers(1, 2),
                                    ),
                                    max_size=12,
                                )
                            )
                        ]
                        engine.commit(group, {}, data.draw(st.booleans()))
                        events += group
                    case "upkeep":
                        for _ in range(data.draw(st.integers(1, 60))):
                            engine.upkeep()
                    case "reopen":
                        engine.close()
                        engine = SQLiteEngine(directory, policy=policy)
                    case "read":
                        _check(engine, events, data)
                    case "get":
                        upto = (events[-1].seq if events else 0) + 3
                        wanted = data.draw(st.lists(st.integers(1, upto), max_size=20, unique=True))
                        for each in (engine, reader):
                            assert each.get(wanted) == [one for one in events if one.seq in wanted]
                    case "other":
                        _check(reader, events, data)
            settle(engine)
            _check(engine, events, data)
            _check(reader, events, data)
        finally:
            reader.close()
            engine.close()


def _check(engine: SQLiteEngine, events: list[Event], data: st.DataObject) -> None:
    last = events[-1].seq if events else 0
    assert engine.last() == last
    assert engine.last_ts() == (events[-1].ts if events else 0)
    topics = data.draw(st.sampled_from(("", "a", "bc", "x")))
    after, limit = data.draw(st.integers(0, last)), data.draw(st.integers(1, 40))
    upto = data.draw(st.integers(after, last + 5))
    found: list[Event] = []
    accepts = topics.__contains__ if topics else None
    place = after
    while place < upto:
        some, reached = engine.read(place, upto, limit, accepts)
        assert len(some) <= limit
        assert place < reached <= upto
        found += some
        place = reached
    assert found == [each for each in events if after < each.seq <= upto and (not topics or each.topic in topics)]

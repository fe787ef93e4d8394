"""What goes by age, by bytes, by room and by rules; what readers lose by it; and what an interruption leaves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from time import sleep

import orjson
import pytest

from broker.mqtt.topic import compile_filters, matches
from storage.interface import CURSORS, META, SESSIONS, SHARES, SUBSCRIPTIONS, Accepts, StorageError
from storage.retention import LOOK, PAUSE, ROW, SECOND, Keeper, Retention, Rule, summed
from storage.sealer import Policy, Sealer
from storage.segment import Segment
from storage.sqlite import SQLiteEngine
from tests.storage.contract import START, event, read_all
from tests.storage.test_sealer import EVENT_BYTES, FOR_EVER, Clock, seqs, settle, tail

TENS = Policy(bytes=10 * EVENT_BYTES, age=FOR_EVER)
DAY = 86_400 * SECOND


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of every sealer, and of all that looks after segments."""
    made = Clock()
    monkeypatch.setattr(Sealer.__init__, "__defaults__", (made,))
    monkeypatch.setattr(Keeper.__init__, "__defaults__", (made,))
    return made


Opened = Callable[..., SQLiteEngine]


@pytest.fixture
def opened(tmp_path: Path, clock: Clock) -> Iterator[Opened]:
    """Opens the engine, again and again, with what retention is to be; the one before is closed."""
    engines: list[SQLiteEngine] = []

    def open(**kept: object) -> SQLiteEngine:
        while engines:
            engines.pop().close()
        engines.append(
            SQLiteEngine(tmp_path, policy=TENS, retention=Retention(compile=compile_filters, **kept))  # type: ignore[arg-type]
        )
        return engines[-1]

    yield open
    while engines:
        engines.pop().close()


def fill(engine: SQLiteEngine, number: int, topics: Iterable[str] = ("plant/line1",), apart: int = SECOND) -> None:
    """Commit so many events, one in a group, so far apart in time, on these topics in turn."""
    names = list(topics)
    last = engine.last()
    for seq in range(last + 1, last + 1 + number):
        engine.commit([event(seq, names[seq % len(names)], ts=START + seq * apart)], {}, True)
    settle(engine)


def run(engine: SQLiteEngine, clock: Clock) -> None:
    """Let a moment pass, and go on until nothing is left to do."""
    clock.now += LOOK
    settle(engine)


def segments(engine: SQLiteEngine) -> list[int]:
    """The first seq of each segment, by its name."""
    return sorted(int(path.name[:20]) for path in engine.path.parent.glob("segments/*.segment"))


def accepts(filter: str) -> Accepts:
    return lambda topic: matches(filter, topic)


# -- what goes


def test_without_anything_said_everything_is_kept(opened: Opened, clock: Clock) -> None:
    engine = opened()
    fill(engine, 55)
    clock.now += 100 * 366 * DAY
    run(engine, clock)
    assert seqs(engine) == [*range(1, 56)]


def test_a_segment_goes_once_its_last_event_has_its_age(opened: Opened, clock: Clock) -> None:
    engine = opened(age=DAY)
    fill(engine, 35)
    clock.now = START + 20 * SECOND + DAY
    run(engine, clock)
    assert segments(engine) == [21], "it was a second older than it had to be"
    assert seqs(engine) == [*range(21, 36)]
    clock.now += 100 * DAY
    run(engine, clock)
    assert segments(engine) == []
    assert seqs(engine) == tail(engine) == [*range(31, 36)], "nothing is taken from the tail"
    assert engine.oldest()[0] <= 31


def test_of_too_many_bytes_the_oldest_go(opened: Opened, clock: Clock) -> None:
    engine = opened()
    fill(engine, 65)
    sizes = [path.stat().st_size for path in sorted(engine.path.parent.glob("segments/*"))]
    engine = opened(bytes=sum(sizes[3:]))
    run(engine, clock)
    assert segments(engine) == [31, 41, 51]
    assert seqs(engine) == [*range(31, 66)]
    assert engine.retention.segments == 3
    assert engine.retention.bytes == sum(sizes[:3])
    assert engine.retention.events == 30


def test_while_the_disk_has_less_than_it_should_the_oldest_go(
    opened: Opened, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(free=1000)
    room = [(1000, 100_000)]
    monkeypatch.setattr(engine._keeper, "_room", lambda: room[0])
    fill(engine, 55)
    run(engine, clock)
    assert segments(engine) == [1, 11, 21, 31, 41]
    engine._keeper._next_look = 0
    looks = iter([(999, 100_000), (999, 100_000), (1000, 100_000)])
    monkeypatch.setattr(engine._keeper, "_room", lambda: next(looks))
    settle(engine)
    assert segments(engine) == [21, 31, 41]


def test_a_small_disk_need_not_have_more_than_half_of_it_free(
    opened: Opened, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(free=1000)
    fill(engine, 35)
    monkeypatch.setattr(engine._keeper, "_room", lambda: (600, 1200))
    run(engine, clock)
    assert segments(engine) == [1, 11, 21]


def test_a_disk_that_cannot_be_looked_at_is_said_so_once(
    opened: Opened, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = opened(free=1000)
    fill(engine, 25)

    def broken() -> tuple[int, int]:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(engine._keeper, "_room", broken)
    for _ in range(3):
        clock.now += PAUSE
        run(engine, clock)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert segments(engine) == [1, 11]


# -- rules


def test_topics_have_ages_of_their_own_and_the_first_rule_counts(opened: Opened, clock: Clock) -> None:
    rules = (Rule(accepts("plant/+/debug"), DAY), Rule(accepts("plant/#"), 0), Rule(accepts("#"), 10 * DAY))
    engine = opened(age=5 * DAY, rules=rules)
    fill(engine, 45, ("plant/a/debug", "plant/b/debug", "plant/a/speed", "other/debug"))
    before = {each.seq: each for each in read_all(engine)}
    clock.now = START + 41 * SECOND + DAY
    run(engine, clock)
    kept = [seq for seq, each in before.items() if seq > 40 or not each.topic.endswith(("a/debug", "b/debug"))]
    assert seqs(engine) == kept
    clock.now += 20 * DAY
    run(engine, clock)
    kept = [seq for seq, each in before.items() if seq > 40 or each.topic == "plant/a/speed"]
    assert read_all(engine) == [before[seq] for seq in kept]


def test_a_segment_of_which_little_is_expired_is_left_as_it_is(opened: Opened, clock: Clock) -> None:
    engine = opened(rules=(Rule(accepts("rare"), DAY),))
    fill(engine, 10, ("often",))
    fill(engine, 1, ("rare",))
    fill(engine, 9, ("often",))
    fill(engine, 10, ("rare", "often", "often", "often"))
    fill(engine, 5)
    inodes = {path.name: path.stat().st_ino for path in engine.path.parent.glob("segments/*")}
    clock.now = START + 10 * DAY
    run(engine, clock)
    changed = {path.name for path in engine.path.parent.glob("segments/*") if inodes[path.name] != path.stat().st_ino}
    assert {int(name[:20]) for name in changed} == {21}, "of the second only a tenth was expired"
    assert 11 in seqs(engine)


def test_what_is_written_anew_is_there_after_a_restart_with_everything_else(opened: Opened, clock: Clock) -> None:
    rules = (Rule(accepts("+/debug"), DAY),)
    engine = opened(rules=rules)
    fill(engine, 45, ("a/debug", "b", "c"))
    before = read_all(engine)
    clock.now = START + 10 * DAY
    run(engine, clock)
    after = read_all(engine)
    assert after == [each for each in before if each.seq > 40 or each.topic != "a/debug"]
    record = engine.retention
    assert record.events == len(before) - len(after)
    engine = opened(rules=rules)
    assert read_all(engine) == after
    assert engine.retention == record
    fill(engine, 20, ("a/debug", "b", "c"))
    assert [each.seq for each in read_all(engine)][: len(after)] == [each.seq for each in after]


def test_a_reader_in_the_middle_of_a_segment_goes_on_behind_what_has_gone(opened: Opened, clock: Clock) -> None:
    engine = opened(age=DAY, rules=(Rule(accepts("b"), 0),))
    fill(engine, 45, ("a", "b"))
    first, reached = engine.read(0, 45, 3, None)
    assert [each.seq for each in first] == [1, 2, 3]
    clock.now = START + 10 * DAY
    run(engine, clock)
    rest: list[int] = []
    while reached < 45:
        events, reached = engine.read(reached, 45, 3, None)
        rest += [each.seq for each in events]
    assert rest == [seq for seq in range(4, 41) if seq % 2] + [41, 42, 43, 44, 45]
    assert not [stretch for stretch in engine._history._open if stretch not in engine._history.chain.stretches]


def test_a_reader_that_still_has_the_earlier_chain_passes_over_what_is_gone(
    opened: Opened, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    engine = opened(age=DAY)
    fill(engine, 25)
    stretch = engine._history.chain.stretches[0]
    clock.now = START + 10 * DAY
    run(engine, clock)
    assert engine._history.read(stretch, 0, 10, 100, None, 1 << 20) == ([], 10)
    assert engine._history.get(stretch, [1, 2]) == []
    assert not [record for record in caplog.records if record.levelno > logging.WARNING]


def test_another_process_that_reads_beside_it_passes_over_what_is_gone(
    opened: Opened, clock: Clock, tmp_path: Path
) -> None:
    engine = opened(age=DAY)
    fill(engine, 35)
    other = SQLiteEngine(tmp_path, readonly=True)
    assert [each.seq for each in other.read(0, 35, 5, None)[0]] == [1, 2, 3, 4, 5]
    other._history.close()
    clock.now = START + 10 * DAY
    run(engine, clock)
    assert [each.seq for each in read_all(other)] == [31, 32, 33, 34, 35]
    other.close()


# -- what readers lose


def test_what_readers_had_not_read_is_counted_and_said(
    opened: Opened, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    cursors = {
        "bridge/cloud/all": accepts("#"),
        "bridge/cloud/alarms": accepts("plant/alarm"),
        "processor/mean": accepts("plant/+"),
    }
    engine = opened(age=DAY, cursors=cursors)
    fill(engine, 45, ("plant/speed", "plant/alarm", "other"))
    state = {
        CURSORS: {
            ("bridge/cloud/all",): (13,),
            ("bridge/cloud/alarms",): (40,),
            ("processor/mean",): (0,),
            ("bridge/of/yesterday",): (0,),
        },
        SESSIONS: {
            ("away",): (5, 100, 0, START, 25, b"", b"", b"", ""),
            ("elsewhere",): (5, 100, 0, START, 0, b"", b"", b"", ""),
            ("here",): (5, 100, 1, 0, 45, b"", b"", b"", ""),
        },
        SUBSCRIPTIONS: {
            ("away", "plant/+"): (1, 0, 0),
            ("away", "plant/alarm"): (1, 0, 0),
            ("elsewhere", "nothing/of/this"): (1, 0, 0),
            ("elsewhere", "$share/group/other"): (1, 0, 0),
            ("here", "#"): (1, 0, 0),
        },
        SHARES: {("$share/group/other",): (5, b"")},
    }
    engine.commit([], state, True)  # type: ignore[arg-type]
    topics = {each.seq: each.topic for each in read_all(engine)}
    clock.now = START + 10 * DAY
    run(engine, clock)
    assert seqs(engine) == [*range(41, 46)]
    losses = engine.retention.losses
    plant = [seq for seq in range(1, 41) if topics[seq].startswith("plant/")]
    assert losses.cursors == {"bridge/cloud/all": 40 - 13, "processor/mean": len(plant)}
    others = [seq for seq in range(1, 41) if topics[seq] == "other"]
    assert losses.shares == 4
    assert losses.sessions == 2, "in the segment that `away` was in, and in the last"
    least = len([seq for seq in plant if seq > 25]) + len([seq for seq in others if seq > 5])
    assert least <= losses.messages <= least + 20
    text = "\n".join(record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert "bridge/cloud/all had not read 7 events of" in text
    assert "processor/mean had not read" in text
    assert "bridge/cloud/alarms" not in text
    assert "yesterday" not in text


def test_what_a_rule_takes_costs_readers_of_these_topics_alone(opened: Opened, clock: Clock) -> None:
    cursors = {"bridge/a/debug": accepts("+/debug"), "bridge/a/rest": accepts("b"), "bridge/a/inside": accepts("#")}
    engine = opened(rules=(Rule(accepts("+/debug"), DAY),), cursors=cursors)
    fill(engine, 12, ("a/debug", "b"))
    places = {("bridge/a/debug",): (0,), ("bridge/a/rest",): (0,), ("bridge/a/inside",): (5,)}
    engine.commit([], {CURSORS: places}, True)  # type: ignore[dict-item]
    clock.now = START + 10 * DAY
    run(engine, clock)
    assert engine.retention.losses.cursors == {"bridge/a/debug": 5, "bridge/a/inside": 3}


# -- interruptions


def test_what_was_about_to_go_counts_once_whether_it_went_or_not(
    opened: Opened, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(age=DAY, cursors={"bridge/a/b": accepts("#")})
    fill(engine, 12)
    engine.commit([], {CURSORS: {("bridge/a/b",): (3,)}}, True)
    monkeypatch.setattr("storage.retention._unlink", _fails)
    clock.now = START + 10 * DAY
    run(engine, clock)
    assert segments(engine) == [1], "the disk has refused"
    monkeypatch.undo()
    clock_of = (clock,)
    monkeypatch.setattr(Sealer.__init__, "__defaults__", clock_of)
    monkeypatch.setattr(Keeper.__init__, "__defaults__", clock_of)
    engine = opened(age=0, cursors={"bridge/a/b": accepts("#")})
    assert engine.retention.events == 0, "it is still there"
    assert seqs(engine) == [*range(1, 13)]
    engine = opened(age=DAY, cursors={"bridge/a/b": accepts("#")})
    run(engine, clock)
    assert segments(engine) == []
    assert engine.retention.losses.cursors == {"bridge/a/b": 7}
    value = next(value for name, value in engine.rows(META) if (name,) == ROW)
    assert summed(str(value)) == engine.retention
    engine = opened(age=DAY)
    assert engine.retention.losses.cursors == {"bridge/a/b": 7}
    assert engine.retention.events == 10


def _fails(path: Path) -> bool:
    raise OSError(5, "Input/output error", str(path))


def test_rows_that_a_power_cut_brings_back_cannot_be_of_a_segment_that_is_gone(opened: Opened, clock: Clock) -> None:
    engine = opened(age=DAY)
    fill(engine, 12)
    order: list[str] = []
    engine._writer.set_trace_callback(lambda statement: order.append(statement.split("(")[0]))
    clock.now = START + 10 * DAY
    run(engine, clock)
    assert segments(engine) == []
    begun = next(place for place, each in enumerate(order) if "INSERT OR REPLACE INTO meta" in each)
    assert "PRAGMA synchronous=FULL" in order[:begun] or engine._full
    assert tail(engine) == [11, 12]


def test_a_segment_that_cannot_be_read_goes_with_what_came_later(opened: Opened, clock: Clock) -> None:
    engine = opened()
    fill(engine, 35)
    path = sorted(engine.path.parent.glob("segments/*"))[0]
    stretch = engine._history.chain.stretches[0]
    engine._history._catalog._known[path.name] = unsound = type(stretch)(path, 0, 10, 0, 0, sound=False)
    assert unsound in engine._history.files
    engine._keeper._retention = Retention(age=DAY)
    clock.now = START + 20 * SECOND + DAY
    run(engine, clock)
    assert segments(engine) == [21]


def test_a_segment_that_another_hides_is_not_seen_again_when_that_goes(opened: Opened, clock: Clock) -> None:
    engine = opened()
    fill(engine, 35)
    path = sorted(engine.path.parent.glob("segments/*"))[0]
    whole = path.read_bytes()
    from storage.segment_writer import write_segment

    with Segment.open(path) as segment:
        some = segment.read(0, 10, 5)[0]
    hidden = write_segment(engine._history.path(some[0].seq, some[-1].seq), some)
    engine = opened(age=DAY)
    assert seqs(engine) == [*range(1, 36)]
    clock.now = START + 10 * SECOND + DAY + 1
    run(engine, clock)
    assert not path.exists()
    assert not hidden.path.exists()
    assert seqs(engine) == [*range(11, 36)]
    assert engine.retention.events == 10
    assert len(whole) > 0


def test_a_broken_disk_costs_time_and_nothing_else(
    opened: Opened, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = opened(rules=(Rule(accepts("a"), DAY),))
    fill(engine, 25, ("a", "b"))

    def broken(*_: object) -> None:
        raise StorageError("the disk is broken")

    with monkeypatch.context() as patched:
        patched.setattr("storage.rewrite.Sealing", broken)
        clock.now = START + 10 * DAY
        for _ in range(3):
            clock.now += PAUSE
            run(engine, clock)
        assert seqs(engine) == [*range(1, 26)]
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        fill(engine, 10)
        assert segments(engine) == [1, 11, 21], "sealing goes on"
    clock.now += PAUSE
    run(engine, clock)
    assert 2 not in seqs(engine)
    assert not [*engine.path.parent.glob("segments/*.partial")]


def test_the_record_is_readable_json(opened: Opened, clock: Clock) -> None:
    engine = opened(age=DAY)
    fill(engine, 12)
    clock.now = START + 10 * DAY
    run(engine, clock)
    value = next(value for name, value in engine.rows(META) if (name,) == ROW)
    assert orjson.loads(str(value))["taking"]["record"]["events"] == 10
    sleep(0)

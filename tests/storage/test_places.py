"""Places in the log, for every engine: the oldest event, the last before a time, and the last ones of each topic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from storage.interface import FSYNC, MEMORY, Accepts, Engine, Event, Latest
from storage.log import Log
from tests.storage.contract import START, STORES, Store, Turns, event

SECOND = 1_000_000
TOPICS = ("plant/a", "plant/b", "office")


@pytest.fixture(params=STORES, ids=lambda store: store.__name__)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    make: Callable[[Path], Store] = request.param
    return make(tmp_path)


@pytest.fixture
def engine(store: Store) -> Iterator[Engine]:
    opened = store.open()
    yield opened
    opened.close()


def fill(engine: Engine, number: int = 60) -> list[Event]:
    """Events in groups of seven, of any topic, some at the same time, with gaps between their seqs."""
    random = Random(7)
    seq, ts = 3, START
    events: list[Event] = []
    for _ in range(number):
        events.append(event(seq, random.choice(TOPICS), ts=ts))
        seq += random.choice((1, 1, 1, 5))
        ts += random.choice((0, 1, SECOND))
    for begin in range(0, number, 7):
        engine.commit(events[begin : begin + 7], {}, sync=True)
    return events


def latest(engine: Engine, accepts: Accepts, count: int, most: int = 1000) -> list[int]:
    """The seqs of the last events of each topic, in order."""
    found = Latest(accepts, count, most)
    before = engine.last() + 1
    while before and not found.full:
        below = engine.latest(found, before)
        assert below < before
        before = below
    return found.seqs[::-1]


def test_of_an_empty_log_there_is_nothing(engine: Engine) -> None:
    assert engine.oldest() == (0, 0)
    assert engine.seq_before(START) == 0
    assert latest(engine, lambda topic: True, 3) == []


def test_the_oldest_event_is_known_also_after_a_restart(store: Store) -> None:
    engine = store.open()
    engine.commit([event(1, durability=MEMORY), event(2, ts=START)], {}, sync=True)
    assert engine.oldest() == (2, START)
    engine.commit([event(3, ts=START + 1)], {}, sync=True)
    engine.commit([event(4, ts=START + 2)], {}, sync=True)
    assert engine.oldest() == (2, START)
    engine.close()
    again = store.open()
    assert again.oldest() == (2, START)
    again.close()


def test_what_came_before_any_time_is_found(engine: Engine) -> None:
    events = fill(engine)
    for ts in sorted({each.ts + by for each in events for by in (-1, 0, 1)}):
        before = engine.seq_before(ts)
        assert [each for each in events if each.seq > before] == [each for each in events if each.ts >= ts]


@pytest.mark.parametrize("count", [1, 3, 100])
@pytest.mark.parametrize("topics", [TOPICS, ("plant/a",), ("plant/b", "office"), ()])
def test_the_last_of_each_topic_are_found(engine: Engine, topics: tuple[str, ...], count: int) -> None:
    events = fill(engine)
    expected = sorted(seq for topic in topics for seq in [e.seq for e in events if e.topic == topic][-count:])
    assert latest(engine, topics.__contains__, count) == expected


def test_no_more_are_found_than_are_taken_and_those_are_the_newest(engine: Engine) -> None:
    events = fill(engine)
    assert latest(engine, lambda topic: True, 100, most=9) == [each.seq for each in events[-9:]]


def test_what_is_above_the_place_where_it_begins_is_not_looked_at(engine: Engine) -> None:
    events = fill(engine)
    found = Latest(lambda topic: True, 2, 1000)
    before = middle = events[31].seq
    while before:
        before = engine.latest(found, before)
    older = [each for each in events if each.seq < middle]
    assert found.seqs[::-1] == sorted(
        seq for topic in TOPICS for seq in [e.seq for e in older if e.topic == topic][-2:]
    )


def test_the_log_asks_in_its_readers_thread_and_answers_on_the_loop(engine: Engine) -> None:
    events = fill(engine)
    reader = Turns()
    log = Log(engine, Turns(), reader)
    assert log.oldest == (events[0].seq, events[0].ts)
    answers: list[object] = []
    coming = log.append(events[-1].ts, "office", b"x", 1, False, "press-7", b"", 0, FSYNC)
    log.seek(events[30].ts, answers.append)
    log.latest(lambda topic: True, 1, 100, answers.append)
    assert answers == []
    engine.commit([coming], {}, sync=True)  # the loop has yet to be told
    reader.run()
    assert answers == [
        engine.seq_before(events[30].ts),
        sorted(max(each.seq for each in events if each.topic == topic) for topic in TOPICS),
    ]

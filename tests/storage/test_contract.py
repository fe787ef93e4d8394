"""Every sentence of `Engine`, over every engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.interface import (
    CURSORS,
    FSYNC,
    MEMORY,
    META,
    OS,
    RETAINED,
    SESSIONS,
    STATE,
    SUBSCRIPTIONS,
    TABLES,
    Engine,
    Event,
    Row,
    Table,
    Value,
)
from tests.storage.contract import START, STORES, State, Store, event, read_all

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
INT = st.integers(0, 2**63 - 1)
EVENTS = st.builds(
    Event,
    seq=st.just(0),
    ts=st.just(0),
    topic=TEXT,
    payload=st.binary(max_size=200),
    qos=st.integers(0, 2),
    retain=st.booleans(),
    client=TEXT,
    properties=st.binary(max_size=60),
    expires=INT,
    durability=st.sampled_from((OS, FSYNC)),
)


class Interrupted(Exception):
    pass


class Torn(list[Event]):
    """A sequence that can be gone through to the end of its first half only."""

    def __iter__(self) -> Iterator[Event]:
        yield from self[: len(self) // 2]
        raise Interrupted


class TornRows(dict[Row, Row | None]):
    """Rows that can't be gone through at all."""

    def items(self) -> Iterator[tuple[Row, Row | None]]:  # type: ignore[override]  # a dict's own can't raise
        raise Interrupted


# -- commit


def test_a_new_log_is_empty(engine: Engine) -> None:
    assert (engine.last(), engine.last_ts()) == (0, 0)
    assert engine.read(0, 100, 10, None) == ([], 100)
    assert engine.get([1, 2]) == []
    assert [engine.rows(table) for table in TABLES] == [[]] * len(TABLES)


def test_events_and_rows_of_a_group_are_kept_together(engine: Engine) -> None:
    engine.commit([event(1), event(2)], {CURSORS: {("route",): (2,)}}, True)
    assert engine.read(0, 2, 10, None) == ([event(1), event(2)], 2)
    assert engine.rows(CURSORS) == [("route", 2)]


@settings(max_examples=40, deadline=None)
@given(st.lists(EVENTS, min_size=1, max_size=30), st.booleans())
def test_an_event_comes_back_as_it_was(events: list[Event], sync: bool) -> None:
    for seq, each in enumerate(events, 1):
        each.seq, each.ts = seq, START + seq
    for make in STORES:
        with TemporaryDirectory() as directory:
            store = make(Path(directory))
            engine = store.open()
            engine.commit(events, {}, sync)
            assert read_all(engine) == events
            assert engine.get([each.seq for each in events]) == events
            topics = {each.topic for each in events[::2]}
            assert read_all(engine, topics.__contains__) == [each for each in events if each.topic in topics]
            engine.close()
            engine = store.open()
            assert read_all(engine) == events
            engine.close()


def test_of_a_group_that_fails_nothing_is_kept_and_the_next_one_is(engine: Engine) -> None:
    engine.commit([event(1)], {META: {("a",): ("1",)}}, True)
    state: State = {META: {("a",): ("2",), ("b",): ("2",)}}
    with pytest.raises(Interrupted):
        engine.commit(Torn([event(2, "new/topic"), event(3), event(4), event(5)]), state, True)
    assert read_all(engine) == [event(1)]
    assert engine.rows(META) == [("a", "1")]
    engine.commit([event(2, "other/topic"), event(6, "new/topic")], {META: {("a",): ("3",)}}, True)
    assert read_all(engine) == [event(1), event(2, "other/topic"), event(6, "new/topic")]
    assert engine.rows(META) == [("a", "3")]


def test_rows_that_fail_take_the_events_of_their_group_with_them(engine: Engine) -> None:
    with pytest.raises(Interrupted):
        engine.commit([event(1)], {META: {("a",): ("1",)}, CURSORS: TornRows()}, True)
    assert (engine.last(), engine.rows(META)) == (0, [])
    engine.commit([event(2)], {}, True)
    assert read_all(engine) == [event(2)]


def test_events_that_are_kept_in_memory_only_are_skipped(engine: Engine) -> None:
    engine.commit([event(1, durability=MEMORY), event(2), event(3, "t", durability=MEMORY)], {}, True)
    engine.commit([event(4, durability=MEMORY)], {}, False)
    assert read_all(engine) == [event(2)]
    assert engine.get([1, 2, 3, 4]) == [event(2)]
    assert (engine.last(), engine.last_ts()) == (2, START + 2)


def test_a_group_may_hold_rows_alone_or_nothing(engine: Engine) -> None:
    engine.commit([], {META: {("a",): ("1",)}}, True)
    engine.commit([], {}, True)
    assert (engine.last(), engine.rows(META)) == (0, [("a", "1")])


def test_last_and_last_ts_are_those_of_the_last_event(engine: Engine) -> None:
    engine.commit([event(3), event(70_000)], {}, True)
    engine.commit([], {META: {("a",): ("1",)}}, True)
    assert (engine.last(), engine.last_ts()) == (70_000, START + 70_000)


# -- read


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.sampled_from("abc")), min_size=1, max_size=80),
    st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 800), st.integers(1, 20), st.sampled_from(("", "a", "bc", "x"))),
        min_size=1,
        max_size=10,
    ),
)
def test_reads_give_what_lies_between_their_bounds(
    steps: list[tuple[int, str]], reads: list[tuple[int, int, int, str]]
) -> None:
    seq = 0
    events = [event(seq := seq + step, topic) for step, topic in steps]
    with TemporaryDirectory() as directory:
        for number, make in enumerate(STORES):
            engine = make(Path(directory) / str(number)).open()
            for at in range(0, len(events), 7):
                engine.commit(events[at : at + 7], {}, number % 2 == 0)
            for after, upto, limit, topics in reads:
                accepts = topics.__contains__ if topics else None
                expected = [e for e in events if after < e.seq <= upto and (not topics or e.topic in topics)]
                found: list[Event] = []
                while after < upto:
                    part, reached = engine.read(after, upto, limit, accepts)
                    assert len(part) <= limit
                    assert after < reached <= upto
                    assert all(after < e.seq <= reached for e in part)
                    found += part
                    after = reached
                assert found == expected
            engine.close()


def test_a_read_that_comes_to_its_end_has_looked_up_to_it(engine: Engine) -> None:
    engine.commit([event(1), event(2)], {}, True)
    assert engine.read(0, 900, 10, None) == ([event(1), event(2)], 900)
    assert engine.read(0, 900, 10, "nothing".__eq__) == ([], 900)
    assert engine.read(0, 1, 10, None) == ([event(1)], 1)
    assert engine.read(2, 900, 10, None) == ([], 900)


def test_a_read_looks_at_a_bounded_stretch_and_can_be_gone_on_with_from_there(engine: Engine) -> None:
    events = [event(seq, "quiet" if seq == 40_000 else f"noise/{seq % 7}") for seq in range(1, 40_001)]
    engine.commit(events, {}, False)
    judged: list[str] = []

    def accepts(topic: str) -> bool:
        judged.append(topic)
        return topic == "quiet"

    found, reached = engine.read(0, 40_000, 10, accepts)
    assert len(judged) < 30_000
    if not found:  # whoever has an index of topics finds it at once
        assert 0 < reached < 40_000
    assert found + read_all(engine, accepts, reached) == events[-1:]


def test_a_sparse_filter_fills_its_limit_from_one_stretch(engine: Engine) -> None:
    events = [event(seq, f"t/{seq % 100}") for seq in range(1, 3001)]
    engine.commit(events, {}, False)
    found, reached = engine.read(0, 3000, 10, "t/5".__eq__)
    assert [each.seq for each in found] == list(range(5, 1000, 100))
    assert reached == 905


def test_get_gives_those_that_are_kept_in_order(engine: Engine) -> None:
    events = [event(seq) for seq in range(10, 3000, 2)]
    engine.commit(events, {}, True)
    assert engine.get([]) == []
    assert engine.get([40, 11, 10, 9_999, 20]) == [event(10), event(20), event(40)]
    assert engine.get(range(3000)) == events


# -- rows


def test_rows_are_key_columns_then_value_columns(engine: Engine) -> None:
    state: State = {table: {_key(table, 1): _values(table, 1), _key(table, 2): _values(table, 2)} for table in TABLES}
    engine.commit([], state, True)
    for table in TABLES:
        expected = {_key(table, number) + _values(table, number) for number in (1, 2)}
        assert set(engine.rows(table)) == expected


def test_of_a_row_the_last_change_stands(engine: Engine) -> None:
    session = ("client",)
    engine.commit([], {SESSIONS: {session: _values(SESSIONS, 1)}, META: {("a",): ("1",), ("b",): ("1",)}}, True)
    engine.commit([], {SESSIONS: {session: _values(SESSIONS, 2)}, META: {("a",): None, ("c",): None}}, True)
    assert engine.rows(SESSIONS) == [session + _values(SESSIONS, 2)]
    assert engine.rows(META) == [("b", "1")]
    engine.commit([], {SESSIONS: {session: None}, META: {("a",): ("3",)}}, True)
    assert engine.rows(SESSIONS) == []
    assert sorted(engine.rows(META)) == [("a", "3"), ("b", "1")]


def test_a_row_goes_only_where_its_whole_key_is_the_same(engine: Engine) -> None:
    keys: list[Row] = [("sum", partition, f"k{number}") for partition in range(2) for number in range(700)]
    engine.commit([], {STATE: dict.fromkeys(keys, (b"x",))}, True)
    gone: list[Row] = [("sum", 0, f"k{number}") for number in range(1, 700)]
    engine.commit([], {STATE: {**dict.fromkeys(gone), ("mean", 0, "k0"): None, ("sum", 1, "k0"): (b"y",)}}, True)
    left = {*keys} - {*gone}
    assert {row[:3]: row[3] for row in engine.rows(STATE)} == {
        key: b"y" if key == ("sum", 1, "k0") else b"x" for key in left
    }


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.tuples(TEXT, TEXT),
            st.none() | st.tuples(st.integers(-(2**63), 2**63 - 1), st.none() | INT, INT),
            max_size=30,
        ),
        max_size=5,
    )
)
def test_rows_hold_what_the_groups_have_left_of_them(groups: list[dict[Row, Row | None]]) -> None:
    expected: dict[Row, Row] = {}
    for group in groups:
        for key, values in group.items():
            if values is None:
                expected.pop(key, None)
            else:
                expected[key] = values
    for make in STORES:
        with TemporaryDirectory() as directory:
            store = make(Path(directory))
            engine = store.open()
            for group in groups:
                engine.commit([], {SUBSCRIPTIONS: group}, False)
            rows = engine.rows(SUBSCRIPTIONS)
            assert {row[:2]: row[2:] for row in rows} == expected
            assert len(rows) == len(expected)
            engine.close()


def _key(table: Table, number: int) -> Row:
    return tuple(_value(column, number) for column in table.key)


def _values(table: Table, number: int) -> Row:
    return tuple(_value(column, number) for column in table.values)


def _value(column: str, number: int) -> Value:
    kinds: dict[str, Value] = {"INTEGER": number, "TEXT": f"{column}-{number}", "BLOB": b"\x00\xff" * number}
    return kinds[column.split()[1]]


# -- reopening, upkeep, threads


def test_opened_again_it_gives_the_same(store: Store) -> None:
    engine = store.open()
    engine.commit([event(1), event(2, "other", durability=OS)], {META: {("a",): ("1",)}}, True)
    engine.commit([event(5)], {RETAINED: {("t",): (5, 1, b"p", 1, "c", b"", 0)}}, False)
    before = (read_all(engine), engine.last(), engine.last_ts(), [engine.rows(table) for table in TABLES])
    engine.close()
    engine = store.open()
    assert (read_all(engine), engine.last(), engine.last_ts(), [engine.rows(table) for table in TABLES]) == before
    engine.commit([event(6, "other")], {}, True)
    assert read_all(engine)[-1] == event(6, "other")
    engine.close()


def test_upkeep_changes_nothing_that_can_be_read(engine: Engine) -> None:
    engine.upkeep()
    for seq in range(1, 200):
        engine.commit([event(seq, payload=b"x" * 200_000)], {META: {("at",): (str(seq),)}}, False)
        engine.upkeep()
    assert [each.seq for each in read_all(engine)] == list(range(1, 200))
    assert engine.rows(META) == [("at", "199")]


def test_a_reader_sees_whole_groups_while_another_thread_writes(engine: Engine) -> None:
    groups, size = 300, 10
    failed: list[BaseException] = []

    def write() -> None:
        try:
            for group in range(groups):
                seqs = range(group * size + 1, (group + 1) * size + 1)
                engine.commit([event(seq) for seq in seqs], {META: {("upto",): (str(seqs[-1]),)}}, False)
                engine.upkeep()
        except BaseException as error:
            failed.append(error)
            raise

    writer = threading.Thread(target=write)
    writer.start()
    position = 0
    while position < groups * size and not failed:
        found, _ = engine.read(position, groups * size, 1000, None)
        assert [each.seq for each in found] == list(range(position + 1, position + len(found) + 1))
        position += len(found)
        assert position % size == 0
    writer.join()
    assert not failed

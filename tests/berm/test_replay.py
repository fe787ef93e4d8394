from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from berm.formats import to_json
from berm.replay import READ_LIMIT, Query, seek_time, select
from broker.mqtt.properties import Property, encode_properties
from storage.interface import FSYNC, Event
from storage.memory import MemoryEngine
from storage.sqlite import SQLiteEngine
from storage.tail import SCAN_ROWS


def event(seq: int, ts: int, topic: str = "plant/a", client: str = "dev", payload: bytes = b"x") -> Event:
    return Event(seq, ts, topic, payload, 1, False, client, b"", 0, FSYNC)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[SQLiteEngine]:
    engine = SQLiteEngine(tmp_path)
    yield engine
    engine.close()


def seqs(engine: SQLiteEngine, query: Query) -> list[int]:
    return [event.seq for event in select(engine, query)]


def test_a_query_without_conditions_brings_everything_in_order(engine: SQLiteEngine) -> None:
    count = 3 * SCAN_ROWS
    engine.commit([event(seq, seq * 10) for seq in range(1, count + 1)], {}, False)
    assert seqs(engine, Query()) == list(range(1, count + 1))


def test_a_limit_ends_it_wherever_it_falls(engine: SQLiteEngine) -> None:
    engine.commit([event(seq, seq) for seq in range(1, 4 * READ_LIMIT)], {}, False)
    for limit in (1, READ_LIMIT - 1, READ_LIMIT, READ_LIMIT + 1, 2 * READ_LIMIT + 7):
        assert seqs(engine, Query(limit=limit)) == list(range(1, limit + 1))
        assert seqs(engine, Query(limit=limit, from_seq=50)) == list(range(50, limit + 50))


def test_an_empty_log_brings_nothing(engine: SQLiteEngine) -> None:
    assert seqs(engine, Query()) == []
    assert seqs(engine, Query(start=0, end=1 << 60)) == []
    assert seek_time(engine, 5) == 0


def test_a_span_begins_with_its_start_and_ends_before_its_end(engine: SQLiteEngine) -> None:
    times = [10, 20, 20, 20, 30, 40]
    engine.commit([event(seq, ts) for seq, ts in enumerate(times, 1)], {}, False)
    assert seqs(engine, Query(start=20)) == [2, 3, 4, 5, 6]
    assert seqs(engine, Query(end=20)) == [1]
    assert seqs(engine, Query(start=20, end=30)) == [2, 3, 4]
    assert seqs(engine, Query(start=21, end=30)) == []
    assert seqs(engine, Query(start=41)) == []


def test_topics_and_client_narrow_it_down_and_a_limit_ends_it(engine: SQLiteEngine) -> None:
    engine.commit(
        [
            event(1, 1, "plant/a/temperature"),
            event(2, 2, "plant/b/temperature", client="other"),
            event(3, 3, "plant/a/humidity"),
            event(4, 4, "office/a/temperature"),
            event(5, 5, "plant/a/temperature"),
        ],
        {},
        False,
    )
    assert seqs(engine, Query(topics=("plant/+/temperature",))) == [1, 2, 5]
    assert seqs(engine, Query(topics=("plant/+/humidity", "office/#"))) == [3, 4]
    assert seqs(engine, Query(topics=("plant/#",), client="dev")) == [1, 3, 5]
    assert seqs(engine, Query(topics=("plant/#",), client="dev", limit=2)) == [1, 3]
    assert seqs(engine, Query(topics=("nowhere",))) == []


def test_matches_far_apart_are_all_found(engine: SQLiteEngine) -> None:
    count = 2 * SCAN_ROWS + 10
    rare = {5, SCAN_ROWS, SCAN_ROWS + 1, count}
    engine.commit([event(n, n, "rare" if n in rare else "common") for n in range(1, count + 1)], {}, False)
    assert seqs(engine, Query(topics=("rare",))) == sorted(rare)


def test_what_is_committed_during_a_replay_does_not_prolong_it(engine: SQLiteEngine) -> None:
    engine.commit([event(1, 1), event(2, 2)], {}, False)
    found = select(engine, Query())
    assert next(found).seq == 1
    engine.commit([event(3, 3)], {}, False)
    assert [event.seq for event in found] == [2]


def test_another_process_can_read_while_the_node_holds_the_log(engine: SQLiteEngine, tmp_path: Path) -> None:
    engine.commit([event(1, 1)], {}, True)
    reader = SQLiteEngine(tmp_path, readonly=True)
    assert seqs(reader, Query()) == [1]
    engine.commit([event(2, 2)], {}, True)
    assert seqs(reader, Query()) == [1, 2]
    reader.close()


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3)), max_size=40),
    st.integers(0, 60),
)
def test_a_time_is_found_wherever_seqs_have_gaps_and_times_repeat(steps: list[tuple[int, int]], ts: int) -> None:
    engine = MemoryEngine()
    seq = now = 0
    events = []
    for step, time in steps:
        seq, now = seq + step, now + time
        events.append(event(seq, now))
    engine.commit(events, {}, False)
    position = seek_time(engine, ts)
    assert [each.seq for each in events if each.seq > position] == [each.seq for each in events if each.ts >= ts]


def test_text_is_text_and_other_bytes_are_base64() -> None:
    text = orjson.loads(to_json(event(7, 1_000_000, payload="zwölf".encode())))
    assert text == {
        "seq": 7,
        "time": "1970-01-01T00:00:01.000000Z",
        "topic": "plant/a",
        "qos": 1,
        "retain": False,
        "client": "dev",
        "payload": "zwölf",
    }
    other = orjson.loads(to_json(event(7, 0, payload=b"\xff\x00")))
    assert (other["payload"], other["encoding"]) == ("/wA=", "base64")


def test_properties_are_shown_by_name() -> None:
    properties = encode_properties(
        (
            (Property.CONTENT_TYPE, "application/json"),
            (Property.CORRELATION_DATA, b"\x01\x02"),
            (Property.USER_PROPERTY, ("unit", "K")),
            (Property.USER_PROPERTY, ("unit", "C")),
        )
    )
    line = orjson.loads(to_json(Event(1, 0, "t", b"", 0, False, "c", properties, 2_000_000, FSYNC)))
    assert line["expires"] == "1970-01-01T00:00:02.000000Z"
    assert line["properties"] == {
        "content_type": "application/json",
        "correlation_data": "AQI=",
        "user_properties": [["unit", "K"], ["unit", "C"]],
    }


@given(st.binary(max_size=50), st.text(min_size=1, max_size=20))
def test_every_event_is_one_line(payload: bytes, topic: str) -> None:
    line = to_json(event(1, 0, topic=topic, payload=payload))
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert orjson.loads(line)["topic"] == topic

"""The window operator alone: no log, no thread, no clock."""

from __future__ import annotations

from collections.abc import Callable
from zlib import crc32

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors import Aggregate, Event, Processors
from processors import aggregates as agg
from processors.errors import StateError
from processors.step import NEVER, Operator, Step
from storage.interface import Event as Stored
from storage.interface import Row
from tests.processors.helpers import SECOND, START, results, stored, value


def window(
    *aggregates: Aggregate[float],
    seconds: float = 60,
    of: Callable[[Event], float | None] = value,
    key: Callable[[Event], str] | None = None,
    to: str = "stats/{key}",
    partitions: int = 16,
    max_keys: int = 100,
) -> Operator:
    made = Processors()
    chosen = aggregates or (agg.count, agg.sum)
    made.tumbling("#", *chosen, seconds=seconds, to=to, key=key, partitions=partitions, max_keys=max_keys, name="w")(of)
    return made.definitions[0].operator()


def outputs(*steps: Step) -> list[tuple[str, object]]:
    return [(topic, orjson.loads(payload)) for step in steps for topic, payload, _, _ in step.messages]


def letters(step: Step) -> list[dict[str, object]]:
    return [orjson.loads(payload) for topic, payload, _, _ in step.messages if topic == "$dead/w"]


def apply(state: dict[Row, Row], step: Step) -> None:
    """What committing a step does to the table of state."""
    for key, values in step.rows.items():
        if values is None:
            state.pop(key, None)
        else:
            state[key] = values


def rows(state: dict[Row, Row]) -> list[Row]:
    return [key + values for key, values in state.items()]


def at(seconds: float) -> int:
    return START + round(seconds * SECOND)


def test_a_window_is_published_once_when_an_event_after_its_end_comes() -> None:
    operator = window()
    first = operator.step([stored("a", 1, 0), stored("b", 5, 59.999_999), stored("a", 2, 30)], 0)
    assert first.messages == []
    second = operator.step([stored("a", 4, 60)], 0)
    assert outputs(second) == [
        ("stats/a", {"key": "a", "start": "2023-11-14T22:00:00Z", "end": "2023-11-14T22:01:00Z", "count": 2, "sum": 3}),
        ("stats/b", {"key": "b", "start": "2023-11-14T22:00:00Z", "end": "2023-11-14T22:01:00Z", "count": 1, "sum": 5}),
    ]
    assert results(outputs(operator.step([], at(120)))) == [("a", 60, 1, 4)]


def test_a_silent_topic_closes_its_window_when_the_horizon_reaches_its_end_and_not_before() -> None:
    operator = window()
    operator.step([stored("a", 1, 10)], 0)
    assert operator.due == at(60)
    assert outputs(operator.step([], at(59.999_999))) == []
    assert results(outputs(operator.step([], at(60)))) == [("a", 0, 1, 1)]
    assert operator.due == NEVER
    assert outputs(operator.step([], at(600))) == []


def test_windows_begin_at_multiples_of_their_size_and_empty_ones_are_not_published() -> None:
    operator = window(seconds=7)
    found = outputs(*(operator.step([stored("a", 1, second)], 0) for second in (0, 1, 50, 51, 100)))
    assert all((round(start) * SECOND + START) % (7 * SECOND) == 0 for _, start, _, _ in results(found))
    assert [count for _, _, count, _ in results(found)] == [2, 2]


def test_only_the_rows_of_changed_keys_are_given_and_those_of_closed_ones_go() -> None:
    operator = window()
    first = operator.step([stored("a", 1, 1), stored("b", 1, 1), stored("a", 1, 2)], 0)
    row_a, row_b = ("w", crc32(b"a") % 16, "a"), ("w", crc32(b"b") % 16, "b")
    assert set(first.rows) == {row_a, row_b}
    assert set(operator.step([stored("b", 1, 3)], 0).rows) == {row_b}
    assert operator.step([], at(60)).rows == {row_a: None, row_b: None}


def test_a_key_is_what_the_key_function_says_and_none_leaves_an_event_out() -> None:
    operator = window(
        of=lambda event: event.number() if event.number() >= 0 else None, key=lambda event: event.levels[1]
    )
    operator.step([stored("x/m1/t", 1), stored("y/m1/t", 2), stored("x/m2/t", 4), stored("x/m1/t", -1)], 0)
    assert results(outputs(operator.step([], at(60)))) == [("m1", 0, 2, 3), ("m2", 0, 1, 4)]


def test_what_the_processor_published_itself_does_not_count() -> None:
    operator = window()
    operator.step([stored("a", 1), stored("a", 1, client="$processor/w"), stored("a", 1, client="$processor/v")], 0)
    assert results(outputs(operator.step([], at(60)))) == [("a", 0, 2, 2)]


def test_an_event_that_comes_with_an_older_time_falls_into_the_open_window_and_never_into_a_closed_one() -> None:
    operator = window()
    operator.step([stored("a", 1, 10)], 0)
    assert results(outputs(operator.step([], at(60)))) == [("a", 0, 1, 1)]
    assert outputs(operator.step([stored("a", 2, 59), stored("a", 4, 61)], 0)) == []
    assert results(outputs(operator.step([], at(120)))) == [("a", 60, 2, 6)]


def test_a_large_window_closes_over_several_steps_with_nothing_missing_and_nothing_twice() -> None:
    operator = window(max_keys=5000)
    state: dict[Row, Row] = {}
    keys = [f"k{number:04}" for number in range(1700)]
    apply(state, operator.step([stored(key, 1) for key in keys], 0))
    late = [stored("k0000", 8, 61)]
    found: list[tuple[str, object]] = []
    steps = 0
    while late or operator.due == at(60):
        step = operator.step(late, 0)
        apply(state, step)
        found += outputs(step)
        del late[: step.taken]
        steps += 1
        assert len(step.messages) <= 500
    assert steps == 4
    assert [topic for topic, _ in found] == [f"stats/{key}" for key in keys]
    assert [row[2] for row in state] == ["k0000"]
    assert results(outputs(operator.step([], at(120)))) == [("k0000", 60, 1, 8)]


def test_a_window_that_was_half_closed_goes_on_closing_after_a_restart() -> None:
    operator, again = window(max_keys=5000), window(max_keys=5000)
    state: dict[Row, Row] = {}
    apply(state, operator.step([stored(f"k{number:04}", 1) for number in range(700)], 0))
    step = operator.step([], at(60))
    apply(state, step)
    assert len(step.messages) == 500
    again.restore(rows(state))
    rest = again.step([stored("k0000", 1, 61)], 0)
    assert len(rest.messages) == 200
    assert {topic for topic, _ in outputs(step)} | {topic for topic, _ in outputs(rest)} == {
        f"stats/k{number:04}" for number in range(700)
    }


@given(
    events=st.lists(st.tuples(st.sampled_from("abc"), st.integers(-9, 9), st.floats(0, 20)), max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=5),
)
def test_however_the_events_are_cut_and_the_state_is_kept_the_windows_are_the_same(
    events: list[tuple[str, int, float]], cuts: list[int]
) -> None:
    log: list[Stored] = []
    seconds = 0.0
    for key, number, later in events:
        seconds += later
        log.append(stored(key, number, seconds))
    whole = window(agg.count, agg.sum, agg.mean, agg.min, agg.max, agg.first, agg.last, seconds=30)
    expected = outputs(whole.step(log, 0), whole.step([], at(seconds + 30)))

    found: list[tuple[str, object]] = []
    state: dict[Row, Row] = {}
    places = sorted({min(cut, len(log)) for cut in cuts} | {0, len(log)})
    for begin, end in zip(places, [*places[1:], len(log)], strict=True):
        operator = window(agg.count, agg.sum, agg.mean, agg.min, agg.max, agg.first, agg.last, seconds=30)
        operator.restore(rows(state))
        step = operator.step(log[begin:end], 0)
        assert step.taken == end - begin
        apply(state, step)
        found += outputs(step)
    step = operator.step([], at(seconds + 30))
    apply(state, step)
    assert found + outputs(step) == expected
    assert state == {}


def fails(event: Event) -> float:
    number = event.number()
    if number == 13:
        raise LookupError("thirteen")
    return number


def test_an_event_on_which_the_value_function_fails_is_a_dead_letter_and_the_others_count() -> None:
    operator = window(of=fails)
    step = operator.step([stored("a", 1, seq=7), stored("a", 13, 1.5, seq=8), stored("a", b"\xff", seq=9)], 0)
    assert step.taken == 3
    first, second = letters(step)
    assert str(first.pop("error")).startswith("LookupError: thirteen (")
    assert first == {
        "processor": "w",
        "seq": 8,
        "time": "2023-11-14T22:00:01.500000Z",
        "topic": "a",
        "client": "dev",
        "qos": 1,
        "retain": False,
        "payload": "13",
    }
    assert (second["seq"], second["payload_base64"]) == (9, "/w==")
    assert results(outputs(operator.step([], at(60)))) == [("a", 0, 1, 1)]


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (lambda event: event.levels[5], "IndexError"),
        (lambda event: 7, "TypeError: the key is a int"),
        (lambda event: [event.topic], "TypeError"),
        (lambda event: "a/#", "ValueError: topic 'stats/a/#' has a wildcard"),
        (lambda event: "\ud800", "UnicodeEncodeError"),
        (lambda event: "x" * 70_000, "ValueError: key"),
    ],
)
def test_an_event_without_a_usable_key_is_a_dead_letter(key: Callable[[Event], str], error: str) -> None:
    operator = window(key=key)
    step = operator.step([stored("a", 1)], 0)
    (letter,) = letters(step)
    assert str(letter["error"]).startswith(error)
    assert step.rows == {}
    assert outputs(operator.step([], at(60))) == []


def test_one_key_too_many_is_a_dead_letter_and_known_keys_go_on() -> None:
    operator = window(max_keys=2)
    step = operator.step([stored(topic, 1) for topic in "abcab"], 0)
    (letter,) = letters(step)
    assert letter["topic"] == "c"
    assert "max_keys" in str(letter["error"])
    assert results(outputs(operator.step([], at(60)))) == [("a", 0, 2, 2), ("b", 0, 2, 2)]


def picky(kept: list[float], value: float) -> list[float]:
    if value == 13:
        raise RuntimeError("no")
    return [*kept, value]


def test_an_event_that_one_aggregate_refuses_counts_in_none() -> None:
    operator = window(agg.count, agg.sum, Aggregate("all", list, picky))
    step = operator.step([stored("a", 1), stored("a", 13), stored("b", 13), stored("a", 2)], 0)
    assert step.dead == 2
    (topic, result), *rest = outputs(operator.step([], at(60)))
    assert isinstance(result, dict)
    assert (topic, result["count"], result["sum"], result["all"], rest) == ("stats/a", 2, 3, [1, 2], [])


def keep(kept: object, value: float) -> object:
    return {value} if value == 13 else (1 << 70 if value == 14 else value)


def test_an_event_whose_accumulator_cannot_be_kept_is_a_dead_letter_and_the_others_of_its_batch_count() -> None:
    operator = window(agg.count, agg.sum, Aggregate("odd", lambda: None, keep))
    numbers = [1, 13, 2, 14, 4]
    step = operator.step([stored("ab"[seq % 2], number, seq=seq) for seq, number in enumerate(numbers)], 0)
    assert step.taken == 5
    assert [letter["seq"] for letter in letters(step)] == [1, 3]
    assert len(step.messages) == 2
    again = window(agg.count, agg.sum, Aggregate("odd", lambda: None, keep))
    again.restore([key + values for key, values in step.rows.items() if values is not None])
    for each in (operator, again):
        assert results(outputs(each.step([], at(60)))) == [("a", 0, 3, 7)]


def spoil(kept: list[object], value: float) -> list[object]:
    kept.append({value})
    return kept


def test_accumulators_that_are_spoilt_in_place_cost_their_own_window_only() -> None:
    operator = window(agg.count, Aggregate("spoilt", list, spoil))
    step = operator.step([stored("a", 1), stored("a", 2)], 0)
    assert (step.taken, step.dead, step.rows) == (2, 2, {})
    assert outputs(operator.step([], at(60))) == []


def test_a_window_whose_result_fails_is_a_dead_letter_with_key_and_window() -> None:
    def divide(kept: float) -> float:
        return 1 / kept

    operator = window(Aggregate("inverse", float, lambda kept, value: kept + value, divide))
    operator.step([stored("a", 0), stored("b", 4)], 0)
    step = operator.step([], at(60))
    (letter,) = letters(step)
    assert str(letter.pop("error")).startswith("ZeroDivisionError")
    assert letter == {"processor": "w", "key": "a", "start": "2023-11-14T22:00:00Z", "end": "2023-11-14T22:01:00Z"}
    assert outputs(step)[1][0] == "stats/b"
    assert set(step.rows.values()) == {None}


@pytest.mark.parametrize(
    "other", [window(seconds=61), window(agg.count), window(agg.sum, agg.count), window(partitions=7)]
)
def test_state_of_another_definition_is_refused(other: Operator) -> None:
    operator = window()
    kept = [key + values for key, values in operator.step([stored("a", 1)], 0).rows.items() if values is not None]
    with pytest.raises(StateError, match="open window of 60 s with count, sum; put that definition back"):
        other.restore(kept)
    window().restore(kept)


def test_of_a_key_that_is_forgotten_nothing_is_published_any_more() -> None:
    operator = window()
    operator.step([stored("a", 1, 0), stored("b", 5, 1)], 0)
    assert [row[2] for row in operator.forget(lambda key: key == "a")] == ["a"]
    assert [topic for topic, _ in outputs(operator.step([stored("c", 1, 60)], 0))] == ["stats/b"]
    assert operator.forget(lambda key: key == "a") == []


def test_a_key_can_be_forgotten_while_its_window_is_being_closed() -> None:
    operator = window(max_keys=2000)
    operator.step([stored(f"k{number:04}", 1, 0) for number in range(1200)], 0)
    first = operator.step([], at(60))
    assert len(first.messages) < 1200
    operator.forget(lambda key: key == "k1199")
    rest = [topic for topic, _ in outputs(*(operator.step([], at(60)) for _ in range(3)))]
    assert len(first.messages) + len(rest) == 1199
    assert "stats/k1199" not in rest

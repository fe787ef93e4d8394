"""An event as a user's function sees it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from processors import Event


def test_json_gives_what_the_payload_is_and_parses_it_once() -> None:
    event = Event("t", b'{"value": [1, 2.5]}')
    assert event.json() == {"value": [1, 2.5]}
    assert event.json(dict) is event.json()


def test_json_of_another_kind_than_was_asked_for_is_an_error_that_says_so() -> None:
    with pytest.raises(TypeError, match="a JSON list, not a dict"):
        Event("t", b"[]").json(dict)
    with pytest.raises(ValueError):
        Event("t", b"21 degrees").json()


@pytest.mark.parametrize(
    ("payload", "field", "number"),
    [(b"21.5", "", 21.5), (b'{"v": -3}', "v", -3), (b'{"motor": {"speed": 1e3}}', "motor.speed", 1000.0)],
)
def test_a_number_is_the_payload_or_stands_in_a_field_of_it(payload: bytes, field: str, number: float) -> None:
    assert Event("t", payload).number(field) == number


@pytest.mark.parametrize(
    ("payload", "field", "error"),
    [
        (b"true", "", TypeError),
        (b'"21"', "", TypeError),
        (b'{"v": null}', "v", TypeError),
        (b'{"v": 1}', "w", KeyError),
        (b'{"v": 1}', "v.w", TypeError),
        (b"NaN", "", ValueError),
        (b"", "", ValueError),
    ],
)
def test_what_is_no_number_is_an_error(payload: bytes, field: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        Event("t", payload).number(field)


def test_topic_levels_text_and_time_are_at_hand() -> None:
    event = Event("plant/7/", "21 °C".encode(), ts=1_700_000_000_500_000)
    assert event.levels == ["plant", "7", ""]
    assert event.text == "21 °C"
    assert event.time == datetime(2023, 11, 14, 22, 13, 20, 500_000, tzinfo=UTC)

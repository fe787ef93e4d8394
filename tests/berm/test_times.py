from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berm.times import SECOND, format_time, parse_time


def at(text: str) -> int:
    """µs since the epoch of a time with its zone."""
    return round(datetime.fromisoformat(text).timestamp()) * SECOND


NOW = at("2026-03-10T12:00:00+00:00")


@pytest.fixture
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The process's time zone, as POSIX writes it."""
    name: str = request.param
    monkeypatch.setenv("TZ", name)
    time.tzset()
    yield name
    monkeypatch.undo()
    time.tzset()


utc = pytest.mark.parametrize("zone", ["UTC0"], indirect=True)
berlin = pytest.mark.parametrize("zone", ["CET-1CEST,M3.5.0,M10.5.0/3"], indirect=True)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("now", 0),
        ("-90s", 90),
        ("-5m", 300),
        ("-1.5h", 5400),
        ("-2d", 172_800),
        ("-0s", 0),
        ("2h", 7200),
        ("30m ago", 1800),
    ],
)
def test_a_time_can_be_some_time_ago(text: str, seconds: int) -> None:
    assert parse_time(text, NOW) == NOW - seconds * SECOND


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-03-01T10:00Z", "2026-03-01T10:00:00+00:00"),
        ("2026-03-01T10:00:00+02:00", "2026-03-01T08:00:00+00:00"),
        ("2026-03-01 10:00:05Z", "2026-03-01T10:00:05+00:00"),
    ],
)
def test_a_time_with_its_zone_is_that_time(text: str, expected: str) -> None:
    assert parse_time(text, NOW) == at(expected)


@berlin
def test_a_time_without_a_zone_is_local(zone: str) -> None:
    assert parse_time("2026-03-01T10:00", NOW) == at("2026-03-01T09:00:00+00:00")
    assert parse_time("2026-07-01", NOW) == at("2026-06-30T22:00:00+00:00")


@utc
def test_a_time_of_day_is_its_last_occurrence(zone: str) -> None:
    assert parse_time("11:59", NOW) == at("2026-03-10T11:59:00+00:00")
    assert parse_time("12:00", NOW) == NOW
    assert parse_time("12:00:01", NOW) == at("2026-03-09T12:00:01+00:00")
    assert parse_time("10:00:05.25", NOW) == at("2026-03-10T10:00:05+00:00") + 250_000


@utc
def test_the_end_of_a_span_is_the_first_such_time_after_its_beginning(zone: str) -> None:
    since = parse_time("23:55", NOW)
    assert since == at("2026-03-09T23:55:00+00:00")
    assert parse_time("00:05", NOW, since) == at("2026-03-10T00:05:00+00:00")
    assert parse_time("23:55", NOW, since) == since


@berlin
def test_a_time_of_day_is_right_on_the_day_on_which_clocks_change(zone: str) -> None:
    noon = at("2026-03-29T12:00:00+02:00")
    assert parse_time("01:30", noon) == at("2026-03-29T01:30:00+01:00")
    assert parse_time("04:00", noon) == at("2026-03-29T04:00:00+02:00")
    assert parse_time("13:00", noon) == at("2026-03-28T13:00:00+01:00")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "5m later",
        "-5m  ago",
        "-5",
        "-5w",
        "10",
        "10:0",
        "1e3",
        "\uff12\uff10:00",
        "-\u0663m",
        "2026-3-1",
        "+1h",
    ],
)
def test_what_is_no_time_is_refused_with_what_would_be_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a time; write it like 10:00, .*-5m"):
        parse_time(text, NOW)


@pytest.mark.parametrize(
    "text", ["25:00", "10:61", "2026-02-30", "2026-13-01T10:00", "2026-03-01T99:00", "2026-03-01Tx"]
)
def test_a_time_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="there is no such time"):
        parse_time(text, NOW)


@given(st.integers(0, 4_000_000_000 * SECOND))
def test_a_formatted_time_is_read_back_to_the_microsecond(ts: int) -> None:
    assert parse_time(format_time(ts), NOW) == ts

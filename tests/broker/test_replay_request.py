"""What the words of a replay mean, and which mean nothing."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.replay_request import MOST_LAST, Request, is_replay, parse_request, split_replay
from tests.broker.helpers import SECOND, START


@pytest.mark.parametrize(
    ("words", "request_"),
    [
        ("all", Request()),
        ("seq=1", Request(seq=1)),
        ("seq=123456789012345678", Request(seq=123456789012345678)),
        ("last=10000", Request(last=MOST_LAST)),
        ("ago=90s", Request(time=START - 90 * SECOND)),
        ("ago=15m", Request(time=START - 900 * SECOND)),
        ("ago=2h", Request(time=START - 7200 * SECOND)),
        ("ago=7d", Request(time=START - 604800 * SECOND)),
        ("ago=999999999d", Request(time=1)),
        ("time=1700000000", Request(time=START)),
        ("time=1700000000.25", Request(time=START + SECOND // 4)),
        ("time=0", Request(time=1)),
        ("time=2023-11-14T22:13:20Z", Request(time=START)),
        ("time=2023-11-14t22:13:20.5z", Request(time=START + SECOND // 2)),
        ("time=2023-11-14T23:13:20+01:00", Request(time=START)),
        ("time=2023-11-14 17:13:20-05:00", Request(time=START)),
        ("all;speed=1", Request(speed=1.0)),
        ("last=1;speed=0.25", Request(last=1, speed=0.25)),
        ("all;until=now", Request(until_now=True)),
        ("seq=5;to=5", Request(seq=5, to=5)),
        ("time=1;until=2;speed=10", Request(time=SECOND, until=2 * SECOND, speed=10.0)),
        ("all;to=9;until=now", Request(to=9, until_now=True)),
    ],
)
def test_words_mean_this(words: str, request_: Request) -> None:
    assert parse_request(words, START) == request_


@pytest.mark.parametrize(
    "words",
    [
        "",
        "everything",
        "ALL",
        " all",
        "all=1",
        "#",
        "+",
        "seq",
        "seq=",
        "seq=0",
        "seq=-1",
        "seq=1.5",
        "seq=٣",
        "seq=1234567890123456789",
        "last=0",
        "last=10001",
        "ago=5",
        "ago=5w",
        "ago=-5s",
        "ago=1.5h",
        "ago=9999999999s",
        "time=",
        "time=now",
        "time=yesterday",
        "time=2023-11-14",
        "time=2023-11-14T22:13:20",
        "time=2023-02-30T22:13:20Z",
        "time=2023-11-14T22:13:61Z",
        "time=0000-01-01T00:00:00Z",
        "time=-5",
        "time=123456789012",
        "all;",
        "all;;",
        "all;speed",
        "all;speed=0",
        "all;speed=-1",
        "all;speed=inf",
        "all;speed=nan",
        "all;speed=1e9",
        "all;until=",
        "all;until=never",
        "all;to=0",
        "all;until=now;until=now",
        "seq=5;to=4",
        "time=5;until=5",
        "all;color=red",
        "all;" + "x" * 300,
    ],
)
def test_others_mean_nothing_and_it_is_said_what_would(words: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_request(words, START)


@given(st.text(max_size=60) | st.text("alsequntimegospd=;.:-+TZ0123456789", max_size=60))
def test_no_text_does_worse_than_mean_nothing(words: str) -> None:
    with suppress(ValueError):
        request = parse_request(words, START)
        assert sum(map(bool, (request.seq, request.time, request.last))) <= 1


@pytest.mark.parametrize(
    ("filter", "parts"),
    [
        ("$replay/all/#", ("all", "#")),
        ("$replay/last=1/a/+/b", ("last=1", "a/+/b")),
        ("$replay/all//", ("all", "/")),
        ("$replay/all/$dead/x", ("all", "$dead/x")),
    ],
)
def test_a_filter_has_words_and_the_filter_behind_them(filter: str, parts: tuple[str, str]) -> None:
    assert is_replay(filter)
    assert split_replay(filter) == parts


@pytest.mark.parametrize(
    "filter",
    [
        "$replay",
        "$replay/",
        "$replay/all",
        "$replay/all/",
        "$replay//a",
        "$replay/all/$replay/all/a",
        "$replay/all/$share/g/a",
    ],
)
def test_without_both_it_is_one_that_is_ill_formed(filter: str) -> None:
    assert is_replay(filter)
    with pytest.raises(ValueError, match="replay"):
        split_replay(filter)


@pytest.mark.parametrize("filter", ["#", "+/all/#", "replay/all/#", "$replays/all/#", "$SYS/#"])
def test_other_filters_are_none(filter: str) -> None:
    assert not is_replay(filter)

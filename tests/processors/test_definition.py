"""The decorators: what they accept, what they leave as it is, and how they refuse."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest

from processors import Definition, DefinitionError, Event, Message, Processors
from processors import aggregates as agg
from tests.processors.helpers import value


def echo(event: Event) -> Message:
    return Message("out", event.payload)


async def waiting(event: Event) -> Message:
    return echo(event)


async def yielding(event: Event) -> AsyncIterator[Message]:
    yield echo(event)


def test_a_decorated_function_is_still_the_function() -> None:
    made = Processors()
    assert made.map("t")(echo) is echo
    assert made.filter("t", to="out")(bool) is bool
    assert made.tumbling("t", agg.count, seconds=1, to="out")(value) is value


def test_definitions_stand_in_their_order_with_name_filter_line_and_what_they_do() -> None:
    made = Processors()
    made.map("t/+")(echo)
    made.filter("#", to="alarm/{topic}", name="alarm", start="beginning")(lambda event: True)
    made.tumbling("t/#", agg.count, agg.max, seconds=0.5, to="stats/{key}")(value)
    first, second, third = made.definitions
    lines = Path(__file__).read_text().splitlines()
    assert isinstance(first, Definition)
    assert (first.name, first.filter, first.start, first.what) == ("echo", "t/+", "end", "map")
    assert lines[first.line - 1] == "def echo(event: Event) -> Message:"
    assert (second.name, second.start, second.client) == ("alarm", "beginning", "$processor/alarm")
    assert third.what == "count, max per 0.5 s and key to stats/{key}"


def test_two_processors_of_one_file_cannot_have_one_name() -> None:
    made = Processors()
    made.map("t")(echo)
    with pytest.raises(DefinitionError, match=r"two processors are called 'echo', here and in line \d+"):
        made.map("u")(echo)
    made.map("u", name="other")(echo)


@pytest.mark.parametrize(
    ("define", "words"),
    [
        (lambda made: made.map("a/#/b")(echo), "'#' is not the whole last level"),
        (lambda made: made.map("$share/g/a")(echo), "shared subscription"),
        (lambda made: made.map("t", name="a/b")(echo), "can't be a processor's name"),
        (lambda made: made.map("t")(lambda event: None), "give name="),
        (lambda made: made.map("t")(partial(echo)), "give name="),
        (lambda made: made.map("t")(7), "no function"),
        (lambda made: made.map("t", start="middle")(echo), "'end' or 'beginning'"),
        (lambda made: made.map("t")(waiting), "plain def"),
        (lambda made: made.map("t")(yielding), "plain def"),
        (lambda made: made.filter("t", to="a/{key}")(echo), "{topic}"),
        (lambda made: made.filter("t", to="a", qos=3)(echo), "qos=3"),
        (lambda made: made.tumbling("t", agg.count, seconds=0, to="a")(value), "seconds=0"),
        (lambda made: made.tumbling("t", agg.count, seconds=float("nan"), to="a")(value), "seconds=nan"),
        (lambda made: made.tumbling("t", agg.count, seconds=1, to="a/{topic}")(value), "{key}"),
        (lambda made: made.tumbling("t", agg.count, seconds=1, to="a", partitions=0)(value), "partitions=0"),
        (lambda made: made.tumbling("t", seconds=1, to="a")(value), "no aggregate"),
        (lambda made: made.tumbling("t", agg.count, agg.count, seconds=1, to="a")(value), "two aggregates"),
        (lambda made: made.tumbling("t", agg.count.named("key"), seconds=1, to="a")(value), "'key'"),
    ],
)
def test_what_cannot_work_is_refused_where_it_is_defined(define: Callable[[Processors], object], words: str) -> None:
    made = Processors()
    with pytest.raises(DefinitionError) as caught:
        define(made)
    assert words in str(caught.value)
    assert made.definitions == []

"""The built-in aggregates, over the accumulators that a restart brings back too."""

from __future__ import annotations

from functools import reduce

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors import Aggregate
from processors import aggregates as agg

NUMERIC = [agg.sum, agg.mean, agg.min, agg.max]
ALL = [agg.count, agg.first, agg.last, *NUMERIC]


@pytest.mark.parametrize(
    ("aggregate", "result"),
    [
        (agg.count, 4),
        (agg.sum, 10.5),
        (agg.mean, 2.625),
        (agg.min, -1),
        (agg.max, 7.5),
        (agg.first, 3),
        (agg.last, 1),
    ],
    ids=lambda value: value.name if isinstance(value, Aggregate) else None,
)
def test_the_result_is_what_the_name_says(aggregate: Aggregate[float], result: float) -> None:
    assert aggregate.result(reduce(aggregate.add, [3, -1, 7.5, 1], aggregate.init())) == result


@pytest.mark.parametrize("aggregate", ALL, ids=lambda aggregate: aggregate.name)
@given(values=st.lists(st.integers(-(1 << 40), 1 << 40) | st.floats(-1e100, 1e100), min_size=1), cut=st.integers(0))
def test_an_accumulator_that_was_kept_as_json_goes_on_as_if_it_had_not_been(
    aggregate: Aggregate[float], values: list[float], cut: int
) -> None:
    cut %= len(values)
    whole = reduce(aggregate.add, values, aggregate.init())
    half = reduce(aggregate.add, values[:cut], aggregate.init())
    again = reduce(aggregate.add, values[cut:], orjson.loads(orjson.dumps(half)))
    assert aggregate.result(again) == aggregate.result(whole)


@pytest.mark.parametrize("aggregate", NUMERIC, ids=lambda aggregate: aggregate.name)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1 << 64])
def test_a_number_that_json_cannot_hold_is_refused(aggregate: Aggregate[float], value: float) -> None:
    with pytest.raises(OverflowError):
        aggregate.add(aggregate.init(), value)


def test_a_sum_that_outgrows_its_type_is_refused() -> None:
    with pytest.raises(OverflowError):
        agg.sum.add((1 << 63) - 1, 1)
    with pytest.raises(OverflowError):
        agg.sum.add(1.7e308, 1.7e308)


def test_an_aggregate_can_have_another_name() -> None:
    average = agg.mean.named("average")
    assert (average.name, agg.mean.name) == ("average", "mean")
    assert average.result(average.add(average.init(), 3)) == 3

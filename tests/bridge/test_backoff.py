from __future__ import annotations

import pytest

from bridge.backoff import delay


def test_the_wait_grows_with_each_attempt_up_to_the_maximum() -> None:
    latest = [delay(attempt, 1.0, 60.0, 0.999999) for attempt in range(1, 9)]
    assert latest == pytest.approx([2, 4, 8, 16, 32, 60, 60, 60], abs=0.001)


@pytest.mark.parametrize("attempt", [1, 2, 7, 1000, 10**9])
def test_the_wait_is_never_below_the_minimum_and_never_above_the_maximum(attempt: int) -> None:
    assert delay(attempt, 0.5, 60.0, 0.0) == 0.5
    assert 0.5 <= delay(attempt, 0.5, 60.0, 0.999999) <= 60.0


def test_even_the_first_wait_is_spread() -> None:
    assert delay(1, 1.0, 60.0, 0.1) != delay(1, 1.0, 60.0, 0.9)

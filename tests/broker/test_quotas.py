"""Rates make senders wait for as long as they have run ahead, and never longer; what is not bounded costs nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.quotas import Meter, Quotas, TokenBucket

SECOND = 1_000_000
START = 1_700_000_000 * SECOND


def test_a_second_s_worth_passes_at_once_and_then_one_at_its_time() -> None:
    bucket = TokenBucket(10, START)
    assert [bucket.take(START) for _ in range(11)] == [True] * 10 + [False]
    assert not bucket.take(START + SECOND // 10 - 1)
    assert bucket.take(START + SECOND // 10)
    assert not bucket.take(START + SECOND // 10)


def test_a_pause_is_worth_no_more_than_a_second() -> None:
    bucket = TokenBucket(10, START)
    later = START + 3600 * SECOND
    assert [bucket.take(later) for _ in range(11)] == [True] * 10 + [False]


def test_a_rate_below_one_a_second_lets_one_pass_at_its_time() -> None:
    bucket = TokenBucket(0.1, START)
    assert bucket.take(START)
    assert not bucket.take(START + 9 * SECOND)
    assert bucket.take(START + 10 * SECOND)


def test_what_was_taken_on_credit_is_made_up_for() -> None:
    bucket = TokenBucket(100, START)
    assert bucket.spend(100, START) == START
    until = bucket.spend(250, START)
    assert until == START + 5 * SECOND // 2 + 1
    assert bucket.spend(0, until) == until


def test_a_clock_that_is_set_back_gives_and_takes_nothing() -> None:
    bucket = TokenBucket(10, START)
    assert bucket.spend(10, START) == START
    assert bucket.spend(0, START - 3600 * SECOND) == START - 3600 * SECOND
    assert not bucket.take(START - 3600 * SECOND)
    assert bucket.take(START - 3600 * SECOND + SECOND // 10)


@given(
    st.floats(0.5, 1e6),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 3 * SECOND)), min_size=1, max_size=50),
)
def test_who_waits_as_told_never_has_more_than_the_rate_and_a_burst(rate: float, reads: list[tuple[int, int]]) -> None:
    bucket = TokenBucket(rate, START)
    now, spent, burst = START, 0, max(rate, 1.0)
    for amount, pause in reads:
        # before the last read everything is within the rate; the read itself is what may stand out over it
        assert spent <= burst + rate * (now - START) / SECOND + 1e-6 * (1 + spent)
        until = bucket.spend(amount, now)
        spent += amount
        now = max(now + pause, until)
    assert spent - reads[-1][0] <= burst + rate * (now - START) / SECOND + 1e-6 * (1 + spent)


def test_a_client_without_rates_has_no_throttle() -> None:
    assert Meter(Quotas(connect_rate=1, user_connections=1, topic_levels=1), START).throttle(START) is None


def test_a_client_waits_for_its_messages_and_for_its_bytes() -> None:
    meter = Meter(Quotas(message_rate=10, byte_rate=1000), START)
    throttle = meter.throttle(START)
    assert throttle is not None
    assert throttle.spend(10, 1000, START) == START
    assert throttle.spend(10, 0, START) == START + SECOND + 1
    assert throttle.spend(0, 3000, START) == START + 3 * SECOND + 1
    other = meter.throttle(START)
    assert other is not None
    assert other.spend(10, 1000, START) == START


def test_the_clients_of_a_listener_share_its_rates() -> None:
    meter = Meter(Quotas(total_message_rate=10, total_byte_rate=1000), START)
    one, other = meter.throttle(START), meter.throttle(START)
    assert one is not None
    assert other is not None
    assert one.spend(10, 0, START) == START
    assert other.spend(5, 0, START) == START + SECOND // 2 + 1
    assert one.spend(0, 1500, START) == START + SECOND // 2 + 1
    assert other.spend(0, 500, START) == START + SECOND + 1


def test_connects_above_the_rate_are_refused_and_do_not_count() -> None:
    meter = Meter(Quotas(connect_rate=2), START)
    assert [meter.may_connect(START) for _ in range(4)] == [True, True, False, False]
    assert [meter.may_connect(START + SECOND // 2) for _ in range(2)] == [True, False]
    assert all(Meter(Quotas(), START).may_connect(START) for _ in range(1000))


def test_a_user_has_so_many_connections_and_no_more() -> None:
    meter = Meter(Quotas(user_connections=2), START)
    meter.enter("alice")
    assert meter.has_room("alice")
    meter.enter("alice")
    assert not meter.has_room("alice")
    assert meter.has_room("bob")
    meter.leave("alice")
    assert meter.has_room("alice")


def test_connections_without_a_user_name_are_not_those_of_one_user() -> None:
    meter = Meter(Quotas(user_connections=1), START)
    meter.enter("")
    assert meter.has_room("")
    assert Meter(Quotas(), START).has_room("alice")


@pytest.mark.parametrize(
    ("topic", "objection"),
    [
        ("a/b/c", None),
        ("a/b/c/d", "more than 3 levels"),
        ("///", "more than 3 levels"),
        ("x" * 20, None),
        ("x" * 21, "more than 20 bytes"),
        ("\u00e9" * 10, None),
        ("\u00e9" * 11, "more than 20 bytes"),
        ("\U0001f600" * 6, "more than 20 bytes"),
    ],
)
def test_a_topic_has_so_many_levels_and_bytes(topic: str, objection: str | None) -> None:
    found = Quotas(topic_levels=3, topic_length=20).objection(topic)
    assert found is None if objection is None else objection in (found or "")
    assert Quotas().objection(topic) is None

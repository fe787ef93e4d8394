"""Who gets what, against a list of subscriptions that is searched from end to end."""

from __future__ import annotations

from collections import Counter
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import router as router_module
from broker.mqtt.topic import matches
from broker.router import Delivery, Grant, Router, merge
from tests.broker.mqtt.steps import steps
from tests.broker.mqtt.strategies import filters, topics

uncompiled = pytest.mark.skipif(
    not str(router_module.__file__).endswith(".py"), reason="instructions can be counted in Python only"
)

SESSIONS = ("one", "two", "three")

grants = st.builds(
    Grant, filters(), st.integers(0, 2), st.booleans(), st.booleans(), st.sampled_from((0, 0, 1, 2)), st.integers(0, 9)
)


def grant(
    filter: str,
    qos: int = 0,
    no_local: bool = False,
    retain_as_published: bool = False,
    identifier: int = 0,
    since: int = 0,
) -> Grant:
    """A subscription of which only some fields matter."""
    return Grant(filter, qos, no_local, retain_as_published, identifier, since)


def nodes(router: Router[str]) -> int:
    """How many levels of filters the tree holds."""

    def count(node: router_module._Node[str]) -> int:
        return sum(1 + count(child) for child in node.children.values())

    return count(router._root)


def check(found: Delivery[str], expected: list[Grant], denied: bool = False) -> None:
    """Hold a delivery against the subscriptions that it must come from."""
    assert found.qos == max(each.qos for each in expected)
    assert Counter(found.identifiers) == Counter(each.identifier for each in expected if each.identifier)
    assert found.retain_as_published is any(each.retain_as_published for each in expected)
    assert found.since == max(each.since for each in expected)
    assert found.no_local is any(each.no_local for each in expected)
    assert found.plain is not (found.no_local or found.retain_as_published or bool(found.identifiers) or denied)
    assert found.denied is denied
    own = [each for each in expected if not each.no_local]
    if found.no_local and own:
        assert found.own is not None
        assert found.own.session == found.session
        check(found.own, own)
    else:
        assert found.own is None


changes = st.lists(
    st.tuples(st.sampled_from(SESSIONS), grants)
    | st.tuples(st.sampled_from(SESSIONS), filters())
    | st.tuples(st.just("match"), topics())
    | st.tuples(st.just("deny"), st.sampled_from(SESSIONS))
    | st.tuples(st.just("forget"), st.just("")),
    max_size=40,
)


@settings(deadline=None, max_examples=500)
@given(
    changes,
    st.lists(topics(), min_size=1, max_size=6),
    st.sampled_from((0, 1, 2, 64)),
    st.sampled_from((0, 1, 2, 4)),
    st.sampled_from((2, 50, 50)),
)
def test_each_session_gets_what_one_of_its_subscriptions_matches(
    asked: list[tuple[str, Grant | str]], named: list[str], forks: int, depth: int, kept: int
) -> None:
    # [MQTT-3.3.4-2] [MQTT-3.3.4-4] [MQTT-4.7.2-1]
    with patch.multiple(router_module, _FORKS=forks, _DEPTH=depth, _CACHED_TOPICS=kept, _BRANCHES=2 * kept):
        compare(asked, named)


def compare(asked: list[tuple[str, Grant | str]], named: list[str]) -> None:
    """Do what is asked with a router and with a list of subscriptions, and look at both all the time."""
    denied: set[tuple[str, str]] = set()
    router: Router[str] = Router(lambda session, topic: (session, topic[:1]) in denied)
    held: dict[tuple[str, str], Grant] = {}

    def look(topic: str) -> None:
        expected: dict[str, list[Grant]] = {}
        for (session, filter), each in held.items():
            if matches(filter, topic):
                expected.setdefault(session, []).append(each)
        found = router.match(topic)
        assert sorted(delivery.session for delivery in found) == sorted(expected)
        for delivery in found:
            check(delivery, expected[delivery.session], (delivery.session, topic[:1]) in denied)

    for who, what in asked:
        if isinstance(what, Grant):
            router.add(who, what)
            held[who, what.filter] = what
        elif who == "match":
            look(what)
        elif who == "deny":
            denied ^= {(what, "a")}
            router.forget()
        elif who == "forget":
            router.forget()
        else:
            router.remove(who, what)
            held.pop((who, what), None)
        # Every topic that was ever asked for, and every change that could alter it.
        for topic in named:
            look(topic)
        check_cache(router)
    for session, filter in held:
        router.remove(session, filter)
    assert nodes(router) == 0
    for topic in named:
        assert router.match(topic) == ()


def check_cache(router: Router[str]) -> None:
    """See that the tree of cached topics has each of them once, and as many branches as are counted."""
    topics: list[str] = []
    branches = -1
    waiting = [router._seen]
    while waiting:
        branch = waiting.pop()
        branches += 1
        topics += branch.topics
        waiting += branch.below.values()
    assert sorted(topics) == sorted(router._cache)
    assert branches == router._branches


@pytest.mark.parametrize(
    ("filter", "topic"),
    [
        ("a/b", "a/b"),
        ("a/+", "a/b"),
        ("a/#", "a/b"),
        ("a/#", "a"),
        ("#", "a/b"),
        ("+/b", "a/b"),
        ("+/#", "a"),
        ("a/b/+/#", "a/b/c"),
        ("a/+/c", "a/b/c"),
        ("a/b/c/d/e/+/g", "a/b/c/d/e/f/g"),
        ("+/+/+/+/+/+/+", "a/b/c/d/e/f/g"),
        ("a/b/c/d/e/f/g/#", "a/b/c/d/e/f/g"),
        ("a/b/c/d/+/#", "a/b/c/d/e"),
        ("a/b/c/d/e/#", "a/b/c/d/e"),
        ("a/b/c/d/#", "a/b/c/d"),
        ("a/b/c/+", "a/b/c/d"),
        ("a/b/c/d/+", "a/b/c/d/e"),
    ],
)
def test_a_change_is_seen_by_a_topic_that_was_matched_before(filter: str, topic: str) -> None:
    router: Router[str] = Router()
    assert router.match(topic) == ()
    router.add("one", grant(filter, 1))
    assert [delivery.qos for delivery in router.match(topic)] == [1]
    router.add("one", grant(filter, 2))
    assert [delivery.qos for delivery in router.match(topic)] == [2]
    router.add("two", grant(filter, 0))
    assert sorted(delivery.session for delivery in router.match(topic)) == ["one", "two"]
    router.remove("one", filter)
    assert [delivery.session for delivery in router.match(topic)] == ["two"]
    router.remove("two", filter)
    assert router.match(topic) == ()


def test_a_hot_topic_is_matched_once_until_a_subscription_changes_that_could_alter_it() -> None:
    router: Router[str] = Router()
    router.add("one", grant("a/b"))
    first = router.match("a/b")
    router.add("two", grant("a/c"))
    assert router.match("a/b") is first
    router.remove("two", "a/c")
    assert router.match("a/b") is first
    router.add("two", grant("a/b"))
    assert router.match("a/b") is not first


def test_overlapping_subscriptions_give_one_message_at_the_highest_qos_with_every_identifier() -> None:
    # [MQTT-3.3.4-2] [MQTT-3.3.4-3] [MQTT-3.3.4-4]
    router: Router[str] = Router()
    router.add("one", grant("a/#", 0, identifier=3))
    router.add("one", grant("a/+", 2, identifier=7))
    router.add("one", grant("a/b", 1))
    router.add("one", grant("#", 0, identifier=3))
    router.add("one", grant("b/#", 2, identifier=9))
    (delivery,) = router.match("a/b")
    assert delivery.qos == 2
    assert sorted(delivery.identifiers) == [3, 3, 7]
    assert not delivery.plain
    assert not delivery.no_local
    assert delivery.own is None


def test_a_subscription_with_the_same_filter_replaces_the_one_before() -> None:
    # [MQTT-3.8.4-3]
    router: Router[str] = Router()
    router.add("one", grant("a", 2, identifier=5))
    router.add("one", grant("a", 1))
    (delivery,) = router.match("a")
    assert (delivery.qos, delivery.identifiers, delivery.plain) == (1, (), True)
    assert nodes(router) == 1


def test_a_message_of_ones_own_reaches_the_subscriptions_that_want_it() -> None:
    # [MQTT-3.8.3-3]
    router: Router[str] = Router()
    router.add("one", grant("a/#", 2, no_local=True, identifier=1))
    (delivery,) = router.match("a/b")
    assert delivery.no_local
    assert delivery.own is None
    router.add("one", grant("a/b", 1, identifier=2))
    (delivery,) = router.match("a/b")
    assert (delivery.qos, sorted(delivery.identifiers)) == (2, [1, 2])
    assert delivery.own is not None
    assert (delivery.own.qos, delivery.own.identifiers, delivery.own.no_local) == (1, (2,), False)


def test_no_subscriptions_give_no_delivery() -> None:
    assert merge("one", []) is None


@pytest.mark.parametrize("filter", ["#", "+/a", "+/#", "+/+"])
def test_a_leading_wildcard_does_not_match_a_topic_that_begins_with_a_dollar(filter: str) -> None:
    # [MQTT-4.7.2-1]
    router: Router[str] = Router()
    router.add("one", grant(filter))
    assert router.match("$SYS/a") == ()
    router.add("two", grant("$SYS/" + filter[-1]))
    assert [delivery.session for delivery in router.match("$SYS/a")] == ["two"]


def test_removing_what_is_not_there_changes_nothing() -> None:
    router: Router[str] = Router()
    router.add("one", grant("a/b/c"))
    for session, filter in (("one", "a/b"), ("two", "a/b/c"), ("one", "a/b/c/d"), ("one", "x"), ("one", "#")):
        router.remove(session, filter)
    assert [delivery.session for delivery in router.match("a/b/c")] == ["one"]
    assert nodes(router) == 3


def test_a_branch_goes_with_the_last_subscription_that_needed_it() -> None:
    router: Router[str] = Router()
    for filter in ("a/b/c", "a/b", "a/+/c", "a/#"):
        router.add("one", grant(filter))
    assert nodes(router) == 6
    router.remove("one", "a/b/c")
    assert nodes(router) == 5
    router.remove("one", "a/+/c")
    assert nodes(router) == 3
    router.remove("one", "a/b")
    assert nodes(router) == 2
    router.remove("one", "a/#")
    assert nodes(router) == 0


def test_the_topics_that_are_remembered_are_bounded() -> None:
    router: Router[str] = Router()
    router.add("one", grant("t/#"))
    for n in range(25_000):
        assert len(router.match(f"t/{n}")) == 1
    assert len(router._cache) <= 10_000


@pytest.mark.parametrize("filter", ["t/+/a", "t/+", "+/+/+", "#", "t/7/#"])
def test_the_tree_of_remembered_topics_is_bounded_though_it_is_forgotten_and_made_all_the_time(filter: str) -> None:
    router: Router[str] = Router()
    most = 0
    for n in range(12_000):
        router.match(f"t/{n}/{n}/a/{n}")
        if n % 100 == 0:
            router.add("one", grant(filter))
            router.remove("one", filter)
        most = max(most, router._branches)
    assert most <= 10_000 + router_module._DEPTH
    check_cache(router)


@pytest.mark.parametrize(
    ("filter", "topic"),
    [
        ("a/+", "b/x"),
        ("a/#", "b/x"),
        ("a/+", "a/b/c"),
        ("a/+/c", "a/b/d"),
        ("a/b/c/#", "a/b/d"),
        ("+/x", "a/y"),
        ("+/+", "a"),
        ("+/+", "a/b/c"),
        ("+/x/#", "a/b/x"),
        ("a/b/#", "a/c"),
        ("$SYS/#", "a"),
    ],
)
def test_a_change_costs_no_topic_a_walk_that_it_does_not_match(filter: str, topic: str) -> None:
    router: Router[str] = Router()
    router.add("one", grant("#"))
    first = router.match(topic)
    for other in ("a/x", "b/x/y", "x"):
        router.match(other)
    router.add("two", grant(filter))
    assert router.match(topic) is first
    router.remove("two", filter)
    assert router.match(topic) is first


def test_long_topics_are_matched_and_not_remembered() -> None:
    router: Router[str] = Router()
    router.add("one", grant("t/#"))
    for n in range(10):
        assert len(router.match(f"t/{n}/{'x' * 65_000}")) == 1
    assert not router._cache


@uncompiled
def test_a_match_costs_no_more_for_subscriptions_that_do_not_match() -> None:
    def work(size: int) -> int:
        router: Router[str] = Router()
        for n in range(size):
            router.add("one", grant(f"other/{n}/+"))
            router.add("one", grant(f"{n}/#"))
        router.add("one", grant("a/+/c"))
        return steps(lambda: router.match("a/b/c"))

    assert work(2000) == work(2)


@uncompiled
def test_a_match_costs_as_much_as_the_topic_is_long() -> None:
    def work(levels: int) -> int:
        router: Router[str] = Router()
        router.add("one", grant("+/" * levels + "x"))
        router.add("one", grant("a/" * levels + "#"))
        return steps(lambda: router.match("a/" * levels + "b"))

    assert work(400) < 2.5 * work(200)


@uncompiled
@pytest.mark.parametrize(
    "filter", ["a/+", "a/#", "a/b/+/c", "+/x", "+/+/+", "other/7/#", "a/b", "other/+/x", "#", "+/#"]
)
def test_a_change_costs_no_more_for_topics_that_are_remembered(filter: str) -> None:
    def work(size: int) -> int:
        router: Router[str] = Router()
        for n in range(size):
            router.match(f"other/{n}/x/y")
        router.add("one", grant(filter))  # what it forgets was made by a match
        router.remove("one", filter)
        for n in range(10):
            router.match(f"a/{n}")

        def change() -> None:
            router.add("one", grant(filter))
            router.remove("one", filter)

        return steps(change)

    # Following one filter into some branches is what the smaller may have to do, and the larger has given up.
    assert work(3000) <= work(router_module._FORKS - 1)


@uncompiled
@pytest.mark.parametrize("filter", ["#", "+/t", "+/#"])
def test_what_a_thousand_sessions_cost_is_what_they_are_given(filter: str) -> None:
    def work(size: int) -> int:
        router: Router[int] = Router()

        def come() -> None:
            for n in range(size):
                router.add(n, grant(filter))
                if n % (size // 10) == 0:
                    router.match("a/t")
            for n in range(size):
                router.remove(n, filter)

        return steps(come)

    assert work(1000) < 11 * work(100)

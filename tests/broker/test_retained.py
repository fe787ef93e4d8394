"""Retained messages, against a dictionary of them that is searched from end to end."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import retained as retained_module
from broker.mqtt.topic import matches
from broker.retained import Retained
from storage.interface import FSYNC, Event
from tests.broker.mqtt.steps import steps
from tests.broker.mqtt.strategies import filters, topics

uncompiled = pytest.mark.skipif(
    not str(retained_module.__file__).endswith(".py"), reason="instructions can be counted in Python only"
)


def event(topic: str, payload: bytes = b"x", seq: int = 1, properties: bytes = b"") -> Event:
    """A message to retain."""
    return Event(seq, 1_700_000_000_000_000, topic, payload, 1, True, "client", properties, 0, FSYNC)


def found(retained: Retained, filter: str) -> list[str]:
    """The topics of the messages that a filter finds."""
    return sorted(each.topic for each in retained.match(filter))


def nodes(retained: Retained) -> int:
    """How many levels of topics the tree holds."""

    def count(node: retained_module._Node) -> int:
        return sum(1 + count(child) for child in (node.children or {}).values())

    return count(retained._root)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(topics(), st.sampled_from((b"", b"x", b"y"))) | filters(), max_size=40),
    st.lists(filters(), min_size=1, max_size=5),
)
def test_a_filter_finds_the_last_message_of_each_topic_that_it_matches(
    changes: list[tuple[str, bytes] | str], asked: list[str]
) -> None:
    # [MQTT-3.3.1-5] [MQTT-3.3.1-6] [MQTT-3.3.1-7] [MQTT-4.7.2-1]
    retained = Retained()
    held: dict[str, Event] = {}

    def look(filter: str) -> None:
        expected = [each for topic, each in held.items() if matches(filter, topic)]
        assert sorted(retained.match(filter), key=lambda each: each.topic) == sorted(
            expected, key=lambda each: each.topic
        )

    for seq, change in enumerate(changes, 1):
        if isinstance(change, str):
            look(change)
            continue
        message = event(*change, seq)
        retained.store(message)
        if message.payload:
            held[message.topic] = message
        else:
            held.pop(message.topic, None)
        assert retained.count == len(held)
    for filter in asked:
        look(filter)
    for topic in list(held):
        retained.store(event(topic, b""))
    assert (retained.count, retained.size, retained.memory) == (0, 0, 0)
    assert nodes(retained) == 0


def test_the_last_message_of_a_topic_replaces_the_one_before() -> None:
    # [MQTT-3.3.1-5]
    retained = Retained()
    first, second = event("a/b", b"1", 1), event("a/b", b"2", 2)
    retained.store(first)
    retained.store(second)
    assert list(retained.match("a/b")) == [second]
    assert retained.count == 1


def test_an_empty_payload_removes_the_message_of_its_topic_and_no_other() -> None:
    # [MQTT-3.3.1-6] [MQTT-3.3.1-7]
    retained = Retained()
    for topic in ("a", "a/b", "a/b/c", "a/d"):
        retained.store(event(topic))
    retained.store(event("a/b", b""))
    assert found(retained, "#") == ["a", "a/b/c", "a/d"]
    for topic in ("a/b", "a/b/c/d", "x", "a/x"):
        retained.store(event(topic, b""))
    assert found(retained, "#") == ["a", "a/b/c", "a/d"]
    assert retained.count == 3


def test_a_branch_goes_with_the_last_message_that_needed_it() -> None:
    retained = Retained()
    for topic in ("a/b/c", "a/b", "a/d"):
        retained.store(event(topic))
    assert nodes(retained) == 4
    for topic, left in (("a/b/c", 3), ("a/d", 2), ("a/b", 0)):
        retained.store(event(topic, b""))
        assert nodes(retained) == left


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ("#", ["/", "a", "a/$b", "a/b"]),
        ("+", ["a"]),
        ("+/+", ["/", "a/$b", "a/b"]),
        ("a/#", ["a", "a/$b", "a/b"]),
        ("a/+", ["a/$b", "a/b"]),
        ("$SYS/#", ["$SYS", "$SYS/a"]),
        ("$SYS/+", ["$SYS/a"]),
        ("+/a", []),
        ("/", ["/"]),
        ("/#", ["/"]),
        ("a/b/#", ["a/b"]),
        ("a/b/c", []),
    ],
)
def test_a_wildcard_finds_what_the_specification_says(filter: str, expected: list[str]) -> None:
    # [MQTT-4.7.2-1]: not at the first level what begins with $
    retained = Retained()
    for topic in ("a", "a/b", "a/$b", "/", "$SYS", "$SYS/a"):
        retained.store(event(topic))
    assert found(retained, filter) == expected


def test_a_walk_takes_no_step_for_what_was_removed_before() -> None:
    retained = Retained()
    retained.store(event("a/x/b"))
    for n in range(20):
        retained.store(event(f"a/{n}/b"))
    assert len(list(retained.walk("a/+/b"))) > 20
    for n in range(20):
        retained.store(event(f"a/{n}/b", b""))
    assert len(list(retained.walk("a/+/b"))) == 2


def test_a_walk_sees_no_message_that_was_removed_meanwhile() -> None:
    retained = Retained()
    names = [f"a/{n}/b" for n in range(20)]
    for name in names:
        retained.store(event(name))
    walk = retained.match("a/#")
    first = next(walk).topic
    for name in names:
        if name != first:
            retained.store(event(name, b""))
    assert list(walk) == []


def test_a_walk_goes_on_while_the_tree_changes() -> None:
    retained = Retained()
    for n in range(20):
        retained.store(event(f"a/{n}"))
    seen = []
    for n, each in enumerate(retained.match("a/+")):
        seen.append(each.topic)
        retained.store(event(f"a/new/{n}"))
        retained.store(event(f"b/{n}"))
    assert sorted(seen) == sorted(f"a/{n}" for n in range(20))
    assert found(retained, "a/+") == sorted(seen)
    assert len(found(retained, "a/new/#")) == 20


@pytest.mark.parametrize("filter", ["#", "+/+", "a/#", "a/+", "a/5"])
@pytest.mark.parametrize("steps_before", range(12))
def test_a_walk_that_was_put_down_goes_on_behind_what_it_has_seen(filter: str, steps_before: int) -> None:
    retained = Retained()
    for n in range(10):
        retained.store(event(f"a/{n}"))
    expected = set(found(retained, filter))
    walk = retained.walk(filter)
    seen = [each.topic for _ in range(steps_before) if (each := next(walk, None)) is not None]
    walk.put_down()
    gone = {f"a/{n}" for n in (1, 4)} - set(seen)
    for topic in ("a/1", "a/4"):
        retained.store(event(topic, b""))
    retained.store(event("a/new"))
    retained.store(event("b"))
    rest = [each.topic for each in walk if each is not None]
    assert len(seen + rest) == len({*seen, *rest})
    assert {*seen, *rest} - {"a/new", "b"} == expected - gone


def test_walks_that_were_put_down_hold_nothing_of_a_tree_that_has_changed() -> None:
    retained = Retained()
    for n in range(1000):
        retained.store(event(f"{n}"))
    walks = []
    tracemalloc.start()
    try:
        for n in range(200):
            walk = retained.walk("+")
            next(walk)
            walk.put_down()
            walks.append(walk)
            retained.store(event("new", b"" if n % 2 else b"x"))
        assert tracemalloc.get_traced_memory()[0] < 200_000
    finally:
        tracemalloc.stop()


@uncompiled
@pytest.mark.parametrize("filter", ["#", "+/+", "+/missing", "+/+/missing", "1/+", "missing/#", "+/#"])
def test_no_step_of_a_walk_looks_at_many_topics(filter: str) -> None:
    def work(size: int) -> int:
        retained = Retained()
        for n in range(size):
            retained.store(event(f"{n}/x"))
        for _ in retained.match(filter):
            pass
        walk = retained.walk(filter)
        return max(steps(lambda: next(walk, None)) for _ in range(2 * size))

    assert work(200) == work(20)


@uncompiled
def test_a_walk_costs_as_much_as_the_part_of_the_tree_that_its_filter_reaches() -> None:
    def work(size: int) -> int:
        retained = Retained()
        for n in range(size):
            retained.store(event(f"other/{n}/x"))
        for n in range(10):
            retained.store(event(f"a/{n}/b"))
        return steps(lambda: list(retained.match("a/+/b")))

    assert work(2000) == work(2)


@uncompiled
def test_a_filter_of_many_wildcards_costs_as_much_as_there_are_topics() -> None:
    def work(size: int) -> int:
        retained = Retained()
        for n in range(size):
            retained.store(event(f"{n}/a/a/a/a/a/a/a/a"))
        return steps(lambda: list(retained.match("+/+/+/+/+/+/+/#")))

    assert work(200) < 2.5 * work(100)


# -- how much may be retained


sizes = st.sampled_from((0, 1, 2, 100, 300))


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(topics(), sizes, sizes), max_size=40),
    st.sampled_from((0, 1, 3)),
    st.sampled_from((0, 900, 2500)),
)
def test_what_there_is_room_for_stays_within_the_bounds_and_nothing_else_is_refused(
    asked: list[tuple[str, int, int]], messages: int, memory: int
) -> None:
    retained = Retained(messages, memory)
    held: dict[str, Event] = {}
    for topic, payload, properties in asked:
        message = event(topic, bytes(payload), properties=bytes(properties))
        fits = retained.has_room(topic, payload, properties)
        before = held.get(topic)
        if not payload or (before is not None and payload + properties <= len(before.payload + before.properties)):
            assert fits
        if fits:
            retained.store(message)
            held[topic] = message
            if not payload:
                del held[topic]
        else:
            unbounded = Retained()
            for each in (held | {topic: message}).values():
                unbounded.store(each)
            assert (messages and unbounded.count > messages) or (memory and unbounded.memory > memory)
        assert not messages or retained.count <= messages
        assert not memory or retained.memory <= memory


def test_a_full_store_takes_what_replaces_and_what_removes_and_then_something_new() -> None:
    retained = Retained(max_messages=2)
    for topic in ("a", "b"):
        assert retained.has_room(topic, 5, 0)
        retained.store(event(topic, b"12345"))
    assert not retained.has_room("c", 1, 0)
    assert retained.has_room("a", 500, 0)
    assert retained.has_room("c", 0, 0)
    retained.store(event("a", b""))
    assert retained.has_room("c", 1, 0)


def test_a_store_without_room_in_memory_takes_what_is_not_larger() -> None:
    retained = Retained()
    retained.store(event("a/b", b"12345"))
    full = Retained(max_memory=retained.memory)
    assert full.has_room("a/b", 5, 0)
    full.store(event("a/b", b"12345"))
    assert not full.has_room("a/b", 6, 0)
    assert not full.has_room("a/b", 5, 1)
    assert not full.has_room("a", 1, 0)
    assert full.has_room("a/b", 5, 0)
    assert full.has_room("a/b", 4, 1)


def test_a_store_that_is_beyond_its_bounds_from_the_start_takes_nothing_new_and_shrinks() -> None:
    retained = Retained(max_messages=1, max_memory=100)
    for topic in ("a", "b", "c"):
        retained.store(event(topic, b"123"))
    assert retained.count == 3
    assert not retained.has_room("d", 1, 0)
    assert retained.has_room("a", 3, 0)
    assert not retained.has_room("a", 4, 0)
    assert retained.has_room("a", 0, 0)


@uncompiled
@pytest.mark.parametrize(
    ("shape", "payload"),
    [
        ("plant/device{}/temperature", 64),
        ("plant/line/sensor{}", 64),
        ("{}/" + "level/" * 100, 64),
        ("{}/" + "ж" * 100, 5000),
        ("{}", 1),
    ],
)
def test_what_it_says_that_it_takes_is_about_what_it_takes(shape: str, payload: int) -> None:
    retained = Retained()
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for n in range(2000):
            message = event(shape.format(n), bytes(payload), n + 1000, properties=bytes(10))
            message.ts += n
            retained.store(message)
            del message
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.75 * taken < retained.memory < 1.35 * taken

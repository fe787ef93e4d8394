"""The rules of topics, against the examples of the specification and against a model that tries everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.mqtt import topic as topic_module
from broker.mqtt.errors import ProtocolError
from broker.mqtt.reason import Reason
from broker.mqtt.topic import compile_filters, matches, parse_share, validate_filter, validate_name
from tests.broker.mqtt.steps import steps
from tests.broker.mqtt.strategies import filters, shares, topics

uncompiled = pytest.mark.skipif(
    not str(topic_module.__file__).endswith(".py"), reason="instructions can be counted in Python only"
)


def naive(filter: Sequence[str], topic: Sequence[str]) -> bool:
    """Section 4.7 as a definition: each wildcard tries every number of levels that it may stand for."""
    if not filter:
        return not topic
    if filter[0] == "#":
        return True
    if not topic:
        return False
    return filter[0] in ("+", topic[0]) and naive(filter[1:], topic[1:])


def model(filter: str, topic: str) -> bool:
    """Whether the filter matches, by the definition."""
    if filter[0] in "+#" and topic[0] == "$":
        return False
    return naive(filter.split("/"), topic.split("/"))


EXAMPLES = [
    ("sport/tennis/player1/#", "sport/tennis/player1", True),
    ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
    ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
    ("sport/tennis/player1/#", "sport/tennis/player10", False),
    ("sport/#", "sport", True),
    ("#", "sport/tennis", True),
    ("#", "/", True),
    ("sport/tennis/+", "sport/tennis/player1", True),
    ("sport/tennis/+", "sport/tennis/player1/ranking", False),
    ("sport/+", "sport", False),
    ("sport/+", "sport/", True),
    ("+", "sport", True),
    ("+", "/finance", False),
    ("+/+", "/finance", True),
    ("/+", "/finance", True),
    ("+/tennis/#", "sport/tennis", True),
    ("+/tennis/#", "sport/tennis/a/b", True),
    ("sport/+/player1", "sport/tennis/player1", True),
    ("sport/+/player1", "sport//player1", True),
    ("#", "$SYS/a", False),
    ("+/monitor/Clients", "$SYS/monitor/Clients", False),
    ("$SYS/#", "$SYS/a/b", True),
    ("$SYS/#", "$SYS", True),
    ("$SYS/monitor/+", "$SYS/monitor/Clients", True),
    ("a/#", "a/$b", True),
    ("a/+", "a/$b", True),
    ("ACCOUNTS", "Accounts", False),
    ("a", "a/", False),
    ("a/", "a", False),
    ("/a", "a", False),
    ("/#", "/", True),
    ("/#", "a", False),
    ("+/#", "a", True),
    ("+/+/#", "a", False),
    ("e\u0301", "\u00e9", False),
]


@pytest.mark.parametrize(("filter", "topic", "expected"), EXAMPLES)
def test_a_filter_matches_as_the_specification_says(filter: str, topic: str, expected: bool) -> None:
    # [MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.7.2-1] [MQTT-4.7.3-4]
    assert model(filter, topic) is expected
    assert matches(filter, topic) is expected
    assert compile_filters([filter])(topic) is expected


@settings(deadline=None, max_examples=500)
@given(filters(), topics())
def test_a_filter_matches_what_the_definition_says(filter: str, topic: str) -> None:
    assert matches(filter, topic) is model(filter, topic)


@settings(deadline=None, max_examples=300)
@given(st.lists(filters(), max_size=8), st.lists(topics(), min_size=1, max_size=8))
@example(["#"], ["$SYS"])
@example(["a/#", "a"], ["a"])
@example([], ["a"])
def test_filters_compiled_together_match_what_one_of_them_matches(asked: list[str], named: list[str]) -> None:
    accepts = compile_filters(asked)
    for topic in named:
        assert accepts(topic) is any(matches(filter, topic) for filter in asked)


@settings(deadline=None)
@given(topics().filter(lambda topic: not topic.startswith("$share/")))
def test_a_topic_name_is_a_filter_that_matches_itself(topic: str) -> None:
    validate_name(topic)
    validate_filter(topic)
    assert matches(topic, topic)


def reason_of(check: Callable[[str], object], text: str) -> Reason | None:
    """Why a check refuses a text; None where it does not."""
    try:
        check(text)
    except ProtocolError as error:
        return error.reason
    return None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a", None),
        ("/", None),
        ("//a ", None),
        ("$SYS/a", None),
        ("", Reason.TOPIC_NAME_INVALID),
        ("#", Reason.TOPIC_NAME_INVALID),
        ("a/+", Reason.TOPIC_NAME_INVALID),
        ("a+b", Reason.TOPIC_NAME_INVALID),
        ("a#", Reason.TOPIC_NAME_INVALID),
        ("a\0b", Reason.MALFORMED_PACKET),
    ],
)
def test_a_topic_name_has_at_least_one_character_and_no_wildcard(name: str, reason: Reason | None) -> None:
    # [MQTT-4.7.0-1] [MQTT-4.7.3-1] [MQTT-4.7.3-2]
    assert reason_of(validate_name, name) is reason


def valid(filter: str) -> bool:
    """The rules of section 4.7 and 4.8, level by level."""
    levels = filter.split("/")
    if levels[0] == "$share" and len(levels) > 1:
        if not levels[1] or "+" in levels[1] or "#" in levels[1]:
            return False
        levels = levels[2:]
    if levels in ([], [""]) or "\0" in filter:
        return False
    last = len(levels) - 1
    return all(
        ("#" not in level or (level == "#" and i == last)) and ("+" not in level or level == "+")
        for i, level in enumerate(levels)
    )


@settings(deadline=None, max_examples=500)
@given(st.text("a/+#$\0", max_size=8) | st.text("a/+#", max_size=6).map("$share/".__add__))
@example("")
@example("$share")
@example("$share/")
@example("$share/a")
@example("$share/a/")
@example("$share//a")
@example("$share/a//")
@example("$share/+/a")
@example("$share/a/#")
@example("#/")
@example("##")
@example("/#/#")
def test_a_filter_is_valid_where_each_of_its_levels_is(filter: str) -> None:
    # [MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.7.3-1] [MQTT-4.7.3-2] [MQTT-4.8.2-1] [MQTT-4.8.2-2]
    reason = reason_of(validate_filter, filter)
    assert (reason is None) is valid(filter)
    assert reason in (None, Reason.TOPIC_FILTER_INVALID, Reason.MALFORMED_PACKET)


@settings(deadline=None)
@given(shares())
def test_a_shared_subscription_is_its_name_and_its_filter(filter: str) -> None:
    validate_filter(filter)
    parsed = parse_share(filter)
    assert parsed is not None
    assert "/".join(("$share", *parsed)) == filter
    assert "/" not in parsed[0]


@pytest.mark.parametrize("filter", ["a", "$share", "$shared/a/b", "/$share/a/b", "$SHARE/a/b"])
def test_what_does_not_start_with_share_is_no_shared_subscription(filter: str) -> None:
    assert parse_share(filter) is None


@pytest.mark.parametrize("filter", ["$share/", "$share/a", "$share/a/", "$share//a", "$share/#/a"])
def test_a_share_without_a_name_or_without_a_filter_is_refused(filter: str) -> None:
    # [MQTT-4.8.2-1] [MQTT-4.8.2-2]
    assert reason_of(parse_share, filter) is Reason.TOPIC_FILTER_INVALID


# -- what it costs


@uncompiled
@pytest.mark.parametrize("shape", ["+/", "a/", "+/a/"])
def test_matching_costs_as_much_as_the_topic_is_long(shape: str) -> None:
    def work(levels: int) -> int:
        filter, topic = shape * levels + "b", "a/" * (levels * shape.count("/")) + "a"
        accepts = compile_filters([filter])
        return steps(lambda: (matches(filter, topic), accepts(topic)))

    assert work(400) < 2.5 * work(200)


@uncompiled
def test_twice_as_many_filters_cost_no_more_than_twice_as_much() -> None:
    # every filter of n levels that are `a` or `+` reaches every level of the topic but the last
    def work(levels: int) -> int:
        asked = [""]
        for _ in range(levels):
            asked = [f"{filter}{level}/" for filter in asked for level in "a+"]
        accepts = compile_filters([filter + "b" for filter in asked])
        return steps(lambda: accepts("a/" * levels + "c"))

    assert work(10) < 2.5 * work(9)


@uncompiled
def test_a_filter_without_wildcards_costs_one_lookup_however_many_there_are() -> None:
    def work(size: int) -> int:
        accepts = compile_filters([f"a/{n}" for n in range(size)] + ["b/+"])
        return steps(lambda: (accepts("a/3"), accepts("c/d")))

    assert work(10_000) == work(10)


@uncompiled
@pytest.mark.parametrize("text", ["a/", "+/", "a", "/", "#"])
def test_validating_costs_as_much_as_the_text_is_long(text: str) -> None:
    def work(size: int) -> int:
        return steps(lambda: (reason_of(validate_filter, text * size), reason_of(validate_name, text * size)))

    assert work(2000) < 2.5 * work(1000)

"""Topic filters and templates, as users write them."""

from __future__ import annotations

import pytest

from broker.mqtt.errors import ProtocolError
from broker.mqtt.topic import validate_filter, validate_name
from processors.topics import Template, check_filter, check_topic

TEXTS = [
    "a",
    "/",
    "a/b",
    "a//b",
    "+",
    "#",
    "a/+/b",
    "a/#",
    "+/+/#",
    "$dead/x",
    "",
    "a+",
    "a/b+/c",
    "a#",
    "#/a",
    "a/#/b",
]
TEXTS += ["##", "a/##", "a\0", "+a/#", " ", "ü/+"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_filter_is_valid_here_exactly_where_the_broker_says_so(text: str) -> None:
    try:
        validate_filter(text)
    except ProtocolError:
        with pytest.raises(ValueError):
            check_filter(text)
    else:
        check_filter(text)


@pytest.mark.parametrize("text", TEXTS)
def test_a_topic_is_valid_here_exactly_where_the_broker_says_so(text: str) -> None:
    try:
        validate_name(text)
    except ProtocolError:
        with pytest.raises(ValueError):
            check_topic(text)
    else:
        check_topic(text)


def test_a_shared_subscription_is_no_filter_of_a_processor() -> None:
    with pytest.raises(ValueError, match="behind the share name"):
        check_filter("$share/g/a")


def test_a_template_has_its_value_put_in_wherever_it_says() -> None:
    assert Template("stats/{key}", "key").fill("a/b") == "stats/a/b"
    assert Template("{key}/x/{key}", "key").fill("a") == "a/x/a"
    assert Template("alarms", "key").fill("a") == "alarms"


@pytest.mark.parametrize("text", ["", "stats/{topic}", "stats/{key", "stats/{}", "stats/{{key}}", "stats/+/{key}"])
def test_a_template_that_cannot_become_a_topic_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Template(text, "key")

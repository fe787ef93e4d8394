"""The operator behind filter and map: no log, no thread."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import orjson
import pytest

from processors import Event, Message, Processors
from processors.step import NEVER
from tests.processors.helpers import stored


def test_a_filter_passes_on_what_its_function_agrees_with_as_it_is() -> None:
    made = Processors()

    @made.filter("t/#", to="alarm/{topic}", qos=2, retain=True)
    def hot(event: Event) -> bool:
        return event.number("value") > 80

    raw = b'{ "value":81 }'
    step = made.definitions[0].operator().step([stored("t/a", raw), stored("t/b", {"value": 80})], 0)
    assert step.messages == [("alarm/t/a", raw, 2, True)]
    assert step.taken == 2


def test_a_map_may_publish_nothing_one_message_or_several() -> None:
    made = Processors()

    @made.map("t/#")
    def split(event: Event) -> Iterator[Message]:
        for number in event.json(list):
            yield Message(f"{event.topic}/{number}", number)

    operator = made.definitions[0].operator()
    step = operator.step([stored("t", []), stored("t", [1]), stored("t", [2, 3])], 0)
    assert [topic for topic, _, _, _ in step.messages] == ["t/1", "t/2", "t/3"]
    assert step.rows == {}
    assert operator.due == NEVER


def test_outputs_of_its_own_are_passed_over() -> None:
    made = Processors()

    @made.map("#")
    def echo(event: Event) -> Message:
        return Message(event.topic, event.payload)

    events = [stored("a", 1), stored("a", 1, client="$processor/echo"), stored("b", 1, client="$processor/other")]
    step = made.definitions[0].operator().step(events, 0)
    assert step.taken == 3
    assert [topic for topic, _, _, _ in step.messages] == ["a", "b"]


@pytest.mark.parametrize("payload", [b'{"exit": 1}', b'{"deep": 1}', b'{"odd": 1}', b"{", b'{"text": "\\ud83d"}'])
def test_whatever_a_function_does_its_event_is_a_dead_letter_and_the_next_one_is_taken(payload: bytes) -> None:
    class OddError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def deep() -> None:
        deep()

    made = Processors()

    @made.map("t")
    def careless(event: Event) -> Message:
        fields = event.json(dict)
        if "exit" in fields:
            sys.exit("gone")
        if "deep" in fields:
            deep()
        if "odd" in fields:
            raise OddError
        return Message("out", fields["value"])

    step = made.definitions[0].operator().step([stored("t", payload, seq=5), stored("t", {"value": 1})], 0)
    assert (step.taken, step.dead) == (2, 1)
    (topic, data, qos, retain), good = step.messages
    assert (topic, qos, retain) == ("$dead/careless", 1, False)
    assert orjson.loads(data)["seq"] == 5
    assert good == ("out", b"1", 1, False)


def test_the_outputs_before_a_failure_in_the_same_event_are_not_published() -> None:
    made = Processors()

    @made.map("t")
    def halfway(event: Event) -> Iterator[Message]:
        yield Message("out", 1)
        raise ValueError("in the\nmiddle")

    step = made.definitions[0].operator().step([stored("t", 1)], 0)
    (letter,) = step.messages
    assert letter[0] == "$dead/halfway"
    assert orjson.loads(letter[1])["error"].startswith(f"ValueError: in the middle ({__file__}:")


def test_a_long_payload_is_cut_in_its_dead_letter_and_its_length_is_told() -> None:
    made = Processors()

    @made.map("t")
    def refuse(event: Event) -> Message:
        raise ValueError("x" * 100_000)

    step = made.definitions[0].operator().step([stored("t", bytes(1 << 20))], 0)
    letter = orjson.loads(step.messages[0][1])
    assert letter["payload_bytes"] == 1 << 20
    assert len(letter["payload"]) == 1 << 16
    assert len(letter["error"]) < 1200


def test_a_step_is_bounded_in_messages_and_in_bytes() -> None:
    made = Processors()

    @made.map("t")
    def many(event: Event) -> list[Message]:
        return [Message("out", bytes(int(event.number())))] * 100

    operator = made.definitions[0].operator()
    assert operator.step([stored("t", 1)] * 10, 0).taken == 5
    assert operator.step([stored("t", 6000)] * 10, 0).taken == 2

"""What a user's function may send."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from processors import Message
from processors.message import LARGEST, MOST, collect, encode


@pytest.mark.parametrize(
    ("payload", "data"),
    [
        (b"\x00\xff", b"\x00\xff"),
        (bytearray(b"ab"), b"ab"),
        ("21 °C", "21 °C".encode()),
        ("", b""),
        (21.5, b"21.5"),
        (True, b"true"),
        (None, b"null"),
        ([1, "a"], b'[1,"a"]'),
        ({"value": 1}, b'{"value":1}'),
    ],
)
def test_bytes_and_text_go_as_they_are_and_everything_else_as_json(payload: object, data: bytes) -> None:
    assert encode(payload) == data


def test_what_json_cannot_hold_or_is_too_large_is_no_payload() -> None:
    with pytest.raises(TypeError):
        encode({1, 2})
    with pytest.raises(ValueError, match="larger"):
        encode(bytes(LARGEST + 1))


@pytest.mark.parametrize("topic", ["", "a/+", "a/#", "a\0b", "x" * 65_536, "\ud800"])
def test_a_message_to_what_is_no_topic_name_cannot_be_made(topic: str) -> None:
    with pytest.raises(ValueError):
        Message(topic, b"")


def test_a_message_has_a_qos_of_mqtt() -> None:
    with pytest.raises(ValueError, match="QoS 3"):
        Message("t", b"", qos=3)


def test_none_one_several_and_yielded_messages_are_outputs() -> None:
    one = ("t", b"1", 1, False)
    other = ("u", b"2", 0, True)

    def yielding() -> Iterator[Message]:
        yield Message("t", 1)
        yield Message("u", 2, qos=0, retain=True)

    assert collect(None) == []
    assert collect(Message("t", 1)) == [one]
    assert collect([]) == []
    assert collect((Message("t", 1), Message("u", 2, 0, True))) == [one, other]
    assert collect(yielding()) == [one, other]


@pytest.mark.parametrize("result", [7, "text", b"bytes", {"a": 1}, [Message("t"), None]])
def test_anything_else_is_an_error_that_says_what_was_returned(result: object) -> None:
    with pytest.raises(TypeError, match="returned a "):
        collect(result)


def test_a_generator_without_an_end_is_stopped() -> None:
    def endless() -> Iterator[Message]:
        while True:
            yield Message("t")

    with pytest.raises(ValueError, match=f"more than {MOST}"):
        collect(endless())

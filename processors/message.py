"""What a user's function sends, and the bytes that come of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import orjson

from processors.topics import check_topic

Output = tuple[str, bytes, int, bool]
"""Topic, payload, QoS, retain: what the hub takes."""

MOST: Final = 1000
"""Messages that may come of one event."""
LARGEST: Final = 16 << 20
"""Bytes of the largest payload that a function may send."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message to publish. `payload`: bytes and text go as they are, everything else as JSON.

    With QoS 1 or 2 it is in the log exactly once. With QoS 0 subscribers get it before it is kept, and a full disk
    drops it.

    Raises:
        ValueError: the topic can't be published to, or the QoS is not 0, 1 or 2.
    """

    topic: str
    payload: object = b""
    qos: int = 1
    retain: bool = False

    def __post_init__(self) -> None:
        check_topic(self.topic)
        if self.qos not in (0, 1, 2):
            raise ValueError(f"QoS {self.qos!r} is not 0, 1 or 2")


def encode(payload: object) -> bytes:
    """A payload's bytes.

    Raises:
        TypeError: JSON can't hold it.
        ValueError: it is larger than LARGEST.
    """
    if isinstance(payload, bytes):
        data = payload
    elif isinstance(payload, str):
        data = payload.encode()
    elif isinstance(payload, bytearray | memoryview):
        data = bytes(payload)
    else:
        data = orjson.dumps(payload)
    if len(data) > LARGEST:
        raise ValueError(f"a payload of {len(data)} bytes is larger than {LARGEST}")
    return data


def collect(result: object) -> list[Output]:
    """The outputs in what a user's function returned: None, a message, or several.

    Raises:
        TypeError: it is something else, or a payload that JSON can't hold.
        ValueError: it is too much.
    """
    if result is None:
        return []
    if isinstance(result, Message):
        return [_output(result)]
    outputs: list[Output] = []
    try:
        messages = iter(result)  # type: ignore[call-overload]  # whether it can be iterated is what is found out here
    except TypeError:
        raise TypeError(f"returned a {type(result).__name__}, not a Message, several, or None") from None
    for message in messages:
        if not isinstance(message, Message):
            raise TypeError(f"returned a {type(message).__name__} among its messages, not a Message")
        if len(outputs) == MOST:
            raise ValueError(f"returned more than {MOST} messages for one event")
        outputs.append(_output(message))
    return outputs


def _output(message: Message) -> Output:
    return message.topic, encode(message.payload), message.qos, bool(message.retain)

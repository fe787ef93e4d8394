"""Frames for many subscribers, against the encoder of single packets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.frames import FrameCache
from broker.mqtt.codec import encode
from broker.mqtt.packets import Publish
from broker.mqtt.properties import Properties, encode_properties
from storage.interface import FSYNC, Event
from tests.broker.mqtt.strategies import properties, topics

SHAPES = [(v5, qos, retain) for v5 in (False, True) for qos in (0, 1, 2) for retain in (False, True)]


def event(topic: str = "a/b", payload: bytes = b"x", carried: Properties = ()) -> Event:
    """A message to send."""
    return Event(1, 1_700_000_000_000_000, topic, payload, 1, True, "client", encode_properties(carried), 0, FSYNC)


def single(message: Event, carried: Properties, v5: bool, qos: int, retain: bool, packet_id: int) -> bytes:
    """The same message as one packet."""
    packet = Publish(message.topic, message.payload, qos, retain, False, packet_id if qos else 0, carried)
    return encode(packet, 5 if v5 else 4)


@settings(deadline=None, max_examples=200)
@given(topics(), st.binary(max_size=300), properties(3), st.lists(st.sampled_from(SHAPES), min_size=1, max_size=20))
def test_head_identifier_and_tail_are_the_packet(
    topic: str, payload: bytes, carried: Properties, shapes: list[tuple[bool, int, bool]]
) -> None:
    # Properties that concern one connection only are not among those of an event.
    carried = tuple(each for each in carried if each[0] not in (0x0B, 0x23))
    frames = FrameCache()
    message = event(topic, payload, carried)
    for packet_id, (v5, qos, retain) in enumerate(shapes, 0x0101):
        head, tail = frames.frame(message, v5, qos, retain)
        between = packet_id.to_bytes(2) if qos else b""
        assert head + between + tail == single(message, carried, v5, qos, retain, packet_id)


@pytest.mark.parametrize("size", [0, 100, 120, 127, 128, 2030, 2047, 2048, 2049, 16_383, 16_384, 2_097_152])
@pytest.mark.parametrize("qos", [0, 1])
def test_a_remaining_length_of_any_size_is_right(size: int, qos: int) -> None:
    message = event("a", bytes(size))
    for v5 in (False, True):
        head, tail = FrameCache().frame(message, v5, qos, False)
        assert head + (b"\0\1" if qos else b"") + tail == single(message, (), v5, qos, False, 1)


def test_a_frame_is_made_once_for_all_subscribers_of_one_shape() -> None:
    frames = FrameCache()
    message = event(payload=bytes(1000))
    made = {shape: frames.frame(message, *shape) for shape in SHAPES}
    assert len(set(made.values())) == len(SHAPES)
    for shape in SHAPES:
        assert frames.frame(message, *shape) is made[shape]


def test_the_payload_is_not_copied_before_mqtt_5() -> None:
    message = event(payload=bytes(1000))
    assert FrameCache().frame(message, False, 1, False)[1] is message.payload


def test_the_next_event_has_frames_of_its_own() -> None:
    frames = FrameCache()
    first, second = event(payload=b"1"), event(payload=b"2")
    for message in (first, second, first):
        for shape in SHAPES:
            assert frames.frame(message, *shape)[1].endswith(message.payload)


def test_a_frame_with_properties_of_its_own_is_put_together_from_its_tail() -> None:
    frames = FrameCache()
    head, tail = frames.build("a/b", 0x3B, 1, b"\x02\x0b\x05x")
    assert head + b"\0\7" + tail == encode(Publish("a/b", b"x", 1, True, True, 7, ((0x0B, 5),)), 5)


def test_the_topics_that_are_remembered_are_bounded() -> None:
    frames = FrameCache()
    for n in range(10_000):
        head, tail = frames.frame(event(f"t/{n}"), False, 0, False)
        assert head + tail == encode(Publish(f"t/{n}", b"x"), 4)
    assert len(frames._topics) <= 4096

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.frames import publish
from broker.mqtt.codec import encode
from broker.mqtt.packets import Publish
from broker.mqtt.properties import Properties, Property, encode_properties


@given(
    topic=st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="+#"), min_size=1, max_size=200),
    payload=st.binary(max_size=300),
    qos=st.sampled_from((0, 1)),
    retain=st.booleans(),
    version=st.sampled_from((4, 5)),
)
def test_a_frame_is_what_the_codec_writes(topic: str, payload: bytes, qos: int, retain: bool, version: int) -> None:
    properties: Properties = ((Property.CONTENT_TYPE, "text"),) if version == 5 else ()
    packet_id = 513 if qos else 0
    packet = Publish(topic, payload, qos, retain, False, packet_id, properties)
    wire = encode_properties(properties) if version == 5 else None
    assert publish(topic.encode(), payload, qos, retain, packet_id, wire) == encode(packet, version)


@pytest.mark.parametrize("size", [0, 100, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152])
def test_a_frame_of_any_length_is_what_the_codec_writes(size: int) -> None:
    assert publish(b"t", bytes(size), 1, False, 1) == encode(Publish("t", bytes(size), 1, packet_id=1), 4)

"""Packets that are made for one client alone."""

from __future__ import annotations

import pytest

from broker.mqtt.packets import (
    Publish,
    Pubrel,
)
from broker.mqtt.properties import Properties, Property
from tests.broker.helpers import Node


def test_properties_of_a_message_travel_unchanged_and_in_order() -> None:
    """[MQTT-3.3.2-17] [MQTT-3.3.2-20]"""
    node = Node()
    subscriber, old = node.subscriber(client_id="a"), node.subscriber(client_id="b", version=4)
    properties: Properties = (
        (Property.PAYLOAD_FORMAT_INDICATOR, 1),
        (Property.USER_PROPERTY, ("k", "2")),
        (Property.CONTENT_TYPE, "text/plain"),
        (Property.USER_PROPERTY, ("k", "1")),
        (Property.RESPONSE_TOPIC, "answers"),
        (Property.CORRELATION_DATA, b"\x00\x01"),
    )
    node.connect("p").publish("t", qos=1, properties=properties)
    assert subscriber.acknowledge()[0].properties == properties
    assert old.acknowledge() == [Publish("t", b"x", 1, packet_id=1)]


def test_a_packet_larger_than_the_client_takes_is_left_out_and_counted() -> None:
    """[MQTT-3.1.2-24] [MQTT-3.1.2-25]"""
    node = Node()
    client = node.connect("s", properties=((Property.MAXIMUM_PACKET_SIZE, 30),))
    client.subscribe("t", 2)
    publisher = node.connect("p")
    for qos, size in ((0, 24), (0, 25), (1, 22), (1, 23), (2, 22), (2, 23)):
        publisher.publish("t", bytes(size), qos)
        publisher.acknowledge()
        publisher.send(Pubrel(1))
    assert [(message.qos, len(message.payload)) for message in client.acknowledge()] == [(0, 24), (1, 22), (2, 22)]
    assert node.hub.dropped_oversized == 3
    assert client.session.slots == client.session.window


def test_an_expired_message_is_not_given_and_a_late_one_says_what_is_left() -> None:
    """[MQTT-3.3.2-5] [MQTT-3.3.2-6]"""
    node = Node()
    away = node.keeper("t")
    away.lose()
    publisher = node.connect("p")
    for seconds in (10, 100):
        publisher.publish("t", str(seconds).encode(), qos=1, properties=((Property.MESSAGE_EXPIRY_INTERVAL, seconds),))
        publisher.acknowledge()
    node.tick(30)
    back = node.resume("k")
    (message,) = back.acknowledge()
    assert message.payload == b"100"
    assert message.properties == ((Property.MESSAGE_EXPIRY_INTERVAL, 70),)
    assert node.hub.dropped_expired == 1


@pytest.mark.parametrize(("waited", "left"), [(0, 10), (0.001, 10), (0.999, 10), (1, 9), (1.5, 9), (9.5, 1)])
def test_what_is_left_of_an_expiry_interval_is_less_by_the_whole_seconds_that_it_has_waited(
    waited: float, left: int
) -> None:
    """[MQTT-3.3.2-6]"""
    node = Node()
    node.connect("p").publish("t", retain=True, properties=((Property.MESSAGE_EXPIRY_INTERVAL, 10),))
    node.commit()
    node.tick(waited)
    (message,) = node.subscriber("t").acknowledge()
    assert message.properties == ((Property.MESSAGE_EXPIRY_INTERVAL, left),)


def test_a_message_that_grows_beyond_what_a_packet_can_be_is_left_out_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("broker.framing._SURE", 0)
    monkeypatch.setattr("broker.framing.VARINT_MAX", 100)
    node = Node()
    client = node.connect("s")
    client.subscribe("t", 1, identifier=7)
    publisher = node.connect("p", 4)
    for size in (92, 93):  # with topic, packet identifier, and the length and the two bytes of the property
        publisher.publish("t", bytes(size), 1)
        node.commit()
    assert [len(message.payload) for message in client.acknowledge()] == [92]
    assert node.hub.dropped_oversized == 1
    assert client.open

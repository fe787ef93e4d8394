"""What a message keeps on its way, and whom it reaches."""

from __future__ import annotations

import pytest
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.interop.clients import VERSIONS, Message, Paho
from tests.node import Node

every_version = pytest.mark.parametrize("version", VERSIONS, ids=VERSIONS.values())
every_qos = pytest.mark.parametrize("qos", [0, 1, 2])

LONGEST_TOPIC = 65_535
"""Bytes."""


@every_version
@every_qos
def test_a_payload_of_256_kb_arrives_as_it_was(node: Node, name: str, version: int, qos: int) -> None:
    payload = bytes(range(256)) * 1024
    with Paho(node.port, f"{name}s", version) as subscriber, Paho(node.port, f"{name}p", version) as publisher:
        subscriber.subscribe(name)
        publisher.publish(name, payload, b"", payload, qos=qos)
        assert subscriber.receive(3) == [Message(name, each, qos) for each in (payload, b"", payload)]


@every_version
@pytest.mark.parametrize("level", ["x", "xyz/", "/"], ids=["one level", "many levels", "empty levels"])
def test_a_topic_may_have_65535_bytes(node: Node, name: str, version: int, level: str) -> None:
    topic = (f"{name}/" + level * LONGEST_TOPIC)[:LONGEST_TOPIC]
    with Paho(node.port, f"{name}s", version) as subscriber, Paho(node.port, f"{name}p", version) as publisher:
        subscriber.subscribe(topic)
        subscriber.subscribe(f"{name}/#")
        publisher.publish(topic, b"whole")
        publisher.publish(name, b"end")
        assert {message.topic for message in subscriber.until(b"end")} == {topic}


@every_version
@pytest.mark.parametrize("topic", ["größe/温度/🌡", "e\u0301/é", "\ufeffbom", "a b/ c", "\U0010ffff/\x7f", "//", "/"])
def test_a_topic_is_any_unicode_text_and_arrives_as_it_was(node: Node, name: str, version: int, topic: str) -> None:
    topic = f"{name}/{topic}"
    with Paho(node.port, f"{name}s", version) as subscriber, Paho(node.port, f"{name}p", version) as publisher:
        subscriber.subscribe(topic)
        publisher.publish(topic, b"here")
        assert subscriber.receive(1) == [Message(topic, b"here", 1)]


@every_version
@pytest.mark.parametrize(
    ("filter", "matching", "others"),
    [
        ("{}/+/c", ["{}/b/c", "{}//c"], ["{}/c", "{}/b/d", "{}/b/c/d", "x{}/b/c"]),
        ("{}/#", ["{}", "{}/", "{}/a", "{}/a/b"], ["{}x", "x/{}"]),
        ("{}/+", ["{}/", "{}/a"], ["{}", "{}/a/b"]),
        ("+/{}/+/#", ["a/{}/b", "a/{}/b/c/d", "/{}/"], ["a/{}", "{}/a/b"]),
        ("{}/A", ["{}/A"], ["{}/a"]),
    ],
)
def test_a_wildcard_matches_what_the_standard_says(
    node: Node, name: str, version: int, filter: str, matching: list[str], others: list[str]
) -> None:
    end = f"end/{name}"
    with Paho(node.port, f"{name}s", version) as subscriber, Paho(node.port, f"{name}p", version) as publisher:
        subscriber.subscribe(filter.format(name), end)
        for topic in [*others, *matching]:
            publisher.publish(topic.format(name), b"x")
        publisher.publish(end, b"end")
        assert [message.topic for message in subscriber.until(b"end")] == [topic.format(name) for topic in matching]


def test_a_wildcard_in_the_first_level_leaves_out_topics_of_the_server(node: Node, name: str) -> None:
    with Paho(node.port, f"{name}s") as subscriber, Paho(node.port, f"{name}p") as publisher:
        subscriber.subscribe("#", "+/x")  # [MQTT-4.7.2-1]
        publisher.publish(f"${name}/x", b"hidden")
        publisher.publish(name, b"end")
        assert f"${name}/x" not in [message.topic for message in subscriber.until(b"end")]


@every_version
def test_overlapping_subscriptions_give_a_message_at_the_highest_qos(node: Node, name: str, version: int) -> None:
    with Paho(node.port, f"{name}s", version) as subscriber, Paho(node.port, f"{name}p", version) as publisher:
        subscriber.subscribe(f"{name}/#", qos=0)
        subscriber.subscribe(f"{name}/a", qos=2)
        publisher.publish(f"{name}/a", b"x", qos=2)
        publisher.publish(f"{name}/a", b"end", qos=2)
        assert set(subscriber.until(b"end")) == {Message(f"{name}/a", b"x", 2)}  # [MQTT-3.3.4-2]


@every_version
def test_after_unsubacks_nothing_more_comes(node: Node, name: str, version: int) -> None:
    with Paho(node.port, f"{name}s", version) as subscriber, Paho(node.port, f"{name}p", version) as publisher:
        subscriber.subscribe(f"{name}/#", f"end/{name}")
        publisher.publish(f"{name}/a", b"before")
        reasons = subscriber.unsubscribe(f"{name}/#")
        assert reasons == ([0] if version == 5 else [])
        publisher.publish(f"{name}/a", b"after")
        publisher.publish(f"end/{name}", b"end")
        assert [message.payload for message in subscriber.until(b"end")] == [b"before"]


@every_version
@every_qos
def test_a_retained_message_is_set_replaced_and_cleared(node: Node, name: str, version: int, qos: int) -> None:
    with Paho(node.port, f"{name}p", version) as publisher:
        for number, payloads in enumerate(([b"first"], [b"second", b"third"], [b""])):
            publisher.publish(name, *payloads, qos=qos, retain=True)
            with Paho(node.port, f"{name}s{number}", version) as subscriber:
                subscriber.subscribe(name, f"end/{name}")
                publisher.publish(f"end/{name}", b"end", qos=qos)
                kept = [Message(name, payload, qos, retain=True) for payload in payloads[-1:] if payload]
                assert subscriber.until(b"end") == kept


@every_version
def test_a_retained_message_reaches_those_already_subscribed_as_an_ordinary_one(
    node: Node, name: str, version: int
) -> None:
    with Paho(node.port, f"{name}s", version) as subscriber, Paho(node.port, f"{name}p", version) as publisher:
        subscriber.subscribe(name)
        publisher.publish(name, b"x", retain=True)
        assert subscriber.receive(1) == [Message(name, b"x", 1, retain=False)]  # [MQTT-3.3.1-12]


def test_subscription_options_of_mqtt_5_are_kept(node: Node, name: str) -> None:
    with Paho(node.port, f"{name}p") as client, Paho(node.port, f"{name}s") as other:
        client.publish(f"{name}/old", b"kept", retain=True)
        client.subscribe(f"{name}/#", options=SubscribeOptions(qos=1, noLocal=True, retainHandling=2))
        other.subscribe(f"{name}/#", options=SubscribeOptions(qos=1, retainAsPublished=True, retainHandling=1))
        assert other.receive(1) == [Message(f"{name}/old", b"kept", 1, retain=True)]
        client.publish(f"{name}/new", b"mine", retain=True)
        other.publish(f"{name}/new", b"theirs")
        assert client.receive(1) == [Message(f"{name}/new", b"theirs", 1)]
        assert other.receive(1) == [Message(f"{name}/new", b"mine", 1, retain=True)]


@every_qos
def test_user_properties_arrive_in_order_with_their_repetitions(node: Node, name: str, qos: int) -> None:
    pairs = (("site", "7"), ("site", "8"), ("ключ", "значение"), ("empty", ""), ("site", "7"))
    with Paho(node.port, f"{name}s") as subscriber, Paho(node.port, f"{name}p") as publisher:
        subscriber.subscribe(name)
        publisher.publish(name, b"x", qos=qos, user_properties=pairs)
        assert subscriber.receive(1) == [Message(name, b"x", qos, user_properties=pairs)]


def test_a_client_of_3_1_1_gets_what_mqtt_5_sends_without_its_properties(node: Node, name: str) -> None:
    with Paho(node.port, f"{name}s", 4) as subscriber, Paho(node.port, f"{name}p") as publisher:
        subscriber.subscribe(name)
        publisher.publish(name, b"x", user_properties=[("a", "b")], expiry=60)
        assert subscriber.receive(1) == [Message(name, b"x", 1)]

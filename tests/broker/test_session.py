"""What one session gives its client: each message once, in order, within its window, across connections and crashes."""

from __future__ import annotations

from itertools import pairwise

import pytest

from broker.listener import Limits
from broker.mqtt.packets import (
    Puback,
    Publish,
    Pubrel,
)
from broker.mqtt.properties import Properties, Property
from storage.interface import MEMORY, SESSIONS
from tests.broker.helpers import FOREVER, Node, numbers, publish_all

RECEIVE_MAXIMUM_10: Properties = ((Property.RECEIVE_MAXIMUM, 10),)


# -- which QoS, which flags, which properties


@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize("granted", [0, 1, 2])
@pytest.mark.parametrize("published", [0, 1, 2])
def test_a_message_comes_at_the_lower_of_its_qos_and_the_granted_one(
    published: int, granted: int, version: int
) -> None:
    """[MQTT-3.8.4-7] [MQTT-3.8.4-8]"""
    node = Node()
    subscriber = node.subscriber("t", granted, version=version)
    node.connect("p").publish("t", qos=published)
    (message,) = subscriber.acknowledge()
    assert message.qos == min(published, granted)
    assert not subscriber.session.unacked
    assert not subscriber.session.unreceived
    assert not subscriber.session.uncompleted
    assert subscriber.session.slots == subscriber.session.window


def test_overlapping_subscriptions_give_one_copy_at_the_highest_qos_with_every_identifier() -> None:
    """[MQTT-3.3.4-2] [MQTT-3.3.4-3] [MQTT-3.3.4-4]"""
    node = Node()
    subscriber = node.connect("s")
    subscriber.subscribe("a/#", 0, identifier=1)
    subscriber.subscribe("a/+", 2, identifier=2)
    subscriber.subscribe("b", 2, identifier=3)
    subscriber.subscribe("a/b", 1)
    node.connect("p").publish("a/b", qos=2)
    (message,) = subscriber.acknowledge()
    assert message.qos == 2
    assert sorted(value for _, value in message.properties) == [1, 2]


def test_a_client_does_not_get_its_own_messages_with_no_local() -> None:
    """[MQTT-3.8.3-3]"""
    node = Node()
    client = node.connect("c")
    client.subscribe("a", 1, no_local=True)
    client.subscribe("b", 1)
    for topic in ("a", "b"):
        client.publish(topic, topic.encode(), qos=1)
        node.connect("other").publish(topic, b"other " + topic.encode(), qos=1)
    assert [message.payload for message in client.acknowledge()] == [b"other a", b"b", b"other b"]


def test_a_client_gets_its_own_message_through_another_subscription_as_that_one_says() -> None:
    node = Node()
    client = node.connect("c")
    client.subscribe("a", 2, no_local=True, identifier=1)
    client.subscribe("#", 1, identifier=2)
    client.publish("a", qos=2)
    (message,) = client.acknowledge()
    assert (message.qos, message.properties) == (1, ((Property.SUBSCRIPTION_IDENTIFIER, 2),))


# -- order


def test_messages_of_one_topic_come_in_order_whoever_reads_slowly() -> None:
    """[MQTT-4.6.0-5] [MQTT-4.6.0-6]"""
    node = Node()
    fast = node.subscriber("t", 1, "fast")
    slow = node.connect("slow", properties=((Property.RECEIVE_MAXIMUM, 1),))
    slow.subscribe("t", 1)
    publisher = node.connect("p")
    for start in range(0, 60, 20):
        publish_all(publisher, numbers(20, start))
    assert [message.payload for message in fast.acknowledge()] == numbers(60)
    assert [message.payload for message in slow.acknowledge()] == numbers(60)


# -- connections come and go


def test_an_absent_client_gets_what_it_missed_and_no_qos_0() -> None:
    node = Node()
    node.keeper("t").lose()
    publisher = node.connect("p")
    for n in range(30):
        publisher.publish("t", str(n).encode(), qos=n % 3)
        node.commit()
        publisher.send(Pubrel(1))
        node.commit()
    client = node.resume("k")
    assert sorted(map(int, client.payloads())) == [n for n in range(30) if n % 3]
    assert node.hub.dropped_away == 10


def test_an_absent_client_gets_qos_0_too_where_the_node_keeps_it() -> None:
    node = Node(Limits(queue_qos0=True))
    node.keeper("t", 0).lose()
    publish_all(node.connect("p"), numbers(3), 0)
    publish_all(node.connect("p"), numbers(3, 3), 1)
    assert node.resume("k").payloads() == numbers(6)


def test_what_was_published_before_the_subscription_is_never_given() -> None:
    node = Node()
    client = node.keeper("a")
    client.lose()
    publisher = node.connect("p")
    publish_all(publisher, [b"a1"], topic="a")
    publish_all(publisher, [b"b1"], topic="b")
    client = node.resume("k", properties=((Property.RECEIVE_MAXIMUM, 1),))
    client.subscribe("b")
    publish_all(publisher, [b"b2"], topic="b")
    assert [message.payload for message in client.acknowledge()] == [b"a1", b"b2"]


def test_subscribing_anew_while_catching_up_loses_nothing() -> None:
    """[MQTT-3.8.4-3] [MQTT-3.8.4-4]"""
    node = Node()
    node.keeper("t", 1).lose()
    publish_all(node.connect("p"), numbers(20))
    client = node.resume("k", properties=RECEIVE_MAXIMUM_10)
    client.send(Puback(1))
    client.subscribe("t", 1)
    assert [message.payload for message in client.acknowledge()] == numbers(20)


def test_nothing_comes_for_a_subscription_that_was_taken_away() -> None:
    """[MQTT-3.10.4-1] [MQTT-3.10.4-2]"""
    node = Node()
    client = node.connect("s", properties=RECEIVE_MAXIMUM_10)
    client.subscribe("t", 1)
    client.subscribe("u", 1)
    publish_all(node.connect("p"), numbers(15))
    publish_all(node.connect("p"), [b"u"], topic="u")
    node.hub.sessions.unsubscribe(client.session, "t")
    assert [message.payload for message in client.acknowledge()] == [*numbers(10), b"u"]


# -- crashes


def test_a_session_that_is_away_is_one_row_whatever_it_misses() -> None:
    node = Node()
    node.keeper("t").lose()
    node.commit()
    before = len(node.engine.commits)
    publish_all(node.connect("p"), numbers(1000))
    assert len(node.engine.rows(SESSIONS)) == 1
    assert all(SESSIONS not in state for _, state, _ in node.engine.commits[before:])


def test_a_crash_sends_again_with_dup_what_was_not_acknowledged() -> None:
    node = Node()
    client = node.keeper("t", 1)
    publish_all(node.connect("p"), numbers(5))
    first = client.take(Publish)
    client.send(*(Puback(message.packet_id) for message in first[:3]))
    node.tick()
    node.commit()
    node.crash()
    client = node.resume("k")
    again = client.take(Publish)
    assert [(m.payload, m.packet_id, m.dup) for m in again] == [(m.payload, m.packet_id, True) for m in first[3:]]


def test_progress_that_was_not_written_yet_is_made_up_for_with_dup() -> None:
    node = Node()
    client = node.keeper("t", 1)
    publish_all(node.connect("p"), numbers(5))
    client.acknowledge()
    node.crash()
    publish_all(node.connect("p"), [b"new"])
    client = node.resume("k")
    again = client.take(Publish)
    assert [message.payload for message in again] == [*numbers(5), b"new"]
    assert [message.dup for message in again] == [True] * 5 + [False]


# -- a slow client reads the log


def test_a_client_that_does_not_read_costs_no_memory_and_misses_nothing() -> None:
    node = Node(Limits(write_buffer=1000, receive_maximum=65535))
    client = node.subscriber("t", 1)
    publisher = node.connect("p", 4)
    client.jam()
    for start in range(0, 3000, 100):
        publish_all(publisher, numbers(100, start))
    assert not client.session.live
    assert len(client.wire.unread) < 3000
    assert client.connection.pending < 3000
    client.unjam()
    assert [message.payload for message in client.acknowledge()] == numbers(3000)
    assert client.session.live


def test_a_qos_2_subscriber_is_given_no_more_than_its_buffer_before_the_commit() -> None:
    node = Node(Limits(write_buffer=10_000))
    client = node.keeper("t")
    client.lose()
    publisher = node.connect("p")
    for _ in range(50):
        publish_all(publisher, [bytes(1000)], 1)
        publish_all(publisher, [bytes(1000)], 2)
    client = node.connect("k", clean=False, expiry=FOREVER)
    assert client.connection.pending < 12_000
    assert len(client.acknowledge()) == 100


@pytest.mark.parametrize("memory_bytes", [1, 3000, 1 << 24])
def test_falling_behind_and_catching_up_neither_loses_nor_repeats(memory_bytes: int) -> None:
    """QoS 0 and durability memory go out before their turn: they come once, too."""
    node = Node(
        Limits(write_buffer=500), lambda topic: MEMORY if topic == "memory" else None, memory_bytes=memory_bytes
    )
    client = node.connect("s", properties=RECEIVE_MAXIMUM_10)
    client.subscribe("#", 2)
    publisher = node.connect("p", 4)
    sent: dict[str, list[bytes]] = {"zero": [], "one": [], "two": []}
    came: list[Publish] = []
    for n in range(400):
        topic = ("zero", "one", "two")[n % 3]
        payload = str(n).encode()
        sent[topic].append(payload)
        publisher.send(Publish(topic, payload, n % 3, packet_id=n + 1 if n % 3 else 0))
        if n % 7 == 0:
            node.commit_one()
        if n % 50 == 10:
            client.jam()
        if n % 50 == 40:
            client.unjam()
        if n % 11 == 0 and not client.wire.jammed:
            came += [packet for packet in client.acknowledge() if isinstance(packet, Publish)]
    client.unjam()
    came += client.acknowledge()
    for topic, payloads in sent.items():
        assert [message.payload for message in came if message.topic == topic] == payloads


def test_what_went_out_before_its_commit_is_not_given_again_to_a_client_that_returns() -> None:
    node = Node(Limits(queue_qos0=True))
    client = node.keeper("t", 0)
    node.connect("p").publish("t")
    assert client.payloads() == [b"x"]
    client.lose()
    node.connect("p").publish("t", b"missed")
    node.commit()
    assert node.resume("k").payloads() == [b"missed"]


def test_memory_messages_come_at_once_and_once_however_the_session_stands() -> None:
    node = Node(rules=lambda topic: MEMORY if topic == "memory" else None)
    client = node.connect("s", properties=RECEIVE_MAXIMUM_10)
    client.subscribe("#", 1)
    publisher = node.connect("p", 4)
    publisher.publish("disk", b"slow", qos=1, packet_id=1)
    publisher.publish("memory", b"fast", qos=1, packet_id=2)
    assert client.payloads() == [b"fast"]
    node.commit()
    assert client.payloads() == [b"slow"]
    payloads = numbers(40)
    for n, payload in enumerate(payloads):
        publisher.publish("memory", payload, qos=1, packet_id=n + 1)
    assert client.payloads() == payloads[:8]
    client.send(Puback(1), Puback(2))
    client.send(*(Puback(n + 3) for n in range(8)))
    assert client.payloads() == payloads[8:18]
    client.send(*(Puback(n + 11) for n in range(10)))
    assert [message.payload for message in client.acknowledge()] == payloads[18:]
    assert client.session.live


def test_a_session_that_swings_between_live_and_behind_keeps_one_cursor_at_most() -> None:
    node = Node()
    client = node.connect("s", properties=((Property.RECEIVE_MAXIMUM, 1),))
    client.subscribe("t", 1)
    publisher = node.connect("p")
    for n in range(200):
        publisher.publish("t", str(n).encode(), qos=1)
        node.commit()
        if n % 2:
            client.acknowledge()
    assert client.session.live
    assert len(node.log._waiting) == 0


def test_live_sessions_share_what_is_encoded_and_write_once_a_turn() -> None:
    node = Node()
    clients = [node.subscriber("t", 1, f"s{n}") for n in range(3)]
    before = [client.wire.writes for client in clients]
    publish_all(node.connect("p"), numbers(100))
    assert [client.wire.writes - n for client, n in zip(clients, before, strict=True)] == [1, 1, 1]
    for client in clients:
        messages = client.acknowledge()
        assert all(a.packet_id < b.packet_id for a, b in pairwise(messages))
        assert len(messages) == 100


def test_a_turn_of_the_loop_holds_a_bounded_number_of_subscriptions_against_new_topics() -> None:
    node = Node()
    client = node.subscriber("a/+", 0)
    for number in range(400):
        client.subscribe(f"never/{number}", 0)
    client.jam()
    publisher = node.connect("p")
    for number in range(300):
        publisher.publish(f"a/{number}", qos=1)
    node.commit()
    client.session.rules_changed()  # what is remembered of topics is forgotten
    client.connection.on_blocked(False)
    matched = [0]
    while matched[-1] < 300:
        scheduled, node.scheduled[:] = node.scheduled[:], []
        for call in scheduled:
            call()
        matched.append(len(client.session._matches))
    assert max(after - before for before, after in pairwise(matched)) <= 2000 // (400 // 8)

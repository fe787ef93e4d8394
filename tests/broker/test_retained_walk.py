"""The retained messages of a new subscription come, each once, whatever happens to the connection meanwhile."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.listener import Limits
from broker.mqtt.codec import encode
from broker.mqtt.packets import (
    Connack,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Subscription,
    Unsubscribe,
)
from broker.mqtt.properties import Properties, Property
from tests.broker.helpers import FOREVER, Client, Node

FEW: Properties = ((Property.RECEIVE_MAXIMUM, 5),)
MANY = 40


def retain(node: Node, qos: int, count: int = MANY) -> list[bytes]:
    """So many retained messages; their payloads."""
    publisher = node.connect("p")
    for n in range(1, count + 1):
        publisher.publish(f"r/{n % 7}/{n}", b"%d" % n, qos, n if qos else 0, retain=True)
        publisher.send(Pubrel(n))
    node.commit()
    return [b"%d" % n for n in range(1, count + 1)]


def retain_one(node: Node, topic: str, payload: bytes, qos: int) -> None:
    node.connect("p").publish(topic, payload, qos, retain=True)
    node.commit()


def full_client(node: Node, qos: int, filter: str = "r/#") -> Client:
    """A kept session that has subscribed, and was given a few of the retained messages."""
    client = node.resume("k", properties=FEW)
    client.connection.receive(encode(Subscribe(1, (Subscription(filter, qos),)), 5), node.now)
    while not any(isinstance(packet, Publish) for packet in client.wire.packets):
        for call in [node.scheduled.pop() for _ in node.scheduled[:]]:
            call()
        node.writer.step()
    if not qos:  # no acknowledgement is due, so that only the socket can be full
        client.jam()
    node.commit()
    client.take(Suback)
    assert len(client.session._walks) == 1
    return client


def read(client: Client, held: set[int]) -> list[Publish]:
    """Take and answer everything as a receiver does that releases QoS 2 identifiers by PUBREL: the new messages."""
    new: list[Publish] = []
    while True:
        client.node.commit()
        packets = client.take_all()
        for packet in packets:
            if isinstance(packet, Publish):
                if packet.qos < 2 or packet.packet_id not in held:
                    new.append(packet)
                if packet.qos == 2:
                    held.add(packet.packet_id)
                    client.send(Pubrec(packet.packet_id))
                elif packet.qos == 1:
                    client.send(Puback(packet.packet_id))
            elif isinstance(packet, Pubrel):
                held.discard(packet.packet_id)
                client.send(Pubcomp(packet.packet_id))
        if not packets:
            return new


@pytest.mark.parametrize("expiry", [0, 100])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_retained_messages_come_after_the_suback_of_their_subscription(qos: int, expiry: int) -> None:
    node = Node()
    publisher = node.connect("p")
    for packet_id, topic in enumerate("abc", 1):
        publisher.publish(topic, topic.encode(), qos, packet_id if qos else 0, retain=True)
    node.commit()
    client = node.connect("s", expiry=expiry)
    node.commit()
    client.take(Connack)
    client.send(Subscribe(1, (Subscription("+", qos), Subscription("b", qos))))
    publisher.publish("d", b"d", 0)
    node.commit()
    first, *rest = client.take_all()
    assert isinstance(first, Suback)
    came = [packet.payload for packet in rest if isinstance(packet, Publish)]
    assert sorted(came) == [b"a", b"b", b"b", b"c", b"d"]
    assert len(rest) == len(came)


def test_a_client_that_always_waits_for_something_is_given_the_retained_messages_nevertheless() -> None:
    node = Node()
    publisher = node.connect("p")
    publisher.publish("kept", b"kept", retain=True)
    node.commit()
    client = node.resume("s")
    client.take(Connack)
    client.send(Subscribe(1, (Subscription("kept", 0),)))
    for packet_id in range(1, 10):  # something new is promised to it before what was promised has come
        client.send(Publish("t", b"", 2, packet_id=packet_id), Pubrel(packet_id))
        node.commit_one()
    assert client.payloads() == [b"kept"]


@pytest.mark.parametrize("taken_over", [False, True])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_what_was_not_given_yet_comes_on_the_next_connection(qos: int, taken_over: bool) -> None:
    node = Node(Limits(write_buffer=100))
    payloads = retain(node, qos)
    client = full_client(node, qos)
    held: set[int] = set()
    came = client.take(Publish)
    assert 0 < len(came) < MANY
    if not taken_over:
        client.lose()
    again = read(node.resume("k", properties=FEW), held)
    if qos:  # these come again first, under the identifiers that they have
        assert again[: len(came)] == [
            Publish(message.topic, message.payload, qos, True, True, message.packet_id) for message in came
        ]
        came = []
    assert all(message.retain and message.qos == qos for message in again)
    assert sorted(message.payload for message in came + again) == sorted(payloads)


def test_no_message_comes_twice_at_qos_2_however_often_the_connection_breaks() -> None:
    node = Node()
    payloads = retain(node, 2)
    client = full_client(node, 2)
    held: set[int] = set()
    seen: Counter[bytes] = Counter()
    for turn in range(200):
        node.commit()
        for packet in client.take_all()[: 1 + turn % 3]:
            if isinstance(packet, Publish):
                seen[packet.payload] += packet.packet_id not in held
                held.add(packet.packet_id)
                client.send(Pubrec(packet.packet_id))
            elif isinstance(packet, Pubrel):
                held.discard(packet.packet_id)
                client.send(Pubcomp(packet.packet_id))
        client.lose()
        client = node.connect("k", clean=False, expiry=FOREVER, properties=FEW)
    seen.update(message.payload for message in read(client, held))
    assert seen == Counter(payloads)


def test_it_comes_although_the_connection_broke_before_the_suback() -> None:
    node = Node()
    payloads = retain(node, 1, 3)
    client = node.resume("k")
    client.send(Publish("t", b"", 2, packet_id=1), Pubrel(1), Subscribe(1, (Subscription("r/#", 1),)))
    assert client.take(Suback) == []
    client.lose()
    assert sorted(message.payload for message in read(node.resume("k"), set())) == payloads


def test_what_replaced_a_retained_message_meanwhile_comes_once_as_a_message_of_the_subscription() -> None:
    node = Node()
    payloads = retain(node, 1)
    client = full_client(node, 1)
    came = client.take(Publish)
    client.lose()
    others = [n for n in range(1, MANY + 1) if b"%d" % n not in [message.payload for message in came]]
    retain_one(node, f"r/{others[0] % 7}/{others[0]}", b"new", 1)
    again = read(node.resume("k", properties=FEW), set())
    assert [message.payload for message in again if not message.retain] == [b"new"]
    old = [message.payload for message in again if message.retain]
    assert sorted(old) == sorted(set(payloads) - {b"%d" % others[0]})


@pytest.mark.parametrize("queue_qos0", [False, True])
def test_what_replaced_it_at_qos_0_comes_once_also_where_such_messages_do_not_wait(queue_qos0: bool) -> None:
    node = Node(Limits(write_buffer=100, queue_qos0=queue_qos0))
    payloads = retain(node, 0)
    client = full_client(node, 0)
    came = [message.payload for message in client.take(Publish)]
    other = next(n for n in range(1, MANY + 1) if b"%d" % n not in came)
    client.lose()
    retain_one(node, f"r/{other % 7}/{other}", b"new", 0)
    again = read(node.resume("k"), set())
    assert [message.retain for message in again if message.payload == b"new"] == [not queue_qos0]
    assert sorted(came + [message.payload for message in again]) == sorted({*payloads, b"new"} - {b"%d" % other})


def test_a_subscription_that_is_taken_away_after_the_reconnect_gets_no_more() -> None:
    node = Node()
    retain(node, 1)
    client = full_client(node, 1)
    came = client.take(Publish)
    client.lose()
    client = node.resume("k", properties=FEW)
    client.send(Unsubscribe(1, ("r/#",)))
    assert [message.payload for message in read(client, set())] == [message.payload for message in came]


def test_what_is_still_to_come_comes_as_the_subscription_that_has_replaced_the_first_one_says() -> None:
    node = Node(Limits(write_buffer=100))
    payloads = retain(node, 1)
    client = full_client(node, 1)
    came = client.take(Publish)
    client.subscribe("r/#", 0, identifier=9, retain_handling=2)
    assert [message.payload for message in client.take(Publish)] == []
    client.send(*(Puback(message.packet_id) for message in came))
    rest = read(client, set())
    assert {message.qos for message in rest} == {0}
    assert {message.properties for message in rest} == {((Property.SUBSCRIPTION_IDENTIFIER, 9),)}
    assert sorted(message.payload for message in came + rest) == sorted(payloads)


def test_a_subscription_anew_after_the_reconnect_brings_all_of_them_anew() -> None:
    """[MQTT-3.8.4-4]"""
    node = Node()
    payloads = retain(node, 1)
    client = full_client(node, 1)
    client.lose()
    client = node.resume("k", properties=FEW)
    client.send(Subscribe(1, (Subscription("r/#", 1),)))
    came = [message.payload for message in read(client, set()) if not message.dup]
    assert sorted(came) == sorted(payloads)


def test_a_session_that_is_over_leaves_none_behind() -> None:
    node = Node()
    retain(node, 1)
    full_client(node, 1).lose()
    client = node.connect("k", clean=True)
    client.send(Subscribe(1, (Subscription("r/1/1", 1),)))
    assert [message.payload for message in read(client, set())] == [b"1"]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("answer"), st.integers(1, 6)),
        st.tuples(st.just("break"), st.integers(0, 1)),
        st.tuples(st.just("retain"), st.integers(1, 12)),
        st.tuples(st.just("retain at QoS 0"), st.integers(1, 12)),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(steps=STEPS)
def test_in_the_end_a_client_knows_what_holds_for_each_topic_and_was_told_nothing_twice(
    steps: list[tuple[str, int]],
) -> None:
    node = Node(Limits(write_buffer=60))
    holds: dict[str, tuple[int, int]] = {}
    publisher = node.connect("p")
    count = 0

    def retain_next(topic: int, qos: int) -> None:
        nonlocal count
        count += 1
        holds[f"r/{topic % 3}/{topic}"] = (count, qos)
        publisher.publish(f"r/{topic % 3}/{topic}", b"%d" % count, qos, count if qos else 0, retain=True)
        publisher.send(Pubrel(count))
        node.commit()

    for topic in range(1, 11):
        retain_next(topic, 2)
    client = node.resume("k", properties=((Property.RECEIVE_MAXIMUM, 2),))
    client.send(Subscribe(1, (Subscription("r/#", 2),)))
    held: set[int] = set()
    seen: Counter[bytes] = Counter()
    knows: dict[str, int] = {}

    def handle(packet: object) -> None:
        if isinstance(packet, Publish):
            if packet.qos == 0 or packet.packet_id not in held:
                seen[packet.payload] += 1
                knows[packet.topic] = max(knows.get(packet.topic, 0), int(packet.payload))
            if packet.qos:
                held.add(packet.packet_id)
                client.send(Pubrec(packet.packet_id))
        elif isinstance(packet, Pubrel):
            held.discard(packet.packet_id)
            client.send(Pubcomp(packet.packet_id))

    for what, number in steps:
        match what:
            case "answer":
                node.commit()
                packets, client.wire.packets = client.wire.packets[:number], client.wire.packets[number:]
                for packet in packets:
                    handle(packet)
            case "break":
                while any(isinstance(packet, Publish) and not packet.qos for packet in client.wire.packets):
                    handle(client.wire.packets.pop(0))  # what is sent at QoS 0 and does not arrive is lost
                if number:
                    client.lose()
                client = node.resume("k", properties=((Property.RECEIVE_MAXIMUM, 2),))
            case "retain":
                retain_next(number, 2)
            case _:
                retain_next(number, 0)
    node.commit()
    while client.wire.packets:
        handle(client.wire.packets.pop(0))
        node.commit()
    assert client.session.live
    assert max(seen.values()) == 1
    for name, (last, qos) in holds.items():
        assert knows.get(name) == last or not qos  # at QoS 0 it may have been lost with a connection

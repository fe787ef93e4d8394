"""What one connection can make the broker hold, and what it costs to hold many."""

from __future__ import annotations

import pytest

from broker.listener import Limits
from broker.mqtt.codec import encode
from broker.mqtt.packets import (
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Puback,
    Publish,
    Pubrel,
    Subscribe,
    Subscription,
    Unsubscribe,
)
from broker.mqtt.properties import Property
from broker.mqtt.reason import Reason
from tests.broker.helpers import Node


@pytest.mark.parametrize(
    "packet",
    [
        Pingreq(),
        Publish("t", b"", 1, packet_id=1),
        Publish("t", b"", 2, packet_id=1),
        Pubrel(5),
        Subscribe(1, (Subscription("nothing", 1),)),
        Unsubscribe(1, ("x",)),
    ],
    ids=lambda packet: type(packet).__name__,
)
@pytest.mark.parametrize("expiry", [0, 1000])
def test_a_client_that_sends_for_ever_and_never_reads_is_no_longer_read_from(packet: Packet, expiry: int) -> None:
    node = Node(Limits(write_buffer=1000))
    client = node.connect(expiry=expiry)
    client.jam()
    data = encode(packet, 5) * 20
    read = 0
    while client.wire.reading:
        client.send_bytes(data)
        node.commit()
        read += 1
        assert read < 200
    assert len(client.wire.unread) < 2000
    assert client.open
    client.unjam()
    assert client.wire.reading
    assert client.connection.pending == 0
    assert len(client.take_all()) >= read * 20


def test_a_client_that_never_reads_is_closed_when_its_keep_alive_has_passed() -> None:
    node = Node(Limits(write_buffer=1000))
    client = node.connect(version=4, keep_alive=10)
    client.jam()
    while client.wire.reading:
        client.send_bytes(encode(Pingreq(), 4) * 100)
    node.tick(14)
    assert client.open
    node.tick(2)
    assert not client.open


def test_a_slow_reader_that_says_little_is_heard() -> None:
    node = Node(Limits(write_buffer=1000))
    client = node.connect(keep_alive=10)
    client.subscribe("t", 0)
    client.jam()
    for _ in range(10):
        node.connect("p").publish("t", bytes(900))
        client.send(Pingreq())
        node.tick(10)
    assert client.wire.reading
    assert client.open


def test_a_large_read_lets_the_others_have_their_turn() -> None:
    node = Node()
    client = node.connect("p", 4)
    client.connection.receive(encode(Publish("t", bytes(1000)), 4) * 70, node.now)
    assert not client.wire.reading
    node.turn()
    assert client.wire.reading


def test_a_connection_that_has_ended_is_held_by_nobody() -> None:
    node = Node(Limits(receive_maximum=1))
    for _ in range(10):
        client = node.connect("p", 4, keep_alive=5)
        client.send(Publish("t", b"", 1, packet_id=1), Publish("t", b"", 1, packet_id=2))
        assert not client.wire.reading
        client.lose()
    node.open().lose()
    hub = node.hub
    assert not hub.pressure.count
    assert not hub.clients._strangers
    assert not hub.clients.connections
    assert hub.clients.count == 0


def test_an_oversized_packet_ends_the_connection_by_its_header_alone() -> None:
    client = Node(Limits(max_packet_size=1000)).connect()
    client.take_all()
    client.send_bytes(b"\x30" + b"\xff\xff\x03")
    assert client.take_all() == [Disconnect(Reason.PACKET_TOO_LARGE)]


def test_one_look_at_a_long_log_is_cut_into_turns() -> None:
    node = Node(Limits(queue_qos0=False, receive_maximum=65535))
    node.keeper("t", 1).lose()
    publisher = node.connect("p", 4)
    for _ in range(50):
        publisher.send_bytes(encode(Publish("t", b"x"), 4) * 100)
        node.commit()
    publisher.publish("t", b"the one", qos=1)
    node.commit()
    client = node.open(4)
    client.connection.receive(encode(Connect("k", 4, False, 0, None, None, None), 4), node.now)
    node.turn_once()
    assert 0 < node.hub.dropped_away < 5000
    node.commit()
    assert node.hub.dropped_away == 5000
    assert client.payloads() == [b"the one"]


def test_sessions_that_catch_up_share_a_turn_and_take_turns() -> None:
    node = Node(Limits(queue_qos0=True))
    for number in range(12):
        node.keeper("t", 0, f"k{number}").lose()
    publisher = node.connect("p")
    for _ in range(80):
        publisher.send_bytes(encode(Publish("t", b"x"), 5) * 100)
        node.commit()
    clients = [node.open() for _ in range(12)]
    properties = ((Property.SESSION_EXPIRY_INTERVAL, 1000),)
    for number, client in enumerate(clients):
        packet = Connect(f"k{number}", 5, False, 0, None, None, None, properties)
        client.connection.receive(encode(packet, 5), node.now)
    for _ in range(12):
        before = node.hub.traffic.delivered
        node.turn_once()
        assert node.hub.traffic.delivered - before <= 5000
    counts = [len(client.take(Publish)) for client in clients]
    assert max(counts) <= 2 * min(counts)
    node.commit()
    assert node.hub.traffic.delivered == 12 * 8000


@pytest.mark.parametrize(
    ("a_minute", "stays"), [(0, False), (3000, False), (5000, True)], ids=["nothing", "a trickle", "a slow link"]
)
def test_the_rest_of_a_large_packet_is_not_waited_for_for_ever(a_minute: int, stays: bool) -> None:
    node = Node()
    client = node.connect()
    packet = encode(Publish("t", bytes(100_000)), 5)
    client.send_bytes(packet[:50_000])
    sent = 50_000
    for _ in range(5):
        node.tick(61)
        if client.open:
            client.send_bytes(packet[sent : sent + a_minute])
            sent += a_minute
    assert client.open is stays
    if not stays:
        assert [packet.reason for packet in client.take(Disconnect)] == [Reason.UNSPECIFIED_ERROR]
        assert "the rest of a packet has not come within 60 s" in client.wire.said


def test_large_packets_one_after_another_are_no_packet_that_is_waited_for() -> None:
    node = Node()
    client = node.connect()
    packet = encode(Publish("t", bytes(100_000)), 5)
    client.send_bytes(packet[:50_000])
    for _ in range(5):
        node.tick(61)
        client.send_bytes(packet[50_000:] + packet[:40_000])
        node.commit()
        client.send_bytes(packet[40_000:50_000])
    assert client.open


def test_a_small_part_of_a_packet_may_be_waited_for() -> None:
    node = Node()
    client = node.connect()
    client.send_bytes(encode(Publish("t", bytes(100_000)), 5)[:16_000])
    node.tick(200)
    node.tick(200)
    assert client.open


def test_a_client_may_have_as_many_long_topic_filters_as_fit() -> None:
    node = Node()
    client = node.connect()
    long = "x" * 60_000
    assert [client.subscribe(f"{long}/{n}", 1) for n in range(10)] == [1] * 8 + [Reason.QUOTA_EXCEEDED] * 2
    assert client.wire.said[0].endswith("its topic filters are too long")
    assert client.subscribe(f"{long}/0", 0) == 0
    assert client.subscribe("short", 1) == 1
    client.send(Unsubscribe(2, (f"{long}/1",)))
    assert client.subscribe(f"{long}/7", 1) == 1


def test_a_client_may_have_as_many_deep_topic_filters_as_fit() -> None:
    node = Node(Limits(max_subscriptions=10_000))
    client = node.connect()
    deep = "/" * 150
    reasons = [client.subscribe(f"{deep}{n}", 1) for n in range(100)]
    assert reasons == [1] * 53 + [Reason.QUOTA_EXCEEDED] * 47
    assert all(client.subscribe(f"a/b/c/d/e/{n}", 1) == 1 for n in range(500))


def test_topics_that_have_aliases_are_bounded_by_what_they_take_in_memory() -> None:
    node = Node()
    client = node.connect()
    for alias in range(1, 4):
        client.publish("x" * 60_000, properties=((Property.TOPIC_ALIAS, alias),))
        assert client.open is (alias < 3)
    assert [packet.reason for packet in client.take(Disconnect)] == [Reason.QUOTA_EXCEEDED]


def test_a_connect_that_is_larger_than_all_that_it_may_say_is_not_waited_for() -> None:
    node = Node()
    client = node.open()
    client.send_bytes(b"\x10\xff\xff\x3f" + encode(Connect("c", 5, True, 0, None, None, None), 5)[2:])
    assert not client.open


@pytest.mark.parametrize("limits", [Limits(max_retained=2), Limits(retained_memory=1300)], ids=["number", "memory"])
def test_one_more_retained_message_is_refused_where_that_can_be_said(limits: Limits) -> None:
    node = Node(limits)
    client, old = node.connect(), node.connect("old", 4)
    for topic in ("a", "b"):
        client.publish(topic, b"kept", 1, retain=True)
        node.commit()
    assert [packet.reason for packet in client.take(Puback)] == [0, 0]
    subscriber = node.subscriber()
    assert len(subscriber.take(Publish)) == 2
    client.publish("c", b"more", 1, retain=True)
    node.commit()
    assert [packet.reason for packet in client.take(Puback)] == [Reason.QUOTA_EXCEEDED]
    assert subscriber.take(Publish) == []
    old.publish("c", b"more", 1, retain=True)
    client.publish("d", b"more", 0, retain=True)
    node.commit()
    assert len(old.take(Puback)) == 1
    assert {packet.topic for packet in subscriber.acknowledge()} == {"c", "d"}
    assert node.hub.retained.count == 2
    assert node.hub.unretained == 3
    client.publish("a", b"new!", 1, retain=True)
    client.publish("b", b"", 1, retain=True)
    node.commit()
    client.publish("c", b"more", 1, retain=True)
    node.commit()
    assert [packet.reason for packet in client.take(Puback)] == [0, 0, 0]
    node.crash()
    assert sorted(event.topic for event in node.hub.retained.match("#")) == ["a", "c"]

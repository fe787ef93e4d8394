"""A connection takes its share of a turn, and no more; and what nobody can make wait is not asked again and again."""

from __future__ import annotations

import pytest

from broker.listener import Limits, Listener
from broker.mqtt.codec import encode
from broker.mqtt.packets import (
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Publish,
    Suback,
    Subscribe,
    Subscription,
    Unsubscribe,
    Will,
)
from broker.quotas import Meter, Quotas
from storage.interface import StorageFull
from tests.broker.helpers import Client, Node

MANY = 20_000
"""More packets than one connection may take of a turn."""


def flood(client: Client, *packets: Packet) -> None:
    """Have the node read all of it at once. No turn of the loop comes after it."""
    client.connection.receive(b"".join(encode(packet, client.version) for packet in packets), client.node.now)


def numbered(count: int) -> list[Publish]:
    return [Publish("t", b"%d" % number) for number in range(count)]


def is_numbered(payloads: list[bytes], count: int) -> bool:
    return payloads == [b"%d" % number for number in range(count)]


def test_a_flood_is_handled_in_pieces_and_in_order() -> None:
    node = Node()
    subscriber, flooder = node.subscriber(qos=0), node.connect()
    flood(flooder, *numbered(MANY))
    assert 0 < node.hub.traffic.received < MANY / 2
    assert not flooder.wire.reading
    assert node.hub.pressure.kept > MANY
    node.commit()
    assert is_numbered(subscriber.payloads(), MANY)
    assert flooder.wire.reading
    assert node.hub.pressure.kept == 0


def test_what_others_send_is_handled_between_the_pieces() -> None:
    node = Node()
    flooder, other = node.connect("flooder"), node.connect("other")
    flood(flooder, *[Pingreq()] * MANY)
    turns = 0
    while not flooder.wire.reading:
        flood(other, Pingreq())
        node.turn_once()
        turns += 1
        assert len(other.take(Pingresp)) == 1
    assert turns >= 3
    node.turn()
    assert len(flooder.take(Pingresp)) == MANY


def test_many_that_flood_share_a_turn_and_none_is_left_out() -> None:
    node = Node()
    flooders = [node.connect(f"c{number}") for number in range(20)]
    for flooder in flooders:
        flood(flooder, *[Pingreq()] * MANY)
    before = node.hub.traffic.packets_received
    node.turn_once()
    assert node.hub.traffic.packets_received - before < MANY
    for _ in range(15):
        node.turn_once()
    counts = [len(flooder.take(Pingresp)) for flooder in flooders]
    assert max(counts) < 2.5 * min(counts) < MANY
    node.turn()
    assert all(flooder.wire.reading for flooder in flooders)
    assert node.hub.traffic.packets_received == 20 * (MANY + 1)


@pytest.mark.parametrize("version", [4, 5])
def test_topic_filters_take_more_of_a_turn_than_messages_do(version: int) -> None:
    node = Node()
    client = node.connect(version=version)
    wanted = [Subscribe(1, tuple(Subscription(f"{n}/{m}", 0) for m in range(10))) for n in range(50)]
    flood(client, *wanted)
    assert client.session.subscriptions <= 120
    node.turn_once()
    assert client.session.subscriptions < 500
    node.turn()
    assert client.session.subscriptions == 500
    assert len(client.take(Suback)) == 50
    flood(client, *(Unsubscribe(2, tuple(each.filter for each in packet.subscriptions)) for packet in wanted))
    assert client.session.subscriptions > 300
    node.turn()
    assert client.session.subscriptions == 0


def test_what_comes_while_something_is_kept_is_handled_behind_it() -> None:
    node = Node()
    subscriber, flooder = node.subscriber(qos=0), node.connect()
    packets = numbered(MANY)
    flood(flooder, *packets[:-2])
    last = encode(packets[-2], 5) + encode(packets[-1], 5)
    flooder.connection.receive(last[:5], node.now)
    node.turn_once()
    flooder.connection.receive(last[5:], node.now)
    node.commit()
    assert is_numbered(subscriber.payloads(), MANY)


def test_what_breaks_the_rules_ends_the_connection_when_its_turn_has_come() -> None:
    node = Node()
    flooder = node.connect()
    flood(flooder, *[Pingreq()] * MANY)
    flooder.connection.receive(b"\x00\x00", node.now)
    assert flooder.open
    node.turn()
    assert not flooder.open
    packets = flooder.take_all()
    assert packets.count(Pingresp()) == MANY
    assert isinstance(packets[-1], Disconnect)
    assert node.hub.pressure.kept == 0


@pytest.mark.parametrize("goodbye", [True, False])
def test_what_was_read_before_the_connection_broke_counts(goodbye: bool) -> None:
    node = Node()
    subscriber = node.subscriber(qos=0)
    flooder = node.connect("flooder", will=Will("w", b"will", 0, False))
    node.commit()
    flood(flooder, *numbered(MANY), *[Disconnect(0)] * goodbye)
    flooder.lose()
    node.commit()
    payloads = subscriber.payloads()
    assert is_numbered(payloads[:MANY], MANY)
    assert payloads[MANY:] == [b"will"] * (not goodbye)
    assert flooder.connection.closed
    assert node.hub.clients.count == 1
    assert node.hub.pressure.count == 0


def test_what_a_client_that_is_gone_has_sent_ahead_of_its_rate_does_not_wait() -> None:
    node = Node()
    node.listener = Listener("front", node.limits, meter=Meter(Quotas(message_rate=10), node.now))
    subscriber, flooder = node.subscriber(qos=0), node.connect()
    flood(flooder, *numbered(MANY))
    flooder.lose()
    node.commit()
    assert is_numbered(subscriber.payloads(), MANY)
    assert flooder.connection.closed


def test_a_client_that_was_saying_goodbye_is_not_taken_over() -> None:
    node = Node()
    subscriber = node.subscriber("w", qos=0)
    first = node.connect("c", will=Will("w", b"will", 0, False))
    node.commit()
    flood(first, *[Pingreq()] * 6000, Disconnect(0))
    assert not first.connection.closed
    again = node.open()
    flood(again, Connect("c", 5, True, 0, None, None, None))
    node.commit()
    assert len(again.take(Connack)) == 1
    assert first.take(Disconnect) == []
    assert subscriber.payloads() == []


def test_who_sends_more_than_its_rate_is_asked_again_when_it_may_go_on() -> None:
    node = Node()
    quotas = Quotas(message_rate=100)
    node.listener = Listener("front", node.limits, meter=Meter(quotas, node.now))
    clients = [node.connect(f"c{number}") for number in range(50)]
    for client in clients:
        flood(client, *numbered(300))
    node.turn()
    asked = 0

    def congested(connection: object) -> bool:
        nonlocal asked
        asked += 1
        return False

    assert node.hub.pressure.count == 50
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("broker.connection.Connection.congested", property(congested))
        node.hub.wake()
        node.turn()
    assert asked == 0
    assert not any(client.wire.reading for client in clients)
    node.tick(1.9)
    assert not any(client.wire.reading for client in clients)
    node.tick(0.2)
    assert all(client.wire.reading for client in clients)
    assert node.hub.pressure.count == 0


def test_topic_filters_count_in_the_rate_of_messages() -> None:
    node = Node()
    node.listener = Listener("front", node.limits, meter=Meter(Quotas(message_rate=10), node.now))
    client = node.connect()
    client.send(Subscribe(1, tuple(Subscription(f"{n}", 0) for n in range(20))))
    assert not client.wire.reading
    node.tick(0.9)
    assert not client.wire.reading
    node.tick(0.2)
    assert client.wire.reading


def test_who_went_while_it_was_made_to_wait_is_not_kept() -> None:
    node = Node()
    node.listener = Listener("front", node.limits, meter=Meter(Quotas(message_rate=1), node.now))
    for number in range(200):
        client = node.connect(f"c{number}")
        flood(client, *numbered(100))
        node.turn()
        client.lose()
    assert node.hub.pressure.count < 50


def test_a_peer_that_does_not_read_is_asked_again_when_it_does() -> None:
    node = Node(Limits(write_buffer=1000))
    client = node.connect()
    client.jam()
    client.send(*[Pingreq()] * 600)
    assert not client.wire.reading
    assert node.hub.pressure.count == 1
    node.tick()
    assert not client.wire.reading
    client.unjam()
    assert client.wire.reading
    assert node.hub.pressure.count == 0
    assert len(client.take(Pingresp)) == 600


@pytest.mark.parametrize("version", [4, 5])
def test_while_nothing_can_be_stored_those_are_handled_who_can_be_told_so(version: int) -> None:
    node = Node(Limits(receive_maximum=65535))
    client = node.connect(version=version)
    node.commit()
    node.engine.fault = StorageFull("no room")
    client.publish(qos=1, packet_id=7000)
    node.commit()
    flood(client, *(Publish("t", b"x", 1, packet_id=n) for n in range(1, 6001)))
    node.commit()
    answers = client.take(Puback)
    if version == 5:
        assert [answer.reason for answer in answers] == [0x97] * 6001
        assert client.wire.reading
        return
    assert answers == []
    assert not client.wire.reading
    node.engine.fault = None
    node.tick()
    node.commit()
    assert len(client.take(Puback)) == 6001
    assert client.wire.reading


def test_where_very_much_is_kept_more_is_handled_at_a_time() -> None:
    node = Node(Limits(max_packet_size=8 << 20))
    clients = [node.connect(f"c{number}") for number in range(10)]
    for client in clients:
        flood(client, *[Pingreq()] * 5000, Publish("t", bytes(5 << 20)))
    assert 30 << 20 < node.hub.pressure.kept < 40 << 20
    node.commit()
    assert node.hub.traffic.payload_received == 50 << 20
    assert node.hub.pressure.kept == 0

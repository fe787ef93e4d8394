"""Nothing is acknowledged that is not kept: a full disk refuses or makes wait, and what was promised is done later."""

from __future__ import annotations

import pytest

from broker.listener import Limits
from broker.mqtt.packets import (
    Connack,
    Connect,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Subscription,
    Unsubscribe,
    Will,
)
from broker.mqtt.reason import Reason
from storage.interface import MEMORY, RETAINED, SESSIONS, StorageFailed, StorageFull
from tests.broker.helpers import FOREVER, Client, Node

FULL = StorageFull("cannot write to /data/berm.db: no space left on device; free some")


def publisher(node: Node, version: int, client_id: str = "p", *, keep: bool = False) -> Client:
    client = node.resume(client_id, version) if keep else node.connect(client_id, version)
    node.commit()
    client.take(Connack)
    return client


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("when", ["on its way", "open", "after"])
def test_a_full_disk_refuses_what_an_mqtt_5_client_publishes(qos: int, when: str) -> None:
    node = Node()
    subscriber = node.subscriber()
    client = publisher(node, 5, keep=True)
    refused = Puback(1, Reason.QUOTA_EXCEEDED) if qos == 1 else Pubrec(1, Reason.QUOTA_EXCEEDED)
    if when != "after":
        if when == "open":
            publisher(node, 5, "q").publish(qos=1)
        client.publish(qos=qos)
        node.engine.fault = FULL
        node.commit()
    else:
        publisher(node, 5, "q").publish(qos=1)
        node.engine.fault = FULL
        node.commit()
        client.publish(qos=qos)
    assert client.take_all() == [refused]
    assert client.connection.owed == 0
    assert not client.connection.unreleased
    assert not client.session.received
    node.engine.fault = None
    node.tick()
    node.commit()
    assert subscriber.take(Publish) == []
    client.publish("t", b"again", qos=qos)
    node.commit()
    assert client.take_all() == [Puback(1) if qos == 1 else Pubrec(1)]
    assert [message.payload for message in subscriber.acknowledge()] == [b"again"]


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("version", [3, 4])
def test_a_full_disk_makes_older_clients_wait_and_acknowledges_them_in_the_end(version: int, qos: int) -> None:
    node = Node()
    subscriber = node.subscriber()
    client = publisher(node, version)
    client.publish(qos=qos, packet_id=1)
    node.engine.fault = FULL
    node.commit()
    assert not client.wire.reading
    client.publish(qos=qos, packet_id=2)  # what was read already
    for _ in range(3):
        node.tick()
        node.commit()
        assert client.take_all() == []
        assert not client.wire.reading
    node.engine.fault = None
    node.tick()
    node.commit()
    assert client.take_all() == [Puback(n) if qos == 1 else Pubrec(n) for n in (1, 2)]
    assert client.wire.reading
    assert len(subscriber.acknowledge()) == 2


def test_a_waiting_client_is_not_called_silent() -> None:
    node = Node()
    client = node.connect("p", 4, keep_alive=1)
    client.publish(qos=1)
    node.engine.fault = FULL
    node.commit()
    node.tick(60)
    node.commit()
    assert client.open


def test_what_does_not_need_the_disk_goes_on_while_it_is_full() -> None:
    node = Node()
    node.connect("q", 4).publish(qos=1)
    node.engine.fault = FULL
    node.commit()
    passing, staying = node.connect("c"), node.connect("k", expiry=FOREVER)
    for client in (passing, staying):
        assert client.take(Connack)[0].reason == Reason.SUCCESS
        client.send(Subscribe(1, (Subscription("t", 1),)), Pingreq())
        node.commit()
    assert passing.take_all() == [Suback(1, (1,)), Pingresp()]
    assert staying.take_all() == [Pingresp()]
    node.engine.fault = None
    node.tick()
    node.commit()
    assert staying.take(Suback) == [Suback(1, (1,))]
    assert len(passing.acknowledge()) == len(staying.acknowledge()) == 1


def test_qos_0_messages_are_dropped_and_counted_while_nothing_can_be_stored() -> None:
    node = Node()
    subscriber = node.subscriber("t", 0)
    client = publisher(node, 5)
    client.publish("t", b"1")
    assert subscriber.payloads() == [b"1"]
    node.engine.fault = FULL
    node.commit()
    client.publish("t", b"2")
    assert subscriber.payloads() == []
    assert node.hub.dropped_full == 2  # the first was seen, and is not in the log
    assert node.hub.traffic.received == 2


def test_nothing_that_waits_for_a_commit_is_answered_before_it() -> None:
    node = Node()
    client = publisher(node, 5, keep=True)
    client.publish(qos=2, packet_id=7)
    node.commit()
    client.take_all()
    client.send(Pubrel(7))
    client.send(Subscribe(1, (Subscription("t", 1),)), Unsubscribe(2, ("t",)))
    node.engine.fault = FULL
    node.commit()
    assert client.take_all() == []
    node.engine.fault = None
    node.tick()
    node.commit()
    assert [type(packet).__name__ for packet in client.take_all()] == ["Pubcomp", "Suback", "Unsuback"]


def test_a_refused_retained_message_does_not_become_the_retained_one() -> None:
    node = Node()
    v5, v4 = publisher(node, 5), publisher(node, 4, "q")
    v5.publish("t", b"kept", qos=1, retain=True)
    node.commit()
    v5.publish("t", b"refused", qos=1, retain=True)
    v5.publish("u", b"refused", qos=1, retain=True)
    v4.publish("v", b"waits", qos=1, retain=True)
    v5.publish("v", b"refused", qos=1, retain=True)
    node.engine.fault = FULL
    node.commit()
    node.engine.fault = None
    node.tick()
    node.commit()
    retained = {(topic, payload) for topic, _, _, payload, *_ in node.engine.rows(RETAINED)}
    assert retained == {("t", b"kept"), ("v", b"waits")}
    messages = node.subscriber("#").acknowledge()
    assert {(message.topic, message.payload) for message in messages} == retained


def test_a_refused_qos_2_identifier_is_free_also_after_a_crash() -> None:
    """[MQTT-4.3.3-10]"""
    node = Node()
    node.keeper().lose()
    client = publisher(node, 5, keep=True)
    publisher(node, 4, "q").publish("other", qos=1)
    client.publish("t", b"1", qos=2, packet_id=7)
    node.engine.fault = FULL
    node.commit()
    assert client.take_all() == [Pubrec(7, Reason.QUOTA_EXCEEDED)]
    node.engine.fault = None
    node.tick()
    node.commit()
    node.crash()
    client = publisher(node, 5, keep=True)
    client.publish("t", b"2", qos=2, packet_id=7)
    node.commit()
    assert client.take_all() == [Pubrec(7)]
    assert [message.payload for message in node.resume("k").acknowledge()] == [b"x", b"2"]


def test_rows_of_sessions_that_a_refused_group_held_are_written_as_they_are_later() -> None:
    node = Node()
    client = node.connect("k", clean=False, expiry=FOREVER)
    client.send(Subscribe(1, (Subscription("t", 1),)))
    node.engine.fault = FULL
    node.commit()
    client.lose()
    node.connect("k", expiry=FOREVER).disconnect()
    node.engine.fault = None
    node.tick()
    node.commit()
    assert node.engine.keys(SESSIONS) == ["k"]
    node.crash()
    assert not node.hub.sessions.all["k"].grants


def test_a_message_whose_publisher_has_gone_is_kept_since_it_may_think_so() -> None:
    node = Node()
    subscriber = node.subscriber()
    client = publisher(node, 5)
    client.publish(qos=1)
    client.lose()
    node.engine.fault = FULL
    node.commit()
    node.engine.fault = None
    node.tick()
    node.commit()
    assert len(subscriber.acknowledge()) == 1


def test_what_waits_is_bounded_and_who_would_add_to_it_is_closed_unacknowledged() -> None:
    node = Node(Limits(group_bytes=10_000))
    node.connect("q", 4).publish(qos=1)
    node.engine.fault = FULL
    node.commit()
    closed = 0
    for n in range(100):
        client = publisher(node, 4, f"p{n}", keep=True)
        client.publish("t", bytes(1000), qos=2, packet_id=1)
        assert client.take_all() == []
        if not client.open:
            closed += 1
            assert not node.hub.sessions.all[f"p{n}"].received
    assert closed > 85
    assert node.log.open.weight < 20_000
    assert node.hub.pressure.count < 15


def test_a_client_that_asks_for_ever_while_nothing_can_be_stored_is_no_longer_read_from() -> None:
    node = Node(Limits(write_buffer=2000))
    client = publisher(node, 5, keep=True)
    node.connect("q", 4).publish(qos=1)
    node.engine.fault = FULL
    node.commit()
    for n in range(1, 1000):
        if client.wire.reading:
            client.send(Pubrel(n))
    assert client.connection.pending < 5000
    node.engine.fault = None
    node.tick()
    node.commit()
    assert client.wire.reading
    assert client.connection.pending == 0
    answered = [packet.packet_id for packet in client.take(Pubcomp)]
    assert answered == list(range(1, len(answered) + 1))
    assert 20 < len(answered) < 40


@pytest.mark.parametrize("version", [4, 5])
def test_durability_memory_in_a_refused_group_is_acknowledged_in_its_turn_and_never_refused(version: int) -> None:
    node = Node(rules=lambda topic: MEMORY if topic == "memory" else None)
    subscriber = node.subscriber("memory")
    client = publisher(node, version)
    client.publish("t", qos=1, packet_id=1)
    client.publish("memory", qos=1, packet_id=2)
    node.engine.fault = FULL
    node.commit()
    assert client.take_all() == ([Puback(1, Reason.QUOTA_EXCEEDED), Puback(2)] if version == 5 else [])
    node.engine.fault = None
    node.tick()
    node.commit()
    assert client.take_all() == ([] if version == 5 else [Puback(1), Puback(2)])
    assert len(subscriber.acknowledge()) == 1


@pytest.mark.parametrize("version", [4, 5])
def test_a_disk_that_fails_is_never_tried_again_and_acknowledges_nothing(version: int) -> None:
    node = Node()
    subscriber = node.subscriber()
    client = publisher(node, version)
    client.publish(qos=1)
    node.engine.fault = StorageFailed("cannot fsync /data/berm.db: input/output error; check the disk")
    node.commit()
    node.engine.fault = None
    for _ in range(3):
        node.tick()
        node.commit()
    assert client.take_all() == ([Puback(1, Reason.QUOTA_EXCEEDED)] if version == 5 else [])
    assert subscriber.take(Publish) == []


def test_wills_of_clients_that_come_and_go_do_not_gather_while_nothing_can_be_stored() -> None:
    node = Node(Limits(group_bytes=4000))
    node.engine.fault = FULL
    node.connect("p").publish("t", b"x", qos=1)
    node.commit()
    refused = 0
    for _ in range(300):
        client = node.open()
        client.send(Connect("w", 5, True, 0, Will("t", b"x" * 100, 1, False), None, None))
        if client.open:
            client.lose()
        else:
            refused += client.take(Connack)[0].reason == Reason.QUOTA_EXCEEDED
    assert node.log.open.weight < 10_000
    assert refused
    node.engine.fault = None
    node.tick()
    node.commit()
    assert node.connect("w", will=Will("t", b"x", 1, False)).open


def test_connections_that_are_gone_are_not_kept_while_nothing_can_be_stored() -> None:
    node = Node()
    node.engine.fault = FULL
    for _ in range(300):
        client = node.resume("k")
        client.send(Subscribe(1, (Subscription("t", 1),)))
        client.lose()
        node.tick()
        node.commit()
    assert len(node.hub.promises.then) < 100


def test_what_clients_that_come_and_go_publish_during_a_long_commit_has_a_bound() -> None:
    node = Node(Limits(group_bytes=4000))
    node.connect("p").publish("t", b"x", qos=1)  # its group is on its way
    held = None
    for _ in range(100):
        held = node.open(4)
        if not held.wire.reading:
            break
        held.send(Connect("c", 4, True, 0, None, None, None), Publish("t", b"x" * 1000, 1, packet_id=1))
        held.lose()
    assert held is not None
    assert not held.wire.reading
    assert node.log.open.weight < 8000
    node.commit()
    assert held.wire.reading

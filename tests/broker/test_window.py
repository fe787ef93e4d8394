"""What a client was sent: how much at a time, until it is acknowledged, and again after a reconnect or a crash."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from broker.listener import Limits
from broker.mqtt.codec import encode
from broker.mqtt.packets import (
    Connect,
    Disconnect,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
)
from broker.mqtt.properties import Properties, Property
from broker.mqtt.reason import Reason
from storage.interface import MEMORY, Event
from tests.broker.helpers import FOREVER, Node, numbers, publish_all

RECEIVE_MAXIMUM_10: Properties = ((Property.RECEIVE_MAXIMUM, 10),)
FOR_EVER: Properties = ((Property.SESSION_EXPIRY_INTERVAL, FOREVER),)


# -- how many at a time


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("persistent", [False, True])
def test_no_more_messages_are_in_flight_than_the_receive_maximum(qos: int, persistent: bool) -> None:
    """[MQTT-3.3.4-9] [MQTT-2.2.1-4]"""
    node = Node()
    expiry = FOREVER if persistent else 0
    client = node.connect("s", expiry=expiry, properties=RECEIVE_MAXIMUM_10)
    client.subscribe("t", 2)
    publish_all(node.connect("p"), numbers(100), qos)
    came: list[bytes] = []
    identifiers: set[int] = set()
    while batch := client.take(Publish):
        assert len(batch) + len(identifiers) <= 10
        came += [message.payload for message in batch]
        for message in batch:
            assert message.packet_id not in identifiers
            identifiers.add(message.packet_id)
        done = sorted(identifiers)[:3]
        identifiers -= set(done)
        client.send(*(Puback(n) if qos == 1 else Pubrec(n) for n in done))
        node.commit()
        if qos == 2:
            assert sorted(pubrel.packet_id for pubrel in client.take(Pubrel)) == done
            client.send(*map(Pubcomp, done))
            node.commit()
        if not done:
            break
    assert came == numbers(100)


def test_a_qos_2_message_whose_pubcomp_is_missing_still_takes_its_place_after_a_reconnect() -> None:
    """[MQTT-4.3.3-4]"""
    node = Node()
    client = node.connect("s", expiry=FOREVER, properties=RECEIVE_MAXIMUM_10)
    client.subscribe("t", 2)
    publish_all(node.connect("p"), numbers(50), 2)
    for _ in range(5):
        client.send(*(Pubrec(message.packet_id) for message in client.take(Publish)))
        node.commit()
        client.lose()
        client = node.resume("s", properties=RECEIVE_MAXIMUM_10)
        node.commit()
        assert sorted(pubrel.packet_id for pubrel in client.take(Pubrel)) == list(range(1, 11))
        assert client.take(Publish) == []
    client.send(*(Pubcomp(n) for n in range(1, 11)))
    node.commit()
    assert client.payloads() == numbers(10, 10)


def test_with_every_identifier_in_use_nothing_is_sent_until_one_is_free() -> None:
    node = Node(Limits(max_inflight=65535, receive_maximum=65535, write_buffer=1 << 30))
    client = node.subscriber("t", 1)
    publish_all(node.connect("p", 4), numbers(65535))
    publish_all(node.connect("p", 4), [b"one", b"more"])
    assert len(client.take(Publish)) == 65535
    client.send(Puback(40000))
    (message,) = client.take(Publish)
    assert (message.packet_id, message.payload) == (40000, b"one")


# -- what the client says


def test_an_unknown_acknowledgement_changes_nothing() -> None:
    node = Node()
    client = node.subscriber("t", 1)
    client.send(Puback(1), Pubcomp(2))
    client.send(Pubrec(3))
    assert client.session.slots == client.session.window
    assert client.take_all() == [Pubrel(3, Reason.PACKET_IDENTIFIER_NOT_FOUND)]
    old = node.subscriber("t", 1, "old", 4)
    old.send(Pubrec(3))
    assert old.take_all() == [Pubrel(3)]


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize(
    ("qos", "answers"),
    [(1, [Pubrec]), (1, [Pubcomp]), (2, [Puback]), (2, [Pubcomp]), (2, [Pubrec, Puback])],
    ids=lambda case: "-".join(kind.__name__ for kind in case) if isinstance(case, list) else str(case),
)
def test_an_acknowledgement_of_another_kind_than_the_one_that_is_due_ends_the_connection(
    version: int, qos: int, answers: list[type[Puback | Pubrec | Pubcomp]]
) -> None:
    """[MQTT-4.13.1-1]"""
    node = Node()
    client = node.keeper("t", qos, version=version)
    node.connect("p").publish("t", b"x", qos)
    node.commit()
    (message,) = client.take(Publish)
    for kind in answers:
        client.send(kind(message.packet_id))
        node.commit()
    assert not client.open
    reasons = [packet.reason for packet in client.take(Disconnect)]
    assert reasons == ([Reason.PROTOCOL_ERROR] if version == 5 else [])
    back = node.resume("k", version)
    assert [packet.payload for packet in back.take(Publish)] == ([] if len(answers) == 2 else [b"x"])


def test_a_client_can_refuse_a_qos_2_message() -> None:
    node = Node()
    client = node.keeper("t", 2)
    node.connect("p").publish("t", qos=2)
    node.commit()
    (message,) = client.take(Publish)
    client.send(Pubrec(message.packet_id, Reason.QUOTA_EXCEEDED))
    node.commit()
    assert client.take_all() == []
    assert client.session.slots == client.session.window


# -- sent again


@pytest.mark.parametrize("qos", [1, 2])
def test_what_was_not_acknowledged_is_sent_again_with_dup_and_the_same_identifier_in_order(qos: int) -> None:
    """[MQTT-4.4.0-1] [MQTT-4.6.0-1] [MQTT-3.3.1-1]"""
    node = Node()
    client = node.keeper("t")
    publish_all(node.connect("p"), numbers(5), qos)
    first = client.take(Publish)
    client.lose()
    publish_all(node.connect("p"), numbers(2, 5), qos)
    client = node.resume("k")
    again = client.take(Publish)
    assert [(m.payload, m.packet_id) for m in again[:5]] == [(m.payload, m.packet_id) for m in first]
    assert [message.dup for message in again] == [True] * 5 + [False] * 2
    assert [message.payload for message in again] == numbers(7)
    assert len({message.packet_id for message in again}) == 7


def test_more_in_flight_than_the_window_of_the_new_connection_is_sent_again_as_room_appears() -> None:
    node = Node()
    client = node.keeper("t", 1)
    publish_all(node.connect("p"), numbers(100))
    assert len(client.take(Publish)) == 100
    client.lose()
    client = node.resume("k", properties=RECEIVE_MAXIMUM_10)
    assert len(client.wire.packets) == 11
    publish_all(node.connect("p"), numbers(5, 100))
    assert [message.payload for message in client.acknowledge()] == numbers(105)


def test_messages_are_read_back_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(memory_bytes=1)
    client = node.keeper("t", 1)
    publish_all(node.connect("p"), numbers(500))
    publish_all(node.connect("p"), [b"last"], topic="other")
    client.lose()
    asked: list[int] = []
    get = node.log.get

    def spy(seqs: Sequence[int], done: Callable[[list[Event]], None]) -> None:
        asked.append(len(seqs))
        get(seqs, done)

    monkeypatch.setattr(node.log, "get", spy)
    client = node.resume("k")
    assert [message.payload for message in client.take(Publish)] == numbers(500)
    assert max(asked) <= 32
    assert sum(asked) == 500


def test_what_is_read_back_for_a_connection_that_is_gone_is_not_held() -> None:
    node = Node(memory_bytes=1)
    client = node.keeper("t", 1)
    publish_all(node.connect("p"), numbers(5))
    publish_all(node.connect("p"), [b"last"], topic="other")
    client.lose()
    session = client.session
    client = node.open()
    client.connection.receive(encode(Connect("k", 5, False, 0, None, None, None, FOR_EVER), 5), node.now)
    for call in [node.scheduled.pop() for _ in node.scheduled[:]]:
        call()
    client.lose()
    assert node.hub.sessions.all["k"] is session
    assert len(session._read_back) == 0
    assert node.resume("k").payloads() == numbers(5)


def test_what_is_acknowledged_before_it_was_sent_again_is_not_sent_again() -> None:
    node = Node()
    client = node.keeper("t", 2)
    publish_all(node.connect("p"), numbers(30), 1)
    publish_all(node.connect("p"), numbers(10, 30), 2)
    first = client.take(Publish)
    client.lose()
    client = node.resume("k", properties=RECEIVE_MAXIMUM_10)
    assert len(client.take(Publish)) == 10
    client.send(*(Puback(message.packet_id) for message in first[10:30]))
    client.send(*(Pubrec(message.packet_id) for message in first[30:35]))
    node.commit()
    assert len(client.take(Pubrel)) == 5
    assert client.take(Publish) == []
    client.send(*(Puback(message.packet_id) for message in first[:10]))
    node.commit()
    assert client.payloads() == numbers(5, 35)
    client.send(*(Pubrec(message.packet_id) for message in first[35:]))
    client.send(*(Pubcomp(message.packet_id) for message in first[30:]))
    node.commit()
    assert client.session.slots == client.session.window


def test_a_message_that_the_log_no_longer_has_is_counted_and_its_identifier_comes_free() -> None:
    """At QoS 2 the client holds the identifier until PUBREL: under it another message would be taken for a copy."""
    node = Node(rules=lambda topic: MEMORY if topic == "memory" else None)
    client = node.keeper("#")
    publish_all(node.connect("p"), numbers(3), 1, "memory")
    publish_all(node.connect("p"), numbers(3), 2, "memory")
    client.lose()
    node.commit()
    node.crash()
    publish_all(node.connect("p"), [b"new"], 2)
    client = node.resume("k")
    assert [(message.packet_id, message.payload) for message in client.take(Publish)] == [(1, b"new")]
    assert [pubrel.packet_id for pubrel in client.take(Pubrel)] == [4, 5, 6]
    assert node.hub.dropped_gone == 6
    client.send(Pubrec(1), *(Pubcomp(n) for n in (4, 5, 6)))
    client.acknowledge()
    assert client.session.slots == client.session.window
    assert not client.session.unacked
    assert not client.session.unreceived
    assert not client.session.uncompleted


def test_a_message_that_the_client_no_longer_takes_is_given_up_for_good() -> None:
    """[MQTT-3.1.2-25]"""
    node = Node()
    client = node.keeper("#")
    publish_all(node.connect("p"), [bytes(100)], 1)
    publish_all(node.connect("p"), [bytes(100), b"2"], 2)
    client.lose()
    client = node.resume("k", properties=((Property.MAXIMUM_PACKET_SIZE, 50),))
    assert [(message.packet_id, message.payload) for message in client.take(Publish)] == [(3, b"2")]
    assert [pubrel.packet_id for pubrel in client.take(Pubrel)] == [2]
    assert node.hub.dropped_oversized == 2
    client.send(Pubrec(3), Pubcomp(2))
    client.acknowledge()
    assert client.session.slots == client.session.window


# -- what is on disk first


@pytest.mark.parametrize("steps", range(6))
def test_a_qos_2_message_reaches_the_client_once_wherever_the_node_crashes(steps: int) -> None:
    """[MQTT-4.3.3-4]"""
    node = Node()
    client = node.keeper("t")
    publisher = node.connect("p")
    publisher.publish("t", b"before", qos=1)
    client.acknowledge()  # so that a new identifier after the crash would not happen to be the old one
    node.tick()
    node.commit()
    publisher.publish("t", b"once", qos=2)
    held: set[int] = set()
    got: list[bytes] = []

    def receive() -> None:
        for packet in client.take_all():
            if isinstance(packet, Publish):
                if packet.packet_id not in held:
                    held.add(packet.packet_id)
                    got.append(packet.payload)
                client.send(Pubrec(packet.packet_id))
            elif isinstance(packet, Pubrel):
                held.discard(packet.packet_id)
                client.send(Pubcomp(packet.packet_id))

    for _ in range(steps):
        node.commit_one()
        receive()
    node.crash()
    if not steps:  # it was not acknowledged: its publisher sends it again
        node.connect("p").publish("t", b"once", qos=2, dup=True)
    client = node.resume("k")
    for _ in range(6):
        node.commit()
        receive()
    assert got == [b"once"]
    assert not held
    assert not client.session.uncompleted


def test_a_qos_2_message_that_was_not_sent_before_the_crash_carries_no_dup() -> None:
    """[MQTT-3.3.1-1]"""
    node = Node()
    client = node.keeper("t")
    client.jam()
    publish_all(node.connect("p"), [b"2"], 2)
    publish_all(node.connect("p"), [b"1"], 1)
    node.tick()
    node.commit()
    node.crash()
    messages = node.resume("k").acknowledge()
    assert {(message.payload, message.dup) for message in messages} == {(b"1", True), (b"2", False)}


def test_pubrel_is_not_sent_before_it_is_on_disk_that_pubrec_came() -> None:
    node = Node()
    client = node.keeper("t")
    publish_all(node.connect("p"), [b"x"], 2)
    client.send(Pubrec(1))
    assert client.take(Pubrel) == []
    client.lose()
    client = node.connect("k", clean=False, expiry=FOREVER)
    assert client.take(Pubrel) == []
    node.commit()
    assert client.take(Pubrel) == [Pubrel(1)]


def test_a_qos_2_message_is_not_sent_again_before_its_identifier_is_on_disk() -> None:
    node = Node()
    client = node.keeper("t")
    node.connect("p").publish("t", qos=2)
    node.commit_one()
    client.take_all()
    client.lose()
    client = node.connect("k", clean=False, expiry=FOREVER)
    assert client.take(Publish) == []
    node.commit()
    assert [message.packet_id for message in client.take(Publish)] == [1]

"""What one session gives its client: each message once, in order, within its window, across connections and crashes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest

from broker.listener import Limits
from broker.mqtt.packets import (
    Connack,
    Disconnect,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Subscription,
)
from broker.mqtt.properties import Properties, Property
from broker.mqtt.reason import Reason
from storage.interface import MEMORY, SESSIONS, Event
from tests.broker.helpers import FOREVER, Client, Node

RECEIVE_MAXIMUM_10: Properties = ((Property.RECEIVE_MAXIMUM, 10),)


def numbers(count: int, start: int = 0) -> list[bytes]:
    return [str(n).encode() for n in range(start, start + count)]


def publish_all(client: Client, payloads: list[bytes], qos: int = 1, topic: str = "t") -> None:
    """All of them in one piece, committed and acknowledged."""
    client.send(*(Publish(topic, payload, qos, packet_id=n + 1 if qos else 0) for n, payload in enumerate(payloads)))
    client.acknowledge()
    client.send(*(Pubrel(n + 1) for n in range(len(payloads)) if qos == 2))
    client.acknowledge()


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


# -- expiry


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
    monkeypatch.setattr("broker.session._SURE", 0)
    monkeypatch.setattr("broker.session.VARINT_MAX", 100)
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


# -- the window


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

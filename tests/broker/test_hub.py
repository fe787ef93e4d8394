"""The data path: nothing is acknowledged or seen before it is kept as its rule says; and who is connected as whom."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from broker.listener import Limits
from broker.mqtt.codec import encode
from broker.mqtt.packets import Connack, Disconnect, Puback, Pubcomp, Publish, Pubrec, Pubrel, Suback, Subscribe
from broker.mqtt.packets import Subscription as Asked
from broker.mqtt.properties import NEVER, Property
from broker.mqtt.reason import Reason
from storage.interface import FSYNC, MEMORY, OS, RETAINED, SESSIONS, SUBSCRIPTIONS
from tests.broker.helpers import FOREVER, SECOND, Node


def always(durability: int) -> Callable[[str], int]:
    return lambda _: durability


def warm(rules: Callable[[str], int | None] | None = None) -> Node:
    """A node that has its first event behind it: that one reserves seqs, and its group is synced for that."""
    node = Node(rules=rules)
    node.connect("first").publish("$first")
    node.commit()
    node.engine.commits.clear()
    return node


# -- acknowledge and fan out


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("durability", [OS, FSYNC])
def test_neither_acknowledgement_nor_subscriber_is_ahead_of_the_commit(qos: int, durability: int) -> None:
    """[MQTT-4.3.2-4] [MQTT-4.3.3-8]"""
    node = warm(always(durability))
    subscriber = node.subscriber()
    publisher = node.connect("p")
    publisher.take(Connack)
    publisher.publish(qos=qos)
    assert publisher.take_all() == []
    assert subscriber.take_all() == []
    node.commit()
    assert publisher.take_all() == [Puback(1) if qos == 1 else Pubrec(1)]
    assert len(subscriber.take(Publish)) == 1
    (_, _, synced) = node.engine.commits[-1]
    assert synced == (durability == FSYNC)


def test_qos_0_goes_at_once_and_is_kept_without_a_sync() -> None:
    node = warm()
    subscriber = node.subscriber()
    node.connect("p").publish()
    assert len(subscriber.take(Publish)) == 1
    node.commit()
    ((event,), _, synced) = node.engine.commits[-1]
    assert (event.durability, synced) == (OS, False)


def test_qos_0_is_never_synced_whatever_the_rule() -> None:
    node = warm(always(FSYNC))
    node.connect("p").publish()
    node.commit()
    assert node.engine.commits[-1][2] is False


@pytest.mark.parametrize("qos", [1, 2])
def test_durability_memory_acknowledges_and_goes_at_once_and_reaches_no_disk(qos: int) -> None:
    node = warm(always(MEMORY))
    subscriber = node.subscriber()
    publisher = node.connect("p")
    publisher.take(Connack)
    publisher.publish(qos=qos)
    assert publisher.take_all() == [Puback(1) if qos == 1 else Pubrec(1)]
    assert len(subscriber.take(Publish)) == 1
    node.commit()
    assert not any(events for events, _, _ in node.engine.commits)


def test_what_arrives_during_a_commit_goes_with_the_next_one() -> None:
    node = Node()
    publisher = node.connect("p")
    publisher.take(Connack)
    groups = len(node.engine.commits)
    for n in range(1, 6):
        publisher.publish(qos=1, packet_id=n)
    node.commit_one()
    assert publisher.take_all() == [Puback(1)]
    node.commit_one()
    assert publisher.take_all() == [Puback(n) for n in range(2, 6)]
    assert [len(events) for events, _, _ in node.engine.commits[groups:]] == [1, 4]


def test_a_crash_takes_back_nothing_that_anybody_has_seen() -> None:
    node = Node()
    subscriber = node.keeper()
    publisher = node.connect("p")
    publisher.take(Connack)
    publisher.publish("t", b"kept", qos=1, packet_id=1)
    publisher.publish("t", b"not kept", qos=1, packet_id=2)
    node.commit_one()
    assert publisher.take_all() == [Puback(1)]
    assert subscriber.payloads() == [b"kept"]
    node.crash()
    assert node.resume("k").payloads() == [b"kept"]


def test_a_qos_2_identifier_is_kept_with_its_message_so_that_a_crash_makes_no_duplicate() -> None:
    """[MQTT-4.3.3-10]"""
    node = Node()
    node.keeper().lose()
    publisher = node.resume("p")
    publisher.publish("t", b"once", qos=2, packet_id=9)
    node.commit_one()
    assert publisher.take(Pubrec) == [Pubrec(9)]
    node.crash()
    publisher = node.resume("p")
    publisher.publish("t", b"once", qos=2, packet_id=9, dup=True)
    node.commit()
    assert publisher.take(Pubrec) == [Pubrec(9)]
    publisher.send(Pubrel(9))
    node.commit()
    assert publisher.take(Pubcomp) == [Pubcomp(9)]
    node.crash()
    publisher = node.resume("p")
    publisher.send(Pubrel(9))
    node.commit()
    assert publisher.take(Pubcomp) == [Pubcomp(9, Reason.PACKET_IDENTIFIER_NOT_FOUND)]
    assert [message.payload for message in node.resume("k").acknowledge()] == [b"once"]


def test_a_group_that_grows_too_large_stops_reading_from_those_who_fill_it() -> None:
    node = Node(Limits(group_bytes=2000, receive_maximum=65535))
    publisher = node.connect("p", 4)
    for n in range(1, 9):
        publisher.publish("t", bytes(300), qos=1, packet_id=n)
    assert not publisher.wire.reading
    node.commit()
    assert publisher.wire.reading
    assert len(publisher.take(Puback)) == 8


def test_counters_balance() -> None:
    node = Node()
    subscriber, _ = node.subscriber("a/#", 1), node.subscriber("b", 1, "b")
    publisher = node.connect("p")
    for topic in ("a/1", "a/2", "b", "nobody"):
        publisher.publish(topic, qos=1)
        publisher.acknowledge()
    assert len(subscriber.acknowledge()) == 2
    assert (node.hub.traffic.received, node.hub.traffic.delivered) == (4, 3)


def test_what_processors_emit_goes_the_same_way_and_its_rows_with_it() -> None:
    node = warm()
    subscriber = node.subscriber()
    node.hub.emit("processor", [("t", b"1", 1, False), ("t", b"0", 0, False)], [(SESSIONS, ("x",), None)])
    node.turn()
    assert subscriber.payloads() == [b"0"]
    node.commit()
    assert subscriber.payloads() == [b"1"]
    events, state, _ = node.engine.commits[-1]
    assert len(events) == 2
    assert state == {SESSIONS: {("x",): None}}


# -- sessions


@pytest.mark.parametrize("version", [3, 4, 5])
def test_a_kept_session_goes_on_and_the_client_is_told(version: int) -> None:
    """[MQTT-3.2.2-3] [MQTT-3.1.2-5] [MQTT-3.1.2-6]"""
    node = Node()
    node.resume("k", version).subscribe("t")
    old = node.hub.sessions.all["k"]
    ends: tuple[Callable[[], None], ...] = (node.hub.clients.close_all, node.crash, node.restart)
    for end in ends:
        node.tick()
        node.commit()
        end()
        node.commit()
        client = node.resume("k", version)
        assert client.take(Connack)[0].session_present is (version > 3)
        assert client.session.grants == old.grants
        node.connect("p").publish("t", qos=1)
        assert len(client.acknowledge()) == 1


@pytest.mark.parametrize("version", [3, 4, 5])
def test_a_clean_start_ends_the_session_that_there_was(version: int) -> None:
    """[MQTT-3.1.2-4] [MQTT-3.2.2-2]"""
    node = Node()
    client = node.resume("k", version)
    client.subscribe("t")
    node.connect("p").publish("t", qos=1)
    node.commit()
    client.lose()
    client = node.connect("k", version)
    (connack,) = client.take(Connack)
    assert not connack.session_present
    assert not client.session.grants
    node.commit()
    assert client.take_all() == []
    assert node.engine.rows(SESSIONS) == node.engine.rows(SUBSCRIPTIONS) == []
    client.lose()
    assert "k" not in node.hub.sessions.all


def test_a_session_that_ends_in_the_same_breath_leaves_no_subscription_behind() -> None:
    node = Node()
    client = node.connect("k", expiry=FOREVER)
    ending = Disconnect(0, ((Property.SESSION_EXPIRY_INTERVAL, 0),))
    client.send(Subscribe(1, (Asked("t", 1),)), ending)
    node.commit()
    assert node.engine.rows(SESSIONS) == node.engine.rows(SUBSCRIPTIONS) == []


def test_a_clean_start_in_the_same_breath_leaves_nothing_of_the_old_row() -> None:
    node = Node()
    first = node.connect("k", clean=False, expiry=FOREVER)
    first.connection.receive(encode(Publish("t", b"x", 2, packet_id=5), 5), node.now)
    node.connect("k", expiry=FOREVER)
    node.commit()
    assert node.engine.rows(SESSIONS) == []


def test_a_session_without_expiry_ends_with_its_connection() -> None:
    node = Node()
    client = node.subscriber()
    client.lose()
    node.commit()
    assert not node.hub.sessions.all
    assert not node.hub.router.match("t")
    assert node.engine.rows(SESSIONS) == []


def test_a_kept_session_whose_client_returns_for_one_connection_only_leaves_no_row() -> None:
    node = Node()
    node.keeper().lose()
    client = node.connect("k", clean=False)
    assert client.take(Connack)[0].session_present
    node.commit()
    assert node.engine.rows(SESSIONS) == node.engine.rows(SUBSCRIPTIONS) == []
    node.connect("p").publish("t", qos=1)
    assert len(client.acknowledge()) == 1
    node.crash()
    assert not node.hub.sessions.all


def test_a_session_ends_when_its_expiry_interval_has_passed_also_across_a_restart() -> None:
    """[MQTT-3.1.2-23]"""
    node = Node()
    for name, seconds in (("a", 100), ("b", 200), ("c", FOREVER)):
        node.connect(name, expiry=seconds).lose()
    node.tick(99)
    assert set(node.hub.sessions.all) == {"a", "b", "c"}
    node.tick(2)
    assert set(node.hub.sessions.all) == {"b", "c"}
    node.commit()
    node.crash()
    assert set(node.hub.sessions.all) == {"b", "c"}
    node.tick(100)
    node.commit()
    assert set(node.hub.sessions.all) == {"c"}
    assert node.engine.keys(SESSIONS) == ["c"]


def test_a_session_that_has_expired_is_not_there_before_the_next_look_at_the_clock() -> None:
    """[MQTT-4.1.0-2]"""
    node = Node()
    node.connect("a", expiry=10).lose()
    node.now += 10 * SECOND
    assert not node.resume("a").take(Connack)[0].session_present


def test_a_session_expires_at_the_first_look_at_the_clock_after_its_interval() -> None:
    """[MQTT-4.1.0-2]"""
    node = Node()
    node.connect("a", expiry=2).lose()
    node.tick(1.5)
    assert "a" in node.hub.sessions.all
    node.tick(0.5)
    assert "a" not in node.hub.sessions.all


def test_a_session_does_not_expire_while_its_client_is_connected() -> None:
    node = Node()
    node.connect("a", expiry=10).lose()
    node.tick(5)
    client = node.connect("a", clean=False, expiry=10)
    node.tick(100)
    assert node.hub.sessions.all["a"] is client.session
    client.lose()
    node.tick(9)
    assert "a" in node.hub.sessions.all
    node.tick(2)
    assert "a" not in node.hub.sessions.all


def test_a_session_whose_client_was_connected_at_a_crash_counts_from_the_restart() -> None:
    node = Node()
    node.connect("a", expiry=50)
    node.tick(1)
    node.commit()
    node.now += 1000_000_000
    node.crash()
    assert "a" in node.hub.sessions.all
    node.tick(51)
    assert "a" not in node.hub.sessions.all


def test_clients_that_come_and_go_leave_nothing_behind() -> None:
    node = Node()
    for _ in range(3000):
        node.connect("a", expiry=1000, clean=False).lose()
        node.commit()
    assert len(node.hub.sessions._leaving) < 1100
    assert len(node.hub.sessions.all) == 1
    node.tick(1001)
    assert not node.hub.sessions.all


def test_a_session_of_3_1_1_lasts_as_long_as_the_cap_says() -> None:
    assert Node().resume(version=4).session.expiry == NEVER
    assert Node(Limits(max_session_expiry=7)).resume(version=4).session.expiry == 7


# -- takeover


def test_a_second_connection_takes_the_session_over_and_the_first_is_told() -> None:
    """[MQTT-3.1.4-3]"""
    node = Node()
    old = node.keeper("t")
    publisher = node.connect("p")
    publisher.publish("t", b"1", qos=1)
    node.commit()
    assert old.payloads() == [b"1"]
    new = node.resume("k")
    assert old.take_all() == [Disconnect(Reason.SESSION_TAKEN_OVER)]
    assert not old.open
    assert new.take(Connack)[0].session_present
    publisher.publish("t", b"2", qos=1)
    assert [(message.payload, message.dup) for message in new.acknowledge()] == [(b"1", True), (b"2", False)]
    old.connection.lost(node.now)
    assert new.session.connection is new.connection


def test_a_client_of_3_1_1_that_is_taken_over_is_just_closed() -> None:
    node = Node()
    old = node.resume("k", 4)
    old.take(Connack)
    new = node.resume("k", 5)
    assert not old.open
    assert old.take_all() == []
    assert new.take(Connack)[0].session_present


def test_what_was_being_published_when_the_session_was_taken_over_is_kept_once() -> None:
    """[MQTT-4.3.3-10]"""
    node = Node()
    subscriber = node.subscriber()
    old = node.resume("p")
    old.publish(qos=2, packet_id=3)
    new = node.connect("p", clean=False, expiry=FOREVER)
    new.take(Connack)
    new.publish(qos=2, packet_id=3, dup=True)
    node.commit()
    assert new.take_all() == [Pubrec(3)]
    assert len(subscriber.acknowledge()) == 1


# -- time


def test_rows_of_connected_sessions_are_brought_up_to_date_without_traffic_of_their_own() -> None:
    node = Node()
    node.keeper("mine")
    node.connect("p").publish("other", qos=1)
    node.commit()
    node.tick(61)
    node.commit()
    (row,) = node.engine.rows(SESSIONS)
    assert row[5] == node.log.committed  # its position


def test_progress_is_written_once_a_second_and_once_for_each_session() -> None:
    node = Node()
    client = node.keeper("t", 1)
    publisher = node.connect("p")
    node.tick()
    node.commit()
    before = len(node.engine.commits)
    for n in range(20):
        publisher.publish("t", str(n).encode(), qos=1)
        publisher.acknowledge()
    client.acknowledge()
    assert all(SESSIONS not in state for _, state, _ in node.engine.commits[before:])
    node.tick()
    node.commit()
    events, state, synced = node.engine.commits[-1]
    assert (events, list(state[SESSIONS]), synced) == ([], [("k",)], False)


def test_a_node_that_stops_tells_every_client() -> None:
    node = Node()
    v5, v4, stranger = node.connect("a"), node.connect("b", 4), node.open()
    for client in (v5, v4):
        client.take(Connack)
    node.hub.clients.close_all()
    assert v5.take_all() == [Disconnect(Reason.SERVER_SHUTTING_DOWN)]
    assert v4.take_all() == []
    assert not any(client.open for client in (v5, v4, stranger))
    assert not node.hub.clients.connections
    assert node.hub.clients.count == 0


# -- retained


def test_a_new_subscriber_gets_the_last_retained_message_of_each_topic() -> None:
    """[MQTT-3.3.1-5] [MQTT-3.3.1-8]"""
    node = Node()
    publisher = node.connect("p")
    for topic, payload, qos in (("a", b"1", 1), ("a", b"2", 0), ("a/b", b"3", 2), ("c", b"4", 1)):
        publisher.publish(topic, payload, qos, retain=True)
        publisher.acknowledge()
    publisher.publish("a", b"not retained", qos=1)
    publisher.acknowledge()
    node.crash()
    messages = node.subscriber("a/#", 1).acknowledge()
    assert {(m.topic, m.payload, m.qos, m.retain) for m in messages} == {("a", b"2", 0, True), ("a/b", b"3", 1, True)}


def test_an_empty_payload_removes_the_retained_message_and_is_given_to_subscribers() -> None:
    """[MQTT-3.3.1-6] [MQTT-3.3.1-7]"""
    node = Node()
    subscriber = node.subscriber("t", 1)
    publisher = node.connect("p")
    publisher.publish("t", b"1", qos=1, retain=True)
    publisher.acknowledge()
    publisher.publish("t", b"", qos=1, retain=True)
    publisher.acknowledge()
    assert subscriber.acknowledge()[-1].payload == b""
    assert node.engine.rows(RETAINED) == []
    node.crash()
    assert node.subscriber("t").take(Publish) == []


def test_the_retain_flag_is_for_new_subscribers_only_unless_retain_as_published() -> None:
    """[MQTT-3.3.1-12] [MQTT-3.3.1-13]"""
    node = Node()
    plain, keeping = node.connect("a"), node.connect("b")
    plain.subscribe("t", 1)
    keeping.subscribe("t", 1, retain_as_published=True)
    publisher = node.connect("p")
    for retain in (True, False):
        publisher.publish("t", b"x", qos=1, retain=retain)
        publisher.acknowledge()
    assert [message.retain for message in plain.acknowledge()] == [False, False]
    assert [message.retain for message in keeping.acknowledge()] == [True, False]


@pytest.mark.parametrize(("handling", "first", "again"), [(0, 1, 1), (1, 1, 0), (2, 0, 0)])
def test_retain_handling_says_when_retained_messages_are_given(handling: int, first: int, again: int) -> None:
    """[MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-11]"""
    node = Node()
    node.connect("p").publish("t", retain=True)
    client = node.connect("s")
    client.subscribe("t", 1, retain_handling=handling)
    assert len(client.acknowledge()) == first
    client.subscribe("t", 1, retain_handling=handling)
    assert len(client.acknowledge()) == again


def test_a_message_that_becomes_retained_while_a_client_subscribes_comes_once() -> None:
    node = Node()
    publisher, client = node.connect("p"), node.connect("s")
    publisher.publish("t", b"1", qos=1, retain=True)
    client.send(Subscribe(1, (Asked("t", 1),)))
    node.commit()
    assert client.take(Suback)
    assert client.payloads() == [b"1"]
    publisher.publish("u", b"0", retain=True)
    client.send(Subscribe(1, (Asked("u", 1),)))
    node.commit()
    assert client.payloads() == [b"0"]


def test_an_expired_retained_message_is_not_given() -> None:
    node = Node()
    node.connect("p").publish("t", retain=True, properties=((Property.MESSAGE_EXPIRY_INTERVAL, 5),))
    node.tick(4)
    (message,) = node.subscriber("t", client_id="a").take(Publish)
    assert message.properties == ((Property.MESSAGE_EXPIRY_INTERVAL, 1),)
    node.tick(1)
    assert node.subscriber("t", client_id="b").take(Publish) == []


def test_many_retained_messages_for_many_subscriptions_are_walked_through_and_not_gathered() -> None:
    node = Node(Limits(write_buffer=2000))
    publisher = node.connect("p")
    for n in range(500):
        publisher.publish(f"r/{n % 20}/{n}", b"x", retain=True)
    client = node.connect("s")
    client.jam()
    client.send(Subscribe(1, tuple(Asked("r/#" if n == 0 else f"+/{n}/#", 0) for n in range(20))))
    client.send(Subscribe(2, (Asked("r/#", 0),)))
    assert len(client.session._walks) == 20
    publisher.publish("r/0/0", b"new", retain=True)
    publisher.publish("r/another", b"new", retain=True)
    publisher.publish("r/1/1", b"", retain=True)
    client.unjam()
    messages = client.acknowledge()
    old = [message.topic for message in messages if message.retain]
    new = [(message.topic, message.payload) for message in messages if not message.retain]
    assert new == [("r/0/0", b"new"), ("r/another", b"new"), ("r/1/1", b"")]
    assert len(old) == 498 + sum(25 - (n == 1) for n in range(1, 20))
    assert client.session.live


def test_a_subscription_that_is_taken_away_gets_no_more_retained_messages() -> None:
    node = Node(Limits(write_buffer=300))
    publisher = node.connect("p")
    for n in range(100):
        publisher.publish(f"r/{n}", b"x", retain=True)
    client = node.connect("s")
    client.jam()
    client.send(Subscribe(1, (Asked("r/#", 1),)))
    node.hub.sessions.unsubscribe(client.session, "r/#")
    client.unjam()
    node.commit()
    assert client.take(Publish) == []
    assert client.session.live

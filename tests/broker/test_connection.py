"""CONNECT to DISCONNECT: what one connection may say, and what it is told."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.listener import Limits
from broker.mqtt.codec import encode
from broker.mqtt.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
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
    Unsuback,
    Unsubscribe,
    Will,
)
from broker.mqtt.properties import Property
from broker.mqtt.reason import Reason
from broker.router import Delivery
from broker.session import Session
from storage.interface import Event, StorageFull
from tests.broker.helpers import Node, number
from tests.broker.mqtt.cases import BAD, Case

VERSIONS = pytest.mark.parametrize("version", [3, 4, 5])


def connect(client_id: str = "c", version: int = 5, clean: bool = True, **more: int) -> Connect:
    return Connect(client_id, version, clean, more.get("keep_alive", 0), None, None, None)


@VERSIONS
def test_a_client_connects_subscribes_publishes_pings_and_leaves(version: int) -> None:
    node = Node()
    client = node.open(version)
    client.send(connect(version=version))
    (connack,) = client.take(Connack)
    assert (connack.reason, connack.session_present) == (Reason.SUCCESS, False)

    client.send(Subscribe(7, (Subscription("a/+", 1), Subscription("b", 2), Subscription("c", 0))))
    node.commit()
    assert client.take(Suback) == [Suback(7, (1, 2, 0))]  # [MQTT-3.8.4-1] [MQTT-3.8.4-2] [MQTT-3.8.4-6]

    client.publish("a/1", b"hello", qos=1, packet_id=9)
    (message,) = client.acknowledge()
    assert (message.topic, message.payload, message.qos, message.dup) == ("a/1", b"hello", 1, False)

    client.send(Unsubscribe(8, ("a/+",)))
    node.commit()
    assert client.take(Unsuback) == [Unsuback(8, (0,) if version == 5 else ())]  # [MQTT-3.10.4-4]
    client.publish("a/1")
    node.commit()
    assert client.take(Publish) == []

    client.send(Pingreq())
    assert client.take_all() == [Pingresp()]  # [MQTT-3.12.4-1]
    client.disconnect()
    assert not client.open
    assert client.take_all() == []


@VERSIONS
def test_a_second_connect_ends_the_connection(version: int) -> None:
    """[MQTT-3.1.0-2]"""
    client = Node().connect(version=version)
    client.take(Connack)
    client.send(connect(version=version))
    assert not client.open
    assert client.take_all() == ([Disconnect(Reason.PROTOCOL_ERROR)] if version == 5 else [])


@pytest.mark.parametrize(
    "packet",
    [Pingreq(), Publish("t", b""), Subscribe(1, (Subscription("t", 0),)), Disconnect(), Puback(1), Pubrel(1)],
    ids=lambda packet: type(packet).__name__,
)
def test_a_first_packet_other_than_connect_closes_without_a_word(packet: Packet) -> None:
    """[MQTT-3.1.0-1]"""
    client = Node().open(4)
    client.send(packet)
    assert not client.open
    assert client.take_all() == []


@pytest.mark.parametrize(
    "packet",
    [Connack(False, 0), Suback(1, (0,)), Unsuback(1, (0,)), Pingresp()],
    ids=lambda packet: type(packet).__name__,
)
def test_a_packet_that_only_servers_send_ends_the_connection(packet: Packet) -> None:
    client = Node().connect()
    client.take(Connack)
    client.send(packet)
    assert not client.open
    assert client.take_all() == [Disconnect(Reason.PROTOCOL_ERROR)]


def test_auth_without_a_method_ends_the_connection() -> None:
    client = Node().connect()
    client.take(Connack)
    method = ((Property.AUTHENTICATION_METHOD, "x"),)
    client.send(Auth(Reason.CONTINUE_AUTHENTICATION, method))
    assert client.take_all() == [Disconnect(Reason.PROTOCOL_ERROR)]
    assert not client.open


def test_an_authentication_method_is_refused_since_none_is_offered() -> None:
    node = Node()
    client = node.open()
    client.send(Connect("c", 5, True, 0, None, None, None, ((Property.AUTHENTICATION_METHOD, "SCRAM-SHA-1"),)))
    assert client.take_all() == [Connack(False, Reason.BAD_AUTHENTICATION_METHOD)]
    assert not client.open
    assert not node.hub.sessions.all


def test_an_unknown_protocol_version_is_answered_with_the_return_code_for_it() -> None:
    """[MQTT-3.1.2-2]"""
    client = Node().open(4)
    client.send_bytes(bytes.fromhex("100d 0004 4d515454 06 02 0000 0001 63"))
    assert client.take_all() == [Connack(False, Reason.UNSUPPORTED_PROTOCOL_VERSION)]
    assert not client.open


@pytest.mark.parametrize(("version", "reason"), [(5, Reason.SERVER_BUSY), (4, Reason.SERVER_UNAVAILABLE)])
def test_a_client_too_many_is_told_that_the_server_is_busy(version: int, reason: Reason) -> None:
    node = Node(Limits(max_connections=2))
    first, second = node.connect("a"), node.connect("b")
    third = node.open(version)
    third.send(connect("c", version))
    assert third.take_all() == [Connack(False, reason)]
    assert not third.open
    assert first.open
    assert second.open


def test_a_client_that_takes_its_own_session_over_is_none_too_many() -> None:
    node = Node(Limits(max_connections=2))
    old, other = node.connect("a"), node.connect("b")
    new = node.connect("a")
    assert (old.open, other.open, new.open) == (False, True, True)
    assert node.hub.clients.count == 2


def test_a_flood_of_connections_without_connect_is_bounded_and_the_oldest_give_way() -> None:
    node = Node(Limits(max_connections=3))
    served = node.connect("a")
    strangers = [node.open() for _ in range(10)]
    assert [client.open for client in strangers] == [False] * 7 + [True] * 3
    assert served.open
    strangers[-1].send(connect("b"))
    assert strangers[-1].take(Connack)[0].reason == Reason.SUCCESS


def test_an_empty_client_identifier_is_replaced_by_one_that_is_told() -> None:
    """[MQTT-3.1.3-6] [MQTT-3.1.3-7]"""
    node = Node()
    first, second = node.connect(""), node.connect("")
    given = [
        dict(client.take(Connack)[0].properties)[Property.ASSIGNED_CLIENT_IDENTIFIER] for client in (first, second)
    ]
    assert set(given) == set(node.hub.sessions.all)
    assert len(set(given)) == 2


def test_an_empty_client_identifier_of_mqtt_3_1_1_is_taken_with_a_clean_session() -> None:
    node = Node()
    first, second = node.connect("", 4), node.connect("", 4)
    assert first.open
    assert second.open
    assert len(node.hub.sessions.all) == 2


def test_the_connack_says_what_the_server_allows() -> None:
    limits = Limits(receive_maximum=17, max_packet_size=2048, topic_alias_maximum=3)
    (connack,) = Node(limits).connect().take(Connack)
    assert number(connack, Property.RECEIVE_MAXIMUM) == 17
    assert number(connack, Property.MAXIMUM_PACKET_SIZE) == 2048
    assert number(connack, Property.TOPIC_ALIAS_MAXIMUM) == 3
    assert number(connack, Property.SESSION_EXPIRY_INTERVAL) is None


def test_a_session_expiry_above_the_cap_is_cut_and_the_client_is_told() -> None:
    node = Node(Limits(max_session_expiry=60))
    (connack,) = node.connect(expiry=61).take(Connack)
    assert number(connack, Property.SESSION_EXPIRY_INTERVAL) == 60
    assert node.hub.sessions.all["c"].expiry == 60


# -- keep alive


@VERSIONS
def test_a_client_that_is_silent_for_one_and_a_half_keep_alives_is_closed(version: int) -> None:
    """[MQTT-3.1.2-22]"""
    node = Node()
    client = node.connect(version=version, keep_alive=10)
    client.take(Connack)
    node.tick(15)
    assert client.open
    node.tick(1)
    assert not client.open
    assert client.take_all() == ([Disconnect(Reason.KEEP_ALIVE_TIMEOUT)] if version == 5 else [])


def test_any_packet_keeps_a_client_alive() -> None:
    node = Node()
    client = node.connect(keep_alive=10)
    for _ in range(5):
        node.tick(14)
        client.send(Pingreq())
    assert client.open


def test_a_keep_alive_of_0_lets_a_client_be_silent_for_ever() -> None:
    node = Node()
    client = node.connect(keep_alive=0)
    node.tick(1_000_000)
    assert client.open


@pytest.mark.parametrize("asked", [0, 61, 65535])
def test_a_keep_alive_above_the_cap_is_replaced_and_the_client_is_told(asked: int) -> None:
    """[MQTT-3.1.2-21]"""
    node = Node(Limits(max_keep_alive=60))
    client = node.connect(keep_alive=asked)
    assert number(client.take(Connack)[0], Property.SERVER_KEEP_ALIVE) == 60
    node.tick(91)
    assert not client.open


def test_a_client_whose_socket_waits_for_the_disk_is_not_called_silent() -> None:
    node = Node(Limits(receive_maximum=1))
    client = node.connect(version=4, keep_alive=1)
    client.send(Publish("t", b"1", 1, packet_id=1), Publish("t", b"2", 1, packet_id=2))
    assert not client.wire.reading
    node.tick(100)
    assert client.open
    node.commit()
    assert client.wire.reading
    assert client.take(Puback) == [Puback(1), Puback(2)]


def test_a_connection_without_a_connect_is_closed_after_a_while() -> None:
    node = Node(Limits(connect_timeout=10))
    idle, trickling = node.open(), node.open()
    for byte in encode(connect(), 5)[:10]:
        node.tick(1)
        trickling.send_bytes(bytes((byte,)))
    assert idle.open
    assert trickling.open
    node.tick(1)
    assert not idle.open
    assert not trickling.open


# -- publishing


def test_a_qos_1_message_is_acknowledged_after_the_commit_and_not_before() -> None:
    """[MQTT-4.3.2-4]"""
    node = Node()
    client = node.connect()
    client.take(Connack)
    client.publish(qos=1, packet_id=77)
    assert client.take_all() == []
    node.commit()
    assert client.take_all() == [Puback(77)]


def test_a_qos_2_message_is_received_after_the_commit_and_completed_after_the_next() -> None:
    """[MQTT-4.3.3-8] [MQTT-4.3.3-11]"""
    node = Node()
    client = node.resume()
    client.take(Connack)
    client.publish(qos=2, packet_id=77)
    assert client.take_all() == []
    node.commit()
    assert client.take_all() == [Pubrec(77)]
    client.send(Pubrel(77))
    assert client.take_all() == []
    node.commit()
    assert client.take_all() == [Pubcomp(77)]


def test_a_qos_2_message_that_comes_twice_is_received_twice_and_kept_once() -> None:
    """[MQTT-4.3.3-10]"""
    node = Node()
    subscriber = node.subscriber()
    client = node.connect()
    client.take(Connack)
    client.publish(qos=2, packet_id=5)
    client.publish(qos=2, packet_id=5, dup=True)
    node.commit()
    client.publish(qos=2, packet_id=5, dup=True)
    node.commit()
    assert client.take_all() == [Pubrec(5)] * 3
    client.send(Pubrel(5))
    client.publish(qos=2, packet_id=5, payload=b"another")
    node.commit()
    assert client.take_all() == [Pubcomp(5), Pubrec(5)]
    assert [message.payload for message in subscriber.acknowledge()] == [b"x", b"another"]


def test_the_pubrec_of_a_message_that_is_repeated_comes_in_its_turn_and_not_before_it_is_kept() -> None:
    """[MQTT-4.6.0-3] [MQTT-4.3.3-10]"""
    node = Node()
    client = node.resume()
    client.publish(qos=2, packet_id=1)
    client.lose()
    client = node.open()
    client.send(connect(clean=False), Publish("t", b"x", 2, dup=True, packet_id=1), Publish("t", b"y", 2, packet_id=2))
    assert client.take(Pubrec) == []
    node.commit()
    assert client.take(Pubrec) == [Pubrec(1), Pubrec(2)]


def test_a_repeated_message_is_not_acknowledged_while_the_first_can_t_be_kept() -> None:
    node = Node()
    client = node.resume(version=4)
    client.publish(qos=2, packet_id=1)
    node.engine.fault = StorageFull("no space left on device")
    client.lose()
    node.commit()
    client = node.resume(version=5)
    client.publish(qos=2, packet_id=1, dup=True)
    for _ in range(3):
        node.tick()
        node.commit()
    assert client.take(Pubrec) == []
    node.engine.fault = None
    node.tick()
    node.commit()
    assert client.take(Pubrec) == [Pubrec(1)]


def test_a_qos_1_message_with_the_identifier_of_a_qos_2_message_is_refused() -> None:
    """[MQTT-2.2.1-3]"""
    node = Node()
    seen = node.subscriber()
    client = node.connect()
    client.take(Connack)
    client.publish("t", b"2", 2, 5)
    client.publish("t", b"1", 1, 5)
    client.publish("t", b"1", 1, 6)
    node.commit()
    assert client.take_all() == [Pubrec(5), Puback(5, Reason.PACKET_IDENTIFIER_IN_USE), Puback(6)]
    client.send(Pubrel(5))
    client.publish("t", b"1", 1, 5)
    node.commit()
    assert client.take_all() == [Pubcomp(5), Puback(5)]
    assert [message.payload for message in seen.acknowledge()] == [b"2", b"1", b"1"]


def test_a_pubrel_for_an_unknown_identifier_is_completed_with_the_reason_for_it() -> None:
    node = Node()
    v5, v4 = node.connect("a"), node.connect("b", 4)
    for client in (v5, v4):
        client.take(Connack)
        client.send(Pubrel(9))
    node.commit()
    assert v5.take_all() == [Pubcomp(9, Reason.PACKET_IDENTIFIER_NOT_FOUND)]
    assert v4.take_all() == [Pubcomp(9)]


def test_acknowledgements_come_in_the_order_of_the_messages() -> None:
    node = Node(rules=lambda topic: 0 if topic == "memory" else None)
    client = node.connect()
    client.take(Connack)
    client.send(*(Publish("memory" if n % 3 else "t", b"", 1, packet_id=n) for n in range(1, 20)))
    node.commit()
    assert client.take_all() == [Puback(n) for n in range(1, 20)]


@pytest.mark.parametrize("qos", [1, 2])
def test_more_unacknowledged_messages_than_the_receive_maximum_end_the_connection(qos: int) -> None:
    """[MQTT-3.3.4-7]"""
    node = Node(Limits(receive_maximum=3))
    client = node.connect()
    client.take(Connack)
    client.send(*(Publish("t", b"", qos, packet_id=n) for n in (1, 2, 3)))
    assert client.open
    client.send(Publish("t", b"", qos, packet_id=4))
    assert not client.open
    assert client.take_all() == [Disconnect(Reason.RECEIVE_MAXIMUM_EXCEEDED)]


def test_qos_2_messages_count_until_they_are_released() -> None:
    """[MQTT-3.3.4-7]"""
    node = Node(Limits(receive_maximum=3))
    client = node.connect()
    for n in range(1, 20):
        client.send(Publish("t", b"", 2, packet_id=n))
        node.commit()
        if n > 2:
            client.send(Pubrel(n - 2))
            node.commit()
    assert client.open
    client.send(Publish("t", b"", 2, packet_id=20), Publish("t", b"", 2, packet_id=21))
    assert not client.open


def test_a_3_1_1_client_with_too_many_unacknowledged_messages_waits() -> None:
    node = Node(Limits(receive_maximum=3))
    client = node.connect(version=4)
    client.take(Connack)
    client.send(*(Publish("t", b"", 1, packet_id=n) for n in range(1, 6)))
    assert client.open
    assert not client.wire.reading
    node.commit()
    assert client.wire.reading
    assert client.take_all() == [Puback(n) for n in range(1, 6)]


def test_a_topic_alias_stands_for_the_topic_that_it_was_set_to() -> None:
    node = Node()
    subscriber = node.subscriber()
    client = node.connect()
    alias = ((Property.TOPIC_ALIAS, 3),)
    client.publish("first", b"1", properties=alias)
    client.publish("", b"2", properties=alias)
    client.publish("second", b"3", properties=alias)
    client.publish("", b"4", properties=alias)
    messages = subscriber.take(Publish)
    assert [(message.topic, message.payload) for message in messages] == [
        ("first", b"1"),
        ("first", b"2"),
        ("second", b"3"),
        ("second", b"4"),
    ]
    assert all(message.properties == () for message in messages)


def test_a_topic_alias_ends_with_its_connection() -> None:
    node = Node()
    alias = ((Property.TOPIC_ALIAS, 3),)
    client = node.resume()
    client.publish("first", properties=alias)
    client.lose()
    client = node.resume()
    client.take(Connack)
    client.publish("", properties=alias)
    assert client.take_all() == [Disconnect(Reason.PROTOCOL_ERROR)]


def test_a_topic_alias_above_the_maximum_ends_the_connection() -> None:
    """[MQTT-3.3.2-9]"""
    client = Node(Limits(topic_alias_maximum=2)).connect()
    client.take(Connack)
    client.publish("t", properties=((Property.TOPIC_ALIAS, 3),))
    assert client.take_all() == [Disconnect(Reason.TOPIC_ALIAS_INVALID)]
    assert not client.open


@pytest.mark.parametrize("topic", ["$SYS", "$SYS/broker/uptime", "$share/g/t"])
def test_clients_cannot_publish_to_the_topics_of_the_server(topic: str) -> None:
    node = Node()
    watcher = node.subscriber("$SYS/#")
    v5, v4 = node.connect("a"), node.connect("b", 4)
    for client in (v5, v4):
        client.take(Connack)
        client.publish(topic, retain=True)
        client.publish(topic, qos=1, packet_id=1)
        client.publish("t", qos=1, packet_id=2)
        client.publish(topic, qos=2, packet_id=3)
    node.commit()
    forbidden = Reason.NOT_AUTHORIZED
    assert v5.take_all() == [Puback(1, forbidden), Puback(2), Pubrec(3, forbidden)]
    assert v4.take_all() == [Puback(1), Puback(2), Pubrec(3)]
    assert watcher.take(Publish) == []
    assert node.hub.forbidden == 6
    assert node.hub.retained.count == 0
    assert v5.connection.owed == v4.connection.owed == 0


def test_a_bridge_of_mosquitto_may_say_how_it_is() -> None:
    node = Node()
    watcher = node.subscriber("$SYS/broker/connection/+/state")
    topic = "$SYS/broker/connection/edge/state"
    bridge = node.connect("edge", 4, will=Will(topic, b"0", 1, True))
    bridge.publish(topic, b"1", qos=1, retain=True)
    bridge.lose()
    assert [message.payload for message in watcher.acknowledge()] == [b"1", b"0"]


def test_a_will_to_a_topic_of_the_server_is_refused() -> None:
    node = Node()
    client = node.open()
    client.send(Connect("c", 5, True, 0, Will("$SYS/x", b"", 0, False), None, None))
    assert client.take_all() == [Connack(False, Reason.NOT_AUTHORIZED)]
    assert not node.hub.sessions.all


def test_other_topics_that_begin_with_a_dollar_sign_are_ordinary_but_for_wildcards() -> None:
    """[MQTT-4.7.2-1]"""
    node = Node()
    everything, those = node.subscriber("#", client_id="a"), node.subscriber("$own/#", client_id="b")
    node.connect().publish("$own/topic")
    assert everything.payloads() == []
    assert those.payloads() == [b"x"]


# -- subscribing


def test_a_subscription_too_many_is_refused_and_a_replacement_is_not() -> None:
    node = Node(Limits(max_subscriptions=2))
    client = node.connect()
    client.send(Subscribe(1, tuple(Subscription(filter, 0) for filter in ("a", "b", "c", "a"))))
    node.commit()
    assert client.take(Suback) == [Suback(1, (0, 0, Reason.QUOTA_EXCEEDED, 0))]


def test_unsubscribing_from_what_was_not_subscribed_says_so() -> None:
    node = Node()
    client = node.connect()
    client.subscribe("a")
    client.send(Unsubscribe(1, ("a", "b")))
    node.commit()
    assert client.take(Unsuback) == [Unsuback(1, (Reason.SUCCESS, Reason.NO_SUBSCRIPTION_EXISTED))]


# -- disconnecting


def test_disconnect_can_change_when_the_session_ends() -> None:
    node = Node()
    client = node.connect(expiry=1000)
    client.disconnect(properties=((Property.SESSION_EXPIRY_INTERVAL, 20),))
    node.commit()
    node.crash()
    assert node.hub.sessions.all["c"].expiry == 20
    node.tick(21)
    node.commit()
    assert "c" not in node.hub.sessions.all


def test_disconnect_can_end_the_session_at_once() -> None:
    node = Node()
    client = node.keeper(client_id="c")
    client.disconnect(properties=((Property.SESSION_EXPIRY_INTERVAL, 0),))
    node.commit()
    assert "c" not in node.hub.sessions.all
    node.crash()
    assert "c" not in node.hub.sessions.all


def test_disconnect_cannot_prolong_a_session_that_ends_with_its_connection() -> None:
    client = Node().connect(expiry=0)
    client.take(Connack)
    client.disconnect(properties=((Property.SESSION_EXPIRY_INTERVAL, 20),))
    assert client.take_all() == [Disconnect(Reason.PROTOCOL_ERROR)]


def test_nothing_is_handled_that_comes_after_disconnect() -> None:
    node = Node()
    subscriber = node.subscriber()
    client = node.connect()
    client.send(Publish("t", b"before"), Disconnect(), Publish("t", b"after"))
    client.send(Publish("t", b"long after"))
    assert subscriber.payloads() == [b"before"]


# -- what is malformed


@pytest.mark.parametrize("case", [case for case in BAD if case.version], ids=lambda case: case.name)
def test_malformed_bytes_end_their_own_connection_with_one_line_in_the_log(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    """[MQTT-4.13.1-1]"""
    node = Node()
    other = node.subscriber()
    client = node.connect("evil", case.version)
    client.take(Connack)
    client.send_bytes(case.data)
    assert not client.open
    assert isinstance(case.expected, Reason)
    assert client.take_all() == ([Disconnect(case.expected)] if case.version == 5 else [])
    (line,) = caplog.messages
    assert "client 'evil' from 192.0.2.1" in line
    assert case.message in line
    other.publish("t")
    assert other.payloads() == [b"x"]


@pytest.mark.parametrize("case", [case for case in BAD if not case.version], ids=lambda case: case.name)
def test_a_malformed_connect_ends_the_connection_with_one_line_in_the_log(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    node = Node()
    client = node.open(5 if b"MQTT\x05" in case.data else 4)
    client.send_bytes(case.data)
    assert not client.open
    assert all(isinstance(packet, Connack) and packet.reason for packet in client.take_all())
    (line,) = caplog.messages
    assert "connection from 192.0.2.1" in line
    assert not node.hub.clients.connections


def test_a_connect_of_3_1_1_that_is_not_valid_is_not_answered_and_one_that_is_refused_is() -> None:
    """[MQTT-3.1.4-1]"""
    reserved_flag = bytes.fromhex("100d 0004 4d515454 04 03 003c 0001 63".replace(" ", ""))
    client = Node().open(4)
    client.send_bytes(reserved_flag)
    assert not client.open
    assert client.take_all() == []
    client = Node().open(4)
    client.send_bytes(bytes.fromhex("100c 0004 4d515454 04 00 003c 0000".replace(" ", "")))
    assert not client.open
    assert client.take_all() == [Connack(False, Reason.CLIENT_IDENTIFIER_NOT_VALID)]


def test_a_client_that_publishes_with_a_subscription_identifier_is_disconnected() -> None:
    """[MQTT-3.3.4-6]"""
    node = Node()
    other = node.subscriber()
    client = node.connect("c")
    client.take(Connack)
    client.publish("t", properties=((Property.SUBSCRIPTION_IDENTIFIER, 5),))
    assert client.take_all() == [Disconnect(Reason.PROTOCOL_ERROR)]
    assert other.payloads() == []


@given(st.binary(min_size=1, max_size=60), st.sampled_from([3, 4, 5]), st.booleans())
def test_random_bytes_do_no_more_than_end_their_own_connection(data: bytes, version: int, connected: bool) -> None:
    node = Node()
    other = node.subscriber()
    client = node.connect("evil", version) if connected else node.open(version)
    client.wire.jammed = True  # what it is told is of no interest: the version that it speaks is unknown
    client.send_bytes(data)
    client.send_bytes(data)
    node.commit()
    node.tick(20)
    other.take(Publish)
    other.publish("a/topic")
    assert other.payloads() == [b"x"]
    assert node.hub.crashed == 0


def test_a_line_in_the_log_holds_no_control_characters_and_not_all_of_a_long_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = Node().connect("\x1b[2J\n" + "x" * 1000)
    client.send_bytes(b"\x00\x00")
    (line,) = caplog.messages
    assert line.isprintable()
    assert len(line) < 300


def test_a_flood_of_errors_logs_some_lines_a_second_and_counts_the_others(caplog: pytest.LogCaptureFixture) -> None:
    node = Node()
    for _ in range(100):
        node.open().send_bytes(b"\x00\x00")
    assert len(caplog.messages) == 20
    node.tick(1)
    assert caplog.messages[20:] == ["80 more lines about clients were left out"]
    node.open().send_bytes(b"\x00\x00")
    assert len(caplog.messages) == 22


def test_an_error_of_ours_ends_only_the_connection_that_is_being_handled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node = Node()
    broken, whole = node.subscriber(client_id="broken"), node.subscriber(client_id="whole")
    publisher = node.connect("p")
    publisher.take(Connack)

    def give(session: Session, event: Event, delivery: Delivery[Session]) -> None:
        if session.client_id == "broken":
            raise ZeroDivisionError
        original(session, event, delivery)

    original = Session.give
    monkeypatch.setattr(Session, "give", give)
    publisher.publish("t", b"1", qos=1)
    node.commit()
    assert publisher.take_all() == [Puback(1)]
    assert [message.payload for message in whole.acknowledge()] == [b"1"]
    assert broken.wire.aborted
    assert node.hub.crashed == 1
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.levelno == logging.ERROR
    assert "client 'broken'" in record.message


def test_pubrels_for_identifiers_that_are_none_do_not_make_room_for_more_qos_2_messages() -> None:
    node = Node(Limits(receive_maximum=5))
    client = node.connect()
    client.take(Connack)
    for packet_id in range(1, 20):
        client.send(Publish("t", b"x", 2, packet_id=packet_id), Pubrel(60_000))
        node.commit()
        if not client.open:
            break
    (disconnect,) = client.take(Disconnect)
    assert disconnect.reason == Reason.RECEIVE_MAXIMUM_EXCEEDED
    assert packet_id == 6

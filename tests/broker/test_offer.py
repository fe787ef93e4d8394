"""What a listener does not offer: its CONNACK says so, and a client that asks for it nevertheless is told why not."""

from __future__ import annotations

import pytest

from broker.listener import Limits, Listener
from broker.mqtt.packets import (
    Connack,
    Connect,
    Disconnect,
    Puback,
    Publish,
    Pubrec,
    Suback,
    Subscribe,
    Subscription,
    Will,
)
from broker.mqtt.properties import Properties, Property, first
from broker.mqtt.reason import Reason
from tests.broker.helpers import Client, Node, number

OLD = pytest.mark.parametrize("version", [3, 4])
TEXT: Properties = ((Property.PAYLOAD_FORMAT_INDICATOR, 1),)
NOT_TEXT = b"\xff"


def connected(node: Node, version: int = 5, client_id: str = "c") -> Client:
    client = node.connect(client_id, version)
    client.take(Connack)
    return client


def refused(node: Node, packet: Connect) -> Connack:
    """The answer to a CONNECT."""
    client = node.open(packet.version)
    client.send(packet)
    assert not client.open
    (connack,) = client.take_all()
    assert isinstance(connack, Connack)
    return connack


def connect(will: Will | None = None, version: int = 5, properties: Properties = ()) -> Connect:
    return Connect("c", version, True, 0, will, None, None, properties)


# -- maximum QoS


@pytest.mark.parametrize(("limit", "told"), [(0, 0), (1, 1), (2, None)])
def test_a_client_is_told_the_highest_qos_where_it_is_not_2(limit: int, told: int | None) -> None:
    """[MQTT-3.2.2-9]"""
    (connack,) = Node(Limits(max_qos=limit)).connect().take(Connack)
    assert number(connack, Property.MAXIMUM_QOS) == told


@pytest.mark.parametrize("limit", [0, 1])
def test_a_publish_above_it_ends_the_connection_and_one_at_it_does_not(limit: int) -> None:
    """[MQTT-3.2.2-11]"""
    node = Node(Limits(max_qos=limit))
    client = connected(node)
    client.publish(qos=limit)
    assert client.open
    client.publish(qos=limit + 1, packet_id=2)
    assert client.take(Disconnect) == [Disconnect(Reason.QOS_NOT_SUPPORTED)]
    assert client.wire.clauses == ["MQTT-3.2.2-11"]
    assert node.hub.traffic.received == 1


@OLD
def test_before_mqtt_5_the_connection_is_closed(version: int) -> None:
    client = connected(Node(Limits(max_qos=1)), version)
    client.publish(qos=2)
    assert not client.open
    assert client.take_all() == []


def test_a_will_above_it_is_refused() -> None:
    """[MQTT-3.2.2-12]"""
    node = Node(Limits(max_qos=1))
    assert refused(node, connect(Will("t", b"", 2, False))).reason == Reason.QOS_NOT_SUPPORTED
    assert not node.hub.sessions.all
    assert node.connect(will=Will("t", b"", 1, False)).open


def test_a_subscription_is_taken_at_every_qos_and_granted_at_the_highest_there_is() -> None:
    """[MQTT-3.2.2-10]"""
    node = Node(Limits(max_qos=1))
    client = connected(node)
    assert [client.subscribe("t", qos) for qos in (0, 1, 2)] == [0, 1, 1]
    node.listener = Listener("other", Limits())
    connected(node, client_id="p").publish(qos=2)
    assert [message.qos for message in client.acknowledge()] == [1]


# -- retained messages


def test_where_nothing_is_retained_a_client_is_told_and_a_publish_with_retain_ends_its_connection() -> None:
    """[MQTT-3.2.2-14]"""
    node = Node(Limits(retain_available=False))
    client = node.connect()
    assert number(client.take(Connack)[0], Property.RETAIN_AVAILABLE) == 0
    client.publish(retain=True)
    assert client.take_all() == [Disconnect(Reason.RETAIN_NOT_SUPPORTED)]
    assert node.hub.retained.count == 0


@OLD
def test_before_mqtt_5_a_publish_with_retain_closes_it(version: int) -> None:
    client = connected(Node(Limits(retain_available=False)), version)
    client.publish(retain=True)
    assert not client.open


def test_where_nothing_is_retained_a_will_with_retain_is_refused() -> None:
    """[MQTT-3.2.2-13]"""
    node = Node(Limits(retain_available=False))
    assert refused(node, connect(Will("t", b"", 0, True))).reason == Reason.RETAIN_NOT_SUPPORTED


def test_where_nothing_is_retained_a_subscription_brings_no_retained_messages_of_other_listeners() -> None:
    node = Node()
    connected(node, client_id="p").publish("t", b"kept", retain=True)
    node.listener = Listener("plain", Limits(retain_available=False))
    client = connected(node)
    client.subscribe("t")
    assert client.acknowledge() == []


# -- subscriptions


@pytest.mark.parametrize(
    ("limits", "property", "filter", "properties", "reason"),
    [
        (
            Limits(wildcard_subscription_available=False),
            Property.WILDCARD_SUBSCRIPTION_AVAILABLE,
            "a/+/b",
            (),
            Reason.WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED,
        ),
        (
            Limits(wildcard_subscription_available=False),
            Property.WILDCARD_SUBSCRIPTION_AVAILABLE,
            "$share/g/#",
            (),
            Reason.WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED,
        ),
        (
            Limits(shared_subscription_available=False),
            Property.SHARED_SUBSCRIPTION_AVAILABLE,
            "$share/g/t",
            (),
            Reason.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED,
        ),
        (
            Limits(subscription_identifier_available=False),
            Property.SUBSCRIPTION_IDENTIFIER_AVAILABLE,
            "t",
            ((Property.SUBSCRIPTION_IDENTIFIER, 7),),
            Reason.SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED,
        ),
    ],
)
def test_a_client_is_told_what_subscriptions_there_are_not_and_asking_for_one_ends_its_connection(
    limits: Limits, property: Property, filter: str, properties: Properties, reason: Reason
) -> None:
    node = Node(limits)
    client = node.connect()
    assert number(client.take(Connack)[0], property) == 0
    client.subscribe("plain")
    client.send(Subscribe(1, (Subscription("b", 0), Subscription(filter, 0)), properties))
    node.commit()
    assert client.take_all() == [Disconnect(reason)]
    node.listener = Listener("all", Limits())
    (connack,) = node.connect("d").take(Connack)
    assert number(connack, property) is None


@OLD
@pytest.mark.parametrize("filter", ["a/+", "#", "$share/g/t"])
def test_before_mqtt_5_such_a_subscription_is_refused_in_the_suback(version: int, filter: str) -> None:
    node = Node(Limits(wildcard_subscription_available=False, shared_subscription_available=False))
    client = connected(node, version)
    client.send(Subscribe(1, (Subscription("t", 0), Subscription(filter, 0))))
    node.commit()
    assert client.take_all() == [Suback(1, (0, 0x80))]


def test_nothing_of_a_subscribe_that_ends_its_connection_is_granted() -> None:
    node = Node(Limits(wildcard_subscription_available=False))
    client = node.resume()
    client.send(Subscribe(1, (Subscription("t", 0), Subscription("#", 0))))
    node.commit()
    assert node.hub.sessions.all["c"].grants == {}


# -- payload format


@pytest.mark.parametrize(("qos", "answer"), [(1, Puback), (2, Pubrec)])
def test_a_payload_that_is_not_the_text_that_it_says_is_refused_where_it_is_checked(
    qos: int, answer: type[Puback | Pubrec]
) -> None:
    node = Node(Limits(check_payload_format=True, receive_maximum=1))
    seen = node.subscriber()
    client = connected(node)
    for packet_id in (1, 2):  # the second finds that the first takes nothing of Receive Maximum any more
        client.publish("t", NOT_TEXT, qos, packet_id, properties=TEXT)
        node.commit()
        assert client.take_all() == [answer(packet_id, Reason.PAYLOAD_FORMAT_INVALID)]
    client.publish("t", "ü".encode(), qos, 1, properties=TEXT)
    client.send_bytes(b"")
    node.commit()
    assert client.take_all() == [answer(1)]
    assert seen.payloads() == ["ü".encode()]
    assert node.hub.refused_messages == 2


def test_the_refusal_of_a_payload_comes_in_the_turn_of_its_message() -> None:
    """[MQTT-4.6.0-2]"""
    node = Node(Limits(check_payload_format=True))
    client = connected(node)
    client.send(
        Publish("t", b"1", 1, packet_id=1),
        Publish("t", NOT_TEXT, 1, packet_id=2, properties=TEXT),
        Publish("t", b"3", 1, packet_id=3),
    )
    node.commit()
    assert client.take_all() == [Puback(1), Puback(2, Reason.PAYLOAD_FORMAT_INVALID), Puback(3)]


def test_at_qos_0_it_ends_the_connection() -> None:
    node = Node(Limits(check_payload_format=True))
    client = connected(node)
    client.publish("t", NOT_TEXT, properties=TEXT)
    assert client.take_all() == [Disconnect(Reason.PAYLOAD_FORMAT_INVALID)]


def test_a_will_that_is_not_the_text_that_it_says_is_refused() -> None:
    node = Node(Limits(check_payload_format=True))
    connack = refused(node, connect(Will("t", NOT_TEXT, 0, False, TEXT)))
    assert connack.reason == Reason.PAYLOAD_FORMAT_INVALID
    assert node.connect(will=Will("t", NOT_TEXT, 0, False)).open


def test_where_payloads_are_not_checked_whatever_they_say_is_passed_on() -> None:
    node = Node()
    seen = node.subscriber()
    connected(node).publish("t", NOT_TEXT, properties=TEXT)
    (message,) = seen.acknowledge()
    assert (message.payload, message.properties) == (NOT_TEXT, TEXT)


# -- response information


def response_information(client: Client) -> object:
    (connack,) = client.take(Connack)
    return first(connack.properties, Property.RESPONSE_INFORMATION)


ASKED: Properties = ((Property.REQUEST_RESPONSE_INFORMATION, 1),)


@pytest.mark.parametrize(
    ("prefix", "client_id", "told"),
    [
        ("responses/%c/", "c1", "responses/c1/"),
        ("%c/%c", "%c", "%c/%c"),
        ("answers/", "a/b", "answers/"),
        ("", "c1", None),
        ("responses/%c/", "c+", None),
        ("responses/%c/", "#", None),
        ("answers/", "c+", "answers/"),
        ("responses/%u/", "c1", None),
        ("r" * 65434 + "%c", "c" * 100, "r" * 65434 + "c" * 100),
        ("r" * 65434 + "%c", "c" * 101, None),
    ],
)
def test_a_client_that_asks_is_told_where_its_responses_go(prefix: str, client_id: str, told: str | None) -> None:
    """[MQTT-3.1.2-28]"""
    node = Node(Limits(response_topic_prefix=prefix))
    assert response_information(node.connect(client_id, properties=ASKED)) == told
    assert response_information(node.connect("d")) is None
    assert response_information(node.connect("e", properties=((Property.REQUEST_RESPONSE_INFORMATION, 0),))) is None


def test_a_client_without_an_identifier_is_told_by_the_one_that_it_is_given() -> None:
    node = Node(Limits(response_topic_prefix="r/%c"))
    (connack,) = node.connect("", properties=ASKED).take(Connack)
    given = first(connack.properties, Property.ASSIGNED_CLIENT_IDENTIFIER)
    assert isinstance(given, str)
    assert first(connack.properties, Property.RESPONSE_INFORMATION) == f"r/{given}"


# -- another server


@pytest.mark.parametrize("reason", [Reason.USE_ANOTHER_SERVER, Reason.SERVER_MOVED])
def test_a_server_that_sends_its_clients_elsewhere_tells_them_where(reason: Reason) -> None:
    node = Node(Limits(redirect=reason, server_reference="other.example:1883"))
    connack = refused(node, connect())
    assert connack == Connack(False, reason, ((Property.SERVER_REFERENCE, "other.example:1883"),))
    assert not node.hub.sessions.all
    assert not node.hub.clients.connections


@OLD
def test_before_mqtt_5_it_is_unavailable(version: int) -> None:
    node = Node(Limits(redirect=Reason.SERVER_MOVED, server_reference="other.example:1883"))
    assert refused(node, connect(version=version)) == Connack(False, Reason.SERVER_UNAVAILABLE)


def test_a_server_may_send_them_away_without_saying_where() -> None:
    node = Node(Limits(redirect=Reason.USE_ANOTHER_SERVER))
    assert refused(node, connect()) == Connack(False, Reason.USE_ANOTHER_SERVER)


def test_a_listener_that_sends_its_clients_elsewhere_leaves_those_of_others_alone() -> None:
    node = Node()
    client = connected(node)
    node.listener = Listener("left", Limits(redirect=Reason.SERVER_MOVED))
    assert refused(node, connect()).reason == Reason.SERVER_MOVED
    assert client.open

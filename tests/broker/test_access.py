"""What rules and quotas forbid does not happen: the client is told where its version can say so, and it is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.acl import Policy, parse
from broker.auth import Access, Check, Verdict
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
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Subscription,
    Will,
)
from broker.mqtt.properties import Property
from broker.mqtt.reason import Reason
from broker.quotas import Meter, Quotas
from broker.rights import LEVELS
from storage.interface import WILLS
from tests.broker.helpers import FOREVER, Client, Node


class Believes:
    """Believes every user name."""

    def authenticate(self, check: Check) -> None:
        check.answer(Verdict(Reason.SUCCESS, check.applicant.username or ""))


def policy(*lines: str, default: bool = False) -> Policy:
    return Policy(parse("\n".join(lines), "acl"), default)


def guarded(*lines: str, default: bool = False, mount: str = "") -> Node:
    """A node whose clients meet these rules."""
    node = Node()
    access = Access(Believes(), authorizer=policy(*lines, default=default))
    node.listener = Listener("front", node.limits, mount, access=access)
    return node


def bounded(quotas: Quotas) -> Node:
    node = Node()
    node.listener = Listener("front", node.limits, meter=Meter(quotas, node.now))
    return node


def at_the_back(node: Node, client_id: str = "back", filter: str = "#") -> Client:
    """A subscriber on a listener without rules, which sees everything."""
    listener, node.listener = node.listener, None
    client = node.subscriber(filter, client_id=client_id)
    node.listener = listener
    return client


def change_rules(node: Node, *lines: str, default: bool = False) -> None:
    assert node.listener is not None
    assert node.listener.access is not None
    node.listener.access = replace(node.listener.access, authorizer=policy(*lines, default=default))
    node.hub.clients.rules_changed(node.listener)


# -- publish


@pytest.mark.parametrize("retain", [True, False])
def test_a_message_that_an_mqtt_5_client_may_not_publish_is_refused_with_its_reason(retain: bool) -> None:
    node = guarded("allow publish up/%c")
    seen = at_the_back(node)
    client = node.connect("c")
    client.take(Connack)
    client.publish("up/d", qos=1, packet_id=1, retain=retain)
    client.publish("up/d", qos=2, packet_id=2, retain=retain)
    client.publish("up/d", retain=retain)
    client.publish("up/c", qos=1, packet_id=3)
    node.commit()
    assert client.take_all() == [Puback(1, Reason.NOT_AUTHORIZED), Pubrec(2, Reason.NOT_AUTHORIZED), Puback(3)]
    assert [message.topic for message in seen.acknowledge()] == ["up/c"]
    assert node.hub.forbidden == 3
    assert node.hub.retained.count == 0
    assert client.connection.owed == 0
    assert not client.connection.unreleased
    assert not client.session.received


@pytest.mark.parametrize("version", [3, 4])
def test_before_mqtt_5_it_is_acknowledged_and_dropped_and_counted(
    version: int, caplog: pytest.LogCaptureFixture
) -> None:
    node = guarded("allow publish up/%c")
    seen = at_the_back(node)
    client = node.connect("c", version)
    client.take(Connack)
    client.publish("up/d", qos=1, packet_id=1)
    client.publish("up/d", qos=2, packet_id=2)
    client.send(Pubrel(2))
    client.publish("up/d")
    node.commit()
    assert [type(packet).__name__ for packet in client.take_all()] == ["Puback", "Pubrec", "Pubcomp"]
    assert seen.acknowledge() == []
    assert node.hub.forbidden == 3
    assert client.open
    assert (
        "client 'c' from 192.0.2.1:40001 at front: may not publish to 'up/d' (reason 0x87); message dropped"
        in caplog.text
    )


def test_a_topic_alias_opens_no_topic() -> None:
    node = guarded("allow publish up/%c")
    client = node.connect("c")
    client.take(Connack)
    client.publish("up/d", qos=1, packet_id=1, properties=((Property.TOPIC_ALIAS, 1),))
    client.publish("", qos=1, packet_id=2, properties=((Property.TOPIC_ALIAS, 1),))
    node.commit()
    assert client.take_all() == [Puback(1, Reason.NOT_AUTHORIZED), Puback(2, Reason.NOT_AUTHORIZED)]


def test_what_one_client_may_publish_opens_nothing_to_another() -> None:
    node = guarded("allow publish up/%c", "allow publish for/%u")
    seen = at_the_back(node)
    clients = [node.open() for _ in range(2)]
    for client, name in zip(clients, "ab", strict=True):
        client.send(Connect(name, 5, True, 0, None, name.upper(), b""))
    for _ in range(2):
        for client in clients:
            for topic in ("up/a", "up/b", "for/A", "for/B", "up/c"):
                client.publish(topic, client.session.client_id.encode())
    assert [(m.topic, m.payload) for m in seen.acknowledge()] == [
        ("up/a", b"a"),
        ("for/A", b"a"),
        ("up/b", b"b"),
        ("for/B", b"b"),
    ] * 2


@pytest.mark.parametrize("client_id", ["+", "#", "x/up", "$SYS"])
def test_no_client_identifier_opens_more_than_a_topic_of_its_own(client_id: str) -> None:
    node = guarded("allow all %c/#")
    seen = at_the_back(node)
    client = node.connect(client_id)
    client.take(Connack)
    for topic in ("x/up", "x/up/y", "other", "$SYS/x"):
        client.publish(topic)
    assert [client.subscribe(filter) for filter in ("#", "+/#", "x/up/#", "$SYS/#", "$SYS/x")] == [0x87] * 5
    assert seen.acknowledge() == []


def test_without_a_client_identifier_the_one_that_was_assigned_counts() -> None:
    node = guarded("allow publish up/%c")
    seen = at_the_back(node)
    client = node.connect("")
    client.publish(f"up/{client.session.client_id}")
    client.publish("up/")
    assert len(seen.acknowledge()) == 1


def test_a_will_that_may_not_be_published_refuses_the_connection() -> None:
    node = guarded("allow publish up/%c")
    client = node.open()
    client.send(Connect("c", 5, True, 0, Will("up/d", b"", 0, False), None, None))
    assert client.take_all() == [Connack(False, Reason.NOT_AUTHORIZED)]
    assert not client.open
    assert node.hub.sessions.all == {}
    assert node.connect("c", will=Will("up/c", b"", 0, False)).open


def test_a_will_that_may_not_be_published_any_more_is_dropped_and_counted() -> None:
    node = guarded("allow publish up/%c")
    seen = at_the_back(node)
    client = node.connect("c", will=Will("up/c", b"gone", 0, False))
    change_rules(node, "deny publish up/c")
    client.lose()
    node.commit()
    assert seen.acknowledge() == []
    assert node.hub.forbidden == 1
    assert node.engine.keys(WILLS) == []
    change_rules(node, "allow publish up/c")
    node.connect("c", will=Will("up/c", b"gone", 0, False)).lose()
    assert [message.payload for message in seen.acknowledge()] == [b"gone"]


def test_topics_below_a_mount_point_are_asked_about_in_full() -> None:
    node = guarded("allow all site/%c/#", mount="site/")
    seen = at_the_back(node)
    client = node.connect("c")
    client.publish("c/x")
    client.publish("site/c/x")
    assert [message.topic for message in seen.acknowledge()] == ["site/c/x"]
    assert [client.subscribe(filter) for filter in ("c/#", "site/c/#")] == [2, 0x87]


def test_the_topics_that_are_remembered_are_bounded() -> None:
    node = guarded("allow publish #")
    client = node.connect("c")
    for n in range(1500):
        client.connection.receive(encode(Publish(f"t/{n}", b""), 5), node.now)
    client.publish("x" * 1000)
    node.turn()
    assert len(client.connection.permitted) <= 1000
    assert "x" * 1000 not in client.connection.permitted
    assert node.hub.traffic.received == 1501


# -- subscribe


@pytest.mark.parametrize(("version", "code"), [(5, 0x87), (4, 0x80)])
def test_a_subscription_that_is_not_allowed_is_refused_and_those_beside_it_are_granted(version: int, code: int) -> None:
    node = guarded("allow read down/%c/#")
    client = node.connect("c", version)
    client.take(Connack)
    asked = ("down/c/+", "down/#", "$share/g/down/+/x", "down/c/#")
    client.send(Subscribe(1, tuple(Subscription(filter, 1) for filter in asked)))
    assert client.take(Suback) == [Suback(1, (1, code, code, 1))]
    assert set(client.session.grants) == {"down/c/+", "down/c/#"}
    assert node.hub.forbidden_subscriptions == 2


# -- receive


def test_a_message_that_a_subscriber_may_not_receive_is_not_given_and_is_counted() -> None:
    node = guarded("allow subscribe #", "deny receive secret/#", "allow receive #", "allow publish #")
    subscriber = node.subscriber()
    other = at_the_back(node)
    for qos in (0, 1, 2):
        subscriber.publish("secret/a", qos=qos, packet_id=qos and 10 + qos)
        subscriber.publish("open/a", qos=qos, packet_id=qos and 20 + qos)
    assert [message.topic for message in subscriber.acknowledge()] == ["open/a"] * 3
    assert sorted(message.topic for message in other.acknowledge()) == ["open/a"] * 3 + ["secret/a"] * 3
    assert node.hub.dropped_denied == 3


def test_a_retained_message_that_a_subscriber_may_not_receive_is_not_given() -> None:
    node = guarded("allow subscribe #", "deny receive secret/#", "allow receive #", "allow publish #")
    publisher = node.connect("p")
    for topic in ("secret/a", "open/a"):
        publisher.publish(topic, retain=True)
    node.commit()
    subscriber = node.connect("s")
    subscriber.subscribe("#")
    assert [message.topic for message in subscriber.acknowledge()] == ["open/a"]
    assert node.hub.dropped_denied == 1


def test_what_came_while_a_subscriber_was_away_is_asked_about_when_it_returns() -> None:
    node = guarded("allow subscribe #", "deny receive secret/#", "allow receive #", "allow publish #")
    keeper = node.keeper()
    keeper.lose()
    publisher = node.connect("p")
    for topic in ("secret/a", "open/a", "secret/b"):
        publisher.publish(topic, qos=1)
    node.commit()
    assert [message.topic for message in node.resume("k").acknowledge()] == ["open/a"]
    assert node.hub.dropped_denied == 2


def return_as(node: Node, username: str, *more: Packet) -> Client:
    """The client k comes back to its session as this user."""
    client = node.open()
    expiry = ((Property.SESSION_EXPIRY_INTERVAL, FOREVER),)
    client.send(Connect("k", 5, False, 0, None, username, b"", expiry), *more)
    return client


def test_a_session_of_nobody_that_a_user_takes_up_is_asked_about_anew() -> None:
    node = guarded("deny receive secret/# user=alice", "allow all #")
    keeper = return_as(node, "", Subscribe(1, (Subscription("#", 1),)))
    node.commit()
    publisher = node.connect("p")
    for username, given in (("", 1), ("alice", 0)):
        keeper.lose()
        publisher.publish("secret/a", qos=1)
        node.commit()
        keeper = return_as(node, username)
        assert len(keeper.acknowledge()) == given


def test_a_subscription_made_while_others_catch_up_does_not_go_around_the_rules() -> None:
    node = guarded("deny receive secret/#", "allow all #")
    return_as(node, "bob", Subscribe(1, (Subscription("#", 1),))).lose()
    node.connect("p").publish("secret/a", qos=1)
    node.commit()
    keeper = return_as(node, "bob", Subscribe(1, (Subscription("secret/+", 1),)))
    assert keeper.acknowledge() == []
    assert node.hub.dropped_denied == 1


def test_rules_that_change_hold_for_a_subscriber_that_is_behind() -> None:
    node = guarded("allow all #")
    keeper = return_as(node, "bob", Subscribe(1, (Subscription("#", 1),)))
    node.commit()
    publisher = node.connect("p")
    keeper.jam()
    for n in range(2):
        publisher.publish("secret/a", b"1", qos=1, packet_id=n + 1)
        node.commit()
    keeper.unjam()
    assert keeper.payloads() == [b"1", b"1"]
    keeper.jam()
    publisher.publish("secret/a", b"2", qos=1)
    node.commit()
    change_rules(node, "deny receive secret/#", "allow all #")
    keeper.unjam()
    assert keeper.payloads() == []


def test_no_local_and_identifiers_do_not_go_around_the_rules() -> None:
    node = guarded("allow subscribe #", "deny receive secret/#", "allow receive #", "allow publish #")
    client = node.connect("c")
    client.take(Connack)
    client.subscribe("secret/#", identifier=7)
    client.subscribe("#", no_local=True, retain_as_published=True)
    at_the_back(node)
    client.publish("secret/a")
    node.connect("d").publish("secret/b", qos=1)
    node.commit()
    assert client.take(Publish) == []


def test_a_message_in_flight_that_may_not_be_received_any_more_is_not_sent_again() -> None:
    node = guarded("allow all #")
    keeper = node.keeper()
    publisher = node.connect("p")
    publisher.publish("a", qos=1, packet_id=1)
    publisher.publish("b", qos=2, packet_id=2)
    publisher.publish("c", qos=1, packet_id=3)
    node.commit()
    assert len(keeper.take(Publish)) == 3
    keeper.lose()
    change_rules(node, "allow all c")
    again = node.resume("k")
    assert [message.topic for message in again.take(Publish)] == ["c"]
    assert node.hub.dropped_denied == 2
    again.acknowledge()
    assert again.session.unreceived == again.session.uncompleted == {}


# -- rules that change


def test_rules_that_change_hold_at_once_for_those_who_are_connected() -> None:
    node = guarded("allow all #")
    subscriber = node.subscriber()
    publisher = node.connect("p")
    publisher.take(Connack)

    def publish() -> tuple[list[str], list[int]]:
        for n, topic in enumerate(("a", "b"), 1):
            publisher.publish(topic, qos=1, packet_id=n)
        node.commit()
        return [m.topic for m in subscriber.acknowledge()], [packet.reason for packet in publisher.take(Puback)]

    assert publish() == (["a", "b"], [0, 0])
    change_rules(node, "deny receive b", "allow all #")
    assert publish() == (["a"], [0, 0])
    change_rules(node, "deny publish a client=p", "allow all #")
    assert publish() == (["b"], [0x87, 0])
    assert subscriber.subscribe("x") == 2
    change_rules(node, "allow publish #")
    assert publish() == ([], [0, 0])
    assert subscriber.subscribe("y") == 0x87
    change_rules(node, default=True)
    assert publish() == (["a", "b"], [0, 0])


def test_users_that_are_expelled_are_disconnected_unless_their_certificates_say_who_they_are() -> None:
    node = guarded(default=True)
    by_password, by_certificate, other = (node.open() for _ in range(3))
    by_certificate.wire.identity = "alice"
    for n, (client, name) in enumerate(((by_password, "alice"), (by_certificate, "alice"), (other, "bob"))):
        client.send(Connect(str(n), 5, True, 0, None, name, b""))
        client.take(Connack)
    back = at_the_back(node)
    assert node.listener is not None
    node.hub.clients.expel(node.listener, {"alice", ""})
    node.turn()
    assert by_password.take_all() == [Disconnect(Reason.NOT_AUTHORIZED)]
    assert [client.open for client in (by_password, by_certificate, other, back)] == [False, True, True, True]


def test_rules_of_one_listener_are_not_those_of_another() -> None:
    node = guarded("deny all #")
    back = at_the_back(node)
    front = node.connect("front")
    front.publish("t", b"no")
    back.publish("t", b"yes")
    assert back.payloads() == [b"yes"]


# -- quotas


@pytest.mark.parametrize(
    ("version", "answers"),
    [
        (5, [Puback(1, Reason.TOPIC_NAME_INVALID), Pubrec(2, Reason.TOPIC_NAME_INVALID)]),
        (4, [Puback(1), Pubrec(2)]),
    ],
)
def test_a_topic_of_more_levels_or_bytes_than_may_be_is_refused(version: int, answers: list[Puback | Pubrec]) -> None:
    node = bounded(Quotas(topic_levels=3, topic_length=12))
    client = node.connect("c", version)
    client.take(Connack)
    client.publish("a/b/c/d", qos=1, packet_id=1)
    client.publish("x" * 13, qos=2, packet_id=2)
    client.publish("a/b/c", b"", qos=0)
    node.commit()
    assert client.take_all() == answers
    assert node.hub.forbidden == 2
    client.send(Subscribe(3, (Subscription("a/b/c/#", 0), Subscription("a/+/#", 0))))
    refused = Reason.TOPIC_FILTER_INVALID if version == 5 else 0x80
    assert client.take(Suback) == [Suback(3, (refused, 0))]
    assert client.open


def test_a_will_with_a_topic_that_is_too_long_refuses_the_connection() -> None:
    client = bounded(Quotas(topic_length=3)).open()
    client.send(Connect("c", 5, True, 0, Will("abcd", b"", 0, False), None, None))
    assert client.take_all() == [Connack(False, Reason.TOPIC_NAME_INVALID)]


def test_a_client_that_runs_ahead_of_its_rate_waits_and_loses_nothing() -> None:
    node = bounded(Quotas(message_rate=10))
    seen = at_the_back(node)
    client = node.connect("c")
    client.take(Connack)
    client.send(*(Publish("t", bytes((n,))) for n in range(10)))
    assert client.wire.reading
    client.send(*(Publish("t", bytes((n,))) for n in range(10, 25)))
    assert [message.payload[0] for message in seen.acknowledge()] == list(range(25))
    assert not client.wire.reading
    node.tick(1.4)
    assert not client.wire.reading
    node.tick(0.2)
    assert client.wire.reading
    assert node.hub.throttled == 1
    client.send(Pingreq())
    assert client.take(Pingresp) == [Pingresp()]


def test_a_client_that_is_made_to_wait_is_not_taken_for_silent() -> None:
    node = bounded(Quotas(byte_rate=100))
    client = node.connect("c", keep_alive=2)
    client.publish("t", bytes(1000))
    for _ in range(9):
        node.tick()
        assert client.open
    assert not client.wire.reading
    node.tick()
    assert client.wire.reading


def test_clients_that_share_a_rate_wait_for_one_another_and_others_do_not() -> None:
    node = bounded(Quotas(total_message_rate=10))
    one, two = node.connect("1"), node.connect("2")
    back = at_the_back(node)
    one.send(*(Publish("t", b"") for _ in range(30)))
    assert not one.wire.reading
    two.send(Publish("t", b""))
    assert not two.wire.reading
    back.send(*(Publish("t", b"") for _ in range(30)))
    assert back.wire.reading
    node.tick(2.2)
    assert one.wire.reading
    assert two.wire.reading


def test_a_client_without_rates_is_not_counted() -> None:
    assert bounded(Quotas(topic_levels=9)).connect("c").connection.throttle is None
    assert Node(Limits()).connect("c").connection.throttle is None


def test_a_client_may_have_one_filter_of_many_levels() -> None:
    client = Node().connect()
    long = "/" * LEVELS
    assert client.subscribe(long, 1) == 1
    assert client.subscribe(long, 2) == 2
    assert client.subscribe("x" + long, 1) == Reason.QUOTA_EXCEEDED
    assert client.subscribe("$share/g/" + long, 1) == Reason.QUOTA_EXCEEDED
    assert client.subscribe(long[1:], 1) == 1


@pytest.mark.parametrize("many", [False, True])
def test_a_message_whose_topic_has_many_levels_is_not_retained(many: bool) -> None:
    node = Node()
    topic = "/" * (LEVELS if many else LEVELS - 1)
    client = node.connect()
    expected = Reason.TOPIC_NAME_INVALID if many else Reason.SUCCESS
    for retain, reason in ((False, Reason.SUCCESS), (True, expected)):
        client.publish(topic, qos=1, retain=retain)
        node.commit()
        (puback,) = client.take(Puback)
        assert puback.reason == reason
    other = node.open()
    other.send(Connect("w", 5, True, 0, Will(topic, b"x", 1, True), None, None))
    node.commit()
    (connack,) = other.take(Connack)
    assert connack.reason == expected

"""Why something is refused, in words: where they may be said, how much of them, and to whom."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from broker.listener import Limits, Listener
from broker.mqtt.codec import encode
from broker.mqtt.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
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
)
from broker.mqtt.properties import Properties, Property
from broker.mqtt.reason import Reason
from tests.broker.helpers import Client, Node

SILENT: Properties = ((Property.REQUEST_PROBLEM_INFORMATION, 0),)
SECOND_CONNECT = Connect("c", 5, True, 0, None, None, None)
ANSWERS: list[tuple[str, Packet, type[Packet], str]] = [
    ("puback", Publish("$SYS/x", b"", 1, packet_id=1), Puback, "may not publish to '$SYS/x'"),
    ("pubrec", Publish("$SYS/x", b"", 2, packet_id=1), Pubrec, "may not publish to '$SYS/x'"),
    ("pubcomp", Pubrel(1), Pubcomp, "no QoS 2 message has this packet identifier"),
    ("pubrel", Pubrec(1), Pubrel, "no QoS 2 message has this packet identifier"),
    ("suback", Subscribe(1, (Subscription("a", 0), Subscription("b", 0))), Suback, "can't subscribe to 'b'"),
]
"""What is sent, what of what type comes back, and what it says."""


def client_of(node: Node, *properties: tuple[Property, int]) -> Client:
    client = node.connect(properties=properties)
    client.take(Connack)
    client.wire.said.clear()
    return client


def small(largest: int) -> tuple[Property, int]:
    return (Property.MAXIMUM_PACKET_SIZE, largest)


@pytest.fixture
def node() -> Node:
    return Node(Limits(max_subscriptions=1))


# -- each packet that refuses something


@pytest.mark.parametrize(("asked", "kind", "why"), [each[1:] for each in ANSWERS], ids=[each[0] for each in ANSWERS])
def test_an_answer_that_refuses_says_why(asked: Packet, kind: type[Packet], why: str, node: Node) -> None:
    client = client_of(node)
    client.send(asked)
    node.commit()
    assert [type(packet) for packet in client.take_all()] == [kind]
    (said,) = client.wire.said
    assert said.startswith(why)


@pytest.mark.parametrize(("asked", "kind", "why"), [each[1:] for each in ANSWERS], ids=[each[0] for each in ANSWERS])
def test_it_says_nothing_to_a_client_that_wants_no_problem_information(
    asked: Packet, kind: type[Packet], why: str, node: Node
) -> None:
    """[MQTT-3.1.2-29]"""
    client = client_of(node, *((Property(key), 0) for key, _ in SILENT))
    client.send(asked)
    node.commit()
    assert [type(packet) for packet in client.take_all()] == [kind]
    assert client.wire.said == []


@pytest.mark.parametrize(("asked", "kind", "why"), [each[1:] for each in ANSWERS], ids=[each[0] for each in ANSWERS])
def test_it_says_nothing_where_the_client_has_no_room_for_it(
    asked: Packet, kind: type[Packet], why: str, node: Node
) -> None:
    """[MQTT-3.4.2-2] [MQTT-3.5.2-2] [MQTT-3.6.2-2] [MQTT-3.9.2-1]"""
    client = client_of(node, small(30))
    client.send(asked)
    node.commit()
    (packet,) = client.take_all()
    assert type(packet) is kind
    assert client.wire.said == []


@pytest.mark.parametrize(("asked", "kind", "why"), [each[1:] for each in ANSWERS], ids=[each[0] for each in ANSWERS])
def test_it_says_nothing_where_the_operator_wants_it_so(asked: Packet, kind: type[Packet], why: str) -> None:
    node = Node(Limits(max_subscriptions=1, reason_strings=False))
    client = client_of(node)
    client.send(asked)
    node.commit()
    assert [type(packet) for packet in client.take_all()] == [kind]
    assert client.wire.said == []


def test_what_is_not_refused_has_no_words(node: Node) -> None:
    client = client_of(node)
    client.send(
        Subscribe(1, (Subscription("a", 0),)),
        Publish("t", b"", 1, packet_id=2),
        Publish("t", b"", 2, packet_id=3),
        Pubrel(3),
        Unsubscribe(4, ("a", "b")),
    )
    node.commit()
    client.disconnect()
    assert len(client.take_all()) == 5
    assert client.wire.said == []


def test_a_disconnect_says_why_and_which_clause_even_to_a_client_that_wants_no_problem_information() -> None:
    """[MQTT-3.1.2-29]"""
    client = client_of(Node(), (Property.REQUEST_PROBLEM_INFORMATION, 0))
    client.send(SECOND_CONNECT)
    assert client.take_all() == [Disconnect(Reason.PROTOCOL_ERROR)]
    assert client.wire.said == ["a second CONNECT"]
    assert client.wire.clauses == ["MQTT-3.1.0-2"]


@pytest.mark.parametrize(
    ("room", "said", "clauses"),
    [
        (0, ["a second CONNECT"], ["MQTT-3.1.0-2"]),
        (46, ["a second CONNECT"], ["MQTT-3.1.0-2"]),
        (45, ["a second CONNECT"], []),
        (23, ["a second CONNECT"], []),
        (22, [], []),
    ],
)
def test_a_disconnect_leaves_out_what_there_is_no_room_for_the_clause_first(
    room: int, said: list[str], clauses: list[str]
) -> None:
    """[MQTT-3.14.2-3] [MQTT-3.14.2-4]"""
    client = client_of(Node(), *([small(room)] if room else []))
    client.send(SECOND_CONNECT)
    (packet,) = client.take_all()
    assert isinstance(packet, Disconnect)
    assert client.wire.said == said
    assert client.wire.clauses == clauses


@pytest.mark.parametrize("room", [0, 5, 4])
def test_a_connack_that_refuses_says_why_where_there_is_room_and_comes_where_there_is_room_for_itself(
    room: int,
) -> None:
    """[MQTT-3.1.2-24] [MQTT-3.2.2-19] [MQTT-3.2.2-20]"""
    node = Node(Limits(max_connections=1))
    node.connect("first")
    client = node.open()
    properties: Properties = (small(room),) if room else ()
    client.send(Connect("c", 5, True, 0, None, None, None, properties))
    assert not client.open
    assert client.take_all() == ([] if room == 4 else [Connack(False, Reason.SERVER_BUSY)])
    assert client.wire.said == ([] if room else ["1 clients are connected (mqtt.max_connections)"])


def test_a_suback_gives_the_reasons_of_a_few_refusals_at_most(node: Node) -> None:
    client = client_of(node)
    client.send(Subscribe(1, tuple(Subscription(f"{n}", 0) for n in range(1000))))
    node.commit()
    assert len(client.take(Suback)[0].reasons) == 1000
    (said,) = client.wire.said
    assert said.count("can't subscribe") == 5


def test_words_are_cut_where_they_are_long() -> None:
    node = Node(Limits(max_subscriptions=1))
    client = client_of(node)
    client.send(Subscribe(1, tuple(Subscription("é" * 30000 + str(n), 0) for n in range(7))))
    node.commit()
    (said,) = client.wire.said
    assert len(said) <= 512


def ends(act: Callable[[Node, Client], object]) -> tuple[Reason, list[str]]:
    node = Node()
    client = node.connect(keep_alive=10)
    client.take(Connack)
    act(node, client)
    (packet,) = client.take_all()
    assert isinstance(packet, Disconnect)
    return Reason(packet.reason), client.wire.said


def test_a_client_is_told_why_the_server_ends_its_connection_where_the_reason_code_does_not_say_all() -> None:
    assert ends(lambda node, _: node.connect("c")) == (Reason.SESSION_TAKEN_OVER, [])
    assert ends(lambda node, _: node.tick(16)) == (
        Reason.KEEP_ALIVE_TIMEOUT,
        ["silent for 16 s, longer than its keep alive allows"],
    )
    assert ends(lambda node, _: node.hub.clients.close_all()) == (Reason.SERVER_SHUTTING_DOWN, [])


# -- answers that are too large without any words


@pytest.mark.parametrize(
    "packet",
    [Subscribe(1, tuple(Subscription(f"{n}", 0) for n in range(30))), Unsubscribe(1, tuple(map(str, range(30))))],
    ids=["suback", "unsuback"],
)
def test_an_answer_that_a_client_does_not_take_ends_its_connection_and_nothing_has_changed(packet: Packet) -> None:
    """[MQTT-3.1.2-24]"""
    node = Node()
    client = client_of(node, small(30), (Property.SESSION_EXPIRY_INTERVAL, 100))
    client.send(Subscribe(1, (Subscription("29", 1),)))
    node.commit()
    assert client.take(Suback) == [Suback(1, (1,))]
    client.send(packet)
    node.commit()
    assert client.take_all() == [Disconnect(Reason.PACKET_TOO_LARGE)]
    assert set(node.hub.sessions.all["c"].grants) == {"29"}


def test_an_answer_that_just_fits_is_sent() -> None:
    node = Node()
    client = client_of(node, small(30))
    client.send(Subscribe(1, tuple(Subscription(f"{n}", 0) for n in range(25))))
    client.send(Unsubscribe(2, tuple(map(str, range(25)))))
    node.commit()
    assert client.take_all() == [Suback(1, (0,) * 25), Unsuback(2, (0,) * 25)]
    assert len(encode(Suback(1, (0,) * 25), 5)) == 30


# -- the log


@pytest.mark.parametrize(
    ("packet", "line"),
    [
        (SECOND_CONNECT, "a second CONNECT [MQTT-3.1.0-2] (reason 0x82)"),
        (
            Publish("t", b"", properties=((Property.TOPIC_ALIAS, 99),)),
            "topic alias 99 is above the maximum [MQTT-3.3.2-9] (reason 0x94)",
        ),
        (Auth(0x19, ((Property.AUTHENTICATION_METHOD, "m"),)), None),
    ],
)
def test_a_violation_is_a_line_with_client_listener_and_clause(
    packet: Packet, line: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    node = Node()
    node.listener = Listener("tcp-1", Limits())
    client = client_of(node)
    client.send(packet)
    assert not client.open
    line = line or "an AUTH without an authentication method in the CONNECT [MQTT-4.12.0-7] (reason 0x82)"
    assert caplog.messages == [f"client 'c' from 192.0.2.1:40000 at tcp-1: {line}; connection closed"]


def test_what_breaks_no_statement_of_its_own_breaks_the_one_on_malformed_packets(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """[MQTT-4.13.1-1]"""
    client = client_of(Node())
    client.send_bytes(b"\x82\x02\x00\x01")
    (line,) = caplog.messages
    assert line.endswith("packet ends inside a field [MQTT-4.13.1-1] (reason 0x81); connection closed")


def test_a_client_that_is_refused_for_nothing_that_it_broke_is_told_of_no_clause(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = Node(Limits(max_connections=1))
    node.connect("first")
    client = node.open()
    client.send(Connect("c", 5, True, 0, None, None, None))
    assert client.wire.clauses == []
    assert "[" not in caplog.messages[0]
    assert not client.open
    client = node.open()
    client.send(Pingreq())
    assert not client.open

"""What MQTT 5 lets a server offer, refuse and say of it, as paho-mqtt, mosquitto_rr and a bare socket meet it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from queue import Queue
from typing import Any, Final

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.clients import end
from tests.conformance.packets import Fields, Packet, encode
from tests.conformance.runner import Client
from tests.conformance.wires import TCP
from tests.interop.clients import Paho
from tests.node import HOST, PATIENCE, Node

CONFIG: Final = """\
[mqtt]
response_topic_prefix = "responses/%c/"
check_payload_format = true

[[listeners]]
name = "all"
port = 0

[[listeners]]
name = "little"
port = 0
max_qos = 1
retain_available = false
wildcard_subscription_available = false
shared_subscription_available = false
subscription_identifier_available = false
max_topic_aliases = 0

[[listeners]]
name = "moved"
port = 0
redirect = "server_moved"
server_reference = "other.example:1883"
"""
RR: Final = shutil.which("mosquitto_rr")


@pytest.fixture(scope="module")
def offering(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node whose listeners differ in what they offer."""
    with Node(tmp_path_factory.mktemp("offering"), CONFIG) as node:
        yield node
        assert node.stop() == 0
        assert "Traceback" not in node.stderr


def properties(packet: int, **values: object) -> Properties:
    """Properties by paho's names."""
    made = Properties(packet)  # type: ignore[no-untyped-call]  # paho types all but its constructor
    for name, value in values.items():
        setattr(made, name, value)
    return made


class Device:
    """paho-mqtt at MQTT 5, with whatever its callbacks are told."""

    def __init__(self, port: int, client_id: str, **asked: object) -> None:
        self.connected: Queue[tuple[int, Any]] = Queue()
        self.published: Queue[tuple[int, Any]] = Queue()
        self.subscribed: Queue[tuple[list[int], Any]] = Queue()
        self.ended: Queue[tuple[int, Any]] = Queue()
        self.messages: Queue[paho.MQTTMessage] = Queue()
        self.client = client = paho.Client(CallbackAPIVersion.VERSION2, client_id, protocol=paho.MQTTv5)
        client.on_connect = lambda _, __, ___, reason, said: self.connected.put((reason.value, said))
        client.on_publish = lambda _, __, ___, reason, said: self.published.put((reason.value, said))
        client.on_subscribe = lambda _, __, ___, reasons, said: self.subscribed.put(([r.value for r in reasons], said))
        client.on_disconnect = lambda _, __, ___, reason, said: self.ended.put((reason.value, said))
        client.on_message = lambda _, __, message: self.messages.put(message)
        client.connect(HOST, port, properties=properties(PacketTypes.CONNECT, **asked))
        client.loop_start()

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        end(self.client)

    def accepted(self) -> Any:
        """The properties of the CONNACK that accepts it."""
        reason, said = self.connected.get(timeout=PATIENCE)
        assert reason == 0
        return said

    def subscribe(self, filter: str, qos: int = 2) -> list[int]:
        self.client.subscribe(filter, qos)
        return self.subscribed.get(timeout=PATIENCE)[0]


# -- topic aliases


def test_paho_is_sent_aliases_by_which_it_knows_every_topic(offering: Node, name: str) -> None:
    topics = [f"{name}/{n % 5 if n % 3 else n}" for n in range(60)]
    port = offering.ports["all"]
    with Device(port, f"{name}s", TopicAliasMaximum=3) as subscriber, Paho(port, f"{name}p") as publisher:
        subscriber.accepted()
        assert subscriber.subscribe(f"{name}/#") == [2]
        for n, topic in enumerate(topics):
            publisher.publish(topic, topic.encode(), qos=n % 3)
        known: dict[int, str] = {}
        aliased = 0
        for _ in topics:
            message = subscriber.messages.get(timeout=PATIENCE)
            alias = getattr(message.properties, "TopicAlias", 0)
            assert 0 <= alias <= 3
            if alias and message.topic:
                known[alias] = message.topic
            aliased += not message.topic
            assert (message.topic or known[alias]).encode() == message.payload
        assert set(known) == {1, 2, 3}
        assert aliased > 20


class Bare:
    """A client that is a socket, and what it has been sent."""

    def __init__(self, port: int, client_id: str, **asked: str | int) -> None:
        self._client = Client(client_id, port, TCP, 5)
        self.send("CONNECT", ("client", client_id), *((key.replace("_", "-"), value) for key, value in asked.items()))
        self.connack = self.next()

    def send(self, kind: str, *fields: tuple[str, str | int | bytes]) -> None:
        self._client.send(encode(kind, fields, 5))

    def next(self) -> Packet:
        packet = self._client.next()
        assert packet is not None, "the connection was closed"
        return packet

    def ended(self) -> bool:
        return self._client.next() is None

    def close(self) -> None:
        self._client.drop()


def field(packet: Packet, name: str) -> object:
    """The value of a field; None where it is not there."""
    values = packet.all(name)
    return values[0] if values else None


def test_a_first_message_sets_an_alias_and_the_others_have_it_alone_at_every_qos(node: Node, name: str) -> None:
    bare = Bare(node.port, f"{name}s", topic_alias_maximum=1)
    bare.send("SUBSCRIBE", ("id", 1), ("filter", f"{name}/#"), ("qos", 2))
    assert bare.next().kind == "SUBACK"
    with Paho(node.port, f"{name}p") as publisher:
        for qos in (0, 1, 2, 0):
            publisher.publish(f"{name}/topic", bytes((qos,)), qos=qos)
        publisher.publish(f"{name}/another", b"1", b"2", qos=0)
    seen: list[tuple[object, object]] = []
    while len(seen) < 6:
        packet = bare.next()
        assert packet.kind == "PUBLISH"
        seen.append((field(packet, "topic"), field(packet, "topic-alias")))
    assert seen[:4] == [(f"{name}/topic", 1), ("", 1), ("", 1), ("", 1)]
    assert seen[4:] == [(f"{name}/another", None), (f"{name}/another", 1)]
    bare.close()


def test_a_new_connection_knows_no_alias_of_the_old_one(node: Node, name: str) -> None:
    for attempt in range(2):
        bare = Bare(node.port, f"{name}s", topic_alias_maximum=4, session_expiry=100, clean=1 - attempt)
        if attempt == 0:
            bare.send("SUBSCRIBE", ("id", 1), ("filter", f"{name}/#"), ("qos", 1))
            assert bare.next().kind == "SUBACK"
        with Paho(node.port, f"{name}p") as publisher:
            publisher.publish(f"{name}/topic", b"1", b"2")
        if attempt:  # what was not acknowledged comes again, with its topic
            again = [bare.next(), bare.next()]
            assert [(field(each, "topic"), field(each, "topic-alias")) for each in again] == [
                (f"{name}/topic", None),
                (f"{name}/topic", None),
            ]
        seen = [bare.next(), bare.next()]
        assert [(field(each, "topic"), field(each, "topic-alias")) for each in seen] == [(f"{name}/topic", 1), ("", 1)]
        bare.close()


# -- what a listener does not offer


def test_paho_is_told_what_there_is_not(offering: Node, name: str) -> None:
    with Device(offering.ports["little"], name, TopicAliasMaximum=9) as device:
        told = device.accepted()
        assert (told.MaximumQoS, told.RetainAvailable, told.WildcardSubscriptionAvailable) == (1, 0, 0)
        assert (told.SubscriptionIdentifierAvailable, told.SharedSubscriptionAvailable) == (0, 0)
        assert device.subscribe(name) == [1]
        for _ in range(2):
            device.client.publish(name, b"x")
            assert device.messages.get(timeout=PATIENCE).topic == name
    with Device(offering.ports["all"], name) as device:
        told = device.accepted()
        assert not any(hasattr(told, each) for each in ("MaximumQoS", "RetainAvailable", "SharedSubscriptionAvailable"))


@pytest.mark.parametrize(
    ("kind", "asked", "reason"),
    [
        ("PUBLISH", (("id", 1), ("qos", 2)), 0x9B),
        ("PUBLISH", (("retain", 1),), 0x9A),
        ("SUBSCRIBE", (("id", 1), ("filter", "a/#")), 0xA2),
        ("SUBSCRIBE", (("id", 1), ("filter", "$share/g/a")), 0x9E),
        ("SUBSCRIBE", (("id", 1), ("filter", "a"), ("subscription-id", 1)), 0xA1),
    ],
)
def test_asking_for_it_nevertheless_ends_the_connection_and_the_log_says_which_client_and_where(
    offering: Node, name: str, kind: str, asked: Fields, reason: int
) -> None:
    bare = Bare(offering.ports["little"], name)
    bare.send(kind, *([("topic", name)] if kind == "PUBLISH" else []), *asked)
    packet = bare.next()
    assert (packet.kind, field(packet, "reason")) == ("DISCONNECT", reason)
    why = field(packet, "reason-string")
    assert bare.ended()
    (line,) = [line for line in offering.stderr.splitlines() if f"client {name!r} " in line]
    assert f" at little: {why} [" in line
    assert f" (reason 0x{reason:02x}); connection closed" in line


def test_a_client_of_a_listener_that_has_moved_is_told_where_to(offering: Node, name: str) -> None:
    with Device(offering.ports["moved"], name) as device:
        reason, told = device.connected.get(timeout=PATIENCE)
        assert (reason, told.ServerReference) == (0x9D, "other.example:1883")


# -- words


def test_a_publish_that_is_refused_says_why(offering: Node, name: str) -> None:
    with Device(offering.ports["all"], name) as device:
        device.accepted()
        device.client.publish("$SYS/mine", b"x", 1)
        assert _said(device.published.get(timeout=PATIENCE)) == (0x87, "may not publish to '$SYS/mine'")
        text = properties(PacketTypes.PUBLISH, PayloadFormatIndicator=1)
        device.client.publish(name, b"\xff", 1, properties=text)
        assert _said(device.published.get(timeout=PATIENCE)) == (
            0x99,
            "a PUBLISH whose payload is not the UTF-8 that it says it is",
        )


def test_a_client_that_wants_no_problem_information_hears_the_code_alone(offering: Node, name: str) -> None:
    with Device(offering.ports["all"], name, RequestProblemInformation=0) as device:
        device.accepted()
        device.client.publish("$SYS/mine", b"x", 1)
        assert _said(device.published.get(timeout=PATIENCE)) == (0x87, None)


def _said(answer: tuple[int, Any]) -> tuple[int, str | None]:
    reason, told = answer
    return reason, getattr(told, "ReasonString", None)


# -- request and response


def responder(device: Device) -> None:
    """Answer each request by its payload in capitals."""

    def answer(client: paho.Client, _: object, message: paho.MQTTMessage) -> None:
        asked: Any = message.properties
        client.publish(
            asked.ResponseTopic,
            message.payload.upper(),
            1,
            properties=properties(PacketTypes.PUBLISH, CorrelationData=asked.CorrelationData),
        )

    device.client.on_message = answer


@pytest.mark.skipif(RR is None, reason="mosquitto_rr is not installed (apt-get install mosquitto-clients)")
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_mosquitto_rr_gets_the_response_to_its_request(offering: Node, name: str, qos: int) -> None:
    assert RR is not None
    port = offering.ports["all"]
    with Device(port, f"{name}r") as device:
        device.accepted()
        responder(device)
        device.subscribe(f"{name}/request")
        command = [RR, "-V", "mqttv5", "-h", HOST, "-p", str(port), "-q", str(qos), "-W", "20", "-D", "publish"]
        command += ["correlation-data", "7", "-t", f"{name}/request", "-e", f"{name}/response", "-m", "hello"]
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=True)
    assert done.stdout == b"HELLO\n"


def test_a_client_asks_where_its_responses_go_and_gets_them_there(offering: Node, name: str) -> None:
    port = offering.ports["all"]
    with Device(port, f"{name}r") as device, Device(port, f"{name}q", RequestResponseInformation=1) as asking:
        assert not hasattr(device.accepted(), "ResponseInformation")
        responder(device)
        device.subscribe(f"{name}/request")
        prefix = asking.accepted().ResponseInformation
        assert prefix == f"responses/{name}q/"
        asking.subscribe(f"{prefix}#")
        request = properties(PacketTypes.PUBLISH, ResponseTopic=f"{prefix}1", CorrelationData=b"\x00\x07")
        asking.client.publish(f"{name}/request", b"hello", 1, properties=request)
        response = asking.messages.get(timeout=PATIENCE)
        told: Any = response.properties
        assert (response.topic, response.payload, told.CorrelationData) == (f"{prefix}1", b"HELLO", b"\x00\x07")

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from berm.publish import PublishError, Report, Target, publish
from broker.mqtt.codec import Decoder, encode
from broker.mqtt.packets import Connack, Disconnect, Packet, Puback, Publish
from broker.mqtt.properties import Properties, Property, encode_properties
from storage.interface import FSYNC, Event
from tests.berm.helpers import Client, mosquitto
from tests.node import MOSQUITTO, Node, free_port


def events(count: int, qos: int = 1, topic: str = "plant/a", properties: Properties = ()) -> list[Event]:
    wire = encode_properties(properties)
    return [Event(seq, 0, topic, b"%d" % seq, qos, False, "dev", wire, 0, FSYNC) for seq in range(1, count + 1)]


@pytest.fixture(params=["berm", "mosquitto"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    with ExitStack() as stack:
        if request.param == "berm":
            yield stack.enter_context(Node(tmp_path / "other")).port
        elif MOSQUITTO is None:
            pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
        else:
            yield stack.enter_context(mosquitto(tmp_path))


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_everything_reaches_a_broker_in_order(broker: int, qos: int) -> None:
    with Client(broker, "subscriber") as subscriber:
        subscriber.subscribe("plant/#")
        report = Report()
        publish(events(1000, qos), Target("127.0.0.1", broker), report)
        assert report.complete
        assert (report.sent, report.acknowledged, report.unasked) == (1000, *((1000, 0) if qos else (0, 1000)))
        subscriber.wait_for({b"%d" % seq for seq in range(1, 1001)})
        assert subscriber.payloads == [b"%d" % seq for seq in range(1, 1001)]


def test_properties_and_retain_go_along(broker: int) -> None:
    event = Event(1, 0, "plant/a", b"x", 1, True, "d", encode_properties(((Property.CONTENT_TYPE, "t/p"),)), 0, FSYNC)
    publish([event], Target("127.0.0.1", broker), Report())
    with Client(broker, "late") as late:
        late.subscribe("plant/#")
        late.wait_for({b"x"})
        assert late.messages[0].retain
        assert late.messages[0].properties.ContentType == "t/p"  # type: ignore[union-attr]


@contextmanager
def answering(*connections: tuple[bytes, ...]) -> Iterator[tuple[int, list[Packet]]]:
    """A broker that takes these connections, and answers the packets of each with these bytes, one after another.

    It hangs up once its answers are used up and the peer has gone. What it was sent gathers in the list.
    """
    packets: list[Packet] = []

    def serve(server: socket.socket) -> None:
        for answers in connections:
            left = list(answers)
            with server.accept()[0] as connection:
                decoder = Decoder()
                while data := connection.recv(1 << 16):
                    for packet in decoder.feed(data):
                        packets.append(packet)
                        if left:
                            connection.sendall(left.pop(0))

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        yield server.getsockname()[1], packets
        thread.join(10)


def test_nobody_there_is_told() -> None:
    port = free_port()
    with pytest.raises(PublishError, match=f"mqtt://127.0.0.1:{port}: "):
        publish(events(1), Target("127.0.0.1", port), Report())


def test_a_broker_that_refuses_is_told_with_its_reason() -> None:
    refusal = encode(Connack(False, 0x87), 5)
    with (
        answering((refusal,)) as (port, _),
        pytest.raises(PublishError, match=r"refuses .*: not authorized"),
    ):
        publish(events(1), Target("127.0.0.1", port), Report())


def test_a_broker_that_knows_only_3_1_1_is_spoken_to_in_3_1_1() -> None:
    unknown, accepted = b"\x20\x02\x00\x01", b"\x20\x02\x00\x00"
    puback = encode(Puback(1, 0), 4)
    with answering((unknown,), (accepted, puback)) as (port, packets):
        report = Report()
        publish(events(1, properties=((Property.CONTENT_TYPE, "lost"),)), Target("127.0.0.1", port), report)
        assert report.complete
    sent = [packet for packet in packets if isinstance(packet, Publish)]
    assert [(packet.topic, packet.properties) for packet in sent] == [("plant/a", ())]


def test_what_is_no_mqtt_broker_is_told() -> None:
    http = b"HTTP/1.1 400 Bad Request\r\n\r\n"
    with answering((http,), (http,)) as (port, _), pytest.raises(PublishError, match="is it an MQTT broker"):
        publish(events(1), Target("127.0.0.1", port), Report())


def test_a_broker_that_ends_the_connection_is_told_with_its_reason() -> None:
    answers = (encode(Connack(False, 0), 5), encode(Disconnect(0x97), 5))
    report = Report()
    with answering(answers) as (port, _), pytest.raises(PublishError, match="it ended the connection: quota exceeded"):
        publish(events(1), Target("127.0.0.1", port), report)
    assert not report.complete


def test_refused_and_oversized_events_are_counted_and_make_it_incomplete() -> None:
    connack = encode(Connack(False, 0, ((Property.MAXIMUM_PACKET_SIZE, 40),)), 5)
    large = Event(1, 0, "plant/a", b"x" * 100, 1, False, "dev", b"", 0, FSYNC)
    report = Report()
    with answering((connack, encode(Puback(2, 0x87), 5))) as (port, packets):
        publish([large, *events(1)], Target("127.0.0.1", port), report)
    assert (report.sent, report.refused, report.oversized, report.complete) == (1, 1, 1, False)
    assert str(report) == "published 1, acknowledged 0, refused 1, left out 1 larger than the broker takes"
    assert sum(isinstance(packet, Publish) for packet in packets) == 1


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("mqtt://host", Target("host")),
        ("mqtt://host:1884/", Target("host", 1884)),
        ("mqtt://u:p%40ss@host", Target("host", 1883, "u", "p@ss")),
        ("mqtt://u@[::1]:5", Target("::1", 5, "u")),
    ],
)
def test_a_url_names_a_broker(url: str, target: Target) -> None:
    assert Target.parse(url) == target


@pytest.mark.parametrize(
    "url", ["", "host", "http://host", "mqtt://", "mqtt://host:99999", "mqtt://host/topic", "mqtt://h?x"]
)
def test_what_names_no_broker_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        Target.parse(url)


def test_a_password_is_not_in_what_is_said_of_a_target() -> None:
    assert str(Target("h", 1, "u", "secret")) == "mqtt://h:1"

"""What the encoder leaves out, and what it refuses to write."""

from __future__ import annotations

import pytest

from broker.mqtt.codec import Decoder, encode
from broker.mqtt.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
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
from broker.mqtt.properties import Properties
from tests.broker.mqtt import specification as spec
from tests.broker.mqtt.strategies import VERSIONS

TEXT: Properties = ((0x1F, "why"), (0x26, ("k", "v")))


def connect(
    client_id: str = "c",
    version: int = 4,
    clean_start: bool = True,
    keep_alive: int = 0,
    will: Will | None = None,
    username: str | None = None,
    password: bytes | None = None,
) -> Connect:
    """A CONNECT of which only some fields matter."""
    return Connect(client_id, version, clean_start, keep_alive, will, username, password)


IMPOSSIBLE: list[tuple[str, Packet, tuple[int, ...], str]] = [
    ("topic name is empty", Publish("", b""), VERSIONS, "empty"),
    ("topic name has a wildcard", Publish("a/#", b""), VERSIONS, "wildcard"),
    ("topic name has U+0000", Publish("a\0", b""), VERSIONS, "U[+]0000"),
    ("topic name has a surrogate", Publish("\udc00", b""), VERSIONS, "surrogates"),
    ("topic name is too long", Publish("a" * 65_536, b""), VERSIONS, "65536 bytes"),
    ("topic alias instead of a name before MQTT 5", Publish("", b"", properties=((0x23, 1),)), (3, 4), "empty"),
    ("PUBLISH is too long", Publish("a", bytes(268_435_455)), VERSIONS, "does not fit"),
    ("QoS 3", Publish("a", b"", 3, packet_id=1), VERSIONS, "QoS 3"),
    ("QoS -1", Publish("a", b"", -1, packet_id=1), VERSIONS, "QoS -1"),
    ("DUP at QoS 0", Publish("a", b"", 0, dup=True), VERSIONS, "DUP"),
    ("packet identifier at QoS 0", Publish("a", b"", 0, packet_id=1), VERSIONS, "packet identifier"),
    ("PUBLISH without a packet identifier", Publish("a", b"", 1), VERSIONS, "packet identifier 0"),
    ("PUBLISH with a large packet identifier", Publish("a", b"", 2, packet_id=65_536), VERSIONS, "packet identifier"),
    ("PUBACK without a packet identifier", Puback(0), VERSIONS, "packet identifier 0"),
    ("PUBREC with a large packet identifier", Pubrec(65_536), VERSIONS, "packet identifier"),
    ("PUBREL with a negative packet identifier", Pubrel(-1), VERSIONS, "packet identifier"),
    ("PUBCOMP without a packet identifier", Pubcomp(0, 0x92), VERSIONS, "packet identifier 0"),
    ("SUBSCRIBE without a packet identifier", Subscribe(0, (Subscription("a", 0),)), VERSIONS, "packet identifier 0"),
    ("SUBACK without a packet identifier", Suback(0, (0,)), VERSIONS, "packet identifier 0"),
    ("UNSUBSCRIBE without a packet identifier", Unsubscribe(0, ("a",)), VERSIONS, "packet identifier 0"),
    ("UNSUBACK without a packet identifier", Unsuback(0, (0,)), VERSIONS, "packet identifier 0"),
    ("SUBSCRIBE to nothing", Subscribe(1, ()), VERSIONS, "without a topic filter"),
    ("SUBSCRIBE to a filter that is none", Subscribe(1, (Subscription("a/#/b", 0),)), VERSIONS, "#"),
    ("SUBSCRIBE to a share that is none", Subscribe(1, (Subscription("$share/a", 0),)), VERSIONS, "share"),
    ("SUBSCRIBE at QoS 3", Subscribe(1, (Subscription("a", 3),)), VERSIONS, "options"),
    ("SUBSCRIBE with retain handling 3", Subscribe(1, (Subscription("a", 0, False, False, 3),)), VERSIONS, "options"),
    ("SUBSCRIBE to a share with no local", Subscribe(1, (Subscription("$share/g/a", 0, True),)), VERSIONS, "no local"),
    ("UNSUBSCRIBE from nothing", Unsubscribe(1, ()), VERSIONS, "without a topic filter"),
    ("UNSUBSCRIBE from a filter that is none", Unsubscribe(1, ("a+",)), VERSIONS, "[+]"),
    ("SUBACK without a reason", Suback(1, ()), VERSIONS, "without a reason code"),
    ("SUBACK with a reason of UNSUBACK", Suback(1, (0x11,)), VERSIONS, "reason code 17"),
    ("UNSUBACK without a reason", Unsuback(1), (5,), "without a reason code"),
    ("UNSUBACK with a reason of SUBACK", Unsuback(1, (1,)), (5,), "reason code 1"),
    ("session present in a refusal", Connack(True, 0x87), VERSIONS, "refuses"),
    ("CONNACK with a reason of DISCONNECT", Connack(False, 0x8E), (5,), "reason code 142"),
    ("CONNACK with a reason that is none", Connack(False, 0xFF), VERSIONS, "255"),
    ("DISCONNECT with a reason of CONNACK", Disconnect(0x85), (5,), "reason code 133"),
    ("AUTH before MQTT 5", Auth(), (3, 4), "no AUTH"),
    ("AUTH with a reason that is none", Auth(1, ((0x15, "m"),)), (5,), "reason code 1"),
    ("CONNECT of another version", connect(version=4), (3, 5), "CONNECT for version 4"),
    ("CONNECT 3.1 without a client identifier", connect("", 3), (3,), "client identifier is empty"),
    ("CONNECT 3.1.1 that goes on as nobody", connect("", 4, False), (4,), "client identifier is empty"),
    ("password without a user name", connect(password=b"p"), (4,), "without a user name"),
    ("keep alive of more than 65535 s", connect(keep_alive=65_536), (4,), "keep alive"),
    ("negative keep alive", connect(keep_alive=-1), (4,), "keep alive"),
    ("client identifier with U+0000", connect("\0"), (4,), "U[+]0000"),
    ("user name with a surrogate", connect(username="\ud800"), (4,), "surrogates"),
    ("password that is too long", connect(username="u", password=bytes(65_536)), (4,), "65536 bytes"),
    ("will QoS 3", connect(will=Will("w", b"", 3, False)), (4,), "will QoS 3"),
    ("will topic with a wildcard", connect(will=Will("+", b"", 0, False)), (4,), "wildcard"),
    ("will that is too long", connect(will=Will("w", bytes(65_536), 0, False)), (4,), "65536 bytes"),
]


@pytest.mark.parametrize(("name", "packet", "versions", "message"), IMPOSSIBLE, ids=[each[0] for each in IMPOSSIBLE])
def test_what_no_packet_can_say_is_an_error_of_the_caller(
    name: str, packet: Packet, versions: tuple[int, ...], message: str
) -> None:
    # [MQTT-2.2.1-2] [MQTT-2.2.1-3] [MQTT-2.2.1-4] [MQTT-3.2.2-6] [MQTT-3.3.1-2] [MQTT-3.8.3-2] [MQTT-3.8.3-4]
    # [MQTT-3.10.3-2]
    for version in versions:
        with pytest.raises(ValueError, match=message):
            encode(packet, version)


@pytest.mark.parametrize("kind", [Puback, Pubrec, Pubrel, Pubcomp])
def test_an_acknowledgement_says_only_what_its_version_can(
    kind: type[Puback] | type[Pubrec] | type[Pubrel] | type[Pubcomp],
) -> None:
    refused = max(spec.reasons_of(kind.TYPE))
    shortest = encode(kind(1), 5)
    assert shortest[1:] == b"\x02\x00\x01"
    for version in (3, 4):
        assert encode(kind(1, refused, TEXT), version) == shortest
    assert encode(kind(1, refused), 5)[1:] == bytes((3, 0, 1, refused))
    assert encode(kind(1, 0, TEXT), 5)[1:6] == b"\x11\x00\x01\x00\x0d"
    wrong = next(reason for reason in spec.REASON_CODES if kind.TYPE not in spec.REASON_CODES[reason])
    with pytest.raises(ValueError, match="reason code"):
        encode(kind(1, wrong), 5)


@pytest.mark.parametrize("version", [3, 4])
def test_what_came_with_mqtt_5_is_left_out_before(version: int) -> None:
    carried = ((0x26, ("k", "v")),)
    options = Subscription("a", 1, True, True, 2)
    assert encode(Publish("a", b"x", properties=carried), version) == b"\x30\x04\x00\x01ax"
    assert encode(Subscribe(1, (options,), carried), version) == b"\x82\x06\x00\x01\x00\x01a\x01"
    assert encode(Unsubscribe(1, ("a",), carried), version) == b"\xa2\x05\x00\x01\x00\x01a"
    assert encode(Suback(1, (0, 0x87, 0x9E), carried), version) == b"\x90\x05\x00\x01\x00\x80\x80"
    assert encode(Unsuback(1, (0, 0x11), carried), version) == b"\xb0\x02\x00\x01"
    assert encode(Disconnect(0x8E, carried), version) == b"\xe0\x00"
    assert encode(Connack(False, 0x8A, carried), version) == b"\x20\x02\x00\x05"


def test_mqtt_3_1_has_no_session_present() -> None:
    assert encode(Connack(True, 0), 3) == b"\x20\x02\x00\x00"
    assert encode(Connack(True, 0), 4) == b"\x20\x02\x01\x00"
    assert encode(Connack(True, 0), 5) == b"\x20\x03\x01\x00\x00"


def test_properties_of_a_will_are_left_out_before_mqtt_5() -> None:
    will = Will("w", b"", 0, False, ((0x18, 5),))
    older = Decoder().feed(encode(connect(will=will), 4))
    assert older == [connect(will=Will("w", b"", 0, False))]


def test_a_reason_of_every_packet_is_written_exactly_where_the_specification_allows_it() -> None:
    # [MQTT-3.2.2-8] [MQTT-3.9.3-2] [MQTT-3.11.3-2] [MQTT-3.14.2-1] [MQTT-3.15.2-1]
    for reason in range(256):
        for packet in (
            Connack(False, reason),
            Puback(1, reason),
            Pubrec(1, reason),
            Pubrel(1, reason),
            Pubcomp(1, reason),
            Suback(1, (reason,)),
            Unsuback(1, (reason,)),
            Disconnect(reason),
            Auth(reason, ((0x15, "m"),)),
        ):
            if packet.TYPE in spec.REASON_CODES.get(reason, ()):
                assert Decoder(5).feed(encode(packet, 5)) == [packet]
            else:
                with pytest.raises(ValueError, match="reason code"):
                    encode(packet, 5)


def test_a_topic_that_was_written_once_is_written_the_same_again() -> None:
    first = encode(Publish("only/here", b"1"), 4)
    assert encode(Publish("only/here", b"1"), 4) == first
    for _ in range(2):
        with pytest.raises(ValueError, match="wildcard"):
            encode(Publish("only/#", b"1"), 4)


def test_topics_beyond_those_that_are_remembered_are_written_too() -> None:
    from broker.mqtt.encode import _NAMES

    for n in range(5000):
        assert encode(Publish(f"written/{n}", b""), 4).endswith(f"written/{n}".encode())
    assert len(_NAMES) <= 4096
    assert encode(Publish("x" * 300, b""), 4).endswith(b"x" * 300)
    assert "x" * 300 not in _NAMES

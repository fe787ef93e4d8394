"""Single packets, version by version: what the table of cases has too few of."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from broker.mqtt.codec import Decoder
from broker.mqtt.decode import PROTOCOLS, check_first_byte, decode_packet, read_version
from broker.mqtt.errors import ProtocolError
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
)
from broker.mqtt.reason import RETURN_CODES, Reason, return_code
from broker.mqtt.wire import Reader, encode_string
from tests.broker.mqtt import specification as spec
from tests.broker.mqtt.cases import BAD, GOOD
from tests.broker.mqtt.strategies import VERSIONS

_FLAGS = {1: "0000", 6: "0010", 8: "0010", 10: "0010"}
"""The flags of the fixed header by type, where they are fixed and not 0 (2.1.3)."""


def may_begin(first: int, version: int) -> bool:
    """Whether a packet may begin with this byte, from the tables of types and flags."""
    type, flags = first >> 4, f"{first & 0x0F:04b}"
    if (type == 1) is not (version == 0):
        return False
    if type == 1:  # whether it is of MQTT 3.1, which does not look at them, is not known yet
        return True
    if type == 3:
        dup, qos = flags[0], flags[1:3]
        return qos != "11" and not (dup == "1" and qos == "00")
    if type == 0 or (type == 15 and version < 5):
        return False
    wanted = _FLAGS.get(type, "0000")
    # MQTT 3.1 sets DUP, the first of them, when it sends PUBREL, SUBSCRIBE or UNSUBSCRIBE again, and says nothing of
    # the flags of others.
    return flags == wanted or (version == 3 and (wanted == "0000" or flags == "1010"))


@pytest.mark.parametrize("version", [0, *VERSIONS])
def test_a_packet_begins_as_the_tables_of_types_and_flags_say(version: int) -> None:
    # [MQTT-2.1.3-1] [MQTT-3.1.0-1] [MQTT-3.1.0-2] [MQTT-3.3.1-2] [MQTT-3.3.1-4]
    # [MQTT-3.6.1-1] [MQTT-3.8.1-1] [MQTT-3.10.1-1] [MQTT-3.14.1-1] [MQTT-3.15.1-1]
    for first in range(256):
        if may_begin(first, version):
            check_first_byte(first, version)
            continue
        with pytest.raises(ProtocolError) as failure:
            check_first_byte(first, version)
        out_of_order = (first >> 4 == 1) is not (version == 0)
        assert failure.value.reason is (Reason.PROTOCOL_ERROR if out_of_order else Reason.MALFORMED_PACKET)


_WITH_REASON: dict[int, Callable[[int], tuple[str, Packet]]] = {
    spec.CONNACK: lambda reason: (f"2003 00 {reason:02x} 00", Connack(False, reason)),
    spec.PUBACK: lambda reason: (f"4003 0001 {reason:02x}", Puback(1, reason)),
    spec.PUBREC: lambda reason: (f"5003 0001 {reason:02x}", Pubrec(1, reason)),
    spec.PUBREL: lambda reason: (f"6203 0001 {reason:02x}", Pubrel(1, reason)),
    spec.PUBCOMP: lambda reason: (f"7003 0001 {reason:02x}", Pubcomp(1, reason)),
    spec.SUBACK: lambda reason: (f"9005 0001 00 00 {reason:02x}", Suback(1, (0, reason))),
    spec.UNSUBACK: lambda reason: (f"b005 0001 00 00 {reason:02x}", Unsuback(1, (0, reason))),
    spec.DISCONNECT: lambda reason: (f"e001 {reason:02x}", Disconnect(reason)),
    spec.AUTH: lambda reason: (f"f006 {reason:02x} 04 15 0001 6d", Auth(reason, ((0x15, "m"),))),
}


def decoded(version: int, data: bytes) -> Packet | Reason:
    """The packet, or why there is none."""
    decoder = Decoder(version)
    packets = decoder.feed(data)
    if decoder.error is not None:
        assert packets == []
        return decoder.error.reason
    return packets[0]


@pytest.mark.parametrize("type", _WITH_REASON)
def test_a_reason_code_is_accepted_exactly_where_the_specification_allows_it(type: int) -> None:
    # [MQTT-3.2.2-8] [MQTT-3.4.2-1] [MQTT-3.5.2-1] [MQTT-3.6.2-1] [MQTT-3.7.2-1] [MQTT-3.9.3-2] [MQTT-3.11.3-2]
    # [MQTT-3.14.2-1] [MQTT-3.15.2-1]
    for reason in range(256):
        data, packet = _WITH_REASON[type](reason)
        allowed = type in spec.REASON_CODES.get(reason, ())
        assert decoded(5, bytes.fromhex(data)) == (packet if allowed else Reason.PROTOCOL_ERROR)


def test_every_reason_code_of_the_specification_has_a_name() -> None:
    assert {int(reason) for reason in Reason} == set(spec.REASON_CODES)


@pytest.mark.parametrize("version", [3, 4])
def test_a_return_code_means_a_reason_code_and_back(version: int) -> None:
    for code in range(256):
        found = decoded(version, bytes((0x20, 2, 0, code)))
        if code < len(RETURN_CODES):
            assert found == Connack(False, RETURN_CODES[code])
            assert return_code(RETURN_CODES[code]) == code
        else:
            assert found is Reason.PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (Reason.SUCCESS, 0),
        (Reason.BANNED, 5),
        (Reason.BAD_AUTHENTICATION_METHOD, 5),
        (Reason.SERVER_BUSY, 3),
        (Reason.QUOTA_EXCEEDED, 3),
        (Reason.UNSPECIFIED_ERROR, 3),
    ],
)
def test_a_reason_code_without_a_return_code_becomes_the_nearest(reason: Reason, code: int) -> None:
    assert return_code(reason) == code


@pytest.mark.parametrize("version", [3, 4])
def test_a_suback_before_mqtt_5_has_the_granted_qos_or_a_failure(version: int) -> None:
    for code in range(256):
        found = decoded(version, bytes((0x90, 3, 0, 1, code)))
        assert found == (Suback(1, (code,)) if code in (0, 1, 2, 0x80) else Reason.PROTOCOL_ERROR)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_options_of_a_subscription_are_those_of_its_version(version: int) -> None:
    # [MQTT-3.8.3-5], and sections 3.8.3.1 of MQTT 5 and 3.8.3 of MQTT 3.1.1
    head = b"\x00\x01" + (b"\x00" if version == 5 else b"") + b"\x00\x01a"
    for options in range(256):
        found = decoded(version, bytes((0x82, len(head) + 1)) + head + bytes((options,)))
        qos, retain_handling = options & 3, options >> 4 & 3
        if options & (0xC0 if version == 5 else 0xFC):
            assert found is Reason.MALFORMED_PACKET
        elif qos == 3:
            assert found is (Reason.PROTOCOL_ERROR if version == 5 else Reason.MALFORMED_PACKET)
        elif retain_handling == 3:
            assert found is Reason.PROTOCOL_ERROR
        else:
            wanted = Subscription("a", qos, bool(options & 4), bool(options & 8), retain_handling)
            assert found == Subscribe(1, (wanted,))


def test_no_local_is_for_subscriptions_that_nobody_shares() -> None:
    # [MQTT-3.8.3-4]
    filter = encode_string("$share/g/a")
    body = b"\x00\x01\x00" + filter
    assert decoded(5, bytes((0x82, len(body) + 1)) + body + b"\x04") is Reason.PROTOCOL_ERROR
    assert decoded(5, bytes((0x82, len(body) + 1)) + body + b"\x01") == Subscribe(1, (Subscription("$share/g/a", 1),))


def connect(version: int, flags: int, fields: bytes) -> bytes:
    """A CONNECT with these flags and this payload."""
    name = "MQIsdp" if version == 3 else "MQTT"
    body = encode_string(name) + bytes((version, flags, 0, 10)) + (b"\x00" if version == 5 else b"") + fields
    return bytes((0x10, len(body))) + body


def may_be_flags(flags: int, version: int) -> bool:
    """Whether a CONNECT may have these flags, from the sections on each of them."""
    will, will_qos, will_retain = bool(flags & 4), flags >> 3 & 3, bool(flags & 0x20)
    username, password = bool(flags & 0x80), bool(flags & 0x40)
    if version < 5 and password and not username:
        return False
    if version == 3:
        return not will or will_qos < 3
    return not flags & 1 and will_qos < 3 and (will or not (will_qos or will_retain))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_flags_of_a_connect_are_those_of_its_version(version: int) -> None:
    # [MQTT-3.1.2-3] [MQTT-3.1.2-11] [MQTT-3.1.2-12] [MQTT-3.1.2-13] [MQTT-3.1.2-16] [MQTT-3.1.2-17]
    # [MQTT-3.1.2-18] [MQTT-3.1.2-19], and [MQTT-3.1.2-22] of MQTT 3.1.1
    for flags in range(256):
        fields = b"\x00\x01c"
        if flags & 4:
            fields += (b"\x00" if version == 5 else b"") + b"\x00\x01w\x00\x01p"
        if flags & 0x80:
            fields += b"\x00\x01u"
        if flags & 0x40:
            fields += b"\x00\x01s"
        found = decoded(0, connect(version, flags, fields))
        if not may_be_flags(flags, version):
            assert found is Reason.MALFORMED_PACKET
            continue
        assert isinstance(found, Connect)
        assert found.clean_start is bool(flags & 2)
        assert (found.username, found.password) == ("u" if flags & 0x80 else None, b"s" if flags & 0x40 else None)
        assert (found.will is not None) is bool(flags & 4)
        if found.will is not None:
            assert (found.will.qos, found.will.retain) == (flags >> 3 & 3, bool(flags & 0x20))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_connect_has_the_fields_of_its_flags_and_no_others(version: int) -> None:
    # [MQTT-3.1.2-9] [MQTT-3.1.2-16] [MQTT-3.1.2-17] [MQTT-3.1.2-18] [MQTT-3.1.2-19] [MQTT-3.1.3-3]
    will = (b"\x00" if version == 5 else b"") + b"\x00\x01w\x00\x01p"
    fields = [b"\x00\x01c", will, b"\x00\x01u", b"\x00\x01s"]
    assert isinstance(decoded(0, connect(version, 0xC6, b"".join(fields))), Connect)
    assert decoded(0, connect(version, 0xC6, b"".join(fields) + b"\x00")) is Reason.MALFORMED_PACKET
    for missing in range(1, 5):
        found = decoded(0, connect(version, 0xC6, b"".join(fields[:-missing])))
        # In MQTT 3.1 what stands behind the will may be left out.
        assert isinstance(found, Connect) if version == 3 and missing < 3 else found is Reason.MALFORMED_PACKET


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("clean_start", [True, False])
def test_an_empty_client_identifier_is_accepted_where_its_version_says_so(version: int, clean_start: bool) -> None:
    found = decoded(0, connect(version, 2 * clean_start, b"\x00\x00"))
    if version == 5 or (version == 4 and clean_start):
        assert isinstance(found, Connect)
        assert found.client_id == ""
    else:
        # [MQTT-3.1.3-8] of MQTT 3.1.1
        assert found is Reason.CLIENT_IDENTIFIER_NOT_VALID


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("client_id", ["c", "x" * 23, "x" * 24, "é/+#$ \U0001f525", "x" * 65_535])
def test_any_other_client_identifier_is_accepted(version: int, client_id: str) -> None:
    # [MQTT-3.1.3-4] [MQTT-3.1.3-5]
    body = connect(version, 2, b"")[2:] + encode_string(client_id)
    found = decode_packet(0x10, body, 0, len(body), 0)
    assert isinstance(found, Connect)
    assert found.client_id == client_id


@pytest.mark.parametrize("name", ["MQTT", "MQIsdp", "mqtt", "MQTt", "MQTT ", "", "\ufeffMQTT"])
def test_a_protocol_is_spoken_where_its_name_and_level_belong_together(name: str) -> None:
    # [MQTT-3.1.2-1] [MQTT-3.1.2-2]
    spoken = {("MQIsdp", 3): 3, ("MQTT", 4): 4, ("MQTT", 5): 5}
    assert spoken == PROTOCOLS
    for level in range(256):
        data = encode_string(name) + bytes((level,))
        if (name, level) in spoken:
            assert read_version(Reader(data, 0, len(data))) == spoken[name, level]
        else:
            with pytest.raises(ProtocolError) as failure:
                read_version(Reader(data, 0, len(data)))
            assert failure.value.reason is Reason.UNSUPPORTED_PROTOCOL_VERSION


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_publish_is_the_same_whether_its_topic_was_seen_before_or_not(version: int, qos: int) -> None:
    topic = f"never/seen/{version}/{qos}"
    body = encode_string(topic) + (b"\x12\x34" if qos else b"") + (b"\x00" if version == 5 else b"") + b"payload"
    data = bytes((0x31 | qos << 1, len(body))) + body
    expected = Publish(topic, b"payload", qos, True, False, 0x1234 if qos else 0)
    assert decoded(version, data) == expected
    assert decoded(version, data) == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_a_publish_to_a_known_topic_is_as_strict_as_one_to_a_new_one(version: int) -> None:
    data = b"\x30\x04\x00\x01k\x00"
    assert decoded(version, data) == Publish("k", b"" if version == 5 else b"\0")
    # packet identifier 0, and none [MQTT-2.2.1-3]
    assert decoded(version, b"\x32\x06\x00\x01k\x00\x00\x00") is Reason.PROTOCOL_ERROR
    assert decoded(version, b"\x32\x03\x00\x01k\x00\x01\x00") is Reason.MALFORMED_PACKET
    assert decoded(version, b"\x32\x04\x00\x01k\x01\x00\x01\x00") is Reason.MALFORMED_PACKET
    # a topic that reaches into the next packet
    assert decoded(version, b"\x30\x02\x00\x01k\x00\x00") is Reason.MALFORMED_PACKET
    if version == 5:
        # no properties at all, properties that reach beyond the packet, properties
        assert decoded(5, b"\x30\x03\x00\x01k\x00") is Reason.MALFORMED_PACKET
        assert decoded(5, b"\x30\x04\x00\x01k\x02\x01\x01") is Reason.MALFORMED_PACKET
        assert decoded(5, b"\x30\x06\x00\x01k\x02\x01\x01") == Publish("k", b"", properties=((1, 1),))


def test_a_packet_is_read_where_it_stands_among_others() -> None:
    for case in GOOD:
        size = 2
        while case.data[size - 1] >= 0x80:
            size += 1
        data = b"\xff" * 7 + case.data[size:] + b"\xff" * 7
        assert decode_packet(case.data[0], data, 7, len(data) - 7, case.version) == case.expected


def test_a_packet_that_is_cut_anywhere_is_no_packet_or_another_one() -> None:
    for case in (*GOOD, *BAD):
        for end in range(1, min(len(case.data), 120)):
            if case.data[1] >= 0x80:
                continue
            data = case.data[:1] + bytes((max(end - 2, 0),)) + case.data[2:end]
            decoder = Decoder(case.version)
            packets = decoder.feed(data)
            assert (len(packets) == 1) is (decoder.error is None)

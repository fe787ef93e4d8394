"""Every property in every place, against what the specification says of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.mqtt.codec import Decoder, encode
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
    Unsubscribe,
    Will,
)
from broker.mqtt.properties import (
    WILL,
    Properties,
    Property,
    Value,
    check_properties,
    decode_properties,
    encode_properties,
    first,
)
from broker.mqtt.reason import Reason
from broker.mqtt.wire import encode_varint
from tests.broker.mqtt import specification as spec
from tests.broker.mqtt.strategies import properties

METHOD = (0x15, "PLAIN")
IDS = sorted(spec.RULES)

_SMALL: dict[str, tuple[Value, str]] = {
    spec.BYTE: (1, "01"),
    spec.TWO_BYTES: (258, "0102"),
    spec.FOUR_BYTES: (16_909_060, "01020304"),
    spec.VARINT: (300, "ac02"),
    spec.STRING: ("a/b", "0003612f62"),
    spec.BINARY: (b"\0\xff", "000200ff"),
    spec.PAIR: (("k", "v"), "00016b000176"),
}


def sample(id: int) -> tuple[int, Value]:
    """A property with a valid value."""
    return id, _SMALL[spec.RULES[id].type][0]


def written(id: int) -> bytes:
    """The bytes of that property."""
    return bytes((id,)) + bytes.fromhex(_SMALL[spec.RULES[id].type][1])


def complete(place: int, ids: list[int]) -> tuple[Properties, bytes]:
    """Those properties and the authentication method that they may need, and their bytes."""
    if 0x15 not in ids and (place == spec.AUTH or 0x16 in ids):
        ids = [0x15, *ids]
    return tuple(sample(id) for id in ids), b"".join(written(id) for id in ids)


_PACKETS: dict[int, Callable[[Properties], Packet]] = {
    WILL: lambda p: Connect("c", 5, True, 0, Will("w", b"", 0, False, p), None, None),
    spec.CONNECT: lambda p: Connect("c", 5, True, 0, None, None, None, p),
    spec.CONNACK: lambda p: Connack(False, 0, p),
    spec.PUBLISH: lambda p: Publish("t", b"x", properties=p),
    spec.PUBACK: lambda p: Puback(1, 0, p),
    spec.PUBREC: lambda p: Pubrec(1, 0, p),
    spec.PUBREL: lambda p: Pubrel(1, 0, p),
    spec.PUBCOMP: lambda p: Pubcomp(1, 0, p),
    spec.SUBSCRIBE: lambda p: Subscribe(1, (Subscription("t", 0),), p),
    spec.SUBACK: lambda p: Suback(1, (0,), p),
    spec.UNSUBSCRIBE: lambda p: Unsubscribe(1, ("t",), p),
    spec.UNSUBACK: lambda p: Unsuback(1, (0,), p),
    spec.DISCONNECT: lambda p: Disconnect(0, p),
    spec.AUTH: lambda p: Auth(0x18, p),
}


_AROUND: dict[int, tuple[str, str]] = {
    # What stands before the length of the properties, and what behind them.
    WILL: ("10 0004 4d515454 05 06 0000 00 0001 63", "0001 77 0000"),
    spec.CONNECT: ("10 0004 4d515454 05 02 0000", "0001 63"),
    spec.CONNACK: ("20 00 00", ""),
    spec.PUBLISH: ("30 0001 74", "78"),
    spec.PUBACK: ("40 0001 00", ""),
    spec.PUBREC: ("50 0001 00", ""),
    spec.PUBREL: ("62 0001 00", ""),
    spec.PUBCOMP: ("70 0001 00", ""),
    spec.SUBSCRIBE: ("82 0001", "0001 74 00"),
    spec.SUBACK: ("90 0001", "00"),
    spec.UNSUBSCRIBE: ("a2 0001", "0001 74"),
    spec.UNSUBACK: ("b0 0001", "00"),
    spec.DISCONNECT: ("e0 00", ""),
    spec.AUTH: ("f0 18", ""),
}


def frame(place: int, block: bytes) -> bytes:
    """A packet with these properties, put together by hand."""
    before, behind = (bytes.fromhex(part) for part in _AROUND[place])
    body = before[1:] + encode_varint(len(block)) + block + behind
    return before[:1] + encode_varint(len(body)) + body


def decoded(place: int, block: bytes) -> Packet | Reason:
    """The packet with these properties, or why there is none."""
    decoder = Decoder(0 if place in (WILL, spec.CONNECT) else 5)
    packets = decoder.feed(frame(place, block))
    if decoder.error is not None:
        assert packets == []
        return decoder.error.reason
    return packets[0]


def test_every_property_of_the_specification_is_known_and_no_other() -> None:
    assert {int(property) for property in Property} == set(spec.RULES)
    names = {property.name.replace("_", " ").lower(): int(property) for property in Property}
    assert names == {rule.name.lower(): id for id, rule in spec.RULES.items()}


@pytest.mark.parametrize("place", spec.PLACES)
@pytest.mark.parametrize("id", IDS, ids=lambda id: spec.RULES[id].name)
def test_a_property_is_accepted_exactly_where_the_specification_allows_it(id: int, place: int) -> None:
    values, block = complete(place, [id])
    if place in spec.RULES[id].places:
        packet = _PACKETS[place](values)
        assert decoded(place, block) == packet
        assert encode(packet, 5) == frame(place, block)
        assert decode_properties(block, place) == values
        check_properties(values, place)
    else:
        # A property that is not of its packet makes it malformed (2.2.2.2).
        assert decoded(place, block) is Reason.MALFORMED_PACKET
        with pytest.raises(ValueError, match="does not belong"):
            encode(_PACKETS[place](values), 5)
        with pytest.raises(ValueError, match="does not belong"):
            check_properties(values, place)


@pytest.mark.parametrize("place", spec.PLACES)
@pytest.mark.parametrize("id", IDS, ids=lambda id: spec.RULES[id].name)
def test_a_property_stands_twice_only_where_the_specification_allows_it(id: int, place: int) -> None:
    if place not in spec.RULES[id].places:
        return
    values, block = complete(place, [id, id])
    if (id, place) in spec.REPEATABLE:
        assert decoded(place, block) == _PACKETS[place](values)
        assert encode(_PACKETS[place](values), 5) == frame(place, block)
    else:
        assert decoded(place, block) is Reason.PROTOCOL_ERROR
        with pytest.raises(ValueError, match="given twice"):
            encode(_PACKETS[place](values), 5)


@pytest.mark.parametrize("place", spec.PLACES)
def test_an_identifier_that_no_property_has_is_malformed_everywhere(place: int) -> None:
    for id in set(range(256)) - set(spec.RULES):
        _, block = complete(place, [])
        assert decoded(place, block + bytes((id, 0, 0, 0, 0))) is Reason.MALFORMED_PACKET
    with pytest.raises(ValueError, match="does not belong"):
        check_properties(((0x7F, 0),), place)


def test_an_identifier_that_no_property_has_is_not_written() -> None:
    with pytest.raises(ValueError, match="no property"):
        encode_properties(((0x7F, 0),))


@pytest.mark.parametrize("place", spec.PLACES)
@pytest.mark.parametrize("id", IDS, ids=lambda id: spec.RULES[id].name)
def test_a_property_that_is_cut_short_is_malformed(id: int, place: int) -> None:
    if place not in spec.RULES[id].places:
        return
    _, block = complete(place, [id])
    for missing in range(1, len(written(id))):
        assert decoded(place, block[:-missing]) is Reason.MALFORMED_PACKET


@pytest.mark.parametrize("place", spec.PLACES)
def test_properties_longer_than_their_packet_are_malformed(place: int) -> None:
    values, block = complete(place, [0x26])
    del values
    before, _ = (bytes.fromhex(part) for part in _AROUND[place])
    for length in (len(block) + 1, 127, 16_384):
        body = before[1:] + encode_varint(length) + block
        decoder = Decoder(0 if place in (WILL, spec.CONNECT) else 5)
        decoder.feed(before[:1] + encode_varint(len(body)) + body)
        assert decoder.error is not None
        assert decoder.error.reason is Reason.MALFORMED_PACKET


@pytest.mark.parametrize("place", [place for place in spec.PLACES if place != spec.AUTH])
def test_no_properties_are_a_length_of_0(place: int) -> None:
    # [MQTT-2.2.2-1]
    packet = _PACKETS[place](())
    assert decoded(place, b"") == packet
    if place not in (spec.PUBACK, spec.PUBREC, spec.PUBREL, spec.PUBCOMP, spec.DISCONNECT):
        assert encode(packet, 5) == frame(place, b"")


@pytest.mark.parametrize("id", [id for id in IDS if spec.RULES[id].domain == spec.BOOLEAN])
def test_what_is_0_or_1_is_nothing_else(id: int) -> None:
    for place in spec.RULES[id].places:
        for value in range(256):
            found = decoded(place, bytes((id, value)))
            if value < 2:
                assert found == _PACKETS[place](((id, value),))
            else:
                assert found is Reason.PROTOCOL_ERROR
        with pytest.raises(ValueError, match="neither 0 nor 1"):
            encode(_PACKETS[place](((id, 2),)), 5)


@pytest.mark.parametrize("id", [id for id in IDS if spec.RULES[id].domain == spec.POSITIVE])
def test_what_must_not_be_0_is_not_0(id: int) -> None:
    size = {spec.VARINT: 1, spec.TWO_BYTES: 2, spec.FOUR_BYTES: 4}[spec.RULES[id].type]
    # [MQTT-3.3.2-8]: a topic alias of 0 has a reason code of its own
    expected = Reason.TOPIC_ALIAS_INVALID if id == 0x23 else Reason.PROTOCOL_ERROR
    for place in spec.RULES[id].places:
        assert decoded(place, bytes((id,)) + bytes(size)) is expected
        assert decoded(place, bytes((id,)) + bytes(size - 1) + b"\1") == _PACKETS[place](((id, 1),))
        with pytest.raises(ValueError, match="it is 0"):
            encode(_PACKETS[place](((id, 0),)), 5)


@pytest.mark.parametrize("place", [WILL, spec.PUBLISH])
@pytest.mark.parametrize("topic", ["", "#", "a/+"])
def test_a_response_topic_is_a_topic_name(place: int, topic: str) -> None:
    # [MQTT-3.3.2-14]
    block = b"\x08" + len(topic).to_bytes(2) + topic.encode()
    assert decoded(place, block) is Reason.PROTOCOL_ERROR
    with pytest.raises(ValueError, match="response topic"):
        encode(_PACKETS[place](((0x08, topic),)), 5)


@pytest.mark.parametrize(
    "id", [id for id in IDS if spec.RULES[id].type in (spec.STRING, spec.PAIR)], ids=lambda id: spec.RULES[id].name
)
@pytest.mark.parametrize("text", [b"\xff", b"\0", b"\xed\xa0\x80"])
def test_a_property_that_is_text_is_utf_8(id: int, text: bytes) -> None:
    # [MQTT-1.5.4-1] [MQTT-1.5.4-2] [MQTT-1.5.7-1] [MQTT-3.3.2-13] [MQTT-3.3.2-19]
    field = len(text).to_bytes(2) + text
    blocks = [bytes((id,)) + field]
    if spec.RULES[id].type == spec.PAIR:
        blocks = [bytes((id,)) + field + b"\0\1v", bytes((id,)) + b"\0\1k" + field]
    for place in spec.RULES[id].places:
        for block in blocks:
            assert decoded(place, block) is Reason.MALFORMED_PACKET


@pytest.mark.parametrize("place", [spec.CONNECT, spec.CONNACK, spec.AUTH])
def test_authentication_data_needs_a_method(place: int) -> None:
    data = written(0x16)
    assert decoded(place, data) is Reason.PROTOCOL_ERROR
    assert decoded(place, data + written(0x15)) == _PACKETS[place]((sample(0x16), sample(0x15)))
    with pytest.raises(ValueError, match="authentication method is missing"):
        encode(_PACKETS[place]((sample(0x16),)), 5)


def test_an_auth_packet_needs_a_method() -> None:
    assert decoded(spec.AUTH, written(0x1F)) is Reason.PROTOCOL_ERROR
    with pytest.raises(ValueError, match="authentication method is missing"):
        encode(Auth(0x18), 5)


@pytest.mark.parametrize("id", IDS, ids=lambda id: spec.RULES[id].name)
def test_a_value_of_another_type_is_not_written(id: int) -> None:
    kind = type(sample(id)[1])
    others: list[Value] = [1, "a", b"a", ("a", "b")]
    for value in others:
        if type(value) is not kind:
            with pytest.raises(ValueError, match=spec.RULES[id].name.lower()):
                encode_properties(((id, value),))


@pytest.mark.parametrize(
    ("id", "most"), [(0x13, 0xFFFF), (0x22, 0xFFFF), (0x11, 0xFFFFFFFF), (0x02, 0xFFFFFFFF), (0x0B, 268_435_455)]
)
def test_a_number_that_its_bytes_do_not_hold_is_not_written(id: int, most: int) -> None:
    assert decode_properties(encode_properties(((id, most),)), min(spec.RULES[id].places - {WILL})) == ((id, most),)
    for value in (-1, most + 1):
        with pytest.raises(ValueError, match=spec.RULES[id].name.lower()):
            encode_properties(((id, value),))


def test_a_user_property_is_a_pair() -> None:
    with pytest.raises(ValueError, match="pair"):
        encode_properties(((0x26, ("a", "b", "c")),))  # type: ignore[arg-type] # what the types forbid


def test_the_first_of_several_is_found() -> None:
    several: Properties = ((0x26, ("a", "1")), (0x03, "text"), (0x26, ("a", "2")))
    assert first(several, 0x26) == ("a", "1")
    assert first(several, 0x03) == "text"
    assert first(several, 0x08) is None
    assert first((), 0x26) is None


@settings(deadline=None)
@given(st.sampled_from(spec.PLACES).flatmap(lambda place: st.tuples(st.just(place), properties(place))))
def test_properties_keep_their_order(chosen: tuple[int, Properties]) -> None:
    # [MQTT-3.3.2-18]
    place, values = chosen
    if place == spec.AUTH and first(values, 0x15) is None:
        values = (METHOD, *values)
    assert decode_properties(encode_properties(values), place) == values


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(spec.PLACES), st.binary(max_size=24))
def test_whatever_the_bytes_are_there_are_properties_or_a_protocol_error(place: int, block: bytes) -> None:
    try:
        values = decode_properties(block, place)
    except ProtocolError:
        return
    assert encode_properties(values) == block

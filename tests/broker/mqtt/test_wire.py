"""The data types of the wire: numbers, strings, and where they end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.mqtt.errors import ProtocolError
from broker.mqtt.reason import Reason
from broker.mqtt.wire import VARINT_MAX, Reader, decode_text, encode_binary, encode_string, encode_varint
from tests.broker.mqtt.strategies import texts


def reader(data: bytes) -> Reader:
    """A reader whose bytes stand among others."""
    return Reader(b"\xff\xff" + data + b"\x01\x01\x01\x01\x01", 2, 2 + len(data))


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (0, "00"),
        (127, "7f"),
        (128, "8001"),
        (16_383, "ff7f"),
        (16_384, "808001"),
        (2_097_151, "ffff7f"),
        (2_097_152, "80808001"),
        (268_435_455, "ffffff7f"),
    ],
)
def test_a_variable_byte_integer_is_written_as_the_table_of_the_specification_says(number: int, written: str) -> None:
    # table 1-1
    assert encode_varint(number).hex() == written
    assert reader(bytes.fromhex(written)).varint() == number


@settings(deadline=None)
@given(st.integers(0, VARINT_MAX))
def test_a_variable_byte_integer_comes_back_in_the_fewest_bytes(number: int) -> None:
    written = encode_varint(number)
    taken = reader(written)
    assert taken.varint() == number
    taken.finish()
    assert len(written) == next(size for size in (1, 2, 3, 4) if number < 1 << 7 * size)


@pytest.mark.parametrize("number", [-1, VARINT_MAX + 1])
def test_a_number_that_does_not_fit_is_not_written(number: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        encode_varint(number)


@settings(deadline=None)
@given(st.integers(0, VARINT_MAX), st.integers(1, 3))
def test_a_variable_byte_integer_longer_than_it_need_be_is_malformed(number: int, padding: int) -> None:
    # [MQTT-1.5.5-1]
    written = bytearray(encode_varint(number))
    written[-1] |= 0x80
    written += b"\x80" * (padding - 1) + b"\0"
    with pytest.raises(ProtocolError) as failure:
        reader(bytes(written)).varint()
    assert failure.value.reason is Reason.MALFORMED_PACKET


def test_a_variable_byte_integer_has_at_most_four_bytes() -> None:
    with pytest.raises(ProtocolError, match="more than four bytes"):
        reader(b"\xff\xff\xff\xff\x01").varint()


READS: list[tuple[str, Callable[[Reader], object], bytes, object]] = [
    ("byte", Reader.byte, b"\x01", 1),
    ("two_bytes", Reader.two_bytes, b"\x01\x02", 0x0102),
    ("four_bytes", Reader.four_bytes, b"\x01\x02\x03\x04", 0x01020304),
    ("varint", Reader.varint, b"\x80\x80\x01", 16_384),
    ("binary", Reader.binary, b"\x00\x02ab", b"ab"),
    ("string", Reader.string, b"\x00\x02ab", "ab"),
    ("pair", Reader.pair, b"\x00\x01a\x00\x01b", ("a", "b")),
    ("packet_id", Reader.packet_id, b"\x01\x00", 256),
]


@pytest.mark.parametrize(("name", "read", "data", "value"), READS, ids=[read[0] for read in READS])
def test_a_value_is_read_to_its_end_and_never_beyond_the_packet(
    name: str, read: Callable[[Reader], object], data: bytes, value: object
) -> None:
    whole = reader(data)
    assert read(whole) == value
    whole.finish()
    for size in range(len(data)):
        with pytest.raises(ProtocolError, match="ends inside a field") as failure:
            read(reader(data[:size]))
        assert failure.value.reason is Reason.MALFORMED_PACKET


def test_what_is_left_over_is_malformed() -> None:
    taken = reader(b"\x01\x02")
    taken.byte()
    with pytest.raises(ProtocolError, match="longer than its fields"):
        taken.finish()
    assert taken.rest() == b"\x02"
    taken.finish()


def test_a_packet_identifier_is_never_0() -> None:
    # [MQTT-2.2.1-3] [MQTT-2.2.1-4]
    with pytest.raises(ProtocolError) as failure:
        reader(b"\x00\x00").packet_id()
    assert failure.value.reason is Reason.PROTOCOL_ERROR


@settings(deadline=None)
@given(texts(40))
def test_a_string_comes_back_from_its_bytes(text: str) -> None:
    taken = reader(encode_string(text))
    assert taken.string() == text
    taken.finish()


@pytest.mark.parametrize(
    "data",
    [
        "80",  # a continuation byte alone
        "c3",  # cut short
        "c080",  # U+0000 in two bytes
        "c0af",  # '/' in two bytes
        "e080af",  # '/' in three
        "f08080af",  # '/' in four
        "eda080",  # U+D800
        "edafbf",  # U+DBFF
        "edb080",  # U+DC00
        "edbfbf",  # U+DFFF
        "eda0bdedb880",  # a pair of surrogates for one character
        "f4908080",  # above U+10FFFF
        "f888808080",  # five bytes
        "fe",
        "ff",
        "610062",  # U+0000 itself
    ],
)
def test_bytes_that_no_string_of_mqtt_has_are_malformed(data: str) -> None:
    # [MQTT-1.5.4-1] [MQTT-1.5.4-2]
    with pytest.raises(ProtocolError) as failure:
        decode_text(bytes.fromhex(data))
    assert failure.value.reason is Reason.MALFORMED_PACKET


@pytest.mark.parametrize(
    "text", ["", "\x01\x1f\x7f\x9f", "\ufeffa\ufeff", "\ufffe\uffff", "\ufdd0", "\ud7ff\ue000", "\U0010ffff", "e\u0301"]
)
def test_a_string_is_neither_stripped_nor_normalised(text: str) -> None:
    # [MQTT-1.5.4-3]; characters that one SHOULD NOT send are no reason to end a connection
    assert decode_text(text.encode()) == text


@settings(deadline=None)
@given(st.binary(max_size=12))
def test_bytes_are_a_string_exactly_where_the_unicode_standard_says_so(data: bytes) -> None:
    if well_formed(data):
        assert decode_text(data).encode() == data
        return
    with pytest.raises(ProtocolError) as failure:
        decode_text(data)
    assert failure.value.reason is Reason.MALFORMED_PACKET


def well_formed(data: bytes) -> bool:
    """Table 3-7 of the Unicode standard, byte by byte, without U+0000."""
    lead: list[tuple[range, list[range]]] = [
        (range(0x01, 0x80), []),
        (range(0xC2, 0xE0), [range(0x80, 0xC0)]),
        (range(0xE0, 0xE1), [range(0xA0, 0xC0), range(0x80, 0xC0)]),
        (range(0xE1, 0xED), [range(0x80, 0xC0)] * 2),
        (range(0xED, 0xEE), [range(0x80, 0xA0), range(0x80, 0xC0)]),
        (range(0xEE, 0xF0), [range(0x80, 0xC0)] * 2),
        (range(0xF0, 0xF1), [range(0x90, 0xC0), *[range(0x80, 0xC0)] * 2]),
        (range(0xF1, 0xF4), [range(0x80, 0xC0)] * 3),
        (range(0xF4, 0xF5), [range(0x80, 0x90), *[range(0x80, 0xC0)] * 2]),
    ]
    at = 0
    while at < len(data):
        following = next((following for first, following in lead if data[at] in first), None)
        if following is None or len(data) < at + 1 + len(following):
            return False
        if any(byte not in allowed for byte, allowed in zip(data[at + 1 :], following, strict=False)):
            return False
        at += 1 + len(following)
    return True


@pytest.mark.parametrize("text", ["\0", "a\0b", "\ud800", "a\udfff"])
def test_a_string_that_mqtt_cannot_carry_is_not_written(text: str) -> None:
    with pytest.raises(ValueError):
        encode_string(text)


def test_a_field_holds_65535_bytes_and_no_more() -> None:
    # [MQTT-4.7.3-3]
    assert encode_binary(bytes(65_535))[:2] == b"\xff\xff"
    assert reader(encode_string("é" * 32_767)).string() == "é" * 32_767
    with pytest.raises(ValueError, match="65536 bytes"):
        encode_binary(bytes(65_536))
    with pytest.raises(ValueError, match="65536 bytes"):
        encode_string("é" * 32_768)

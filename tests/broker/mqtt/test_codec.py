"""The decoder and the encoder together: the table of cases, every packet there and back, and what never may happen."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.mqtt.codec import MAX_PACKET_SIZE, Decoder, encode
from broker.mqtt.packets import Connect, Packet, Pingreq, Puback, Publish
from broker.mqtt.reason import Reason
from broker.mqtt.wire import encode_varint
from tests.broker.mqtt.cases import BAD, CASES, GOOD, Case
from tests.broker.mqtt.strategies import KINDS, VERSIONS, cuts, packets, streams
from tests.fuzz.invariant import bit_by_bit, outcome, pieces, violation

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_good_case = pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
every_bad_case = pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)
every_version = pytest.mark.parametrize("version", VERSIONS)


def check(case: Case, parts: list[bytes]) -> None:
    """Hold what the decoder makes of these pieces against the case."""
    found, error, _ = outcome(case.version, parts)
    if isinstance(case.expected, Reason):
        assert found == []
        assert error is not None
        assert error[0] is case.expected
        assert case.message in error[1]
    else:
        assert error is None
        assert found == [case.expected]


@every_case
def test_a_packet_is_what_the_table_says(case: Case) -> None:
    check(case, [case.data])


@every_bad_case
def test_an_error_names_the_clause_that_is_broken_or_one_on_all_packets(case: Case) -> None:
    decoder = Decoder(case.version)
    decoder.feed(case.data)
    assert decoder.error is not None
    clause = decoder.error.clause
    of_all = ("", "MQTT-1.5.4-1", "MQTT-1.5.4-2")
    assert clause in (*case.clauses, *of_all) or clause.startswith("section ") or not case.clauses


@every_case
def test_a_packet_that_comes_byte_by_byte_is_what_the_table_says(case: Case) -> None:
    check(case, [case.data[i : i + 1] for i in range(len(case.data))])


@every_case
def test_a_packet_that_comes_in_random_pieces_is_what_the_table_says(case: Case) -> None:
    rng = random.Random(case.name)
    for _ in range(20):
        check(case, pieces(case.data, [rng.randint(0, len(case.data)) for _ in range(rng.randint(1, 5))]))


@every_good_case
def test_a_packet_is_encoded_to_the_bytes_of_the_table(case: Case) -> None:
    assert not isinstance(case.expected, Reason)
    version = case.expected.version if isinstance(case.expected, Connect) else case.version
    written = encode(case.expected, version)
    assert (written == case.data) is case.canonical
    assert outcome(case.version, [written])[0] == [case.expected]


@every_good_case
def test_a_packet_behind_another_is_what_the_table_says(case: Case) -> None:
    assert not isinstance(case.expected, Reason)
    if case.version == 0:
        assert isinstance(case.expected, Connect)
        found, error, _ = outcome(0, [case.data + b"\xc0\x00"])
        assert found == [case.expected, Pingreq()]
    else:
        found, error, _ = outcome(case.version, [b"\xc0\x00" + case.data + b"\xc0\x00"])
        assert found == [Pingreq(), case.expected, Pingreq()]
    assert error is None


@every_bad_case
def test_the_packets_before_a_broken_one_are_returned_and_none_behind_it(case: Case) -> None:
    if case.version == 0:
        return
    decoder = Decoder(case.version)
    assert decoder.feed(b"\xc0\x00" + case.data + b"\xc0\x00") == [Pingreq()]
    assert decoder.error is not None
    assert decoder.feed(b"\xc0\x00") == []


@pytest.mark.parametrize(("kind", "version"), KINDS, ids=lambda value: getattr(value, "__name__", value))
def test_every_packet_comes_back_from_its_bytes(kind: type[Packet], version: int) -> None:
    @settings(deadline=None, max_examples=60)
    @given(packets(kind, version))
    def comes_back(packet: Packet) -> None:
        written = encode(packet, version)
        start = 0 if kind is Connect else version
        assert outcome(start, [written]) == ([packet], None, version)
        assert len(written) == 1 + len(encode_varint(len(written) - 2)) + remaining_length(written)

    comes_back()


def remaining_length(packet: bytes) -> int:
    """What the fixed header says of the rest."""
    length = shift = 0
    for byte in packet[1:5]:
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return length


@every_version
def test_a_stream_is_the_same_however_it_is_cut(version: int) -> None:
    @settings(deadline=None, max_examples=80)
    @given(packets(Connect, version), streams(version), st.data())
    def is_the_same(connect: Packet, following: list[Packet], data: st.DataObject) -> None:
        sent = [connect, *following]
        written = b"".join(encode(packet, version) for packet in sent)
        where = data.draw(cuts(len(written)))
        parts = pieces(written, where)
        assert outcome(0, parts) == bit_by_bit(0, parts) == (sent, None, version)

    is_the_same()


def test_a_stretch_ends_with_the_packet_that_begins_in_it() -> None:
    decoder = Decoder(4)
    publish = Publish("a", b"x")
    sent = encode(publish, 4) * 4
    assert decoder.feed(sent, len(sent) // 2 + 1) == [publish] * 3
    assert decoder.at_hand == len(sent) // 4
    decoder.keep(sent[:3])
    assert decoder.more(1) == [publish]
    assert decoder.at_hand == 3
    assert decoder.more() == []
    assert not decoder.at_hand
    assert decoder.feed(sent[3:]) == [publish] * 4


@settings(deadline=None, max_examples=300)
@given(st.sampled_from((0, *VERSIONS)), st.binary(max_size=64), st.data())
def test_whatever_bytes_come_there_are_packets_or_one_protocol_error(
    version: int, noise: bytes, data: st.DataObject
) -> None:
    assert violation(version, noise, data.draw(cuts(len(noise)))) is None


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(GOOD), st.data())
def test_whatever_is_done_to_a_valid_packet_there_are_packets_or_one_protocol_error(
    case: Case, data: st.DataObject
) -> None:
    damaged = bytearray(case.data)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    assert violation(case.version, bytes(damaged), data.draw(cuts(len(damaged)))) is None


# -- the fixed header


@pytest.mark.parametrize("size", [0, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152])
@every_version
def test_a_remaining_length_is_written_in_the_fewest_bytes(version: int, size: int) -> None:
    # [MQTT-1.5.5-1]; topic name, and in MQTT 5 the length of the properties, take some of it
    around = 3 + (version == 5)
    packet = Publish("a", bytes(max(size - around, 0)))
    written = encode(packet, version)
    assert remaining_length(written) == max(size, around)
    assert len(written) == 1 + (1 + (size > 127) + (size > 16_383) + (size > 2_097_151)) + max(size, around)
    assert outcome(version, [written]) == ([packet], None, version)


@pytest.mark.parametrize("length", ["8000", "808000", "80808000", "8100", "ff00", "ff8000"])
def test_a_remaining_length_that_takes_more_bytes_than_it_need_is_malformed(length: str) -> None:
    # [MQTT-1.5.5-1]
    found, error, _ = outcome(5, [b"\x30" + bytes.fromhex(length) + bytes(200)])
    assert found == []
    assert error == (Reason.MALFORMED_PACKET, "remaining length is longer than it need be")


def test_a_fifth_byte_of_the_remaining_length_is_not_waited_for() -> None:
    decoder = Decoder(5)
    assert decoder.feed(b"\x30\xff\xff\xff") == []
    assert decoder.error is None
    assert decoder.feed(b"\xff") == []
    assert decoder.error is not None
    assert decoder.error.reason is Reason.MALFORMED_PACKET


@pytest.mark.parametrize("first", [b"\x00", b"\x36", b"\x38", b"\x80", b"\xc1", b"\x60"])
def test_a_first_byte_that_no_packet_has_is_refused_before_anything_follows(first: bytes) -> None:
    decoder = Decoder(5)
    decoder.feed(first)
    assert decoder.error is not None
    assert decoder.error.reason is Reason.MALFORMED_PACKET


# -- limits


@every_version
@pytest.mark.parametrize("split", [False, True])
def test_a_packet_of_the_maximum_size_is_taken_and_one_byte_more_is_refused(version: int, split: bool) -> None:
    packet = Publish("a/b", b"x" * 100)
    written = encode(packet, version)
    parts = [written[:40], written[40:]] if split else [written]
    assert outcome(version, parts, len(written)) == ([packet], None, version)
    found, error, _ = outcome(version, parts, len(written) - 1)
    assert found == []
    assert error is not None
    assert error[0] is Reason.PACKET_TOO_LARGE


def test_a_packet_that_is_too_large_is_refused_by_its_fixed_header() -> None:
    decoder = Decoder(4, 1000)
    decoder.feed(b"\x30\xe8\x07")
    assert decoder.error is not None
    assert decoder.error.reason is Reason.PACKET_TOO_LARGE


def test_a_packet_of_any_size_is_too_large_only_where_a_maximum_says_so() -> None:
    assert MAX_PACKET_SIZE == 5 + 268_435_455
    decoder = Decoder(4)
    decoder.feed(b"\x30\xff\xff\xff\x7f")
    assert decoder.error is None


def test_the_maximum_holds_for_a_connect_too() -> None:
    connect = next(case for case in GOOD if case.name == "connect 3.1.1")
    _, error, _ = outcome(0, [connect.data], len(connect.data) - 1)
    assert error is not None
    assert error[0] is Reason.PACKET_TOO_LARGE


def test_what_has_not_arrived_takes_no_memory() -> None:
    tracemalloc.start()
    try:
        decoders = [Decoder(4) for _ in range(100)]
        for decoder in decoders:
            decoder.feed(b"\x30\xff\xff\xff\x7f")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_packet_in_many_pieces_is_looked_at_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    decode = Decoder._decode

    def counted(self: Decoder, data: bytes, at: int, stop: int, found: list[Packet]) -> int:
        nonlocal looks
        looks += 1
        return decode(self, data, at, stop, found)

    monkeypatch.setattr(Decoder, "_decode", counted)
    packet = Publish("a", bytes(20_000))
    written = encode(packet, 4)
    assert outcome(4, [written[i : i + 1] for i in range(len(written))]) == ([packet], None, 4)
    assert looks <= 5


def test_nothing_is_kept_of_what_was_decoded() -> None:
    decoder = Decoder(4)
    tail = b"\x30\x05\x00\x01a"
    for _ in range(3):
        decoder.feed(encode(Publish("a", bytes(5000)), 4) + tail)
        assert len(decoder._held) == len(tail)
        assert decoder.feed(b"xy") == [Publish("a", b"xy")]
        assert not decoder._held


# -- versions


def test_the_first_packet_tells_the_version_of_the_others() -> None:
    connect = encode(Connect("c", 5, True, 0, None, None, None), 5)
    publish = Publish("a", b"x")
    assert outcome(0, [connect + encode(publish, 5)])[0][1:] == [publish]
    older = encode(Connect("c", 4, True, 0, None, None, None), 4)
    assert outcome(0, [older + encode(publish, 4)])[0][1:] == [publish]


def test_the_version_of_a_connect_that_is_wrong_is_known() -> None:
    # so that the refusal can be written in that version
    for case in BAD:
        if case.name == "connect with a receive maximum of 0":
            assert outcome(0, [case.data])[2] == 5
            return
    pytest.fail("no such case")


def test_a_topic_that_one_connection_used_may_not_be_invalid_on_another() -> None:
    assert outcome(4, [b"\x30\x05\x00\x03a/b"])[0] == [Publish("a/b", b"")]
    # [MQTT-3.3.2-2]: the cache of topic names holds valid ones only
    for _ in range(2):
        _, error, _ = outcome(4, [b"\x30\x05\x00\x03a/#"])
        assert error is not None
        assert error[0] is Reason.TOPIC_NAME_INVALID


def test_ten_thousand_topics_are_not_all_remembered() -> None:
    from broker.mqtt.decode import TOPICS

    decoder = Decoder(4)
    for n in range(10_000):
        assert decoder.feed(encode(Publish(f"many/{n}", b""), 4)) == [Publish(f"many/{n}", b"")]
    assert len(TOPICS) <= 4096
    long = "x" * 5000
    assert decoder.feed(encode(Publish(long, b""), 4)) == [Publish(long, b"")]
    assert long.encode() not in TOPICS


def test_four_bytes_acknowledge_in_every_version() -> None:
    for version in VERSIONS:
        assert encode(Puback(258), version) == b"\x40\x02\x01\x02"
        assert outcome(version, [b"\x40\x02\x01\x02"])[0] == [Puback(258)]

"""A short run of the decoder's fuzzer, and that it would notice."""

from __future__ import annotations

import random

import pytest

from broker.mqtt.codec import MAX_PACKET_SIZE, Decoder
from broker.mqtt.packets import Packet
from tests.fuzz.decoder import fuzz, inputs


def test_damaged_packets_give_packets_or_one_protocol_error_however_they_are_cut() -> None:
    seen: set[str] = set()
    assert fuzz(inputs(random.Random(20260101)), 12_000, seen) is None
    assert len(seen) > 60, "the damage reaches too little of the decoder"


def test_the_fuzzer_notices_a_decoder_that_raises_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def feed(self: Decoder, data: bytes) -> list[Packet]:
        raise IndexError(f"{len(data)} bytes")

    monkeypatch.setattr(Decoder, "feed", feed)
    failure = fuzz(inputs(random.Random(1)), 10, set())
    assert failure is not None
    assert "IndexError" in str(failure)
    assert f"hex={failure.input.data.hex()}" in str(failure)


def test_the_fuzzer_notices_a_decoder_that_forgets_what_it_held(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Decoder.feed

    def feed(self: Decoder, data: bytes, stretch: int = MAX_PACKET_SIZE) -> list[Packet]:
        packets = whole(self, data, stretch)
        self._held.clear()
        return packets

    monkeypatch.setattr(Decoder, "feed", feed)
    failure = fuzz(inputs(random.Random(1)), 200, set())
    assert failure is not None
    assert "in pieces" in failure.problem

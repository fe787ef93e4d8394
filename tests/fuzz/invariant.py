"""The sentence that the decoder promises, as a function.

Whatever bytes arrive, in whatever pieces, and wherever it is told to stop, the decoder gives the same packets in the
same order, and then at most one ProtocolError is in `error`, and never is anything else raised. And a packet that was
decoded can be encoded again, and is the same packet when it is decoded once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from broker.mqtt.codec import MAX_PACKET_SIZE, Decoder, encode
from broker.mqtt.packets import Connect, Packet
from broker.mqtt.reason import Reason

Outcome = tuple[list[Packet], tuple[Reason, str] | None, int]
"""The packets, the reason and message of the error, and the version that the decoder ended with."""


def pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """The data, cut at these positions; an empty piece comes where two cuts fall together."""
    bounds = [0, *sorted(cuts), len(data)]
    return [data[start:end] for start, end in pairwise(bounds)]


def outcome(version: int, parts: Sequence[bytes], limit: int = MAX_PACKET_SIZE) -> Outcome:
    """What a new decoder makes of these pieces."""
    decoder = Decoder(version, limit)
    packets: list[Packet] = []
    for part in parts:
        packets += decoder.feed(part)
    error = decoder.error
    return packets, None if error is None else (error.reason, str(error)), decoder.version


def bit_by_bit(version: int, parts: Sequence[bytes], limit: int = MAX_PACKET_SIZE) -> Outcome:
    """The same, of a decoder that is told to stop again and again, and given more before it has gone on."""
    decoder = Decoder(version, limit)
    packets: list[Packet] = []
    for stretch, part in enumerate(parts, 1):
        if stretch % 2:
            packets += decoder.feed(part, stretch)
        else:
            decoder.keep(part)
    while decoder.at_hand:
        packets += decoder.more(3)
    error = decoder.error
    return packets, None if error is None else (error.reason, str(error)), decoder.version


def violation(version: int, data: bytes, cuts: Iterable[int], limit: int = MAX_PACKET_SIZE) -> str | None:
    """How these bytes, whole and cut at these positions, break the promise; None where they don't."""
    try:
        whole = outcome(version, [data], limit)
        parts = pieces(data, cuts)
        cut = outcome(version, parts, limit)
        bits = bit_by_bit(version, parts, limit)
    except Exception as error:  # noqa: BLE001 - anything raised is what is looked for
        return f"feed raised {error!r}"
    if whole != cut:
        return f"whole it gives {whole}, in pieces {cut}"
    if whole != bits:
        return f"whole it gives {whole}, bit by bit {bits}"
    for packet in whole[0]:
        again = 0 if isinstance(packet, Connect) else whole[2]
        try:
            found = outcome(again, [encode(packet, whole[2])])
        except ValueError as error:
            return f"{packet} cannot be encoded again: {error}"
        if found[0] != [packet]:
            return f"{packet} is {found} when it is encoded and decoded again"
    return None

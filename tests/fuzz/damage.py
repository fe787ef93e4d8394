"""Bytes, damaged."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from broker.mqtt.wire import encode_varint

_INTERESTING: Final = (0x00, 0x01, 0x02, 0x7F, 0x80, 0x81, 0xC0, 0xC3, 0xED, 0xEF, 0xF4, 0xFF, 0x23, 0x2B, 0x2F, 0x24)


def _flip(rng: random.Random, data: bytearray) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(rng: random.Random, data: bytearray) -> None:
    data[rng.randrange(len(data))] = rng.choice(_INTERESTING)


def _insert(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = bytes(rng.choice(_INTERESTING) for _ in range(rng.randint(1, 4)))


def _delete(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randint(1, 4)]


def _repeat(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    at = rng.randrange(len(data))
    data[at:at] = data[start : start + rng.randint(1, 16)]


def _truncate(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


_DAMAGES: Final[tuple[Callable[[random.Random, bytearray], None], ...]] = (
    _flip,
    _set,
    _insert,
    _delete,
    _repeat,
    _truncate,
)


def damaged(rng: random.Random, packet: bytes) -> bytes:
    """One packet with some damage; half the time its remaining length is put right, so that the damage lies deeper."""
    data = bytearray(packet)
    for _ in range(rng.randint(1, 3)):
        if data:
            rng.choice(_DAMAGES)(rng, data)
    if len(data) > 1 and data[1] < 0x80 and rng.random() < 0.5:
        data[1:2] = encode_varint(len(data) - 2)
    return bytes(data)


def cut(rng: random.Random, data: bytes) -> tuple[bytes, ...]:
    """The same bytes in a few pieces, none of them empty."""
    cuts = sorted({rng.randrange(1, len(data)) for _ in range(rng.randint(1, 4))}) if len(data) > 1 else []
    return tuple(data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True))

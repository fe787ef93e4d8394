"""A fuzzer of the decoder: `python -m tests.fuzz.run --minutes 5`.

It takes packets of the table of cases, strings some of them together, damages the bytes, cuts them into pieces, and
asks for the decoder's promise. A broken promise ends it with status 1 and the bytes that broke it.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from broker.mqtt.codec import MAX_PACKET_SIZE
from broker.mqtt.wire import encode_varint
from tests.broker.mqtt.cases import CASES, GOOD
from tests.fuzz.invariant import outcome, violation

_INTERESTING: Final = (0x00, 0x01, 0x02, 0x7F, 0x80, 0x81, 0xC0, 0xC3, 0xED, 0xEF, 0xF4, 0xFF, 0x23, 0x2B, 0x2F, 0x24)
_LIMITS: Final = (MAX_PACKET_SIZE, MAX_PACKET_SIZE, 2, 16, 64)


@dataclass(frozen=True, slots=True)
class Input:
    """What one decoder is given."""

    version: int
    data: bytes
    cuts: tuple[int, ...]
    limit: int


@dataclass(frozen=True, slots=True)
class Failure:
    """An input that broke the promise, and how."""

    input: Input
    problem: str

    def __str__(self) -> str:
        given = self.input
        return (
            f"{self.problem}\n"
            f"version={given.version} limit={given.limit} cuts={list(given.cuts)}\n"
            f"hex={given.data.hex()}"
        )


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


def _damaged(rng: random.Random, packet: bytes) -> bytes:
    """One packet with some damage; half the time its remaining length is put right, so that the damage lies deeper."""
    data = bytearray(packet)
    for _ in range(rng.randint(1, 3)):
        if data:
            rng.choice(_DAMAGES)(rng, data)
    if len(data) > 1 and data[1] < 0x80 and rng.random() < 0.5:
        data[1:2] = encode_varint(len(data) - 2)
    return bytes(data)


def inputs(rng: random.Random) -> Iterator[Input]:
    """Inputs without end."""
    connects = {
        version: [case.data for case in GOOD if _opens(case.version, case.expected) == version] for version in (3, 4, 5)
    }
    packets = {version: [case.data for case in CASES if case.version == version] for version in (0, 3, 4, 5)}
    packets[3] += packets[4]
    while True:
        version = rng.choice((3, 4, 5, 5))
        chosen = [rng.choice(packets[version]) for _ in range(rng.randint(1, 4))]
        start = version
        if rng.random() < 0.4:
            start = 0
            chosen.insert(0, rng.choice(connects[version] if rng.random() < 0.8 else packets[0]))
        if rng.random() < 0.9:
            damaged = rng.randrange(len(chosen))
            chosen[damaged] = _damaged(rng, chosen[damaged])
        data = b"".join(chosen)
        many = len(data) if rng.random() < 0.2 else rng.randint(0, 4)
        cuts = (
            tuple(range(1, len(data))) if many == len(data) else tuple(rng.randint(0, len(data)) for _ in range(many))
        )
        yield Input(start, data, cuts, rng.choice(_LIMITS))


def _opens(version: int, expected: object) -> int:
    return int(getattr(expected, "version", 0)) if version == 0 else 0


def fuzz(source: Iterator[Input], count: int, seen: set[str]) -> Failure | None:
    """Try the next `count` inputs; collect in `seen` the kinds of outcome that there were."""
    for _ in range(count):
        given = next(source)
        problem = violation(given.version, given.data, given.cuts, given.limit)
        if problem is not None:
            return Failure(given, problem)
        packets, error, _ = outcome(given.version, [given.data], given.limit)
        seen.update(type(packet).__name__ for packet in packets)
        if error is not None:
            seen.add(error[1])
    return None


def main() -> int:
    """Fuzz for some minutes; 1 where the promise was broken."""
    parser = argparse.ArgumentParser(prog="tests.fuzz.run", description="Feed damaged packets to the decoder.")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (default 5)")
    parser.add_argument(
        "--seed", type=int, default=None, help="to try the same inputs again (default: another each time)"
    )
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    source = inputs(random.Random(seed))
    seen: set[str] = set()
    done = 0
    began = told = time.monotonic()
    print(f"seed {seed}", flush=True)
    while (now := time.monotonic()) - began < options.minutes * 60:
        if now - told >= 10:
            told = now
            print(f"{now - began:.0f} s: {done} inputs, {len(seen)} kinds of outcome", flush=True)
        failure = fuzz(source, 500, seen)
        if failure is not None:
            print(failure, flush=True)
            return 1
        done += 500
    print(f"{done} inputs, {len(seen)} kinds of outcome, no promise broken", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

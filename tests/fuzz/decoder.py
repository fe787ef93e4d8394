"""Fuzzes the decoder: damaged packets, cut into pieces, and the promise of `invariant.py`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from broker.mqtt.codec import MAX_PACKET_SIZE
from tests.broker.mqtt.cases import CASES, GOOD
from tests.fuzz.damage import damaged
from tests.fuzz.invariant import outcome, violation

_LIMITS: Final = (MAX_PACKET_SIZE, MAX_PACKET_SIZE, 2, 16, 64)
_BATCH: Final = 500


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
            at = rng.randrange(len(chosen))
            chosen[at] = damaged(rng, chosen[at])
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


class DecoderTarget:
    """The decoder, as `run.py` drives it."""

    def __init__(self, seed: int) -> None:
        self._source = inputs(random.Random(seed))
        self._seen: set[str] = set()
        self._done = 0

    def go_on(self) -> str | None:
        """Try some more; what was found."""
        failure = fuzz(self._source, _BATCH, self._seen)
        self._done += _BATCH
        return None if failure is None else str(failure)

    def __str__(self) -> str:
        return f"{self._done} inputs, {len(self._seen)} kinds of outcome"

    def close(self) -> str | None:
        """Nothing is left to do, or to be found."""
        return None

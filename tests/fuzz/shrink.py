"""A sequence that breaks a promise, made as short as it can be while it still breaks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Final

from tests.fuzz.steps import SENDS, SENDS_EARLY, Sequence, Step, packets

_TRIES: Final = 2000

Fails = Callable[[Sequence], bool]


class _Enough(Exception):
    """So many tries were made as there may be."""


class Shrinker:
    """Makes one sequence shorter. `fails`: whether a sequence breaks the same promise."""

    def __init__(self, sequence: Sequence, fails: Fails, tries: int) -> None:
        self.shortest = sequence
        self._fails = fails
        self._left = tries

    def run(self) -> None:
        """Leave out steps, many at a time and then few, and then what is in them, for as long as that gets anywhere."""
        before = None
        while before != self.shortest:
            before = self.shortest
            size = len(self.shortest.steps)
            while size := size // 2:
                self._without(size)
            self._join()
            self._simplify()

    def _without(self, size: int) -> None:
        start = 0
        while start < len(self.shortest.steps):
            steps = self.shortest.steps
            if not self._try(steps[:start] + steps[start + size :]):
                start += size

    def _join(self) -> None:
        """Have what a client sends one after another sent at once: a packet is easier to see in one piece."""
        at = 0
        while at + 1 < len(self.shortest.steps):
            steps = self.shortest.steps
            one, two = steps[at], steps[at + 1]
            joined = replace(one, reads=(b"".join((*one.reads, *two.reads)),))
            together = one.reads and two.reads and one.subject == two.subject
            if not (together and self._try((*steps[:at], joined, *steps[at + 2 :]))):
                at += 1

    def _simplify(self) -> None:
        at = 0
        while at < len(self.shortest.steps):
            steps = self.shortest.steps
            if not any(self._try((*steps[:at], simpler, *steps[at + 1 :])) for simpler in _simpler(steps[at])):
                at += 1

    def _try(self, steps: tuple[Step, ...]) -> bool:
        self._left -= 1
        if self._left < 0:
            raise _Enough
        candidate = replace(self.shortest, steps=steps)
        failed = self._fails(candidate)
        if failed:
            self.shortest = candidate
        return failed


def shrink(sequence: Sequence, fails: Fails, tries: int = _TRIES) -> Sequence:
    """The shortest sequence that was found in so many tries and still fails."""
    shrinker = Shrinker(sequence, fails, tries)
    with suppress(_Enough):
        shrinker.run()
    return shrinker.shortest


def _simpler(step: Step) -> Iterator[Step]:
    """One step, with less in it."""
    if len(step.reads) > 1:
        yield replace(step, reads=(b"".join(step.reads),))
    if step.verb == SENDS_EARLY:
        yield replace(step, verb=SENDS)
    if len(step.reads) == 1:
        parts = list(packets(step.reads[0]))
        for at in range(len(parts) if len(parts) > 1 else 0):
            yield replace(step, reads=(b"".join(parts[:at] + parts[at + 1 :]),))

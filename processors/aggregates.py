"""Aggregates: what becomes of the values that fall into one window.

An aggregate is three functions over an accumulator: `init` makes it, `add` makes the next one of it and a value,
`result` says what is published. The accumulator is kept as JSON with every checkpoint, so it is made of numbers, text,
lists and dictionaries with text keys. `add` must leave the old accumulator as it is: where one aggregate of a window
fails, none of them has counted the event.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Final, Generic, TypeVar, cast

A = TypeVar("A")
V_contra = TypeVar("V_contra", contravariant=True)

_LARGEST_INTEGER: Final = (1 << 63) - 1


class Aggregate(Generic[V_contra]):
    """A name for the result, and how it comes of values of one type.

    `Aggregate("spread", lambda: [], lambda kept, value: [*kept, value], lambda kept: max(kept) - min(kept))`
    """

    __slots__ = ("add", "init", "name", "result")

    def __init__(
        self,
        name: str,
        init: Callable[[], A],
        add: Callable[[A, V_contra], A],
        result: Callable[[A], object] = lambda kept: kept,
    ) -> None:
        self.name = name
        self.init: Callable[[], object] = init
        # The three agree on the accumulator's type; from here on it is nobody else's business.
        self.add = cast("Callable[[object, V_contra], object]", add)
        self.result = cast("Callable[[object], object]", result)

    def named(self, name: str) -> Aggregate[V_contra]:
        """The same under another name."""
        return Aggregate(name, self.init, self.add, self.result)


def _kept(number: float) -> float:
    """The number, where JSON can hold it.

    Raises:
        OverflowError: it is infinite, not a number, or an integer of more than 64 bits.
    """
    if -_LARGEST_INTEGER <= number <= _LARGEST_INTEGER or (isinstance(number, float) and isfinite(number)):
        return number
    raise OverflowError(f"{number} can't be kept as a JSON number")


def _least(kept: float | None, value: float) -> float:
    value = _kept(value)
    return value if kept is None or value < kept else kept


def _most(kept: float | None, value: float) -> float:
    value = _kept(value)
    return value if kept is None or value > kept else kept


def _tally(kept: tuple[int, float], value: float) -> tuple[int, float]:
    number, total = kept
    return number + 1, _kept(total + value)


def _divide(kept: tuple[int, float]) -> float:
    number, total = kept
    return total / number


def _nothing() -> object:
    return None


def _no_number() -> float | None:
    return None


count: Final[Aggregate[object]] = Aggregate("count", int, lambda kept, _: kept + 1)
"""How many events there were."""
sum: Final[Aggregate[float]] = Aggregate("sum", int, lambda kept, value: _kept(kept + value))
"""Their values together; the empty sum is the integer 0, so that integers stay integers."""
mean: Final[Aggregate[float]] = Aggregate("mean", lambda: (0, 0), _tally, _divide)
min: Final[Aggregate[float]] = Aggregate("min", _no_number, _least)
max: Final[Aggregate[float]] = Aggregate("max", _no_number, _most)
first: Final[Aggregate[object]] = Aggregate("first", _nothing, lambda kept, value: value if kept is None else kept)
"""The value of the event that came first."""
last: Final[Aggregate[object]] = Aggregate("last", _nothing, lambda _, value: value)
"""The value of the event that came last."""

"""What users write: a `Processors`, and functions decorated with its methods.

    plant = Processors()

    @plant.filter("plant/+/temperature", to="alarm/{topic}")
    def hot(event: Event) -> bool:
        return event.number("value") > 80

The decorators check everything that can be checked without an event, and leave the function as it is: a test calls it
with an `Event` of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from inspect import isasyncgenfunction, iscoroutinefunction
from math import isfinite
from typing import Final, Literal, TypeVar

from processors.aggregates import Aggregate
from processors.errors import DefinitionError
from processors.event import Event
from processors.mapping import Mapping
from processors.message import Message
from processors.step import Operator
from processors.topics import Template, check_filter
from processors.tumbling import RESERVED, Tumbling, Window

V = TypeVar("V")
MapFunction = TypeVar("MapFunction", bound=Callable[[Event], Message | Iterable[Message] | None])
FilterFunction = TypeVar("FilterFunction", bound=Callable[[Event], bool])
Start = Literal["end", "beginning"]
"""Where a processor begins that has never run: at what comes from now on, or at the oldest event of the log."""

PARTITIONS: Final = 16
MAX_KEYS: Final = 100_000
CLIENT: Final = "$processor/"
"""With the name behind it, the client identifier of a processor's outputs."""

_LONGEST_NAME: Final = 200
_SHORTEST: Final = 0.001
_LONGEST: Final = 366 * 86_400.0


@dataclass(frozen=True, slots=True)
class Definition:
    """One processor of a user's file. Its state and its place in the log are kept under its name."""

    name: str
    filter: str
    start: Start
    what: str
    """What it does, in a few words."""
    line: int
    """Where its function is in the file; 0 where that can't be known."""
    operator: Callable[[], Operator]
    """Makes the part that computes, without any state yet."""

    @property
    def client(self) -> str:
        """The client identifier of its outputs, by which it passes them over."""
        return CLIENT + self.name


class Processors:
    """The processors of a file, in their order. Each has the name of its function unless it is given another."""

    def __init__(self) -> None:
        self.definitions: list[Definition] = []

    def map(
        self, filter: str, *, name: str | None = None, start: Start = "end"
    ) -> Callable[[MapFunction], MapFunction]:
        """Publish what the function returns or yields: None, one `Message` or several, up to 1000 for one event.

        Raises:
            DefinitionError: the topic filter, the name or the function can't be used.
        """

        def decorate(function: MapFunction) -> MapFunction:
            self._define(name, filter, start, "map", function, lambda name: Mapping(name, CLIENT + name, function))
            return function

        return decorate

    def filter(
        self,
        filter: str,
        *,
        to: str,
        qos: int = 1,
        retain: bool = False,
        name: str | None = None,
        start: Start = "end",
    ) -> Callable[[FilterFunction], FilterFunction]:
        """Publish the events for which the function says True, as they are, to a topic such as `alarm/{topic}`.

        Raises:
            DefinitionError: the topic filter, the output topic, the QoS, the name or the function can't be used.
        """
        template = _template(to, "topic")
        _check_qos(qos)

        def decorate(function: FilterFunction) -> FilterFunction:
            def passed(event: Event) -> Message | None:
                if not function(event):
                    return None
                return Message(template.fill(event.topic), event.payload, qos, retain)

            self._define(name, filter, start, f"filter to {to}", function, lambda n: Mapping(n, CLIENT + n, passed))
            return function

        return decorate

    def tumbling(
        self,
        filter: str,
        *aggregates: Aggregate[V],
        seconds: float,
        to: str,
        key: Callable[[Event], str] | None = None,
        qos: int = 1,
        retain: bool = False,
        name: str | None = None,
        start: Start = "end",
        partitions: int = PARTITIONS,
        max_keys: int = MAX_KEYS,
    ) -> Callable[[Callable[[Event], V | None]], Callable[[Event], V | None]]:
        """Aggregate the values that the function gives, per key and window of so many seconds.

        A value of None leaves the event out. The key is the topic unless `key` says otherwise. When a window is over,
        its result goes to a topic such as `stats/{key}`, once: JSON with `key`, `start`, `end` (ISO 8601, UTC) and
        each aggregate by its name. `partitions` is fixed once there is state; an event whose key would be one too many
        in its window is a dead letter.

        Raises:
            DefinitionError: an argument, the name or the function can't be used.
        """
        if not (isfinite(seconds) and _SHORTEST <= seconds <= _LONGEST):
            raise DefinitionError(f"seconds={seconds!r} must be from {_SHORTEST} to {_LONGEST:.0f}")
        if partitions < 1 or max_keys < 1:
            raise DefinitionError(f"partitions={partitions} and max_keys={max_keys} must be 1 or more")
        template = _template(to, "key")
        _check_qos(qos)
        _check_aggregates([aggregate.name for aggregate in aggregates])

        def decorate(function: Callable[[Event], V | None]) -> Callable[[Event], V | None]:
            size = round(seconds * 1_000_000)
            window = Window(size, function, key, aggregates, template, qos, retain, partitions, max_keys)
            what = f"{', '.join(a.name for a in aggregates)} per {seconds:g} s and key to {to}"
            self._define(name, filter, start, what, function, lambda name: Tumbling(name, CLIENT + name, window))
            return function

        return decorate

    def _define(
        self,
        name: str | None,
        filter: str,
        start: Start,
        what: str,
        function: Callable[[Event], object],
        operator: Callable[[str], Operator],
    ) -> None:
        if not callable(function):
            raise DefinitionError(f"{function!r} is no function")
        called = _check_name(name or str(getattr(function, "__name__", "")))
        if iscoroutinefunction(function) or isasyncgenfunction(function):
            raise DefinitionError(f"{called} is an async function; processors run in a thread: write it with plain def")
        if start not in ("end", "beginning"):
            raise DefinitionError(f"start={start!r} must be 'end' or 'beginning'")
        try:
            check_filter(filter)
        except ValueError as error:
            raise DefinitionError(str(error)) from None
        for other in self.definitions:
            if other.name == called:
                raise DefinitionError(
                    f"two processors are called {called!r}, here and in line {other.line}; "
                    "state is kept by name: rename one of them, or give it name="
                )
        code = getattr(function, "__code__", None)
        line = getattr(code, "co_firstlineno", 0)
        self.definitions.append(Definition(called, filter, start, what, line, lambda: operator(called)))


def _check_name(name: str) -> str:
    if not name.isprintable() or any(each in name for each in "/+#$<>") or not 0 < len(name.encode()) <= _LONGEST_NAME:
        raise DefinitionError(
            f"{name!r} can't be a processor's name; give name= as text of 1 to {_LONGEST_NAME} bytes, "
            "printable, without / + # $ < >"
        )
    return name


def _template(text: str, place: str) -> Template:
    try:
        return Template(text, place)
    except ValueError as error:
        raise DefinitionError(f"to={text!r}: {error}") from None


def _check_qos(qos: int) -> None:
    if qos not in (0, 1, 2):
        raise DefinitionError(f"qos={qos!r} must be 0, 1 or 2")


def _check_aggregates(names: list[str]) -> None:
    if not names:
        raise DefinitionError("no aggregate is given; count is the simplest: aggregates.count")
    for name in names:
        if name in RESERVED or not name:
            raise DefinitionError(f"an aggregate can't be called {name!r}; use .named(...)")
        if names.count(name) > 1:
            raise DefinitionError(f"two aggregates are called {name!r}; use .named(...) on one of them")

"""Filter and map: a function of one event, without state."""

from __future__ import annotations

from collections.abc import Callable

from processors.event import Event
from processors.message import collect
from processors.step import NEVER, USER_ERRORS, Step
from storage.interface import Event as Stored
from storage.interface import Row


class Mapping:
    """Publishes what `function` makes of each event that the processor has not published itself."""

    __slots__ = ("_client", "_function", "_name", "due")

    def __init__(self, name: str, client: str, function: Callable[[Event], object]) -> None:
        self.due = NEVER
        self._name = name
        self._client = client
        self._function = function

    def restore(self, rows: list[Row]) -> None:
        """There is no state to take up: rows of an earlier definition of this name stay as they are."""

    def forget(self, accepts: Callable[[str], bool]) -> list[Row]:
        """There is no state to forget."""
        return []

    def step(self, events: list[Stored], horizon: int) -> Step:
        """Take events until all are taken or the step is full."""
        step = Step()
        function = self._function
        for stored in events:
            if step.full:
                break
            step.taken += 1
            if stored.client == self._client:
                continue
            event = Event(stored.topic, stored.payload, stored.qos, stored.retain, stored.client, stored.seq, stored.ts)
            try:
                outputs = collect(function(event))
            except USER_ERRORS as error:
                step.fail(self._name, error, stored)
            else:
                step.send(*outputs)
        return step

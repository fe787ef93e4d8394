"""What the readers of the log lose by a segment that goes: found out before it goes, beside the load.

For a bridge or a processor that is exact. Sessions and shared subscriptions are many, and a message may match several
of their filters, or be one that a client is not given anyway: for them it is the most that it can be.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final

from storage.catalog import Stretch
from storage.history import History
from storage.interface import CURSORS, SESSIONS, SHARES, SUBSCRIPTIONS, Accepts
from storage.segment import Segment

_SESSIONS_READ: Final = 256
"""Sessions that one step looks at."""
_EVENTS_READ: Final = 4096
"""Events that one step looks at."""
_REMEMBERED: Final = 10_000
"""Filters of which it is remembered how many events they match."""

_CURSORS: Final = f"SELECT name, position FROM {CURSORS.name} WHERE position < ?"
_SHARES: Final = f"SELECT filter, position FROM {SHARES.name} WHERE position < ?"
_SESSIONS: Final = f"""SELECT client_id FROM {SESSIONS.name} WHERE client_id > ? AND position < ?
    ORDER BY client_id LIMIT {_SESSIONS_READ}"""
_FILTERS: Final = f"""SELECT client_id, json_group_array(filter) FROM {SUBSCRIPTIONS.name}
    WHERE client_id IN (SELECT value FROM json_each(?)) AND since < ? GROUP BY client_id"""
_SHARED: Final = "$share/"

Compile = Callable[[Iterable[str]], Accepts]
"""Makes a predicate over topics of topic filters."""


@dataclass(frozen=True, slots=True)
class Losses:
    """Events that readers had not read."""

    cursors: Mapping[str, int] = field(default_factory=dict)
    """Of bridges and processors, by the names of their places."""
    sessions: int = 0
    """Sessions that lost something, counted once for each segment."""
    shares: int = 0
    """Shared subscriptions, in the same way."""
    messages: int = 0
    """What these lost together, at most."""

    def plus(self, other: Losses) -> Losses:
        """The sum."""
        cursors = dict(self.cursors)
        for name, events in other.cursors.items():
            cursors[name] = cursors.get(name, 0) + events
        return Losses(
            cursors, self.sessions + other.sessions, self.shares + other.shares, self.messages + other.messages
        )

    @property
    def events(self) -> int:
        """All of them; one that several readers had not read counts for each."""
        return sum(self.cursors.values()) + self.messages


NOTHING: Final = Losses()


@dataclass(frozen=True, slots=True)
class Readers:
    """Who reads, and where to look for their places. `reading` is what is to be around a query."""

    connection: sqlite3.Connection
    reading: Callable[[], AbstractContextManager[object]]
    cursors: Mapping[str, Accepts]
    compile: Compile | None


class Survey:
    """A task: the losses by one segment, or by those of its events whose topics `goes` accepts (None: all)."""

    def __init__(self, readers: Readers, history: History, stretch: Stretch, goes: Accepts | None) -> None:
        self._readers = readers
        self._history = history
        self._stretch = stretch
        self._goes = goes
        self._segment: Segment | None = None
        self._topics: dict[str, int] = {}
        """Events that go, by topic."""
        self._matched: dict[str, int] = {}
        """How many of them a filter matches."""
        self._losses: Losses | None = None
        self._steps = self._run()

    def step(self) -> Losses | None:
        """Go on a little.

        Raises:
            StorageError: the database or the segment can't be read.
        """
        next(self._steps, None)
        return self._losses

    def abandon(self) -> None:
        """Close the segment."""
        self._steps.close()
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _run(self) -> Generator[None, None, None]:
        if not self._stretch.sound:
            self._losses = NOTHING
            return
        cursors: dict[str, int] = {}
        for name, position in self._query(_CURSORS, self._stretch.last):
            if name in self._readers.cursors:
                lost = yield from self._unread(self._readers.cursors[name], position)
                if lost:
                    cursors[name] = lost
            yield
        sessions = shares = messages = 0
        for filter, _ in self._query(_SHARES, self._stretch.last):
            lost = self._matching(filter.split("/", 2)[-1])
            shares += lost > 0
            messages += lost
            yield
        for filters in self._sessions():
            lost = min(sum(map(self._matching, filters)), self._total)
            sessions += lost > 0
            messages += lost
            yield
        self._losses = Losses(cursors, sessions, shares, messages)

    def _query(self, query: str, *parameters: int | str) -> list[tuple[str, int]]:
        with self._readers.reading():
            return self._readers.connection.execute(query, parameters).fetchall()

    def _sessions(self) -> Iterator[list[str]]:
        """The filters of each session that is behind."""
        client_id = ""
        while behind := [row[0] for row in self._query(_SESSIONS, client_id, self._stretch.last)]:
            client_id = behind[-1]
            for _, filters in self._query(_FILTERS, json.dumps(behind), self._stretch.last):
                yield [each for each in json.loads(str(filters)) if not each.startswith(_SHARED)]

    def _unread(self, accepts: Accepts, after: int) -> Generator[None, None, int]:
        """How many events that go are accepted and lie above a seq."""
        if after <= self._stretch.after:
            return sum(events for topic, events in self._going().items() if accepts(topic))
        going, found = self._going(), 0

        def both(topic: str) -> bool:
            return topic in going and accepts(topic)

        assert self._segment is not None
        while after < self._stretch.last:
            events, after = self._segment.read(after, self._stretch.last, _EVENTS_READ, both)
            found += len(events)
            yield
        return found

    @property
    def _total(self) -> int:
        return sum(self._going().values())

    def _going(self) -> dict[str, int]:
        """How many events go, by topic. The segment is opened only where somebody is behind."""
        if self._segment is None:
            self._segment = self._history.examine(self._stretch)
            goes = self._goes
            self._topics = {
                topic: events for topic, events in self._segment.topics.items() if goes is None or goes(topic)
            }
        return self._topics

    def _matching(self, filter: str) -> int:
        """How many of the events that go match a filter."""
        topics, compile = self._going(), self._readers.compile
        if "+" not in filter and "#" not in filter:
            return topics.get(filter, 0)
        found = self._matched.get(filter)
        if found is None:
            if len(self._matched) >= _REMEMBERED:
                self._matched.clear()
            accepts = _everything if compile is None else compile((filter,))
            found = self._matched[filter] = sum(events for topic, events in topics.items() if accepts(topic))
        return found


def _everything(topic: str) -> bool:
    return True

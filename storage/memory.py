"""The engine that forgets: everything in this process, for tests, trials and nodes without a disk."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import attrgetter
from typing import Final

from storage.interface import Accepts, Event, Latest, Row, Table

SCAN_ROWS: Final = 4096
"""Events that one read looks at, whether they are accepted or not."""

_seq = attrgetter("seq")
_ts = attrgetter("ts")


class MemoryEngine:
    """Keeps groups in lists and dictionaries. It holds all of the log, so its memory grows with it."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._state: dict[Table, dict[Row, Row]] = {}

    def commit(self, events: Sequence[Event], state: dict[Table, dict[Row, Row | None]], sync: bool) -> None:
        """Keep all of it; there is no disk to wait for."""
        lasting = [event for event in events if event.durability]
        changes = [(table, list(rows.items())) for table, rows in state.items()]
        # Up to here something may fail, from here on nothing does.
        self._events += lasting
        for table, rows in changes:
            kept = self._state.setdefault(table, {})
            for key, values in rows:
                if values is None:
                    kept.pop(key, None)
                else:
                    kept[key] = values

    def upkeep(self) -> bool:
        """Nothing gathers."""
        return False

    def read(self, after: int, upto: int, limit: int, accepts: Accepts | None) -> tuple[list[Event], int]:
        """At most `limit` accepted events with after < seq <= upto, in order, and the seq up to which was looked."""
        found: list[Event] = []
        events = self._events
        start = bisect_right(events, after, key=_seq)
        for event in events[start : start + SCAN_ROWS]:
            if event.seq > upto:
                return found, upto
            after = event.seq
            if accepts is None or accepts(event.topic):
                found.append(event)
                if len(found) == limit:
                    return found, after
        return found, after if start + SCAN_ROWS < len(events) else upto

    def get(self, seqs: Sequence[int]) -> list[Event]:
        """The events with these seqs, in order."""
        found: list[Event] = []
        for seq in sorted(seqs):
            index = bisect_right(self._events, seq - 1, key=_seq)
            if index < len(self._events) and self._events[index].seq == seq:
                found.append(self._events[index])
        return found

    def oldest(self) -> tuple[int, int]:
        """The seq and the time of the oldest event; zeros for a new log."""
        return (self._events[0].seq, self._events[0].ts) if self._events else (0, 0)

    def seq_before(self, ts: int) -> int:
        """The seq of the last event that came before this time; 0 where there is none."""
        index = bisect_left(self._events, ts, key=_ts)
        return self._events[index - 1].seq if index else 0

    def latest(self, found: Latest, before: int) -> int:
        """Add to `found` what a bounded stretch below `before` has; the seq below which to go on, or 0."""
        end = bisect_left(self._events, before, key=_seq)
        begin = max(0, end - SCAN_ROWS)
        for event in reversed(self._events[begin:end]):
            found.add(event.seq, event.topic)
        return self._events[begin].seq if begin else 0

    def rows(self, table: Table) -> list[Row]:
        """Every row of a table: key columns, then value columns."""
        return [key + values for key, values in list(self._state.get(table, {}).items())]

    def last(self) -> int:
        """The highest seq that was ever committed; 0 for a new log."""
        return self._events[-1].seq if self._events else 0

    def last_ts(self) -> int:
        """The time of the last committed event; 0 for a new log."""
        return self._events[-1].ts if self._events else 0

    def close(self) -> None:
        """Nothing to give back: a log can be opened again over the same engine."""

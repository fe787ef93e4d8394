"""The tail of the log: the rows of events that are not sealed yet, read over one connection.

A read looks at a bounded stretch and returns a bounded number of bytes. With a filter it first finds out which topics a
stretch has, without touching payloads, and then asks for the rows of those that are accepted.

Where values are encrypted, those of the rows of a read are opened together, once it has them.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Final

from storage.interface import Accepts, Event, Value

if TYPE_CHECKING:
    from storage.values import Opener

SCAN_ROWS: Final = 16384
"""Rows that one read looks at, whether they are accepted or not."""
READ_BYTES: Final = 4 << 20
"""Bytes of topics, clients, properties and payloads after which a read returns with what it has."""

SEALED: Final = 1 << 5
"""The bit of `flags` that says that properties and payload are one encrypted value, in the column of the payload.

Bits 0 and 1 are the QoS, bit 2 is retain, bits 3 and 4 are the durability.
"""

_SEALED: Final = SEALED >> 3
"""The same bit, above the durability."""
_SHORTEST_STRETCH: Final = 256
"""Rows that a read with a filter looks at first."""

_SELECT: Final = """SELECT seq, ts, topic, name, flags, client, properties, payload, expires
    FROM tail LEFT JOIN topics ON topics.id = tail.topic"""
_READ: Final = f"{_SELECT} WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?"
_READ_TOPICS: Final = f"""{_SELECT} WHERE seq > ? AND seq <= ? AND topic IN (SELECT value FROM json_each(?))
    ORDER BY seq LIMIT ?"""
_GET: Final = f"{_SELECT} WHERE seq IN (SELECT value FROM json_each(?)) ORDER BY seq"
_NAMES: Final = """SELECT seq, topic, name FROM tail LEFT JOIN topics ON topics.id = topic
    WHERE seq > ? AND seq < ? ORDER BY seq DESC LIMIT ?"""
_TOPICS_IN: Final = """SELECT sum(rows), max(last), json_group_array(json_array(topic, name))
    FROM (
        SELECT topic, count(*) AS rows, max(seq) AS last
        FROM (SELECT seq, topic FROM tail WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?)
        GROUP BY topic
    )
    LEFT JOIN topics ON topics.id = topic"""
"""The topics of a stretch; how many rows it has, and where it ends. Payloads are not touched."""


class Tail:
    """The rows, as one connection sees them. `opener` opens those that are encrypted; None: none is.

    Raises `sqlite3.Error`, and `StorageError` for a row that is encrypted with a key that isn't at hand. One whose
    value is damaged is left out, which is told.
    """

    __slots__ = ("_connection", "_opener")

    def __init__(self, connection: sqlite3.Connection, opener: Opener | None = None) -> None:
        self._connection = connection
        self._opener = opener

    def last(self) -> int:
        """The highest seq; 0 where there are no rows."""
        return self._number("SELECT max(seq) FROM tail")

    def last_ts(self) -> int:
        """The time of the event with the highest seq; 0 where there are no rows."""
        return self._number("SELECT ts FROM tail ORDER BY seq DESC LIMIT 1")

    def oldest(self) -> tuple[int, int]:
        """The lowest seq, and the time of its event; zeros where there are no rows."""
        row = self._connection.execute("SELECT seq, ts FROM tail ORDER BY seq LIMIT 1").fetchone()
        return (row[0], row[1]) if row else (0, 0)

    def seq_before(self, ts: int, after: int) -> int:
        """The seq of the last event above `after` that came before this time; `after` where there is none."""
        low, high = after, max(after, self.last())
        while low < high:
            row = self._connection.execute(
                "SELECT seq, ts FROM tail WHERE seq > ? ORDER BY seq LIMIT 1", (middle := (low + high) // 2,)
            ).fetchone()
            if row is not None and row[1] < ts:
                low = row[0]
            else:
                high = middle
        return low

    def names(self, after: int, before: int) -> tuple[list[tuple[int, str]], int]:
        """Seqs and topics of the last events with after < seq < before, descending; the seq below which to go on."""
        rows = self._connection.execute(_NAMES, (after, before, SCAN_ROWS)).fetchall()
        names = [(seq, _known(topic, name)) for seq, topic, name in rows]
        return names, names[-1][0] if len(names) == SCAN_ROWS else after + 1

    def _number(self, query: str) -> int:
        row = self._connection.execute(query).fetchone()
        return row[0] or 0 if row else 0

    def get(self, seqs: Sequence[int]) -> list[Event]:
        """The events with these seqs, in order."""
        found: list[Event] = []
        self._take(found, sys.maxsize, _GET, (json.dumps(list(seqs)),))
        return self._opened(found)

    def read(
        self, after: int, upto: int, limit: int, accepts: Accepts | None, room: int = READ_BYTES
    ) -> tuple[list[Event], int]:
        """As `Engine.read`, with about `room` bytes at most."""
        found: list[Event] = []
        if accepts is not None:
            reached = self._read_accepted(found, after, upto, limit, accepts, room)
        else:
            room = self._take(found, room, _READ, (after, upto, limit))
            reached = upto if room > 0 and len(found) < limit else found[-1].seq
        return self._opened(found), reached

    def _read_accepted(self, found: list[Event], after: int, upto: int, limit: int, accepts: Accepts, room: int) -> int:
        """Fill `found`, stretch by stretch, each longer than the one before; the seq up to which was looked."""
        left, stretch = SCAN_ROWS, max(limit, _SHORTEST_STRETCH)
        while left > 0 and after < upto:
            stretch = min(stretch, left)
            rows, last, topics = self._connection.execute(_TOPICS_IN, (after, upto, stretch)).fetchone()
            if not rows:
                return upto
            wanted = [topic for topic, name in json.loads(topics) if accepts(_known(topic, name))]
            if wanted:
                room = self._take(found, room, _READ_TOPICS, (after, last, json.dumps(wanted), limit - len(found)))
                if room <= 0 or len(found) == limit:
                    return found[-1].seq
            after = last
            left -= rows
            stretch *= 4
        return after

    def _take(self, found: list[Event], room: int, query: str, parameters: Sequence[Value]) -> int:
        """Add the events that a query gives, while there is room for them; the bytes of room that are left."""
        with closing(self._connection.execute(query, parameters)) as rows:
            for seq, ts, id, topic, flags, client, properties, payload, expires in rows:
                if not (
                    type(properties) is type(payload) is bytes
                    and type(topic) is type(client) is str
                    and type(ts) is type(flags) is type(expires) is int
                ):
                    raise sqlite3.DatabaseError(f"the event {seq}, of topic {id}, is damaged")
                found.append(
                    Event(seq, ts, topic, payload, flags & 3, flags & 4 != 0, client, properties, expires, flags >> 3)
                )
                room -= len(topic) + len(client) + len(properties) + len(payload)
                if room <= 0:
                    break
        return room

    def _opened(self, found: list[Event]) -> list[Event]:
        """The same events, opened where they are encrypted, without those that are lost."""
        sealed = [event for event in found if event.durability >= _SEALED]
        opener = self._opener
        if opener is None:
            if sealed:
                # Where something is encrypted nobody gets here without a key (see transition.py).
                raise sqlite3.DatabaseError(f"the event {sealed[0].seq} is damaged: nothing here is encrypted")
            return found
        lost: set[int] = set()
        if len(sealed) < len(found):
            lost = opener.plain([event for event in found if event.durability < _SEALED])
        for event in sealed:
            event.durability -= _SEALED
        lost |= opener.events(sealed)
        return [event for event in found if event.seq not in lost] if lost else found


def _known(topic: object, name: object) -> str:
    if not isinstance(name, str):
        raise sqlite3.DatabaseError(f"the topic {topic} has no name")
    return name

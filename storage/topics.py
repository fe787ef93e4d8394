"""Topic names and their ids in the database: remembered, given to new ones, and taken from those that nothing needs.

The theory of the sweep: the tail has no index by topic, since that would cost five times the insert. So the ids that
are in use are gathered from the rows, some thousand at a step. All that is remembered is forgotten at its begin, so
that whoever is written to meanwhile must be looked up first, and is noted. A topic that was neither gathered nor noted
is in no row. All of it happens on the thread that commits, between groups.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from typing import Final

from storage.interface import Event

_MOST_BYTES: Final = 8 << 20
"""Bytes that remembered ids take before they are forgotten."""
_ID_BYTES: Final = 150
"""What one takes beside the topic's name."""
_SWEPT_ROWS: Final = 4096
_SWEPT_TOPICS: Final = 512

_NEW: Final = "INSERT OR IGNORE INTO topics (name) SELECT value FROM json_each(?)"
_IDS: Final = """SELECT json_group_array(json_array(name, id)) FROM topics
    WHERE name IN (SELECT value FROM json_each(?))"""
_USED: Final = """SELECT count(*), max(seq), json_group_array(DISTINCT topic)
    FROM (SELECT seq, topic FROM tail WHERE seq > ? ORDER BY seq LIMIT ?)"""
_SOME: Final = "SELECT id FROM topics WHERE id > ? ORDER BY id LIMIT ?"
_DELETE: Final = "DELETE FROM topics WHERE id IN (SELECT value FROM json_each(?))"

Explained = Callable[[], AbstractContextManager[object]]


class Topics:
    """What the connection that commits knows of topics."""

    __slots__ = ("_connection", "_ids", "_noted", "_weight")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._ids: dict[str, int] = {}
        """As committed, or in the transaction that is open."""
        self._weight = 0
        self._noted: set[int] | None = None
        """The ids that were looked up since a sweep has begun; None while there is none."""

    def ids(self, events: Sequence[Event]) -> dict[str, int]:
        """The ids of these events' topics, and of others; new topics are given theirs, in the open transaction."""
        ids = self._ids
        topics = {event.topic for event in events if event.durability}
        if not topics <= ids.keys():
            if self._weight > _MOST_BYTES:
                self.forget()
            names = json.dumps([topic for topic in topics if topic not in ids])
            self._connection.execute(_NEW, (names,))
            for topic, id in json.loads(self._connection.execute(_IDS, (names,)).fetchone()[0]):
                ids[topic] = id
                self._weight += _ID_BYTES + len(topic)
                if self._noted is not None:
                    self._noted.add(id)
        return ids

    def forget(self) -> None:
        """The ids may not be those of the database."""
        self._ids.clear()
        self._weight = 0

    def sweep(self, reading: Explained, changing: Explained) -> Generator[None, None, None]:
        """Delete the topics of which no row is left, in small steps.

        `reading` and `changing` are what is to be around a query and around a change.
        """
        self.forget()
        used = self._noted = set()
        try:
            seq, rows = 0, _SWEPT_ROWS
            while rows == _SWEPT_ROWS:
                with reading():
                    rows, last, topics = self._connection.execute(_USED, (seq, _SWEPT_ROWS)).fetchone()
                seq = last or seq
                used.update(json.loads(topics))
                yield
            id = 0
            while True:
                with reading():
                    some = self._connection.execute(_SOME, (id, _SWEPT_TOPICS)).fetchall()
                if not some:
                    return
                id = some[-1][0]
                unused = [each for (each,) in some if each not in used]
                if unused:
                    with changing():
                        self._connection.execute(_DELETE, (json.dumps(unused),))
                yield
        finally:
            self._noted = None

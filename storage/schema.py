"""The schema of the database, version by version, and how one of an earlier version is brought up to date.

The rules:

1. The version is kept in `user_version`. What an earlier one was stands in `LAYOUTS` and never changes: what its
   database must have is asked of it before anything is written.
2. All migrations from an earlier version to this one, the record of them in `meta`, and the new version commit
   together. Whatever comes between leaves the database as it was.
3. A reader changes nothing: it sees an earlier version as if it were this one, and what that lacks is empty.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from time import gmtime, strftime
from typing import Final

from storage.interface import META, TABLES

VERSION: Final = 2

KINDS: Final = {"INTEGER": int, "TEXT": str, "BLOB": bytes}
"""The types of columns, and those of their values."""

Layout = Mapping[str, tuple[str, ...]]
"""Tables and their columns, each `name TYPE`, in their order."""

_TAIL: Final = (
    "seq INTEGER",
    "ts INTEGER",
    "topic INTEGER",
    "flags INTEGER",
    "client TEXT",
    "properties BLOB",
    "payload BLOB",
    "expires INTEGER",
)
_TOPICS: Final = ("id INTEGER", "name TEXT")

LAYOUTS: Final[Mapping[int, Layout]] = {
    1: {
        "tail": _TAIL,
        "topics": _TOPICS,
        "meta": ("name TEXT", "value TEXT"),
        "sessions": (
            "client_id TEXT",
            "version INTEGER",
            "expiry INTEGER",
            "connected INTEGER",
            "ended INTEGER",
            "position INTEGER",
            "inflight BLOB",
            "received BLOB",
        ),
        "subscriptions": ("client_id TEXT", "filter TEXT", "options INTEGER", "identifier INTEGER", "since INTEGER"),
        "wills": (
            "client_id TEXT",
            "due INTEGER",
            "delay INTEGER",
            "topic TEXT",
            "payload BLOB",
            "qos INTEGER",
            "retain INTEGER",
            "properties BLOB",
        ),
        "retained": (
            "topic TEXT",
            "seq INTEGER",
            "ts INTEGER",
            "payload BLOB",
            "qos INTEGER",
            "client TEXT",
            "properties BLOB",
            "expires INTEGER",
        ),
        "cursors": ("name TEXT", "position INTEGER"),
        "processor_state": ("processor TEXT", "partition INTEGER", "key TEXT", "value BLOB"),
    },
    VERSION: {"tail": _TAIL, "topics": _TOPICS, **{table.name: table.key + table.values for table in TABLES}},
}

_EVENTS: Final = """CREATE VIEW events AS
        SELECT seq, strftime('%Y-%m-%dT%H:%M:%f', ts / 1e6, 'unixepoch') || 'Z' AS time, name AS topic,
            flags & 3 AS qos, flags >> 2 & 1 AS retain, client,
            CASE WHEN flags & 32 THEN NULL ELSE payload END AS payload,
            CASE WHEN flags & 32 THEN NULL ELSE properties END AS properties, ts, expires
        FROM tail JOIN topics ON topics.id = tail.topic"""
"""What other tools can read; of what is encrypted, neither payload nor properties."""

MIGRATIONS: Final[Mapping[int, tuple[str, ...]]] = {
    1: (
        "ALTER TABLE sessions ADD COLUMN shared BLOB",
        "ALTER TABLE sessions ADD COLUMN username TEXT",
        "UPDATE sessions SET shared = x'', username = ''",
        "CREATE TABLE shares (filter TEXT, position INTEGER, returned BLOB, PRIMARY KEY (filter))",
        "DROP VIEW events",
        _EVENTS,
    ),
}
"""What makes the next version of each earlier one."""

_CREATION: Final = (
    f"CREATE TABLE tail ({' NOT NULL, '.join(_TAIL)} NOT NULL, PRIMARY KEY (seq))",
    f"CREATE TABLE topics ({', '.join(_TOPICS)} NOT NULL UNIQUE, PRIMARY KEY (id))",
    _EVENTS,
    *(
        f"CREATE TABLE {table.name} ({', '.join(table.key + table.values)}, "
        f"PRIMARY KEY ({', '.join(column.partition(' ')[0] for column in table.key)}))"
        for table in TABLES
    ),
)
_EMPTY: Final = {"INTEGER": "0", "TEXT": "''", "BLOB": "x''"}
"""What a reader sees, by type, of a column that an earlier version has not."""


def create(connection: sqlite3.Connection) -> None:
    """Make the schema; all of it and its version commit together."""
    connection.execute("BEGIN IMMEDIATE")
    for statement in _CREATION:
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version={VERSION}")
    connection.execute("COMMIT")


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Make this version of an earlier one; where it fails, closing the connection leaves the database as it was."""
    connection.execute("BEGIN IMMEDIATE")
    for each in range(version, VERSION):
        for statement in MIGRATIONS[each]:
            connection.execute(statement)
    record = f"from schema {version}, {strftime('%Y-%m-%dT%H:%M:%SZ', gmtime())}"
    connection.execute(f"INSERT OR REPLACE INTO {META.name} VALUES (?, ?)", (f"schema {VERSION}", record))
    connection.execute(f"PRAGMA user_version={VERSION}")
    connection.execute("COMMIT")


def show(connection: sqlite3.Connection, version: int) -> None:
    """Have a reader see an earlier version as this one: by temporary views, which only its connection has."""
    had = LAYOUTS[version]
    for name, columns in LAYOUTS[VERSION].items():
        if columns != had.get(name):
            source = f"FROM main.{name}" if name in had else "WHERE 0"
            connection.execute(f"CREATE TEMP VIEW {name} AS SELECT {_seen(columns, had.get(name, ()))} {source}")


def _seen(columns: tuple[str, ...], had: tuple[str, ...]) -> str:
    names = ((column, *column.split()) for column in columns)
    return ", ".join(name if column in had else f"{_EMPTY[kind]} AS {name}" for column, name, kind in names)

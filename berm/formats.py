"""Events as others read them: NDJSON, CSV, and rows of a SQLite table. See docs/history.md for the fields.

The rules:

1. Every format has the same fields under the same names, and what one of them says can be read back from it.
2. A payload is text where it is UTF-8, and base64 where it isn't; `encoding` says so. In SQLite it is TEXT or a BLOB.
3. Times are RFC 3339 in UTC, to the microsecond.
"""

from __future__ import annotations

import csv
from base64 import b64encode
from collections.abc import Iterable, Mapping
from io import StringIO
from typing import BinaryIO, Final, Protocol

import orjson

from berm.times import format_time
from broker.mqtt.packets import Publish
from broker.mqtt.properties import WILL, Property, decode_properties
from storage.interface import WILLS, Event, Row, Table

FIELDS: Final = (
    "seq",
    "time",
    "topic",
    "qos",
    "retain",
    "client",
    "payload",
    "encoding",
    "expires",
    "properties",
)
KIND: Final = "kind"
"""A field that lines of NDJSON have which are no events: `retained`, or the name of a table of state."""
RETAINED_KIND: Final = "retained"

EVENT_COLUMNS: Final = """seq INTEGER PRIMARY KEY, time TEXT NOT NULL, topic TEXT NOT NULL, qos INTEGER NOT NULL,
    retain INTEGER NOT NULL, client TEXT NOT NULL, payload NOT NULL, expires TEXT, properties TEXT,
    ts INTEGER NOT NULL"""
"""Of a SQLite table of events. `ts` is the time in µs since the Unix epoch; `properties` are a JSON object."""
INSERT_EVENT: Final = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
RETAINED_COLUMNS: Final = EVENT_COLUMNS.replace("seq INTEGER PRIMARY KEY", "seq INTEGER NOT NULL").replace(
    "topic TEXT NOT NULL", "topic TEXT PRIMARY KEY"
)
INSERT_RETAINED: Final = INSERT_EVENT.replace("events", "retained")

_TIMES: Final = frozenset(("ended", "due"))
"""Columns of tables of state that are times, in µs since the Unix epoch; 0: none."""


class Writer(Protocol):
    """Takes events one batch after another."""

    def write(self, events: Iterable[Event]) -> None:
        """Take some events."""

    def close(self) -> None:
        """Write what has gathered. The file stays open."""


class JsonWriter:
    """Newline-delimited JSON: an object a line."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def write(self, events: Iterable[Event]) -> None:
        """Take some events."""
        self._out.write(b"".join(map(to_json, events)))

    def write_other(self, kind: str, fields: Mapping[str, object]) -> None:
        """Write something that is no event."""
        self._out.write(orjson.dumps({KIND: kind, **fields}, option=orjson.OPT_APPEND_NEWLINE))

    def close(self) -> None:
        """Nothing has gathered."""


class CsvWriter:
    """RFC 4180: a line with the names of the fields, then a line for each event. What an event hasn't is empty."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._text = StringIO(newline="")
        # Lines end with CR LF, so that fields with either of them in it are quoted, and can be read back.
        self._csv = csv.writer(self._text)
        self._csv.writerow(FIELDS)

    def write(self, events: Iterable[Event]) -> None:
        """Take some events."""
        self._csv.writerows(map(to_cells, events))
        self.close()

    def close(self) -> None:
        """Write what has gathered."""
        self._out.write(self._text.getvalue().encode())
        self._text.seek(0)
        self._text.truncate()


def to_fields(event: Event) -> dict[str, object]:
    """What there is to say of an event, by the name of the field. Correlation data is always base64."""
    text, encoding = encode_payload(event.payload)
    fields: dict[str, object] = {
        "seq": event.seq,
        "time": format_time(event.ts),
        "topic": event.topic,
        "qos": event.qos,
        "retain": event.retain,
        "client": event.client,
        "payload": text,
    }
    if encoding:
        fields["encoding"] = encoding
    if event.expires:
        fields["expires"] = format_time(event.expires)
    if event.properties:
        fields["properties"] = properties_by_name(event.properties)
    return fields


def to_json(event: Event) -> bytes:
    """One line of NDJSON."""
    return orjson.dumps(to_fields(event), option=orjson.OPT_APPEND_NEWLINE)


def to_cells(event: Event) -> tuple[int | str, ...]:
    """The fields in their order; `properties` as JSON."""
    text, encoding = encode_payload(event.payload)
    return (
        event.seq,
        format_time(event.ts),
        event.topic,
        event.qos,
        "true" if event.retain else "false",
        event.client,
        text,
        encoding,
        format_time(event.expires) if event.expires else "",
        properties_as_json(event.properties) or "",
    )


def to_row(event: Event) -> Row:
    """A row of a table with `EVENT_COLUMNS`."""
    return (
        event.seq,
        format_time(event.ts),
        event.topic,
        event.qos,
        int(event.retain),
        event.client,
        payload_value(event.payload),
        format_time(event.expires) if event.expires else None,
        properties_as_json(event.properties),
        event.ts,
    )


def encode_payload(payload: bytes) -> tuple[str, str]:
    """A payload as text, and how it is encoded: empty, or `base64`."""
    try:
        return payload.decode(), ""
    except UnicodeDecodeError:
        return b64encode(payload).decode(), "base64"


def payload_value(payload: bytes) -> str | bytes:
    """A payload for SQLite, whose functions take U+0000 for the end of a text."""
    if 0 in payload:
        return payload
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return payload


def properties_as_json(data: bytes) -> str | None:
    """The properties of a message as a JSON object; None where there are none."""
    return orjson.dumps(properties_by_name(data)).decode() if data else None


def properties_by_name(data: bytes, place: int = Publish.TYPE) -> dict[str, object]:
    """The properties of a message, or of a will: names in lower case; user properties as pairs, in their order."""
    named: dict[str, object] = {}
    pairs: list[object] = []
    for id, value in decode_properties(data, place):
        if id == Property.USER_PROPERTY:
            pairs.append(value)
        else:
            named[Property(id).name.lower()] = b64encode(value).decode() if isinstance(value, bytes) else value
    if pairs:
        named["user_properties"] = pairs
    return named


def state_fields(table: Table, row: Row) -> dict[str, object]:
    """A row of a table of state, by column. Bytes are text where they are UTF-8, otherwise `base64:...`."""
    names = [column.partition(" ")[0] for column in table.key + table.values]
    fields: dict[str, object] = {}
    for name, value in zip(names, row, strict=True):
        if name == "properties" and isinstance(value, bytes):
            fields[name] = properties_by_name(value, WILL if table is WILLS else Publish.TYPE)
        elif isinstance(value, bytes):
            text, encoding = encode_payload(value)
            fields[name] = f"{encoding}:{text}" if encoding else text
        elif name in _TIMES and isinstance(value, int):
            fields[name] = format_time(value) if value else None
        else:
            fields[name] = value
    return fields

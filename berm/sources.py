"""Files with messages to import: NDJSON, CSV and SQLite as `berm export` writes them, and Mosquitto's mosquitto.db.

The rules:

1. What a file is, its content says, and its name only where the content does not.
2. A message is checked as a broker would check it: what no client could have published is refused, with its place.
3. Reading holds one message at a time.

Lines and rows need `topic`, `payload` and `time`; the rest has a default, so that files of others can be imported, too.
"""

from __future__ import annotations

import csv
import sqlite3
from base64 import b64decode
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO, Final

import orjson

from berm.export import APPLICATION_ID, VERSION
from berm.formats import FIELDS, KIND, RETAINED_KIND
from berm.mosquitto_db import MAGIC, FormatError, read_retained
from broker.mqtt.errors import ProtocolError
from broker.mqtt.packets import Publish
from broker.mqtt.properties import Property, Value, decode_properties, encode_properties
from broker.mqtt.topic import validate_name

LARGEST_TEXT: Final = 65535
"""Bytes of a topic or a client identifier at most."""
LARGEST_PAYLOAD: Final = 268_435_455
"""Bytes."""
LONGEST_LINE: Final = 400 << 20
"""Bytes: a message of the largest size takes less."""

_SQLITE_MAGIC: Final = b"SQLite format 3\0"
_EPOCH: Final = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
_MICROSECOND: Final = timedelta(microseconds=1)
_FLAGS: Final[dict[object, bool]] = {"true": True, "false": False, "1": True, "0": False, "": False}
_NAMED: Final = {
    property.name.lower(): property
    for property in (
        Property.PAYLOAD_FORMAT_INDICATOR,
        Property.CONTENT_TYPE,
        Property.RESPONSE_TOPIC,
        Property.CORRELATION_DATA,
    )
}
_SELECT: Final = "SELECT time, topic, qos, retain, client, payload, expires, properties FROM"
_EVENTS: Final = f"{_SELECT} events ORDER BY seq"
_RETAINED_ONLY: Final = f"{_SELECT} retained WHERE seq NOT IN (SELECT seq FROM events) ORDER BY ts"


class SourceError(Exception):
    """A file can't be imported; the message says where it is wrong, and how."""


@dataclass(slots=True)
class Message:
    """One message of a file.

    `ts` and `expires` are in µs since the Unix epoch; a `ts` of None means that the file doesn't say, an `expires` of 0
    that it never does. Where `kept`, it is a retained message whose event is not in the file.
    """

    ts: int | None
    topic: str
    payload: bytes
    qos: int
    retain: bool
    client: str
    properties: bytes
    expires: int
    kept: bool = False


def messages(path: Path) -> Iterator[Message]:
    """The messages of a file, in its order.

    Raises:
        SourceError: it can't be read, is none of ours, or has something in it that can't be imported.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4096)
            file.seek(0)
            yield from _reader(path, head)(path, file)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from None


def _reader(path: Path, head: bytes) -> Callable[[Path, BinaryIO], Iterator[Message]]:
    if head.startswith(_SQLITE_MAGIC):
        return _from_sqlite
    if head.startswith(MAGIC):
        return _from_mosquitto
    head = head.removeprefix(BOM_UTF8)
    first = head.lstrip()[:1]
    if first == b"{" or (not head and path.suffix in (".ndjson", ".jsonl")):
        return _from_ndjson
    line = head.partition(b"\n")[0].strip().split(b",")
    if {b"topic", b"payload"} <= {name.strip(b'"') for name in line}:
        return _from_csv
    raise SourceError(
        f"{path}: is neither what berm export writes (SQLite, NDJSON, CSV with a line of names) nor a mosquitto.db"
    )


def _from_ndjson(path: Path, file: BinaryIO) -> Iterator[Message]:
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        where = f"{path}:{number}"
        if line.isspace():
            continue
        if len(line) >= LONGEST_LINE:
            raise SourceError(f"{where}: is longer than any message")
        try:
            fields = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise SourceError(f"{where}: not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise SourceError(f"{where}: not a JSON object")
        kind = fields.pop(KIND, None)
        if kind in (None, RETAINED_KIND):
            yield _checked(where, fields, kept=kind is not None)


def _from_csv(path: Path, file: BinaryIO) -> Iterator[Message]:
    csv.field_size_limit(LONGEST_LINE)
    with TextIOWrapper(file, "utf-8-sig", newline="") as text:
        rows = csv.DictReader(text, strict=True)
        try:
            for row in rows:
                where = f"{path}:{rows.line_num}"
                if None in row or None in row.values():
                    raise SourceError(f"{where}: has not as many fields as the first line has names")
                fields: dict[str, object] = {name: value for name, value in row.items() if value or name == "payload"}
                if isinstance(properties := fields.get("properties"), str):
                    fields["properties"] = _object(where, properties)
                yield _checked(where, fields)
        except (csv.Error, UnicodeDecodeError) as error:
            raise SourceError(f"{path}:{rows.line_num + 1}: not CSV: {error}") from None


def _from_sqlite(path: Path, _: BinaryIO) -> Iterator[Message]:
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            id, version = (
                database.execute(f"PRAGMA {each}").fetchone()[0] for each in ("application_id", "user_version")
            )
            if id != APPLICATION_ID:
                raise SourceError(f"{path}: is a SQLite file, but not one that berm export has written")
            if version != VERSION:
                raise SourceError(f"{path}: was exported by a newer Berm; install that version")
            for table, query in (("events", _EVENTS), ("retained", _RETAINED_ONLY)):
                for at, row in enumerate(database.execute(query), 1):
                    where = f"{path}: row {at} of {table}"
                    fields = {name: value for name, value in zip(_COLUMNS, row, strict=True) if value is not None}
                    if isinstance(properties := fields.get("properties"), str):
                        fields["properties"] = _object(where, properties)
                    yield _checked(where, fields, kept=table == "retained")
    except sqlite3.Error as error:
        raise SourceError(f"{path}: {error}") from None


_COLUMNS: Final = ("time", "topic", "qos", "retain", "client", "payload", "expires", "properties")


def _from_mosquitto(path: Path, file: BinaryIO) -> Iterator[Message]:
    try:
        for found in read_retained(file):
            message = Message(
                None, found.topic, found.payload, found.qos, True, found.client, found.properties, found.expires, True
            )
            _check(f"{path}: {found.topic!r}", message)
            yield message
    except FormatError as error:
        raise SourceError(f"{path}: {error}") from None


def _object(where: str, text: str) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise SourceError(f"{where}: properties: not JSON: {error}") from None


def _checked(where: str, fields: Mapping[str, object], *, kept: bool = False) -> Message:
    """The message that a line or row means."""
    unknown = fields.keys() - FIELDS - {"ts"}
    if unknown:
        raise SourceError(f"{where}: has a field {min(unknown)!r}; there are {', '.join(FIELDS)}")
    for name in ("topic", "payload"):
        if name not in fields:
            raise SourceError(f"{where}: has no {name}")
    try:
        message = Message(
            _time(fields, "time"),
            _text(fields, "topic"),
            _payload(fields),
            _qos(fields.get("qos", 0)),
            _flag(fields.get("retain", False)),
            _text(fields, "client"),
            _properties(fields.get("properties")),
            _time(fields, "expires") or 0,
            kept,
        )
    except ValueError as error:
        raise SourceError(f"{where}: {error}") from None
    _check(where, message)
    return message


def _check(where: str, message: Message) -> None:
    try:
        validate_name(message.topic)
    except ProtocolError as error:
        raise SourceError(f"{where}: {error}") from None
    if message.qos not in (0, 1, 2):
        raise SourceError(f"{where}: there is no QoS {message.qos}")
    if message.kept and not message.payload:
        raise SourceError(f"{where}: a retained message without a payload is none")
    for name, value, most in (
        ("topic", message.topic, LARGEST_TEXT),
        ("client", message.client, LARGEST_TEXT),
        ("payload", message.payload, LARGEST_PAYLOAD),
        ("properties", message.properties, LARGEST_PAYLOAD),
    ):
        if len(value.encode() if isinstance(value, str) else value) > most:
            raise SourceError(f"{where}: {name}: longer than {most} bytes")


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise ValueError(f"{name}: {value!r} is not a text")
    return value


def _time(fields: Mapping[str, object], name: str) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    try:
        if not isinstance(value, str):
            raise ValueError
        when = datetime.fromisoformat(value)
        if when.tzinfo is None:
            raise ValueError
        ts = (when - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError):
        raise ValueError(f"{name}: {value!r} is not a time like 2026-03-01T10:00:00.000000Z") from None
    if ts < 0:
        raise ValueError(f"{name}: {value!r} is before 1970")
    return ts


def _payload(fields: Mapping[str, object]) -> bytes:
    payload, encoding = fields["payload"], fields.get("encoding", "")
    if isinstance(payload, bytes):
        return payload
    if not isinstance(payload, str):
        raise ValueError("payload: not a text")
    if encoding not in ("", "base64"):
        raise ValueError(f"encoding: {encoding!r} is not base64")
    return b64decode(payload, validate=True) if encoding else payload.encode()


def _qos(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value in ("0", "1", "2"):
        return int(value)
    raise ValueError(f"qos: there is no QoS {value!r}")


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if (text := str(value).lower()) not in _FLAGS:
        raise ValueError(f"retain: {value!r} is neither true nor false")
    return _FLAGS[text]


def _properties(value: object) -> bytes:
    if value is None:
        return b""
    if not isinstance(value, dict):
        raise ValueError("properties: not a JSON object")
    named: list[tuple[int, Value]] = []
    for name, each in value.items():
        if name == "user_properties":
            named += ((Property.USER_PROPERTY, pair) for pair in _pairs(each))
        elif name not in _NAMED:
            raise ValueError(f"properties: no message has a property {name!r}")
        elif _NAMED[name] is Property.CORRELATION_DATA and isinstance(each, str):
            named.append((_NAMED[name], b64decode(each, validate=True)))
        else:
            named.append((_NAMED[name], each))
    try:
        data = encode_properties(tuple(named))
        decode_properties(data, Publish.TYPE)
    except (ValueError, ProtocolError) as error:
        raise ValueError(f"properties: {error}") from None
    return data


def _pairs(value: object) -> Iterable[tuple[str, str]]:
    if isinstance(value, list):
        for pair in value:
            if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(each, str) for each in pair)):
                break
            yield pair[0], pair[1]
        else:
            return
    raise ValueError("properties: user_properties are no pairs of texts")

"""Reads history out of the log, beside a running node or without one.

The theory: `ts` never decreases along the log, so a time is a place in it that is found by halving, some thirty reads
in a log of any length. From there a replay is a cursor like any other: it reads forward, in bounded steps, and holds
no transaction between them, so the node is never in its way.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import orjson

from berm.times import format_time
from broker.mqtt.packets import Publish
from broker.mqtt.properties import Property, decode_properties
from broker.mqtt.topic import compile_filters
from storage.interface import Engine, Event

READ_LIMIT: Final = 200
"""Events that one read brings at most."""


@dataclass(frozen=True, slots=True)
class Query:
    """Which events: those whose topic matches one of `topics` (none: all topics), with start <= time < end.

    `start` and `end` are in µs since the Unix epoch; a `client` is the publisher's client identifier.
    """

    topics: tuple[str, ...] = ()
    start: int | None = None
    end: int | None = None
    client: str | None = None
    limit: int | None = None


def select(engine: Engine, query: Query) -> Iterator[Event]:
    """The events that a query asks for, in order, up to the last one that is in the log at the first call.

    Raises:
        StorageError: the log can't be read.
    """
    upto = engine.last() if query.end is None else seek_time(engine, query.end)
    position = 0 if query.start is None else seek_time(engine, query.start)
    accepts = compile_filters(query.topics) if query.topics else None
    left = query.limit
    while position < upto and left != 0:
        events, position = engine.read(position, upto, READ_LIMIT, accepts)
        for event in events:
            if query.client is not None and event.client != query.client:
                continue
            yield event
            if left is not None:
                left -= 1
                if left == 0:
                    return


def seek_time(engine: Engine, ts: int) -> int:
    """The position from which a reader gets exactly the events with a time of `ts` (µs) or later."""
    low, high = 0, engine.last()
    last = high
    while low < high:
        middle = (low + high) // 2
        event = _next(engine, middle, last)
        if event is not None and event.ts < ts:
            low = event.seq
        else:
            high = middle
    return low


def to_json(event: Event) -> bytes:
    """One line of NDJSON.

    A payload is text where it is UTF-8; otherwise `encoding` says `base64`. Correlation data is always base64.
    """
    line: dict[str, object] = {
        "seq": event.seq,
        "time": format_time(event.ts),
        "topic": event.topic,
        "qos": event.qos,
        "retain": event.retain,
        "client": event.client,
    }
    try:
        line["payload"] = event.payload.decode()
    except UnicodeDecodeError:
        line["payload"] = b64encode(event.payload).decode()
        line["encoding"] = "base64"
    if event.expires:
        line["expires"] = format_time(event.expires)
    if event.properties:
        line["properties"] = _properties(event.properties)
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def _next(engine: Engine, after: int, upto: int) -> Event | None:
    while after < upto:
        events, after = engine.read(after, upto, 1, None)
        if events:
            return events[0]
    return None


def _properties(data: bytes) -> dict[str, object]:
    named: dict[str, object] = {}
    pairs: list[object] = []
    for id, value in decode_properties(data, Publish.TYPE):
        if id == Property.USER_PROPERTY:
            pairs.append(value)
        else:
            named[Property(id).name.lower()] = b64encode(value).decode() if isinstance(value, bytes) else value
    if pairs:
        named["user_properties"] = pairs
    return named

"""Logs for tests of what reads history: some telemetry, and what is hard to write down."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import sleep

from broker.mqtt.properties import Property, encode_properties
from storage.interface import FSYNC, RETAINED, Event, Group
from storage.sealer import Policy
from storage.sqlite import SQLiteEngine

START = round(datetime(2026, 3, 1, 10, tzinfo=UTC).timestamp() * 1e6)
MINUTE = 60_000_000
GROUP = 500
"""Events that are committed together."""
PROPERTIES = encode_properties(
    (
        (Property.CONTENT_TYPE, "application/json"),
        (Property.CORRELATION_DATA, b"\x00\xff"),
        (Property.USER_PROPERTY, ("unit", "K")),
        (Property.USER_PROPERTY, ("unit", "C")),
    )
)
PAYLOADS = (
    b'{"value": 1.5}',
    b"",
    "zw\u00f6lf".encode(),
    b"\xff\xfe",
    b"a\0b",
    b'a "quoted",\r\nline\r and\n one',
    b"=1+1",
    b"a lone\rreturn",
)


def event(
    seq: int,
    minute: int,
    topic: str = "plant/a",
    payload: bytes = b"x",
    client: str = "dev",
    *,
    retain: bool = False,
    properties: bytes = b"",
    expires: int = 0,
    qos: int = 1,
) -> Event:
    return Event(
        seq, START + minute * MINUTE, topic, payload, qos, retain, client, properties, expires, FSYNC if qos else 1
    )


def awkward() -> list[Event]:
    """Events with every kind of payload, of topic and of properties."""
    events = [event(n, n, f"plant/{n}", payload) for n, payload in enumerate(PAYLOADS, 1)]
    last = len(events)
    return [
        *events,
        event(last + 1, last, 'a,b/"c"', b"x", "zw\u00f6lf, \u2603", properties=PROPERTIES, expires=START * 2, qos=2),
        event(last + 2, last + 1, "state", b"on", retain=True, qos=0),
    ]


def make(
    directory: Path, events: Sequence[Event], retained: Sequence[Event] = (), policy: Policy | None = None
) -> None:
    """A log with these events and retained messages, and no node on it."""
    engine = SQLiteEngine(directory) if policy is None else SQLiteEngine(directory, policy=policy)
    group = Group()
    for each in retained:
        values = (each.seq, each.ts, each.payload, each.qos, each.client, each.properties, each.expires)
        group.put(RETAINED, (each.topic,), values)
    engine.commit([], group.state, True)
    for at in range(0, len(events), GROUP):
        engine.commit(events[at : at + GROUP], {}, True)
        while engine.upkeep():
            sleep(0)  # for the thread that writes a segment
    engine.close()


def contents(directory: Path) -> list[Event]:
    """All events of a log."""
    engine = SQLiteEngine(directory, readonly=True)
    try:
        found: list[Event] = []
        position, last = 0, engine.last()
        while position < last:
            events, position = engine.read(position, last, 1000, None)
            found += events
        return found
    finally:
        engine.close()


def retained(directory: Path) -> dict[str, bytes]:
    """The retained messages of a log, by topic."""
    engine = SQLiteEngine(directory, readonly=True)
    try:
        return {str(row[0]): row[3] for row in engine.rows(RETAINED) if isinstance(row[3], bytes)}
    finally:
        engine.close()


def without_seqs(events: Sequence[Event]) -> list[tuple[object, ...]]:
    """What an event says, but for its place and how it was committed."""
    return [(e.ts, e.topic, e.payload, e.qos, e.retain, e.client, e.properties, e.expires) for e in events]

"""Who counts, independently of node and devices: a subscriber at each end of the bridge, and a reader of the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orjson

from bench.brokers import HOST
from bench.client import Client
from bridge import Ledger, read_stamp
from broker.mqtt.packets import Publish
from broker.mqtt.topic import compile_filters
from storage.sqlite import SQLiteEngine

Place = tuple[str, int, int]
"""Edge, epoch and seq: the same for every copy of one event."""
Reading = tuple[str, int]
"""Device and the number that it gave to the reading."""
Window = tuple[str, str]
"""Device and start."""

_RETRY_SECONDS: Final = 0.1
_BATCH: Final = 1000


class Subscriber:
    """A client that takes everything that a filter matches, in one session over any number of connections."""

    def __init__(self, client_id: str, filter: str, port: int, take: Callable[[Publish], None]) -> None:
        self.subscribed = asyncio.Event()
        self._client_id = client_id
        self._filter = filter
        self._port = port
        self._take = take

    async def run(self) -> None:
        """Receive until cancelled. Messages are counted before they are acknowledged."""
        while True:
            try:
                await self._converse()
            except OSError:
                await asyncio.sleep(_RETRY_SECONDS)

    async def _converse(self) -> None:
        client = await Client.connect(HOST, self._port, self._client_id)
        try:
            if not client.session_present:
                await client.subscribe(self._filter)
            self.subscribed.set()
            while True:
                packets = await client.receive()
                for packet in packets:
                    if isinstance(packet, Publish):
                        self._take(packet)
                client.acknowledge(packets)
        except asyncio.CancelledError:
            client.close()
            raise
        except OSError:
            client.abort()
            raise


@dataclass(slots=True)
class Results:
    """At the edge: what the processor made of the readings."""

    windows: dict[Window, int] = field(default_factory=dict)
    """The readings counted in each window."""
    conflicts: int = 0
    """Windows that came twice, with different counts."""

    @property
    def aggregated(self) -> int:
        """Readings counted in all windows."""
        return sum(self.windows.values())

    def take(self, message: Publish) -> None:
        """Count one window; another copy of it (QoS 1 allows that) must say the same."""
        result = orjson.loads(message.payload)
        window, count = (result["key"], result["start"]), result["count"]
        if self.windows.setdefault(window, count) != count:
            self.conflicts += 1


@dataclass(slots=True)
class Cloud:
    """At the cloud: what the bridge forwarded."""

    proof: Ledger = field(default_factory=Ledger)
    received: int = 0
    unstamped: int = 0
    readings: dict[Place, Reading] = field(default_factory=dict)
    """What arrived, each event once."""

    @property
    def duplicates(self) -> int:
        """Copies beyond the first of each event."""
        return self.received - len(self.readings)

    def take(self, message: Publish) -> None:
        """Count one message, by its stamp and by what is in it."""
        stamp = read_stamp(value for _, value in message.properties if isinstance(value, tuple))
        if stamp is None:
            self.unstamped += 1
            return
        self.received += 1
        self.proof.feed(stamp.edge, stamp.epoch, stamp.seq, stamp.prev, stamp.route)
        self.readings[stamp.edge, stamp.epoch, stamp.seq] = reading_of(message.payload)


@dataclass(slots=True)
class Stored:
    """In the log's file: the readings that stand in it."""

    directory: Path
    filter: str
    readings: dict[int, Reading] = field(default_factory=dict)
    """By seq."""
    _position: int = 0

    def read(self) -> None:
        """Read what has come since the last time, beside a running node or after it. Blocks.

        Raises:
            StorageError: it can't be read.
        """
        accepts = compile_filters((self.filter,))
        engine = SQLiteEngine(self.directory, readonly=True)
        try:
            last = engine.last()
            while self._position < last:
                events, self._position = engine.read(self._position, last, _BATCH, accepts)
                self.readings.update((event.seq, reading_of(event.payload)) for event in events)
        finally:
            engine.close()


def reading_of(payload: bytes) -> Reading:
    """The reading in a message."""
    reading = orjson.loads(payload)
    return reading["device"], reading["n"]

"""Publishes events of the log to a broker: a client that does nothing else.

Events of QoS 1 and 2 go at QoS 1, at most `WINDOW` unacknowledged at a time; events of QoS 0 at QoS 0. It speaks
MQTT 5, and 3.1.1 to a broker that doesn't. Frames are gathered and written once for each wait, not one by one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from broker.mqtt.codec import Decoder, encode
from broker.mqtt.packets import Connack, Connect, Disconnect, Puback, Publish
from broker.mqtt.properties import Property, decode_properties
from broker.mqtt.reason import Reason
from broker.net.errors import words
from storage.interface import Event

WINDOW: Final = 100
"""QoS 1 publishes unacknowledged at a time; a peer's Receive Maximum lowers it."""
BATCH_BYTES: Final = 64 << 10
"""Bytes of frames that are gathered before they are written."""
PATIENCE: Final = 30
"""s to wait for the broker to answer."""
LARGEST_PACKET: Final = 268_435_460
_UNKNOWN_VERSION: Final = Reason.UNSUPPORTED_PROTOCOL_VERSION


class PublishError(Exception):
    """The broker can't be reached, refuses the connection or ends it; the message says which, and why."""


class _OtherVersionError(Exception):
    """The broker doesn't speak this version of MQTT."""


@dataclass(frozen=True, slots=True)
class Target:
    """A broker to publish to."""

    host: str
    port: int = 1883
    username: str | None = None
    password: str | None = None

    def __str__(self) -> str:
        return f"mqtt://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @classmethod
    def parse(cls, url: str) -> Target:
        """A target from `mqtt://[user[:password]@]host[:port]`.

        Raises:
            ValueError: it isn't one.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"{url!r} is not a URL: {error}") from None
        if parts.scheme != "mqtt" or not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
            raise ValueError(f"{url!r} is not a broker; write mqtt://[user[:password]@]host[:port]")
        username, password = (None if each is None else unquote(each) for each in (parts.username, parts.password))
        return cls(parts.hostname, 1883 if port is None else port, username, password)


@dataclass(slots=True)
class Report:
    """What became of the events so far: sent at all, acknowledged, refused, and too large for this broker."""

    sent: int = 0
    acknowledged: int = 0
    unasked: int = 0
    """Sent at QoS 0, which nobody acknowledges."""
    refused: int = 0
    oversized: int = 0

    @property
    def complete(self) -> bool:
        """Whether the broker has everything, as far as MQTT tells."""
        return self.acknowledged + self.unasked == self.sent and not self.oversized

    def __str__(self) -> str:
        parts = [f"published {self.sent}, acknowledged {self.acknowledged}"]
        if self.unasked:
            parts.append(f"sent at QoS 0 {self.unasked}")
        if self.refused:
            parts.append(f"refused {self.refused}")
        if self.oversized:
            parts.append(f"left out {self.oversized} larger than the broker takes")
        return ", ".join(parts)


def publish(events: Iterable[Event], target: Target, report: Report) -> None:
    """Publish all events in order, and wait until each is acknowledged; `report` is kept up to date on the way.

    Raises:
        PublishError: the broker can't be reached, refuses the connection or ends it.
    """
    asyncio.run(_publish(events, target, report))


async def _publish(events: Iterable[Event], target: Target, report: Report) -> None:
    try:
        connection = await _connect(target)
        try:
            await _send_all(events, connection, report)
        finally:
            await connection.close()
    except TimeoutError:
        raise PublishError(f"{target}: no answer within {PATIENCE} s") from None
    except OSError as error:
        raise PublishError(f"{target}: {words(error)}") from None


async def _send_all(events: Iterable[Event], connection: _Connection, report: Report) -> None:
    # Reading the log blocks the loop, which has nothing else to do meanwhile.
    for event in events:
        frame, packet_id = connection.frame(event)
        if len(frame) > connection.max_packet_size:  # [MQTT-3.2.2-15]
            report.oversized += 1
            continue
        connection.write(frame, packet_id)
        report.sent += 1
        if not packet_id:
            report.unasked += 1
        if len(connection.waiting) >= connection.window:  # [MQTT-3.3.4-7]
            await connection.flush()
            await connection.read(report)
        elif connection.size >= BATCH_BYTES:
            await connection.flush()
    await connection.flush()
    while connection.waiting:
        await connection.read(report)


async def _connect(target: Target) -> _Connection:
    try:
        return await _Connection.open(target, 5)
    except _OtherVersionError:
        pass
    try:
        return await _Connection.open(target, 4)
    except _OtherVersionError:
        raise PublishError(f"{target}: it closed the connection without a CONNACK; is it an MQTT broker?") from None


class _Connection:
    """A connection that the broker has accepted."""

    def __init__(
        self, target: Target, version: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.waiting: set[int] = set()
        """Packet identifiers that wait for a PUBACK."""
        self.window = WINDOW
        self.max_packet_size = LARGEST_PACKET
        self.size = 0
        """Bytes gathered, not yet written."""
        self._target = target
        self._version = version
        self._reader = reader
        self._writer = writer
        self._decoder = Decoder(version)
        self._frames: list[bytes] = []
        self._last_id = 0
        self._max_qos = 1
        self._retain = True

    @classmethod
    async def open(cls, target: Target, version: int) -> _Connection:
        """Connect with a session that ends with the connection.

        Raises:
            PublishError: the broker refuses.
            _OtherVersionError: the broker doesn't understand this version.
        """
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(target.host, target.port)
        connection = cls(target, version, reader, writer)
        try:
            await connection._introduce()
        except BaseException:
            await connection.close()
            raise
        return connection

    def frame(self, event: Event) -> tuple[bytes, int]:
        """The PUBLISH of an event, and its packet identifier, 0 at QoS 0."""
        qos = min(event.qos, self._max_qos)
        packet_id = self._next_id() if qos else 0
        properties = decode_properties(event.properties, Publish.TYPE) if self._version == 5 else ()
        retain = event.retain and self._retain  # [MQTT-3.2.2-14]
        packet = Publish(event.topic, event.payload, qos, retain, packet_id=packet_id, properties=properties)
        return encode(packet, self._version), packet_id

    def write(self, frame: bytes, packet_id: int) -> None:
        """Gather a frame for the next `flush`."""
        if packet_id:
            self.waiting.add(packet_id)
        self._frames.append(frame)
        self.size += len(frame)

    async def flush(self) -> None:
        """Write what was gathered, and wait while the broker is slow to take it."""
        self._writer.write(b"".join(self._frames))
        self._frames.clear()
        self.size = 0
        async with asyncio.timeout(PATIENCE):
            await self._writer.drain()

    async def read(self, report: Report) -> None:
        """Wait for the broker to acknowledge something."""
        async with asyncio.timeout(PATIENCE):
            data = await self._reader.read(BATCH_BYTES)
        for packet in self._decoder.feed(data):
            if isinstance(packet, Puback) and packet.packet_id in self.waiting:
                self.waiting.remove(packet.packet_id)
                if packet.reason < 0x80:
                    report.acknowledged += 1
                else:
                    report.refused += 1
            elif isinstance(packet, Disconnect):
                raise PublishError(f"{self._target}: it ended the connection: {_words(packet.reason)}")
        if self._decoder.error is not None:
            raise PublishError(f"{self._target}: what it sent is not MQTT: {self._decoder.error}")
        if not data:
            raise PublishError(f"{self._target}: it closed the connection")

    async def close(self) -> None:
        """Say goodbye as far as that is possible."""
        with suppress(OSError, TimeoutError):
            self._frames = [encode(Disconnect(), self._version)]
            await self.flush()
            self._writer.close()
            await self._writer.wait_closed()

    async def _introduce(self) -> None:
        target = self._target
        password = None if target.password is None else target.password.encode()
        client_id = f"berm-replay-{os.getpid()}"
        packet = Connect(client_id, self._version, True, 0, None, target.username, password)
        self._frames.append(encode(packet, self._version))
        await self.flush()
        packets: list[object] = []
        while not packets:
            async with asyncio.timeout(PATIENCE):
                data = await self._reader.read(BATCH_BYTES)
            packets += self._decoder.feed(data)
            if not packets and (not data or self._decoder.error is not None):
                raise _OtherVersionError  # an older broker hangs up, or answers in its own version
        if not isinstance(packets[0], Connack):
            raise PublishError(f"{target}: it answered CONNECT with something else than CONNACK")
        self._accept(packets[0])

    def _accept(self, connack: Connack) -> None:
        if connack.reason == _UNKNOWN_VERSION and self._version == 5:
            raise _OtherVersionError
        if connack.reason >= 0x80:
            raise PublishError(f"{self._target}: it refuses the connection: {_words(connack.reason)}")
        for id, value in connack.properties:
            if not isinstance(value, int):
                continue
            match id:
                case Property.RECEIVE_MAXIMUM:
                    self.window = min(WINDOW, value)
                case Property.MAXIMUM_QOS:
                    self._max_qos = min(1, value)  # [MQTT-3.2.2-11]
                case Property.RETAIN_AVAILABLE:
                    self._retain = bool(value)
                case Property.MAXIMUM_PACKET_SIZE:
                    self.max_packet_size = value

    def _next_id(self) -> int:
        packet_id = self._last_id
        while True:
            packet_id = packet_id % 65535 + 1
            if packet_id not in self.waiting:
                self._last_id = packet_id
                return packet_id


def _words(reason: int) -> str:
    try:
        return Reason(reason).name.lower().replace("_", " ")
    except ValueError:
        return f"reason 0x{reason:02X}"

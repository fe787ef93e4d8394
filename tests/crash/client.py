"""Clients as conforming devices are: they have a session, remember what they owe, and connect again and again.

A publisher keeps each message until it is acknowledged, and after a reconnect sends it again, with DUP and under its
packet identifier, in the order in which it was first sent [MQTT-4.4.0-1] [MQTT-4.6.0-1]. A subscriber keeps the packet
identifiers of QoS 2 messages from PUBLISH until PUBREL, and takes a message under one of these for a copy
[MQTT-4.3.3-10]. Neither ever forgets: only the node is killed here.

Messages are numbered from 1 by their publisher, and the number says what all of the message must be.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from random import Random
from typing import Final

import orjson

from bridge import Ledger, read_stamp
from broker.mqtt.codec import Decoder, encode
from broker.mqtt.packets import (
    Connack,
    Connect,
    Disconnect,
    Packet,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Subscription,
)
from broker.mqtt.properties import Properties, Property
from tests.node import HOST

LOAD: Final = "load/"
HOT: Final = "hot/"
STATS: Final = "stats/"

_NEVER: Final = 0xFFFFFFFF
_RETRY_SECONDS: Final = 0.05
_CONNECT_SECONDS: Final = 10
_READ_BYTES: Final = 64 << 10
_LARGEST_ID: Final = 65535


def payload(topic: str, number: int) -> bytes:
    """What message `number` of a topic says."""
    return b'{"n":%d,"topic":"%b","filler":"%b"}' % (number, topic.encode(), b"x" * (number * 37 % 301))


def properties(version: int, number: int) -> Properties:
    """The user properties of message `number`, where the version has any."""
    return ((Property.USER_PROPERTY, ("number", str(number))),) if version == 5 else ()


class Client:
    """One client identifier and its session. `port` tells where the node listens at the moment; 0: nowhere."""

    def __init__(self, name: str, version: int, port: Callable[[], int]) -> None:
        self.name = name
        self.version = version
        self.faults: list[str] = []
        """What the broker did that it must not do."""
        self.connections = 0
        self.username: str | None = None
        """What CONNECT says."""
        self._port = port
        self._random = Random(name)
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._writer: asyncio.StreamWriter | None = None

    async def run(self) -> None:
        """Be connected whenever that is possible, until cancelled."""
        try:
            while True:
                await self._wanted.wait()
                with suppress(OSError, TimeoutError):
                    await self._converse()
                self._writer = None
                await asyncio.sleep(_RETRY_SECONDS * (0.5 + self._random.random()))
        finally:
            if self._writer is not None:
                self._writer.transport.abort()

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection."""
        return self._writer is not None

    def leave(self, politely: bool = True) -> None:
        """Go, with a DISCONNECT or without a word, and stay away until `back`."""
        self._wanted.clear()
        if self._writer is not None:
            if politely:
                self._send(Disconnect())
                self._writer.close()
            else:
                self._writer.transport.abort()

    def back(self) -> None:
        """Come back."""
        self._wanted.set()

    async def _converse(self) -> None:
        port = self._port()
        if not port:
            return
        async with asyncio.timeout(_CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(HOST, port)
        try:
            await self._talk(reader, writer)
        finally:
            writer.transport.abort()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        version = self.version
        expiry: Properties = ((Property.SESSION_EXPIRY_INTERVAL, _NEVER),) if version == 5 else ()
        writer.write(encode(Connect(self.name, version, False, 0, None, self.username, None, expiry), version))
        decoder = Decoder(version)
        while data := await reader.read(_READ_BYTES):
            for packet in decoder.feed(data):
                if self._writer is None:
                    self._accepted(packet, writer)
                else:
                    self._handle(packet)
            if decoder.error is not None:
                self.faults.append(f"{self.name}: malformed: {decoder.error}")
                return

    def _accepted(self, packet: Packet, writer: asyncio.StreamWriter) -> None:
        if not isinstance(packet, Connack) or packet.reason:
            self.faults.append(f"{self.name}: {packet} in answer to CONNECT")
            raise ConnectionError
        self._writer = writer
        self.connections += 1
        # 3.1 can't say whether there is a session: there always is one, once something was promised to it.
        self._begin(packet.session_present or self.version == 3)

    def _send(self, *packets: Packet) -> None:
        if packets and self._writer is not None and not self._writer.is_closing():
            self._writer.write(b"".join(encode(packet, self.version) for packet in packets))

    def _begin(self, session_present: bool) -> None:
        """The broker has accepted."""
        raise NotImplementedError

    def _handle(self, packet: Packet) -> None:
        """The broker has sent this."""
        raise NotImplementedError


class Publisher(Client):
    """Publishes its numbers to a topic of its own, at most `window` of them unacknowledged."""

    def __init__(
        self, name: str, version: int, qos: int, port: Callable[[], int], window: int = 64, retain: bool = False
    ) -> None:
        super().__init__(name, version, port)
        self.topic = LOAD + name
        self.qos = qos
        self.retain = retain
        self.window = window
        self.sent = 0
        """The highest number that was ever sent."""
        self.acknowledged: set[int] = set()
        """The numbers for which a PUBACK or PUBREC came."""
        self.repeated = 0
        """How often a message was sent again."""
        self._owed: dict[int, int] = {}
        """Packet identifier to number, oldest first: no PUBACK or PUBREC yet."""
        self._released: set[int] = set()
        """Packet identifiers that await PUBCOMP."""
        self._last_id = 0

    @property
    def owed(self) -> int:
        """Messages whose handshake is not complete."""
        return len(self._owed) + len(self._released)

    def publish(self, number: int) -> None:
        """Send so many more, as far as the window allows."""
        packets: list[Packet] = []
        for _ in range(min(number, self.window - self.owed)):
            self.sent += 1
            packet_id = self._next_id()
            self._owed[packet_id] = self.sent
            packets.append(self._packet(packet_id, self.sent, dup=False))
        self._send(*packets)

    def _next_id(self) -> int:
        packet_id = self._last_id % _LARGEST_ID + 1
        while packet_id in self._owed or packet_id in self._released:
            packet_id = packet_id % _LARGEST_ID + 1
        self._last_id = packet_id
        return packet_id

    def _packet(self, packet_id: int, number: int, dup: bool) -> Publish:
        content = payload(self.topic, number)
        user = properties(self.version, number)
        return Publish(self.topic, content, self.qos, self.retain, dup, packet_id, user)

    def _begin(self, session_present: bool) -> None:
        if not session_present and self.qos == 2 and self.acknowledged:
            self.faults.append(f"{self.name}: the broker has lost the session")
        self.repeated += len(self._owed)
        self._send(
            *(Pubrel(packet_id) for packet_id in self._released),
            *(self._packet(packet_id, number, dup=True) for packet_id, number in self._owed.items()),
        )

    def _handle(self, packet: Packet) -> None:
        match packet:
            case Puback() | Pubrec():
                if packet.reason >= 0x80:
                    self.faults.append(f"{self.name}: refused: {packet}")
                number = self._owed.pop(packet.packet_id, None)
                if number is not None:
                    self.acknowledged.add(number)
                if isinstance(packet, Pubrec):
                    self._released.add(packet.packet_id)
                    self._send(Pubrel(packet.packet_id))
            case Pubcomp():
                self._released.discard(packet.packet_id)
            case Disconnect():
                pass  # the connection ends next
            case _:
                self.faults.append(f"{self.name}: nobody asked for {packet}")


class Subscriber(Client):
    """Takes every message of some filters, and writes down the numbers by topic, in order of arrival."""

    def __init__(self, name: str, version: int, qos: int, port: Callable[[], int], filters: Iterable[str]) -> None:
        super().__init__(name, version, port)
        self.qos = qos
        self.subscribed = asyncio.Event()
        """The broker has promised to keep what comes for it."""
        self.received: defaultdict[str, array[int]] = defaultdict(lambda: array("q"))
        """By topic."""
        self.windows: list[Window] = []
        self.copies = 0
        """QoS 2 messages that came again, and were known by their packet identifier."""
        self._filters = tuple(Subscription(filter, qos) for filter in filters)
        self._ids: set[int] = set()

    def _begin(self, session_present: bool) -> None:
        if not session_present:
            self._ids.clear()
            if self.subscribed.is_set():
                self.faults.append(f"{self.name}: the broker has lost the session")
        if not self.subscribed.is_set():
            self._send(Subscribe(1, self._filters))

    def _handle(self, packet: Packet) -> None:
        match packet:
            case Publish():
                if packet.qos == 2:
                    if packet.packet_id in self._ids:
                        self.copies += 1
                    else:
                        self._ids.add(packet.packet_id)
                        self._take(packet)
                    self._send(Pubrec(packet.packet_id))
                else:
                    self._take(packet)
                    self._send(Puback(packet.packet_id))
            case Pubrel():
                self._ids.discard(packet.packet_id)
                self._send(Pubcomp(packet.packet_id))
            case Suback():
                self.subscribed.set()
            case Disconnect():
                pass
            case _:
                self.faults.append(f"{self.name}: nobody asked for {packet}")

    def _take(self, packet: Publish) -> None:
        topic = packet.topic
        if topic.startswith(STATS):
            self.windows.append(read_window(packet.payload))
            return
        number = orjson.loads(packet.payload)["n"]
        self.received[topic].append(number)
        if packet.payload != payload(topic.removeprefix(HOT), number):
            self.faults.append(f"{self.name}: {topic} {number} arrived damaged: {packet.payload!r}")


class Window:
    """A published result of the aggregate."""

    __slots__ = ("count", "key", "last", "start", "sum")

    def __init__(self, key: str, start: str, count: int, sum: int, last: int) -> None:
        self.key = key
        self.start = start
        self.count = count
        self.sum = sum
        self.last = last
        """The number of its last event."""


def read_window(content: bytes) -> Window:
    """The result in a payload."""
    found = orjson.loads(content)
    return Window(found["key"], found["start"], found["count"], found["sum"], found["last"])


class Cloud(Subscriber):
    """What the cloud got, by its own account."""

    def __init__(self, port: Callable[[], int]) -> None:
        super().__init__("cloud-subscriber", 5, 1, port, [LOAD + "#"])
        self.ledger = Ledger()

    def _take(self, packet: Publish) -> None:
        pairs = [value for key, value in packet.properties if key == Property.USER_PROPERTY]
        stamp = read_stamp(pair for pair in pairs if isinstance(pair, tuple))
        if stamp is None:
            self.faults.append(f"the cloud got {packet.topic} without a stamp")
        else:
            self.ledger.feed(stamp.edge, stamp.epoch, stamp.seq, stamp.prev, stamp.route)
        super()._take(packet)

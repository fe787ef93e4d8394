"""A hundred devices: each measures at its own pace, whether it is connected or not, and owes each reading until it is
acknowledged.

After a connection was lost a device sends again, with DUP, what it has sent before and nobody has acknowledged, in the
order in which it was first sent [MQTT-4.4.0-1] [MQTT-4.6.0-1]. A reading keeps its packet identifier as long as the
broker keeps the session.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from random import Random
from time import time
from typing import Final

import orjson

from bench.brokers import HOST
from bench.client import Client
from broker.mqtt.packets import Puback, Publish

FILTER: Final = "plant/+/telemetry"
_RETRY_SECONDS: Final = 0.25
_LARGEST_ID: Final = 65535


class Device:
    """One device, and what it counts of its own."""

    def __init__(self, number: int, port: int, seconds: float) -> None:
        self.name = f"device-{number:03}"
        self.published = 0
        """Readings; they are numbered from 1."""
        self.acknowledged: set[int] = set()
        """The numbers of those that the broker has acknowledged."""
        self.refused = 0
        self.repeated = 0
        """How often a reading was sent again."""
        self._port = port
        self._seconds = seconds
        self._random = Random(number)
        self._client: Client | None = None
        self._owed: dict[int, tuple[int, Publish]] = {}
        """Number and PUBLISH of each reading that is not acknowledged, by packet identifier, oldest first."""
        self._sent: set[int] = set()
        """Packet identifiers of those that have been sent in this session."""
        self._last_id = 0

    @property
    def owed(self) -> int:
        """Readings that are not acknowledged yet."""
        return len(self._owed)

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted a connection that has not ended."""
        return self._client is not None

    async def measure(self, stop: asyncio.Event) -> None:
        """Take a reading every so often until `stop`, and publish it once there is a connection."""
        await asyncio.sleep(self._seconds * self._random.random())
        while not stop.is_set():
            self._publish()
            await asyncio.sleep(self._seconds * (0.8 + 0.4 * self._random.random()))

    async def talk(self) -> None:
        """Be connected, send what is owed and take acknowledgements, until cancelled."""
        while True:
            try:
                await self._converse()
            except OSError:
                await asyncio.sleep(_RETRY_SECONDS * (0.5 + self._random.random()))

    async def _converse(self) -> None:
        client = await Client.connect(HOST, self._port, self.name)
        if not client.session_present:
            self._sent.clear()
        self._client = client
        try:
            self._send(client, [packet for _, packet in self._owed.values()])
            while True:
                for packet in await client.receive():
                    if isinstance(packet, Puback):
                        self._settle(packet)
        except asyncio.CancelledError:
            client.close()
            raise
        except OSError:
            client.abort()
            raise
        finally:
            self._client = None

    def _publish(self) -> None:
        self.published += 1
        packet = Publish(f"plant/{self.name}/telemetry", self._reading(), 1, packet_id=self._next_id())
        self._owed[packet.packet_id] = self.published, packet
        if self._client is not None:
            self._send(self._client, [packet])

    def _send(self, client: Client, packets: list[Publish]) -> None:
        again = [packet.packet_id in self._sent for packet in packets]
        self.repeated += sum(again)
        client.send(*(replace(packet, dup=dup) for packet, dup in zip(packets, again, strict=True)))
        self._sent.update(packet.packet_id for packet in packets)

    def _settle(self, puback: Puback) -> None:
        owed = self._owed.pop(puback.packet_id, None)
        if owed is None:
            return
        self._sent.discard(puback.packet_id)
        if puback.reason < 0x80:
            self.acknowledged.add(owed[0])
        else:
            self.refused += 1

    def _reading(self) -> bytes:
        temperature = 60 + 20 * math.sin(self.published / 50) + self._random.gauss(0, 1)
        reading = {"device": self.name, "n": self.published, "time": time(), "temperature": round(temperature, 2)}
        return orjson.dumps(reading)

    def _next_id(self) -> int:
        while True:
            self._last_id = self._last_id % _LARGEST_ID + 1
            if self._last_id not in self._owed:
                return self._last_id


class Fleet:
    """All devices together."""

    def __init__(self, count: int, port: int, seconds: float) -> None:
        self.devices = [Device(number, port, seconds) for number in range(count)]

    @property
    def published(self) -> int:
        """Readings taken."""
        return sum(device.published for device in self.devices)

    @property
    def acknowledged(self) -> int:
        """Readings acknowledged, each once."""
        return sum(len(device.acknowledged) for device in self.devices)

    @property
    def owed(self) -> int:
        """Readings not acknowledged yet."""
        return sum(device.owed for device in self.devices)

    @property
    def connected(self) -> int:
        """Devices that are connected."""
        return sum(device.connected for device in self.devices)

    @property
    def repeated(self) -> int:
        """How often a reading was sent again."""
        return sum(device.repeated for device in self.devices)

    @property
    def refused(self) -> int:
        """Readings that the broker refused."""
        return sum(device.refused for device in self.devices)

    def readings(self) -> set[tuple[str, int]]:
        """Device and number of each acknowledged reading."""
        return {(device.name, number) for device in self.devices for number in device.acknowledged}

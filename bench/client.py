"""A small MQTT 5 client: a TCP connection that is in a session, packets out and packets in.

It has no opinion about when to connect again or what to send again. Those who use it know what they still owe.
"""

from __future__ import annotations

import asyncio
from typing import Final

from broker.mqtt.codec import Decoder, encode
from broker.mqtt.packets import Connack, Connect, Disconnect, Packet, Puback, Publish, Suback, Subscribe, Subscription
from broker.mqtt.properties import Property

VERSION: Final = 5
DAY: Final = 86400
_READ_BYTES: Final = 64 << 10
_PATIENCE: Final = 10
"""s to wait for a connection and for its CONNACK."""


class Client:
    """A connection that the broker has accepted."""

    __slots__ = ("_decoder", "_early", "_reader", "_writer", "session_present")

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.session_present = False
        self._reader = reader
        self._writer = writer
        self._decoder = Decoder(VERSION)
        self._early: list[Packet] = []
        """What came in one read with the CONNACK."""

    @classmethod
    async def connect(cls, host: str, port: int, client_id: str) -> Client:
        """Connect, and take up the session of this client identifier, which outlives the connection by a day.

        Raises:
            OSError: nobody listens, nobody answers, or the broker refuses.
        """
        async with asyncio.timeout(_PATIENCE):
            reader, writer = await asyncio.open_connection(host, port)
        client = cls(reader, writer)
        try:
            properties = ((Property.SESSION_EXPIRY_INTERVAL, DAY),)
            client.send(Connect(client_id, VERSION, False, 0, None, None, None, properties))
            async with asyncio.timeout(_PATIENCE):
                packets = await client.receive()
            connack = packets[0]
            if not isinstance(connack, Connack) or connack.reason:
                raise ConnectionError(f"{client_id} is not accepted: {connack}")
        except BaseException:
            client.abort()
            raise
        client.session_present = connack.session_present
        client._early = packets[1:]
        return client

    def send(self, *packets: Packet) -> None:
        """Send packets, or lose them where the connection has ended: `receive` tells."""
        self._writer.write(b"".join(encode(packet, VERSION) for packet in packets))

    async def receive(self) -> list[Packet]:
        """The next packets, at least one.

        Raises:
            OSError: the connection has ended.
        """
        packets, self._early = self._early, []
        while not packets:
            data = await self._reader.read(_READ_BYTES)
            packets = self._decoder.feed(data)
            if not data or self._decoder.error is not None:
                raise ConnectionError(f"the connection ended: {self._decoder.error or 'end of stream'}")
        return packets

    async def subscribe(self, filter: str) -> None:
        """Subscribe at QoS 1; what comes before the SUBACK is kept for `receive`.

        Raises:
            OSError: the connection has ended, or the broker refuses.
        """
        self.send(Subscribe(1, (Subscription(filter, 1),)))
        packets: list[Packet] = []
        while not any(isinstance(packet, Suback) for packet in packets):
            packets += await self.receive()
        for packet in packets:
            if isinstance(packet, Suback) and packet.reasons != (1,):
                raise ConnectionError(f"no subscription to {filter}: {packet}")
        self._early = [packet for packet in packets if not isinstance(packet, Suback)]

    def acknowledge(self, packets: list[Packet]) -> list[Publish]:
        """The messages among packets; those of QoS 1 are acknowledged."""
        messages = [packet for packet in packets if isinstance(packet, Publish)]
        self.send(*(Puback(message.packet_id) for message in messages if message.qos))
        return messages

    def close(self) -> None:
        """Say goodbye; the session stays."""
        self.send(Disconnect())
        self._writer.close()

    def abort(self) -> None:
        """End the connection without a word."""
        self._writer.transport.abort()

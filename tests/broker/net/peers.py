"""Clients over every transport, on asyncio's streams: TCP and unix sockets, TLS, and WebSocket frames made by hand."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.typing import Origin, Subprotocol
from websockets.uri import parse_uri

from broker.mqtt.codec import Decoder, encode
from broker.mqtt.packets import Connack, Connect, Packet, Suback, Subscribe, Subscription, Will

P = TypeVar("P")


class Peer:
    """One client on a stream, speaking MQTT 5."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._decoder = Decoder(5)
        self._packets: list[Packet] = []

    @classmethod
    async def open(cls, port: int, context: ssl.SSLContext | None = None) -> Self:
        """Connect to a port."""
        name = None if context is None else "localhost"
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name))

    @classmethod
    async def open_unix(cls, path: Path) -> Self:
        """Connect to a socket in the file system."""
        return cls(*await asyncio.open_unix_connection(str(path)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()

    async def connect(self, client_id: str = "c", *, will: Will | None = None) -> Self:
        """Say who it is, and be accepted."""
        await self.send(Connect(client_id, 5, True, 0, will, None, None))
        assert (await self.receive(Connack)).reason == 0
        return self

    async def subscribe(self, filter: str, qos: int = 1) -> None:
        await self.send(Subscribe(1, (Subscription(filter, qos),)))
        assert (await self.receive(Suback)).reasons == (qos,)

    async def send(self, *packets: Packet) -> None:
        await self.send_bytes(b"".join(encode(packet, 5) for packet in packets))

    async def send_bytes(self, data: bytes) -> None:
        """MQTT's bytes."""
        await self.send_raw(data)

    async def send_raw(self, data: bytes) -> None:
        """The stream's bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def read(self) -> bytes:
        """MQTT's next bytes; none at the end."""
        return await self.reader.read(1 << 16)

    async def receive(self, kind: type[P]) -> P:
        """The next packet, which must be of this type."""
        while not self._packets:
            data = await self.read()
            assert data, "the connection was closed"
            self._packets += self._decoder.feed(data)
            assert self._decoder.error is None
        packet: object = self._packets.pop(0)
        assert isinstance(packet, kind), packet
        return packet

    async def ended(self) -> None:
        """Wait for the end of the connection, and check that nothing else comes before it."""
        assert not self._packets
        with suppress(ConnectionResetError):
            assert await self.read() == b""


class WebSocketPeer(Peer):
    """One client that speaks MQTT in WebSocket frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self.frames: list[Frame] = []
        """What has come and was not MQTT's."""
        self._mqtt: list[bytes] = []

    async def shake_hands(
        self, path: str = "/mqtt", subprotocols: Sequence[str] = ("mqtt",), origin: str | None = None
    ) -> Response:
        """Ask for WebSocket; the answer."""
        self.protocol = ClientProtocol(
            parse_uri(f"ws://localhost{path}"),
            origin=None if origin is None else Origin(origin),
            subprotocols=[Subprotocol(each) for each in subprotocols] or None,
            max_size=None,
        )
        self.protocol.send_request(self.protocol.connect())
        await self._flush()
        while not (events := self.protocol.events_received()):
            data = await self.reader.read(1 << 16)
            self.protocol.receive_data(data) if data else self.protocol.receive_eof()
        response, *rest = events
        assert isinstance(response, Response)
        assert not rest
        return response

    async def connect(self, client_id: str = "c", *, will: Will | None = None) -> Self:
        if not hasattr(self, "protocol"):
            assert (await self.shake_hands()).status_code == 101
        return await super().connect(client_id, will=will)

    async def send_bytes(self, data: bytes) -> None:
        await self.send_frames(Frame(Opcode.BINARY, data))

    async def send_frames(self, *frames: Frame) -> None:
        """Whatever frames, in one write."""
        await self.send_raw(b"".join(frame.serialize(mask=True) for frame in frames))

    async def read(self) -> bytes:
        while not self._mqtt:
            data = await self.reader.read(1 << 16)
            if not data:
                return b""
            self.protocol.receive_data(data)
            for frame in self.protocol.events_received():
                assert isinstance(frame, Frame)
                if frame.opcode is Opcode.BINARY:
                    self._mqtt.append(bytes(frame.data))
                else:
                    self.frames.append(frame)
            await self._flush()
        return self._mqtt.pop(0)

    async def closed_with(self) -> int:
        """Wait for the end; the code of the closing frame that came before it."""
        await self.ended()
        assert self.protocol.close_rcvd is not None
        return self.protocol.close_rcvd.code

    async def _flush(self) -> None:
        for data in self.protocol.data_to_send():
            if data:
                await self.send_raw(data)

"""A listening node, and clients that hold a raw socket so that they can read as little as they like."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import wraps
from inspect import Parameter, signature
from typing import TypeVar

import pytest
import uvloop

from broker.hub import Hub
from broker.listener import Limits, Listener
from broker.mqtt.codec import Decoder, encode
from broker.mqtt.packets import Connack, Connect, Packet, Will
from broker.net.listener import Endpoint, TCPAddress
from broker.net.server import Server
from storage.log import Log
from storage.memory import MemoryEngine
from storage.worker import ThreadWorker

P = TypeVar("P")


def on_both_loops(test: Callable[..., Coroutine[object, object, None]]) -> Callable[..., None]:
    """Run a test on the loop that a node runs on, and on the one that is everywhere."""

    @wraps(test)
    def run(new_loop: Callable[[], asyncio.AbstractEventLoop], **fixtures: object) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(test(**fixtures))

    own = signature(test)
    loop = Parameter("new_loop", Parameter.KEYWORD_ONLY)
    run.__signature__ = own.replace(parameters=[*own.parameters.values(), loop])  # type: ignore[attr-defined] # read by pytest
    loops = [asyncio.new_event_loop, uvloop.new_event_loop]
    marked: Callable[..., None] = pytest.mark.parametrize("new_loop", loops, ids=["asyncio", "uvloop"])(run)
    return marked


class Client:
    """One client's socket, speaking MQTT 5."""

    def __init__(self, raw: socket.socket) -> None:
        self.raw = raw
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder(5)
        self._packets: list[Packet] = []

    async def send(self, *packets: Packet) -> None:
        await self.send_bytes(b"".join(encode(packet, 5) for packet in packets))

    async def send_bytes(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.raw, data)

    async def receive(self, kind: type[P]) -> P:
        """The next packet, which must be of this type."""
        while not self._packets:
            data = await self._loop.sock_recv(self.raw, 1 << 16)
            assert data, "the connection was closed"
            self._packets += self._decoder.feed(data)
            assert self._decoder.error is None
        packet: object = self._packets.pop(0)
        assert isinstance(packet, kind), packet
        return packet

    async def receive_bytes(self, count: int) -> bytes:
        """The next bytes, as they come."""
        data = bytearray()
        while len(data) < count:
            data += await self._loop.sock_recv(self.raw, 1 << 16)
        return bytes(data)

    async def ended(self) -> None:
        """Wait for the end of the connection, and check that nothing else comes before it."""
        assert not self._packets
        with suppress(ConnectionResetError):
            assert await self._loop.sock_recv(self.raw, 1) == b""
        self.raw.close()

    def reset(self) -> None:
        """End the connection with RST, as a peer does whose process was killed with data unread."""
        self.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.raw.close()


def plain(listener: Listener) -> Endpoint:
    """A listener on a port that the system chooses, with nothing between TCP and MQTT."""
    return Endpoint(listener, TCPAddress("127.0.0.1", 0))


class Running:
    """A node, with a listener on a port that the system chose where nothing else is said."""

    def __init__(self, limits: Limits, *makers: Callable[[Listener], Endpoint]) -> None:
        loop = asyncio.get_running_loop()
        self._writer, self._reader = (ThreadWorker(name, loop.call_soon_threadsafe) for name in ("writer", "reader"))
        self.log = Log(MemoryEngine(), self._writer, self._reader)
        self.hub = Hub(self.log, limits, loop.call_soon)
        self.server = Server(self.hub, [make(self.hub.clients.listener) for make in makers])
        self._clients: list[Client] = []

    def listening(self, port: int) -> Server:
        """Another server in front of the same hub, yet to be started."""
        return Server(self.hub, [Endpoint(self.hub.clients.listener, TCPAddress("127.0.0.1", port))])

    async def open(self) -> Client:
        """A connection on which nothing was said yet; its receive buffer is as small as the system makes it."""
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", self.server.port))
        self._clients.append(Client(raw))
        return self._clients[-1]

    async def client(self, client_id: str = "c", *, will: Will | None = None) -> Client:
        """A client whose CONNECT was accepted."""
        client = await self.open()
        await client.send(Connect(client_id, 5, True, 0, will, None, None))
        assert (await client.receive(Connack)).reason == 0
        return client

    async def stop(self) -> None:
        for client in self._clients:
            client.raw.close()
        await self.server.stop()
        drained = asyncio.Event()
        self.log.drain(drained.set)
        await drained.wait()
        self._writer.close()
        self._reader.close()


@asynccontextmanager
async def running(limits: Limits | None = None, *makers: Callable[[Listener], Endpoint]) -> AsyncIterator[Running]:
    """A node for as long as the block lasts, and no longer than 20 s; a listener of each maker, or a plain one."""
    async with asyncio.timeout(20):
        node = Running(limits or Limits(), *(makers or (plain,)))
        await node.server.start()
        try:
            yield node
        finally:
            await node.stop()


async def until(condition: Callable[[], bool]) -> None:
    """Turn the loop until the condition holds."""
    while not condition():  # noqa: ASYNC110 - what is waited for has no event to tell of it
        await asyncio.sleep(0)

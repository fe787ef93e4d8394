"""A broker that speaks by a script, and what is needed to run the real ones."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import pytest

from bench.brokers import MOSQUITTO, Kind
from bench.load import compiler
from broker.mqtt.codec import Decoder, encode
from broker.mqtt.packets import Connack, Connect, Packet

needs_gcc = pytest.mark.skipif(compiler() is None, reason="there is no C compiler for the load generator")
needs_mosquitto = pytest.mark.skipif(bool(MOSQUITTO.missing()), reason=MOSQUITTO.missing() or "it is there")

HOST: Final = "127.0.0.1"
PATIENCE: Final = 10


class Peer:
    """The broker's side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = Decoder()
        self._packets: list[Packet] = []

    async def expect(self) -> Packet:
        """The next packet.

        Raises:
            EOFError: the client has closed the connection.
        """
        while not self._packets:
            data = await self._reader.read(65536)
            if not data:
                raise EOFError
            self._packets += self._decoder.feed(data)
            assert self._decoder.error is None
        return self._packets.pop(0)

    async def welcome(self, session_present: bool) -> Connect:
        """Take a CONNECT and accept it."""
        connect = await self.expect()
        assert isinstance(connect, Connect)
        self.send(Connack(session_present, 0))
        return connect

    def send(self, packet: Packet) -> None:
        """Send a packet."""
        self._writer.write(encode(packet, 5))

    def abort(self) -> None:
        """End the connection without a word."""
        self._writer.transport.abort()


class Script:
    """A listener whose connections are handled one after another by the functions given."""

    def __init__(self, *scenes: Callable[[Peer], Awaitable[None]]) -> None:
        self.done = asyncio.Event()
        self.port = 0
        self._scenes = list(scenes)
        self._error: BaseException | None = None

    async def __aenter__(self) -> Script:
        self._server = await asyncio.start_server(self._accept, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def finish(self) -> None:
        """Wait until every scene has been played; raise what went wrong in one."""
        async with asyncio.timeout(PATIENCE):
            await self.done.wait()
        if self._error is not None:
            raise self._error

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        try:
            if self._scenes:
                await self._scenes.pop(0)(peer)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self._error = error
        finally:
            peer.abort()
            if not self._scenes or self._error is not None:
                self.done.set()


def program(name: str, text: str) -> Kind:
    """A kind of broker that is a Python program; it gets its port as an argument."""

    def prepare(directory: Path, port: int) -> list[str]:
        file = directory / "program.py"
        file.write_text(text)
        return [sys.executable, str(file), str(port)]

    return Kind(name, "a program of the test", prepare, lambda: "")

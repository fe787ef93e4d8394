"""The way from the edge to the cloud: a TCP relay that can fall silent, as a radio link does, or be gone.

Silence is the hard case: connections stay open and nothing says that what is sent goes nowhere; only a keep alive finds
that out. It comes over the way back first. What still arrives is then not known to have arrived, and comes twice.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Final

from bench.brokers import HOST

_READ_BYTES: Final = 64 << 10
_ONE_WAY_SECONDS: Final = 0.3
"""How long silence is on the way back alone."""


class State(Enum):
    """What the link does."""

    UP = "up"
    SILENT = "silent"
    """Open connections stay open, new ones are accepted, nothing is forwarded."""
    DOWN = "down"
    """Open connections are closed, new ones are refused."""


class Link:
    """Relays connections to `port` of this machine. What it holds when it goes down is lost."""

    def __init__(self, port: int) -> None:
        self.state = State.DOWN
        self.port = 0
        """Where it listens; stays the same once it was up."""
        self._target = port
        self._forth = asyncio.Event()
        self._back = asyncio.Event()
        self._relays: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def up(self) -> None:
        """Listen, and forward."""
        self._server = await asyncio.start_server(self._accept, HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        self._forth.set()
        self._back.set()
        self.state = State.UP

    async def silence(self) -> None:
        """Forward nothing more, first of what comes back, and say nothing of it."""
        self._back.clear()
        self.state = State.SILENT
        await asyncio.sleep(_ONE_WAY_SECONDS)
        self._forth.clear()

    async def down(self) -> None:
        """Close everything, and refuse."""
        self.state = State.DOWN
        if self._server is not None:
            self._server.close()
        for relay in self._relays:
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relay = asyncio.current_task()
        assert relay is not None
        self._relays.add(relay)
        writers = [writer]
        try:
            await self._forth.wait()
            back, forth = await asyncio.open_connection(HOST, self._target)
            writers.append(forth)
            async with asyncio.TaskGroup() as directions:
                directions.create_task(self._relay(reader, forth, self._forth))
                directions.create_task(self._relay(back, writer, self._back))
        except* (OSError, asyncio.CancelledError):
            pass  # one side has ended the connection, or the link is down
        finally:
            self._relays.discard(relay)
            for each in writers:
                each.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flowing: asyncio.Event) -> None:
        while data := await reader.read(_READ_BYTES):
            await flowing.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError  # so that the other direction ends too

"""Listens, and gives the hub its time."""

from __future__ import annotations

import asyncio
from time import time_ns

from broker.hub import Hub
from broker.net.connection import SocketConnection

TICK = 0.2
"""Seconds between two looks at the clock."""


class Server:
    """One TCP listener in front of a hub."""

    def __init__(self, hub: Hub, host: str, port: int) -> None:
        self.hub = hub
        self.host = host
        self.port = port
        self._server: asyncio.Server | None = None
        self._ticker: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Listen. A port of 0 becomes the one that the system chose.

        Raises:
            OSError: the address can't be listened on.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: SocketConnection(self.hub, loop), self.host, self.port, backlog=4096
        )
        self.port = self._server.sockets[0].getsockname()[1]
        self._tick(loop)

    async def stop(self) -> None:
        """Stop listening, and end every connection."""
        if self._server is not None:
            self._server.close()
        self.hub.tick(time_ns() // 1000)
        self.hub.close_connections()
        if self._ticker is not None:
            self._ticker.cancel()

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self.hub.tick(time_ns() // 1000)
        self._ticker = loop.call_later(TICK, self._tick, loop)

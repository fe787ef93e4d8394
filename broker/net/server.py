"""Listens wherever clients are to connect, gives the hub its time, and loads certificates anew."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from time import time_ns
from typing import Final

from broker.hub import Hub
from broker.net.connection import SocketConnection
from broker.net.errors import ListenError
from broker.net.listener import Acceptor, Endpoint

TICK: Final = 0.2
"""Seconds between two looks at the clock."""
LINGER_AT_STOP: Final = 1.0
"""Seconds that all connections together may take, at the end, to send what was written to them."""
WATCH: Final = 2.0
"""Seconds between two looks at the files of certificates."""

_logger = logging.getLogger("berm.broker")


class Server:
    """The listeners in front of a hub."""

    def __init__(self, hub: Hub, endpoints: Sequence[Endpoint]) -> None:
        self.hub = hub
        self._sockets: set[SocketConnection] = set()
        self.acceptors = [Acceptor(hub, endpoint, self._sockets) for endpoint in endpoints]
        self._ticker: asyncio.TimerHandle | None = None
        self._watcher: asyncio.TimerHandle | None = None
        self._stale: list[Endpoint] = []
        """Whose certificates are to be loaded anew."""
        self._reloading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen everywhere, or nowhere.

        Raises:
            ListenError: an address can't be listened on.
        """
        for acceptor in self.acceptors:
            try:
                await acceptor.start()
            except (OSError, UnicodeError) as error:  # a name that is no host name at all is a UnicodeError
                for started in self.acceptors:
                    started.stop()
                endpoint = acceptor.endpoint
                raise ListenError(endpoint.listener.name, str(endpoint.address), error) from error
        loop = asyncio.get_running_loop()
        self._tick(loop)
        if any(acceptor.endpoint.tls is not None for acceptor in self.acceptors):
            self._watch(loop)

    async def stop(self) -> None:
        """Stop listening, and end every connection: the clients are told, and have LINGER_AT_STOP to hear it."""
        for acceptor in self.acceptors:
            acceptor.stop()
        for timer in (self._ticker, self._watcher):
            if timer is not None:
                timer.cancel()
        if self._reloading is not None:
            await self._reloading
        self.hub.tick(time_ns() // 1000)
        self.hub.clients.close_all()
        ends = [socket.ended for socket in self._sockets]
        if ends:
            await asyncio.wait(ends, timeout=LINGER_AT_STOP)
        for socket in list(self._sockets):
            socket.abort()
        await asyncio.gather(*ends)

    @property
    def port(self) -> int:
        """Where the first listener listens."""
        return self.acceptors[0].port

    def reload(self) -> None:
        """Load every certificate anew, for the connections to come. One that can't be used is told, the old goes on."""
        self._reload([acceptor.endpoint for acceptor in self.acceptors])

    def _reload(self, endpoints: Sequence[Endpoint]) -> None:
        self._stale += [endpoint for endpoint in endpoints if endpoint.tls is not None]
        if self._stale and self._reloading is None:
            self._reloading = asyncio.get_running_loop().create_task(self._load())

    async def _load(self) -> None:
        from broker.net.tls import TLSError, load  # a node without TLS does without it

        while self._stale:
            endpoint = self._stale.pop(0)
            assert endpoint.tls is not None
            files = endpoint.tls.files
            try:
                endpoint.tls.context = await asyncio.get_running_loop().run_in_executor(None, load, files)
            except TLSError as error:
                _logger.error("listener %s: %s; it goes on with the old certificate", endpoint.listener.name, error)
            else:
                _logger.info("listener %s: loaded %s anew", endpoint.listener.name, files.certificate)
        self._reloading = None

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self.hub.tick(time_ns() // 1000)
        self._ticker = loop.call_later(TICK, self._tick, loop)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._watcher = loop.call_later(WATCH, self._watch, loop)
        endpoints = [acceptor.endpoint for acceptor in self.acceptors]
        self._reload([each for each in endpoints if each.tls is not None and each.tls.changed()])

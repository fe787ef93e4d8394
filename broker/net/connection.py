"""A connection's socket: hands what it reads to the protocol, and writes what the hub has gathered."""

from __future__ import annotations

import asyncio
import logging
from time import time_ns
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.hub import Hub

_logger = logging.getLogger("berm.net")

LINGER = 5.0
"""Seconds that a closed connection may take to send what was written to it."""


class SocketConnection(asyncio.Protocol):
    """One accepted socket."""

    def __init__(self, hub: Hub, loop: asyncio.AbstractEventLoop) -> None:
        self.peer = "?"
        self._hub = hub
        self._loop = loop
        self._linger: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport
        self._connection: Connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has its methods, and another base
        self._transport.set_write_buffer_limits(high=self._hub.limits.write_buffer)
        name = transport.get_extra_info("peername")
        self.peer = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "a local socket"
        self._connection = self._hub.accept(self, time_ns() // 1000)

    def data_received(self, data: bytes) -> None:
        try:
            self._connection.receive(data, time_ns() // 1000)
        except Exception:
            self._hub.crashed += 1
            _logger.exception("%s: an error of ours; connection closed", self._connection.name)
            self._transport.abort()

    def pause_writing(self) -> None:
        self._connection.on_blocked(True)

    def resume_writing(self) -> None:
        self._connection.on_blocked(False)

    def connection_lost(self, error: Exception | None) -> None:
        if self._linger is not None:
            self._linger.cancel()
        self._connection.lost(time_ns() // 1000)

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def close(self) -> None:
        if not self._transport.is_closing():
            self._transport.close()
            self._linger = self._loop.call_later(LINGER, self._transport.abort)

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

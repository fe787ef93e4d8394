"""Keeps one outbound connection: dials, hands bytes to and fro, dials again when the uplink says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from random import random
from time import time_ns
from typing import Protocol, cast

_logger = logging.getLogger("berm.bridge")

TICK = 0.2
"""Seconds between two looks at the clock."""
CONNECT_TIMEOUT = 10.0


class Uplink(Protocol):
    """The client side of MQTT, without a socket. Times are µs since the epoch."""

    wake: Callable[[], None]
    """Called by the uplink when it has something to send that no input of the shell's brought about."""

    @property
    def name(self) -> str:
        """What to call it in the log."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the peer."""

    @property
    def want_close(self) -> str:
        """Why the connection should end; empty while it should not."""

    def opened(self, now: int) -> None:
        """The transport is up."""

    def receive(self, data: bytes, now: int) -> None:
        """What the peer sent."""

    def take(self) -> bytes:
        """What to write now."""

    def closed(self, now: int) -> None:
        """The transport is gone."""

    def tick(self, now: int) -> None:
        """Time passes."""

    def paused(self, full: bool) -> None:
        """The transport takes no more, or does again."""

    def retry_at(self, now: int, random: float) -> int:
        """When to dial again."""


class Dialer(asyncio.Protocol):
    """One uplink's socket."""

    def __init__(self, uplink: Uplink) -> None:
        self._uplink = uplink
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._dialing: asyncio.Task[None] | None = None
        self._redial_at = 0
        self._ticker: asyncio.TimerHandle | None = None
        self._stopped = False
        self._outage = ""
        uplink.wake = self._pump

    def start(self) -> None:
        """Dial now, and again whenever the connection is gone."""
        self._tick()

    def stop(self) -> None:
        """Close the connection and dial no more."""
        self._stopped = True
        if self._ticker is not None:
            self._ticker.cancel()
        if self._dialing is not None:
            self._dialing.cancel()
        if self._transport is not None:
            self._transport.close()
            self._uplink.closed(time_ns() // 1000)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has its methods, and another base
        self._uplink.opened(time_ns() // 1000)
        self._pump()

    def data_received(self, data: bytes) -> None:
        try:
            self._uplink.receive(data, time_ns() // 1000)
        except Exception:
            _logger.exception("%s: an error of ours; connection closed", self._uplink.name)
            if self._transport is not None:
                self._transport.abort()
            return
        self._pump()

    def pause_writing(self) -> None:
        self._uplink.paused(True)

    def resume_writing(self) -> None:
        self._uplink.paused(False)
        self._pump()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if not self._stopped:
            self._lost(str(error or "the peer closed the connection"))

    def _pump(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        data = self._uplink.take()
        if data:
            transport.write(data)
            self._outage = ""
        if self._uplink.want_close:
            transport.close()

    def _lost(self, reason: str) -> None:
        now = time_ns() // 1000
        reason = self._uplink.want_close or reason
        self._uplink.closed(now)
        self._redial_at = self._uplink.retry_at(now, random())
        if reason != self._outage:
            self._outage = reason
            host, port = self._uplink.address
            _logger.warning(
                "%s: no connection to %s:%d: %s; events wait in the log, trying again",
                self._uplink.name,
                host,
                port,
                reason,
            )

    def _tick(self) -> None:
        now = time_ns() // 1000
        self._uplink.tick(now)
        self._pump()
        if self._transport is None and self._dialing is None and now >= self._redial_at:
            self._dialing = self._loop.create_task(self._dial())
        self._ticker = self._loop.call_later(TICK, self._tick)

    async def _dial(self) -> None:
        host, port = self._uplink.address
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._loop.create_connection(lambda: self, host, port)
        except OSError as error:
            self._lost(error.strerror or str(error) or f"no answer within {CONNECT_TIMEOUT:.0f} s")
        finally:
            self._dialing = None

"""Keeps one outbound connection: dials, hands bytes to and fro, and dials again when the uplink says so.

The rules:

1. The uplink decides what to write, when to close and when to dial; the dialer does it, and knows no MQTT.
2. A connection that should end is let go of at once: the uplink hears that it is closed, and the socket has LINGER
   seconds to send what was written to it. A peer that has fallen silent holds nothing up.
3. One turn of the loop writes TAKES answers of `take` at most, so that a long backlog leaves the loop to others.
4. An outage is one line in the log when it begins, one for each other reason that it then turns out to have, and one
   when it is over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from random import random
from time import time_ns
from typing import Final, Protocol, cast

from broker.net.errors import words

_logger = logging.getLogger("berm.bridge")

TICK: Final = 0.2
"""Seconds between two looks at the clock."""
CONNECT_TIMEOUT: Final = 10.0
"""Seconds that looking up the peer's name and connecting to it may take together."""
LINGER: Final = 5.0
"""Seconds that a connection which was let go of may take to send what was written to it."""
TAKES: Final = 4
REASONS: Final = 5
"""Reasons of one outage that are told of at most."""


class Uplink(Protocol):
    """The client side of a protocol, without a socket. Times are µs since the epoch."""

    @property
    def up(self) -> bool:
        """Whether the peer has accepted the connection."""

    @property
    def want_close(self) -> str:
        """Why the connection should end once `take` is empty; empty while it should not."""

    @property
    def last_error(self) -> str:
        """Why the last connection ended, or could not be opened."""

    def opened(self, now: int) -> None:
        """The transport is up."""

    def receive(self, data: bytes, now: int) -> None:
        """What the peer sent."""

    def take(self) -> bytes:
        """What to write now; empty when there is nothing more until something happens."""

    def paused(self, paused: bool) -> None:
        """The transport takes no more, or does again."""

    def closed(self, now: int, error: str = "") -> None:
        """The transport is gone, or could not be opened."""

    def tick(self, now: int) -> None:
        """Time passes."""

    def stop(self, now: int) -> None:
        """There will be no further connection: say goodbye."""

    def retry_at(self, now: int, random: float) -> int:
        """When to dial again; `random` is in [0, 1)."""


class _Link(asyncio.Protocol):
    """One socket. Once its dialer has let go of it, it says nothing more."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer: Dialer | None = dialer
        self._linger: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has its methods, and another base
        if self._dialer is not None:
            self._dialer.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._dialer is not None:
            self._dialer.received(data)

    def pause_writing(self) -> None:
        if self._dialer is not None:
            self._dialer.paused(True)

    def resume_writing(self) -> None:
        if self._dialer is not None:
            self._dialer.paused(False)

    def connection_lost(self, error: Exception | None) -> None:
        if self._linger is not None:
            self._linger.cancel()
        if self._dialer is not None:
            self._dialer.lost("" if error is None else words(error))

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def let_go(self) -> None:
        """Send what was written, close, and tell the dialer nothing more."""
        self._dialer = None
        if not self._transport.is_closing():
            self._transport.close()
            self._linger = asyncio.get_running_loop().call_later(LINGER, self._transport.abort)


class Dialer:
    """One uplink's connections to `host` and `port`, one after another.

    `name` is what the log calls it. `make` builds the uplink, with a function that asks for another turn: the uplink
    calls it when there is something to send that nothing from here brought about.
    """

    def __init__(self, name: str, host: str, port: int, make: Callable[[Callable[[], None]], Uplink]) -> None:
        self.crashed = 0
        """Connections ended by an error of ours."""
        self._name = name
        self._host = host
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._link: _Link | None = None
        self._dialing: asyncio.Task[None] | None = None
        self._redial_at = 0
        self._ticker: asyncio.TimerHandle | None = None
        self._woken = False
        self._stopped = False
        self._up = False
        self._down_since = 0
        self._told: set[str] = set()
        self._uplink = make(self._wake)

    def start(self) -> None:
        """Dial now, and again whenever the connection is gone."""
        self._tick()

    def stop(self) -> None:
        """Say goodbye, close the connection and dial no more."""
        self._stopped = True
        if self._ticker is not None:
            self._ticker.cancel()
        if self._dialing is not None:
            self._dialing.cancel()
        self._step(self._uplink.stop)

    # -- what the link says

    def opened(self, link: _Link) -> None:
        """The socket is connected."""
        self._link = link
        self._step(self._uplink.opened)

    def received(self, data: bytes) -> None:
        """The socket brought these bytes."""
        self._step(lambda now: self._uplink.receive(data, now))

    def paused(self, paused: bool) -> None:
        """The socket takes no more for now, or does again."""
        self._uplink.paused(paused)
        if not paused:
            self._wake()

    def lost(self, error: str) -> None:
        """The socket is gone, or was never had."""
        now = time_ns() // 1000
        if self._link is not None:
            self._link.let_go()
            self._link = None
        self._uplink.closed(now, error)
        if not self._stopped:
            self._redial_at = self._uplink.retry_at(now, random())
            self._tell_outage(now)

    # -- turns

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._woken = False
        self._step(None)

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(TICK, self._tick)
        self._step(self._uplink.tick)
        if self._link is None and self._dialing is None and time_ns() // 1000 >= self._redial_at:
            self._dialing = self._loop.create_task(self._dial())

    def _step(self, tell: Callable[[int], None] | None) -> None:
        """Tell the uplink what has happened, then do what it wants."""
        try:
            if tell is not None:
                tell(time_ns() // 1000)
            self._pump()
        except Exception:
            self.crashed += 1
            _logger.exception("bridge %s: an error of ours; connection closed", self._name)
            if self._link is not None:
                self.lost("an error of ours")

    def _pump(self) -> None:
        link, uplink = self._link, self._uplink
        if link is None:
            return
        for _ in range(TAKES):
            data = uplink.take()
            if not data:
                break
            link.write(data)
        else:
            self._wake()
            return
        if uplink.want_close:
            self.lost("")
        elif uplink.up and not self._up:
            self._tell_up()

    async def _dial(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._loop.create_connection(lambda: _Link(self), self._host, self._port)
        except (OSError, UnicodeError) as error:  # a name that is no host name at all is a UnicodeError
            self.lost(words(error) or f"no answer within {CONNECT_TIMEOUT:g} s")
        finally:
            self._dialing = None

    # -- the log

    def _tell_up(self) -> None:
        self._up = True
        again = f" again, after {(time_ns() // 1000 - self._down_since) / 1e6:.1f} s" if self._down_since else ""
        _logger.info("bridge %s: connected to %s:%d%s", self._name, self._host, self._port, again)
        self._down_since = 0
        self._told.clear()

    def _tell_outage(self, now: int) -> None:
        self._up = False
        self._down_since = self._down_since or now
        reason = self._uplink.last_error
        if reason not in self._told and len(self._told) < REASONS:
            self._told.add(reason)
            _logger.warning(
                "bridge %s: no connection to %s:%d: %s; what it forwards waits in the log, and it tries again",
                self._name,
                self._host,
                self._port,
                reason,
            )

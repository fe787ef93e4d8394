"""A connection's socket: hands what it reads to the protocol, and writes what the hub has gathered.

`SocketConnection` is TCP and unix sockets as they are. `LayeredConnection` has layers between the socket and MQTT: a
PROXY protocol header first, TLS, WebSocket. Both treat a peer that does not read, and one that is told to go, alike.
"""

from __future__ import annotations

import asyncio
from time import time_ns
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.hub import Hub
    from broker.listener import Listener
    from broker.net.layers import Layer
    from broker.net.proxy import Origin, ProxyLayer
    from broker.net.tls import TLSLayer

LINGER: Final = 5.0
"""Seconds that a closed connection may take to send what was written to it."""
_WORK: Final = 250
"""Frames that one connection may have taken apart in one turn of the loop."""


class SocketConnection(asyncio.Protocol):
    """One accepted socket. From its first byte to its last it is one of `sockets`."""

    def __init__(
        self, hub: Hub, listener: Listener, loop: asyncio.AbstractEventLoop, sockets: set[SocketConnection]
    ) -> None:
        self.peer = "?"
        self.host = ""
        self.identity = ""
        self.ended: asyncio.Future[None] = loop.create_future()
        """Done when the socket is closed."""
        self._hub = hub
        self._listener = listener
        self._loop = loop
        self._sockets = sockets
        self._linger: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport
        self._connection: Connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has its methods, and another base
        self._sockets.add(self)
        self._transport.set_write_buffer_limits(high=self._listener.limits.write_buffer)
        name = transport.get_extra_info("peername")
        if isinstance(name, tuple):
            self.host = name[0]
            self.peer = address(name[0], name[1])
        else:
            self.peer = "a local socket"
        self._connection = self._hub.clients.accept(self, time_ns() // 1000, self._listener)

    def data_received(self, data: bytes) -> None:
        try:
            self._connection.receive(data, time_ns() // 1000)
        except Exception:  # noqa: BLE001 - handed to `crash`, which logs it with its stack
            self._hub.crash(self._connection)

    def pause_writing(self) -> None:
        self._connection.on_blocked(True)

    def resume_writing(self) -> None:
        self._connection.on_blocked(False)

    def connection_lost(self, error: Exception | None) -> None:
        if self._linger is not None:
            self._linger.cancel()
        self._sockets.discard(self)
        self.ended.set_result(None)
        self._connection.lost(time_ns() // 1000)
        del self._connection  # which holds this as its wire: the collector would find the two after hours, if at all

    @property
    def unfinished(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def close(self) -> None:
        if not self._transport.is_closing():
            self._transport.close()
            self._linger = self._loop.call_later(LINGER, self._transport.abort)

    def abort(self) -> None:
        self._transport.abort()

    def pause_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()


class LayeredConnection(SocketConnection):
    """A socket with layers between it and MQTT, the lowest first. `proxy` and `tls`, where there are such, are two of
    them: those that know who the peer is."""

    def __init__(
        self,
        hub: Hub,
        listener: Listener,
        loop: asyncio.AbstractEventLoop,
        sockets: set[SocketConnection],
        layers: list[Layer],
        proxy: ProxyLayer | None,
        tls: TLSLayer | None,
    ) -> None:
        super().__init__(hub, listener, loop, sockets)
        self._layers = layers
        self._proxy = proxy
        self._tls = tls
        self._kept: list[tuple[int, bytes]] = []
        """What has come and was not taken further, and up to which layer it was taken; the highest comes last."""
        self._paused = False
        self._resting = False
        """Nothing is read before what is kept was taken further."""
        self._lost = False
        """The socket is closed, and something is kept that came before."""
        self._ended = False
        self._error = ""
        """What a layer said of the peer that comes behind what is kept."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._proxy is not None and self.host and not self._proxy.trusts(self.host):
            self._fail("no PROXY protocol header is taken from there")

    def data_received(self, data: bytes) -> None:
        if self._error or self._ended or self._connection.closed:
            return
        self._kept.insert(0, (0, data))
        if len(self._kept) == 1 and not self._paused:
            self._climb()

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        if self._connection.closed:
            self._kept.clear()
        if self._kept:
            self._loop.call_soon(self._climb)
        else:
            super().connection_lost(error)

    @property
    def unfinished(self) -> int:
        return sum(layer.unfinished for layer in self._layers)

    def write(self, data: bytes) -> None:
        self._sink(data, len(self._layers))

    def close(self) -> None:
        if not self._transport.is_closing():
            for depth in range(len(self._layers) - 1, -1, -1):
                self._sink(self._layers[depth].close(), depth)
        super().close()

    def pause_reading(self) -> None:
        self._paused = True
        super().pause_reading()

    def resume_reading(self) -> None:
        self._paused = False
        if self._kept:
            self._resting = True
            self._loop.call_soon(self._climb)
        else:
            super().resume_reading()

    def _climb(self) -> None:
        """Take what the socket read up to MQTT, until the turn of others has come."""
        if self.ended.done():
            return
        try:
            work = 0
            while self._kept and (self._lost or not self._paused) and not self._connection.closed:
                if work > _WORK and self._kept[-1][0] < len(self._layers):
                    self._resting = True
                    super().pause_reading()
                    self._loop.call_soon(self._climb)
                    return
                work += self._step(*self._kept.pop())
        except Exception:  # noqa: BLE001 - handed to `crash`, which logs it with its stack
            self._hub.crash(self._connection)
        if self._connection.closed:
            self._kept.clear()
        if not self._kept:
            self._arrive()

    def _arrive(self) -> None:
        """Everything that has come was taken to MQTT."""
        if self._error and not self._connection.closed:
            self._fail(self._error)
        elif self._ended:
            self._connection.lost(time_ns() // 1000)
        if self._lost:
            super().connection_lost(None)
        elif self._resting and not self._paused:
            super().resume_reading()
        self._resting = False

    def _step(self, depth: int, data: bytes) -> int:
        """Take some of the data through one layer, or give it to MQTT; how much work that was."""
        if depth == len(self._layers):
            if self._tls is not None and self._tls.identity:
                self.identity = self._tls.identity
            self._connection.receive(data, time_ns() // 1000)
            return 0
        layer = self._layers[depth]
        if rest := data[layer.STRETCH :]:
            self._kept.append((depth, rest))
        carried = layer.receive(data[: layer.STRETCH])
        if said := layer.take():
            self._sink(said, depth)
            if self._connection.blocked:
                self._hub.written_unread(self._connection, len(said))
        if layer.error or layer.ended:
            self._kept.clear()  # what came before it has gone further up
            self._error, self._ended = layer.error, layer.ended
        if layer is self._proxy:
            if self._proxy.origin is None:
                return 1
            self._move(self._proxy, self._proxy.origin)
            depth -= 1
        if carried:
            self._kept.append((depth + 1, carried))
        return layer.work

    def _sink(self, data: bytes, depth: int) -> None:
        """Take what was said above the layers below `depth` down to the socket."""
        for layer in reversed(self._layers[:depth]):
            if not data:
                return
            data = layer.send(data)
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def _move(self, proxy: ProxyLayer, origin: Origin) -> None:
        """From now on the peer is who the proxy says it is."""
        self._layers.remove(proxy)
        self._proxy = None
        if origin.host:
            through = self.peer
            self.host = origin.host if origin.port else ""
            self.peer = f"{address(origin.host, origin.port) if origin.port else origin.host} through {through}"
        self.identity = origin.common_name

    def _fail(self, error: str) -> None:
        self._hub.complain(f"{self._connection.name}: {error}; connection closed")
        self._connection.lost(time_ns() // 1000)


def address(host: str, port: int) -> str:
    """As it stands in a URL: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

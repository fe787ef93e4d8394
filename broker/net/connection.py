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

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._proxy is not None and self.host and not self._proxy.trusts(self.host):
            self._fail("no PROXY protocol header is taken from there")

    def data_received(self, data: bytes) -> None:
        if self._connection.closed:
            return
        try:
            self._climb(data)
        except Exception:  # noqa: BLE001 - handed to `crash`, which logs it with its stack
            self._hub.crash(self._connection)

    def write(self, data: bytes) -> None:
        self._sink(data, len(self._layers))

    def close(self) -> None:
        if not self._transport.is_closing():
            for depth in range(len(self._layers) - 1, -1, -1):
                self._sink(self._layers[depth].close(), depth)
        super().close()

    def _climb(self, data: bytes) -> None:
        """Take what the socket read up to MQTT, and end the connection where a layer says so."""
        ended, error = False, ""
        for depth, layer in enumerate(self._layers):
            data = layer.receive(data)
            if said := layer.take():
                self._sink(said, depth)
                if self._connection.blocked:
                    self._hub.written_unread(self._connection, len(said))
            ended = ended or layer.ended
            error = error or layer.error
            if not data:
                break
        if self._proxy is not None and self._proxy.origin is not None:
            self._move(self._proxy, self._proxy.origin)
        if data:
            if self._tls is not None and self._tls.identity:
                self.identity = self._tls.identity
            self._connection.receive(data, time_ns() // 1000)
        if error and not self._connection.closed:
            self._fail(error)
        elif ended:
            self._connection.lost(time_ns() // 1000)

    def _sink(self, data: bytes, depth: int) -> None:
        """Take what was said above the layers below `depth` down to the socket."""
        for layer in reversed(self._layers[:depth]):
            if not data:
                return
            data = layer.send(data)
        if data:
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

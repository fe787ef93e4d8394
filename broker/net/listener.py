"""One place where clients connect: a TCP port or a unix socket, and what its connections have between it and MQTT.

What only some listeners need is imported by those: a node with plain TCP carries neither TLS nor WebSocket code.

A unix socket is a file. It is made with its mode and group before anything can connect to it. One that is there
already is taken away only where it is a socket that nobody listens on, as a node leaves it that was killed; at the end
it is taken away unless another has taken its place.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from broker.hub import Hub
from broker.listener import Listener
from broker.net.connection import LayeredConnection, SocketConnection, address

if TYPE_CHECKING:
    from broker.net.layers import Layer
    from broker.net.proxy import ProxyOptions
    from broker.net.tls import Certificates
    from broker.net.websocket import WebSocketOptions

BACKLOG: Final = 4096
"""Connections that the system holds until they are accepted."""


@dataclass(frozen=True, slots=True)
class TCPAddress:
    """A port on the addresses of a host; 0: one that the system chooses."""

    host: str
    port: int

    def __str__(self) -> str:
        return address(self.host, self.port)


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A socket in the file system; `group` empty: that of the process."""

    path: Path
    mode: int = 0o660
    group: str = ""

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to listen, and what lies between the socket and MQTT. `proxy`: connections begin with its header."""

    listener: Listener
    address: TCPAddress | UnixAddress
    tls: Certificates | None = None
    websocket: WebSocketOptions | None = None
    proxy: ProxyOptions | None = None

    @property
    def url(self) -> str:
        """Where it is, for people."""
        if isinstance(self.address, UnixAddress):
            return f"mqtt+unix:{self.address}"
        scheme, path = ("mqtt", "") if self.websocket is None else ("ws", self.websocket.path)
        return f"{scheme}{'' if self.tls is None else 's'}://{self.address}{path}"


class Acceptor:
    """Accepts the connections of one endpoint into a hub."""

    def __init__(self, hub: Hub, endpoint: Endpoint, sockets: set[SocketConnection]) -> None:
        self.endpoint = endpoint
        self._hub = hub
        self._sockets = sockets
        self._server: asyncio.Server | None = None
        self._inode = 0

    async def start(self) -> None:
        """Listen. A port of 0 becomes the one that the system chose.

        Raises:
            OSError: the address can't be listened on.
        """
        loop = asyncio.get_running_loop()
        factory = self._factory(loop)
        match self.endpoint.address:
            case TCPAddress(host, port):
                self._server = await loop.create_server(factory, host, port, backlog=BACKLOG)
            case UnixAddress() as unix:
                sock = bind_unix(unix)
                self._inode = _inode(unix.path)
                self._server = await loop.create_unix_server(factory, sock=sock, backlog=BACKLOG)

    def stop(self) -> None:
        """Accept no more."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        if isinstance(self.endpoint.address, UnixAddress):
            _remove(self.endpoint.address.path, self._inode)

    @property
    def port(self) -> int:
        """Where it listens; 0: it does not, or not on a port."""
        if self._server is None or isinstance(self.endpoint.address, UnixAddress):
            return 0
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """Where it listens, for people."""
        at = self.endpoint.address
        if isinstance(at, UnixAddress):
            return self.endpoint.url
        return replace(self.endpoint, address=replace(at, port=self.port)).url

    def _factory(self, loop: asyncio.AbstractEventLoop) -> Callable[[], SocketConnection]:
        hub, endpoint, sockets = self._hub, self.endpoint, self._sockets
        listener = endpoint.listener
        if endpoint.tls is None and endpoint.websocket is None and endpoint.proxy is None:
            return lambda: SocketConnection(hub, listener, loop, sockets)
        if endpoint.proxy is not None:
            from broker.net.proxy import ProxyLayer
        if endpoint.tls is not None:
            from broker.net.tls import TLSLayer
        if endpoint.websocket is not None:
            from broker.net.websocket import WebSocketLayer

        def layered() -> LayeredConnection:
            layers: list[Layer] = []
            proxy = tls = None
            if endpoint.proxy is not None:
                layers.append(proxy := ProxyLayer(endpoint.proxy))
            if endpoint.tls is not None:
                layers.append(tls := TLSLayer(endpoint.tls))
            if endpoint.websocket is not None:
                layers.append(WebSocketLayer(endpoint.websocket, listener.limits.max_packet_size))
            return LayeredConnection(hub, listener, loop, sockets, layers, proxy, tls)

        return layered


def try_to_bind(at: TCPAddress | UnixAddress) -> None:
    """Tell whether an address could be listened on, and leave nothing behind. Blocks.

    Raises:
        OSError: it could not.
    """
    if isinstance(at, UnixAddress):
        with bind_unix(at):
            at.path.unlink()
        return
    for family, kind, protocol, _, name in socket.getaddrinfo(
        at.host, at.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        with socket.socket(family, kind, protocol) as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind(name)


def bind_unix(at: UnixAddress) -> socket.socket:
    """A socket that is bound, with its mode and group, and does not listen yet.

    Raises:
        OSError: the path can't be used, somebody listens there, or there is no such group.
    """
    _clear(at.path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(str(at.path))
    except OSError:
        bound.close()
        raise
    try:
        if at.group:
            shutil.chown(at.path, group=at.group)
        at.path.chmod(at.mode)
    except (OSError, LookupError) as error:
        bound.close()
        at.path.unlink()
        if isinstance(error, LookupError):
            raise OSError(f"there is no group {at.group}") from None
        raise
    return bound


def _clear(path: Path) -> None:
    """Take away what a killed node has left."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError("something that is no socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:  # more wait for it than it accepts
            pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _inode(path: Path) -> int:
    return path.lstat().st_ino


def _remove(path: Path, inode: int) -> None:
    """Take a socket away that is still this one."""
    with suppress(OSError):
        if _inode(path) == inode:
            path.unlink()

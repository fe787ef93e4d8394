"""What carries a script's bytes to the node and back: TCP, and WebSocket frame by frame.

Both are blocking sockets that wait `PATIENCE` seconds for what should come.
"""

from __future__ import annotations

import base64
import os
import socket
from contextlib import suppress
from typing import Final, Protocol

from tests.node import HOST

PATIENCE: Final = 10.0
_MASK: Final = b"\x37\xfa\x21\x3d"


class Wire(Protocol):
    """One connection to the node."""

    def send(self, data: bytes) -> None:
        """Send all of it; a node that has closed meanwhile is no error: what it has said can still be read."""

    def receive(self) -> bytes:
        """What comes next; empty: the node has closed the connection.

        Raises:
            TimeoutError: nothing came.
        """

    def close(self) -> None:
        """Let the connection break, and wait until the node has seen it."""


class TCP:
    """MQTT on the socket itself."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((HOST, port), PATIENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return

    def receive(self) -> bytes:
        try:
            return self._socket.recv(65536)
        except ConnectionResetError:
            return b""

    def close(self) -> None:
        with self._socket, suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            while self._socket.recv(65536):
                pass


class WebSocket(TCP):
    """MQTT in the binary frames of RFC 6455. Each packet goes in two frames: its first byte, and the rest."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._held = b""
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET /mqtt HTTP/1.1\r\nHost: {HOST}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
        )
        super().send(request.encode())
        while b"\r\n\r\n" not in self._held:
            more = super().receive()
            assert more, f"no WebSocket: {self._held!r}"
            self._held += more
        head, _, self._held = self._held.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        assert b"sec-websocket-protocol: mqtt" in head.lower(), head

    def send(self, data: bytes) -> None:
        super().send(_frame(data[:1]) + (_frame(data[1:]) if len(data) > 1 else b""))

    def receive(self) -> bytes:
        while (frame := self._take()) is None:
            more = super().receive()
            if not more:
                return b""
            self._held += more
        opcode, payload = frame
        if opcode == 8:
            return b""
        assert opcode == 2, f"a frame with opcode {opcode}"
        return payload

    def _take(self) -> tuple[int, bytes] | None:
        held = self._held
        if len(held) < 2:
            return None
        size, at = held[1], 2
        if size > 125:
            at = 4 if size == 126 else 10
            size = int.from_bytes(held[2:at])
        if len(held) < at + size:
            return None
        self._held = held[at + size :]
        return held[0] & 0x0F, held[at : at + size]


def _frame(data: bytes) -> bytes:
    size = len(data)
    if size < 126:
        length = bytes((0x80 | size,))
    else:
        length = b"\xfe" + size.to_bytes(2) if size < 1 << 16 else b"\xff" + size.to_bytes(8)
    mask = int.from_bytes((_MASK * (size // 4 + 1))[:size])
    return b"\x82" + length + _MASK + (int.from_bytes(data) ^ mask).to_bytes(size)


TRANSPORTS: Final[dict[str, type[TCP]]] = {"tcp": TCP, "ws": WebSocket}
"""By the name of the node's listener."""

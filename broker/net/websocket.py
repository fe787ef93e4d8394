"""MQTT over WebSocket (MQTT 5.0 section 6, RFC 6455): the layer around the frames of the `websockets` package.

The rules:

1. A client asks for the listener's path and offers the subprotocol `mqtt` [MQTT-6.0.0-3], or `mqttv3.1` as clients of
   that version do; anything else is answered with an HTTP status, and the connection ends.
2. MQTT's bytes are a stream: frames may split packets and hold several [MQTT-6.0.0-2]. Each write is one binary frame.
3. A text frame ends the connection [MQTT-6.0.0-1]. So does a message, or one frame of it, that is larger than
   `max_size`: until it is complete a frame is held in memory.
4. Where origins are given, a browser's page must be of one of them. Other clients mostly send none.
5. Nothing is compressed: payloads that gain by it are compressed by whoever made them, and a window for each
   connection would be most of its memory.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from websockets.datastructures import MultipleValuesError
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Origin, Subprotocol

SUBPROTOCOLS: Final = (Subprotocol("mqtt"), Subprotocol("mqttv3.1"))
SLACK: Final = 64 << 10
"""Bytes that a message may have beside one packet of the largest size."""
_SHOWN: Final = 100
"""Characters of what a peer said that a line in the log shows."""

_logger = logging.getLogger("berm.websocket")
_logger.setLevel(logging.WARNING)  # the package has a line for each connection, and one for each frame at debug


@dataclass(frozen=True, slots=True)
class WebSocketOptions:
    """What a listener asks of WebSocket clients. `origins` empty: any."""

    path: str = "/mqtt"
    origins: tuple[str, ...] = ()


class WebSocketLayer:
    """One WebSocket connection, seen from the server."""

    STRETCH = 2 << 10

    __slots__ = ("_path", "_protocol", "ended", "error", "work")

    def __init__(self, options: WebSocketOptions, max_packet_size: int) -> None:
        self.ended = False
        self.error = ""
        self.work = 0
        self._path = options.path
        self._protocol = ServerProtocol(
            origins=[*map(Origin, options.origins), None] if options.origins else None,
            subprotocols=SUBPROTOCOLS,
            max_size=max_packet_size + SLACK,
            logger=_logger,
        )

    @property
    def unfinished(self) -> int:
        """Bytes of a frame that is not whole."""
        return len(self._protocol.reader.buffer)

    def receive(self, data: bytes) -> bytes:
        """What the frames carried."""
        if self.error or self.ended:
            return b""
        protocol = self._protocol
        protocol.receive_data(data)
        carried: list[bytes] = []
        events = protocol.events_received()
        self.work = len(events)
        for event in events:
            if not isinstance(event, Frame):
                assert isinstance(event, Request)
                self._greet(event)
            elif event.opcode is Opcode.BINARY or event.opcode is Opcode.CONT:
                carried.append(bytes(event.data))
            elif event.opcode is Opcode.TEXT:
                self.error = "a WebSocket text frame; MQTT goes in binary ones"
                protocol.fail(CloseCode.UNSUPPORTED_DATA, "MQTT goes in binary frames")
            elif event.opcode is Opcode.CLOSE:
                self.ended = True
            if self.error:
                break
        else:
            self._look_for_failure()
        return carried[0] if len(carried) == 1 else b"".join(carried)

    def send(self, data: bytes) -> bytes:
        """One binary frame; nothing once a closing frame was sent."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_binary(data)
        return self.take()

    def take(self) -> bytes:
        """Answers to the handshake, to pings, to a closing frame."""
        return b"".join(self._protocol.data_to_send())

    def close(self) -> bytes:
        """A closing frame, where none was sent."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(CloseCode.NORMAL_CLOSURE)
        return self.take()

    def _greet(self, request: Request) -> None:
        """Answer the handshake."""
        protocol = self._protocol
        path = request.path.partition("?")[0]
        if protocol.state is not State.CONNECTING or protocol.eof_sent or protocol.writes:
            self.error = "WebSocket frames before the handshake was answered"
            protocol.data_to_send()  # answers to these frames, which may not come before that to the handshake
            return
        if path != self._path:
            response = protocol.reject(HTTPStatus.NOT_FOUND, f"MQTT is at {self._path}\n")
            self.error = f"an HTTP request for {path[:_SHOWN]!r}, not for {self._path!r}"
        else:
            response = protocol.accept(request)
            if protocol.handshake_exc is not None:
                self.error = f"no WebSocket handshake: {_words(protocol.handshake_exc)}"
        protocol.send_response(response)

    def _look_for_failure(self) -> None:
        """Whether the frames, or the request, were none."""
        protocol = self._protocol
        failure = protocol.parser_exc or protocol.handshake_exc
        if failure is not None:
            what = "bad WebSocket frames" if protocol.parser_exc is not None else "no WebSocket handshake"
            self.error = f"{what}: {_words(failure)}"


def _words(error: BaseException) -> str:
    """What went wrong, and below it why, in one line of bounded length."""
    reasons = [str(error)]
    while error.__cause__ is not None and not isinstance(error.__cause__, MultipleValuesError):
        error = error.__cause__
        reasons.append(str(error))
    return "; ".join(filter(None, reasons))[:_SHOWN].encode("ascii", "backslashreplace").decode()

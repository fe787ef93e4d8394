"""Clients that send as fast as they can what costs a broker most: `python -m bench.floods KIND PORT SECONDS`.

What is sent is made before, so that the flood takes little of the processor. What comes back is read and thrown away.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

from bench.brokers import HOST
from bench.load import LoadError
from broker.mqtt.codec import encode
from broker.mqtt.packets import Connect, Packet, Pingreq, Publish, Subscribe, Subscription, Unsubscribe

RETAINED: Final = 20_000
"""Retained messages that each SUBSCRIBE of its kind asks for."""
_VERSION: Final = 5
_PACKETS: Final = 10_000
"""Packets that are sent again and again."""
_READ: Final = 1 << 20
_READY: Final = "ready"


def _pings(_: socket.socket) -> list[Packet]:
    return [Pingreq()]


def _publishes(_: socket.socket) -> list[Packet]:
    return [Publish("flood", b"x")]


def _churn(_: socket.socket) -> list[Packet]:
    return [Subscribe(1, (Subscription("flood/+", 0),)), Unsubscribe(2, ("flood/+",))]


def _everything(link: socket.socket) -> list[Packet]:
    for number in range(RETAINED):
        link.sendall(encode(Publish(f"flood/{number % 200}/{number}", bytes(20), 0, True), _VERSION))
    time.sleep(1)
    return [Subscribe(1, (Subscription("#", 0),))]


KINDS: Final[Mapping[str, Callable[[socket.socket], list[Packet]]]] = {
    "PINGREQ": _pings,
    "PUBLISH": _publishes,
    "SUBSCRIBE and UNSUBSCRIBE": _churn,
    "SUBSCRIBE": _everything,
}
"""What a client sends without an end, after what it does before."""


@contextmanager
def flood(kind: str, port: int, seconds: float) -> Iterator[None]:
    """A client that does so, in a process of its own. It is sending when this is entered, and has ended afterwards.

    Raises:
        LoadError: it could not go on to the end.
    """
    command = [sys.executable, "-m", "bench.floods", kind, str(port), str(seconds)]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert client.stdout is not None
        if client.stdout.readline().strip() != _READY:
            raise LoadError(f"a client that floods the broker with {kind} could not begin")
        yield
        if client.wait(seconds + 60):
            raise LoadError(f"a client that flooded the broker with {kind} was disconnected")
    finally:
        client.kill()
        client.wait()


def _send(kind: str, port: int, seconds: float) -> None:
    with socket.create_connection((HOST, port)) as link:
        link.sendall(encode(Connect(f"flood-{kind}", _VERSION, True, 0, None, None, None), _VERSION))
        assert link.recv(_READ)
        packets = KINDS[kind](link)
        data = b"".join(encode(packet, _VERSION) for packet in packets * (_PACKETS // len(packets)))
        threading.Thread(target=_drain, args=(link,), daemon=True).start()
        print(_READY, flush=True)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            link.sendall(data)


def _drain(link: socket.socket) -> None:
    with suppress(OSError):
        while link.recv(_READ):
            pass


if __name__ == "__main__":
    _send(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))

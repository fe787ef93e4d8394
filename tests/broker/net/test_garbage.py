"""A node looks for cycles so seldom that whatever a connection took must go by its reference counts."""

from __future__ import annotations

import gc
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from weakref import ref

import pytest

from broker.listener import Listener
from broker.mqtt.packets import Disconnect, Pingresp
from broker.mqtt.reason import Reason
from broker.net.listener import Endpoint, TCPAddress
from broker.net.tls import Certificates, TLSFiles
from broker.net.websocket import WebSocketOptions
from tests.broker.net.certificates import Authority
from tests.broker.net.helpers import on_both_loops, running, until
from tests.broker.net.peers import Peer, WebSocketPeer


@pytest.fixture(autouse=True)
def without_collector() -> Iterator[None]:
    """Nothing looks for cycles while a test runs."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def leave(peer: Peer) -> None:
    """Say goodbye."""
    await peer.send(Disconnect())
    await peer.ended()


async def vanish(peer: Peer) -> None:
    """End the connection with nothing said."""
    peer.writer.transport.abort()


async def err(peer: Peer) -> None:
    """Send what only a server may send."""
    await peer.send(Pingresp())
    assert (await peer.receive(Disconnect)).reason == Reason.PROTOCOL_ERROR
    await peer.ended()


async def garble(peer: Peer) -> None:
    """Send what is no packet."""
    await peer.send_bytes(b"\x00\x00")
    assert (await peer.receive(Disconnect)).reason == Reason.MALFORMED_PACKET
    await peer.ended()


@pytest.mark.parametrize("end", [leave, vanish, err, garble])
@pytest.mark.parametrize("transport", ["tcp", "tls", "websocket"])
@on_both_loops
async def test_nothing_of_a_connection_is_left_when_it_has_ended(
    transport: str, end: Callable[[Peer], Coroutine[object, object, None]], tmp_path: Path
) -> None:
    authority = Authority(tmp_path) if transport == "tls" else None

    def endpoint(listener: Listener) -> Endpoint:
        tls = Certificates(TLSFiles(*authority.server())) if authority else None
        websocket = WebSocketOptions("/mqtt", ()) if transport == "websocket" else None
        return Endpoint(listener, TCPAddress("127.0.0.1", 0), tls=tls, websocket=websocket)

    async with running(None, endpoint) as node:
        kind = WebSocketPeer if transport == "websocket" else Peer
        async with await kind.open(node.server.port, authority.trusting() if authority else None) as peer:
            await peer.connect()
            await peer.subscribe("t")
            wires = [ref(connection.wire) for connection in node.hub.clients.connections]
            await end(peer)
        await until(lambda: not node.hub.clients.connections)
        await until(lambda: wires[0]() is None)
        assert len(wires) == 1

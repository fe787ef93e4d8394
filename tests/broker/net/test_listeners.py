"""Several listeners in front of one hub: each has its own bounds, and they share the node's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from time import time_ns

import pytest

from broker.listener import Limits, Listener
from broker.mqtt.packets import Connack, Connect, Disconnect, Packet, Publish
from broker.mqtt.properties import Property, first
from broker.mqtt.reason import Reason
from broker.net.errors import ListenError
from broker.net.listener import Endpoint, TCPAddress, try_to_bind
from broker.net.server import Server
from broker.net.websocket import WebSocketOptions
from tests.broker.net.helpers import Running, on_both_loops, plain, running, until
from tests.broker.net.peers import Peer, WebSocketPeer

SECOND = 1_000_000


def own(name: str, limits: Limits, mount_point: str = "") -> Callable[[Listener], Endpoint]:
    """A listener with bounds of its own, on a port that the system chooses."""
    return lambda _: Endpoint(Listener(name, limits, mount_point), TCPAddress("127.0.0.1", 0))


@asynccontextmanager
async def peers(node: Running, *listeners: int) -> AsyncIterator[list[Peer]]:
    """A connection to each of these listeners, by their number."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(await Peer.open(node.server.acceptors[each].port)) for each in listeners]


async def answer(peer: Peer, client_id: str) -> Connack:
    """What the node says to a CONNECT."""
    await peer.send(Connect(client_id, 5, True, 0, None, None, None))
    return await peer.receive(Connack)


def number(packet: Packet, key: int) -> object:
    assert isinstance(packet, Connack)
    return first(packet.properties, key)


@on_both_loops
async def test_each_listener_tells_its_own_bounds() -> None:
    narrow = Limits(max_packet_size=2048, receive_maximum=3, topic_alias_maximum=4, max_keep_alive=5)
    async with running(Limits(), plain, own("narrow", narrow)) as node, peers(node, 0, 1) as (wide, tight):
        told = [await answer(wide, "w"), await answer(tight, "t")]
        for key, values in (
            (Property.MAXIMUM_PACKET_SIZE, [1 << 20, 2048]),
            (Property.RECEIVE_MAXIMUM, [1000, 3]),
            (Property.TOPIC_ALIAS_MAXIMUM, [16, 4]),
            (Property.SERVER_KEEP_ALIVE, [None, 5]),
        ):
            assert [number(each, key) for each in told] == values
        large = Publish("t", bytes(4096))
        await wide.send(large)
        await tight.send(large)
        assert (await tight.receive(Disconnect)).reason == Reason.PACKET_TOO_LARGE
        await until(lambda: node.hub.traffic.received == 1)


@on_both_loops
async def test_a_listener_that_is_full_refuses_and_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    narrow = own("narrow", Limits(max_connections=1))
    async with (
        running(Limits(), plain, narrow) as node,
        peers(node, 1, 1, 0, 1) as (first_, second, other, third),
    ):
        assert (await answer(first_, "a")).reason == Reason.SUCCESS
        assert (await answer(second, "b")).reason == Reason.SERVER_BUSY
        assert "1 clients are connected to listener narrow (max_connections)" in caplog.records[0].message
        assert (await answer(other, "c")).reason == Reason.SUCCESS
        await first_.send(Disconnect())
        await until(lambda: node.hub.clients.count == 1)
        assert (await answer(third, "d")).reason == Reason.SUCCESS


@on_both_loops
async def test_a_full_listener_takes_a_client_over_from_itself_and_from_no_other() -> None:
    narrow = own("narrow", Limits(max_connections=1))
    async with (
        running(Limits(), plain, narrow) as node,
        peers(node, 1, 1, 1, 0) as (inside, again, late, elsewhere),
    ):
        assert (await answer(inside, "a")).reason == Reason.SUCCESS
        assert (await answer(again, "a")).reason == Reason.SUCCESS
        assert (await answer(elsewhere, "b")).reason == Reason.SUCCESS
        assert (await answer(late, "b")).reason == Reason.SERVER_BUSY
        assert sorted(node.hub.sessions.all) == ["a", "b"]


@on_both_loops
async def test_the_node_bounds_all_listeners_together() -> None:
    limits = Limits(max_connections=1)
    async with running(limits, plain, own("other", Limits())) as node, peers(node, 0) as (one,):
        assert (await answer(one, "a")).reason == Reason.SUCCESS
        async with peers(node, 1) as (two,):
            assert (await answer(two, "b")).reason == Reason.SERVER_BUSY


@on_both_loops
async def test_each_listener_waits_its_own_time_for_connect() -> None:
    limits = Limits(connect_timeout=60)
    hasty = own("quick", Limits(connect_timeout=5))
    async with running(limits, plain, hasty) as node, peers(node, 0, 1) as (patient, quick):
        await until(lambda: len(node.hub.clients.connections) == 2)
        node.hub.tick(time_ns() // 1000 + 10 * SECOND)
        await quick.ended()
        assert (await answer(patient, "p")).reason == Reason.SUCCESS


@on_both_loops
async def test_clients_of_all_listeners_meet_each_below_its_mount_point() -> None:
    def web(_: Listener) -> Endpoint:
        return Endpoint(
            Listener("web", Limits(), "site-7/"), TCPAddress("127.0.0.1", 0), websocket=WebSocketOptions("/mqtt", ())
        )

    async with (
        running(Limits(), plain, web) as node,
        await Peer.open(node.server.port) as outside,
        await WebSocketPeer.open(node.server.acceptors[1].port) as inside,
    ):
        await outside.connect("outside")
        await inside.connect("inside")
        await outside.subscribe("site-7/up", 0)
        await inside.subscribe("down", 0)
        await inside.send(Publish("up", b"1"))
        assert await outside.receive(Publish) == Publish("site-7/up", b"1")
        await outside.send(Publish("site-7/down", b"2"))
        assert await inside.receive(Publish) == Publish("down", b"2")


@on_both_loops
async def test_where_one_can_not_listen_none_does() -> None:
    async with running() as node:
        taken = TCPAddress("127.0.0.1", node.server.port)
        free = Endpoint(Listener("free", Limits()), TCPAddress("127.0.0.1", 0))
        server = Server(node.hub, [free, Endpoint(Listener("taken", Limits()), taken)])
        with pytest.raises(
            ListenError, match=f"cannot listen on 127.0.0.1:{taken.port}: address already in use"
        ) as caught:
            await server.start()
        assert caught.value.listener == "taken"
        assert server.port == 0
        with pytest.raises(OSError, match="in use"):
            try_to_bind(taken)


def test_an_address_that_can_be_used_is_free_after_it_was_tried() -> None:
    async def listen() -> None:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        try_to_bind(TCPAddress("127.0.0.1", port))
        try_to_bind(TCPAddress("localhost", port))

    asyncio.run(listen())


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        (Endpoint(Listener("x", Limits()), TCPAddress("::1", 1883)), "mqtt://[::1]:1883"),
        (
            Endpoint(Listener("x", Limits()), TCPAddress("0.0.0.0", 80), websocket=WebSocketOptions("/m", ())),
            "ws://0.0.0.0:80/m",
        ),
    ],
)
def test_where_a_listener_is_is_a_url(endpoint: Endpoint, url: str) -> None:
    assert endpoint.url == url

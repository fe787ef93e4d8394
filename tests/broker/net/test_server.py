"""Real sockets in front of the hub: bytes come in pieces, connections end in every way, peers do not read."""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial
from time import time_ns

import pytest

from broker.connection import Connection
from broker.listener import Limits
from broker.mqtt.codec import encode
from broker.mqtt.packets import (
    Connack,
    Connect,
    Disconnect,
    Pingreq,
    Pingresp,
    Puback,
    Publish,
    Suback,
    Subscribe,
    Subscription,
    Will,
)
from broker.mqtt.reason import Reason
from broker.net import connection as shell
from broker.net.errors import ListenError
from tests.broker.net.helpers import Client, on_both_loops, running, until

SECOND = 1_000_000
SMALL = Limits(write_buffer=16 << 10)


async def subscribe(client: Client, filter: str, qos: int = 1) -> None:
    await client.send(Subscribe(1, (Subscription(filter, qos),)))
    assert await client.receive(Suback) == Suback(1, (qos,))


def stopped(sending: asyncio.Future[None], connection: Connection) -> bool:
    """Whether everything was sent, or can't be for as long as the client reads nothing."""
    return sending.done() or (connection.held and connection.blocked)


@on_both_loops
async def test_a_message_goes_from_socket_to_socket_and_is_acknowledged() -> None:
    async with running() as node:
        subscriber, publisher = await node.client("s"), await node.client("p")
        await subscribe(subscriber, "t")
        await publisher.send(Publish("t", b"x", 1, packet_id=9))
        assert await publisher.receive(Puback) == Puback(9)
        assert await subscriber.receive(Publish) == Publish("t", b"x", 1, packet_id=1)


@on_both_loops
async def test_bytes_that_come_one_by_one_make_the_same_packets() -> None:
    async with running() as node:
        client = await node.open()
        client.raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        packets = (Connect("c", 5, True, 0, None, None, None), Publish("t", b"x", 1, packet_id=9), Pingreq())
        for byte in b"".join(encode(packet, 5) for packet in packets):
            await client.send_bytes(bytes((byte,)))
            await asyncio.sleep(0)
        assert (await client.receive(Connack)).reason == 0
        assert {type(await client.receive(object)) for _ in range(2)} == {Puback, Pingresp}


@pytest.mark.parametrize("way", ["half-closed", "closed", "reset"])
@on_both_loops
async def test_a_connection_that_ends_without_a_word_leaves_its_will(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as node:
        watcher = await node.client("w")
        await subscribe(watcher, "will")
        client = await node.client("c", will=Will("will", b"gone", 1, False))
        if way == "half-closed":
            client.raw.shutdown(socket.SHUT_WR)
            await client.ended()
        elif way == "closed":
            client.raw.close()
        else:
            client.reset()
        assert (await watcher.receive(Publish)).payload == b"gone"
        await until(lambda: len(node.hub.clients.connections) == 1)
        assert not caplog.records


@on_both_loops
async def test_a_connection_that_says_nothing_or_half_a_connect_is_closed() -> None:
    async with running(Limits(connect_timeout=10)) as node:
        silent, trickling = await node.open(), await node.open()
        await trickling.send_bytes(encode(Connect("c", 5, True, 0, None, None, None), 5)[:-1])
        await until(lambda: len(node.hub.clients.connections) == 2)
        node.hub.tick(time_ns() // 1000 + 12 * SECOND)
        await silent.ended()
        await trickling.ended()
        await until(lambda: not node.hub.clients.connections)


@pytest.mark.parametrize("packet", [Pingreq(), Publish("t", b"", 1, packet_id=1)], ids=["PINGREQ", "PUBLISH"])
@on_both_loops
async def test_a_client_that_sends_for_ever_and_never_reads_is_bounded_and_served_later(
    packet: Pingreq | Publish,
) -> None:
    limits = Limits(write_buffer=16 << 10, receive_maximum=65535)
    async with running(limits) as node:
        client = await node.client()
        (connection,) = node.hub.clients.connections
        transport = connection.wire._transport  # type: ignore[attr-defined] # to measure what it holds
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        loop = asyncio.get_running_loop()
        data = encode(packet, 5) * 2000
        sent = 0
        while True:  # until neither the node nor the buffers of both sockets take any more
            sending = asyncio.ensure_future(loop.sock_sendall(client.raw, data))
            await until(partial(stopped, sending, connection))
            if not sending.done():
                break
            sent += 2000
            assert sent < 10_000_000
        assert transport.get_write_buffer_size() < 4 * limits.write_buffer + (256 << 10)
        answer = b"\xd0\x00" if isinstance(packet, Pingreq) else b"\x40\x02\x00\x01"
        assert await client.receive_bytes((sent + 2000) * len(answer)) == answer * (sent + 2000)
        await sending
        assert not connection.held


@on_both_loops
async def test_a_subscriber_that_never_reads_costs_its_buffer_and_gets_everything_later() -> None:
    async with running(SMALL) as node:
        subscriber, publisher = await node.client("s"), await node.client("p")
        await subscribe(subscriber, "t", 0)
        connection = next(c for c in node.hub.clients.connections if c.session and c.session.client_id == "s")
        count = 0
        while not connection.blocked or count % 500:
            await publisher.send(Publish("t", b"%8d" % count + bytes(5000), 1, packet_id=1))
            await publisher.receive(Puback)
            count += 1
            assert count < 5000
        assert connection.session is not None
        assert not connection.session.live
        transport = connection.wire._transport  # type: ignore[attr-defined] # to measure what it holds
        assert transport.get_write_buffer_size() < 64 << 10
        for n in range(count):
            assert (await subscriber.receive(Publish)).payload[:8] == b"%8d" % n
        await until(lambda: connection.session is not None and connection.session.live)


@on_both_loops
async def test_an_error_of_ours_closes_only_its_connection_and_its_stack_is_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as node:
        client, other = await node.client("evil"), await node.client("other")
        receive = Connection.receive

        def broken(connection: Connection, data: bytes, now: int) -> None:
            if connection.session is not None and connection.session.client_id == "evil":
                raise ZeroDivisionError("ours")
            receive(connection, data, now)

        monkeypatch.setattr(Connection, "receive", broken)
        await client.send(Pingreq())
        await client.ended()
        await other.send(Pingreq())
        assert await other.receive(Pingresp) == Pingresp()
        assert node.hub.crashed == 1
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert "client 'evil' from 127.0.0.1:" in record.message
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], ZeroDivisionError)


@on_both_loops
async def test_garbage_is_answered_with_its_reason_and_the_end() -> None:
    async with running() as node:
        client = await node.client()
        await client.send_bytes(b"\x00\x00")
        assert (await client.receive(Disconnect)).reason == Reason.MALFORMED_PACKET
        await client.ended()


@on_both_loops
async def test_what_was_said_before_the_end_arrives_before_the_end() -> None:
    async with running() as node:
        client = await node.client()
        await subscribe(client, "t", 0)
        await client.send(*(Publish("t", bytes(1000)) for _ in range(30)), Disconnect())
        for _ in range(30):
            await client.receive(Publish)
        await client.ended()


@on_both_loops
async def test_a_closed_connection_that_does_not_read_is_cut_off_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shell, "LINGER", 0.01)
    async with running(SMALL) as node:
        subscriber, publisher = await node.client("s"), await node.client("p")
        await subscribe(subscriber, "t", 0)
        connection = next(c for c in node.hub.clients.connections if c.session and c.session.client_id == "s")
        while not connection.blocked:
            await publisher.send(Publish("t", bytes(5000), 1, packet_id=1))
            await publisher.receive(Puback)
        transport = connection.wire._transport  # type: ignore[attr-defined] # to see its end
        connection.close(Reason.ADMINISTRATIVE_ACTION)
        assert connection not in node.hub.clients.connections
        await until(lambda: transport.get_write_buffer_size() == 0)
        subscriber.raw.close()


@on_both_loops
async def test_a_server_that_stops_says_so_and_gives_its_port_back() -> None:
    async with running() as node:
        client, stranger = await node.client(), await node.open()
        await until(lambda: len(node.hub.clients.connections) == 2)
        await node.server.stop()
        assert (await client.receive(Disconnect)).reason == Reason.SERVER_SHUTTING_DOWN
        await client.ended()
        await stranger.ended()
        again = node.listening(node.server.port)
        await again.start()
        await again.stop()


@on_both_loops
async def test_a_port_that_is_taken_is_an_error_that_names_it() -> None:
    async with running() as node:
        with pytest.raises(ListenError, match=f"127.0.0.1:{node.server.port}.*in use"):
            await node.listening(node.server.port).start()


@on_both_loops
async def test_time_reaches_the_hub_by_itself() -> None:
    async with running() as node:
        before = node.hub.now
        await until(lambda: node.hub.now > before)

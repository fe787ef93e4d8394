"""Many clients at a time: none is lost, each has what it is to have, and so it is when all return at once."""

from __future__ import annotations

import asyncio
import resource
from asyncio import StreamReader, StreamWriter
from pathlib import Path
from typing import Final, Self

import pytest

from berm.process import SPARE_FILES, raise_file_limit
from broker.mqtt.codec import encode
from broker.mqtt.packets import Connect, Pingreq, Puback, Publish, Subscribe, Subscription
from tests.node import BERM, HOST, Node

CLIENTS: Final = 2000
KEEP_ALIVE: Final = 6
"""s."""
NEVER: Final = 0
"""The keep alive of a client that may be silent for ever."""
FILES: Final = 120
"""Those that a process may open that has few."""
PATIENCE: Final = 120
"""s for a whole test."""


@pytest.fixture(scope="module", autouse=True)
def file_limit() -> None:
    """As many sockets as it takes."""
    raise_file_limit(CLIENTS)
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < CLIENTS + SPARE_FILES:
        pytest.skip(f"this process may not open {CLIENTS + SPARE_FILES} files (see `ulimit -Hn`)")


class Client:
    """A client of MQTT 3.1.1 that knows byte by byte what has to come."""

    def __init__(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int, client_id: str, keep_alive: int) -> Self:
        client = cls(*await asyncio.open_connection(HOST, port))
        await client.hello(client_id, keep_alive)
        return client

    async def hello(self, client_id: str, keep_alive: int) -> None:
        self.writer.write(encode(Connect(client_id, 4, True, keep_alive, None, None, None), 4))
        await self.expect(b"\x20\x02\x00\x00")

    async def subscribe(self, filter: str) -> None:
        self.writer.write(encode(Subscribe(1, (Subscription(filter, 1),)), 4))
        await self.expect(b"\x90\x03\x00\x01\x01")

    async def ping(self) -> None:
        self.writer.write(encode(Pingreq(), 4))
        await self.expect(b"\xd0\x00")

    async def receive(self, topic: str, payload: bytes, packet_id: int) -> None:
        await self.expect(encode(Publish(topic, payload, 1, packet_id=packet_id), 4))
        self.writer.write(encode(Puback(packet_id), 4))

    async def expect(self, data: bytes) -> None:
        assert await self.reader.readexactly(len(data)) == data


async def crowd(port: int, name: str, keep_alive: int) -> list[Client]:
    """All of them, connected at once and subscribed to one topic."""
    clients = await asyncio.gather(*(Client.connect(port, f"{name}-{number}", keep_alive) for number in range(CLIENTS)))
    await asyncio.gather(*(client.subscribe(f"{name}/all") for client in clients))
    return clients


async def publish(publisher: Client, topic: str, payload: bytes) -> None:
    publisher.writer.write(encode(Publish(topic, payload, 1, packet_id=1), 4))
    await publisher.expect(encode(Puback(1), 4))


def leave(*clients: Client) -> None:
    for client in clients:
        client.writer.transport.abort()


async def test_thousands_of_clients_that_ping_stay_connected_and_one_that_does_not_is_disconnected(
    node: Node, name: str
) -> None:
    async with asyncio.timeout(PATIENCE):
        clients = await crowd(node.port, name, KEEP_ALIVE)
        silent = await Client.connect(node.port, f"{name}-silent", KEEP_ALIVE)
        ended = asyncio.ensure_future(silent.reader.read())
        while not ended.done():
            await asyncio.gather(*(client.ping() for client in clients))
        assert ended.result() == b""
        publisher = await Client.connect(node.port, f"{name}-publisher", NEVER)
        await publish(publisher, f"{name}/all", b"still there")
        await asyncio.gather(*(client.receive(f"{name}/all", b"still there", 1) for client in clients))
        leave(publisher, silent, *clients)
    assert not [line for line in node.stderr.splitlines() if f"'{name}-" in line and "silent'" not in line]


async def test_thousands_of_clients_that_all_vanish_and_return_at_once_get_each_message_once(
    node: Node, name: str
) -> None:
    async with asyncio.timeout(PATIENCE):
        publisher = await Client.connect(node.port, f"{name}-publisher", NEVER)
        for payload in (b"first", b"second", b"third"):
            clients = await crowd(node.port, name, NEVER)
            await publish(publisher, f"{name}/all", payload)
            await asyncio.gather(*(client.receive(f"{name}/all", payload, 1) for client in clients))
            await asyncio.gather(*(client.ping() for client in clients))  # nothing else came before the answer
            leave(*clients)
        leave(publisher)


async def accepted(port: int, client_id: str) -> Client | None:
    """A client, or None where the node has closed its connection at once."""
    client = Client(*await asyncio.open_connection(HOST, port))
    try:
        await client.hello(client_id, NEVER)
    except (asyncio.IncompleteReadError, ConnectionError):
        leave(client)
        return None
    return client


async def test_a_node_without_a_file_for_one_more_connection_closes_it_and_goes_on(tmp_path: Path, name: str) -> None:
    few = ("sh", "-c", f'ulimit -n {FILES} && exec "$@"', "sh", *BERM)
    with Node(tmp_path, command=few) as node:
        async with asyncio.timeout(PATIENCE):
            clients: list[Client] = []
            while (client := await accepted(node.port, f"{name}-{len(clients)}")) is not None:
                clients.append(client)
            assert 0 < len(clients) < FILES
            first, *others = clients
            await first.subscribe(name)
            await publish(first, name, b"x")
            await first.receive(name, b"x", 1)
            leave(*others)
            while (last := await accepted(node.port, f"{name}-last")) is None:
                continue  # the others are still on their way out
            leave(first, last)
        assert node.stop() == 0
        assert f"this process may open {FILES} files, too few for 10000 connections" in node.stderr

"""The link to the cloud."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bench.link import Link, State
from tests.bench.helpers import HOST, PATIENCE


class Echo:
    """A server that answers each line with the same line, and keeps what it got."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.arrived = asyncio.Event()
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while line := await reader.readline():
            self.got.append(line)
            self.arrived.set()
            writer.write(line)
        writer.close()


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Echo, Link]]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, HOST, 0)
    link = Link(server.sockets[0].getsockname()[1])
    await link.up()
    try:
        yield echo, link
    finally:
        await link.down()
        server.close()


async def line_of(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(PATIENCE):
        return await reader.readline()


async def test_it_forwards_both_ways() -> None:
    async with linked() as (_, link):
        reader, writer = await asyncio.open_connection(HOST, link.port)
        writer.write(b"hello\n")
        assert await line_of(reader) == b"hello\n"
        writer.close()


async def test_silence_comes_over_the_way_back_first_and_then_over_both() -> None:
    async with linked() as (echo, link):
        reader, writer = await asyncio.open_connection(HOST, link.port)
        writer.write(b"before\n")
        assert await line_of(reader) == b"before\n"
        echo.arrived.clear()
        silence = asyncio.create_task(link.silence())
        await asyncio.sleep(0)
        writer.write(b"one way\n")
        async with asyncio.timeout(PATIENCE):
            await echo.arrived.wait()
        await silence
        assert link.state is State.SILENT
        writer.write(b"no way\n")
        await writer.drain()
        await link.down()
        assert echo.got == [b"before\n", b"one way\n"]
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()


async def test_while_it_is_silent_a_new_connection_is_accepted_and_leads_nowhere() -> None:
    async with linked() as (echo, link):
        await link.silence()
        _, writer = await asyncio.open_connection(HOST, link.port)
        writer.write(b"hello\n")
        await writer.drain()
        assert echo.connections == 0
        writer.close()


async def test_when_it_goes_down_connections_end_and_what_it_held_is_lost() -> None:
    async with linked() as (echo, link):
        reader, writer = await asyncio.open_connection(HOST, link.port)
        await link.silence()
        writer.write(b"lost\n")
        await writer.drain()
        await link.down()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            async with asyncio.timeout(PATIENCE):
                await reader.readexactly(1)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(HOST, link.port)
        assert echo.got == []
        writer.close()


async def test_it_comes_up_again_at_the_same_port() -> None:
    async with linked() as (_, link):
        port = link.port
        await link.silence()
        await link.down()
        await link.up()
        assert (link.port, link.state) == (port, State.UP)
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(b"again\n")
        assert await line_of(reader) == b"again\n"
        writer.close()


async def test_when_one_side_hangs_up_the_other_is_hung_up_too() -> None:
    async with linked() as (echo, link):
        reader, writer = await asyncio.open_connection(HOST, link.port)
        writer.write_eof()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            async with asyncio.timeout(PATIENCE):
                await reader.readexactly(1)
        assert echo.got == []
        writer.close()

"""A link that can be cut: a TCP proxy between an edge and its cloud, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Self


class Proxy:
    """Forwards connections to `target` on 127.0.0.1, until it is told to do something worse.

    `cut` closes every connection and lets no new one through. `blackhole` leaves every connection open and swallows
    what is sent over it, in both directions, with no FIN and no RST; new ones are accepted and swallowed too. `restore`
    forwards new connections again; those that were swallowed stay so.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.accepted = 0
        """Connections so far."""
        self._mode = "forward"
        self._pairs: set[_Pair] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Close everything, and refuse what comes."""
        self._call(self._set("refuse", close=True))

    def blackhole(self) -> None:
        """Swallow everything, and say nothing."""
        self._call(self._set("swallow", close=False))

    def restore(self) -> None:
        """Let new connections through."""
        self._call(self._set("forward", close=False))

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _set(self, mode: str, close: bool) -> None:
        self._mode = mode
        for pair in list(self._pairs):
            if close:
                pair.close()
            elif mode == "swallow":
                pair.swallowed = True

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        pair = _Pair(writer, self._mode == "swallow")
        if self._mode == "refuse":
            pair.close()
            return
        self._pairs.add(pair)
        try:
            with suppress(OSError):
                peer_reader, peer_writer = await asyncio.open_connection("127.0.0.1", self.target)
                pair.writers.append(peer_writer)
                await asyncio.gather(pair.copy(reader, peer_writer), pair.copy(peer_reader, writer))
        finally:
            self._pairs.discard(pair)
            pair.close()

    async def _end(self) -> None:
        self._server.close()
        for pair in list(self._pairs):
            pair.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Pair:
    """One connection through the proxy."""

    def __init__(self, writer: asyncio.StreamWriter, swallowed: bool) -> None:
        self.swallowed = swallowed
        self.writers = [writer]

    async def copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if not self.swallowed:
                writer.write(data)
                await writer.drain()
        if not self.swallowed:
            self.close()

    def close(self) -> None:
        for writer in self.writers:
            writer.close()

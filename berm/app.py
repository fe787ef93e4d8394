"""Starts a node from its settings, and stops it: the one place that knows every part.

The order of the start is the order in which parts need each other: storage, hub, processors, listener, bridges. The
stop is the reverse, and ends when the last group has committed.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from time import time_ns

import uvloop
from processors.loading import load_file
from processors.runtime import Runtime
from storage.sqlite import SQLiteEngine

from berm.settings import BridgeSection, Settings
from bridge import BridgeSettings, RouteSettings, Uplink
from broker.hub import Hub, Limits
from broker.mqtt.topic import compile_filters, matches
from broker.net.dialer import Dialer
from broker.net.server import TICK, Server
from processors import Definition
from storage.interface import DURABILITY, META, StorageError, StorageFailed
from storage.log import Log
from storage.worker import ThreadWorker

_logger = logging.getLogger("berm")

SWITCH_INTERVAL = 0.0005
"""Seconds for which the loop may hold the interpreter while the writer wants it."""


class StartError(Exception):
    """The node can't start; the message says what was tried, why it failed and what to do."""


def main(settings: Settings) -> int:
    """Run a node until SIGTERM or SIGINT; the process's exit code."""
    logging.basicConfig(
        level=settings.log.level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(settings))
    except (StartError, StorageError) as error:
        print(f"berm: {error}", file=sys.stderr)
        return 1


async def _serve(settings: Settings) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    node = Node(settings, loop)
    await node.start()
    _tune_collector()
    print(f"berm: {settings.node.name} listens on mqtt://{settings.mqtt.host}:{node.port}", flush=True)
    print(f"berm: the log is {node.database}", flush=True)
    code = await node.run(stop)
    await node.stop()
    return code


def _tune_collector() -> None:
    """What exists now stays; messages die by their reference counts and need no frequent search for cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 1000)


class Node:
    """A running node."""

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self._settings = settings
        self._loop = loop
        self._definitions = [d for section in settings.processors for d in load_file(Path(section.file))]
        self._engine = SQLiteEngine(Path(settings.storage.path))
        if self._engine.quarantined is not None:
            _logger.error(
                "the log was damaged and is now %s; the node goes on with an empty one", self._engine.quarantined
            )
        post = loop.call_soon_threadsafe
        self._workers = [ThreadWorker(f"berm-{name}", post) for name in ("writer", "reader", "processors")]
        writer, reader, self._user_code = self._workers
        self.database = Path(settings.storage.path).resolve() / "berm.db"
        self._log = Log(self._engine, writer, reader, settings.storage.memory_bytes)
        self._hub = Hub(self._log, _limits(settings), loop.call_soon, _rules(settings))
        self._server = Server(self._hub, settings.mqtt.host, settings.mqtt.port)
        self._runtimes: list[Runtime] = []
        self._dialers: list[Dialer] = []
        self._ticker: asyncio.TimerHandle | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.port

    async def start(self) -> None:
        """Take up the state of the last run, then listen, then dial.

        Raises:
            StartError: the address can't be listened on.
        """
        now = time_ns() // 1000
        epoch = self._identify(now)
        self._hub.restore(now)
        for definition in self._definitions:
            runtime = self._runtime(definition)
            self._runtimes.append(runtime)
            runtime.start()
        mqtt = self._settings.mqtt
        try:
            await self._server.start()
        except OSError as error:
            raise StartError(
                f"cannot listen on {mqtt.host}:{mqtt.port}: {error.strerror}; "
                "stop what uses it, or set mqtt.host and mqtt.port"
            ) from error
        for section in self._settings.bridges:
            uplink = Uplink(_bridge(section, self._settings), self._log, node=self._settings.node.name, epoch=epoch)
            dialer = Dialer(uplink)
            self._dialers.append(dialer)
            dialer.start()
        self._tick()

    async def run(self, stop: asyncio.Event) -> int:
        """Wait until `stop` is set (0), or until the log can't be trusted any more (1)."""
        while not stop.is_set():
            if isinstance(self._log.failure, StorageFailed):
                _logger.critical("%s; the node stops, since nothing more would be kept", self._log.failure)
                return 1
            try:
                async with asyncio.timeout(1):
                    await stop.wait()
            except TimeoutError:
                continue
        return 0

    async def stop(self) -> None:
        """Close the listener and every connection, commit what is open, and let go of the data directory."""
        if self._ticker is not None:
            self._ticker.cancel()
        for runtime in self._runtimes:
            runtime.stop()
        for dialer in self._dialers:
            dialer.stop()
        await self._server.stop()
        drained = asyncio.Event()
        self._log.drain(drained.set)
        await drained.wait()
        await asyncio.sleep(0)
        for worker in self._workers:
            worker.close()
        self._engine.close()

    def _tick(self) -> None:
        now = time_ns() // 1000
        for runtime in self._runtimes:
            runtime.tick(now)
        self._ticker = self._loop.call_later(TICK, self._tick)

    def _identify(self, now: int) -> int:
        """The epoch of this log: when it began. Seqs of a log that was lost can't be mistaken for those of the next."""
        meta = dict(self._log.rows(META))
        epoch = meta.get("epoch")
        if epoch is None:
            epoch = str(now)
            self._log.open.put(META, ("epoch",), (epoch,))
        self._log.open.put(META, ("node",), (self._settings.node.name,))
        return int(epoch or 0)

    def _runtime(self, definition: Definition) -> Runtime:
        return Runtime(definition, self._log, self._user_code, self._hub, compile_filters)


def _limits(settings: Settings) -> Limits:
    mqtt = settings.mqtt
    return Limits(
        max_connections=mqtt.max_connections,
        max_packet_size=mqtt.max_packet_size,
        receive_maximum=mqtt.receive_maximum,
        max_inflight=mqtt.max_inflight,
        max_keep_alive=mqtt.max_keep_alive,
        topic_alias_maximum=mqtt.topic_alias_maximum,
        max_session_expiry=mqtt.max_session_expiry,
        max_subscriptions=mqtt.max_subscriptions,
        connect_timeout=mqtt.connect_timeout,
        write_buffer=mqtt.write_buffer,
        group_bytes=settings.storage.group_bytes,
        queue_qos0=mqtt.queue_qos0,
    )


def _rules(settings: Settings) -> Callable[[str], int | None] | None:
    rules = [(rule.topic, DURABILITY[rule.durability]) for rule in settings.storage.rules]
    if not rules:
        return None

    def durability(topic: str) -> int | None:
        return next((durability for filter, durability in rules if matches(filter, topic)), None)

    return durability


def _bridge(section: BridgeSection, settings: Settings) -> BridgeSettings:
    return BridgeSettings(
        name=section.name,
        host=section.host,
        port=section.port,
        client_id=section.client_id or f"{settings.node.name}-{section.name}",
        username=section.username,
        password=section.password,
        version=5 if section.version == "5" else 4,
        keep_alive=section.keep_alive,
        window=section.window,
        window_bytes=section.window_bytes,
        backoff_min=section.backoff_min,
        backoff_max=section.backoff_max,
        routes=tuple(
            RouteSettings(r.name, r.topic, r.qos, r.prefix, "beginning" if r.start == "beginning" else "end")
            for r in section.routes
        ),
    )

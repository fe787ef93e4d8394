"""Starts a node from its settings, and stops it: the one place that knows every part.

The start goes in the order in which parts need each other: storage, hub, processors, listener, bridges. The stop
commits and acknowledges what has arrived, then goes back in reverse, and ends when the last group has committed.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from functools import partial
from itertools import islice
from secrets import token_hex
from time import monotonic_ns, time_ns
from typing import TYPE_CHECKING, Final, Self

import uvloop

from berm import __version__, keys, parts, process, readings
from berm.access import AccessError, Guards
from berm.history import History
from berm.keys import RunningKeys
from berm.logs import configure
from berm.settings import Settings
from bridge import BridgeSettings, Uplink
from broker.erasure import forget
from broker.hub import Hub
from broker.mqtt.topic import compile_filters
from broker.net.dialer import Dialer
from broker.net.errors import ListenError
from broker.net.server import TICK, Server
from broker.statistics import Statistics
from processors import LoadError
from processors.runtime import Runtime
from storage.erasure import MARK, Matcher, Request, mark
from storage.guard import Guard, Level
from storage.interface import META, StorageError, StorageFailed
from storage.keysource import KeysError
from storage.log import Log
from storage.sqlite import SQLiteEngine
from storage.worker import ThreadWorker

if TYPE_CHECKING:
    from storage.vault import Vault

_logger = logging.getLogger("berm.node")

START_SECONDS: Final = 3600
"""How long the service manager is to wait for a start."""
PATIENCE: Final = 2.0
"""Seconds that a processor's function may take to return when the node stops."""


class StartError(Exception):
    """The node can't start; the message says what was tried, why it failed and what to do."""


def main(settings: Settings, hints: bool = False) -> int:
    """Run a node until SIGTERM or SIGINT; with `hints`, say what to try next. The process's exit code.

    0: stopped by a signal. 1: it could not start, or the log can't be written any more. 2: a processor file, or one of
    a certificate, of passwords or of rules, is wrong, a listener would let nobody in, or what is encrypted can't be
    opened.
    """
    configure(settings.log.level, settings.log.format)
    process.tune_interpreter()
    process.raise_file_limit(settings.mqtt.max_connections)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(settings, hints))
    except (LoadError, parts.FileError, AccessError, KeysError) as error:
        print(f"berm: {error}", file=sys.stderr)
        return 2
    except (StartError, StorageError) as error:
        print(f"berm: {error}", file=sys.stderr)
        return 1


async def _serve(settings: Settings, hints: bool) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    process.on_stop_signal(loop, stop.set)
    process.notify(f"EXTEND_TIMEOUT_USEC={START_SECONDS * 1_000_000}")  # a damaged database takes a while to be read
    node = Node(settings, loop)
    process.on_reload_signal(loop, node.reload)
    try:
        process.pause_collector()
        await node.start()
        process.tune_collector()
        process.say(_welcome(settings, node, hints))
        process.notify("READY=1")
        code = await node.run(stop)
        process.notify("STOPPING=1")
    finally:
        await node.stop()
    _logger.info("stopped; everything that was acknowledged is in %s", node.database)
    return code


def _welcome(settings: Settings, node: Node, hints: bool) -> list[str]:
    lines = [f"berm: {settings.node.name} listens on {url}" for url in node.urls]
    lines.append(f"berm: the log is {node.database}")
    if hints and not settings.listeners:
        host, port = settings.mqtt.host, node.port
        command = sys.argv[0]
        data = settings.storage.path
        lines += [
            "berm: try, in another terminal:",
            f"  mosquitto_sub -h {host} -p {port} -t 'plant/#' -v",
            f"  mosquitto_pub -h {host} -p {port} -t plant/oven/temperature -q 1 -m '{{\"value\": 214.5}}'",
            f"  {command} status --data {data}",
            f"  {command} replay --data {data} --topic 'plant/#' --from -5m",
            "berm: Ctrl-C stops it",
        ]
    return lines


class Node:
    """A running node, on the loop that is running where none is given: `async with Node(settings) as node`.

    Signals, the interpreter and what is logged are whose process it is; `main` sets them up for one of its own.

    Raises:
        LoadError: a processor file can't be used.
        FileError: a file of a certificate can't be used.
        AccessError: a file of passwords or rules can't be used, or a listener would let nobody in.
        KeysError: the data directory is encrypted, or is to be, and the keys aren't at hand.
        StorageError: the data directory can't be used.
    """

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop | None = None) -> None:
        loop = asyncio.get_running_loop() if loop is None else loop
        self._settings = settings
        self._loop = loop
        definitions = parts.definitions(settings)
        endpoints = parts.endpoints(settings)
        post = loop.call_soon_threadsafe
        self._guards = Guards(post)
        for section, endpoint in zip(parts.listeners(settings), endpoints, strict=True):
            self._guards.guard(section, endpoint.listener, time_ns() // 1000)
        self._vault: Vault | None = None
        self._engine = SQLiteEngine(
            settings.storage.path,
            policy=parts.sealing(settings),
            unlock=self._unlock,
            check_seconds=settings.storage.check_seconds,
            retention=parts.retention(settings, definitions),
        )
        if self._engine.quarantined is not None:
            _logger.error(
                "the database was damaged, is now %s, and the node goes on with what could be read of it, and with "
                "sealed segments",
                self._engine.quarantined,
            )
        self._keys = None if self._vault is None else RunningKeys(self._vault, post)
        self.database = self._engine.path.absolute()
        self._workers = [ThreadWorker(f"berm-{name}", post) for name in ("writer", "reader")]
        self._user_code = ThreadWorker("berm-processors", post)
        writer, reader = self._workers
        self._log = Log(self._engine, writer, reader, settings.storage.memory_bytes)
        self.log: Final = History(self._log, self._engine, reader)
        self._hub = Hub(self._log, parts.limits(settings), loop.call_soon, parts.durability(settings))
        self._guard = Guard(self._engine.reserve, parts.levels(settings), writer, self._ration)
        self._runtimes = [Runtime(each, self._log, self._user_code, self._hub, compile_filters) for each in definitions]
        self._server = Server(self._hub, endpoints)
        if self._engine.eraser is not None:
            self._engine.eraser.prepare = lambda request, matcher: post(partial(self._forget, request, matcher))
        self._dialers: list[Dialer] = []
        self._uplinks: list[Uplink] = []
        self._statistics = self._make_statistics()
        self._ticker: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        await self.stop()

    @property
    def port(self) -> int:
        """Where it listens first."""
        return self._server.port

    @property
    def urls(self) -> list[str]:
        """Where it listens, with the names of the listeners where there are several."""
        acceptors = self._server.acceptors
        if not self._settings.listeners:
            return [acceptor.url for acceptor in acceptors]
        return [f"{acceptor.url} ({acceptor.endpoint.listener.name})" for acceptor in acceptors]

    def _unlock(self) -> Vault | None:
        """What everything in the data directory is encrypted with."""
        self._vault = keys.vault(self._settings, time_ns() // 1000)
        return self._vault

    def reload(self) -> None:
        """Load certificates, passwords and rules anew, and see whether there are new keys."""
        self._server.reload()
        self._guards.reload(self._hub)
        if self._keys is not None:
            self._keys.refresh(time_ns() // 1000)

    async def start(self) -> None:
        """Take up the state of the last run, then listen, then dial.

        Raises:
            StartError: the address can't be listened on.
            StorageError: the state can't be read.
        """
        now = time_ns() // 1000
        epoch = self._identify(now)
        self._guards.make_up_salts_of(self._secret())
        self._hub.restore(now)
        self._guard.start(now)
        for runtime in self._runtimes:
            runtime.start()
        try:
            await self._server.start()
        except ListenError as error:
            raise StartError(f"{error}; {parts.advice(self._settings, error.listener)}") from error
        self._dialers += [self._dialer(parts.bridge(section), epoch) for section in self._settings.bridges]
        for dialer in self._dialers:
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
        """Acknowledge what has arrived, close every connection, and let go of the data directory."""
        if self._ticker is not None:
            self._ticker.cancel()
        await self._settle()
        for dialer in self._dialers:
            dialer.stop()
        await self._server.stop()
        for runtime in self._runtimes:
            runtime.stop()
        drained = asyncio.Event()
        self._log.drain(drained.set)
        await drained.wait()
        for worker in self._workers:
            worker.close()
        self._guards.close()
        if self._keys is not None:
            self._keys.close()
        if not self._user_code.close(PATIENCE):
            _logger.warning("a processor's function does not return; the node stops without it, and calls it again")
        self._engine.close()

    async def _settle(self) -> None:
        """Wait until what has arrived by now is committed and acknowledged, or can't be."""
        upto = self._log.last
        while self._log.committed < upto and self._log.failure is None:  # noqa: ASYNC110 - a commit or two, at the end
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)  # acknowledgements are written in the turn after the commit

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(TICK, self._tick)
        now = time_ns() // 1000
        for runtime in self._runtimes:
            runtime.tick(now)
        self._guard.tick(now)
        self._guards.tick(self._hub, now)
        if self._keys is not None:
            self._keys.tick(now)
        self._statistics.tick(monotonic_ns() // 1000)

    def _forget(self, request: Request, matcher: Matcher, upto: int = 0) -> None:
        """Forget what is to be erased, once all that has come by now is committed, and then say so in the log."""
        log = self._log
        upto = upto or log.last
        if any(event.seq <= upto for event in islice(log.uncommitted(), 1)):
            self._loop.call_later(TICK, self._forget, request, matcher, upto)
            return
        forget(self._hub, matcher.clients, matcher.topic)
        log.forget(matcher.event)
        upto, left = log.committed, len(self._runtimes) + 1

        def forgotten() -> None:
            nonlocal left
            left -= 1
            if not left:
                log.open.put(META, MARK, (mark(request, upto),))
                self._hub.wake()

        for runtime in self._runtimes:
            runtime.forget(matcher.key, forgotten)
        forgotten()

    def _ration(self, level: Level) -> None:
        self._hub.ration(qos0=level >= Level.LOW, all_qos=level is Level.FULL)

    def _identify(self, now: int) -> int:
        """The epoch of this log: when it began. Seqs of a log that was lost can't be mistaken for those of the next."""
        epoch = next((value for name, value in self._log.rows(META) if name == "epoch"), str(now))
        self._log.open.put(META, ("epoch",), (epoch,))
        self._log.open.put(META, ("node",), (self._settings.node.name,))
        return int(str(epoch))

    def _secret(self) -> bytes:
        """What only this node knows, in every run."""
        found = next((str(value) for name, value in self._log.rows(META) if name == "secret"), None) or token_hex(32)
        self._log.open.put(META, ("secret",), (found,))
        return bytes.fromhex(found)

    def _dialer(self, settings: BridgeSettings, epoch: int) -> Dialer:
        node = self._settings.node.name
        report = logging.getLogger("berm.bridge").warning

        def make(wake: Callable[[], None]) -> Uplink:
            uplink = Uplink(settings, self._log, node=node, epoch=epoch, wake=wake, report=report)
            self._uplinks.append(uplink)
            return uplink

        return Dialer(settings.name, settings.host, settings.port, make)

    def _make_statistics(self) -> Statistics:
        node = self._settings.node.name
        return Statistics(
            self._hub,
            __version__,
            self._settings.mqtt.sys_interval,
            monotonic_ns() // 1000,
            [acceptor.endpoint.listener for acceptor in self._server.acceptors],
            (
                readings.memory,
                lambda: readings.disk(self._guard),
                lambda: readings.retention(self._engine),
                lambda: readings.processors(self._runtimes, self._log),
                lambda: readings.bridges(self._uplinks, node),
            ),
        )

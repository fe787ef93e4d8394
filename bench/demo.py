"""What a node is for, in a minute: `python -m bench.demo`.

A hundred devices publish to an edge node, which stores, aggregates and forwards what they say to a cloud broker. The
link to the cloud falls silent, then is gone; the edge node is ended with SIGKILL and started again; the link comes
back. At the end everyone who counted is asked, and the counts must agree.

Devices, node, cloud and link are real: sockets and processes. The devices, the link and those who count live in this
process; the node and the cloud are processes of their own, in a directory that is removed at the end.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
import uvloop
from rich.console import Console

from bench.brokers import BERM, HOST, MOSQUITTO, Broker, BrokerError, Kind, berm_command, free_port
from bench.devices import FILTER, Fleet
from bench.link import Link
from bench.observers import Cloud, Results, Stored, Subscriber
from bench.screen import Count, Screen
from bench.tally import Tally, count, page
from storage.interface import StorageError

PROCESSOR: Final = Path(__file__).with_name("plant.py")
RESULTS: Final = "plant/+/windows"
LOOK_SECONDS: Final = 0.5
"""How often the log's file is read while all runs."""
PATIENCE: Final = 20
"""Longest wait for two counts to meet at the end, in s."""
LIMIT: Final = 110
"""Longest that all of it may take, in s."""
_GLANCE_SECONDS: Final = 0.05
QUIET_SECONDS: Final = 0.5
"""What could still arrive after all has ended would be one message too many: so long it is waited for."""

_EDGE: Final = """\
[node]
name = "edge"

[storage]
path = "data"

[mqtt]
host = "{host}"
port = {port}

[log]
level = "warning"

[[processors]]
file = "plant.py"

[[bridges]]
name = "cloud"
host = "{host}"
port = {link}
keep_alive = 2
backoff_min = 0.2
backoff_max = 1.0

[[bridges.routes]]
name = "telemetry"
topic = "{telemetry}"
start = "beginning"
"""


def _edge(link: int) -> Kind:
    """The edge node, which forwards to the port of the link."""

    def prepare(directory: Path, port: int) -> list[str]:
        shutil.copy(PROCESSOR, directory / "plant.py")
        config = directory / "berm.toml"
        config.write_text(_EDGE.format(host=HOST, port=port, link=link, telemetry=FILTER))
        return berm_command(config)

    return Kind("the edge node", "", prepare, lambda: "")


@dataclass(frozen=True, slots=True)
class Plot:
    """How many devices, how often each measures, and when what happens: in s since the first reading."""

    devices: int
    period: float
    silent: float
    down: float
    kill: float
    up: float
    end: float


FULL: Final = Plot(devices=100, period=0.05, silent=6, down=12, kill=16, up=22, end=30)
SHORT: Final = Plot(devices=100, period=0.2, silent=1, down=2, kill=2.5, up=4, end=5)


def main(short: Annotated[bool, typer.Option(help="The same in ten seconds.")] = False) -> None:
    """A hundred devices, an outage of the link to the cloud, a SIGKILL of the node, and a ledger."""
    console = Console()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            tally = runner.run(_interruptible(demonstrate(SHORT if short else FULL, console)))
    except BrokerError as error:
        console.print(error, style="red", markup=False)
        raise typer.Exit(1) from None
    except TimeoutError:
        console.print(f"not done after {LIMIT} s; everything that was started has ended", style="red")
        raise typer.Exit(1) from None
    except asyncio.CancelledError:
        console.print("stopped; everything that was started has ended")
        raise typer.Exit(130) from None
    console.print(page(tally))
    raise typer.Exit(0 if tally.holds else 1)


async def _interruptible(work: Coroutine[None, None, Tally]) -> Tally:
    """Do the work; Ctrl-C, SIGTERM and a closed terminal cancel it, so that everything it has started is ended."""
    task = asyncio.ensure_future(work)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await task


async def demonstrate(plot: Plot, console: Console) -> Tally:
    """Let it all happen, and count.

    Raises:
        BrokerError: a broker doesn't start.
        TimeoutError: it is not done after LIMIT.
    """
    async with asyncio.timeout(LIMIT), AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="berm-demo-")))
        stage = Stage(plot, directory, stack, console)
        await stage.build()
        await stage.play()
        await stage.settle()
        return await stage.close()


class Stage:
    """Everyone who takes part."""

    def __init__(self, plot: Plot, directory: Path, stack: AsyncExitStack, console: Console) -> None:
        self._plot = plot
        self._directory = directory
        self._stack = stack
        self._port = free_port()
        self._cloud_port = free_port()
        self._edge: Broker | None = None
        self._link = Link(self._cloud_port)
        self._fleet = Fleet(plot.devices, self._port, plot.period)
        self._stored = Stored(directory / "edge" / "data", FILTER)
        self._results = Results()
        self._cloud = Cloud()
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._screen = Screen(console, self._counts)

    async def build(self) -> None:
        """Start the cloud, the link, the node, and those who count.

        Raises:
            BrokerError: a broker doesn't start.
        """
        self._stack.enter_context(self._screen)
        self._stack.push_async_callback(self._cancel)
        kind = BERM if MOSQUITTO.missing() else MOSQUITTO
        await self._start(kind, "cloud", self._cloud_port)
        await self._link.up()
        self._stack.push_async_callback(self._link.down)
        self._screen.say(f"the cloud is {kind.name}, and the link to it is up")
        await self._start_edge()
        for subscriber in (
            Subscriber("results", RESULTS, self._port, self._results.take),
            Subscriber("warehouse", FILTER, self._cloud_port, self._cloud.take),
        ):
            self._spawn(subscriber.run())
            await subscriber.subscribed.wait()
        self._spawn(self._look())

    async def play(self) -> None:
        """Everything that happens, at its time.

        Raises:
            BrokerError: the node doesn't start again.
        """
        plot, say = self._plot, self._screen.say
        began = asyncio.get_running_loop().time()

        async def until(seconds: float) -> None:
            await asyncio.sleep(began + seconds - asyncio.get_running_loop().time())

        for device in self._fleet.devices:
            self._spawn(device.talk())
            self._spawn(device.measure(self._stop))
        say(f"{plot.devices} devices publish, each {1 / plot.period:g} readings a second")
        await until(plot.silent)
        await self._link.silence()
        say("the link to the cloud falls silent: open, but nothing gets through", "yellow")
        await until(plot.down)
        await self._link.down()
        say("the link is down: connections are closed and refused", "red")
        await until(plot.kill)
        assert self._edge is not None
        pid = self._edge.pid
        self._edge.kill()
        self._edge = None
        say(f"kill -9 {pid}: the edge node is gone", "bold red")
        await self._start_edge()
        await until(plot.up)
        await self._link.up()
        say("the link is up again", "green")
        await until(plot.end)
        self._stop.set()
        say("the devices take no more readings, and send what they still owe")

    async def settle(self) -> None:
        """Wait until nothing is owed and all counts meet, as long as that may take."""
        await self._wait(lambda: not self._fleet.owed, "every reading is acknowledged")
        await asyncio.to_thread(self._stored.read)
        stored = len(self._stored.readings)
        await self._wait(lambda: self._results.aggregated >= stored, "every stored event is in a window that is over")
        await self._wait(lambda: len(self._cloud.readings) >= stored, "every stored event is at the cloud")

    async def close(self) -> Tally:
        """End the node in order, and count."""
        assert self._edge is not None
        code = await asyncio.to_thread(self._edge.stop)
        self._edge = None
        await asyncio.sleep(QUIET_SECONDS)
        final = Stored(self._stored.directory, FILTER)
        await asyncio.to_thread(final.read)
        self._screen.say("the edge node has ended, and its log is read from the beginning")
        return count(self._fleet, final, self._results, self._cloud, code)

    async def _start_edge(self) -> None:
        self._edge = await self._start(_edge(self._link.port), "edge", self._port)
        self._screen.say(f"the edge node runs (pid {self._edge.pid})")

    async def _start(self, kind: Kind, name: str, port: int) -> Broker:
        broker = kind.spawn(self._directory / name, port)
        self._stack.callback(broker.stop)
        await asyncio.to_thread(broker.wait)
        return broker

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    async def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _look(self) -> None:
        """Read the log's file now and then, beside the node."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            with suppress(StorageError):  # while the node starts; what is counted in the end is read in the end
                await asyncio.to_thread(self._stored.read)

    async def _wait(self, met: Callable[[], bool], words: str) -> None:
        """Wait until `met`, and say so; the counts change in many places, so they are looked at."""
        for _ in range(round(PATIENCE / _GLANCE_SECONDS)):
            if met():
                self._screen.say(words)
                return
            await asyncio.sleep(_GLANCE_SECONDS)
        self._screen.say(f"not after {PATIENCE} s: {words}", "red")

    def _counts(self) -> list[Count]:
        fleet, stored, forwarded = self._fleet, len(self._stored.readings), len(self._cloud.readings)
        return [
            ("devices", f"{fleet.connected}"),
            ("edge", "up" if self._edge else "down"),
            ("link", self._link.state.value),
            ("published", f"{fleet.published:,}"),
            ("acknowledged", f"{fleet.acknowledged:,}"),
            ("stored", f"{stored:,}"),
            ("aggregated", f"{self._results.aggregated:,}"),
            ("forwarded", f"{forwarded:,}"),
            ("duplicates", f"{self._cloud.duplicates:,}"),
        ]


if __name__ == "__main__":
    typer.run(main)

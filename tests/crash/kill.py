"""Kills a node with SIGKILL at random moments under load, and then proves that nothing acknowledged is lost.

    python -m tests.crash.kill --rounds 100

Five publishers (MQTT 3.1, 3.1.1 and 5; QoS 1 and 2) never stop. Six persistent sessions subscribe: two are there
throughout, two come and go, two are away until the end. A filter and a window aggregate run in the node, and a bridge
forwards everything to mosquitto, or to a second node where there is none. Each round starts the node on the data that
the last one left, and kills it: mostly under load, sometimes while it starts.

In the end the load stops, what is open is completed, and the ledger is printed. Exit code 1 on any loss.

With `--power` each kill is a power cut: the next start finds a disk that has lost what was not synced (see `disk.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from tests.crash import power
from tests.crash.client import HOT, LOAD, STATS, Client, Cloud, Publisher, Subscriber
from tests.crash.ledger import Entry, account
from tests.crash.power import Power
from tests.node import BERM, MOSQUITTO, Node, mosquitto

ROOT: Final = Path(__file__).parents[2]

PLANT: Final = Path(__file__).with_name("plant.py")
PATIENCE: Final = 60.0
"""Seconds in which everything must have arrived once the load has stopped."""
_TURN: Final = 0.01
_START_SECONDS: Final = 0.6
"""How long a start takes, until one has been measured."""
_SHORTEST: Final = 0.1
"""The part of a round's time that it takes at least."""
_BURST_SECONDS: Final = 0.01
"""The longest time from the begin of a burst to the kill."""
_EARLY: Final = 0.3
"""The part of the kills that hits a node while it starts."""

# Little is held in memory, so that readers fall behind and read from the disk; segments are small, so that kills hit
# the writing of one, and the deletion of what is in it.
_CONFIG: Final = """\
[storage]
path = "data"
memory_bytes = 1_048_576
segment_bytes = 131_072
[mqtt]
write_buffer = 32_768
[[processors]]
file = "{plant}"
[[bridges]]
name = "cloud"
host = "127.0.0.1"
port = {port}
backoff_min = 0.05
backoff_max = 0.5
routes = [{{ name = "load", topic = "load/#", start = "beginning" }}]
"""


@dataclass(frozen=True, slots=True)
class Options:
    """A run. `rate` is in messages a second, of all publishers together."""

    rounds: int
    seed: int
    seconds_per_round: float = 1.5
    rate: float = 1500.0
    command: Sequence[str] = BERM
    library: Path | None = None
    """What `power.build` gives, where each kill is to be a power cut."""


@dataclass(slots=True)
class Tally:
    """What the kills hit."""

    kills: int = 0
    early: int = 0
    """While it started."""
    under_way: int = 0
    """Messages that were not acknowledged at the moment of a kill."""


class Run:
    """A node, and everyone around it."""

    def __init__(self, directory: Path, options: Options, cloud_port: int) -> None:
        self.options = options
        self.tally = Tally()
        self._power: Power | None = None
        command = options.command
        if options.library is not None:
            place = directory.resolve()
            # Names last by syncing their directory only: POSIX promises no more.
            self._power = Power(options.library, place / "data", place / "base", place / "journal", ordered_names=False)
            self._power.begin()
            command = self._power.watched(command)
        self.node = Node(directory, _CONFIG.format(plant=PLANT, port=cloud_port), command=command)
        self._random = Random(options.seed)
        self._port = 0
        self._start_seconds = _START_SECONDS
        port = self._listens
        self.publishers = [
            Publisher("one-31", 3, 1, port),
            Publisher("one-311", 4, 1, port, retain=True),
            Publisher("one-5", 5, 1, port, window=200),
            Publisher("two-311", 4, 2, port),
            Publisher("two-5", 5, 2, port, retain=True),
        ]
        self.steady = [
            Subscriber("steady-one", 4, 1, port, [f"{LOAD}#", f"{STATS}#"]),
            Subscriber("steady-two", 5, 2, port, [f"{LOAD}#", f"{HOT}#"]),
        ]
        self.restless = [
            Subscriber("restless-one", 5, 1, port, [f"{LOAD}+", f"{HOT}#"]),
            Subscriber("restless-two", 4, 2, port, [f"{LOAD}+"]),
        ]
        self.absent = [
            Subscriber("absent-one", 3, 1, port, [f"{LOAD}#"]),
            Subscriber("absent-two", 5, 2, port, [f"{LOAD}#", f"{HOT}#"]),
        ]
        self.subscribers = [*self.steady, *self.restless, *self.absent]
        self.cloud = Cloud(lambda: cloud_port)
        self._clients: list[Client] = [*self.publishers, *self.subscribers, self.cloud]

    def _listens(self) -> int:
        return self._port

    async def run(self, progress: Callable[[str], None]) -> list[Entry]:
        """All rounds, the end, and the account."""
        tasks: list[asyncio.Task[None]] = []
        try:
            tasks += [asyncio.create_task(client.run()) for client in self._clients]
            await self._begin()
            load = asyncio.create_task(self._load())
            tasks.append(load)
            for number in range(1, self.options.rounds + 1):
                await self._round()
                if number % 10 == 0 or number == self.options.rounds:
                    progress(self._where(number))
            load.cancel()
            await self._complete()
            code = await asyncio.to_thread(self.node.stop)
            entries = account(self.node.data, self.publishers, self.subscribers, self.cloud)
            return [self._node_entry(code), *entries]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.node.kill()

    async def _begin(self) -> None:
        """Everyone who is to get everything subscribes before there is anything."""
        await self._start()
        async with asyncio.timeout(PATIENCE):
            for subscriber in (*self.subscribers, self.cloud):
                await subscriber.subscribed.wait()
        for subscriber in self.absent:
            subscriber.leave()

    async def _start(self) -> None:
        before = time.monotonic()
        self.node.spawn()
        await asyncio.to_thread(self.node.wait)
        self._start_seconds = time.monotonic() - before
        self._port = self.node.port

    async def _round(self) -> None:
        """The node runs when a round begins; it is killed, perhaps again while it starts, and runs when it ends."""
        seconds = self.options.seconds_per_round * self._random.uniform(_SHORTEST, 1)
        moving = self._random.choice(self.restless)
        await asyncio.sleep(seconds / 2)
        if moving.connected:
            moving.leave(politely=self._random.random() < 0.5)
        else:
            moving.back()
        await asyncio.sleep(seconds / 2)
        for publisher in self.publishers:  # a kill shows most in the middle of a burst
            publisher.publish(publisher.window)
        await asyncio.sleep(_BURST_SECONDS * self._random.random())
        self.tally.under_way += sum(publisher.owed for publisher in self.publishers)
        await self._kill()
        if self._random.random() < _EARLY:
            self.node.spawn()
            await asyncio.sleep(self._start_seconds * self._random.random())
            self.tally.early += 1
            await self._kill()
        await self._start()

    async def _kill(self) -> None:
        self.tally.kills += 1
        assert self.node.running, f"the node has ended by itself: {self.node.stderr[-2000:]}"
        await asyncio.to_thread(self.node.kill)
        self._port = 0
        if self._power is not None:
            await asyncio.to_thread(self._power.cut, f"{self.options.seed}-{self.tally.kills}")

    async def _load(self) -> None:
        """Publish at the rate, whoever is connected."""
        each = self.options.rate / len(self.publishers)
        owed = 0.0
        last = time.monotonic()
        while True:
            await asyncio.sleep(_TURN)
            now = time.monotonic()
            owed = min(owed + each * (now - last), each)
            last = now
            for publisher in self.publishers:
                if publisher.connected:
                    publisher.publish(int(owed))
            owed -= int(owed)

    async def _complete(self) -> None:
        """Finish every handshake, publish a last message each, and wait until that has arrived everywhere."""
        for subscriber in self.subscribers:
            subscriber.back()
        await self._wait(self._idle)
        for publisher in self.publishers:
            publisher.publish(1)
        await self._wait(self._idle)
        last = {publisher.topic: publisher.sent for publisher in self.publishers}
        receivers = (*self.subscribers, self.cloud)
        await self._wait(
            lambda: all(each.received[topic][-1:] == array("q", [n]) for each in receivers for topic, n in last.items())
        )
        windows = self.steady[0].windows
        closed = {(topic.removeprefix(LOAD), number) for topic, number in last.items()}
        await self._wait(lambda: closed <= {(window.key, window.last) for window in windows[-100:]})

    def _idle(self) -> bool:
        return all(publisher.connected and not publisher.owed for publisher in self.publishers)

    async def _wait(self, holds: Callable[[], bool]) -> None:
        """Wait until it holds, or until it won't: then the ledger says what is missing."""
        deadline = time.monotonic() + PATIENCE
        while not holds() and time.monotonic() < deadline:  # noqa: ASYNC110 - it has many causes
            await asyncio.sleep(_TURN)

    def _where(self, number: int) -> str:
        acknowledged = sum(len(publisher.acknowledged) for publisher in self.publishers)
        received = sum(sum(map(len, subscriber.received.values())) for subscriber in self.subscribers)
        return (
            f"round {number} of {self.options.rounds}: {self.tally.kills} kills, {acknowledged:,} acknowledged, "
            f"{received:,} delivered, {self.cloud.ledger.received:,} in the cloud"
        )

    def _node_entry(self, code: int) -> Entry:
        log = self.node.stderr
        faults = [f"it ended with {code}"] * (code != 0)
        faults += [line for line in log.splitlines() if "Traceback" in line or "damaged" in line or "CRITICAL" in line]
        tally = self.tally
        segments = len(list(self.node.data.glob("segments/*.segment")))
        what = "kills" if self._power is None else "power cuts"
        return Entry(
            "the node starts on whatever is left",
            f"{tally.kills} {what}, {tally.early} of them during the start, "
            f"{tally.under_way:,} messages under way; {segments} segments",
            faults,
        )


def sabotaged(*names: str) -> tuple[str, ...]:
    """The command of a node that breaks its promises in these ways."""
    # Not by `-m`: elsewhere than in the checkout, `tests` may be what some installed package brings under that name.
    start = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.crash.sabotage import main; main(sys.argv.pop(1))"
    )
    return (sys.executable, "-c", start, ",".join(names))


@contextmanager
def _cloud(directory: Path) -> Iterator[int]:
    """mosquitto, or a second node where there is none; the port."""
    if MOSQUITTO is not None:
        with mosquitto(directory) as port:
            yield port
    else:
        with Node(directory / "cloud", name="cloud") as node:
            yield node.port


def run(directory: Path, options: Options, progress: Callable[[str], None]) -> list[Entry]:
    """One run in an empty directory; its ledger."""
    with _cloud(directory) as port:
        return asyncio.run(Run(directory / "edge", options, port).run(progress))


def main() -> int:
    """The command line; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.kill", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=100, help="kills under load (default: 100)")
    parser.add_argument(
        "--seed", type=int, default=None, help="of what is random here; the machine's own timing is not"
    )
    parser.add_argument("--seconds-per-round", type=float, default=1.5, help="longest time from start to kill")
    parser.add_argument("--rate", type=float, default=1500.0, help="messages a second")
    parser.add_argument("--power", action="store_true", help="let the power fail with each kill")
    parser.add_argument("--sabotage", metavar="WHAT", help="have the node lose things (see sabotage.py): exit code 1")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else Random().randrange(1 << 32)
    command = BERM if arguments.sabotage is None else sabotaged(arguments.sabotage)
    if arguments.power and (reason := power.missing()):
        parser.error(reason)
    print(f"{arguments.rounds} rounds, --seed {seed}, the cloud is {MOSQUITTO or 'a second node'}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="berm-crash-") as directory:
        library = power.build(Path(directory)) if arguments.power else None
        options = Options(
            arguments.rounds, seed, arguments.seconds_per_round, arguments.rate, command=command, library=library
        )
        entries = run(Path(directory), options, lambda line: print(line, flush=True))
    print(*entries, sep="\n")
    broken = [entry for entry in entries if entry.faults]
    verdict = f"LOSS: {len(broken)} of {len(entries)} promises are broken" if broken else "nothing is lost"
    print(f"{verdict}; {time.monotonic() - began:.0f} s")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

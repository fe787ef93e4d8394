"""One broker, its clients, and rounds of load, death and recovery.

Four publishers (MQTT 3.1.1, two at QoS 1 and two at QoS 2) send numbered messages. A subscriber with a session is there
throughout, another one is away while the load runs. A round is: load, a burst, SIGKILL in the middle of it (sometimes a
second one while the broker starts again), start, publishers send again what was not acknowledged, and both subscribers
are given what they have missed. With a `Power`, the disk that the broker finds after a kill is the one that is left by
a power cut.

Lost is what was acknowledged (PUBACK, PUBREC) and never reached a subscriber whose session was to get it.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Final

from bench.brokers import Broker, BrokerError, Kind
from broker.mqtt.packets import Publish
from tests.crash.client import LOAD, Publisher, Subscriber
from tests.crash.peers import DATA, USER
from tests.crash.power import Power

_TURN: Final = 0.01
_LOOK: Final = 0.05
"""Seconds between two looks at whether all has arrived."""
_EARLY: Final = 0.3
"""The part of the rounds in which the broker is killed again while it starts."""
_START_SECONDS: Final = 0.6
"""How long a start takes, until one has been measured."""
_BURST_SECONDS: Final = 0.01
"""The longest time from the begin of a burst to the kill."""
_SHORTEST: Final = 0.1
"""The part of a round's time that it takes at least."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What an activity that runs beside the load may know. `port` is where the broker listens at the moment."""

    port: int
    data: Path
    random: Random


Activity = Callable[[Scene], Awaitable[None]]
"""Something that goes on beside the load until the kill, which cancels it. It must leave topics below `load/` alone."""


async def restless(scene: Scene) -> None:
    """A client whose session is made and left, again and again."""
    for number in range(1_000_000):
        client = Subscriber(f"restless-{number % 20}", 4, 2, lambda: scene.port, [f"{LOAD}#"])
        client.username = USER
        task = asyncio.create_task(client.run())
        try:
            await asyncio.sleep(0.2 * scene.random.random())
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


ACTIVITIES: Final[dict[str, Activity]] = {each.__name__: each for each in (restless,)}
"""By name."""


@dataclass(frozen=True, slots=True)
class Options:
    """A run. `rate` is in messages a second, of all publishers together."""

    seed: int
    seconds: float = 1.0
    """The longest time from a start to the kill."""
    rate: float = 600.0
    patience: float = 5.0
    """Seconds without anything new after which nothing more is expected."""
    activities: Sequence[Activity] = ()
    keep: Path | None = None
    """Where to keep the disk and the journal of a power cut after which something was lost."""


@dataclass(slots=True)
class Result:
    """What became of one broker."""

    name: str
    what: str
    rounds: int = 0
    kills: int = 0
    acknowledged: int = 0
    lost: int = 0
    """Acknowledged, and some subscriber never got it."""
    lost_present: int = 0
    """The one that was there never got it."""
    lost_absent: int = 0
    """The one that was away never got it."""
    twice: int = 0
    """QoS 2 messages that a subscriber was given more than once."""
    sessions: int = 0
    """How often a client was told that its session is gone, with something in it: subscriptions, or identifiers."""
    unstarted: int = 0
    """How often the broker did not start on what was left."""
    ended: int = 0
    """How often it ended by itself."""
    notes: list[str] = field(default_factory=list)
    """In which rounds something was lost, and how."""

    @property
    def sound(self) -> bool:
        """Whether nothing was lost, nothing came twice, and it always started."""
        return not (self.lost or self.twice or self.sessions or self.unstarted or self.ended or self.notes)

    def __str__(self) -> str:
        return f"{self.name}, {self.what}: acknowledged {self.acknowledged:,}, lost {self.lost:,}"


class Device(Publisher):
    """A publisher that takes a lost session for what it is, and goes on."""

    def __init__(self, name: str, qos: int, port: Callable[[], int]) -> None:
        super().__init__(name, 4, qos, port)
        self.lost_sessions = 0

    def _begin(self, session_present: bool) -> None:
        if not session_present and self.qos == 2 and self.acknowledged:  # at QoS 1 there is nothing in it
            self.lost_sessions += 1
        super()._begin(session_present)


class Inbox(Subscriber):
    """A subscriber that subscribes again where its session was lost."""

    def __init__(self, name: str, port: Callable[[], int]) -> None:
        super().__init__(name, 4, 2, port, [f"{LOAD}#"])
        self.lost_sessions = 0
        self.has: defaultdict[str, set[int]] = defaultdict(set)
        """What it has received, by topic."""

    def _take(self, packet: Publish) -> None:
        super()._take(packet)
        self.has[packet.topic].add(self.received[packet.topic][-1])

    def _begin(self, session_present: bool) -> None:
        if self.subscribed.is_set() and not session_present:
            self.lost_sessions += 1
            self.subscribed.clear()
        super()._begin(session_present)


class Bench:
    """One broker in an empty directory, and its clients.

    With `rig` each kill is a power cut; `politely` it is asked to end instead, once and not while it starts.
    """

    def __init__(
        self, kind: Kind, directory: Path, options: Options, rig: Power | None = None, politely: bool = False
    ) -> None:
        self.kind = kind if rig is None else replace(kind, prepare=lambda at, port: rig.watched(kind.prepare(at, port)))
        self.directory = directory
        self.options = options
        self.rig = rig
        self._politely = politely
        self.result = Result(kind.name, "clean stop" if politely else "SIGKILL" if rig is None else "power cut")
        self._random = Random(f"{options.seed} {kind.name} {self.result.what}")
        self._broker: Broker | None = None
        self._start_seconds = _START_SECONDS
        self._cuts: list[str] = []
        """Seeds of the power cuts of this round."""
        port = self._port
        self.devices = [
            Device("one-a", 1, port),
            Device("one-b", 1, port),
            Device("two-a", 2, port),
            Device("two-b", 2, port),
        ]
        self.present = Inbox("present", port)
        self.absent = Inbox("absent", port)
        self.inboxes = [self.present, self.absent]
        for client in (*self.devices, *self.inboxes):
            client.username = USER

    def _port(self) -> int:
        return 0 if self._broker is None else self._broker.port

    async def run(self, rounds: int) -> Result:
        """So many rounds.

        Raises:
            BrokerError: it does not start in an empty directory.

        """
        async with self._everyone():
            for number in range(1, rounds + 1):
                await self._round(number)
            return self._account()

    async def end(self) -> list[str]:
        """Some load and a clean end; files that the layer did not see as they are.

        Raises:
            BrokerError: it does not start in an empty directory.
            StrangeError: it writes in a way that the layer can't follow.
        """
        assert self.rig is not None
        async with self._everyone() as broker:
            await self._load(self.options.seconds)
            await asyncio.to_thread(broker.stop)
        return self.rig.differences()

    @asynccontextmanager
    async def _everyone(self) -> AsyncIterator[Broker]:
        """The broker runs, and everyone is there but the absent one."""
        if self.rig is not None:
            self.rig.begin()
        broker = await self._start()
        tasks = [asyncio.create_task(client.run()) for client in (*self.devices, *self.inboxes)]
        try:
            await self._until(lambda: all(inbox.subscribed.is_set() for inbox in self.inboxes))
            self.absent.leave()
            yield broker
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._broker is not None:
                self._broker.kill()

    async def _round(self, number: int) -> None:
        """The broker runs when a round begins and when it ends."""
        missing = self._missing()
        await self._load(self.options.seconds * self._random.uniform(_SHORTEST, 1))
        self._cuts.clear()
        await self._kill()
        if not self._politely and self._random.random() < _EARLY:
            self._broker = self.kind.spawn(self.directory)
            await asyncio.sleep(self._start_seconds * self._random.random())
            await self._kill(early=True)
        if not await self._restart():
            self.result.notes.append(f"round {number}: it did not start {self._where(number)}")
        self.absent.back()
        await self._until(self._settled)
        if lost := self._missing() - missing:
            self.result.notes.append(f"round {number}: {len(lost)} lost: {_examples(lost)} {self._where(number)}")
        self.absent.leave()
        self.result.rounds += 1

    def _where(self, number: int) -> str:
        """How to look at it again."""
        if self.rig is None:
            return ""
        if self.options.keep is not None:
            kept = self.options.keep / f"{self.kind.name}-{number}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(self.directory / "cuts", kept)
            return f"(kept in {kept}; power cuts {', '.join(self._cuts)})"
        return f"(power cuts {', '.join(self._cuts)}; --keep DIR would keep the disks)"

    async def _load(self, seconds: float) -> None:
        """Publish at the rate, with the activities beside it; in the end a burst, which the kill is to hit."""
        assert self._broker is not None
        scene = Scene(self._broker.port, self.directory / DATA, self._random)
        beside = [asyncio.ensure_future(activity(scene)) for activity in self.options.activities]
        each = self.options.rate / len(self.devices)
        begun, sent = time.monotonic(), 0
        while (elapsed := time.monotonic() - begun) < seconds:
            due = int(each * elapsed)
            for device in self.devices:
                if device.connected:
                    device.publish(due - sent)
            sent = due
            await asyncio.sleep(_TURN)
        for device in self.devices:
            if device.connected:
                device.publish(device.window)
        await asyncio.sleep(_BURST_SECONDS * self._random.random())
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)

    async def _kill(self, early: bool = False) -> None:
        broker = self._broker
        assert broker is not None
        if broker.process.poll() is not None:
            self.result.ended += 1
            self.result.notes.append(f"round {self.result.rounds + 1}: it ended by itself with {broker.process.poll()}")
        await asyncio.to_thread(broker.stop if self._politely else broker.kill)
        self._broker = None
        self.result.kills += 1
        if self.rig is not None:
            seed = f"{self.options.seed}-{self.kind.name}-{self.result.kills}"
            self._cuts.append(seed)
            await asyncio.to_thread(self._cut, seed, early)

    def _cut(self, seed: str, early: bool) -> None:
        assert self.rig is not None
        cuts = self.directory / "cuts"
        if self.options.keep is not None:
            if not early:
                shutil.rmtree(cuts, ignore_errors=True)
            shutil.copytree(self.rig.base, cuts / seed / "base")
            shutil.copyfile(self.rig.journal, cuts / seed / "journal") if self.rig.journal.exists() else None
        self.rig.cut(seed)

    async def _start(self) -> Broker:
        begun = time.monotonic()
        broker = self.kind.spawn(self.directory)
        try:
            await asyncio.to_thread(broker.wait)
        except BrokerError:
            await asyncio.to_thread(broker.kill)
            raise
        self._start_seconds = time.monotonic() - begun
        self._broker = broker
        return broker

    async def _restart(self) -> bool:
        """Start it on what is left; False: it can't, and begins anew in an empty directory, as its operator would."""
        try:
            await self._start()
        except BrokerError as error:
            self.result.unstarted += 1
            self.result.notes.append(str(error))
            shutil.rmtree(self.directory / DATA)
            if self.rig is not None:
                self.rig.begin()
            await self._start()
            return False
        return True

    def _settled(self) -> bool:
        devices = all(device.connected and not device.owed for device in self.devices)
        return devices and all(inbox.subscribed.is_set() for inbox in self.inboxes) and not self._missing()

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Wait until it holds, or until nothing has happened for some time."""
        seen, since = -1, time.monotonic()
        while not holds() and time.monotonic() < since + self.options.patience:
            now = self._progress()
            if now != seen:
                seen, since = now, time.monotonic()
            await asyncio.sleep(_LOOK)

    def _progress(self) -> int:
        """A number that grows with each thing that a client is told."""
        received = sum(sum(map(len, inbox.received.values())) for inbox in self.inboxes)
        return received + sum(len(device.acknowledged) - device.owed for device in self.devices)

    def _missing(self) -> set[tuple[str, int]]:
        """What was acknowledged and did not reach a subscriber: topics and numbers."""
        return set[tuple[str, int]]().union(*map(self._missing_of, self.inboxes))

    def _missing_of(self, inbox: Inbox) -> set[tuple[str, int]]:
        return {
            (device.topic, number)
            for device in self.devices
            for number in device.acknowledged - inbox.has[device.topic]
        }

    def _account(self) -> Result:
        result = self.result
        result.acknowledged = sum(len(device.acknowledged) for device in self.devices)
        result.lost = len(self._missing())
        result.lost_present, result.lost_absent = (len(self._missing_of(inbox)) for inbox in self.inboxes)
        result.sessions = sum(each.lost_sessions for each in self.devices) + sum(
            each.lost_sessions for each in self.inboxes
        )
        result.twice = sum(
            times > 1
            for device in self.devices
            if device.qos == 2
            for inbox in self.inboxes
            for times in Counter(inbox.received[device.topic]).values()
        )
        damaged = sorted(path.name for path in (self.directory / DATA).glob("*.damaged-*"))
        result.notes += [f"set aside: {name}" for name in damaged]
        return result


def _examples(lost: set[tuple[str, int]], shown: int = 3) -> str:
    first = ", ".join(f"{topic.removeprefix(LOAD)} {number}" for topic, number in sorted(lost)[:shown])
    return first + (", ..." if len(lost) > shown else "")

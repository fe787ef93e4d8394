"""A node without a socket, a thread or a clock: the real log and hub, an engine that a crash leaves, turns by hand."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

import orjson

from broker.hub import Hub
from broker.listener import Limits
from broker.mqtt.topic import compile_filters
from processors import Definition, Event, Processors
from processors import aggregates as agg
from processors.runtime import Runtime
from storage.interface import CURSORS, FSYNC, STATE, Engine, Row, StorageFull, Table
from storage.interface import Event as Stored
from storage.log import Log
from storage.memory import MemoryEngine

SECOND = 1_000_000
START = 1_700_000_000 * SECOND - 1_700_000_000 * SECOND % (3600 * SECOND)
"""A full hour, so that windows of any size begin here."""


class FullDisk(MemoryEngine):
    """Refuses while it is told to, and counts the commits that it took."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False
        self.commits = 0

    def commit(self, events: Sequence[Stored], state: dict[Table, dict[Row, Row | None]], sync: bool) -> None:
        if self.full:
            raise StorageFull("cannot write to the test's disk: it is full; make room")
        super().commit(events, state, sync)
        self.commits += 1


class Turns:
    """A worker that works when it is told to."""

    def __init__(self) -> None:
        self.queue: deque[tuple[Callable[[], object], Callable[[object, BaseException | None], None]]] = deque()

    def submit(
        self,
        work: Callable[[], object],
        done: Callable[[object, BaseException | None], None],
        after: Callable[[], object] | None = None,
    ) -> None:
        self.queue.append((work, done))

    def run_one(self) -> bool:
        if not self.queue:
            return False
        work, done = self.queue.popleft()
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - as the real worker does
            done(None, error)
        else:
            done(result, None)
        return True

    def lose_one(self) -> None:
        """Do the work, but nobody hears of it: the node died in between."""
        if self.queue:
            self.queue.popleft()[0]()

    def close(self) -> None:
        while self.run_one():
            pass


class Rig:
    """A node in miniature. `crash` takes everything but the engine; `now` moves when a test moves it."""

    def __init__(self, *definitions: Definition, memory_bytes: int = 1 << 24, engine: Engine | None = None) -> None:
        self.definitions = definitions
        self.disk = FullDisk()
        self.engine = engine or self.disk
        self.now = START
        self._memory_bytes = memory_bytes
        self.start()

    def start(self, *definitions: Definition) -> None:
        if definitions:
            self.definitions = definitions
        self.writer, self.user_code = Turns(), Turns()
        self._scheduled: deque[Callable[[], None]] = deque()
        self.log = Log(self.engine, self.writer, self.writer, self._memory_bytes)
        self.hub = Hub(self.log, Limits(), self._scheduled.append)
        self.hub.restore(self.now)
        self.runtimes = [
            Runtime(each, self.log, self.user_code, self.hub, compile_filters) for each in self.definitions
        ]
        for runtime in self.runtimes:
            runtime.start()

    def crash(self) -> None:
        """The process is gone, and what has not been committed with it."""
        self.start()

    def stop(self) -> None:
        """A clean stop: what the loop still holds is committed."""
        for runtime in self.runtimes:
            runtime.stop()
        self.log.drain(lambda: None)
        self.settle()

    def publish(self, topic: str, payload: object, durability: int = FSYNC, client: str = "dev", qos: int = 1) -> None:
        data = payload if isinstance(payload, bytes) else orjson.dumps(payload)
        self.log.append(self.now, topic, data, qos, False, client, b"", 0, durability)
        self.log.flush()

    def turn(self) -> bool:
        """One turn of the loop."""
        if not self._scheduled:
            return False
        self._scheduled.popleft()()
        return True

    def settle(self) -> None:
        """Everything that happens by itself while the clock stands."""
        while self.turn() or self.writer.run_one() or self.user_code.run_one():
            pass

    def tick(self, seconds: float = 0.0) -> None:
        """Move the clock, and let happen what comes of it."""
        self.pass_time(seconds)
        self.settle()

    def pass_time(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)
        self.hub.tick(self.now)
        for runtime in self.runtimes:
            runtime.tick(self.now)

    def events(self, prefix: str = "") -> list[Stored]:
        """What the disk holds."""
        found, _ = self.engine.read(0, self.log.committed, 100_000, lambda topic: topic.startswith(prefix))
        return found

    def outputs(self, name: str = "") -> list[tuple[str, object]]:
        """What processors published: topics, and payloads as JSON."""
        client = f"$processor/{name}"
        return [(e.topic, orjson.loads(e.payload)) for e in self.events() if e.client.startswith(client)]

    def kept_position(self, name: str) -> int | None:
        for row in self.engine.rows(CURSORS):
            if row[0] == f"processor/{name}":
                assert isinstance(row[1], int)
                return row[1]
        return None

    def kept_state(self) -> list[Row]:
        return self.engine.rows(STATE)


def stored(topic: str, payload: object, seconds: float = 0.0, seq: int = 1, client: str = "dev") -> Stored:
    """An event for a pure operator."""
    data = payload if isinstance(payload, bytes) else orjson.dumps(payload)
    return Stored(seq, START + round(seconds * SECOND), topic, data, 1, False, client, b"", 0, FSYNC)


def value(event: Event) -> float:
    return event.number()


def counting(seconds: float = 60, name: str = "per_minute") -> Definition:
    """Count and sum per topic and window."""
    made = Processors()
    made.tumbling("t/#", agg.count, agg.sum, seconds=seconds, to="stats/{key}", name=name)(value)
    return made.definitions[0]


def results(outputs: Iterable[tuple[str, object]]) -> list[tuple[str, float, int, float]]:
    """Key, start in s after START, count and sum of each window result."""
    found: list[tuple[str, float, int, float]] = []
    for _, payload in outputs:
        assert isinstance(payload, dict)
        found.append((payload["key"], offset(payload["start"]), payload["count"], payload["sum"]))
    return found


def offset(time: str) -> float:
    """Seconds after START of a time in ISO 8601."""
    return (datetime.fromisoformat(time).timestamp() * SECOND - START) / SECOND

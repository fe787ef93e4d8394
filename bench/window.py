"""How many events a second a tumbling aggregate takes in, in this process, everything durable included.

`python -m bench.window` stores events of a number of sensors in a log on disk, then lets a processor of three
aggregates over a JSON field read them all: first from the ring in memory, as it would live, then from SQLite, as it
would after an outage. The clock is the events' own: a second of the log has 10,000 of them, and a window is a second.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter

from broker.hub import Hub
from broker.listener import Limits
from broker.mqtt.topic import compile_filters
from processors import Definition, Event, Processors
from processors import aggregates as agg
from processors.runtime import Runtime
from storage.interface import OS
from storage.log import Log
from storage.sqlite import SQLiteEngine
from storage.worker import ThreadWorker

EVENTS = 300_000
SENSORS = 100
GROUP = 500
START = 1_700_000_000_000_000
SWITCH_INTERVAL = 0.0005
"""As a node sets it."""

Call = Callable[[], object]


def definition(name: str) -> Definition:
    """Count, mean and maximum of a field, per topic and second."""
    made = Processors()

    @made.tumbling("plant/#", agg.count, agg.mean, agg.max, seconds=1, to="stats/{key}", name=name, start="beginning")
    def temperature(event: Event) -> float:
        return event.number("value")

    return made.definitions[0]


class Loop:
    """What a node's event loop does for the parts below: calls, one after another."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Call] = SimpleQueue()

    def post(self, call: Call) -> None:
        """Have it called; from any thread."""
        self._calls.put(call)

    def run(self, until: Callable[[], bool]) -> None:
        """Call what is posted until that is so."""
        while not until():
            self._calls.get()()


class Bench:
    """A log on disk, filled, and a processor to let loose on it."""

    def __init__(self, directory: Path, memory_bytes: int, events: int) -> None:
        self.loop = Loop()
        self.workers = [ThreadWorker(name, self.loop.post) for name in ("writer", "reader", "processors")]
        self.engine = SQLiteEngine(directory)
        self.log = Log(self.engine, self.workers[0], self.workers[1], memory_bytes)
        self.hub = Hub(self.log, Limits(), self.loop.post)
        self.events = events
        for number in range(events):
            payload = b'{"value": %d.5, "unit": "C"}' % (number % 90)
            topic = f"plant/{number % SENSORS}/temperature"
            self.log.append(START + number * 100, topic, payload, 1, False, "sensor", b"", 0, OS)
            if number % GROUP == GROUP - 1:
                self.log.flush()
                self.loop.run(lambda: not self.log.busy)
        self.log.flush()
        self.loop.run(lambda: not self.log.busy)

    def run(self, name: str) -> float:
        """Seconds for all events and all windows; everything has committed by then."""
        runtime = Runtime(definition(name), self.log, self.workers[2], self.hub, compile_filters)
        begin = perf_counter()
        runtime.start()
        # The time of the last event: it closes every window but the one that is open.
        runtime.tick(self.log.last_ts)
        self.loop.run(lambda: runtime.events >= self.events and not self.log.busy)
        seconds = perf_counter() - begin
        runtime.stop()
        seen = runtime.outputs
        expected = (self.events - 1) // 10_000 * SENSORS
        if seen != expected or runtime.dead:
            raise SystemExit(f"{name}: {seen} windows instead of {expected}, {runtime.dead} dead letters")
        return seconds

    def close(self) -> None:
        """End the threads, and let go of the directory."""
        done: list[None] = []
        self.log.drain(lambda: done.append(None))
        self.loop.run(lambda: bool(done))
        for worker in self.workers:
            worker.close()
        self.engine.close()


def main() -> None:
    """Run both shapes and print what came of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--events", type=int, default=EVENTS, help=f"events to aggregate ({EVENTS})")
    events = parser.parse_args().events
    sys.setswitchinterval(SWITCH_INTERVAL)
    for shape, memory_bytes in (("from memory", 1 << 30), ("from SQLite", 1 << 16)):
        with tempfile.TemporaryDirectory() as directory:
            bench = Bench(Path(directory), memory_bytes, events)
            seconds = bench.run("per_second")
            bench.close()
        print(f"tumbling window, {shape}: {events / seconds:,.0f} events/s")


if __name__ == "__main__":
    main()

"""What sealing costs those who publish: rates and acknowledgements with it and without it, side by side.

    python -m bench.sealing [--rounds 5] [--seconds 10] [--windows 100 2000] [--busy 5] [--directory DIR]

A third kind of round has retention as well: all segments together may take half of what a part has before it is sealed,
and one topic in four has an age that is over at once, so that each segment is written anew, and soon removed.

A log with the threads that a node has takes telemetry as fast as it commits, from publishers that have so many messages
unacknowledged together. `--busy` µs of computing for each message stand for what a broker does on its loop. Rounds
without sealing and with it take turns; each has a directory of its own. Medians of rounds are printed: messages
committed in a second, the time from their arrival to their acknowledgement, how much of the log was sealed meanwhile,
and how long it took to seal the rest once nothing came any more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from time import perf_counter, process_time, sleep, time_ns
from typing import Final
from zlib import crc32

from bench.machine import describe
from bench.segments import telemetry
from berm.process import SWITCH_INTERVAL, tune_collector
from storage.interface import FSYNC, Event, Group, StorageError
from storage.log import Log
from storage.retention import Retention, Rule
from storage.sealer import Policy
from storage.sqlite import SQLiteEngine
from storage.worker import ThreadWorker

PAYLOADS: Final = 50_000
TURN: Final = 256
"""Messages that one turn of the loop takes in at most."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one round. Times in ms."""

    rate: float
    processor: float
    """Processor time for each message, in µs, of all threads."""
    median: float
    p99: float
    worst: float
    sealed: float
    """The part of the events that is in segments in the end."""
    idle: float
    """Seconds until all that can be is sealed, once nothing comes any more."""


class _Loop:
    """The loop of a node that does nothing but take messages in and acknowledge them."""

    def __init__(self, directory: Path, policy: Policy, retention: Retention, window: int, busy: float) -> None:
        self._calls: SimpleQueue[object] = SimpleQueue()
        self._engine = SQLiteEngine(directory, policy=policy, retention=retention)
        writer, reader = self._workers = [ThreadWorker(name, self._calls.put) for name in ("writer", "reader")]
        self._log = Log(self._engine, writer, reader)
        self._log.listener = self
        self._window = window
        self._busy = busy
        self._arrived: list[float] = []
        """When the messages came that are not acknowledged, in order; and how many."""
        self._numbers: list[int] = []
        self._waits: list[tuple[float, int]] = []

    def sealing(self, group: Group) -> None:
        """Nothing goes with it."""

    def refused(self, group: Group, error: StorageError) -> None:
        """It is the end."""
        raise error

    def committed(self, group: Group) -> None:
        """Acknowledge."""
        left, now = len(group.events), perf_counter()
        while left:
            number = self._numbers[0]
            taken = min(left, number)
            self._waits.append((now - self._arrived[0], taken))
            left -= taken
            self._numbers[0] -= taken
            if not self._numbers[0]:
                del self._numbers[0], self._arrived[0]

    def run(self, events: Sequence[Event], seconds: float) -> Figures:
        """Take in messages like these for so long."""
        log, calls, window = self._log, self._calls, self._window
        number = 0
        worked = process_time()
        began = now = perf_counter()
        while now - began < seconds:
            room = min(window - (log.last - log.committed), TURN)
            if room > 0:
                self._arrived.append(now)
                self._numbers.append(room)
                for event in islice(events, number, number + room):
                    log.append(time_ns() // 1000, event.topic, event.payload, 1, False, event.client, b"", 0, FSYNC)
                number = (number + room) % (len(events) - TURN)
                until = now + room * self._busy
                while perf_counter() < until:
                    pass
                log.flush()
            while room <= 0 or not calls.empty():
                calls.get()()  # type: ignore[operator]  # what `post` was given
                room = 1
            now = perf_counter()
        return self._end(now - began, process_time() - worked)

    def _end(self, elapsed: float, worked: float) -> Figures:
        log = self._log
        rate, processor = log.committed / elapsed, worked / log.committed * 1e6
        sealed = self._engine._history.chain.last / log.committed
        while log.busy:
            self._calls.get()()  # type: ignore[operator]  # as above
        began = perf_counter()
        for worker in self._workers:
            worker.close()
        while self._engine.upkeep():
            sleep(0.001)
        idle = perf_counter() - began
        self._engine.close()
        waits = sorted(self._waits)
        total = sum(count for _, count in waits)
        return Figures(
            rate, processor, _at(waits, total / 2), _at(waits, total * 0.99), waits[-1][0] * 1e3, sealed, idle
        )


def _at(waits: list[tuple[float, int]], place: float) -> float:
    for wait, count in waits:
        place -= count
        if place <= 0:
            return wait * 1e3
    raise AssertionError("there are fewer")


def _median(rounds: list[Figures]) -> Figures:
    return Figures(*(median(getattr(each, field.name) for each in rounds) for field in fields(Figures)))


def main() -> None:
    """Measure, and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round")
    parser.add_argument("--windows", type=int, nargs="+", default=[100, 2000], help="unacknowledged messages")
    parser.add_argument("--busy", type=float, default=5.0, help="µs of computing for each message")
    parser.add_argument("--bytes", type=int, default=32 << 20, help="of a part that is sealed")
    parser.add_argument("--directory", type=Path, default=Path(), help="on the disk that is to be measured")
    options = parser.parse_args()
    machine = describe(options.directory)
    print(
        f"{machine.cores} cores, {machine.processor}; {machine.file_system}, fsync {machine.fsync_ms:.2f} ms; "
        f"{machine.python}; load {machine.load_average:.2f}",
        flush=True,
    )
    sys.setswitchinterval(SWITCH_INTERVAL)
    events = list(islice(telemetry(), PAYLOADS))
    tune_collector()
    rule = Rule(lambda topic: crc32(topic.encode()) % 4 == 0, 1)
    policies = {
        "no sealing": (Policy(bytes=0), Retention()),
        "sealing": (Policy(bytes=options.bytes), Retention()),
        "retention": (Policy(bytes=options.bytes), Retention(bytes=options.bytes // 2, rules=(rule,))),
    }
    print(
        f"{'window':>6} {'':12} {'messages/s':>11} {'':>6} {'CPU':>8} {'median':>9} {'p99':>9} {'worst':>9} "
        f"{'sealed':>7} {'rest':>7}"
    )
    for window in options.windows:
        found: dict[str, list[Figures]] = {name: [] for name in policies}
        for number in range(options.rounds):
            for name in sorted(policies, reverse=number % 2 == 1):
                with tempfile.TemporaryDirectory(dir=options.directory) as directory:
                    loop = _Loop(Path(directory), *policies[name], window, options.busy / 1e6)
                    found[name].append(loop.run(events, options.seconds))
        base = _median(found["no sealing"]).rate
        for name, rounds in found.items():
            figures = _median(rounds)
            print(
                f"{window:6} {name:12} {figures.rate:11,.0f} {figures.rate / base:6.0%} {figures.processor:5.1f} µs "
                f"{figures.median:6.2f} ms {figures.p99:6.2f} ms {figures.worst:6.1f} ms {figures.sealed:7.0%} "
                f"{figures.idle:5.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""What the log does in a second: groups committed and fsynced, history read, and how long a start takes.

    python -m bench.log [--events 1000000] [--payload 200] [--directory DIR]

First groups of several sizes are committed, alone and beside a thread that never stops computing, as a busy loop would;
the interpreter changes threads as often as a node has it do. Then history is read: from the engine, through a cursor,
with a filter, beside the same thread. The last lines are the start on this log, after a clean stop and after a kill.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter
from typing import Final

from bench.machine import describe
from berm.process import SWITCH_INTERVAL
from storage.interface import FSYNC, Accepts, Event
from storage.log import READ_LIMIT, Log
from storage.sqlite import SQLiteEngine
from storage.worker import ThreadWorker

GROUPS: Final = (1, 64, 256, 1000)
TOPICS: Final = 1000
SECONDS: Final = 2.0
"""How long each figure is measured."""
NOW: Final = 1_700_000_000_000_000


def _event(seq: int, payload: bytes) -> Event:
    number = seq % TOPICS
    return Event(seq, NOW + seq, f"plant/{number}/temperature", payload, 1, False, f"device-{number}", b"", 0, FSYNC)


@contextmanager
def _busy() -> Iterator[None]:
    """Beside a thread that never stops computing."""
    stop = threading.Event()

    def compute() -> None:
        number = 0
        while not stop.is_set():
            for _ in range(1000):
                number = number * 31 & 0xFFFF

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _rate(step: Callable[[], int]) -> float:
    """What `step` gets done, a second; 0 from it is the end."""
    done = 0
    began = perf_counter()
    while (elapsed := perf_counter() - began) < SECONDS:
        count = step()
        if not count:
            break
        done += count
    return done / elapsed


def _commit(engine: SQLiteEngine, size: int, payload: bytes) -> Callable[[], int]:
    seq = engine.last()

    def step() -> int:
        nonlocal seq
        group = [_event(seq + n, payload) for n in range(1, size + 1)]
        seq += size
        engine.commit(group, {}, True)
        engine.upkeep()
        return size

    return step


def _read(engine: SQLiteEngine, accepts: Accepts | None) -> Callable[[], int]:
    """Events that were looked at: those that a filter does not accept, too."""
    last = engine.last()
    position = 0

    def step() -> int:
        nonlocal position
        before = position if position < last else 0
        _, position = engine.read(before, last, READ_LIMIT, accepts)
        return position - before

    return step


def _follow(engine: SQLiteEngine, accepts: Accepts | None) -> float:
    """Events a second that a cursor looks at, with the threads that a node has."""
    calls: SimpleQueue[Callable[[], object]] = SimpleQueue()
    writer, reader = workers = [ThreadWorker(name, calls.put) for name in ("writer", "reader")]
    log = Log(engine, writer, reader)
    cursor = log.cursor(0, accepts, lambda: None)

    def step() -> int:
        if cursor.caught_up:
            cursor.seek(0)
        before = cursor.position
        while not cursor.batch(READ_LIMIT) and not cursor.caught_up:
            calls.get()()  # the read that it waits for is back
        return cursor.position - before

    rate = _rate(step)
    cursor.close()
    for worker in workers:
        worker.close()
    return rate


def _open(directory: Path) -> float:
    began = perf_counter()
    engine = SQLiteEngine(directory)
    elapsed = perf_counter() - began
    assert engine.quarantined is None
    engine.close()
    return elapsed


def _print(name: str, idle: float, busy: float, unit: str) -> None:
    print(f"{name:44} {idle:12,.0f} {busy:12,.0f}  {unit}", flush=True)


def _measure(directory: Path, events: int, payload: bytes) -> None:
    engine = SQLiteEngine(directory)
    print(f"{'':44} {'alone':>12} {'beside':>12}")
    for size in GROUPS:
        idle = _rate(_commit(engine, size, payload))
        with _busy():
            busy = _rate(_commit(engine, size, payload))
        _print(f"commit and fsync, {size} in a group", idle, busy, "events/s")
    fill = _commit(engine, 5000, payload)
    while engine.last() < events:
        fill()
    filters: tuple[tuple[str, Accepts | None], ...] = (
        ("all", None),
        ("a filter that matches all", lambda topic: True),
        (f"a filter that matches 1 topic of {TOPICS}", "plant/7/temperature".__eq__),
    )
    for name, accepts in filters:
        idle = _rate(_read(engine, accepts))
        with _busy():
            busy = _rate(_read(engine, accepts))
        _print(f"read, {name}", idle, busy, "events/s")
    for name, accepts in filters:
        idle = _follow(engine, accepts)
        with _busy():
            busy = _follow(engine, accepts)
        _print(f"cursor, {name}", idle, busy, "events/s")
    _commit(engine, 20_000, payload)()
    killed = directory / "killed"
    killed.mkdir()
    for part in ("berm.db", "berm.db-wal"):
        shutil.copyfile(directory / part, killed / part)
    last = engine.last()
    engine.close()
    for name, place in (("clean stop", directory), ("kill", killed)):
        print(f"start with {last:,} events after a {name}: {_open(place) * 1000:.1f} ms", flush=True)


def main() -> None:
    """Measure, and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=1_000_000, help="that the log holds when it is read")
    parser.add_argument("--payload", type=int, default=200, help="bytes")
    parser.add_argument("--directory", type=Path, default=Path(), help="on the disk that is to be measured")
    options = parser.parse_args()
    sys.setswitchinterval(SWITCH_INTERVAL)
    machine = describe(options.directory)
    print(
        f"{machine.cores} cores, {machine.processor}; {machine.file_system}, fsync {machine.fsync_ms:.2f} ms; "
        f"{machine.python}; load {machine.load_average:.2f}"
    )
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        _measure(Path(directory), options.events, bytes(options.payload))


if __name__ == "__main__":
    main()

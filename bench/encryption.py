"""What encryption at rest costs: for values, for groups that are committed, and for sealed segments.

    python -m bench.encryption [--events 200000] [--directory DIR]

A value is sealed and opened with `storage.vault`. Commits are groups of telemetry into two engines, of which one
encrypts, turn by turn; of their times the median counts. Segments are written and read with and without a data key, and
of several runs the quickest counts. Rates are of processor time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from struct import Struct
from time import perf_counter, process_time
from typing import Final

from bench.machine import describe
from bench.segments import telemetry
from berm.process import tune_collector
from storage.datakey import DataKey
from storage.interface import Event
from storage.log import READ_LIMIT
from storage.sealer import Policy
from storage.segment import Segment
from storage.segment_writer import write_segment
from storage.sqlite import SQLiteEngine
from storage.vault import Vault

SIZES: Final = (64, 100, 170, 200, 1000, 10_000)
COMMIT: Final = 1000
COMMITS: Final = (1, 64, 256, 1000)
TURNS: Final = 100
RUNS: Final = 15
_CONTEXT: Final = Struct("<cQ")


@dataclass(frozen=True, slots=True)
class _Key:
    """An operator's key that is at hand."""

    key: bytes

    def read(self) -> bytes:
        return self.key


def _quickest(work: Callable[[], object], runs: int = RUNS) -> float:
    """Seconds of processor time."""
    found = []
    for _ in range(runs):
        begin = process_time()
        work()
        found.append(process_time() - begin)
    return min(found)


def _values(vault: Vault) -> None:
    for size in SIZES:
        plains = [os.urandom(size) for _ in range(COMMIT)]
        contexts = [_CONTEXT.pack(b"t", seq) for seq in range(COMMIT)]
        sealed = vault.seal_many(plains, contexts)
        one = _quickest(lambda: [vault.seal(*each) for each in zip(plains, contexts, strict=True)])  # noqa: B023
        many = _quickest(lambda: vault.seal_many(plains, contexts))  # noqa: B023
        opening = _quickest(lambda: vault.open_many(sealed, contexts))  # noqa: B023
        figures = [f"{name} {seconds / COMMIT * 1e9:6.0f} ns" for name, seconds in (("seal", one), ("seal_many", many))]
        print(f"value of {size:6} B: {', '.join(figures)}, open {opening / COMMIT * 1e9:6.0f} ns", flush=True)


def _commits(directory: Path, vault: Vault, events: Sequence[Event]) -> None:
    """Groups that two engines commit and fsync, one that encrypts and one that doesn't, turn by turn."""
    engines = {
        "plain": SQLiteEngine(directory / "plain", policy=Policy(bytes=0)),
        "encrypted": SQLiteEngine(directory / "encrypted", policy=Policy(bytes=0), unlock=lambda: vault),
    }
    begin = 0
    for size in COMMITS:
        took: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
        for _ in range(min(TURNS, (len(events) - begin) // size)):
            group = events[begin : begin + size]
            begin += size
            for name, engine in engines.items():
                wall, used = perf_counter(), process_time()
                engine.commit(group, {}, True)
                took[name].append((perf_counter() - wall, process_time() - used))
                engine.upkeep()
        for at, of in enumerate(("time", "processor time")):
            plain, encrypted = (median(each[at] for each in times) * 1e3 for times in took.values())
            print(f"commit of {size:4} events, {of}: {plain:.2f} ms, encrypted {encrypted:.2f} ms (median)", flush=True)
    for name, engine in engines.items():
        last = engine.last()
        used = process_time()
        position = 0
        while position < last:
            _, position = engine.read(position, last, READ_LIMIT, None)
        print(f"tail, {name:9}: read {last / (process_time() - used) / 1e3:.0f} k/s", flush=True)
        engine.close()


def _segments(directory: Path, events: Sequence[Event]) -> None:
    key = DataKey(1, os.urandom(32))
    for name, used in (("plain", None), ("encrypted", key)):
        writing, reading, size = [], [], 0
        for run in range(3):
            path = directory / f"{name}{run}.segment"
            begin = process_time()
            size = write_segment(path, events, key=used).size
            writing.append(process_time() - begin)
            begin = process_time()
            _read(path, key)
            reading.append(process_time() - begin)
            path.unlink()
        rates = [f"{len(events) / min(times) / 1e3:.0f} k/s" for times in (writing, reading)]
        print(f"segment, {name:9}: {size / len(events):.3f} B/event, written {rates[0]}, read {rates[1]}", flush=True)


def _read(path: Path, key: DataKey) -> None:
    with Segment.open(path, keys=lambda number: key) as segment:
        position, last = 0, segment.info.header.last
        while position < last:
            _, position = segment.read(position, last, READ_LIMIT)


def main() -> None:
    """Measure, and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--directory", type=Path, default=Path(), help="on the disk that is to be measured")
    options = parser.parse_args()
    machine = describe(options.directory)
    print(f"{machine.cores} cores, {machine.processor}; {machine.python}; load {machine.load_average:.2f}", flush=True)
    events = list(islice(telemetry(), options.events))
    tune_collector()
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        directory = Path(name)
        vault = Vault(directory, (_Key(os.urandom(32)),), 0, 0)
        _values(vault)
        _commits(directory, vault, events)
        _segments(directory, events)


if __name__ == "__main__":
    main()

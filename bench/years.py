"""A log of many years' telemetry: its size on the disk, how quickly it is replayed, and how a node starts on it.

    python -m bench.years [--events 10000000] [--directory DIR]

A process commits the telemetry of bench/segments.py to a new data directory, group by group, each fsynced, and seals it
as a node does; then it is killed with SIGKILL. What is told of the directory after that, each by a process of its own:
how long `berm run` takes until it listens, how many events a second a reader in process is given, how long it takes to
find one topic, how much memory each had at the most, and whether all events are there, once and in order.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path
from socket import create_connection, create_server
from time import perf_counter, sleep
from typing import Final

from bench.machine import describe
from bench.segments import telemetry
from berm.process import tune_collector
from storage.catalog import DIRECTORY
from storage.database import DATABASE
from storage.interface import Accepts
from storage.log import READ_LIMIT
from storage.sealer import Policy
from storage.sqlite import SQLiteEngine

GROUP: Final = 1000
"""Events that commit together."""
TOPIC: Final = "plant/hall7/press0007/telemetry"
_DONE: Final = "done"


def _fill(directory: Path, count: int) -> None:
    """Commit so many events, seal them, say so, and wait to be killed."""
    tune_collector()
    engine = SQLiteEngine(directory, policy=Policy(age=1))
    plant = telemetry()
    making = 0.0
    began = perf_counter()
    for _ in range(0, count, GROUP):
        before = perf_counter()
        events = list(islice(plant, GROUP))
        making += perf_counter() - before
        engine.commit(events, {}, sync=True)
        engine.upkeep()
    took = perf_counter() - began - making
    while engine.upkeep():
        sleep(0.001)  # the thread that writes segments has the lock meanwhile
    whole = perf_counter() - began - making
    print(f"committed          {count / took:10,.0f} events/s; all sealed after {whole:,.0f} s")
    print(f"memory             {_memory():10,} MB at the most, the making of events included")
    print(_DONE, flush=True)
    sleep(3600)


def _read(directory: Path, topic: str) -> None:
    """Read every event, or those of one topic."""
    tune_collector()
    accepts: Accepts | None = topic.__eq__ if topic else None
    began = perf_counter()
    engine = SQLiteEngine(directory, readonly=True)
    opened = perf_counter() - began
    last, position, found, previous = engine.last(), 0, 0, 0
    began = perf_counter()
    while position < last:
        events, position = engine.read(position, last, READ_LIMIT, accepts)
        for event in events:
            assert event.seq > previous
            previous = event.seq
        found += len(events)
    took = perf_counter() - began
    if topic:
        print(f"one topic          {took * 1e3:10,.0f} ms for {found:,} events of {last:,}")
    else:
        print(f"opened in          {opened * 1e3:10,.0f} ms")
        print(f"replay of all      {found / took:10,.0f} events/s; {found:,} found, the last is {last:,}")
    print(f"memory             {_memory():10,} MB at the most")


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _apart(task: str, directory: Path, argument: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "bench.years",
        "--task",
        task,
        "--directory",
        str(directory),
        "--argument",
        argument,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _start(directory: Path) -> None:
    """Start a node on the directory, and stop it once it listens."""
    with create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    config = directory.parent / "years.toml"
    config.write_text(f'[storage]\npath = "{directory}"\n[mqtt]\nport = {port}\n')
    began = perf_counter()
    node = subprocess.Popen(
        [sys.executable, "-m", "berm", "run", "--config", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while True:
        try:
            create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            assert node.poll() is None, "the node did not start"
            sleep(0.005)
    took = perf_counter() - began
    status = Path(f"/proc/{node.pid}/status").read_text()
    memory = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) >> 10
    node.send_signal(signal.SIGTERM)
    node.wait()
    print(f"a node starts in   {took * 1e3:10,.0f} ms, and has {memory} MB then")


def _sizes(directory: Path, count: int) -> None:
    segments = list((directory / DIRECTORY).glob("*.segment"))
    sealed = sum(path.stat().st_size for path in segments)
    database = sum(path.stat().st_size for path in directory.glob(f"{DATABASE}*"))
    whole, part, rest = (size / count for size in (sealed + database, sealed, database))
    print(f"on the disk        {whole:10.2f} B/event: {len(segments)} segments {part:.2f}, database {rest:.2f}")


def _measure(directory: Path, count: int) -> None:
    filling = _apart("fill", directory, str(count))
    assert filling.stdout is not None
    for line in filling.stdout:
        if line.strip() == _DONE:
            break
        print(line, end="", flush=True)
    os.kill(filling.pid, signal.SIGKILL)
    filling.wait()
    _sizes(directory, count)
    _start(directory)
    for topic in ("", TOPIC):
        reading = _apart("read", directory, topic)
        print(reading.communicate()[0], end="", flush=True)
        assert reading.returncode == 0


def main() -> None:
    """Measure, and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--directory", type=Path, default=Path(), help="on the disk that is to be measured")
    parser.add_argument("--task", choices=("fill", "read"), help=argparse.SUPPRESS)
    parser.add_argument("--argument", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task == "fill":
        _fill(options.directory, int(options.argument))
    elif options.task == "read":
        _read(options.directory, options.argument)
    else:
        machine = describe(options.directory)
        print(
            f"{machine.cores} cores, {machine.processor}; {machine.python}; load {machine.load_average:.2f}", flush=True
        )
        with tempfile.TemporaryDirectory(dir=options.directory) as directory:
            _measure(Path(directory) / "data", options.events)


if __name__ == "__main__":
    main()

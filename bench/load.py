"""The load generator `load.c` from Python: compiled when its source is newer, run, and its result read.

It is a program of its own, in C, because a generator in Python would be what is measured.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

SOURCE: Final = Path(__file__).with_name("load.c")
WIRE: Final = Path(__file__).with_name("wire.h")
"""What generators include."""
BUILD: Final = Path(__file__).with_name("build")
FLAGS: Final = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror")
_GRACE_SECONDS: Final = 60


class LoadError(Exception):
    """The generator can't be compiled, or a run doesn't count; the message says why."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Who publishes to whom: `pairs` gives each subscriber a publisher of its own, otherwise each gets everything."""

    name: str
    words: str
    qos: int
    publishers: int = 1
    subscribers: int = 1
    window: int = 100
    pairs: bool = False


@dataclass(frozen=True, slots=True)
class Amount:
    """How much: publish for `seconds`, or, where `messages` is not 0, that many in all."""

    seconds: float
    messages: int = 0
    drain: float = 10
    """Longest wait for what is still on its way, in s."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of the generator counted. Latencies are in ms, from publish to delivery."""

    sent: int
    acked: int
    refused: int
    expected: int
    received: int
    duplicates: int
    closed: int
    seconds: float
    """From the first publish to the last delivery."""
    received_per_s: float
    p50: float
    p99: float
    cpu_seconds: float
    """What the generator itself used."""

    @property
    def arrived(self) -> float:
        """The share of what should arrive that did, each message counted once."""
        return (self.received - self.duplicates) / self.expected if self.expected else 0.0


def compiler() -> str | None:
    """The C compiler."""
    return shutil.which("gcc") or shutil.which("cc")


def build(directory: Path = BUILD, source: Path = SOURCE) -> Path:
    """Compile a generator unless its program is newer than what it is made of.

    Raises:
        LoadError: there is no compiler, or it refuses.
    """
    program = directory / source.stem
    if program.exists() and program.stat().st_mtime >= max(source.stat().st_mtime, WIRE.stat().st_mtime):
        return program
    gcc = compiler()
    if gcc is None:
        raise LoadError("there is no C compiler for the load generator (on Debian: apt-get install gcc libc6-dev)")
    directory.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [gcc, *FLAGS, "-I", str(WIRE.parent), "-o", str(program), str(source)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode:
        raise LoadError(f"{gcc} can't compile {source}: {done.stderr.strip()}")
    return program


def run(program: Path, port: int, shape: Shape, amount: Amount) -> Load:
    """Load the broker on `port` of this machine.

    Raises:
        LoadError: the run doesn't count.
    """
    command = [str(program), *arguments(port, shape, amount)]
    limit = amount.seconds + amount.drain + _GRACE_SECONDS
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        raise LoadError(f"{shape.name}: no end after {limit:.0f} s") from None
    if done.returncode:
        raise LoadError(f"{shape.name}: {done.stderr.strip()}")
    return parse(done.stdout)


def arguments(port: int, shape: Shape, amount: Amount) -> list[str]:
    """The generator's command line."""
    options = {
        "port": port,
        "qos": shape.qos,
        "pubs": shape.publishers,
        "subs": shape.subscribers,
        "window": shape.window,
        "shape": "pairs" if shape.pairs else "fan",
        "seconds": amount.seconds,
        "messages": amount.messages,
        "drain": amount.drain,
    }
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def parse(text: str) -> Load:
    """The result as the generator prints it: one JSON object."""
    raw = orjson.loads(text)
    latency = raw["latency_ms"]
    return Load(
        raw["sent"],
        raw["acked"],
        raw["refused"],
        raw["expected"],
        raw["received"],
        raw["duplicates"],
        raw["closed"],
        raw["seconds"],
        raw["received_per_s"],
        latency["p50"],
        latency["p99"],
        raw["cpu_seconds"],
    )

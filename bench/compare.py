"""Berm beside other brokers under the same load, in one run on one machine: `python -m bench.compare`.

The rules:

1. Each measurement has a broker of its own: a new process in an empty directory, so that nothing of the one before
   counts, neither memory nor a log that has grown.
2. Brokers take turns within a round, in an order that moves on by one with each round. A machine that becomes busy
   slows all of them down, and no broker always runs first.
3. A figure is the median over the rounds. A ratio is the median of the ratios within each round, never a quotient of
   figures that were taken minutes apart.
4. What is counted is delivered messages. How many were sent is told beside it: a broker that drops QoS 0 messages is
   not a faster one.
5. A broker that fails at a shape has no figure there, and the reason is told.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.brokers import BERM, EARLIER, KINDS, BrokerError, Kind, earlier, tail
from bench.load import BUILD, Amount, LoadError, Shape, build, run
from bench.machine import busy_seconds, describe
from bench.report import BASE, Report, Sample, render, write

SHAPES: Final = {
    shape.name: shape
    for shape in (
        Shape("qos0", "QoS 0, 1 publisher, 1 subscriber", 0),
        Shape("qos1", "QoS 1, 1 publisher, 1 subscriber, window 100", 1),
        Shape("qos1-wide", "QoS 1, 1 publisher, 1 subscriber, window 1000", 1, window=1000),
        Shape("qos1-many", "QoS 1, 100 publishers, 1 subscriber, window 20", 1, 100, 1, 20),
        Shape("qos1-crowd", "QoS 1, 500 publishers, 1 subscriber, window 1", 1, 500, 1, 1),
        Shape("qos1-pairs", "QoS 1, 100 pairs, window 1", 1, 100, 100, 1, pairs=True),
        Shape("qos2", "QoS 2, 1 publisher, 1 subscriber, window 100", 2),
    )
}
"""Every shape of load, by name, in the order of the table."""

Named = TypeVar("Named")

ROOT: Final = Path(__file__).parents[1]
_GIT_SECONDS: Final = 60

QUICK_MESSAGES: Final = 300
QUICK_CLIENTS: Final = 10

_COLUMNS: Final = (
    TextColumn("{task.description:<24}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured: each kind of broker under each shape, in each round."""

    kinds: Sequence[Kind]
    shapes: Sequence[Shape]
    rounds: int
    amount: Amount
    base: str = BASE
    """What ratios are to."""

    def steps(self) -> Iterator[tuple[int, Shape, Kind]]:
        """Every measurement, in order."""
        for round in range(self.rounds if self.kinds else 0):
            first = round % len(self.kinds)
            for shape in self.shapes:
                for kind in (*self.kinds[first:], *self.kinds[:first]):
                    yield round, shape, kind

    def __len__(self) -> int:
        return self.rounds * len(self.shapes) * len(self.kinds)


def main(
    brokers: Annotated[
        str, typer.Option(metavar="NAMES", help=f"Which, of {', '.join(KINDS)}; all, or berm beside --before.")
    ] = "",
    shapes: Annotated[str, typer.Option(metavar="NAMES", help=f"Which, of {', '.join(SHAPES)}.")] = ",".join(SHAPES),
    rounds: Annotated[int, typer.Option(min=1, help="How often each measurement is made.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each publishes.")] = 3,
    directory: Annotated[
        Path, typer.Option(metavar="DIR", help="Where logs are written: a disk, for durable figures to mean anything.")
    ] = BUILD,
    before: Annotated[
        str, typer.Option(metavar="COMMIT", help="Beside Berm as it was at this commit; ratios are to that.")
    ] = "",
    out: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Write the result too, as .md or .json. Repeatable.")
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="A few messages only: do the parts work? Its figures mean nothing.")
    ] = False,
) -> None:
    """Measure Berm beside other brokers and print the ratios."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that brokers are ended
    kinds = _choose("--brokers", KINDS, brokers or (BERM.name if before else ",".join(KINDS)))
    plan = Plan(kinds, _choose("--shapes", SHAPES, shapes), rounds, Amount(seconds))
    for path in out or ():
        if path.suffix not in (".md", ".json"):
            raise typer.BadParameter(f"{path}: a result is written as .md or .json")
    console = Console()
    try:
        with tempfile.TemporaryDirectory(prefix="berm-") as tree:
            if before:
                plan = replace(plan, kinds=[*kinds, check_out(before, Path(tree))], base=EARLIER)
            report = compare(_small(plan) if quick else plan, directory, console)
    except LoadError as error:
        console.print(error, style="red", markup=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    render(report, console)
    for path in out or ():
        write(report, path)
    if not report.samples:
        raise typer.Exit(1)


def compare(plan: Plan, directory: Path, console: Console) -> Report:
    """Measure all of it. Kinds that can't be started here are left out, and the report says why.

    Raises:
        LoadError: the load generator can't be compiled.
    """
    program = build()
    absent = {kind.name: reason for kind in plan.kinds if (reason := kind.missing())}
    present = replace(plan, kinds=[kind for kind in plan.kinds if kind.name not in absent])
    directory.mkdir(parents=True, exist_ok=True)
    machine = describe(directory)
    samples: list[Sample] = []
    failures: list[str] = []
    with Progress(*_COLUMNS, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(present))
        for round, shape, kind in present.steps():
            progress.update(task, description=f"{shape.name}: {kind.name}")
            try:
                samples.append(measure(program, kind, shape, present.amount, directory, round))
            except BrokerError as error:
                failures.append(f"{kind.name}, round {round + 1}, {error}")
            progress.advance(task)
    settings = {kind.name: kind.settings for kind in present.kinds}
    return Report(
        machine, present.shapes, settings, present.rounds, present.amount, samples, failures, absent, plan.base
    )


def check_out(commit: str, directory: Path) -> Kind:
    """Berm as it was at a commit of the repository that this file is in.

    Raises:
        LoadError: there is no such commit, or no repository.
    """
    archive = directory / "archive.tar"
    for command in (
        ["git", "-C", str(ROOT), "archive", "--output", str(archive), commit],
        ["tar", "-xf", str(archive), "-C", str(directory)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_GIT_SECONDS)
        if done.returncode:
            raise LoadError(f"{commit} can't be had: {done.stderr.strip()}")
    archive.unlink()
    return earlier(directory, f"Berm as it was at {commit}, defaults")


def measure(program: Path, kind: Kind, shape: Shape, amount: Amount, directory: Path, round: int) -> Sample:
    """One broker under one load, from an empty directory to an empty directory.

    Raises:
        BrokerError: the broker doesn't start, or the run doesn't count.
    """
    with tempfile.TemporaryDirectory(prefix=f"{kind.name}-", dir=directory) as place:
        broker = kind.start(Path(place).resolve())
        try:
            began, busy, before = time.monotonic(), busy_seconds(), broker.cpu_seconds()
            load = run(program, broker.port, shape, amount)
            if load.closed or not load.received:
                raise LoadError(f"{shape.name}: {load.closed} connections closed, {load.received} messages delivered")
            used = broker.cpu_seconds() - before
            others = (busy_seconds() - busy - used - load.cpu_seconds) / (time.monotonic() - began)
            return Sample(kind.name, shape.name, round, load, used, broker.peak_rss(), max(0.0, others))
        except LoadError as error:
            raise BrokerError(f"{error}; the broker said: {tail(broker.output)}") from None
        finally:
            broker.stop()


def _choose(option: str, known: dict[str, Named], names: str) -> list[Named]:
    chosen = dict.fromkeys(name.strip() for name in names.split(","))
    for name in chosen:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}", param_hint=option)
    return [known[name] for name in chosen]


def _small(plan: Plan) -> Plan:
    shapes = [
        replace(
            shape, publishers=min(shape.publishers, QUICK_CLIENTS), subscribers=min(shape.subscribers, QUICK_CLIENTS)
        )
        for shape in plan.shapes
    ]
    return replace(plan, shapes=shapes, rounds=1, amount=Amount(0, QUICK_MESSAGES))


if __name__ == "__main__":
    typer.run(main)

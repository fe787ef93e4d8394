"""What connections cost a node, and what others notice of them: `python -m bench.connections`.

The rules:

1. Each measurement has a node of its own: a new process in an empty directory.
2. Clients are programs in C (`crowd.c`, and `load.c` for the pair that others are): never what is measured.
3. What is disturbed is set beside what is not in the same round, and its figure is the median over the rounds.
4. Every connection that should be there is counted. Where one is lost, nothing else counts.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from bench.arrivals import rate
from bench.brokers import BrokerError
from bench.findings import Findings, Section, render, write
from bench.load import BUILD, LoadError
from bench.machine import describe
from bench.many import kill, many
from bench.nuisances import nuisance
from bench.rig import QUICK, Plan, Rig

PARTS: Final[Mapping[str, Callable[[Rig], Section]]] = {
    "many": many,
    "kill": kill,
    "rate": rate,
    "nuisance": nuisance,
}
"""Every part of the measurement, by name, in the order in which they are made."""
_WIDTH: Final = 150
"""Columns of a table that goes to no terminal."""


def main(
    parts: Annotated[str, typer.Option(metavar="NAMES", help=f"Which, of {', '.join(PARTS)}.")] = ",".join(PARTS),
    clients: Annotated[int, typer.Option(min=2, max=100_000, help="How many are there at a time.")] = 10_000,
    rounds: Annotated[int, typer.Option(min=1, help="How often each measurement is made.")] = 3,
    directory: Annotated[
        Path, typer.Option(metavar="DIR", help="Where logs are written: a disk, for durable figures to mean anything.")
    ] = BUILD,
    out: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Write the result too, as .md or .json. Repeatable.")
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="A few clients only: do the parts work? Its figures mean nothing.")
    ] = False,
) -> None:
    """Measure what connections cost a node, and what others notice of them."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that every process is ended
    chosen = list(dict.fromkeys(name.strip() for name in parts.split(",")))
    for name in chosen:
        if name not in PARTS:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(PARTS)}", param_hint="--parts")
    for path in out or ():
        if path.suffix not in (".md", ".json"):
            raise typer.BadParameter(f"{path}: a result is written as .md or .json")
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    rig = Rig(QUICK if quick else Plan(clients=clients, rounds=rounds), directory)
    try:
        findings = measure(rig, chosen, console)
    except (LoadError, BrokerError) as error:
        console.print(error, style="red", markup=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    render(findings, console)
    for path in out or ():
        write(findings, path)


def measure(rig: Rig, parts: Sequence[str], console: Console) -> Findings:
    """Make these measurements.

    Raises:
        LoadError: a client could not do what it was to do, or was lost.
        BrokerError: a node doesn't start, or had an error.
    """
    rig.directory.mkdir(parents=True, exist_ok=True)
    machine = describe(rig.directory)
    sections: list[Section] = []
    for name in parts:
        with console.status(f"{name} ..."):
            sections.append(PARTS[name](rig))
    return Findings(machine, rig.plan.rounds, sections, os.getloadavg()[0])


if __name__ == "__main__":
    typer.run(main)

"""The result of a comparison: samples into figures, figures into a table, Markdown or JSON.

A report has a broker that others are set in proportion to, `BASE` where nothing else is said. Memory is the peak of the
resident set, the processor time that of the broker alone, all its threads; a core that is fully used is 1.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import orjson
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.load import Amount, Load, Shape
from bench.machine import Machine

BASE: Final = "mosquitto"
CALM: Final = 0.1
"""Where other programs use more cores than this, they are part of what was measured."""
BUSY: Final = 0.95
"""A generator that uses this much of a core may be what was measured."""
COLUMNS: Final = (
    "broker",
    "msgs/s",
    "spread",
    "ratio",
    "sent",
    "arrived",
    "p50 ms",
    "p99 ms",
    "MB",
    "cores",
    "load",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement. `cpu_seconds` and `rss` (bytes, its peak) are the broker's.

    `others` is how many cores other programs of the machine used meanwhile.
    """

    broker: str
    shape: str
    round: int
    load: Load
    cpu_seconds: float
    rss: int
    others: float


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a run of the comparison found."""

    machine: Machine
    shapes: Sequence[Shape]
    settings: Mapping[str, str]
    """Each broker's settings, in words."""
    rounds: int
    amount: Amount
    samples: Sequence[Sample]
    failures: Sequence[str]
    absent: Mapping[str, str]
    """Brokers that could not be started here, and why."""
    base: str = BASE


@dataclass(frozen=True, slots=True)
class Figure:
    """One broker under one shape: medians over the rounds."""

    broker: str
    shape: str
    rate: float
    """Delivered messages/s."""
    least: float
    most: float
    ratio: float | None
    """To the report's base, the median of the ratios within each round; None without it."""
    sent: float
    arrived: float
    """The least share of what was sent that was delivered, in any round."""
    p50: float
    p99: float
    rss: float
    cores: float
    generator: float

    def cells(self) -> tuple[str, ...]:
        """Its row, under COLUMNS."""
        return (
            self.broker,
            f"{self.rate:,.0f}",
            f"{(self.most - self.least) / self.rate:.0%}" if self.rate else "",
            "" if self.ratio is None else f"{self.ratio:.2f}",
            f"{self.sent:,.0f}",
            f"{self.arrived:.2%}" if self.arrived < 1 else "all",
            f"{self.p50:,.1f}",
            f"{self.p99:,.1f}",
            f"{self.rss / 1e6:,.0f}",
            f"{self.cores:.2f}",
            f"{self.generator:.2f}{'!' if self.generator >= BUSY else ''}",
        )


def figures(report: Report) -> Iterator[Figure]:
    """The figures, shape by shape in the report's order, each with its brokers in theirs."""
    for shape in report.shapes:
        of_shape = [sample for sample in report.samples if sample.shape == shape.name]
        base = {sample.round: sample.load.received_per_s for sample in of_shape if sample.broker == report.base}
        for broker in report.settings:
            samples = [sample for sample in of_shape if sample.broker == broker]
            if samples:
                yield _figure(samples, base)


def _figure(samples: Sequence[Sample], base: Mapping[int, float]) -> Figure:
    rates = [sample.load.received_per_s for sample in samples]
    ratios = [each.load.received_per_s / base[each.round] for each in samples if base.get(each.round)]
    median = statistics.median
    return Figure(
        samples[0].broker,
        samples[0].shape,
        median(rates),
        min(rates),
        max(rates),
        median(ratios) if ratios else None,
        median(each.load.sent for each in samples),
        min(each.load.arrived for each in samples),
        median(each.load.p50 for each in samples),
        median(each.load.p99 for each in samples),
        median(each.rss for each in samples),
        median(each.cpu_seconds / each.load.seconds for each in samples),
        median(each.load.cpu_seconds / each.load.seconds for each in samples),
    )


def render(report: Report, console: Console) -> None:
    """Print a table for each shape, and beside them what one must know to read them."""
    for line in facts(report):
        console.print(Text(line))
    found = list(figures(report))
    for shape in report.shapes:
        table = Table(title=f"{shape.name}: {shape.words}", box=SIMPLE_HEAD, show_edge=False, padding=0)
        table.title_justify = "left"
        for column in COLUMNS:
            table.add_column(column, justify="left" if column == "broker" else "right", no_wrap=column in COLUMNS[:2])
        for figure in found:
            if figure.shape == shape.name:
                table.add_row(*figure.cells())
        console.print()
        console.print(table)
    for line in remarks(report):
        console.print(Text(line, style="yellow"))


def facts(report: Report) -> Iterator[str]:
    """What it was measured on, and how."""
    machine, amount = report.machine, report.amount
    yield (
        f"{machine.cores} cores of {machine.processor}, shared with the load generator; {machine.kernel}; "
        f"{machine.python}; load average before: {machine.load_average:.2f}"
    )
    yield f"logs in {machine.directory} ({machine.file_system}), where an fdatasync takes {machine.fsync_ms:.2f} ms"
    much = f"{amount.messages} messages" if amount.messages else f"{amount.seconds:g} s of publishing"
    yield f"medians of {report.rounds} rounds, each {much}; payload 64 bytes, MQTT 3.1.1"
    yield (
        f"msgs/s: delivered; spread: most minus least of the rounds; ratio: to {report.base} in the same round; sent: "
        "by the publishers; MB: peak RSS; cores: those that the broker used; load: those that the load generator used"
    )


def remarks(report: Report) -> Iterator[str]:
    """What spoils figures, or is missing from them."""
    if not report.machine.on_disk:
        yield f"{report.machine.file_system} is memory: durable figures mean nothing here; use --directory"
    for broker, reason in report.absent.items():
        yield f"{broker} is left out: {reason}"
    for failure in report.failures:
        yield f"failed: {failure}"
    for figure in figures(report):
        if figure.arrived < 1:
            yield f"{figure.broker} lost messages at {figure.shape}: {figure.arrived:.2%} arrived in its worst round"
    others = statistics.median(sample.others for sample in report.samples) if report.samples else 0
    if others > CALM:
        yield f"other programs used {others:.2f} cores meanwhile: on a quiet machine the figures are others"
    if any(figure.generator >= BUSY for figure in figures(report)):
        yield "!: the load generator used a core of its own up: the broker may be faster than the figure"


def write(report: Report, path: Path) -> None:
    """Write it as Markdown or JSON, by the path's suffix."""
    if path.suffix == ".json":
        path.write_bytes(to_json(report))
    else:
        path.write_text(to_markdown(report))


def to_json(report: Report) -> bytes:
    """Everything: samples as they were taken, and the figures made of them."""
    tables = asdict(report) | {"figures": [asdict(figure) for figure in figures(report)]}
    return orjson.dumps(tables, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def to_markdown(report: Report) -> str:
    """The same tables as on the screen."""
    lines = [f"- {line}" for line in (*facts(report), *remarks(report))]
    lines += [f"- {broker}: {settings}" for broker, settings in report.settings.items()]
    found = list(figures(report))
    for shape in report.shapes:
        lines += ["", f"### {shape.words}", ""]
        lines.append(f"| {' | '.join(COLUMNS)} |")
        lines.append(f"| --- |{' ---: |' * (len(COLUMNS) - 1)}")
        lines += [f"| {' | '.join(figure.cells())} |" for figure in found if figure.shape == shape.name]
    return "\n".join(lines) + "\n"

"""What measurements of connections found: rows of a table, with what was asked beside what was found."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import orjson
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.machine import Machine

COLUMNS: Final = ("what", "found", "asked for", "")


@dataclass(frozen=True, slots=True)
class Row:
    """One line. `figures` are its numbers, with their units in their names; `holds` is None where nothing is asked."""

    what: str
    found: str
    asked: str = ""
    holds: bool | None = None
    figures: Mapping[str, float] = field(default_factory=dict)

    def cells(self) -> tuple[str, str, str, str]:
        """What it shows, under COLUMNS."""
        return self.what, self.found, self.asked, "" if self.holds is None else "holds" if self.holds else "FAILS"


@dataclass(frozen=True, slots=True)
class Section:
    """What one part of the measurement found. `words`: how it was made."""

    name: str
    words: str
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that one run found."""

    machine: Machine
    rounds: int
    sections: Sequence[Section]
    load_average: float
    """Of the minute before the end."""


def middle(values: Sequence[float], unit: str = "ms", digits: int = 1) -> str:
    """The median, and between which values the rounds lay."""
    shown = f"{statistics.median(values):,.{digits}f}"
    if len(values) > 1:
        shown += f" ({min(values):,.{digits}f} to {max(values):,.{digits}f})"
    return f"{shown} {unit}".strip()


def facts(findings: Findings) -> Iterator[str]:
    """What it was measured on, and how."""
    machine = findings.machine
    yield (
        f"{machine.cores} cores of {machine.processor}, shared with the clients; {machine.kernel}; {machine.python}; "
        f"load average before: {machine.load_average:.2f}, at the end: {findings.load_average:.2f}"
    )
    yield f"logs in {machine.directory} ({machine.file_system}), where an fdatasync takes {machine.fsync_ms:.2f} ms"
    yield f"medians of {findings.rounds} rounds, and in brackets between which values they lay"


def render(findings: Findings, console: Console) -> None:
    """Print a table for each part."""
    for line in facts(findings):
        console.print(Text(line))
    for section in findings.sections:
        table = Table(title=f"{section.name}: {section.words}", box=SIMPLE_HEAD, show_edge=False, title_justify="left")
        for column in COLUMNS:
            table.add_column(column)
        for row in section.rows:
            *cells, verdict = row.cells()
            table.add_row(*map(Text, cells), Text(verdict, "red" if row.holds is False else "green"))
        console.print()
        console.print(table)


def write(findings: Findings, path: Path) -> None:
    """Write it as Markdown or JSON, by the path's suffix."""
    if path.suffix == ".json":
        path.write_bytes(orjson.dumps(asdict(findings), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    else:
        path.write_text(to_markdown(findings))


def to_markdown(findings: Findings) -> str:
    """The same tables as on the screen."""
    lines = [f"- {line}" for line in facts(findings)]
    for section in findings.sections:
        lines += ["", f"### {section.name}: {section.words}", "", f"| {' | '.join(COLUMNS)} |"]
        lines.append("| --- | --- | --- | --- |")
        lines += [f"| {' | '.join(row.cells())} |" for row in section.rows]
    return "\n".join(lines) + "\n"

"""What a demonstration counted, what must be equal in it, and the page that says so.

The words: *published* are readings that devices took; *acknowledged* those of them with a PUBACK; *stored* are events
in the log, where a reading stands twice if its PUBACK was lost in the crash and its device sent it again (at QoS 1 that
is right); *aggregated* are the events counted in windows; *forwarded* are the events at the cloud, each counted once. A
*lost* reading is one that was acknowledged and is not at the cloud.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from bench.devices import Fleet
from bench.observers import Cloud, Results, Stored


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must hold."""

    words: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Tally:
    """All counts at the end."""

    devices: int
    published: int
    acknowledged: int
    repeated: int
    refused: int
    stored: int
    stored_readings: int
    """Different readings among them."""
    unstored: int
    """Readings acknowledged and not in the log."""
    windows: int
    aggregated: int
    conflicts: int
    received: int
    forwarded: int
    duplicates: int
    unstamped: int
    gaps: int
    proven: int
    """What the chain of stamps proves to have arrived."""
    missing: int
    """Events of the log that are not at the cloud."""
    foreign: int
    """Events at the cloud that are not in the log."""
    lost: int
    exit_code: int
    """Of the node, when it was asked to end."""

    def lines(self) -> Iterator[tuple[str, int, str]]:
        """Each line of the ledger: its name, its count, who counted it and how."""
        again = self.stored - self.stored_readings
        yield "published", self.published, f"readings that {self.devices} devices took"
        yield "acknowledged", self.acknowledged, f"readings with a PUBACK; {self.repeated:,} were sent again, with DUP"
        yield "stored", self.stored, f"events in the log's file; {again:,} of them second copies"
        yield "aggregated", self.aggregated, f"events in {self.windows:,} windows, seen by a subscriber"
        yield "forwarded", self.forwarded, "events at the cloud, by (edge, epoch, seq)"
        yield "duplicates", self.duplicates, "copies at the cloud, dropped by (edge, epoch, seq)"
        yield "lost", self.lost, "readings acknowledged and not at the cloud"

    def checks(self) -> Iterator[Check]:
        """Everything that must hold for the demonstration to have shown anything."""
        yield Check("every reading was acknowledged, none refused", self.acknowledged == self.published)
        yield Check("the log has every acknowledged reading", not self.unstored)
        yield Check("each stored event is in one window, once", self.aggregated == self.stored and not self.conflicts)
        yield Check("each stored event is at the cloud, nothing else is", not self.missing and not self.foreign)
        yield Check("the chain of stamps has no gap", not self.gaps and not self.unstamped)
        yield Check("the chain proves as many events as are stored", self.proven == self.forwarded == self.stored)
        yield Check("nothing acknowledged was lost", self.lost == 0 and self.published > 0)
        yield Check("the node ended with exit code 0 when it was asked to", self.exit_code == 0)

    @property
    def holds(self) -> bool:
        """Whether every check does."""
        return all(check.holds for check in self.checks())


def count(fleet: Fleet, stored: Stored, results: Results, cloud: Cloud, exit_code: int) -> Tally:
    """Compare what each has counted."""
    acknowledged = fleet.readings()
    in_log = set(stored.readings.values())
    at_cloud = {seq for _, _, seq in cloud.readings}
    return Tally(
        devices=len(fleet.devices),
        published=fleet.published,
        acknowledged=fleet.acknowledged,
        repeated=fleet.repeated,
        refused=fleet.refused,
        stored=len(stored.readings),
        stored_readings=len(in_log),
        unstored=len(acknowledged - in_log),
        windows=len(results.windows),
        aggregated=results.aggregated,
        conflicts=results.conflicts,
        received=cloud.received,
        forwarded=len(cloud.readings),
        duplicates=cloud.duplicates,
        unstamped=cloud.unstamped,
        gaps=cloud.proof.gaps,
        proven=cloud.proof.received,
        missing=len(stored.readings.keys() - at_cloud),
        foreign=len(at_cloud - stored.readings.keys()),
        lost=len(acknowledged - set(cloud.readings.values())),
        exit_code=exit_code,
    )


def page(tally: Tally) -> Group:
    """The ledger, and the checks below it."""
    table = Table(title="Ledger", box=SIMPLE_HEAD, title_justify="left", title_style="bold", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for name, number, words in tally.lines():
        table.add_row(name, f"{number:,}", words)
    checks = [
        Text.assemble(("  holds  ", "green") if check.holds else ("  FAILS  ", "bold red"), check.words)
        for check in tally.checks()
    ]
    return Group(table, *checks)

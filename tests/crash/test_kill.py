"""Nothing acknowledged is lost by SIGKILL, nor by power cuts; and where something is lost, the ledger says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash import power
from tests.crash.kill import Options, run, sabotaged
from tests.crash.ledger import Entry
from tests.node import BERM


def _run(directory: Path, rounds: int, seconds: float, *sabotages: str, library: Path | None = None) -> list[Entry]:
    command = sabotaged(*sabotages) if sabotages else BERM
    options = Options(rounds, seed=7, seconds_per_round=seconds, command=command, library=library)
    return run(directory, options, print)


def _broken(entries: list[Entry]) -> set[str]:
    return {entry.promise for entry in entries if entry.faults}


def test_what_was_acknowledged_outlives_sigkill_under_load_and_reaches_everyone_as_promised(tmp_path: Path) -> None:
    entries = _run(tmp_path, 6, 1.0)
    assert not _broken(entries), "\n".join(map(str, entries))


@pytest.mark.skipif(bool(power.missing()), reason=power.missing())
def test_what_was_acknowledged_outlives_power_cuts_under_load_and_reaches_everyone_as_promised(tmp_path: Path) -> None:
    entries = _run(tmp_path, 5, 1.0, library=power.build(tmp_path))
    assert not _broken(entries), "\n".join(map(str, entries))


def test_the_ledger_notices_a_group_that_was_acknowledged_and_not_written(tmp_path: Path) -> None:
    broken = _broken(_run(tmp_path, 1, 3.0, "lose_a_group"))
    assert any("is in the log" in promise for promise in broken)
    assert {"everything reached absent-one", "everything reached absent-two"} <= broken


def test_the_ledger_notices_what_is_done_twice_or_skipped_after_a_kill(tmp_path: Path) -> None:
    broken = _broken(_run(tmp_path, 2, 3.0, "forget_positions", "forget_identifiers", "forward_ahead"))
    assert {"what two-311 was acknowledged is in the log", "what two-5 was acknowledged is in the log"} <= broken
    assert "the filter passed each event once" in broken
    assert "the windows count each event once" in broken
    assert "everything is in the cloud" in broken

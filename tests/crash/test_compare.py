"""The comparison counts what is lost: nothing of Berm's by a power cut, and something where a broker does not sync."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.brokers import Kind
from tests.crash import power
from tests.crash.compare import cuts, kills, stops, table, unseen
from tests.crash.kill import sabotaged
from tests.crash.peers import AMQTT, DATA, MOSQUITTO, berm
from tests.crash.rounds import Options, Result, restless

SHORT = Options(seed=7, seconds=0.6)
LOSES = replace(SHORT, seconds=0.3, patience=0.5)
"""Where something is lost, and need not be waited for."""
KINDS = [pytest.param(kind, id=kind.name) for kind in (berm(), MOSQUITTO, AMQTT)]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The witness, compiled."""
    if reason := power.missing():
        pytest.skip(reason)
    return power.build(tmp_path_factory.mktemp("power"))


def test_berm_loses_nothing_by_power_cuts(tmp_path: Path, library: Path) -> None:
    result = cuts(berm(), tmp_path / "cuts", SHORT, 4, library, ordered_names=False)
    assert result.rounds == 4
    assert result.acknowledged > 200
    assert result.sound, result


def test_berm_loses_nothing_by_a_power_cut_while_sessions_come_and_go(tmp_path: Path, library: Path) -> None:
    result = cuts(berm(), tmp_path / "cuts", replace(SHORT, seed=8, activities=[restless]), 2, library)
    assert result.sound, result


def test_a_broker_that_does_not_sync_is_seen_to_lose_by_power_cuts_and_not_by_sigkill(
    tmp_path: Path, library: Path
) -> None:
    careless = berm(sabotaged("never_sync"))
    assert kills(careless, tmp_path / "kills", SHORT, 2).lost == 0
    result = cuts(careless, tmp_path / "cuts", LOSES, 5, library)
    assert result.lost > 0
    assert not result.sound
    assert "lost" in result.notes[0]


def test_a_disk_that_lies_about_its_syncs_is_seen_to_lose(tmp_path: Path, library: Path) -> None:
    assert cuts(berm(), tmp_path / "cuts", LOSES, 5, library, syncs=False).lost > 0


def test_a_message_that_is_acknowledged_and_not_written_is_counted_after_sigkill(tmp_path: Path) -> None:
    result = kills(berm(sabotaged("lose_a_group")), tmp_path / "kills", LOSES, 2)
    assert result.lost_absent > 0


def test_a_broker_that_forgets_the_identifiers_of_qos_2_is_seen_to_give_messages_twice(tmp_path: Path) -> None:
    assert kills(berm(sabotaged("forget_identifiers")), tmp_path / "kills", SHORT, 2).twice > 0


def test_a_broker_that_can_not_start_on_what_is_left_is_counted_and_begins_anew(tmp_path: Path, library: Path) -> None:
    code = "import sys; from pathlib import Path; Path('data/berm.db').exists() and sys.exit(3); import berm.__main__"
    result = kills(berm((sys.executable, "-c", code)), tmp_path / "kills", LOSES, 2)
    assert result.unstarted == 2
    assert result.lost > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_sees_all_that_a_broker_writes(tmp_path: Path, library: Path, kind: Kind) -> None:
    if reason := kind.missing():
        pytest.skip(reason)
    assert unseen(kind, tmp_path / "seen", SHORT, library) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_with_a_clean_end_is_a_round(tmp_path: Path, kind: Kind) -> None:
    if reason := kind.missing():
        pytest.skip(reason)
    result = stops(kind, tmp_path / "stops", SHORT, 1)
    assert (result.rounds, result.unstarted, result.ended) == (1, 0, 0)
    assert result.acknowledged > 50
    if kind is not AMQTT:  # which loses of what waits for the one that is away, whether it is killed or not
        assert result.lost == 0


def test_a_kept_power_cut_can_be_made_again(tmp_path: Path, library: Path) -> None:
    options = replace(LOSES, keep=tmp_path / "kept")
    result = cuts(berm(sabotaged("never_sync")), tmp_path / "cuts", options, 5, library)
    assert result.notes
    base = next((tmp_path / "kept").rglob("base"))
    command = [sys.executable, "-m", "tests.crash.power", "--base", str(base)]
    command += ["--journal", str(base.with_name("journal")), "--root", str((tmp_path / "cuts" / DATA).resolve())]
    command += ["--seed", base.parent.name, "--out"]
    made = []
    for name in ("one", "two"):
        out = tmp_path / name
        subprocess.run([*command, str(out)], check=True, cwd=Path(__file__).parents[2], timeout=60)
        made.append(sorted((path.name, path.read_bytes()) for path in out.rglob("*") if path.is_file()))
    assert made[0] == made[1]
    assert "berm.db" in dict(made[0])


def test_the_table_has_a_row_for_each_result() -> None:
    lines = table([Result("berm", "SIGKILL", rounds=3, acknowledged=1234, lost=5), Result("other", "power cut")]).split(
        "\n"
    )
    assert len(lines) == 4
    assert lines[2].startswith("| berm | SIGKILL | 3 | 0 | 1,234 | 5 |")

"""The comparison, end to end with a few messages, and in its parts."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from rich.console import Console

from bench.brokers import AMQTT, BERM, BERM_MEMORY, KINDS, MOSQUITTO
from bench.compare import SHAPES, Plan, compare
from bench.load import Amount
from tests.bench.helpers import needs_gcc, needs_mosquitto, program

PATIENCE = 120
ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.compare", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE)


@needs_gcc
@needs_mosquitto
def test_one_command_runs_every_broker_over_every_shape_and_writes_the_figures(tmp_path: Path) -> None:
    files = [tmp_path / "result.json", tmp_path / "result.md"]
    done = run("--quick", "--directory", str(tmp_path), *(part for file in files for part in ("--out", str(file))))
    assert done.returncode == 0, done.stderr
    result = orjson.loads(files[0].read_bytes())
    assert {(each["shape"], each["broker"]) for each in result["figures"]} == {
        (shape, kind) for shape in SHAPES for kind in KINDS
    }
    assert result["failures"] == []
    for each in result["samples"]:
        load = each["load"]
        assert load["received"] == load["expected"] > 0, each
        assert load["acked"] == (0 if each["shape"] == "qos0" else load["sent"]), each
        assert each["rss"] > 0
    assert all(figure["ratio"] for figure in result["figures"])
    assert all(kind in files[1].read_text() and kind in done.stdout for kind in KINDS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json", "result.md"]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--shapes", "qos9", "'qos9' is none of qos0, qos1"),
        ("--brokers", "berm,hivemq", "'hivemq' is none of berm"),
        ("--out", "result.txt", "is written as .md or .json"),
    ],
)
def test_a_wrong_option_is_refused_with_what_is_allowed(option: str, value: str, words: str) -> None:
    done = run(option, value)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.replace("│", " ").split())


def test_brokers_take_turns_in_an_order_that_moves_on_with_each_round() -> None:
    plan = Plan([BERM, MOSQUITTO, AMQTT], list(SHAPES.values())[:2], 3, Amount(1))
    steps = [(round, shape.name, kind.name) for round, shape, kind in plan.steps()]
    assert len(steps) == len(plan) == 18
    assert [kind for round, shape, kind in steps if shape == "qos0"] == [
        *("berm", "mosquitto", "amqtt"),
        *("mosquitto", "amqtt", "berm"),
        *("amqtt", "berm", "mosquitto"),
    ]
    assert steps[:4] == [(0, "qos0", "berm"), (0, "qos0", "mosquitto"), (0, "qos0", "amqtt"), (0, "qos1", "berm")]


@needs_gcc
def test_a_broker_that_fails_and_one_that_is_absent_leave_the_others_their_figures(tmp_path: Path) -> None:
    sick = program("sick", "import sys\nsys.exit('broken')")
    absent = replace(sick, name="absent", missing=lambda: "absent is not installed")
    plan = Plan([sick, absent, BERM_MEMORY], [SHAPES["qos1"]], 1, Amount(0, 50))
    report = compare(plan, tmp_path, Console(quiet=True))
    assert [sample.broker for sample in report.samples] == ["berm-memory"]
    assert report.failures == ["sick, round 1, sick ended with code 1: broken"]
    assert report.absent == {"absent": "absent is not installed"}
    assert list(tmp_path.iterdir()) == []


RUDE = """
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    server.accept()[0].close()
"""


@needs_gcc
def test_a_broker_that_hangs_up_is_a_failure_and_no_figure(tmp_path: Path) -> None:
    plan = Plan([program("rude", RUDE)], [SHAPES["qos1"]], 1, Amount(0, 50))
    report = compare(plan, tmp_path, Console(quiet=True))
    assert not report.samples
    assert "rude, round 1, qos1: load: the broker closed the connection" in report.failures[0]

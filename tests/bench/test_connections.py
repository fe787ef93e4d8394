"""The measurement of connections, end to end with a few clients, and in its parts."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from bench.brokers import BERM, HOST, Broker, free_port
from bench.connections import PARTS
from bench.crowd import Crowd, Manner
from bench.findings import Findings, Row, Section, middle, to_markdown
from bench.load import LoadError
from bench.pair import Pair
from bench.rig import QUICK
from tests.bench.helpers import needs_gcc
from tests.bench.test_report import MACHINE
from tests.node import Node

PATIENCE = 300
ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.connections", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    broker = BERM.start(tmp_path_factory.mktemp("node"))
    yield broker
    broker.stop()


@needs_gcc
def test_one_command_makes_every_measurement_and_writes_what_it_found(tmp_path: Path) -> None:
    files = [tmp_path / "result.json", tmp_path / "result.md"]
    done = run("--quick", "--directory", str(tmp_path), *(part for file in files for part in ("--out", str(file))))
    assert done.returncode == 0, done.stdout + done.stderr
    sections = orjson.loads(files[0].read_bytes())["sections"]
    assert [section["name"] for section in sections] == list(PARTS)
    rows = {row["what"]: row for section in sections for row in section["rows"]}
    for what in ("connected to the end", "sessions in the log's file"):
        assert rows[what]["found"] == str(QUICK.clients)
        assert rows[what]["holds"]
    for row in rows.values():
        assert row["what"] in done.stdout
        assert row["what"] in files[1].read_text()
        assert all(value >= 0 for name, value in row["figures"].items() if name.startswith(("pair", "connects")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json", "result.md"]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [("--parts", "many,few", "'few' is none of many, kill"), ("--out", "result.txt", "is written as .md or .json")],
)
def test_a_wrong_option_is_refused_with_what_is_allowed(option: str, value: str, words: str) -> None:
    done = run(option, value)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.replace("│", " ").split())


@needs_gcc
def test_clients_connect_subscribe_ping_get_messages_and_return(node: Broker) -> None:
    with Crowd(node.port, Manner(ping=0.1)) as crowd:
        assert crowd.connect(30).ready == crowd.subscribe().ready == node.connections() == 30
        stayed = crowd.stay(0.5)
        assert stayed.pings > 0
        assert stayed.pongs + 30 >= stayed.pings
        assert 0 < stayed.p50 <= stayed.p99 <= stayed.max
        assert crowd.fan().received == 30
        returned = crowd.storm()
        assert (returned.ready, returned.connects, returned.closed) == (30, 30, 0)
        crowd.subscribe()
        assert crowd.fan().received == 30
        assert crowd.deafen().ready == 30
        assert crowd.feed(0.5, 10, 100).received > 0  # by the one that reads


@needs_gcc
def test_clients_that_take_their_leave_are_all_accepted(node: Broker) -> None:
    with Crowd(node.port, Manner(width=5, prefix="churn")) as crowd:
        done = crowd.churn(0.3, 50)
        assert done.connects > 0
        assert (done.refused, done.closed, done.ready) == (0, 0, 0)
        assert crowd.churn(0.3, 0).connects > 0


@needs_gcc
@pytest.mark.parametrize("kind", ["silent", "half", "drip-connect"])
def test_nuisances_are_back_as_soon_as_they_are_closed(kind: str, tmp_path: Path) -> None:
    with Node(tmp_path, "[mqtt]\nconnect_timeout = 1\n") as node, Crowd(node.port, Manner(kind)) as crowd:
        assert crowd.connect(7).ready == 7
        closed = 0
        while not closed:
            closed += crowd.stay(0.5).closed
        assert crowd.stay(0.1).ready == 7


@needs_gcc
def test_a_publish_that_drips_stays(tmp_path: Path) -> None:
    with Node(tmp_path, "[mqtt]\nconnect_timeout = 1\n") as node, Crowd(node.port, Manner("drip-publish")) as crowd:
        assert crowd.connect(7).ready == 7
        stayed = crowd.stay(2.5)
        assert (stayed.ready, stayed.closed) == (7, 0)


@needs_gcc
def test_a_crowd_that_nobody_answers_is_an_error_with_what_it_said() -> None:
    with Crowd(free_port(), Manner()) as crowd, pytest.raises(LoadError, match="crowd: cannot connect client 0 to"):
        crowd.connect(1)


@needs_gcc
def test_a_pair_tells_its_delay(node: Broker) -> None:
    with Pair(node.port) as pair:
        pass
    assert pair.delay.messages > 0
    assert 0 < pair.delay.p50 <= pair.delay.p99 <= pair.delay.max


@needs_gcc
def test_a_pair_whose_broker_ends_is_an_error(tmp_path: Path) -> None:
    broker = BERM.start(tmp_path)
    with pytest.raises(LoadError, match="the pair: "), Pair(broker.port):
        broker.kill()


def test_connections_are_those_that_are_open(node: Broker) -> None:
    before = node.connections()
    with socket.create_connection((HOST, node.port)) as link:
        link.sendall(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01x")
        assert link.recv(4) == b"\x20\x02\x00\x00"
        assert node.connections() == before + 1
    assert node.rss() > 10_000_000


def test_a_table_has_what_was_found_beside_what_was_asked_for() -> None:
    rows = [Row("one", "1 ms", "2 ms", True), Row("two", "3 ms", "2 ms", False), Row("three", "4 ms")]
    text = to_markdown(Findings(MACHINE, 3, [Section("many", "clients", rows)], 0.5))
    assert "| one | 1 ms | 2 ms | holds |" in text
    assert "| two | 3 ms | 2 ms | FAILS |" in text
    assert "| three | 4 ms |  |  |" in text
    assert "load average before: 0.10, at the end: 0.50" in text


def test_the_middle_is_told_with_the_ends() -> None:
    assert middle([3, 1, 2]) == "2.0 (1.0 to 3.0) ms"
    assert middle([1234.5], "/s", 0) == "1,234 /s"

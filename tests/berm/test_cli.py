"""The commands as a shell runs them: what comes on stdout, what on stderr, and the exit code."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest

from berm import __version__
from storage.interface import FSYNC, META, Event, Group
from storage.sqlite import SQLiteEngine
from tests.berm.helpers import Client, berm
from tests.node import Node

NOW = datetime.now(UTC)
MINUTE = 60_000_000


@pytest.fixture
def history(tmp_path: Path) -> Path:
    """A directory with a log of ten minutes, one event a minute, and no node on it."""
    engine = SQLiteEngine(tmp_path / "data")
    group = Group()
    start = round(datetime(2026, 3, 1, 10, tzinfo=UTC).timestamp() * 1e6)
    for minute in range(10):
        topic = "plant/oven" if minute % 2 else "office/door"
        group.events.append(
            Event(minute + 1, start + minute * MINUTE, topic, b"%d" % minute, 1, False, "d", b"", 0, FSYNC)
        )
    group.put(META, ("node",), ("edge-7",))
    engine.commit(group.events, group.state, True)
    engine.close()
    return tmp_path


def payloads(output: str) -> list[str]:
    return [orjson.loads(line)["payload"] for line in output.splitlines()]


def test_the_version_is_printed(tmp_path: Path) -> None:
    done = berm("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"berm {__version__}\n")


def test_without_a_command_it_says_which_there_are(tmp_path: Path) -> None:
    done = berm(cwd=tmp_path)
    assert all(command in done.stdout + done.stderr for command in ("run", "check", "replay", "status"))


def test_replay_prints_a_span_of_time_and_topics(history: Path) -> None:
    done = berm("replay", "--topic", "plant/#", "--from", "2026-03-01T10:02Z", "--to", "2026-03-01T10:07Z", cwd=history)
    assert (done.returncode, done.stderr) == (0, "")
    assert payloads(done.stdout) == ["3", "5"]


def test_replay_takes_times_of_day(tmp_path: Path) -> None:
    hour_ago = (NOW - timedelta(hours=1)).replace(second=0, microsecond=0)
    engine = SQLiteEngine(tmp_path / "data")
    times = [hour_ago + timedelta(minutes=minute) for minute in range(5)]
    engine.commit(
        [
            Event(n, round(at.timestamp() * 1e6), "plant/a", b"%d" % n, 1, False, "d", b"", 0, FSYNC)
            for n, at in enumerate(times)
        ][1:],
        {},
        True,
    )
    engine.close()
    since, until = (times[minute].astimezone().strftime("%H:%M") for minute in (1, 4))
    done = berm("replay", "--topic", "plant/#", "--from", since, "--to", until, cwd=tmp_path)
    assert payloads(done.stdout) == ["1", "2", "3"]


def test_replay_ends_quietly_when_its_reader_has_gone(history: Path) -> None:
    command = [sys.executable, "-m", "berm", "replay"]
    with subprocess.Popen(command, cwd=history, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


def test_replay_publishes_to_a_broker(history: Path) -> None:
    with Node(history / "other") as node, Client(node.port, "subscriber") as subscriber:
        subscriber.subscribe("#")
        done = berm("replay", "-t", "plant/#", "--publish", f"mqtt://127.0.0.1:{node.port}", cwd=history)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "published 5, acknowledged 5\n")
        subscriber.wait_for({b"1", b"3", b"5", b"7", b"9"})


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--topic", "a/#/b"), "berm: --topic a/#/b: "),
        (("--from", "soon"), "berm: --since: 'soon' is not a time; write it like 10:00, "),
        (("--to", "25:00"), "berm: --until: '25:00': there is no such time; "),
        (("--from", "-5m", "--to", "-6m"), "berm: --until -6m is not after --since -5m"),
        (("--publish", "host:1883"), "berm: --publish: 'host:1883' is not a broker; write mqtt://"),
    ],
)
def test_a_question_that_makes_no_sense_is_one_line_and_exit_code_2(
    history: Path, arguments: tuple[str, ...], line: str
) -> None:
    done = berm("replay", *arguments, cwd=history)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_a_broker_that_is_not_there_is_one_line_and_exit_code_1(history: Path) -> None:
    done = berm("replay", "--publish", "mqtt://127.0.0.1:1", cwd=history)
    assert done.returncode == 1
    assert done.stderr == "berm: mqtt://127.0.0.1:1: connection refused; published 0, acknowledged 0\n"


@pytest.mark.parametrize("command", ["replay", "status"])
def test_a_directory_without_a_log_is_one_line_and_exit_code_2(tmp_path: Path, command: str) -> None:
    done = berm(command, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "berm: data/berm.db: there is no log; name a node's data directory with --data, or its --config\n"
    )
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("command", ["replay", "status"])
def test_a_file_that_is_no_log_is_one_line_and_exit_code_2(tmp_path: Path, command: str) -> None:
    (tmp_path / "berm.db").write_bytes(b"not a database, " * 1000)
    done = berm(command, "--data", str(tmp_path), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("berm: ")
    assert done.stderr.count("\n") == 1


def test_status_tells_of_a_stopped_node(history: Path) -> None:
    done = berm("status", cwd=history)
    assert (done.returncode, done.stderr) == (0, "")
    assert "node      edge-7 (stopped)\n" in done.stdout
    assert "log       1 to 10, 2026-03-01T10:00:00.000000Z to 2026-03-01T10:09:00.000000Z\n" in done.stdout


def test_status_tells_of_a_running_node_and_of_the_same_node_once_it_has_stopped(tmp_path: Path) -> None:
    with Node(tmp_path, name="edge-7") as node:
        with Client(node.port, "display", expiry=3600) as display:
            display.subscribe("plant/#")
            status = orjson.loads(berm("status", "--json", cwd=tmp_path).stdout)
            assert (status["running"], status["pid"], status["node"]) == (True, node.process.pid, "edge-7")
            assert (status["sessions"], status["connected"]) == (1, 1)
        with Client(node.port, "device") as device:
            device.publish("plant/a", b"1", b"2", b"3")
        assert node.stop() == 0
    status = orjson.loads(berm("status", "--json", cwd=tmp_path).stdout)
    assert (status["running"], status["pid"], status["last_seq"], status["connected"]) == (False, None, 3, 0)
    assert [(each["client_id"], each["behind"]) for each in status["most_behind"]] == [("display", 3)]


def test_asking_leaves_a_running_node_alone(tmp_path: Path) -> None:
    with Node(tmp_path) as node, Client(node.port, "device") as device:
        for number in range(5):
            device.publish("plant/a", b"%d" % number)
            assert berm("status", cwd=tmp_path).returncode == 0
            assert payloads(berm("replay", cwd=tmp_path).stdout) == [str(each) for each in range(number + 1)]
        assert node.stop() == 0
        assert "WARNING" not in node.stderr


PLANT = """
from processors import Event, Processors

plant = Processors()


@plant.filter("plant/+/temperature", to="alarm/{topic}")
def hot(event: Event) -> bool:
    return event.number("value") > 80
"""


@pytest.fixture
def configured(tmp_path: Path) -> Path:
    (tmp_path / "plant.py").write_text(PLANT)
    (tmp_path / "berm.toml").write_text(
        '[node]\nname = "edge-7"\n[mqtt]\nport = 0\n[[processors]]\nfile = "plant.py"\n'
        '[[bridges]]\nname = "cloud"\nhost = "cloud.example"\n[[bridges.routes]]\nname = "all"\ntopic = "plant/#"\n'
    )
    return tmp_path


def test_check_says_what_a_node_would_do_and_leaves_nothing_behind(configured: Path) -> None:
    before = set(configured.iterdir())
    done = berm("check", cwd=configured)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "settings: berm.toml",
        "node: edge-7",
        "data: data: will be made",
        "lock: no node is running on this directory",
        "listener mqtt: mqtt://127.0.0.1:0",
        "processors: plant.py: hot (plant/+/temperature: filter to alarm/{topic})",
        "bridge cloud: to cloud.example:1883 as edge-7-cloud: all (plant/#)",
        "ok",
    ]
    assert {path for path in configured.iterdir() if path.name != "__pycache__"} == before


def test_check_tells_every_problem_and_exits_with_2(configured: Path) -> None:
    (configured / "plant.py").write_text("import nowhere_to_be_found\n")
    (configured / "data").touch()
    done = berm("check", cwd=configured)
    assert done.returncode == 2
    assert "ok" not in done.stdout
    problems = done.stderr.splitlines()
    assert [problem.partition(":")[0] for problem in problems] == ["data", "processors"]
    assert problems[0].endswith("set storage.path")
    assert "plant.py:1: " in problems[1]
    assert "nowhere_to_be_found" in problems[1]


def test_check_of_a_wrong_configuration_tells_file_line_and_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("[mqtt]\nport = 1883\nmax_conections = 5\n")
    done = berm("check", "--config", "my.toml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        'my.toml:3: mqtt.max_conections: unknown setting; did you mean "max_connections"? allowed: host, port, '
    )


def test_check_refuses_two_processors_of_one_name(configured: Path) -> None:
    (configured / "second.py").write_text(PLANT)
    done = berm("check", "--set", 'processors=[{file="plant.py"},{file="second.py"}]', cwd=configured)
    assert done.returncode == 2
    assert done.stderr == (
        "processors: second.py: a processor in plant.py is named 'hot' too; "
        "its state is kept by that name, so give one of them another\n"
    )


def test_check_beside_a_running_node_says_so(tmp_path: Path) -> None:
    with Node(tmp_path) as node:
        done = berm("check", cwd=tmp_path)
        assert done.returncode == 0
        assert f"lock: a node is running on this directory, pid {node.process.pid}" in done.stdout

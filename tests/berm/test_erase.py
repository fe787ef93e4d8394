"""`berm erase` against a real node, and without one; what it leaves of a client, and what of everybody else."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from tests.berm.helpers import Client, berm
from tests.node import Node, wait_until

SETTINGS = "[storage]\nsegment_bytes = 20000\n"


def published(node: Node, client_id: str, number: int) -> None:
    with Client(node.port, client_id, expiry=1000) as client:
        client.subscribe(f"own/{client_id}/#")
        for each in range(number):
            client.publish(f"home/{client_id}/pulse", f"secret of {client_id}, {each}".encode(), qos=1)
        client.publish(f"home/{client_id}/state", f"secret of {client_id}".encode(), qos=1, retain=True)


def files_with(data: Path, text: bytes) -> list[str]:
    return [path.name for path in data.rglob("*") if path.is_file() and text in path.read_bytes()]


def test_a_running_node_erases_a_client_and_forgets_it(tmp_path: Path) -> None:
    with Node(tmp_path, SETTINGS) as node:
        published(node, "miller", 200)
        published(node, "others", 200)
        data = tmp_path / "data"
        wait_until("something is sealed", lambda: any(data.glob("segments/*.segment")))
        counted = berm("erase", "--data", "data", "--client", "miller", "--dry-run", cwd=tmp_path)
        assert "events: 201" in counted.stdout, counted.stderr
        refused = berm("erase", "--data", "data", "--client", "miller", cwd=tmp_path, stdin="n\n")
        assert refused.returncode == 1
        assert files_with(data, b"miller")
        done = berm("erase", "--data", "data", "--client", "miller", "--reference", "4711", "--yes", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert files_with(data, b"miller") == []
        replayed = berm("replay", "--data", "data", cwd=tmp_path).stdout.splitlines()
        assert len(replayed) == 201
        assert not [line for line in replayed if "miller" in line]
        with Client(node.port, "watcher") as watcher:
            watcher.subscribe("home/#")
            wait_until("a retained message", lambda: bool(watcher.messages))
            assert [message.topic for message in watcher.messages] == ["home/others/state"]
        sessions = orjson.loads(berm("status", "--data", "data", "--json", cwd=tmp_path).stdout)["most_behind"]
        assert [each["client_id"] for each in sessions] == ["others"]
        node.kill()
        assert files_with(data, b"miller") == []
        node.start()
        assert len(berm("replay", "--data", "data", cwd=tmp_path).stdout.splitlines()) == 201
    reports = [orjson.loads(path.read_bytes()) for path in data.glob("erasures/*.json")]
    assert [report["reference"] for report in reports] == ["4711"]


def test_without_a_node_the_command_does_it_itself(tmp_path: Path) -> None:
    with Node(tmp_path, SETTINGS) as node:
        published(node, "miller", 20)
        published(node, "others", 20)
    done = berm("erase", "--data", "data", "--topic", "home/miller/#", "--yes", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert files_with(tmp_path / "data", b"secret of miller") == []
    assert len(berm("replay", "--data", "data", cwd=tmp_path).stdout.splitlines()) == 21


def test_a_node_goes_on_with_what_was_asked_of_the_one_before(tmp_path: Path) -> None:
    from storage.erasure import Request, ask

    with Node(tmp_path, SETTINGS) as node:
        published(node, "miller", 100)
        node.kill()
        ask(tmp_path / "data", Request("1", ("miller",)))
        node.start()
        wait_until("the report", lambda: (tmp_path / "data/erasures/1.json").exists())
        wait_until("no request", lambda: not (tmp_path / "data/erasures/1.request").exists())
        assert files_with(tmp_path / "data", b"miller") == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "say what to erase"),
        (("--topic", "a/#/b"), "--topic"),
        (("--client", "a"), "there is no log"),
    ],
)
def test_what_cannot_be_erased_is_one_clear_line(tmp_path: Path, arguments: tuple[str, ...], line: str) -> None:
    done = berm("erase", "--data", "data", "--yes", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_the_log_can_be_looked_at_beside_a_running_node(tmp_path: Path) -> None:
    with Node(tmp_path, SETTINGS) as node:
        published(node, "others", 500)
        wait_until("something is sealed", lambda: any((tmp_path / "data").glob("segments/*.segment")))
        text = berm("log", "stat", "--data", "data", cwd=tmp_path)
        assert text.returncode == 0, text.stderr
        assert "bytes an event" in text.stdout
        found = orjson.loads(berm("log", "stat", "--data", "data", "--json", cwd=tmp_path).stdout)
        assert found["segment_events"] + found["unsealed_events"] == 501
        assert found["segment_events"] == sum(each["events"] for each in found["segments"])
        assert found["day"]["events"] == 501
        assert found["written_per_day"] >= 0, "of a file system in memory the system counts nothing"
        assert found["days_until_disk_full"] > 0

"""`berm run` as an operator meets it: what it prints, how it ends, and what it says when it can't start."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import subprocess
from pathlib import Path

import orjson
import pytest

from broker.mqtt.codec import encode
from broker.mqtt.packets import Connect
from tests.berm.helpers import Client, berm
from tests.node import BERM, Node, wait_until


def test_a_node_says_where_it_listens_and_where_its_log_is(tmp_path: Path) -> None:
    with Node(tmp_path) as node:
        assert node.stop() == 0
        assert node.rest_of_stdout() == f"berm: the log is {node.data / 'berm.db'}\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    with Node(tmp_path) as node:
        with Client(node.port, "device") as device:
            device.publish("plant/a", *(b"%d" % index for index in range(500)))
            assert node.stop(number) == 0
        assert f"{number.name}: stopping" in node.stderr
        assert "Traceback" not in node.stderr
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", node.port), 1)
        with sqlite3.connect(node.data / "berm.db") as database:
            kept = [int(payload) for (payload,) in database.execute("SELECT payload FROM events ORDER BY seq")]
        database.close()
        assert kept == list(range(500))
    assert not (node.data / "berm.db-wal").exists()


def test_clients_are_told_that_the_server_goes(tmp_path: Path) -> None:
    with Node(tmp_path) as node, socket.create_connection(("127.0.0.1", node.port), 5) as device:
        device.settimeout(10)
        device.sendall(encode(Connect("device", 5, True, 60, None, None, None), 5))
        assert device.recv(100)[:1] == b"\x20"
        assert node.stop() == 0
        assert device.recv(100) == b"\xe0\x01\x8b"
        assert device.recv(100) == b""


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(tmp_path: Path, second: signal.Signals) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    with Node(tmp_path, '[[processors]]\nfile = "slow.py"\n') as node, Client(node.port, "device") as device:
        device.publish("plant/a", b"x")
        wait_until("the function runs", (tmp_path / "started").exists)
        node.process.send_signal(signal.SIGTERM)
        wait_until("it stops", lambda: "SIGTERM: stopping" in node.stderr)
        assert node.stop(second) == -second


SLOW = """
import time
from pathlib import Path
from processors import Event, Message, Processors

processors = Processors()


@processors.map("plant/#")
def stuck(event: Event) -> Message | None:
    Path(__file__).with_name("started").touch()
    time.sleep(60)
    return None
"""


def test_hints_are_commands_that_work(tmp_path: Path) -> None:
    with Node(tmp_path, arguments=["--hints"]) as node:
        with Client(node.port, "device") as device:
            device.publish("plant/oven/temperature", b"214.5")
        node.stop()
        hints = node.rest_of_stdout()
    assert f"mosquitto_sub -h 127.0.0.1 -p {node.port} -t 'plant/#' -v" in hints
    (replay,) = re.findall(r" (replay --data .*)$", hints, re.MULTILINE)
    done = berm(*replay.replace("'", "").split(), cwd=tmp_path)
    assert '"payload":"214.5"' in done.stdout


def test_what_was_acknowledged_is_there_after_sigkill(tmp_path: Path) -> None:
    with Node(tmp_path) as node, Client(node.port, "device") as device:
        device.publish("plant/a", *(b"%d" % index for index in range(200)))
        node.stop(signal.SIGKILL)
    with Node(tmp_path) as node:
        assert len(berm("replay", cwd=tmp_path).stdout.splitlines()) == 200
        assert node.stop() == 0


def test_it_starts_and_stops_with_nobody_to_read_what_it_prints(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [*BERM, "run", "--set", "mqtt.port=0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, text=True) as process:
        os.close(writing)
        wait_until("it runs", lambda: '"epoch": "' in berm("status", "--json", cwd=tmp_path).stdout)
        process.terminate()
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_after_a_clean_stop_the_log_goes_on_without_a_gap(tmp_path: Path) -> None:
    for payload in (b"1", b"2", b"3"):
        with Node(tmp_path) as node:
            with Client(node.port, "device") as device:
                device.publish("plant/a", payload)
            assert node.stop() == 0
    lines = [orjson.loads(line) for line in berm("replay", cwd=tmp_path).stdout.splitlines()]
    assert [(line["seq"], line["payload"]) for line in lines] == [(1, "1"), (2, "2"), (3, "3")]


def _fails(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    """The exit code and the one line of a node that can't start."""
    done = berm("run", "--set", "mqtt.port=0", *arguments, cwd=tmp_path)
    assert done.stdout == ""
    assert done.stderr.endswith("\n")
    lines = [line for line in done.stderr.splitlines() if " INFO " not in line]
    assert len(lines) == 1, done.stderr
    return done.returncode, lines[0]


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, line = _fails(tmp_path, "--set", f"mqtt.port={port}")
    assert code == 1
    assert line == (
        f"berm: cannot listen on 127.0.0.1:{port}: address already in use; "
        "stop what uses it, or set mqtt.host and mqtt.port"
    )


def test_an_address_of_another_machine_is_one_clear_line(tmp_path: Path) -> None:
    code, line = _fails(tmp_path, "--set", "mqtt.host=192.0.2.1", "--set", "mqtt.access.anonymous=true")
    assert code == 1
    assert line.startswith("berm: cannot listen on 192.0.2.1:0: cannot assign requested address; ")


def test_a_host_name_that_does_not_exist_is_one_clear_line(tmp_path: Path) -> None:
    code, line = _fails(tmp_path, "--set", "mqtt.host=no host", "--set", "mqtt.access.anonymous=true")
    assert code == 1
    assert line.startswith("berm: cannot listen on no host:0: ")


@pytest.mark.parametrize("path", ["/proc/berm", "file/data"])
def test_a_data_directory_that_cannot_be_made_is_one_clear_line(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    code, line = _fails(tmp_path, "--set", f"storage.path={path}")
    assert code == 1
    assert line.startswith(f"berm: cannot use the data directory {path}: ")
    assert line.endswith("; set storage.path to one that can be written")


def test_a_data_directory_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with Node(tmp_path) as node:
        code, line = _fails(tmp_path)
        assert code == 1
        assert f"in use by the node with process id {node.process.pid}; stop that one, or set storage.path" in line
        with Client(node.port, "device") as device:
            device.publish("plant/a", b"the first one goes on")


def test_a_wrong_configuration_is_told_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "berm.toml").write_text("[mqtt]\nprot = 1883\n")
    code, line = _fails(tmp_path)
    assert code == 2
    assert line.startswith('berm.toml:2: mqtt.prot: unknown setting; did you mean "port"?')


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("import nowhere_to_be_found\n", "nowhere_to_be_found"),
        ("def broken(:\n", "plant.py:1: "),
        ("x = 1\ny = x / 0\n", "plant.py"),
    ],
)
def test_a_processor_file_that_does_not_import_is_one_clear_line(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "plant.py").write_text(text)
    (tmp_path / "berm.toml").write_text('[[processors]]\nfile = "plant.py"\n')
    code, line = _fails(tmp_path)
    assert code == 2
    assert line.startswith("berm: ")
    assert "plant.py" in line
    assert part in line
    assert not (tmp_path / "data").exists()


def test_a_damaged_log_is_set_aside_and_the_node_starts(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "berm.db").write_bytes(b"\0" * 100_000)
    with Node(tmp_path) as node:
        with Client(node.port, "device") as device:
            device.publish("plant/a", b"x")
        assert node.stop() == 0
        assert "the database was damaged, is now" in node.stderr
        (aside,) = node.data.glob("berm.db.damaged-*")
        assert aside.read_bytes() == b"\0" * 100_000


def test_json_logs_are_one_object_on_each_line(tmp_path: Path) -> None:
    with Node(tmp_path, '[log]\nformat = "json"\n') as node:
        with socket.create_connection(("127.0.0.1", node.port), 5) as device:
            device.sendall(b"GET / HTTP/1.1\r\n\r\n")
            device.settimeout(10)
            device.recv(100)
        node.stop()
        lines = [orjson.loads(line) for line in node.stderr.splitlines()]
    assert {"time", "level", "logger", "message"} == set(lines[0])
    assert [line["level"] for line in lines] == ["warning", "info", "info"]

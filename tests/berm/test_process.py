from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from berm.process import SPARE_FILES, notify, raise_file_limit
from tests.node import PATIENCE, Node


def limited(soft: int, hard: int, connections: int) -> tuple[int, str]:
    """The soft limit that a process with these limits ends up with, and what it says on stderr."""
    code = f"""
import logging, resource
from berm.process import raise_file_limit
logging.basicConfig(format="%(message)s")
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
raise_file_limit({connections})
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)
    return int(done.stdout), done.stderr


def test_as_many_files_may_be_open_as_the_system_lets_it() -> None:
    assert limited(256, 512, 100) == (512, "")


def test_too_few_files_for_the_connections_are_told_with_what_to_do() -> None:
    soft, said = limited(256, 512, 10_000)
    assert soft == 512
    assert said == (
        "this process may open 512 files, too few for 10000 connections (mqtt.max_connections); "
        f"raise `ulimit -n`, or LimitNOFILE= of the service, to {10_000 + SPARE_FILES}\n"
    )


def test_a_limit_that_is_high_enough_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[object] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1000, 1000))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: changes.append(limits))
    raise_file_limit(100)
    assert changes == []


@pytest.fixture
def manager(tmp_path: Path) -> socket.socket:
    """Where a service manager listens."""
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(PATIENCE)
    return manager


def test_a_service_manager_is_told_when_the_node_is_ready_and_when_it_stops(
    tmp_path: Path, manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with manager:
        monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
        with Node(tmp_path / "node") as node:
            assert manager.recv(100) == b"EXTEND_TIMEOUT_USEC=3600000000"
            assert manager.recv(100) == b"READY=1"
            node.stop()
            assert manager.recv(100) == b"STOPPING=1"


def test_a_service_manager_in_the_abstract_namespace_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"berm-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        notify("READY=1")
        assert manager.recv(100) == b"READY=1"


def test_a_service_manager_that_has_gone_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")

"""Brokers as processes."""

from __future__ import annotations

import signal
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from bench.brokers import BERM, HOST, MOSQUITTO, BrokerError
from tests.bench.helpers import needs_mosquitto, program

LISTENS = """
import os, signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: os._exit(7))  # an exception might come in a place that swallows it
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    server.accept()
"""


def test_a_node_is_ready_when_start_returns_and_ends_with_0_when_it_is_asked_to(tmp_path: Path) -> None:
    broker = BERM.start(tmp_path / "node")
    with socket.create_connection((HOST, broker.port), 5):
        assert broker.peak_rss() > 10_000_000
        assert broker.cpu_seconds() > 0
    assert broker.stop() == 0
    assert (tmp_path / "node" / "data" / "berm.db").exists()


@needs_mosquitto
def test_mosquitto_starts_with_settings_of_its_own(tmp_path: Path) -> None:
    broker = MOSQUITTO.start(tmp_path)
    assert broker.stop() == 0
    assert "persistence false" in (tmp_path / "mosquitto.conf").read_text()


def test_a_broker_that_ends_at_once_is_an_error_with_what_it_said(tmp_path: Path) -> None:
    kind = program("sick", "import sys\nsys.exit('no room in the inn')")
    with pytest.raises(BrokerError, match="sick ended with code 1: no room in the inn"):
        kind.start(tmp_path)


def test_a_broker_that_is_missing_is_an_error_with_the_reason(tmp_path: Path) -> None:
    kind = replace(program("absent", ""), missing=lambda: "absent is not installed")
    with pytest.raises(BrokerError, match="absent is not installed"):
        kind.start(tmp_path)


def test_stop_gives_the_exit_code_and_kill_the_signal(tmp_path: Path) -> None:
    kind = program("listener", LISTENS)
    assert kind.start(tmp_path).stop() == 7
    assert kind.start(tmp_path).kill() == -signal.SIGKILL


def test_a_broker_that_has_ended_has_no_memory_to_tell_of(tmp_path: Path) -> None:
    broker = program("listener", LISTENS).start(tmp_path)
    broker.process.send_signal(signal.SIGKILL)
    broker.process.wait()
    with pytest.raises(BrokerError, match="listener has ended"):
        broker.peak_rss()
    with pytest.raises(BrokerError, match="listener has ended"):
        broker.cpu_seconds()

"""A short run of sequences on a real node, and that a node which breaks a promise is found out."""

from __future__ import annotations

import signal

import pytest

from tests.fuzz import live
from tests.fuzz.live import NodeTarget
from tests.interop import clients

SEED = 20260103
SEQUENCES = 60


def test_a_live_node_goes_on_and_bystanders_notice_nothing() -> None:
    target = NodeTarget(SEED)
    problem = None
    for _ in range(SEQUENCES):
        problem = problem or target.go_on()
    assert (problem or target.close()) is None


def test_a_node_that_ends_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "PATIENCE", 1)  # the bystanders wait for a node that is gone
    target = NodeTarget(SEED)
    target.node.process.send_signal(signal.SIGKILL)
    target.node.process.wait()
    assert "the node has ended" in (target.go_on() or "")
    assert target.close() is not None


def test_a_node_that_grows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_GROWTH", -1 << 20)
    target = NodeTarget(SEED)
    assert "the node has grown" in (target.go_on() or "")
    assert "the node has grown" in (target.close() or "")

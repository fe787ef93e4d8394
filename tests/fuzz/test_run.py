"""The command: what it fuzzes, how it ends, and what it says."""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path

import pytest

from broker.session import Session
from tests.fuzz import run

PING = "setup 0\na > 10 0e 00 04 4d 51 54 54 04 02 00 00 00 02 78 61\na > c0|00\n"


def test_it_fuzzes_for_as_long_as_it_is_told_and_says_how_far_it_got(capsys: pytest.CaptureFixture[str]) -> None:
    clock = count().__next__
    assert run.fuzz("decoder", 1, 25, lambda: float(clock()))
    said = capsys.readouterr().out
    assert "decoder: 10 s, 4500 inputs" in said
    assert said.endswith("no promise broken\n")


def test_a_broken_promise_is_told_with_its_seed_and_what_broke_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def attach(self: Session, connection: object, window: int) -> None:
        raise RuntimeError("nobody may come in")

    sequence = tmp_path / "sequence"
    sequence.write_text(PING)
    monkeypatch.setattr(sys, "argv", ["run", "--replay", str(sequence)])
    assert run.main() == 0
    monkeypatch.setattr(Session, "attach", attach)
    assert run.main() == 1
    assert not run.fuzz("broker", 7, 1000)
    said = capsys.readouterr().out
    assert "broker, seed 7: sequence 0: RuntimeError" in said
    assert "nobody may come in" in said
    assert "\nsetup " in said

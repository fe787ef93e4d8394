"""The load generator from Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.brokers import BERM, free_port
from bench.load import Amount, Load, LoadError, Shape, arguments, build, run
from tests.bench.helpers import needs_gcc

FEW = Amount(0, 60)


def test_a_shape_becomes_the_options_of_the_program() -> None:
    shape = Shape("pairs", "", 1, 5, 5, 2, pairs=True)
    assert " ".join(arguments(1883, shape, Amount(3))) == (
        "--port 1883 --qos 1 --pubs 5 --subs 5 --window 2 --shape pairs --seconds 3 --messages 0 --drain 10"
    )


def test_what_arrived_counts_each_message_once() -> None:
    load = Load(
        sent=100, acked=100, refused=0, expected=100, received=96, duplicates=6, closed=0, seconds=1.0,
        received_per_s=96.0, p50=1.0, p99=2.0, cpu_seconds=0.1,
    )  # fmt: skip
    assert load.arrived == 0.9


@needs_gcc
@pytest.mark.parametrize(
    "shape",
    [
        Shape("qos 0", "", 0),
        Shape("fan out", "", 1, 1, 3),
        Shape("fan in", "", 1, 5, 1, 2),
        Shape("pairs", "", 1, 4, 4, 1, pairs=True),
        Shape("qos 2", "", 2),
    ],
    ids=lambda shape: shape.name,
)
def test_every_message_is_counted_at_both_ends(shape: Shape, tmp_path: Path) -> None:
    program = build(tmp_path / "build")
    broker = BERM.start(tmp_path / "node")
    try:
        load = run(program, broker.port, shape, FEW)
    finally:
        broker.stop()
    assert load.sent == 60
    assert load.acked == (60 if shape.qos else 0)
    assert load.received == load.expected == 60 * (1 if shape.pairs else shape.subscribers)
    assert load.arrived == 1
    assert load.duplicates == load.closed == load.refused == 0


@needs_gcc
def test_a_run_that_can_not_connect_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="qos 0: load: cannot connect"):
        run(build(tmp_path), free_port(), Shape("qos 0", "", 0), FEW)


@needs_gcc
def test_the_program_is_compiled_again_only_when_its_source_is_newer(tmp_path: Path) -> None:
    program = build(tmp_path)
    program.write_bytes(b"not compiled again")
    assert build(tmp_path).read_bytes() == b"not compiled again"


def test_without_a_compiler_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LoadError, match="apt-get install gcc"):
        build(tmp_path / "build")

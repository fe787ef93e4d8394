"""Every conformance script, for each of its versions, over each transport."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.clock import Clock
from tests.conformance.runner import Run, Violation
from tests.conformance.script import NAMES, Script, ScriptError, load, parse
from tests.conformance.wires import TRANSPORTS
from tests.node import Node

RUNS = [
    pytest.param(
        script,
        version,
        transport,
        id=f"{script.file.removesuffix('.txt')}:{script.line}-{NAMES[version]}-{transport}",
        marks=pytest.mark.skip(reason=script.pending) if script.pending else (),
    )
    for transport in TRANSPORTS
    for script in load()
    for version in script.clauses
]


@pytest.mark.parametrize(("script", "version", "transport"), RUNS)
def test_the_broker_does_what_a_script_awaits(
    script: Script, version: int, transport: str, node: Node, clock: Clock, unique: str
) -> None:
    Run(script, version, transport, node, clock, unique).play()


def script_of(directory: Path, *steps: str) -> Script:
    file = directory / "script.txt"
    file.write_text("\n  ".join(("A sentence", "5", "3.1.1", *steps)) + "\n")
    (script,) = parse(file)
    return script


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(("a connects : present=1",), id="a field differs"),
        pytest.param(("a connects", "a > SUBSCRIBE filter=@/x", "a silent"), id="something comes where nothing should"),
        pytest.param(("a connects", "a > SUBSCRIBE filter=@/x"), id="something more comes at the end"),
        pytest.param(("a connects", "a closed"), id="the connection stays open"),
        pytest.param(("a connects", "a > PINGREQ", "a < PUBACK id=1"), id="another packet comes"),
        pytest.param(("a > CONNECT", "a > CONNECT", "a < CONNACK", "a silent"), id="the connection is closed"),
        pytest.param(
            ("a connects", "a subscribes filter=@/x", "a publishes topic=@/y", "a gets topic=@/x"), id="nothing comes"
        ),
        pytest.param(
            ("a connects", "a subscribes filter=@/x", "a > PUBLISH topic=@/x retain payload=1", "a gets topic=@/x"),
            id="a payload that is not named",
        ),
    ],
)
@pytest.mark.parametrize("version", [5, 4])
def test_a_script_that_awaits_something_else_fails(
    steps: tuple[str, ...],
    version: int,
    node: Node,
    clock: Clock,
    unique: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.conformance.wires.PATIENCE", 0.3)
    with pytest.raises(Violation, match="A sentence"):
        Run(script_of(tmp_path, *steps), version, "tcp", node, clock, unique).play()


@pytest.mark.parametrize("step", ["a", "a jumps", "a > PUBLISH topics=x", "a > PUBLICATION", "a closed now"])
def test_a_step_that_is_not_understood_is_an_error(step: str, tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=r"script\.txt:4"):
        script_of(tmp_path, step)

"""What sequences are made of: the scripts of `tests/conformance`, as moves of clients, and the table of packets.

All scripts share one set of names here, so that their clients meet on the same topics and in the same sessions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

from tests.broker.mqtt.cases import CASES, CLIENT, EITHER
from tests.conformance.packets import Fields, Value
from tests.conformance.script import Pairs, Script, Step, load, value_of

UNIQUE: Final = "x"
"""What `@` stands for."""
_RANGE: Final = re.compile(r"(\d+)\.\.(\d+)")
_MANY: Final = 12
"""Packets at most that a range in a script is taken for."""
_LONG: Final = 20_000
"""Bytes of a packet of the table that would only be slow."""


@dataclass(frozen=True, slots=True)
class Move:
    """What one client of a script does. `verb` is `sends`, `connects`, or one of `steps.py`; of the node or the clock
    where `client` says so."""

    client: str
    verb: str
    kind: str = ""
    fields: Fields = ()
    data: bytes = b""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Template:
    """A script for one version."""

    version: int
    moves: tuple[Move, ...]


@cache
def templates() -> tuple[Template, ...]:
    """Every script for each of its versions."""
    return tuple(
        Template(version, moves)
        for script in load()
        for version in script.clauses
        if (moves := tuple(_moves(script, version)))
    )


@cache
def table(version: int) -> tuple[bytes, ...]:
    """The packets of the table, good and bad, that a client of this version may be thought to send; 0: CONNECTs."""
    return tuple(
        case.data
        for case in CASES
        if case.version == version and case.sender in (CLIENT, EITHER) and len(case.data) < _LONG
    )


def _moves(script: Script, version: int) -> Iterator[Move]:
    for step in script.of(version):
        yield from _of(step)


def _of(step: Step) -> Iterator[Move]:
    client = step.client
    if client == "clock":
        yield Move(client, "", seconds=float(step.verb))
    elif client == "node":
        yield from () if step.verb == "starts" else (Move(client, "dies" if step.verb == "dies" else "restarts"),)
    elif step.verb == ">":
        yield from _sent(step)
    elif step.verb == "connects":
        yield Move(client, "connects", "CONNECT", _connect(step))
    elif step.verb in ("subscribes", "unsubscribes"):
        yield Move(client, "sends", step.verb[:-1].upper(), _fields(step.sent))
    elif step.verb == "publishes":
        yield from _published(step)
    elif step.verb == "gets":
        yield Move(client, "answers")
    elif step.verb == "silent":
        yield Move(client, "sends", "PINGREQ")
    elif step.verb == "leaves":
        yield Move(client, "sends", "DISCONNECT")
    elif step.verb == "drops":
        yield Move(client, "drops")


def _sent(step: Step) -> Iterator[Move]:
    if step.kind.startswith("bytes"):
        yield Move(step.client, "sends", data=bytes.fromhex(step.kind.removeprefix("bytes")))
    elif any(text.startswith("$") and name == "id" for name, text in step.sent):  # of a message that it has got
        yield Move(step.client, "answers")
    elif step.kind == "CONNECT":
        yield Move(step.client, "sends", "CONNECT", _connect(step))
    else:
        for pairs in _spread(step.sent):
            yield Move(step.client, "sends", step.kind, _fields(pairs))


def _spread(pairs: Pairs) -> Iterator[Pairs]:
    """One after another what `1..3` stands for."""
    found = next(((name, found) for name, text in pairs if (found := _RANGE.fullmatch(text))), None)
    if found is None:
        yield pairs
        return
    name, bounds = found
    for number in range(int(bounds[1]), min(int(bounds[2]), int(bounds[1]) + _MANY) + 1):
        yield tuple((each, str(number) if each == name else text) for each, text in pairs)


def _published(step: Step) -> Iterator[Move]:
    fields = _fields(step.sent)
    qos = next((value for name, value in fields if name == "qos"), 0)
    if qos and not any(name == "id" for name, _ in fields):
        fields += (("id", 1),)
    yield Move(step.client, "sends", "PUBLISH", fields)
    if qos == 2:
        yield Move(step.client, "sends", "PUBREL", tuple(field for field in fields if field[0] == "id"))


def _connect(step: Step) -> Fields:
    fields = _fields(step.sent)
    if not any(name == "client" for name, _ in fields):
        fields = (("client", f"{UNIQUE}{step.client}"), *fields)
    return fields


def _fields(pairs: Pairs) -> Fields:
    return tuple((name, _value(text)) for name, text in pairs)


def _value(text: str) -> Value:
    return 1 if text.startswith("$") and text[1:].islower() else value_of(text, UNIQUE)

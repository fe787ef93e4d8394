"""The format of conformance scripts.

A file is a section of the specification. In it each script is a sentence at the margin, and indented below it the
versions that it is run for, with the clauses that it proves in each, and its steps:

    A second CONNECT ends the connection, since it is a protocol error
      5      3.1.0-2
      3.1.1  3.1.0-2
      3.1
      a connects
      a > CONNECT
      a ends 0x82

A version without clauses is one for which the sentence holds although no numbered clause says it. `pending` and a
reason, in place of a version, say that the script is not run yet; `at` and a name, which listener of `conftest.py` the
clients connect to. A step that holds for some versions only begins with
them in brackets: `[5]`, `[3.1.1 3.1]`. `#` begins a line of comment.

Steps are of named clients (a, b, ...), but for the last three:

| step | what happens |
| --- | --- |
| `a > KIND field=value ...` | it sends a packet; a CONNECT on a new connection |
| `a > bytes 10 0c ...` | it sends these bytes, on a new connection where it has none |
| `a < KIND field=value ...` | the next packet for it is this |
| `a < bytes 20 02 00 01` | the next packet for it is these bytes |
| `a <* KIND field=value ...` | the next packets for it are those of such lines together, in any order |
| `a connects field=value ... : field=value ...` | CONNECT, and a CONNACK that accepts it |
| `a subscribes field=value ... : code=0 ...` | SUBSCRIBE, and its SUBACK: without codes with the QoS asked for |
| `a unsubscribes field=value ... : code=0 ...` | UNSUBSCRIBE, and its UNSUBACK |
| `a publishes field=value ...` | PUBLISH, and what its QoS asks for, until the broker has it |
| `a gets field=value ...` | a PUBLISH comes, and is acknowledged as its QoS asks for |
| `a silent` | nothing comes for it before the answer to a PINGREQ |
| `a ends 0x82` | the broker ends the connection: in MQTT 5 by a DISCONNECT with this reason, before without a word |
| `a refused 0x81` | the broker ends it instead of accepting its CONNECT: in MQTT 5 by a CONNACK with this reason code |
| `a closed` | the broker closes the connection without a word |
| `a leaves` | it sends DISCONNECT, and the broker closes the connection |
| `a drops` | its connection breaks |
| `clock 3600` | so many seconds pass, two at least, and the broker has seen them pass |
| `node restarts`, `node dies` | the node is ended by SIGTERM or SIGKILL, and started again on the same data |
| `node stops`, `node starts` | the first in two steps: in between clients can read its last words |

A value is a number (`3`, `0x82`), text (`x`, or `"with blanks"`), or bytes (`hex:ff00`); `rep:300:a` is 300 times the
text `a`. `@` in a text stands for a name that no other script has: the client identifier of a is `@a` unless the step
says otherwise, and all topics begin with `@/`. A field without a value is 1. A number `1..3` to send makes three
packets. What a packet that is awaited must hold is written likewise, with these in addition: `a|b` one of them, `1..3`
one of that range, `any` it is there, `none` it is not there, `$x` what the same name stood for before. Fields that are
not named are not looked at, except that a reason code, `present`, QoS, DUP, RETAIN, a payload and any property of a
PUBLISH must not be there, or be 0. At the end of a script nothing more may come for clients that are connected. What a
version does not have in a packet, `present` in MQTT 3.1 and a reason code before MQTT 5, is not looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.conformance.packets import KINDS, PROPERTIES

SCRIPTS: Final = Path(__file__).with_name("scripts")
VERSIONS: Final = {"5": 5, "3.1.1": 4, "3.1": 3}
NAMES: Final = {number: name for name, number in VERSIONS.items()}

_CLAUSE: Final = re.compile(r"\d+\.\d+\.\d+-\d+")
_WORD: Final = re.compile(r'(?:[^\s"]|"(?:[^"\\]|\\.)*")+')
"""Blanks may stand in double quotes."""
_VERBS: Final = (
    ">",
    "<",
    "<*",
    "connects",
    "subscribes",
    "unsubscribes",
    "publishes",
    "gets",
    "silent",
    "ends",
    "refused",
)
_ALONE: Final = ("closed", "leaves", "drops", "stops", "starts", "restarts", "dies")
_FIELDS: Final = frozenset(
    (
        *PROPERTIES,
        *(f"will.{name}" for name in PROPERTIES),
        *("properties", "will-properties", "first", "length", "body", "cut", "tail"),
        *("protocol", "level", "flags", "clean", "keep-alive", "client", "username", "password"),
        *("will-topic", "will-payload", "will-qos", "will-retain"),
        *("present", "reason", "code", "id", "topic", "payload", "qos", "dup", "retain"),
        *("filter", "no-local", "as-published", "handling", "options"),
    )
)

Pairs = tuple[tuple[str, str], ...]


class ScriptError(Exception):
    """A script is not written as scripts are."""


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a script. `kind` is that of a packet, or what follows the verb where no packet does."""

    line: int
    text: str
    versions: frozenset[int]
    client: str
    verb: str
    kind: str = ""
    sent: Pairs = ()
    awaited: Pairs = ()


@dataclass(slots=True)
class Script:
    """One sentence, the clauses that it proves by version, and how."""

    file: str
    line: int
    sentence: str
    clauses: dict[int, tuple[str, ...]] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    pending: str = ""
    listener: str = ""

    def of(self, version: int) -> list[Step]:
        """The steps for one version."""
        return [step for step in self.steps if version in step.versions]


def load() -> list[Script]:
    """Every script, in the order of the specification."""
    return [script for path in sorted(SCRIPTS.glob("*.txt")) for script in parse(path)]


def parse(path: Path) -> Iterator[Script]:
    """The scripts of one file.

    Raises:
        ScriptError: a line is not understood.
    """
    script: Script | None = None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            if not line.startswith(" "):
                if script is not None:
                    yield _checked(script)
                script = Script(path.name, number, line.strip())
            elif script is None:
                raise ScriptError("a line without a script")
            else:
                _add(script, number, line.strip())
        except (ScriptError, ValueError) as error:
            raise ScriptError(f"{path.name}:{number}: {error}: {line.strip()}") from error
    if script is not None:
        yield _checked(script)


def _checked(script: Script) -> Script:
    if not script.clauses or not script.steps:
        raise ScriptError(f"{script.sentence!r} has no version, or no steps")
    return script


def _add(script: Script, number: int, line: str) -> None:
    word, _, rest = line.partition(" ")
    if word == "pending":
        script.pending = rest.strip()
    elif word == "at":
        script.listener = rest.strip()
    elif word in VERSIONS and not script.steps:
        clauses = tuple(rest.split())
        for clause in clauses:
            if not _CLAUSE.fullmatch(clause):
                raise ScriptError(f"{clause} is no clause")
        script.clauses[VERSIONS[word]] = clauses
    else:
        script.steps.append(_step(number, line, frozenset(script.clauses)))


def _step(number: int, line: str, versions: frozenset[int]) -> Step:
    text = line
    if line.startswith("["):
        names, _, line = line[1:].partition("]")
        versions = frozenset(VERSIONS[name] for name in names.split())
    words = _WORD.findall(line.strip())
    if len(words) < 2:
        raise ScriptError("a step has a client and a verb")
    client, verb, *rest = words
    if verb in _ALONE or client == "clock":
        if rest:
            raise ScriptError(f"nothing follows {verb}")
        return Step(number, text, versions, client, verb)
    if verb not in _VERBS:
        raise ScriptError(f"there is no verb {verb!r}")
    if verb == "silent":
        return Step(number, text, versions, client, verb)
    if verb in ("ends", "refused") or (verb in "<>" and rest[:1] == ["bytes"]):
        return Step(number, text, versions, client, verb, " ".join(rest))
    kind = ""
    if verb in (">", "<", "<*"):
        kind, *rest = rest
        if kind not in KINDS:
            raise ScriptError(f"there is no packet {kind!r}")
    at = rest.index(":") if ":" in rest else len(rest)
    sent, awaited = _pairs(rest[:at]), _pairs(rest[at + 1 :])
    if verb in ("<", "<*", "gets"):
        sent, awaited = (), sent
    return Step(number, text, versions, client, verb, kind, sent, awaited)


def _pairs(words: list[str]) -> Pairs:
    pairs: list[tuple[str, str]] = []
    for word in words:
        name, equals, value = word.partition("=")
        if name not in _FIELDS:
            raise ScriptError(f"there is no field {name!r}")
        pairs.append((name, value if equals else "1"))
    return tuple(pairs)


def value_of(text: str, unique: str) -> int | str | bytes:
    """What a value in a script stands for.

    Raises:
        ValueError: it can't be read.
    """
    if text.startswith("hex:"):
        return bytes.fromhex(text[4:])
    if text.startswith("rep:"):
        _, times, what = text.split(":", 2)
        return what.replace("@", unique) * int(times)
    if text.startswith('"'):
        said = json.loads(text)
        assert isinstance(said, str)
        return said.replace("@", unique)
    if re.fullmatch(r"0|[1-9]\d*|0x[0-9a-f]+", text):
        return int(text, 0)
    return text.replace("@", unique)

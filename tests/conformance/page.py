"""Writes docs/conformance.md: every normative statement, and what proves it, or why nothing does.

`python -m tests.conformance.page` writes it anew; with `--check` it only tells whether it is up to date. A statement of
MQTT 5 is proved by the scripts and by the tests of other folders that name it, [MQTT-4.3.2-2]; one of 3.1.1 by scripts
alone, since there the same numbers mean other sentences.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.conformance.script import NAMES, Script, load

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "conformance.md"
TAG: Final = re.compile(r"MQTT-(\d+\.\d+\.\d+-\d+)")
REASONS: Final = ("client", "unseen", "pending")
"""What the reason begins with where nothing proves a statement."""

_WHY: Final = {"client": "binds clients", "unseen": "cannot be seen", "pending": "pending"}


@dataclass(slots=True)
class Clause:
    """One normative statement; `reason` tells why nothing proves it. `tests` are files below tests/."""

    number: str
    says: str
    reason: str
    scripts: list[Script] = field(default_factory=list)
    tests: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)

    @property
    def proved(self) -> bool:
        return bool(self.scripts or self.tests)

    def take_tests(self, files: list[str]) -> None:
        """Other tests that prove it.

        Raises:
            ValueError: there is no such test.
        """
        for file in files:
            if not (ROOT / "tests" / file).exists():
                raise ValueError(f"{self.number}: there is no {file}")
        self.tests += files


def clauses(version: int) -> list[Clause]:
    """Every statement of a version, with what proves it.

    Raises:
        ValueError: a line of the list is not as lines are, or a script names a statement that is none.
    """
    found: dict[str, Clause] = {}
    file = Path(__file__).with_name(f"clauses-{NAMES[version]}.txt")
    for line in file.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            number, says, *rest = (part.strip() for part in line.split("|"))
            if number in found or len(rest) > 1:
                raise ValueError(f"{file.name}: {line}")
            found[number] = clause = Clause(number, says, "".join(rest))
            if clause.reason.startswith("tests:"):
                clause.take_tests(clause.reason.removeprefix("tests:").split())
                clause.reason = ""
    for script in load():
        for number in script.clauses.get(version, ()):
            if number not in found:
                raise ValueError(f"{script.file}:{script.line}: there is no clause {number} in MQTT {NAMES[version]}")
            if script.pending:
                found[number].pending.append(script.pending)
            else:
                found[number].scripts.append(script)
    if version == 5:
        for number, files in named_by_tests().items():
            if number in found:
                found[number].take_tests(files)
    return list(found.values())


def named_by_tests() -> dict[str, list[str]]:
    """The tests beside this folder that name each statement of MQTT 5."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if path.parent != Path(__file__).parent:
            for number in sorted(set(TAG.findall(path.read_text(encoding="utf-8")))):
                found[number].append(str(path.relative_to(ROOT / "tests")))
    return found


def render() -> str:
    """The page."""
    lines = [
        "# Conformance",
        "",
        "Every normative statement of MQTT 5.0 and 3.1.1, in our own words under its number, with the tests that prove",
        "it. Scripts are in `tests/conformance/scripts`: packets sent to a running node and packets awaited from it,",
        "over TCP and over WebSocket. Their format is described in `tests/conformance/script.py`. This page is made",
        "from them by `python -m tests.conformance.page`.",
        "",
        "| specification | statements | proved | bind clients | cannot be seen | pending |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    tables: list[str] = []
    for version in (5, 4):
        listed = clauses(version)
        counted = {why: sum(not c.proved and why_not(c).startswith(why) for c in listed) for why in REASONS}
        proved = sum(c.proved for c in listed)
        lines.append(
            f"| MQTT {NAMES[version]} | {len(listed)} | {proved} | "
            + " | ".join(str(counted[why]) for why in REASONS)
            + " |"
        )
        tables += ["", f"## MQTT {NAMES[version]}", "", "| clause | says | proved by |", "| --- | --- | --- |"]
        tables += [f"| {clause.number} | {clause.says} | {_proof(clause)} |" for clause in listed]
    also = [script for script in load() if 3 in script.clauses and not script.pending]
    lines += ["", f"MQTT 3.1 numbers no statements; {len(also)} of the scripts are run for it too."]
    waiting = [script for script in load() if script.pending]
    if waiting:
        lines += ["", "Scripts that are not run yet:", ""]
        lines += [f"- {script.sentence}: {script.pending}" for script in waiting]
    return "\n".join(lines + tables) + "\n"


def why_not(clause: Clause) -> str:
    """Why nothing proves a statement."""
    return clause.reason or ("pending: " + "; ".join(clause.pending) if clause.pending else "")


def _proof(clause: Clause) -> str:
    if clause.proved:
        sentences = [f"{script.sentence}" for script in clause.scripts]
        return "; ".join((*sentences, *(f"`{test}`" for test in clause.tests)))
    kind, _, more = why_not(clause).partition(":")
    return f"*{_WHY.get(kind, 'nothing')}{':' + more if more else ''}*"


def main(arguments: list[str]) -> int:
    """Write the page, or check it; the exit code."""
    page = render()
    if arguments == ["--check"]:
        if PAGE.read_text(encoding="utf-8") == page:
            return 0
        print(f"{PAGE.relative_to(ROOT)} is not up to date; run python -m tests.conformance.page", file=sys.stderr)
        return 1
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Every clause that a source line claims to obey is named by a test, or listed as unproven with a reason.

A tag is `[MQTT-4.3.2-2]` in the source. A test names it by writing it anywhere, with or without brackets. The list
`unproven.txt` has one tag and its reason on a line; a tag that no longer belongs on it fails too.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
UNPROVEN = Path(__file__).with_name("unproven.txt")
CLAUSE = re.compile(r"MQTT-\d+\.\d+\.\d+-\d+")


def clauses_in(folder: Path) -> dict[str, set[str]]:
    """The files that name each clause, by clause."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(folder.rglob("*.py")):
        if path != Path(__file__):
            for clause in CLAUSE.findall(path.read_text(encoding="utf-8")):
                found[clause].add(str(path.relative_to(ROOT)))
    return found


def unproven() -> dict[str, str]:
    """The reason for each clause on the list."""
    lines = [line for line in UNPROVEN.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return {clause.strip("[]"): reason for clause, _, reason in (line.partition(" ") for line in lines)}


SOURCE = clauses_in(ROOT / "broker")
TESTS = clauses_in(ROOT / "tests")


def test_the_source_names_clauses() -> None:
    assert len(SOURCE) > 40


def test_every_clause_in_the_source_is_named_by_a_test_or_listed_as_unproven() -> None:
    listed = unproven()
    missing = {
        clause: sorted(files) for clause, files in SOURCE.items() if clause not in TESTS and clause not in listed
    }
    assert not missing


def test_no_clause_is_listed_as_unproven_that_a_test_names() -> None:
    assert not sorted(set(unproven()) & set(TESTS))


def test_no_clause_is_listed_as_unproven_that_the_source_does_not_name() -> None:
    assert not sorted(set(unproven()) - set(SOURCE))


def test_every_clause_listed_as_unproven_has_a_reason() -> None:
    assert all(CLAUSE.fullmatch(clause) and reason.strip() for clause, reason in unproven().items())

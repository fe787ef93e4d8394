"""Every clause that a source line claims to obey is named by a test, or listed as unproven with a reason; and every
normative statement of the specifications is in docs/conformance.md, with what proves it.

A tag is `[MQTT-4.3.2-2]` in the source. A test names it by writing it anywhere, with or without brackets; a script of
this folder names it for MQTT 5, without MQTT. The list `unproven.txt` has one tag and its reason on a line; a tag that
no longer belongs on it fails too.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.conformance import page
from tests.conformance.script import NAMES, load

ROOT = Path(__file__).parents[2]
UNPROVEN = Path(__file__).with_name("unproven.txt")
CLAUSE = re.compile(r"MQTT-\d+\.\d+\.\d+-\d+")


def clauses_in(folder: Path) -> dict[str, set[str]]:
    """The files that name each clause, by clause."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(folder.rglob("*.py")):
        if path.parent != Path(__file__).parent:
            for clause in CLAUSE.findall(path.read_text(encoding="utf-8")):
                found[clause].add(str(path.relative_to(ROOT)))
    return found


def unproven() -> dict[str, str]:
    """The reason for each clause on the list."""
    lines = [line for line in UNPROVEN.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return {clause.strip("[]"): reason for clause, _, reason in (line.partition(" ") for line in lines)}


SOURCE = clauses_in(ROOT / "broker")
TESTS = set(clauses_in(ROOT / "tests")) | {
    f"MQTT-{clause}" for script in load() if not script.pending for clause in script.clauses.get(5, ())
}


def test_the_source_names_clauses() -> None:
    assert len(SOURCE) > 40


def test_every_clause_in_the_source_is_named_by_a_test_or_listed_as_unproven() -> None:
    listed = unproven()
    missing = {
        clause: sorted(files) for clause, files in SOURCE.items() if clause not in TESTS and clause not in listed
    }
    assert not missing


def test_no_clause_is_listed_as_unproven_that_a_test_names() -> None:
    assert not sorted(set(unproven()) & TESTS)


def test_no_clause_is_listed_as_unproven_that_the_source_does_not_name() -> None:
    assert not sorted(set(unproven()) - set(SOURCE))


def test_every_clause_listed_as_unproven_has_a_reason() -> None:
    assert all(CLAUSE.fullmatch(clause) and reason.strip() for clause, reason in unproven().items())


def test_the_source_and_the_tests_name_no_clause_that_the_specification_has_not() -> None:
    known = {f"MQTT-{clause.number}" for clause in page.clauses(5)}
    assert not {clause: sorted(files) for clause, files in SOURCE.items() if clause not in known}
    assert not {clause: sorted(files) for clause, files in clauses_in(ROOT / "tests").items() if clause not in known}


@pytest.mark.parametrize("version", [5, 4], ids=NAMES.__getitem__)
def test_every_normative_statement_is_proved_or_has_a_reason_why_not(version: int) -> None:
    bare = [clause.number for clause in page.clauses(version) if not clause.proved and not page.why_not(clause)]
    assert not bare


@pytest.mark.parametrize("version", [5, 4], ids=NAMES.__getitem__)
def test_no_normative_statement_has_a_reason_that_is_none(version: int) -> None:
    listed = [clause for clause in page.clauses(version) if clause.reason]
    assert not [clause.number for clause in listed if clause.reason.split(":")[0] not in page.REASONS]
    assert not [clause.number for clause in listed if clause.proved]


def test_the_page_of_all_statements_is_up_to_date() -> None:
    assert page.main(["--check"]) == 0


def test_a_page_that_is_not_up_to_date_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(page, "PAGE", page.ROOT / "README.md")
    assert page.main(["--check"]) == 1
    assert "README.md is not up to date" in capsys.readouterr().err

"""Whether the table of cases leaves anything out: a packet, a version, a property, a way to be wrong."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from broker.mqtt import codec, decode, properties, topic, wire
from broker.mqtt.codec import Decoder
from broker.mqtt.packets import Connect
from broker.mqtt.reason import Reason
from tests.broker.mqtt import specification as spec
from tests.broker.mqtt.cases import BAD, CASES, CLIENT, EITHER, GOOD, SERVER, Case
from tests.broker.mqtt.strategies import KINDS, VERSIONS

CLAUSE = re.compile(r"MQTT-\d+\.\d+\.\d+-\d+")


def version_of(case: Case) -> int:
    """The version that a valid packet belongs to."""
    return case.expected.version if isinstance(case.expected, Connect) else case.version


def properties_in(case: Case) -> set[tuple[int, int]]:
    """The properties of a valid packet, each with where it stands."""
    assert not isinstance(case.expected, Reason)
    found = {(id, case.expected.TYPE) for id, _ in getattr(case.expected, "properties", ())}
    if isinstance(case.expected, Connect) and case.expected.will is not None:
        found |= {(id, properties.WILL) for id, _ in case.expected.will.properties}
    return found


def test_no_two_cases_have_one_name() -> None:
    names = [case.name for case in CASES]
    assert sorted(set(names)) == sorted(names)


def test_every_clause_of_a_case_is_one() -> None:
    assert all(CLAUSE.fullmatch(clause) for case in CASES for clause in case.clauses)


def test_every_packet_has_a_case_in_every_version() -> None:
    assert {(type(case.expected), version_of(case)) for case in GOOD if case.canonical} == set(KINDS)


def test_every_packet_has_a_case_that_is_wrong_in_every_version() -> None:
    # a PINGREQ that is wrong is wrong in its fixed header, whatever the version
    wrong = {case.data[0] >> 4 for case in BAD}
    assert wrong == set(range(16))
    assert {case.version for case in BAD} == {0, *VERSIONS}


def test_every_property_has_a_case_wherever_it_may_stand() -> None:
    allowed = {(id, place) for id, rule in spec.RULES.items() for place in rule.places}
    assert set().union(*(properties_in(case) for case in GOOD)) == allowed


def test_the_sender_of_a_packet_is_known() -> None:
    assert {case.sender for case in CASES} == {CLIENT, SERVER, EITHER}
    assert next(case for case in CASES if case.name == "connack 5").sender == SERVER
    assert next(case for case in CASES if case.name == "connect 5").sender == CLIENT
    assert next(case for case in CASES if case.name == "publish 5").sender == EITHER


def raised(error: BaseException | None) -> Iterator[tuple[str, int]]:
    """Where an error and those that caused it were raised: file and line."""
    while error is not None:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        if trace is not None:
            yield Path(trace.tb_frame.f_code.co_filename).name, trace.tb_lineno
        error = error.__cause__


@pytest.mark.parametrize("module", [codec, decode, properties, wire, topic], ids=lambda module: module.__name__)
def test_every_way_to_be_wrong_has_a_case(module: ModuleType) -> None:
    reached: set[tuple[str, int]] = set()
    for case in BAD:
        decoder = Decoder(case.version)
        decoder.feed(case.data)
        reached.update(raised(decoder.error))
    file = Path(str(module.__file__)).name
    lines = {line for name, line in reached if name == file}
    unreached = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Raise)
        and "ProtocolError" in ast.unparse(node)
        and not lines & set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    ]
    # No case has a size limit; and what the decoder hands to the rules of topics is a string without U+0000 already.
    beyond = "U+0000" if module is topic else "PACKET_TOO_LARGE"
    assert [line for line in unreached if beyond not in line] == []

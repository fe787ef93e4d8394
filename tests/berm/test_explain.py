from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berm.explain import Place, allowed, dotted, locate
from berm.settings import BridgeSection, DurabilityRule, MqttSection, RouteSection, Section, Settings

TEXT = '''\
top = 1

[a]
x = 1
"quoted key" = """
two
lines"""
y.z = 2

[[list]]
name = "first"
[list.inner]
deep = true
[[list]]
name = "second"   # = not this
many = [
  1,
  { p = 1 },
]
[[list.routes]]
r = 1
[[list.routes]]
r = 2
'''

LINES: dict[Place, int] = {
    ("top",): 1,
    ("a",): 3,
    ("a", "x"): 4,
    ("a", "quoted key"): 5,
    ("a", "y"): 8,
    ("a", "y", "z"): 8,
    ("list",): 10,
    ("list", 0): 10,
    ("list", 0, "name"): 11,
    ("list", 0, "inner"): 12,
    ("list", 0, "inner", "deep"): 13,
    ("list", 1): 14,
    ("list", 1, "name"): 15,
    ("list", 1, "many"): 16,
    ("list", 1, "many", 0): 16,
    ("list", 1, "many", 1): 16,
    ("list", 1, "many", 1, "p"): 16,
    ("list", 1, "routes"): 20,
    ("list", 1, "routes", 0): 20,
    ("list", 1, "routes", 0, "r"): 21,
    ("list", 1, "routes", 1): 22,
    ("list", 1, "routes", 1, "r"): 23,
}


def test_every_value_is_found_on_its_line() -> None:
    assert locate(TEXT) == LINES


def _places(value: object, place: Place = ()) -> set[Place]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = {place} if place else set()
    for key, inner in items:
        found |= _places(inner, (*place, key))
    return found


@given(
    st.dictionaries(
        st.sampled_from("abcd"),
        st.lists(st.dictionaries(st.sampled_from("xyz"), st.integers() | st.booleans() | st.just("#[t]"))),
        max_size=4,
    )
)
def test_whatever_a_file_holds_each_of_its_values_has_a_line(tables: dict[str, list[dict[str, object]]]) -> None:
    lines = []
    for name, entries in tables.items():
        for entry in entries:
            lines.append(f"[[{name}]]")
            lines += [
                f"{key} = {str(value).lower() if value != '#[t]' else repr(value)}" for key, value in entry.items()
            ]
    text = "\n".join(lines)
    assert set(locate(text)) == _places(tomllib.loads(text))


def test_a_place_is_written_as_people_write_it() -> None:
    assert dotted(("bridges", 0, "routes", 2, "topic")) == "bridges[0].routes[2].topic"


@pytest.mark.parametrize(
    ("model", "name", "words"),
    [
        (MqttSection, "port", "an integer from 0 to 65,535"),
        (MqttSection, "queue_qos0", "`true` or `false`"),
        (MqttSection, "host", "a host name or an address"),
        (DurabilityRule, "durability", '"fsync", "os" or "memory"'),
        (RouteSection, "qos", "0 or 1"),
        (BridgeSection, "backoff_min", "a number from 0.01 to 86,400"),
        (BridgeSection, "routes", "a list of tables"),
        (BridgeSection, "username", "text"),
        (Settings, "mqtt", "a table"),
    ],
)
def test_what_is_allowed_is_said_in_words(model: type[Section], name: str, words: str) -> None:
    assert allowed(model.model_fields[name]) == words

"""A user's file: whatever is wrong with it becomes one line that says where, what, and what to do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from processors import LoadError, Message
from processors.loading import load_file
from tests.processors.helpers import stored

HEAD = """\
from processors import Event, Message, Processors
from processors import aggregates as agg
plant = Processors()
"""
ECHO = "def echo(event: Event) -> Message:\n    return Message('out', event.payload)\n"


@pytest.fixture(autouse=True)
def _paths_and_modules() -> Iterator[None]:
    paths, modules = sys.path[:], set(sys.modules)
    yield
    sys.path[:] = paths
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(directory: Path, text: str, name: str = "plant.py") -> Path:
    path = directory / name
    path.write_text(text)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(LoadError) as caught:
        load_file(path)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_file_gives_what_its_processors_define_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, f"{HEAD}@plant.map('t')\n{ECHO}plant.map('u', name='other')(echo)\n")
    first, second = load_file(path)
    assert (first.name, first.filter, first.line, second.name, second.filter) == ("echo", "t", 4, "other", "u")
    assert first.operator().step([stored("t", 1)], 0).messages == [("out", b"1", 1, False)]


def test_the_example_can_be_loaded_and_does_what_it_says() -> None:
    hot, fahrenheit, per_minute = load_file(Path(__file__).parents[2] / "config" / "examples" / "plant.py")
    events = [stored("plant/oven/temperature", {"value": 100}), stored("plant/oven/temperature", {"value": 20})]
    assert [output[:2] for output in hot.operator().step(events, 0).messages] == [
        ("alarm/plant/oven/temperature", b'{"value":100}')
    ]
    assert [output[:2] for output in fahrenheit.operator().step(events, 0).messages] == [
        ("plant/oven/temperature/fahrenheit", b'{"value":212.0}'),
        ("plant/oven/temperature/fahrenheit", b'{"value":68.0}'),
    ]
    operator = per_minute.operator()
    operator.step(events, 0)
    ((topic, payload, _, _),) = operator.step([], operator.due).messages
    assert topic == "stats/plant/oven/temperature"
    assert payload.endswith(b'"count":2,"mean":60.0,"max":100}')


def test_the_code_in_the_guide_is_a_file_that_can_be_loaded(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "processors.md").read_text()
    blocks = [block.partition("```")[0] for block in guide.split("```python\n")[1:]]
    definitions = load_file(write(tmp_path, "".join(blocks)))
    assert [definition.name for definition in definitions] == ["hot", "fahrenheit", "per_minute", "peak"]


def test_a_file_may_import_modules_beside_it_and_have_any_name(tmp_path: Path) -> None:
    write(tmp_path, "OUT = 'elsewhere'\n", "names_of_topics.py")
    text = f"{HEAD}from names_of_topics import OUT\nfrom dataclasses import dataclass\n"
    text += "@dataclass\nclass Reading:\n    x: 'int'\n"
    path = write(tmp_path, f"{text}@plant.map('t')\ndef echo(event):\n    return Message(OUT)\n", "processors.py")
    (definition,) = load_file(path)
    assert definition.operator().step([stored("t", 1)], 0).messages == [("elsewhere", b"", 1, False)]
    assert Message is sys.modules["processors"].Message


def test_a_file_that_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.py") == (
        f"{tmp_path}/no.py: cannot be read: No such file or directory; set the processor's file to a Python file"
    )
    assert "Is a directory" in refusal(tmp_path)


def test_what_is_no_python_is_refused_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, f"{HEAD}def broken(:\n")
    assert refusal(path) == f"{path}:4: this is no Python: invalid syntax; correct it"
    path.write_bytes(b"x = '\xff'\n")
    assert refusal(path).startswith(f"{path}")
    path.write_bytes(b"x = 1\0\n")
    assert refusal(path).startswith(f"{path}: ")


def test_an_error_in_a_module_that_the_file_imports_names_the_line_of_the_import_or_of_the_error(
    tmp_path: Path,
) -> None:
    helper = write(tmp_path, "1 / 0\n", "helper_that_divides.py")
    path = write(tmp_path, f"{HEAD}\nimport helper_that_divides\n")
    assert refusal(path) == f"{path}:5: ZeroDivisionError: division by zero; the file must run without an error"
    helper.write_text("def broken(:\n")
    assert refusal(path).startswith(f"{helper}:1: this is no Python")


def test_an_import_that_is_not_installed_says_where_it_would_have_to_be(tmp_path: Path) -> None:
    path = write(tmp_path, f"{HEAD}import nowhere_to_be_found\n")
    assert refusal(path) == (
        f"{path}:4: No module named 'nowhere_to_be_found'; install it with {sys.executable} -m pip, "
        "or put the module beside the file"
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("raise ValueError('two\\nlines')", "ValueError: two lines; the file must run without an error"),
        ("import sys; sys.exit(3)", "SystemExit: 3; the file must run without an error"),
        ("plant.map('a/#/b')(print)", "'#' is not the whole last level of topic filter 'a/#/b'"),
        ("plant.tumbling('t', agg.count, seconds=-1, to='x')(print)", "seconds=-1 must be from 0.001 to"),
        ("plant.map()", "TypeError: "),
    ],
)
def test_what_the_file_raises_is_told_with_its_line(tmp_path: Path, line: str, words: str) -> None:
    path = write(tmp_path, f"{HEAD}\n{line}\n")
    found = refusal(path)
    assert found.startswith(f"{path}:5: ")
    assert words in found


def test_a_file_that_defines_nothing_is_refused(tmp_path: Path) -> None:
    for text in ("", HEAD, f"{HEAD}{ECHO}"):
        path = write(tmp_path, text)
        assert refusal(path).startswith(f"{path}: it defines no processor; make a `plant = Processors()`")


def test_two_processors_of_one_name_are_refused_with_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path, f"{HEAD}@plant.map('t')\n{ECHO}@plant.map('u')\n{ECHO}")
    assert refusal(path) == (
        f"{path}:7: two processors are called 'echo', here and in line 4; "
        "state is kept by name: rename one of them, or give it name="
    )
    path = write(tmp_path, f"{HEAD}other = Processors()\n@plant.map('t')\n{ECHO}@other.map('u')\n{ECHO}")
    assert refusal(path).startswith(f"{path}:8: two processors are called 'echo', here and in line 5; ")


def test_a_file_that_failed_can_be_corrected_and_loaded(tmp_path: Path) -> None:
    path = write(tmp_path, f"{HEAD}1 / 0\n")
    refusal(path)
    path = write(tmp_path, f"{HEAD}@plant.map('t')\n{ECHO}")
    assert [definition.name for definition in load_file(path)] == ["echo"]

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from berm.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_example_of_a_configuration_is_one(page: Path) -> None:
    for example in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL):
        Settings.model_validate(tomllib.loads(example))


def test_the_configuration_that_the_commands_are_shown_with_has_its_mistake_on_the_line_that_is_told() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (line,) = re.findall(r"berm\.toml:(\d+): bridges\[0\]\.prot: ", page)
    assert example.splitlines()[int(line) - 1].startswith("port = ")

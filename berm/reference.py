"""Writes what is said about settings from the settings themselves: `config/berm.toml` and `docs/settings.md`.

`python -m berm.reference config/berm.toml docs/settings.md` writes both; with `--check` it only tells which is stale.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Final, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from berm.explain import allowed
from berm.settings import BoundsSection, ListenerSection, Settings, Unset

COMMAND: Final = "python -m berm.reference config/berm.toml docs/settings.md"
UNITS: Final = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def toml() -> str:
    """A configuration file that gives every setting its default; lists of tables stand there as comments."""
    lines = [
        "# Every setting of a Berm node, with its default and what is allowed. What is left out has its default.",
        f"# Written from the settings themselves by: {COMMAND}",
    ]
    for path, model, listed, optional in _tables(Settings, ()):
        mark = "#" if listed or optional else ""
        lines += ["", *(f"# {line}" for line in _about(model))]
        lines.append(f"{mark}{_header(path, listed)}")
        for key, field in _values(model):
            unset = _unset(model, key, field)
            default = f"; default: {unset}" if unset else ""
            lines.append(f"# {field.description} ({allowed(field)}{default})".replace("`", ""))
            hidden = mark or unset is not None
            lines.append(f"{'#' if hidden else ''}{key} = {_literal(_example(field))}")
    return "\n".join(lines) + "\n"


def markdown() -> str:
    """A page with one table for each section."""
    lines = [
        "# Settings",
        "",
        "A node reads one TOML file: the one named by `--config`, otherwise `./berm.toml`, otherwise",
        "`/etc/berm/berm.toml`; where there is none, every setting has its default. `--set section.name=value`",
        "overrides one setting. Sizes are in bytes and times in seconds. Relative paths are relative to the directory",
        "of the file; in `--set`, and where there is no file, to the working directory. An unknown or wrong setting",
        "stops the start with exit code 2 and a line that says where it is and what is allowed. `berm check` tells",
        "without starting.",
        "",
        f"This page is written from the settings themselves by `{COMMAND}`.",
    ]
    for path, model, listed, optional in _tables(Settings, ()):
        lines += ["", f"## `{_header(path, listed)}`", "", *_about(model), ""]
        if optional:
            lines += [f"It may be left out. It stands below the `[[{path[0]}]]` that it is for.", ""]
        if listed:
            lines += ["A list: each of its tables begins with this header.", ""]
        lines += ["| setting | default | allowed | what it is |", "| --- | --- | --- | --- |"]
        for key, field in _values(model):
            unset = _unset(model, key, field)
            if unset is not None:
                default = unset
            elif field.is_required():
                default = "must be given"
            else:
                default = f"`{_literal(field.default)}`{_unit(field)}"
            cells = (f"`{key}`", default, allowed(field), field.description or "")
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


WRITERS: Final[dict[str, Callable[[], str]]] = {".toml": toml, ".md": markdown}
"""What is written, by the ending of the file's name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or with `--check` compare them: 1 where one is stale."""
    parser = argparse.ArgumentParser(prog="python -m berm.reference", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file is stale")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a .toml or a .md file")
    given = parser.parse_args(arguments)
    stale = 0
    for file in given.files:
        if file.suffix not in WRITERS:
            parser.error(f"{file}: its name ends neither in .toml nor in .md")
        text = WRITERS[file.suffix]()
        if not given.check:
            file.write_text(text)
        elif not file.exists() or file.read_text() != text:
            stale = 1
            print(f"{file} is stale; run: {COMMAND}", file=sys.stderr)
    return stale


Table = tuple[tuple[str, ...], type[BaseModel], bool, bool]


def _tables(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[Table]:
    """Each table of settings below a model: where it stands, its model, whether it is one of a list, or optional."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        listed, optional = get_origin(kind) is tuple, get_origin(kind) is UnionType
        inner = get_args(kind)[0] if listed or optional else kind
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield (*path, name), inner, listed, optional
            yield from _tables(inner, (*path, name))


def _header(path: tuple[str, ...], listed: bool) -> str:
    name = ".".join(path)
    return f"[[{name}]]" if listed else f"[{name}]"


def _values(model: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    """The settings of a table that are no tables themselves."""
    inner = {path[0] for path, *_ in _tables(model, ())}
    return [(name, field) for name, field in model.model_fields.items() if name not in inner]


def _about(model: type[BaseModel]) -> list[str]:
    return [line for line in (inspect.getdoc(model) or "").splitlines() if line]


def _unset(model: type[BaseModel], key: str, field: FieldInfo) -> str | None:
    if model is ListenerSection and key in BoundsSection.model_fields:
        return "that of [mqtt]"
    return next((each.words for each in field.metadata if isinstance(each, Unset)), None)


def _example(field: FieldInfo) -> object:
    return field.examples[0] if field.examples else field.default


def _literal(value: object) -> str:
    """A value as TOML writes it."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if value < 10_000 else f"{value:_}"
    return json.dumps(str(value) if isinstance(value, Path) else value)


def _unit(field: FieldInfo) -> str:
    """A large number of bytes once more, in words."""
    value = field.default
    if "bytes" in (field.description or "") and isinstance(value, int):
        for size, unit in UNITS:
            if value >= size:
                return f" ({value / size:g} {unit})"
    return ""


if __name__ == "__main__":
    sys.exit(main())

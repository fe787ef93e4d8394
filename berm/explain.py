"""Says what is wrong with settings: which file and line, which setting, what is allowed, and the nearest right name."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Final, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from berm.settings import Allowed, BridgeSection, Settings

T = TypeVar("T")
Place = tuple[str | int, ...]
"""Keys and list indexes that lead to a value."""

SHOWN: Final = 60
"""Characters of a wrong value that are shown at most."""


def explain(error: ValidationError, path: Path | None, text: str, given: Mapping[Place, str]) -> list[str]:
    """One line for each problem, in the order of the file.

    `text` is what the file at `path` holds; `given` are the overrides, by the setting that each of them sets.
    """
    lines = locate(text)
    problems: list[tuple[int, str]] = []
    for details in error.errors(include_url=False):
        context = details.get("ctx", {})
        place = tuple(context["of"]) if "of" in context else details["loc"] + tuple(context.get("at", ()))
        override = _longest(place, given)
        line = _longest(place, lines) or 0
        if override is not None:
            where = f"--set {override}: "
        elif path is not None:
            where = f"{path}:{line}: " if line else f"{path}: "
        else:
            where = ""
        problems.append((line, f"{where}{dotted(place)}: {_problem(details, place)}"))
    return [problem for _, problem in sorted(problems, key=lambda each: each[0])]


def dotted(place: Place) -> str:
    """The way to a value as people write it: `bridges[0].host`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).removeprefix(".")


def allowed(field: FieldInfo) -> str:
    """What a setting may be, in words: from its own words, or from its type and bounds."""
    kind: object = field.annotation
    if get_origin(kind) in (Union, UnionType):
        kind = get_args(kind)[0]
    metadata = list(field.metadata)
    if get_origin(kind) is Annotated:
        kind, *inner = get_args(kind)
        metadata += inner
    for each in metadata:
        if isinstance(each, Allowed):
            return each.words
    if get_origin(kind) is Literal:
        values = [f'"{value}"' if isinstance(value, str) else str(value) for value in get_args(kind)]
        return " or ".join(filter(None, (", ".join(values[:-1]), values[-1])))
    if get_origin(kind) is tuple:
        return "a list of tables"
    if kind is bool:
        return "`true` or `false`"
    if kind in (int, float):
        low, high = _bound(field, "ge"), _bound(field, "le")
        return f"{'an integer' if kind is int else 'a number'} from {low} to {high}"
    return "a table" if isinstance(kind, type) and issubclass(kind, BaseModel) else "text"


def locate(text: str) -> dict[Place, int]:
    """The line, from 1, on which each value in a valid TOML text is given; a table's is that of its header.

    What stands inside a list or an inline table has the line on which the whole of it begins.
    """
    lines: dict[Place, int] = {}
    counts: dict[Place, int] = {}
    table: Place = ()
    for number, statement in _statements(text):
        keys, value = _follow(tomllib.loads(statement))
        if statement.lstrip().startswith("["):
            table = ()
            for depth, key in enumerate(keys, 1):
                table += (key,)
                lines.setdefault(table, number)
                if table in counts and depth < len(keys):
                    table += (counts[table],)
            if isinstance(value, list):
                counts[table] = counts.get(table, -1) + 1
                table += (counts[table],)
            lines[table] = number
        else:
            place = table
            for key in keys:
                place += (key,)
                lines.setdefault(place, number)
            _mark(place, value, number, lines)
    return lines


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Each header or assignment, and the line on which it begins: the fewest lines that are TOML by themselves."""
    pending: list[str] = []
    begin = 1
    for number, line in enumerate(text.split("\n"), 1):
        pending.append(line)
        try:
            tables = tomllib.loads("\n".join(pending))
        except tomllib.TOMLDecodeError:
            continue
        if tables:
            yield begin, "\n".join(pending)
        pending.clear()
        begin = number + 1


def _follow(tables: Mapping[str, object]) -> tuple[list[str], object]:
    """The keys of one statement, and what it says of the last of them."""
    keys: list[str] = []
    value: object = tables
    while isinstance(value, dict) and len(value) == 1:
        ((key, value),) = value.items()
        keys.append(key)
    return keys, value


def _mark(place: Place, value: object, number: int, lines: dict[Place, int]) -> None:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        lines.setdefault((*place, key), number)
        _mark((*place, key), inner, number, lines)


def _longest(place: Place, known: Mapping[Place, T]) -> T | None:
    return next((known[place[:length]] for length in range(len(place), 0, -1) if place[:length] in known), None)


def _problem(details: ErrorDetails, place: Place) -> str:
    kind = details["type"]
    if kind == "extra_forbidden":
        return _unknown(place, details["input"])
    if kind == "surplus":
        return details["msg"]
    if kind == "twin":
        return "it is given twice; each must have its own"
    field = _field(place)
    words = "a table" if field is None else allowed(field)
    if kind == "missing":
        return f"it is missing; allowed: {words}"
    if kind == "empty":
        return f"it is empty; allowed: {words}, at least one"
    value = _shown(details["input"]) if field is None or field.repr else "this value"
    if kind == "value_error":
        return f"{value}: {details['ctx']['error']}; allowed: {words}"
    return f"{value} is not allowed; allowed: {words}"


def _unknown(place: Place, value: object) -> str:
    name = str(place[-1])
    model = _model(place[:-1])
    names = list(model.model_fields)
    near = get_close_matches(name, names, n=1)
    if not near and model is not BridgeSection:
        near = [f"{section}.{name}" for section in Settings.model_fields if name in _model((section,)).model_fields]
    what = "section" if model is Settings and isinstance(value, dict | list) else "setting"
    hint = f'; did you mean "{near[0]}"?' if near else ";"
    return f"unknown {what}{hint} allowed: {', '.join(names)}"


def _model(place: Place) -> type[BaseModel]:
    """The model of the table that stands at a place."""
    model: type[BaseModel] = Settings
    for key in place:
        if isinstance(key, str):
            kind = model.model_fields[key].annotation
            inner = get_args(kind)[0] if get_origin(kind) in (tuple, Union, UnionType) else kind
            assert isinstance(inner, type)
            model = inner
    return model


def _field(place: Place) -> FieldInfo | None:
    """The setting that stands at a place, or whose value is a list with it; None for one table of a list."""
    key = place[-1]
    if isinstance(key, str):
        return _model(place[:-1]).model_fields[key]
    field = _field(place[:-1])
    return field if field is not None and not _holds_tables(field) else None


def _holds_tables(field: FieldInfo) -> bool:
    inner = get_args(field.annotation)[0]
    return isinstance(inner, type) and issubclass(inner, BaseModel)


def _bound(field: FieldInfo, name: str) -> str:
    return next(f"{getattr(each, name):,}" for each in field.metadata if hasattr(each, name))


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, bool):
        return str(value).lower()
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."

"""Loads a user's file: whatever is wrong with it becomes one line that says where, what, and what to do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import NoReturn
from zlib import crc32

from processors.definition import Definition, Processors
from processors.errors import DefinitionError, LoadError
from processors.step import USER_ERRORS

__all__ = ["LoadError", "load_file"]


def load_file(path: Path) -> Sequence[Definition]:
    """Run a Python file and give back what its `Processors` define, in order.

    The file can import modules that stand beside it.

    Raises:
        LoadError: it can't be read or run, defines nothing, or defines two processors of one name.
    """
    try:
        source = path.read_bytes()
    except OSError as error:
        raise LoadError(
            f"{path}: cannot be read: {error.strerror}; set the processor's file to a Python file"
        ) from None
    module = _run(path, source)
    found: dict[int, Processors] = {id(value): value for value in vars(module).values() if type(value) is Processors}
    definitions = [definition for each in found.values() for definition in each.definitions]
    if not definitions:
        raise LoadError(
            f"{path}: it defines no processor; make a `plant = Processors()` in it and decorate a function with "
            "@plant.map, @plant.filter or @plant.tumbling"
        )
    first: dict[str, Definition] = {}
    for definition in definitions:
        twin = first.setdefault(definition.name, definition)
        if twin is not definition:
            raise LoadError(
                f"{path}:{definition.line}: two processors are called {definition.name!r}, here and in line "
                f"{twin.line}; state is kept by name: rename one of them, or give it name="
            )
    return definitions


def _run(path: Path, source: bytes) -> ModuleType:
    place = path.resolve()
    # A name of its own: a user's file may be called like anything, `processors.py` too.
    module = ModuleType(f"berm_processors_{crc32(bytes(place)):08x}_{place.stem}")
    module.__file__ = str(path)
    if str(place.parent) not in sys.path:
        sys.path.append(str(place.parent))
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
    except USER_ERRORS as error:
        del sys.modules[module.__name__]
        _explain(path, error)
    return module


def _explain(path: Path, error: BaseException) -> NoReturn:
    """Turn what a file raised into one line."""
    if isinstance(error, SyntaxError):
        # It may be in a module that the file imports.
        place = f"{error.filename or path}:{error.lineno}" if error.lineno else f"{error.filename or path}"
        raise LoadError(f"{place}: this is no Python: {error.msg}; correct it") from error
    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == str(path)]
    place = f"{path}:{lines[-1]}" if lines else str(path)
    text = " ".join(str(error).split())
    if isinstance(error, DefinitionError):
        raise LoadError(f"{place}: {text}") from error
    if isinstance(error, ModuleNotFoundError):
        raise LoadError(
            f"{place}: {text}; install it with {sys.executable} -m pip, or put the module beside the file"
        ) from error
    raise LoadError(f"{place}: {type(error).__name__}: {text}; the file must run without an error") from error

"""Tells whether a node could start with these settings, without starting one or leaving anything behind."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from berm import keys
from berm.access import AccessError, Guards
from berm.parts import FileError, address, advice, endpoint, limits, listener, listeners, load_processors
from berm.settings import ListenerSection, Settings
from berm.status import lock_holder
from broker.net.errors import ListenError
from broker.net.listener import try_to_bind
from processors import LoadError
from storage.keysource import KeysError


@dataclass(frozen=True, slots=True)
class Fact:
    """One line, and whether it says something that would stop the start."""

    text: str
    wrong: bool = False


def check(settings: Settings) -> Iterator[Fact]:
    """Everything worth knowing before a start, in the order of the start."""
    yield Fact(f"node: {settings.node.name}")
    directory = _check_directory(settings.storage.path)
    yield directory
    yield from _check_encryption(settings)
    running = False
    if not directory.wrong:
        lock, running = _check_lock(settings.storage.path)
        yield lock
    for section in listeners(settings):
        yield from _check_listener(settings, section, running)
    yield from _check_processors(settings)
    for bridge in settings.bridges:
        routes = ", ".join(f"{route.name} ({route.topic})" for route in bridge.routes)
        yield Fact(f"bridge {bridge.name}: to {bridge.host}:{bridge.port} as {bridge.client_id}: {routes}")


def _check_directory(data: Path) -> Fact:
    existing = data.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Fact(f"data: {data}: cannot be written: {existing}: {error.strerror}; set storage.path", wrong=True)
    if data.exists():
        return Fact(f"data: {data}: can be written")
    return Fact(f"data: {data}: will be made")


def _check_encryption(settings: Settings) -> Iterator[Fact]:
    """Whether the operator's key is at hand, and the one that the directory is encrypted with."""
    try:
        places = keys.sources(settings.encryption)
        found = keys.reader(settings)
        if found is not None:
            yield Fact(f"encryption: data key {found.keyring.current.number}; the operator's key is in {places[0]}")
            yield from (Fact(f"encryption: {problem}; the start writes it anew") for problem in found.keyring.problems)
        elif places:
            places[0].read()
            yield Fact(f"encryption: begins with the next start; the operator's key is in {places[0]}")
    except KeysError as error:
        yield Fact(f"encryption: {error}", wrong=True)


def _check_lock(data: Path) -> tuple[Fact, bool]:
    """What there is to say, and whether a node is running."""
    try:
        pid = lock_holder(data)
    except OSError as error:
        return Fact(f"lock: {data}: cannot be read: {error.strerror}; set storage.path", wrong=True), False
    if pid is None:
        return Fact("lock: no node is running on this directory"), False
    return Fact(f"lock: a node is running on this directory{f', pid {pid}' if pid else ''}"), True


def _check_listener(settings: Settings, section: ListenerSection, running: bool) -> Iterator[Fact]:
    """Load its certificate, and bind its address for a moment; a node that runs has bound it already."""
    problems: list[str] = []
    url = ""
    guards = Guards(lambda call: None)
    try:
        url = endpoint(section, limits(settings)).url
    except FileError as error:
        problems.append(str(error))
    try:
        guards.guard(section, listener(section, limits(settings)), 0)
    except AccessError as error:
        problems += error.problems
    finally:
        guards.close()
    try:
        if not running:
            try_to_bind(address(section))
    except (OSError, UnicodeError) as error:
        problem = ListenError(section.name, str(address(section)), error)
        problems.append(f"listener {section.name}: {problem}; {advice(settings, section.name)}")
    yield from (Fact(problem, wrong=True) for problem in problems)
    if not problems:
        yield Fact(f"listener {section.name}: {url}")


def _check_processors(settings: Settings) -> Iterator[Fact]:
    """Import each file, as the start does."""
    for file, loaded in load_processors(settings):
        if isinstance(loaded, LoadError):
            yield Fact(f"processors: {loaded}", wrong=True)
        else:
            names = ", ".join(f"{each.name} ({each.filter}: {each.what})" for each in loaded)
            yield Fact(f"processors: {file}: {names or 'none in it'}")

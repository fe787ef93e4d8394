"""Tells whether a node could start with these settings, without starting one or leaving anything behind."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from berm.parts import load_processors
from berm.settings import Settings
from berm.status import lock_holder
from processors import LoadError


@dataclass(frozen=True, slots=True)
class Fact:
    """One line, and whether it says something that would stop the start."""

    text: str
    wrong: bool = False


def check(settings: Settings) -> Iterator[Fact]:
    """Everything worth knowing before a start, in the order of the start."""
    yield Fact(f"node: {settings.node.name}, MQTT on {settings.mqtt.host}:{settings.mqtt.port}")
    directory = _check_directory(settings.storage.path)
    yield directory
    if not directory.wrong:
        yield _check_lock(settings.storage.path)
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


def _check_lock(data: Path) -> Fact:
    try:
        pid = lock_holder(data)
    except OSError as error:
        return Fact(f"lock: {data}: cannot be read: {error.strerror}; set storage.path", wrong=True)
    if pid is None:
        return Fact("lock: no node is running on this directory")
    return Fact(f"lock: a node is running on this directory{f', pid {pid}' if pid else ''}")


def _check_processors(settings: Settings) -> Iterator[Fact]:
    """Import each file, as the start does."""
    for file, loaded in load_processors(settings):
        if isinstance(loaded, LoadError):
            yield Fact(f"processors: {loaded}", wrong=True)
        else:
            names = ", ".join(f"{each.name} ({each.filter}: {each.what})" for each in loaded)
            yield Fact(f"processors: {file}: {names or 'none in it'}")

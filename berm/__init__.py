"""The node: its settings, how it starts and stops, and the commands around it.

To have one in a program of your own, see docs/history.md:

    async with berm.Node(berm.load(Path("berm.toml"))) as node:
        async for event in node.log.read("plant/#", live=True):
            ...
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from berm.app import Node, StartError
    from berm.history import History
    from berm.query import QueryError
    from berm.replay import RangeError
    from berm.settings import Settings, SettingsError, load
    from storage.interface import Event, StorageError

__all__ = [
    "Event",
    "History",
    "Node",
    "QueryError",
    "RangeError",
    "Settings",
    "SettingsError",
    "StartError",
    "StorageError",
    "__version__",
    "load",
]

__version__: Final = "0.1.0"

_HOMES: Final = {
    "Event": "storage.interface",
    "History": "berm.history",
    "Node": "berm.app",
    "QueryError": "berm.query",
    "RangeError": "berm.replay",
    "Settings": "berm.settings",
    "SettingsError": "berm.settings",
    "StartError": "berm.app",
    "StorageError": "storage.interface",
    "load": "berm.settings",
}


def __getattr__(name: str) -> object:
    """What a command does not need is not loaded for it."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

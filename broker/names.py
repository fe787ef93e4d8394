"""How a name that a peer has chosen stands in a line of the log or in an answer: it may be 65,535 bytes of anything."""

from __future__ import annotations

from typing import Final

_SHOWN: Final = 64
"""Characters of it."""


def shown(name: str) -> str:
    """The name in quotes, what can't be printed escaped; `...` behind it where it was cut."""
    return repr(name) if len(name) <= _SHOWN else f"{name[:_SHOWN]!r}..."

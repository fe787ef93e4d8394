"""The node: its settings, how it starts and stops, and the commands around it."""

from __future__ import annotations

from typing import Final

__all__ = ["__version__"]

__version__: Final = "0.1.0"

"""What the demonstration shows while it runs: what has happened so far, and the counts as they are now.

Where standard output is no terminal there is nothing to draw over: then each event is a line, with the counts behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

Count = tuple[str, str]
"""A name, and how much of it there is now."""

_REFRESHES: Final = 8
"""Per second."""


class Screen:
    """A live view in a terminal, lines elsewhere; times are in s since it was entered."""

    def __init__(self, console: Console, counts: Callable[[], Sequence[Count]]) -> None:
        self._console = console
        self._counts = counts
        self._began = time.monotonic()
        self._told: list[Text] = []
        self._live: Live | None = None

    def __enter__(self) -> Screen:
        self._began = time.monotonic()
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._draw, refresh_per_second=_REFRESHES)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, words: str, style: str = "") -> None:
        """Tell that something has happened."""
        line = Text.assemble((f"{self._elapsed():5.1f} s  ", "dim"), (words, style))
        self._told.append(line)
        if self._live is None:
            counts = ", ".join(" ".join(count) for count in self._counts())
            self._console.print(line, Text(f"         {counts}", "dim"), sep="\n", soft_wrap=True)

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _draw(self) -> RenderableType:
        table = Table(box=SIMPLE_HEAD, padding=(0, 1))
        counts = self._counts()
        for name, _ in counts:
            table.add_column(name, justify="right")
        table.add_row(*(count for _, count in counts))
        return Group(*self._told, Text(f"{self._elapsed():5.1f} s", "dim"), table)

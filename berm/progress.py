"""A bar on stderr for whoever waits at a terminal; nothing where nobody does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def shown(what: str, *, wanted: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A function that is told how far something is: done, of how many."""
    if not wanted or not sys.stderr.isatty():
        yield _nothing
        return
    from rich.console import Console  # takes a while to load
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)

        def told(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield told


def _nothing(done: int, total: int) -> None:
    """Nobody looks."""

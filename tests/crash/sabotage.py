"""A node that breaks its promises on purpose, so that the ledger can be seen to notice.

    python -m tests.crash.sabotage WHAT[,WHAT...] run ...

Everything is done where the node hands its groups to the engine; the node itself is the real one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from time import sleep
from typing import Final

from berm.cli import app
from storage.interface import CURSORS, SESSIONS, STATE, Event, Row, Table
from storage.sqlite import SQLiteEngine
from tests.crash.client import LOAD

Rows = dict[Table, dict[Row, Row | None]]
Commit = Callable[[SQLiteEngine, Sequence[Event], Rows, bool], None]

_SPARED: Final = 5
"""Groups that are kept before the first is thrown away."""
_LATE_SECONDS: Final = 0.02
_INFLIGHT: Final = SESSIONS.values.index("inflight BLOB")
_RECEIVED: Final = SESSIONS.values.index("received BLOB")


def lose_a_group(commit: Commit) -> Commit:
    """Acknowledge one group that is never written."""
    groups = 0

    def broken(engine: SQLiteEngine, events: Sequence[Event], state: Rows, sync: bool) -> None:
        nonlocal groups
        groups += any(event.topic.startswith(LOAD) for event in events)
        if groups != _SPARED:
            commit(engine, events, state, sync)
        else:
            groups += 1

    return broken


def acknowledge_early(commit: Commit) -> Commit:
    """Acknowledge a group while it is in memory, and write it with the next one."""
    waiting: list[tuple[Sequence[Event], Rows]] = []

    def broken(engine: SQLiteEngine, events: Sequence[Event], state: Rows, sync: bool) -> None:
        for earlier in waiting:
            commit(engine, *earlier, sync)
        waiting[:] = [(list(events), {table: dict(rows) for table, rows in state.items()})]

    return broken


def never_sync(commit: Commit) -> Commit:
    """Leave it to the operating system when anything reaches the disk."""

    def broken(engine: SQLiteEngine, events: Sequence[Event], state: Rows, sync: bool) -> None:
        commit(engine, events, state, False)

    return broken


def forget_identifiers(commit: Commit) -> Commit:
    """Keep no packet identifiers of QoS 2 messages that were received."""
    forgetting = _with_sessions(commit, _RECEIVED)

    def broken(engine: SQLiteEngine, events: Sequence[Event], state: Rows, sync: bool) -> None:
        forgetting(engine, events, state, sync)
        sleep(_LATE_SECONDS)  # then a kill finds messages that are committed and not acknowledged

    return broken


def forget_inflight(commit: Commit) -> Commit:
    """Keep nothing of what is under way to subscribers."""
    return _with_sessions(commit, _INFLIGHT)


def _with_sessions(commit: Commit, column: int) -> Commit:
    def broken(engine: SQLiteEngine, events: Sequence[Event], state: Rows, sync: bool) -> None:
        sessions = state.get(SESSIONS, {})
        emptied = {key: row and (*row[:column], b"", *row[column + 1 :]) for key, row in sessions.items()}
        commit(engine, events, {**state, SESSIONS: emptied} if emptied else state, sync)

    return broken


def forget_state(commit: Commit) -> Commit:
    """Keep the positions of processors without their state."""

    def broken(engine: SQLiteEngine, events: Sequence[Event], state: Rows, sync: bool) -> None:
        commit(engine, events, {table: rows for table, rows in state.items() if table is not STATE}, sync)

    return broken


def forget_positions(commit: Commit) -> Commit:
    """Keep the outputs of processors without their positions."""
    return _with_cursors(commit, "processor/", lambda position: None)


def forward_ahead(commit: Commit) -> Commit:
    """Keep positions of bridges far ahead of what the cloud has acknowledged."""
    return _with_cursors(commit, "bridge/", lambda position: position + 10_000_000)


def _with_cursors(commit: Commit, prefix: str, change: Callable[[int], int | None]) -> Commit:
    def broken(engine: SQLiteEngine, events: Sequence[Event], state: Rows, sync: bool) -> None:
        cursors: dict[Row, Row | None] = {}
        for key, row in state.get(CURSORS, {}).items():
            if row is not None and str(key[0]).startswith(prefix):
                position = change(int(row[0] or 0))
                row = None if position is None else (position, *row[1:])
            cursors[key] = row
        commit(engine, events, {**state, CURSORS: cursors} if cursors else state, sync)

    return broken


SABOTAGES: Final[dict[str, Callable[[Commit], Commit]]] = {
    each.__name__: each
    for each in (
        lose_a_group,
        acknowledge_early,
        never_sync,
        forget_identifiers,
        forget_inflight,
        forget_state,
        forget_positions,
        forward_ahead,
    )
}
"""By name."""


def main(names: str) -> None:
    """Break the engine, then be the command line."""
    for name in names.split(","):
        setattr(SQLiteEngine, "commit", SABOTAGES[name](SQLiteEngine.commit))  # noqa: B010 - a method is being replaced
    app()


if __name__ == "__main__":
    main(sys.argv.pop(1))

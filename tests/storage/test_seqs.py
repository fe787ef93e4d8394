"""A seq means one event for ever: over crashes, power cuts and refused groups."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import storage.log
from storage.interface import DURABILITY, FSYNC, MEMORY, OS, Engine, Event, Row, StorageFull, Table
from storage.memory import MemoryEngine
from tests.storage.contract import STORES, Rig, State, Store

AHEAD = 5
"""Seqs that are reserved at a time, so that a few events cross many borders."""


@pytest.fixture(autouse=True)
def _few_seqs_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.log, "RESERVED", AHEAD)


class Disk:
    """A store of which a power cut takes back every commit after the last one that was fsynced."""

    def __init__(self) -> None:
        self._commits: list[tuple[list[Event], State, bool]] = []

    def open(self) -> Engine:
        return _OnDisk(self._commits)

    def cut(self) -> None:
        while self._commits and not self._commits[-1][2]:
            self._commits.pop()


class _OnDisk(MemoryEngine):
    def __init__(self, commits: list[tuple[list[Event], State, bool]]) -> None:
        super().__init__()
        self._commits = commits
        for events, state, sync in commits:
            super().commit(events, state, sync)

    def commit(self, events: Sequence[Event], state: dict[Table, dict[Row, Row | None]], sync: bool) -> None:
        self._commits.append((list(events), {table: dict(rows) for table, rows in state.items()}, sync))
        super().commit(events, state, sync)


RUNS = st.lists(
    st.lists(
        st.one_of(
            st.sampled_from(sorted(DURABILITY.values())), st.sampled_from(("commit", "refuse", "retry", "drain"))
        ),
        max_size=25,
    ),
    min_size=2,
    max_size=6,
)


def live(rig: Rig, run: list[int | str], seen: dict[int, Event]) -> None:
    """One run of a node: what a cursor has shown goes into `seen`, and must not be there as another event."""
    cursor = rig.log.cursor(rig.log.committed, None, lambda: None)
    for step in run:
        if step == "commit":
            rig.log.flush()
            rig.writer.run()
        elif step == "refuse":
            rig.engine.commit_fails.append(StorageFull("no room"))
        elif step == "retry":
            rig.log.retry()
            rig.writer.run()
        elif step == "drain":
            rig.drain()
        else:
            assert isinstance(step, int)
            rig.append(f"event {len(seen)}", durability=step)
        while (event := cursor.next()) is not None:
            assert event.seq not in seen, "a seq was given to two events"
            seen[event.seq] = event


@settings(max_examples=60, deadline=None)
@given(RUNS)
def test_over_crashes_no_seq_is_ever_seen_twice(runs: list[list[int | str]]) -> None:
    for make in STORES:
        with TemporaryDirectory() as directory:
            store = make(Path(directory))
            seen: dict[int, Event] = {}
            for run in runs:
                rig = Rig(store)
                live(rig, run, seen)
                rig.engine.close()


@settings(max_examples=300, deadline=None)
@given(RUNS)
def test_over_power_cuts_no_seq_is_ever_seen_twice(runs: list[list[int | str]]) -> None:
    disk = Disk()
    seen: dict[int, Event] = {}
    for run in runs:
        live(Rig(disk), run, seen)
        disk.cut()


def test_seqs_of_memory_events_are_not_given_out_again_after_a_crash(store: Store) -> None:
    rig = Rig(store)
    last = rig.commit(*[MEMORY] * 3)[-1].seq
    rig.engine.close()
    rig = Rig(store)
    assert rig.commit(MEMORY)[0].seq > last
    rig.engine.close()


def test_seqs_that_a_power_cut_took_back_are_not_given_out_again() -> None:
    disk = Disk()
    rig = Rig(disk)
    rig.commit(FSYNC)
    last = rig.commit(OS, OS)[-1].seq
    disk.cut()
    rig = Rig(disk)
    assert rig.engine.last() == 1
    assert rig.commit(FSYNC)[0].seq > last


def test_a_reservation_is_fsynced_with_the_first_group_that_needs_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    commit = rig.engine.commit

    def spy(events: Sequence[Event], state: State, sync: bool) -> None:
        asked.append(sync)
        commit(events, state, sync)

    monkeypatch.setattr(rig.engine, "commit", spy)
    for _ in range(2 * AHEAD + 4):
        rig.commit(OS)
    assert asked == ([True] + [False] * AHEAD) * 2 + [True, False]
    for _ in range(2 * AHEAD):
        rig.commit(MEMORY)
    assert asked[2 * AHEAD + 4 :] == [True], "memory events reserve theirs, too"


def test_a_crash_leaves_a_gap_of_no_more_than_a_reservation(store: Store) -> None:
    rig = Rig(store)
    last = rig.commit(*[FSYNC] * 7)[-1].seq
    rig.engine.close()
    rig = Rig(store)
    assert last < rig.append().seq <= last + AHEAD + 1
    rig.engine.close()


@pytest.mark.parametrize("durability", sorted(DURABILITY.values()))
def test_a_drained_log_leaves_no_gap(store: Store, durability: int) -> None:
    last = 0
    for number in range(1, 9):
        rig = Rig(store)
        assert rig.append(durability=durability).seq == last + 1
        for _ in range(number - 1):
            rig.append(durability=durability)
        last = rig.log.last
        assert rig.drain()
        rig.engine.close()


def test_a_log_that_goes_on_after_it_was_drained_reserves_anew(store: Store) -> None:
    rig = Rig(store)
    rig.commit(MEMORY)
    rig.drain()
    last = rig.commit(MEMORY)[0].seq
    rig.engine.close()
    rig = Rig(store)
    assert rig.append().seq > last
    rig.engine.close()


def test_a_refused_reservation_is_made_by_the_group_that_commits(store: Store) -> None:
    rig = Rig(store)
    rig.append(durability=MEMORY)
    rig.log.flush()
    rig.engine.commit_fails.append(StorageFull("no room"))
    rig.writer.run()
    rig.told.keeps = lambda event: False
    rig.log.retry()
    rig.writer.run()
    last = rig.commit(MEMORY)[0].seq
    rig.engine.close()
    rig = Rig(store)
    assert rig.append().seq > last
    rig.engine.close()

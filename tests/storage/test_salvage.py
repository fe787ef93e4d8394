"""Whatever page of a database is damaged, a start reads all others, says what is lost, and goes on above it."""

from __future__ import annotations

import logging
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from storage.database import DATABASE, SALVAGED, SUSPECT
from storage.interface import CURSORS, META, RETAINED, SESSIONS, STATE, TABLES, Event, Row, StorageFull, Table
from storage.sealer import Policy
from storage.sqlite import SQLiteEngine
from tests.storage.contract import event, read_all

PAGE = 4096
NEVER = Policy(bytes=1 << 62, age=1 << 62)
GROUPS = 60
LAST = GROUPS * 100
RESERVED = LAST + 5000


@dataclass(frozen=True, slots=True)
class Plant:
    """A database of some megabytes, what is in it, and whose each page is."""

    content: bytes
    events: dict[int, Event]
    rows: dict[Table, set[Row]]
    owners: dict[int, tuple[str, str]]
    """Table or index, and kind of page, by number."""

    @property
    def pages(self) -> int:
        """How many there are."""
        return len(self.content) // PAGE


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Plant:
    directory = tmp_path_factory.mktemp("plant")
    chance = random.Random(1)
    engine = SQLiteEngine(directory, policy=NEVER)
    for at in range(0, LAST, 100):
        engine.commit([_event(chance, seq) for seq in range(at + 1, at + 101)], _state(at), True)
    events = {each.seq: each for each in read_all(engine)}
    rows = {table: set(engine.rows(table)) for table in TABLES}
    engine.close()
    with closing(sqlite3.connect(directory / DATABASE)) as tool:
        owners = {page: (name, kind) for page, name, kind in tool.execute("SELECT pageno, name, pagetype FROM dbstat")}
    return Plant((directory / DATABASE).read_bytes(), events, rows, owners)


def _event(chance: random.Random, seq: int) -> Event:
    return event(seq, f"plant/{seq % 300}/temperature", chance.randbytes(9000 if seq % 97 == 0 else 200))


def _state(at: int) -> dict[Table, dict[Row, Row | None]]:
    numbers = range(at, at + 20)
    return {
        META: {("reserved",): (str(RESERVED),), ("epoch",): ("5",)},
        CURSORS: {(f"processor/{at}",): (at,)},
        SESSIONS: {(f"client {n}",): (5, 60, 0, 1, at, b"x" * 50, b"", b"", "anna") for n in numbers},
        RETAINED: {(f"retained/{n}",): (at, 1, b"p" * 100, 1, "client", b"", 0) for n in numbers},
        STATE: {("sum", 0, f"key {n}"): (b"v" * 60,) for n in numbers},
    }


@contextmanager
def _started(directory: Path) -> Iterator[SQLiteEngine]:
    engine = SQLiteEngine(directory, policy=NEVER, check_seconds=60)
    try:
        yield engine
    finally:
        engine.close()


def _kind(data: bytearray, at: int) -> None:
    data[at + (100 if at == 0 else 0)] ^= 0x40


def _noise(data: bytearray, at: int) -> None:
    data[at : at + PAGE] = random.Random(at).randbytes(PAGE)


def _nul(data: bytearray, at: int) -> None:
    data[at : at + PAGE] = bytes(PAGE)


def _count(data: bytearray, at: int) -> None:
    data[at + (103 if at == 0 else 3)] ^= 0x10


def _pointer(data: bytearray, at: int) -> None:
    data[at + (112 if at == 0 else 12)] ^= 0x04


def _some_byte(data: bytearray, at: int) -> None:
    chance = random.Random(at)
    data[at + chance.randrange(PAGE)] ^= 1 << chance.randrange(8)


HOW: dict[str, Callable[[bytearray, int], None]] = {
    "its kind": _kind,
    "all of it is noise": _noise,
    "all of it is NUL bytes": _nul,
    "its number of cells": _count,
    "a pointer to a cell": _pointer,
    "any byte": _some_byte,
}


def _sampled(plant: Plant) -> list[int]:
    """Pages of every table and index, those above leaves all, and few of those of which there are many."""
    rare = {page: owner for page, owner in plant.owners.items() if owner[1] != "overflow" and owner != ("tail", "leaf")}
    special = sorted(rare, key=lambda page: (rare[page][1] != "internal", page))
    usual = sorted(set(range(1, plant.pages + 1)) - set(special))
    return sorted({1, 2, *special[:12], *special[12::9], *usual[:: max(1, len(usual) // 8)]})


@pytest.mark.parametrize("how", HOW)
def test_a_page_that_is_damaged_costs_what_is_on_it_and_nothing_else(tmp_path: Path, plant: Plant, how: str) -> None:
    for page in _sampled(plant):
        directory = tmp_path / str(page)
        directory.mkdir()
        data = bytearray(plant.content)
        HOW[how](data, (page - 1) * PAGE)
        (directory / DATABASE).write_bytes(data)
        with _started(directory) as engine:
            _check(plant, page, engine)
            if engine.quarantined is not None:
                assert engine.quarantined.read_bytes() == data, "not a byte of it was changed"
        shutil.rmtree(directory)


def _check(plant: Plant, page: int, engine: SQLiteEngine) -> None:
    name, kind = plant.owners.get(page, ("none", "none"))
    found = {each.seq: each for each in read_all(engine)}
    lost = [seq for seq, each in plant.events.items() if found.get(seq) != each]
    where = f"page {page}, {kind} of {name}"
    assert not found.keys() - plant.events.keys(), where
    assert len(lost) <= (25 if name == "tail" else 0), where
    if kind == "internal" or name == "sqlite_schema" or name.startswith("sqlite_autoindex"):
        assert not lost, where
    for table in TABLES:
        gone = plant.rows[table] - set(engine.rows(table)) - {("reserved", str(RESERVED))}
        assert len(gone) <= (60 if name == table.name and kind == "leaf" else 0), (where, table.name)
    reserved = next(int(str(value)) for key, value in engine.rows(META) if key == "reserved")
    assert reserved >= RESERVED or name == "meta", where
    assert reserved > LAST, where


def test_what_is_lost_is_said_with_its_seqs(tmp_path: Path, plant: Plant, caplog: pytest.LogCaptureFixture) -> None:
    leaves = [page for page, owner in plant.owners.items() if owner == ("tail", "leaf")]
    data = bytearray(plant.content)
    _noise(data, (leaves[len(leaves) // 2] - 1) * PAGE)
    (tmp_path / DATABASE).write_bytes(data)
    with caplog.at_level(logging.ERROR, "berm.storage"), _started(tmp_path) as engine:
        gone = sorted(plant.events.keys() - {each.seq for each in read_all(engine)})
        assert engine.quarantined is not None
    assert 0 < len(gone) < 25
    assert f"with seqs in {gone[0]} to {gone[-1]}" in caplog.text
    assert f"{LAST - len(gone)} events that are not sealed" in caplog.text


def _last_cell(data: bytes | bytearray, page: int) -> int:
    """Where the last row of a leaf begins."""
    at = (page - 1) * PAGE
    place = at + 6 + 2 * int.from_bytes(data[at + 3 : at + 5], "big")
    return at + int.from_bytes(data[place : place + 2], "big")


def test_a_row_that_took_another_place_by_damage_is_not_put_in_the_place_of_a_sound_one(
    tmp_path: Path, plant: Plant
) -> None:
    leaves = [page for page, owner in plant.owners.items() if owner == ("tail", "leaf")]
    data = bytearray(plant.content)
    cell = next(cell for page in leaves[100:] if not data[(cell := _last_cell(data, page)) + 3] & 0x40)
    assert data[cell] & 0x80, "the payload's size takes two bytes, and then comes the seq, of two as well"
    data[cell + 3] |= 0x40  # it is 64 more, which is on a page that comes later
    _noise(data, (leaves[0] - 1) * PAGE)
    (tmp_path / DATABASE).write_bytes(data)
    with _started(tmp_path) as engine:
        found = {each.seq: each for each in read_all(engine)}
    wrong = [seq for seq, each in found.items() if plant.events[seq] != each]
    assert wrong == []
    assert len(plant.events.keys() - found.keys()) < 30


@pytest.mark.parametrize("part", ["header", "salt"])
def test_of_a_wal_with_a_damaged_header_each_frame_proves_the_next(tmp_path: Path, part: str) -> None:
    directory = tmp_path / "first"
    engine = SQLiteEngine(directory, policy=NEVER)
    events = [event(seq, f"t/{seq % 5}", b"x" * 300) for seq in range(1, 501)]
    for at in range(0, 500, 100):
        engine.commit(events[at : at + 100], {}, True)
    wal = bytearray((directory / f"{DATABASE}-wal").read_bytes())
    (tmp_path / DATABASE).write_bytes((directory / DATABASE).read_bytes())
    engine.close()
    wal[{"header": 1, "salt": 18}[part]] ^= 0x10
    (tmp_path / f"{DATABASE}-wal").write_bytes(wal)
    with _started(tmp_path) as engine:
        assert engine.quarantined is not None
        assert read_all(engine) == events


def test_a_start_that_is_cut_short_between_the_two_renames_is_finished_by_the_next(
    tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(plant.content)
    _kind(data, 0)
    (tmp_path / DATABASE).write_bytes(data)
    rename = Path.rename

    def cut_short(path: Path, target: Path) -> Path:
        if path.name == SALVAGED:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", cut_short)
    with pytest.raises(KeyboardInterrupt):
        SQLiteEngine(tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / DATABASE).exists()
    with _started(tmp_path) as engine:
        assert len(read_all(engine)) == LAST
        assert set(engine.rows(SESSIONS)) == plant.rows[SESSIONS]
    assert not (tmp_path / SALVAGED).exists()


def test_without_room_for_what_can_be_read_nothing_is_set_aside(
    tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(plant.content)
    _kind(data, 0)
    (tmp_path / DATABASE).write_bytes(data)
    make = sqlite3.connect

    def small(path: object, **options: object) -> sqlite3.Connection:
        connection = make(path, **options)  # type: ignore[call-overload]  # whatever is given is given on
        connection.execute("PRAGMA max_page_count=40")
        assert isinstance(connection, sqlite3.Connection)
        return connection

    monkeypatch.setattr("storage.snapshot.sqlite3.connect", small)
    with pytest.raises(StorageFull):
        SQLiteEngine(tmp_path)
    monkeypatch.undo()
    assert (tmp_path / DATABASE).read_bytes() == data
    with _started(tmp_path) as engine:
        assert len(read_all(engine)) == LAST


def test_rows_that_were_deleted_do_not_come_back(tmp_path: Path) -> None:
    engine = SQLiteEngine(tmp_path, policy=NEVER)
    every: dict[Row, Row | None] = {(f"client {n}",): (5, 60, 0, 1, 0, b"x" * 200, b"", b"", "") for n in range(2000)}
    engine.commit([event(1)], {SESSIONS: every, META: {("reserved",): ("70000",)}}, True)
    engine.commit([event(2)], {SESSIONS: dict.fromkeys(list(every)[::2] + list(every)[1000:])}, True)
    kept = set(engine.rows(SESSIONS))
    engine.close()
    with closing(sqlite3.connect(tmp_path / DATABASE)) as tool:
        (page,) = tool.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'sessions'").fetchone()
        assert tool.execute("PRAGMA freelist_count").fetchone()[0] > 50
    data = bytearray((tmp_path / DATABASE).read_bytes())
    _noise(data, (page - 1) * PAGE)
    (tmp_path / DATABASE).write_bytes(data)
    (tmp_path / SUSPECT).touch()
    with _started(tmp_path) as engine:
        assert engine.quarantined is not None
        assert set(engine.rows(SESSIONS)) == kept


def test_no_garbage_keeps_a_node_from_starting(tmp_path: Path, plant: Plant) -> None:
    for seed in range(150):
        chance = random.Random(seed)
        data = bytearray(plant.content[: PAGE * 80])
        for _ in range(chance.randrange(1, 40)):
            at, size = chance.randrange(len(data)), chance.choice((1, 2, 8, 300))
            data[at : at + size] = chance.randbytes(len(data[at : at + size]))
        (tmp_path / DATABASE).write_bytes(data)
        with _started(tmp_path) as engine:
            read_all(engine)
            seq = engine.last() + 1
            engine.commit([event(seq)], {}, True)
            assert engine.get([seq]) == [event(seq)]
        for path in tmp_path.glob(f"{DATABASE}*"):
            path.unlink()


@pytest.mark.parametrize("flags", [3, 0, 1000, -1, 32 | 17])
def test_an_event_with_flags_that_none_can_have_is_lost_and_no_other(tmp_path: Path, plant: Plant, flags: int) -> None:
    (tmp_path / DATABASE).write_bytes(plant.content)
    with closing(sqlite3.connect(tmp_path / DATABASE)) as tool:
        tool.execute("UPDATE tail SET flags = ? WHERE seq = 3000", (flags,))
        tool.commit()
    with _started(tmp_path) as engine:
        assert engine.quarantined is not None
        assert {each.seq for each in read_all(engine)} == plant.events.keys() - {3000}

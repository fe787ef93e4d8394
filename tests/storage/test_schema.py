"""A database of an earlier version is brought up to date with all that is in it, or stays as it was."""

from __future__ import annotations

import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from storage import schema
from storage.database import DATABASE, SUSPECT
from storage.interface import META, SESSIONS, SHARES, TABLES, Row, StorageError, StorageFull
from storage.schema import LAYOUTS, MIGRATIONS, VERSION
from storage.sqlite import SQLiteEngine
from tests.storage.contract import event, read_all
from tests.storage.versions import DUMPS, put

EARLIER = sorted(DUMPS)


@contextmanager
def _started(directory: Path, *, readonly: bool = False) -> Iterator[SQLiteEngine]:
    engine = SQLiteEngine(directory, readonly=readonly)
    try:
        yield engine
    finally:
        engine.close()


def _all(path: Path) -> dict[str, list[Row]]:
    """Everything in a database, by table, and its version."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as tool:
        names = [name for (name,) in tool.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        found = {name: tool.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall() for name in names}
        return {**found, "user_version": tool.execute("PRAGMA user_version").fetchall()}


def _shape(path: Path) -> dict[str, list[Row]]:
    """Columns, types and keys of every table, and the text of every view."""
    with closing(sqlite3.connect(path)) as tool:
        found: dict[str, list[Row]] = {}
        named = "SELECT type, name, sql FROM sqlite_schema WHERE type IN ('table', 'view')"
        for kind, name, text in tool.execute(named).fetchall():
            shape = [(text,)] if kind == "view" else tool.execute(f"PRAGMA table_xinfo({name})").fetchall()
            found[name] = shape
        return found


def _migrated(directory: Path, version: int) -> Path:
    path = put(directory, version)
    with _started(directory) as engine:
        assert engine.quarantined is None
    return path


# -- what a version is


@pytest.mark.parametrize("version", EARLIER)
def test_each_earlier_version_is_what_its_layout_says(tmp_path: Path, version: int) -> None:
    shape = _shape(put(tmp_path, version))
    found = {
        name: tuple(" ".join(map(str, row[1:3])) for row in rows) for name, rows in shape.items() if len(rows[0]) > 1
    }
    assert found == LAYOUTS[version]


def test_every_earlier_version_has_a_migration_a_layout_and_a_database_to_try_them_on() -> None:
    assert sorted(MIGRATIONS) == EARLIER == list(range(1, VERSION))
    assert sorted(LAYOUTS) == [*EARLIER, VERSION]


@pytest.mark.parametrize("version", EARLIER)
def test_a_database_that_was_brought_up_to_date_has_the_shape_of_a_new_one(tmp_path: Path, version: int) -> None:
    with _started(tmp_path / "new") as engine:
        new = _shape(engine.path)
    assert _shape(_migrated(tmp_path, version)) == new


# -- what becomes of what is in it


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "stopped"])
def test_everything_in_an_earlier_version_is_there_afterwards(tmp_path: Path, killed: bool) -> None:
    path = put(tmp_path, 1, killed=killed)
    old = _all(path)
    assert len(old["sessions"]) == 4
    with _started(tmp_path) as engine:
        assert engine.quarantined is None
        assert [each.seq for each in read_all(engine)] == list(range(1, 11))
        assert sorted(engine.rows(SESSIONS)) == [(*row, b"", "") for row in old["sessions"]]
        assert engine.rows(SHARES) == []
    new = _all(path)
    assert new["user_version"] == [(VERSION,)]
    (record,) = set(new["meta"]) - set(old["meta"])
    assert record[0] == f"schema {VERSION}"
    assert re.fullmatch(r"from schema 1, \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", str(record[1]))
    for name in old.keys() - {"sessions", "meta", "user_version"}:
        assert new[name] == old[name], name


def test_a_database_is_brought_up_to_date_once(tmp_path: Path) -> None:
    path = _migrated(tmp_path, 1)
    before = _all(path)
    with _started(tmp_path) as engine:
        engine.commit([event(11, "after")], {SESSIONS: {("new",): (5, 60, 0, 0, 11, b"", b"", b"", "anna")}}, True)
    after = _all(path)
    assert after["meta"] == before["meta"]
    assert set(after["sessions"]) - set(before["sessions"]) == {("new", 5, 60, 0, 0, 11, b"", b"", b"", "anna")}


def test_a_new_database_has_no_record_of_a_migration(tmp_path: Path) -> None:
    with _started(tmp_path) as engine:
        assert engine.rows(META) == []


# -- all of it, or nothing


def _later(monkeypatch: pytest.MonkeyPatch, *statements: str) -> None:
    """There is a version after this one, which these statements make."""
    monkeypatch.setitem(schema.LAYOUTS, VERSION + 1, LAYOUTS[VERSION])
    monkeypatch.setitem(schema.MIGRATIONS, VERSION, statements)
    monkeypatch.setattr(schema, "VERSION", VERSION + 1)


def test_several_versions_are_made_up_for_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, 1)
    _later(monkeypatch, "UPDATE sessions SET username = username || 'later'")
    with _started(tmp_path) as engine:
        assert engine.quarantined is None
    found = _all(path)
    assert found["user_version"] == [(VERSION + 1,)]
    assert {row[-1] for row in found["sessions"]} == {"later"}
    assert [name for name, _ in found["meta"] if str(name).startswith("schema")] == [f"schema {VERSION + 1}"]


def test_where_a_later_migration_fails_the_earlier_ones_are_not_kept_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path, 1)
    before = _all(path)
    _later(monkeypatch, "ALTER TABLE nowhere ADD COLUMN more TEXT")
    with pytest.raises(StorageError, match="no such table: nowhere; nothing was changed"):
        SQLiteEngine(tmp_path)
    assert _all(path) == before
    monkeypatch.undo()
    with _started(tmp_path) as engine:
        assert engine.quarantined is None
        assert len(engine.rows(SESSIONS)) == 4


_KILLED = """
import os, signal, sqlite3, sys
from pathlib import Path
from storage import database
from storage.sqlite import SQLiteEngine

opened = database._open

def open(path, mode):
    connection = opened(path, mode)
    if mode == "rwc":
        connection.execute("PRAGMA cache_size=1")  # what is written goes to the WAL before it commits
        connection.set_trace_callback(trace)
    return connection

def trace(statement):
    if statement.startswith(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

database._open = open
SQLiteEngine(Path(sys.argv[1]))
"""


@pytest.mark.parametrize(
    "before", [*MIGRATIONS[1][1:], "INSERT OR REPLACE INTO meta", f"PRAGMA user_version={VERSION}", "COMMIT"]
)
def test_a_migration_that_is_killed_leaves_the_earlier_version_whole(tmp_path: Path, before: str) -> None:
    many = """WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 3000)
        INSERT INTO sessions SELECT 'c' || n, 5, 60, 0, 1, 0, x'', x'' FROM number"""
    path = put(tmp_path, 1, many)
    old = _all(path)
    written = Path(f"{path}-wal").stat().st_size
    child = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path), before], check=False)
    assert child.returncode == -signal.SIGKILL
    if before not in MIGRATIONS[1][:3]:
        assert Path(f"{path}-wal").stat().st_size > written + 50_000, "rows were written before it was killed"
    shutil.copytree(tmp_path, tmp_path / "copy")
    assert _all(tmp_path / "copy" / DATABASE) == old
    with _started(tmp_path) as engine:
        assert engine.quarantined is None
        assert len(engine.rows(SESSIONS)) == 3004
    assert _all(path)["user_version"] == [(VERSION,)]


def test_a_migration_without_room_is_one_clear_error_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path, 1)
    before = _all(path)
    with closing(sqlite3.connect(path)) as tool:
        pages = tool.execute("PRAGMA page_count").fetchone()[0]
    full = (f"PRAGMA max_page_count={pages}", *MIGRATIONS[1])
    monkeypatch.setitem(schema.MIGRATIONS, 1, full)
    with pytest.raises(StorageFull, match=r"^opening .*; free some space on its disk$"):
        SQLiteEngine(tmp_path)
    assert _all(path) == before
    assert not list(tmp_path.glob("*damaged*"))


def test_what_is_in_the_way_of_a_migration_is_one_clear_error_and_no_damage(tmp_path: Path) -> None:
    path = put(tmp_path, 1, "CREATE TABLE shares (price REAL)", "INSERT INTO shares VALUES (1.5)")
    before = _all(path)
    for _ in range(2):
        with pytest.raises(StorageError) as error:
            SQLiteEngine(tmp_path)
        assert str(error.value) == (
            f"bringing {path} from schema 1 to {VERSION}: table shares already exists; nothing was changed; "
            "take out of it what Berm did not make, or set storage.path to another directory"
        )
    assert _all(path) == before
    assert not list(tmp_path.glob("*damaged*"))
    with closing(sqlite3.connect(path)) as tool:
        tool.execute("DROP TABLE shares")
    with _started(tmp_path) as engine:
        assert engine.quarantined is None
        assert len(read_all(engine)) == 10


# -- sound, or damaged


@pytest.mark.parametrize("version", EARLIER)
def test_a_suspicion_of_an_earlier_version_that_is_sound_comes_to_nothing(tmp_path: Path, version: int) -> None:
    put(tmp_path, version)
    (tmp_path / SUSPECT).touch()
    with _started(tmp_path) as engine:
        assert engine.quarantined is None
        assert len(read_all(engine)) == 10
    assert not (tmp_path / SUSPECT).exists()


@pytest.mark.parametrize("name", ["events", *LAYOUTS[1]])
def test_an_earlier_version_without_one_of_its_tables_is_set_aside_as_it_was(tmp_path: Path, name: str) -> None:
    path = put(tmp_path, 1, f"DROP {'VIEW' if name == 'events' else 'TABLE'} {name}")
    before = _all(path) if name != "tail" else {}
    with _started(tmp_path) as engine:
        assert engine.quarantined is not None
        assert len(read_all(engine)) == (0 if name in ("tail", "topics") else 10)
        assert len(engine.rows(SESSIONS)) == (0 if name == "sessions" else 4)
        moved = engine.quarantined
    if before:
        assert _all(moved) == before


@pytest.mark.parametrize(
    ("table", "column"),
    [(table, column.split()[0]) for table in ("sessions", "wills", "meta") for column in LAYOUTS[1][table][1:]],
)
def test_an_earlier_version_without_one_of_its_columns_is_set_aside(tmp_path: Path, table: str, column: str) -> None:
    put(tmp_path, 1, f"ALTER TABLE {table} DROP COLUMN {column}")
    with _started(tmp_path) as engine:
        assert engine.quarantined is not None


@pytest.mark.parametrize(
    "spoil",
    [
        "UPDATE sessions SET inflight = 'text' WHERE client_id = 'press-7'",
        "UPDATE wills SET topic = CAST(x'ff' AS TEXT)",
        "DELETE FROM topics WHERE id = 3",
    ],
)
def test_an_earlier_version_in_which_damage_was_suspected_and_is_found_is_set_aside(tmp_path: Path, spoil: str) -> None:
    put(tmp_path, 1, *[f"INSERT INTO meta VALUES ('{n}', '')" for n in range(200)], spoil)
    (tmp_path / SUSPECT).touch()
    with _started(tmp_path) as engine:
        assert engine.quarantined is not None
        assert 9 <= len(read_all(engine)) <= 10, "one may have had the topic that is gone"
        assert 3 <= len(engine.rows(SESSIONS)) <= 4


def test_an_earlier_version_whose_pages_are_noise_is_set_aside_when_the_migration_meets_them(tmp_path: Path) -> None:
    many = """WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 3000)
        INSERT INTO sessions SELECT 'c' || n, 5, 60, 0, 1, 0, x'', x'' FROM number"""
    path = put(tmp_path, 1, many, killed=False)
    with closing(sqlite3.connect(path)) as tool:
        query = "SELECT pageno FROM dbstat WHERE name = 'sessions' AND pagetype = 'leaf' ORDER BY path"
        pages = tool.execute(query).fetchall()
    (page,) = pages[len(pages) // 2]
    data = bytearray(path.read_bytes())
    data[(page - 1) * 4096 : page * 4096] = b"\xee" * 4096
    path.write_bytes(data)
    with _started(tmp_path) as engine:
        assert engine.quarantined is not None
        assert engine.quarantined.read_bytes() == bytes(data), "not a byte of it was changed"
        assert 2800 < len(engine.rows(SESSIONS)) < 3004


@pytest.mark.parametrize("version", [-1, -0x80000000])
def test_a_version_that_there_can_not_be_is_damage(tmp_path: Path, version: int) -> None:
    put(tmp_path, 1, f"PRAGMA user_version={version}")
    with pytest.raises(StorageError, match="see whether the disk is sound"):
        SQLiteEngine(tmp_path, readonly=True)
    with _started(tmp_path) as engine:
        assert engine.quarantined is not None


# -- readers


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "stopped"])
def test_a_reader_sees_an_earlier_version_as_the_current_one_and_changes_nothing(tmp_path: Path, killed: bool) -> None:
    path = put(tmp_path, 1, killed=killed)
    old = _all(path)
    with _started(tmp_path, readonly=True) as reader:
        assert [each.seq for each in read_all(reader)] == list(range(1, 11))
        seen = {table: reader.rows(table) for table in TABLES}
    assert _all(path) == old
    with _started(tmp_path) as engine:
        for table in TABLES:
            now = [row for row in engine.rows(table) if not str(row[0]).startswith("schema")]
            assert seen[table] == now, table.name


def test_a_reader_that_was_there_before_a_migration_goes_on(tmp_path: Path) -> None:
    put(tmp_path, 1)
    with _started(tmp_path, readonly=True) as reader:
        before = {table: reader.rows(table) for table in (SESSIONS, SHARES)}
        with _started(tmp_path) as engine:
            engine.commit([event(11)], {}, True)
            assert {table: reader.rows(table) for table in (SESSIONS, SHARES)} == before
            assert reader.last() == 11

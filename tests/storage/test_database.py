"""Whatever stands in the data directory, a node starts; what was damaged is set aside, and read as far as it goes."""

from __future__ import annotations

import fcntl
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from storage.database import DATABASE, LOCK, SUSPECT
from storage.interface import META, SESSIONS, STATE, TABLES, StorageError, StorageFailed
from storage.schema import VERSION
from storage.sqlite import SQLiteEngine
from tests.storage.contract import event, read_all

EVENTS = [event(seq, f"plant/line{seq // 200}", bytes([seq % 256]) * 300) for seq in range(1, 2001)]


@dataclass(frozen=True, slots=True)
class Image:
    """The files of a data directory, as a stopped node or one that was killed leaves them."""

    database: bytes
    wal: bytes

    def put(self, directory: Path) -> Path:
        """Write them; the database's path."""
        path = directory / DATABASE
        path.write_bytes(self.database)
        if self.wal:
            (directory / f"{DATABASE}-wal").write_bytes(self.wal)
        return path


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """All in the database."""
    directory = tmp_path_factory.mktemp("stopped")
    engine = SQLiteEngine(directory)
    _fill(engine)
    engine.close()
    return Image((directory / DATABASE).read_bytes(), b"")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Nearly all in the WAL."""
    directory = tmp_path_factory.mktemp("killed")
    engine = SQLiteEngine(directory)
    _fill(engine)
    image = Image((directory / DATABASE).read_bytes(), (directory / f"{DATABASE}-wal").read_bytes())
    engine.close()
    return image


def _fill(engine: SQLiteEngine) -> None:
    for at in range(0, len(EVENTS), 200):
        keys = {("client", f"key {number}"): (b"x" * 50,) for number in range(at, at + 200)}
        engine.commit(
            EVENTS[at : at + 200],
            {META: {("at",): (str(at),)}, STATE: {("sum", 0, key[1]): value for key, value in keys.items()}},
            True,
        )


def _works(directory: Path) -> None:
    """A node starts on it, keeps a group, and finds it again."""
    engine = SQLiteEngine(directory)
    seq = engine.last() + 1
    engine.commit([event(seq, "after")], {META: {("after",): (str(seq),)}}, True)
    engine.close()
    engine = SQLiteEngine(directory)
    assert engine.quarantined is None
    assert read_all(engine)[-1] == event(seq, "after")
    assert ("after", str(seq)) in engine.rows(META)
    engine.close()


def _read_everything(engine: SQLiteEngine) -> None:
    read_all(engine)
    for table in TABLES:
        engine.rows(table)


@contextmanager
def _started(directory: Path, check_seconds: float = 1.0) -> Iterator[SQLiteEngine]:
    engine = SQLiteEngine(directory, check_seconds=check_seconds)
    try:
        yield engine
    finally:
        engine.close()


# -- who holds it


def test_a_second_node_on_one_directory_is_told_who_holds_it(tmp_path: Path) -> None:
    with _started(tmp_path), pytest.raises(StorageError) as error:
        SQLiteEngine(tmp_path)
    assert str(error.value) == (
        f"the data directory {tmp_path} is in use by the node with process id {os.getpid()}; "
        "stop that one, or set storage.path to another directory"
    )
    SQLiteEngine(tmp_path).close()


def test_one_who_only_asks_who_holds_it_does_not_keep_a_node_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / LOCK).open("wb") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        monkeypatch.setattr("storage.database.sleep", lambda _: fcntl.flock(asking, fcntl.LOCK_UN))
        SQLiteEngine(tmp_path).close()


def test_a_new_directory_is_not_for_others_to_read(tmp_path: Path) -> None:
    SQLiteEngine(tmp_path / "new" / "data").close()
    assert (tmp_path / "new" / "data").stat().st_mode & 0o007 == 0


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from storage.sqlite import SQLiteEngine; "
        "engine = SQLiteEngine(Path(sys.argv[1])); print('started', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "started\n"
        with pytest.raises(StorageError, match=f"process id {child.pid};"):
            SQLiteEngine(tmp_path)
        child.kill()
        child.wait()
        SQLiteEngine(tmp_path).close()
    assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"


def test_a_lock_whose_holder_can_not_be_told_is_respected_all_the_same(tmp_path: Path) -> None:
    with (tmp_path / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="process id unknown"):
            SQLiteEngine(tmp_path)


# -- where it can't be


def test_a_directory_that_is_not_there_is_made(tmp_path: Path) -> None:
    _works(tmp_path / "a" / "b" / "c")


@pytest.mark.parametrize("name", ["with space", "per%20cent", "quest?ion=#1&mode=ro", "ümlaut"])
def test_a_directory_may_have_any_name(tmp_path: Path, name: str) -> None:
    _works(tmp_path / name)
    assert (tmp_path / name / DATABASE).is_file()


@pytest.mark.parametrize("below", ["", "data", "data/more"])
def test_a_directory_that_can_not_be_made_is_one_clear_error(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(StorageError, match=r"^cannot use the data directory .*: Not a directory; set storage\.path"):
        SQLiteEngine(tmp_path / "file" / below)


def test_a_file_system_that_takes_no_files_is_one_clear_error() -> None:
    with pytest.raises(StorageError, match=r"^cannot use the data directory /proc/berm: .*; set storage\.path"):
        SQLiteEngine(Path("/proc/berm"))
    with pytest.raises(StorageError, match=r"^cannot use the data directory /proc: .*; set storage\.path"):
        SQLiteEngine(Path("/proc"))


@pytest.mark.parametrize("name", [DATABASE, LOCK])
def test_a_directory_in_the_place_of_a_file_is_one_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    for _ in range(2):
        with pytest.raises(StorageError, match=re.escape(f"{tmp_path}")):
            SQLiteEngine(tmp_path)
    assert (tmp_path / name).is_dir()


# -- versions


@pytest.mark.parametrize("state", ["stopped", "killed"])
def test_the_database_of_a_newer_berm_is_refused_and_not_touched(
    tmp_path: Path, state: str, request: pytest.FixtureRequest
) -> None:
    image: Image = request.getfixturevalue(state)
    path = image.put(tmp_path)
    with closing(sqlite3.connect(path)) as newer:
        newer.execute("PRAGMA wal_autocheckpoint=0")
        newer.execute(f"PRAGMA user_version={VERSION + 1}")
        newer.execute("ALTER TABLE tail RENAME TO log")
        newer.commit()
        before = {part: part.read_bytes() for part in (path, Path(f"{path}-wal"))}
    for part, content in before.items():
        part.write_bytes(content)
    for readonly in (False, True):
        with pytest.raises(StorageError) as error:
            SQLiteEngine(tmp_path, readonly=readonly)
        assert str(error.value) == (
            f"{path} was written by a newer Berm (schema {VERSION + 1}, this one knows {VERSION}); "
            "install that version, or set storage.path to another directory"
        )
    assert {part: part.read_bytes() for part in before} == before
    assert not list(tmp_path.glob("*damaged*"))


def test_an_empty_file_is_a_new_log(tmp_path: Path) -> None:
    (tmp_path / DATABASE).touch()
    with _started(tmp_path) as engine:
        assert engine.quarantined is None
    _works(tmp_path)


def test_a_start_that_was_cut_short_is_done_again(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / DATABASE)) as begun:
        begun.execute("PRAGMA journal_mode=WAL")
    with _started(tmp_path) as engine:
        assert engine.quarantined is None
    _works(tmp_path)


# -- damage that is seen at the start


def _noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 0x40,)) + data[at + 1 :]


def _without_version(data: bytes) -> bytes:
    return data[:60] + bytes(4) + data[64:]


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "NUL bytes": lambda data: bytes(len(data)),
    "noise": lambda data: _noise(len(data)),
    "another kind of file": lambda data: b"listener 1883\n" * 400,
    "cut off in its header": lambda data: data[:60],
    "cut off in its first page": lambda data: data[:2000],
    "cut in half": lambda data: data[: len(data) // 8192 * 4096],
    "cut off in the middle of a page": lambda data: data[: len(data) // 2 + 77],
    "noise in its header": lambda data: _noise(100) + data[100:],
    "NUL bytes in its header": lambda data: bytes(100) + data[100:],
    "noise in its schema": lambda data: data[:100] + _noise(3996) + data[4096:],
    "NUL bytes behind its first page": lambda data: data[:4096] + bytes(len(data) - 4096),
    "no version": _without_version,
}
READ: dict[str, int] = {
    "cut in half": 900,
    "cut off in the middle of a page": 900,
    "noise in its header": 2000,
    "NUL bytes in its header": 2000,
    "noise in its schema": 2000,
    "no version": 2000,
}
"""How many events can be read of these at the least; of all others there are none."""


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_database_is_set_aside_whole_and_the_node_starts(tmp_path: Path, stopped: Image, how: str) -> None:
    damaged = DAMAGED[how](stopped.database)
    path = Image(damaged, b"").put(tmp_path)
    with _started(tmp_path) as engine:
        assert engine.quarantined is not None
        assert re.fullmatch(r"berm\.db\.damaged-\d+", engine.quarantined.name)
        assert engine.quarantined.read_bytes() == damaged
        assert engine.path == path
        found = read_all(engine)
        assert {each.seq: each for each in EVENTS}.items() >= {each.seq: each for each in found}.items()
        assert len(found) >= READ.get(how, 0)
        assert found or how not in READ
    _works(tmp_path)


def test_the_database_of_another_program_is_set_aside(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / DATABASE)) as other:
        other.execute("CREATE TABLE persons (x)")
    with _started(tmp_path) as engine:
        assert engine.quarantined is not None
    with closing(sqlite3.connect(engine.quarantined)) as other:
        assert other.execute("SELECT name FROM sqlite_schema").fetchall() == [("persons",)]
    _works(tmp_path)


@pytest.mark.parametrize("name", ["events", "tail", "topics", *(table.name for table in TABLES)])
def test_a_database_without_one_of_its_tables_is_set_aside(tmp_path: Path, stopped: Image, name: str) -> None:
    with closing(sqlite3.connect(stopped.put(tmp_path))) as tool:
        tool.execute(f"DROP {'VIEW' if name == 'events' else 'TABLE'} {name}")
    with _started(tmp_path) as engine:
        assert engine.quarantined is not None
    _works(tmp_path)


def test_two_damaged_databases_are_both_kept(tmp_path: Path) -> None:
    moved = []
    for content in (b"one" * 100, b"two" * 100):
        (tmp_path / DATABASE).write_bytes(content)
        with _started(tmp_path) as engine:
            assert engine.quarantined is not None
            moved.append(engine.quarantined)
    assert [path.read_bytes() for path in moved] == [b"one" * 100, b"two" * 100]


# -- the WAL


def test_the_wal_of_a_node_that_was_killed_is_taken_up(tmp_path: Path, killed: Image) -> None:
    killed.put(tmp_path)
    assert len(killed.database) < 10_000
    with _started(tmp_path) as engine:
        assert engine.quarantined is None
        assert read_all(engine) == EVENTS
    _works(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda wal: bytes(len(wal)),
        lambda wal: _noise(len(wal)),
        lambda wal: _flip(wal, 3),
        lambda wal: _flip(wal, 20),
        lambda wal: _flip(wal, 30),
    ],
    ids=["NUL bytes", "noise", "its magic", "a salt", "a checksum"],
)
def test_a_wal_that_can_not_be_read_is_set_aside_with_its_database(
    tmp_path: Path, killed: Image, damage: Callable[[bytes], bytes]
) -> None:
    damaged = Image(killed.database, damage(killed.wal))
    damaged.put(tmp_path)
    with _started(tmp_path) as engine:
        assert engine.quarantined is not None
        assert engine.quarantined.read_bytes() == damaged.database
        assert Path(f"{engine.quarantined}-wal").read_bytes() == damaged.wal
    _works(tmp_path)


@pytest.mark.parametrize("rest", [b"", None], ids=["empty", "absent"])
def test_a_wal_whose_database_is_gone_is_not_lost(tmp_path: Path, killed: Image, rest: bytes | None) -> None:
    path = killed.put(tmp_path)
    path.unlink()
    if rest is not None:
        path.write_bytes(rest)
    with _started(tmp_path) as engine:
        assert engine.quarantined is not None
        assert Path(f"{engine.quarantined}-wal").read_bytes() == killed.wal
    _works(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 31, 32])
def test_a_wal_in_which_nothing_was_ever_kept_is_no_damage(tmp_path: Path, stopped: Image, size: int) -> None:
    Image(stopped.database, bytes(size)).put(tmp_path)
    with _started(tmp_path) as engine:
        assert engine.quarantined is None
        assert read_all(engine) == EVENTS
    _works(tmp_path)


@pytest.mark.parametrize("cut", [1, 4120, 30_000])
def test_of_a_wal_whose_end_is_torn_every_whole_group_is_taken_up(tmp_path: Path, killed: Image, cut: int) -> None:
    Image(killed.database, killed.wal[:-cut] + _noise(cut)).put(tmp_path)
    with _started(tmp_path) as engine:
        assert engine.quarantined is None
        found = read_all(engine)
        assert found == EVENTS[: len(found)]
        assert 1600 <= len(found) < 2000
        assert len(found) % 200 == 0
        assert engine.rows(META) == [("at", str(len(found) - 200))]
    _works(tmp_path)


def test_a_journal_that_is_noise_does_not_keep_a_node_from_starting(tmp_path: Path, stopped: Image) -> None:
    path = stopped.put(tmp_path)
    Path(f"{path}-journal").write_bytes(_noise(5000))
    Path(f"{path}-shm").write_bytes(_noise(32768))
    with _started(tmp_path) as engine:
        assert engine.quarantined is None
        assert read_all(engine) == EVENTS
    _works(tmp_path)


# -- damage that is seen later


def _last_pages_of_tail(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as tool:
        query = "SELECT pageno FROM dbstat WHERE name = 'tail' AND pagetype = 'leaf' ORDER BY path"
        pages = [page for (page,) in tool.execute(query)]
    return pages[len(pages) // 2 : len(pages) // 2 + 5]


def _spoil_pages(path: Path) -> None:
    pages = _last_pages_of_tail(path)
    data = bytearray(path.read_bytes())
    for page in pages:
        data[(page - 1) * 4096 : page * 4096] = _noise(4096)
    path.write_bytes(data)


def _spoil(statement: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        with closing(sqlite3.connect(path)) as tool:
            tool.execute(statement)
            tool.commit()
            tool.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    return spoil


SPOILT: dict[str, Callable[[Path], None]] = {
    "pages in the middle": _spoil_pages,
    "a client's name": _spoil("UPDATE tail SET client = CAST(x'ff' AS TEXT) WHERE seq = 1000"),
    "a topic's name": _spoil("UPDATE topics SET name = CAST(x'fe' AS TEXT) WHERE name = 'plant/line5'"),
    "a topic that is gone": _spoil("DELETE FROM topics WHERE name = 'plant/line5'"),
    "a payload that is text": _spoil("UPDATE tail SET payload = 'text' WHERE seq = 1000"),
    "a value that is text": _spoil("UPDATE processor_state SET value = 'text' WHERE key = 'key 900'"),
    "a key of a row": _spoil("UPDATE processor_state SET key = CAST(x'ff' AS TEXT) WHERE key = 'key 900'"),
}


LEFT: dict[str, int] = {"pages in the middle": 1900, "a topic's name": 1800, "a topic that is gone": 1800}
"""Events that are there after all, at the least."""


@pytest.mark.parametrize("what", SPOILT)
def test_damage_that_comes_up_later_has_the_next_start_examine_every_page(
    tmp_path: Path, stopped: Image, what: str
) -> None:
    path = stopped.put(tmp_path)
    SPOILT[what](path)
    with _started(tmp_path, check_seconds=0) as engine:
        assert engine.quarantined is None, "a start looks at the ends only, where it may not take longer"
        with pytest.raises(StorageError, match="see whether the disk is sound"):
            _read_everything(engine)
        assert (tmp_path / SUSPECT).exists()
    before = path.read_bytes()
    with _started(tmp_path) as engine:
        assert engine.quarantined is not None
        assert engine.quarantined.read_bytes() == before
        assert not (tmp_path / SUSPECT).exists()
        found = read_all(engine)
        assert {each.seq: each for each in EVENTS}.items() >= {each.seq: each for each in found}.items()
        assert len(found) >= LEFT.get(what, 1999)
        assert len(engine.rows(STATE)) >= 1999
    _works(tmp_path)


def test_a_write_that_meets_damage_fails_the_engine_and_the_next_start_examines_every_page(
    tmp_path: Path, stopped: Image
) -> None:
    path = stopped.put(tmp_path)
    with closing(sqlite3.connect(path)) as tool:
        query = "SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_autoindex_topics_1'"
        (root,) = tool.execute(query).fetchone()
    data = bytearray(path.read_bytes())
    data[(root - 1) * 4096 : root * 4096] = _noise(4096)
    path.write_bytes(data)
    with _started(tmp_path, check_seconds=0) as engine:
        assert read_all(engine) == EVENTS, "an index of topics is of no use to a reader"
        for seq in (3001, 3002):
            with pytest.raises(StorageFailed, match="see whether the disk is sound"):
                engine.commit([event(seq, "new/topic")], {}, True)
        assert (tmp_path / SUSPECT).exists()
    with _started(tmp_path) as engine:
        assert engine.quarantined is not None
        assert read_all(engine) == EVENTS
    _works(tmp_path)


def test_a_suspicion_that_comes_to_nothing_is_dropped(tmp_path: Path, stopped: Image) -> None:
    stopped.put(tmp_path)
    (tmp_path / SUSPECT).touch()
    with _started(tmp_path) as engine:
        assert engine.quarantined is None
        assert read_all(engine) == EVENTS
    assert not (tmp_path / SUSPECT).exists()


def test_an_engine_for_reading_suspects_nothing(tmp_path: Path, stopped: Image) -> None:
    _spoil_pages(stopped.put(tmp_path))
    engine = SQLiteEngine(tmp_path, readonly=True)
    with pytest.raises(StorageError, match="see whether the disk is sound"):
        read_all(engine)
    engine.close()
    assert not (tmp_path / SUSPECT).exists()


@pytest.mark.parametrize("seed", range(60))
def test_after_damage_of_any_kind_a_node_works_again_within_two_starts(
    tmp_path: Path, stopped: Image, killed: Image, seed: int
) -> None:
    chance = random.Random(seed)
    image = chance.choice((stopped, killed))
    parts = [bytearray(image.database), bytearray(image.wal)]
    for _ in range(chance.randint(1, 4)):
        part = chance.choice([part for part in parts if part])
        at, size = chance.randrange(len(part)), chance.choice((1, 4, 100, 5000, 50_000))
        match chance.randrange(3):
            case 0:
                part[at : at + size] = chance.randbytes(len(part[at : at + size]))
            case 1:
                part[at : at + size] = bytes(len(part[at : at + size]))
            case _:
                del part[at:]
    Image(bytes(parts[0]), bytes(parts[1])).put(tmp_path)
    for _ in range(2):
        with _started(tmp_path) as engine:
            with suppress(StorageError):
                _read_everything(engine)
            with suppress(StorageError):
                engine.commit(
                    [event(90_000, "x" * 500)], {SESSIONS: {("c",): (5, 0, 0, 0, 0, b"", b"", b"", "")}}, True
                )
    with _started(tmp_path) as engine:
        _read_everything(engine)
        seq = engine.last() + 1
        engine.commit([event(seq, "after")], {META: {("after",): (str(seq),)}}, True)
        assert engine.get([seq]) == [event(seq, "after")]


def test_files_that_are_set_aside_can_be_opened_by_sqlite_with_their_wal(tmp_path: Path, killed: Image) -> None:
    killed.put(tmp_path)
    with closing(sqlite3.connect(tmp_path / DATABASE)) as tool:
        tool.execute("PRAGMA wal_autocheckpoint=0")
        tool.execute("DROP TABLE wills")
        tool.commit()
        shutil.copytree(tmp_path, tmp_path / "copy")
    with _started(tmp_path / "copy") as engine:
        assert engine.quarantined is not None
    with closing(sqlite3.connect(engine.quarantined)) as tool:
        assert tool.execute("SELECT count(*) FROM tail").fetchone() == (2000,)

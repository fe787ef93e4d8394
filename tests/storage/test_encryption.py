"""An engine that encrypts: what it refuses, what damage costs, and how encryption begins where nothing was."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from storage.interface import META, RETAINED, SESSIONS, STATE, WILLS, Event, Row, StorageError, Table
from storage.keys import rotate
from storage.keysource import COPY, KEYS, KeysError, is_encrypted
from storage.sealer import Policy
from storage.segment_format import HEADER_BYTES, Header
from storage.sqlite import SQLiteEngine
from storage.vault import Vault
from tests.disks import fill, tmpfs
from tests.storage.contract import START, OperatorKey, event, read_all, vault
from tests.storage.test_sealer import settle

NEVER = Policy(bytes=0)
EACH = Policy(bytes=1, age=1 << 62)
STATE_OF: dict[Table, dict[Row, Row | None]] = {
    RETAINED: {("a",): (1, START, b"SECRET retained" * 400, 1, "c", b"SECRET property", 0)},
    WILLS: {("c",): (0, 5, "wills/c", b"SECRET will", 1, 0, b"")},
    SESSIONS: {("c",): (5, 60, 1, 0, 0, b"SECRET in flight", b"", b"", "")},
    STATE: {("p", 3, "key"): (b"SECRET state",), ("p", 3, "no"): (b"",), ("p", 4, "none"): (None,)},
}


Open = Callable[..., SQLiteEngine]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens the log in the test's directory, in the place of the one that was opened before."""
    engines: list[SQLiteEngine] = []

    def opening(*, encrypted: bool = True, policy: Policy = NEVER, directory: Path = tmp_path) -> SQLiteEngine:
        closing_all()
        engines.append(
            SQLiteEngine(directory, policy=policy, unlock=(lambda: vault(directory)) if encrypted else lambda: None)
        )
        return engines[-1]

    def closing_all() -> None:
        while engines:
            engines.pop().close()

    yield opening
    closing_all()


def secret(seq: int) -> Event:
    made = event(seq, payload=b"SECRET payload %d" % seq)
    made.properties = b"\x26\x00\x06SECRET\x00\x01p"
    return made


def told(directory: Path) -> list[str]:
    """The files of the database in which there is something of a secret."""
    return sorted(path.name for path in directory.glob("berm.db*") if b"SECRET" in path.read_bytes())


def change(directory: Path, statement: str, *values: object) -> None:
    """What somebody does who writes to the database of a stopped node."""
    with closing(sqlite3.connect(directory / "berm.db", isolation_level=None)) as tool:
        tool.execute("PRAGMA secure_delete=FAST")  # as the engine does
        tool.execute(statement, values)


def ask(directory: Path, query: str) -> list[Row]:
    with closing(sqlite3.connect(directory / "berm.db")) as tool:
        return tool.execute(query).fetchall()


# -- damage


def test_whatever_bit_of_a_sealed_value_is_changed_its_event_is_lost_and_told_and_the_others_are_served(
    opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened().commit([secret(1), secret(2), secret(3)], {}, True)
    opened().close()
    ((value,),) = ask(tmp_path, "SELECT payload FROM tail WHERE seq = 2")
    assert isinstance(value, bytes)
    random = Random(1)
    for place in [*range(20), *random.sample(range(20, len(value)), 10), len(value) - 1]:
        changed = bytearray(value)
        changed[place] ^= 1 << random.randrange(8)
        change(tmp_path, "UPDATE tail SET payload = ? WHERE seq = 2", bytes(changed))
        engine = opened()
        if 1 <= place < 5:  # the number of the data key: there is no such key, or not here
            with pytest.raises(StorageError, match="the data directory does not have"):
                read_all(engine)
            assert engine.get([1, 3]) == [secret(1), secret(3)]
        else:
            caplog.clear()
            assert read_all(engine) == [secret(1), secret(3)]
            assert read_all(engine) == [secret(1), secret(3)]
            assert engine.get([1, 2, 3]) == [secret(1), secret(3)]
            assert [record.levelno for record in caplog.records] == [logging.ERROR]
            assert "the event 2, of topic" in caplog.text
    for cut in (0, 1, 5, 32, len(value) - 1):
        change(tmp_path, "UPDATE tail SET payload = ? WHERE seq = 2", value[:cut])
        assert read_all(opened()) == [secret(1), secret(3)]


def test_a_read_that_ends_with_a_damaged_event_goes_on_behind_it(opened: Open, tmp_path: Path) -> None:
    opened().commit([secret(seq) for seq in range(1, 11)], {}, True)
    opened().close()
    change(tmp_path, "UPDATE tail SET payload = x'00' WHERE seq IN (4, 5, 6, 10)")
    engine = opened()
    assert engine.read(0, 10, 4, None) == ([secret(1), secret(2), secret(3)], 4)
    assert engine.read(4, 10, 2, None) == ([], 6)
    assert engine.read(6, 10, 9, None) == ([secret(7), secret(8), secret(9)], 10)
    assert engine.read(3, 10, 2, lambda topic: True) == ([], 5)
    assert read_all(engine, lambda topic: True) == read_all(engine)


def test_a_value_that_was_moved_does_not_open(opened: Open, tmp_path: Path) -> None:
    engine = opened()
    rows: dict[Row, Row | None] = {("p", 0, "a"): (b"open",), ("p", 0, "b"): (b"closed",), ("p", 1, "a"): (b"off",)}
    engine.commit([secret(1), secret(2)], {STATE: rows}, True)
    engine.close()
    change(tmp_path, "UPDATE tail SET payload = (SELECT payload FROM tail WHERE seq = 1) WHERE seq = 2")
    moved = "SELECT value FROM processor_state WHERE partition = 0 AND key = 'a'"
    change(tmp_path, f"UPDATE processor_state SET value = ({moved}) WHERE key = 'b' OR partition = 1")
    engine = opened()
    assert read_all(engine) == [secret(1)]
    assert engine.rows(STATE) == [("p", 0, "a", b"open")]


def test_an_event_that_says_that_it_is_plain_is_not_believed(opened: Open, tmp_path: Path) -> None:
    opened().commit([secret(1), secret(2)], {}, True)
    opened().close()
    change(tmp_path, "UPDATE tail SET payload = 'x', flags = flags & 31 WHERE seq = 1")
    change(tmp_path, "UPDATE tail SET payload = CAST('forged' AS BLOB) WHERE seq = 1")
    assert read_all(opened()) == [secret(2)]


def test_a_damaged_event_does_not_keep_the_others_from_being_sealed(opened: Open, tmp_path: Path) -> None:
    opened().commit([secret(1), secret(2), secret(3)], {}, True)
    opened().close()
    change(tmp_path, "UPDATE tail SET payload = x'00' WHERE seq = 2")
    engine = opened(policy=EACH)
    engine.commit([secret(4)], {}, True)
    settle(engine)
    engine.commit([secret(5)], {}, True)
    settle(engine)
    assert list(tmp_path.glob("segments/*.segment"))
    assert [each.seq for each in read_all(engine)] == [1, 3, 4, 5]


def test_damaged_state_costs_its_row(opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened().commit([], STATE_OF, True)
    opened().close()
    change(tmp_path, "UPDATE processor_state SET value = x'00' WHERE key = 'key'")
    change(tmp_path, "UPDATE retained SET payload = NULL")
    engine = opened()
    assert engine.rows(STATE) == [("p", 3, "no", b""), ("p", 4, "none", None)]
    assert engine.rows(RETAINED) == []
    assert engine.rows(WILLS) == [("c", 0, 5, "wills/c", b"SECRET will", 1, 0, b"")]
    assert "the row 'a' of retained" in caplog.text


# -- keys


def test_keys_of_another_directory_are_told_from_damage(opened: Open, tmp_path: Path) -> None:
    opened().commit([secret(1)], STATE_OF, True)
    opened(directory=tmp_path / "other").close()
    own = {name: (tmp_path / name).read_bytes() for name in (KEYS, COPY)}
    for name in own:
        shutil.copy(tmp_path / "other" / name, tmp_path / name)
    with pytest.raises(KeysError, match="those of another data directory"):
        opened()
    for name, data in own.items():
        (tmp_path / name).write_bytes(data)
    engine = opened()
    assert read_all(engine) == [secret(1)]
    assert len(engine.rows(RETAINED)) == 1


def test_a_damaged_row_of_meta_does_not_keep_it_from_starting(opened: Open, tmp_path: Path) -> None:
    opened().commit([secret(1)], STATE_OF, True)
    opened().close()
    for value in ("", "x", "00", "01010000" * 20):
        change(tmp_path, "UPDATE meta SET value = ? WHERE name = 'encrypted'", value)
        engine = opened()
        assert read_all(engine) == [secret(1)]
        assert len(engine.rows(RETAINED)) == 1


@pytest.mark.parametrize("what", ["database", "segment"])
def test_without_its_keys_an_encrypted_directory_gets_no_new_ones(opened: Open, tmp_path: Path, what: str) -> None:
    engine = opened(policy=EACH)
    for seq in (1, 2, 3):
        engine.commit([secret(seq)], {}, True)
        settle(engine)
    engine.close()
    (tmp_path / KEYS).unlink()
    (tmp_path / COPY).unlink()
    if what == "segment":
        (tmp_path / "berm.db").unlink()
    else:
        shutil.rmtree(tmp_path / "segments")
    with pytest.raises(KeysError, match=r"its keys .* are gone; nothing was changed"):
        opened()
    assert not is_encrypted(tmp_path)


@pytest.mark.parametrize("readonly", [False, True])
def test_without_a_key_an_encrypted_log_is_not_opened(opened: Open, tmp_path: Path, readonly: bool) -> None:
    opened().commit([secret(1)], {}, True)
    opened().close()
    before = (tmp_path / "berm.db").read_bytes()
    with pytest.raises(KeysError, match="is encrypted; nothing was changed"):
        SQLiteEngine(tmp_path, readonly=readonly)
    assert (tmp_path / "berm.db").read_bytes()[100:] == before[100:], "SQLite counts in the header who has opened it"


def test_what_an_earlier_data_key_has_encrypted_is_read_after_new_ones(opened: Open, tmp_path: Path) -> None:
    vaults: list[Vault] = []

    def unlock() -> Vault:
        vaults.append(vault(tmp_path))
        return vaults[-1]

    engine = SQLiteEngine(tmp_path, policy=EACH, unlock=unlock)
    for seq in range(1, 10):
        engine.commit([secret(seq)], STATE_OF if seq == 1 else {}, True)
        settle(engine)
        if seq % 3 == 0:
            rotate(tmp_path, (OperatorKey(),), START)
            assert vaults[0].refresh(START)
    assert [each.seq for each in read_all(engine)] == [*range(1, 10)]
    engine.close()
    assert {_key(path) for path in tmp_path.glob("segments/*.segment")} == {1, 2, 3}
    engine = opened()
    assert read_all(engine) == [secret(seq) for seq in range(1, 10)]
    assert len(engine.rows(STATE)) == 3


def _key(path: Path) -> int:
    return Header.unpack(path.read_bytes()[:HEADER_BYTES]).key


def test_a_segment_whose_data_key_is_missing_stays_and_is_read_once_it_is_back(
    opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened().commit([secret(100)], {}, True)
    foreign = tmp_path / "foreign"
    engine = opened(policy=EACH, directory=foreign)
    for seq in (1, 2, 3):
        engine.commit([secret(seq)], {}, True)
        settle(engine)
    engine.close()
    first = min(foreign.glob("segments/*.segment"))
    (tmp_path / "segments").mkdir()
    shutil.copy(first, tmp_path / "segments")
    caplog.clear()
    engine = opened()
    assert engine.last() == 100
    assert engine.get([100]) == [secret(100)]
    with pytest.raises(StorageError, match="is intact, but encrypted with data key 1 of another data directory"):
        engine.read(0, 100, 10, None)
    (record,) = caplog.records
    assert "read as soon as it can be" in record.getMessage()
    engine.close()
    for name in (KEYS, COPY):
        shutil.copy(foreign / name, tmp_path / name)
    (tmp_path / "berm.db").unlink()
    assert read_all(opened()) == [secret(1)]


def test_on_a_full_disk_the_reserve_lets_it_start(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", 8 << 20) as disk:
        data = disk / "data"
        engine = SQLiteEngine(data, policy=NEVER, unlock=lambda: vault(data))
        engine.commit([secret(1)], {}, True)
        engine.reserve.make(1 << 20)
        engine.close()
        fill(disk)
        engine = SQLiteEngine(data, policy=NEVER, unlock=lambda: vault(data))
        assert read_all(engine) == [secret(1)]
        engine.commit([secret(2)], {}, True)
        engine.close()
        fill(disk)
        with pytest.raises(KeysError, match=r"writing .*berm.keys.*: No space left on device"):
            SQLiteEngine(data, policy=NEVER, unlock=lambda: vault(data))


# -- the begin


def test_where_encryption_begins_all_state_is_encrypted_at_once(opened: Open, tmp_path: Path) -> None:
    engine = opened(encrypted=False)
    engine.commit([secret(1)], STATE_OF, True)
    engine.commit([], {META: {("secret",): ("kept",)}}, True)
    before = {table: engine.rows(table) for table in STATE_OF}
    engine.close()
    change(tmp_path, "DELETE FROM tail")
    assert told(tmp_path)
    for _ in range(2):
        engine = opened()
        assert {table: engine.rows(table) for table in STATE_OF} == before
        assert engine.rows(META) == [("secret", "kept")]
        assert told(tmp_path) == []
    engine.close()
    assert ask(tmp_path, "SELECT name FROM meta WHERE name = 'plain'") == []


def test_where_a_node_was_killed_before_encryption_begins_nothing_is_left_in_the_wal(
    opened: Open, tmp_path: Path
) -> None:
    engine = opened(encrypted=False, directory=tmp_path / "first")
    engine.commit([], STATE_OF, True)
    killed = tmp_path / "killed"
    killed.mkdir()
    for name in ("berm.db", "berm.db-wal"):
        shutil.copy(tmp_path / "first" / name, killed)
    assert told(killed) == ["berm.db-wal"]
    engine = opened(directory=killed)
    assert len(engine.rows(STATE)) == 3
    assert told(killed) == []


def test_what_was_deleted_before_is_overwritten_when_encryption_begins(opened: Open, tmp_path: Path) -> None:
    engine = opened(encrypted=False)
    for seq in range(1, 400):
        engine.commit([secret(seq)], {}, True)
    engine.commit([event(1000, payload=b"SECRET " * 200_000)], {}, True)
    engine.close()
    change(tmp_path, "DELETE FROM tail WHERE seq > 3")
    assert b"SECRET SECRET" in (tmp_path / "berm.db").read_bytes()
    free = _free(tmp_path)
    size = (tmp_path / "berm.db").stat().st_size
    engine = opened()
    assert read_all(engine) == [secret(1), secret(2), secret(3)]
    engine.close()
    left = (tmp_path / "berm.db").read_bytes()
    assert left.count(b"SECRET payload") < 20, "three rows, and cells in the gap of a page that SQLite has balanced"
    assert b"SECRET SECRET" not in left
    assert _free(tmp_path) >= free > 300
    assert (tmp_path / "berm.db").stat().st_size <= size + 20 * 4096


def _free(directory: Path) -> int:
    ((free,),) = ask(directory, "PRAGMA freelist_count")
    assert isinstance(free, int)
    return free


def test_rows_from_before_are_read_until_sealing_takes_them_and_hardly_a_trace_is_left(
    opened: Open, tmp_path: Path
) -> None:
    engine = opened(encrypted=False)
    engine.commit([secret(seq) for seq in range(1, 300)], {}, True)
    engine = opened()
    engine.commit([secret(seq) for seq in range(300, 400)], {}, True)
    assert read_all(engine) == [secret(seq) for seq in range(1, 400)]
    engine = opened(policy=Policy(bytes=20_000, age=1 << 62))
    assert [each.seq for each in read_all(engine)] == [*range(1, 400)]
    engine.commit([secret(seq) for seq in range(400, 1200)], {}, True)
    settle(engine)
    engine.commit([secret(seq) for seq in range(1200, 1300)], {}, True)
    settle(engine)
    assert read_all(engine) == [secret(seq) for seq in range(1, 1300)]
    assert {_key(path) for path in tmp_path.glob("segments/*.segment")} == {1}
    opened().close()
    left = (tmp_path / "berm.db").read_bytes()
    assert left.count(b"SECRET") < 10, "SQLite leaves a cell in the gap of a page that it has balanced"
    assert ask(tmp_path, "SELECT name FROM meta WHERE name = 'plain'") == []
    change(tmp_path, "UPDATE tail SET flags = flags & 31 WHERE seq = 1299")
    assert [each.seq for each in read_all(opened())] == [*range(1, 1299)]


def test_a_database_whose_row_of_meta_is_lost_is_not_encrypted_twice(opened: Open, tmp_path: Path) -> None:
    engine = opened()
    engine.commit([secret(1)], STATE_OF, True)
    before = {table: engine.rows(table) for table in STATE_OF}
    engine.close()
    change(tmp_path, "DELETE FROM meta")
    engine = opened()
    assert read_all(engine) == [secret(1)]
    assert {table: engine.rows(table) for table in STATE_OF} == before


def test_encryption_that_began_and_was_killed_begins_again(opened: Open, tmp_path: Path) -> None:
    engine = opened(encrypted=False)
    engine.commit([secret(1)], STATE_OF, True)
    before = engine.rows(RETAINED)
    engine.close()
    vault(tmp_path)  # keys are there, and nothing else was done
    change(tmp_path, "CREATE TABLE overwriting (content BLOB)")
    engine = opened()
    assert (read_all(engine), engine.rows(RETAINED)) == ([secret(1)], before)
    engine.close()
    assert ask(tmp_path, "SELECT name FROM sqlite_schema WHERE name = 'overwriting'") == []

"""A restore verifies before it writes, overwrites nothing, and gives out no seq a second time."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from storage import keys
from storage.backup import back_up
from storage.database import DATABASE
from storage.interface import CURSORS, META, SESSIONS, SHARES
from storage.keysource import KEYS, RENEW, KeyFile
from storage.log import Log
from storage.manifest import BackupError, Manifest, NotOursError
from storage.restore import MARGIN, choose, restore
from storage.schema import VERSION
from storage.sealer import Policy
from storage.sqlite import SQLiteEngine
from tests.storage.contract import Turns, event, read_all

NOW = 1_790_000_000_000_000
DAY = 86_400_000_000
EVENTS = [event(seq, f"plant/{seq % 7}", b"%d" % seq * 20) for seq in range(1, 1501)]


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    engine = SQLiteEngine(tmp_path / "data", policy=Policy(bytes=30_000, age=1 << 62))
    for at in range(0, 1500, 100):
        engine.commit(
            EVENTS[at : at + 100],
            {
                META: {("epoch",): ("77",), ("reserved",): ("2000",), ("bridge/cloud/all",): ("77 1400",)},
                CURSORS: {("all",): (at + 100,), ("some",): (700,)},
                SESSIONS: {
                    ("all",): (5, 60, 0, 1, at + 100, b"", b"", b"", ""),
                    ("some",): (5, 60, 0, 1, 900, b"flying", b"ids", b"", ""),
                },
                SHARES: {("$share/a/#",): (at + 100, b"")},
            },
            True,
        )
        while engine.upkeep():
            pass
    engine.close()
    back_up(tmp_path / "data", tmp_path / "backup", NOW, "1")
    return tmp_path / "backup"


def test_the_log_goes_on_above_all_seqs_that_may_have_been_given_out(backup: Path, tmp_path: Path) -> None:
    done = restore(backup, choose(backup, None), tmp_path / "new", NOW + DAY)
    assert done.reserved == 2000 + DAY + MARGIN, "a seq for each microsecond since"
    engine = SQLiteEngine(tmp_path / "new")
    turns = Turns()
    log = Log(engine, turns, turns)
    assert log.append(NOW, "t", b"", 1, False, "c", b"", 0, 2).seq == done.reserved + 1
    assert ("epoch", "77") in engine.rows(META), "forwarded events are known again"
    engine.close()


def test_where_the_clock_was_set_back_seqs_do_not_come_again_either(backup: Path, tmp_path: Path) -> None:
    assert restore(backup, choose(backup, None), tmp_path / "new", NOW - DAY).reserved == 2000 + MARGIN


def test_who_had_all_of_it_has_all_below_the_new_seqs_and_others_go_on_where_they_were(
    backup: Path, tmp_path: Path
) -> None:
    reserved = restore(backup, choose(backup, None), tmp_path / "new", NOW).reserved
    engine = SQLiteEngine(tmp_path / "new")
    assert sorted(engine.rows(CURSORS), key=str) == [("all", reserved), ("some", 700)]
    assert {row[0]: row[5] for row in engine.rows(SESSIONS)} == {"all": reserved, "some": 900}
    assert [row[6:8] for row in engine.rows(SESSIONS) if row[0] == "some"] == [(b"flying", b"ids")]
    assert engine.rows(SHARES) == [("$share/a/#", reserved, b"")]
    assert ("restored", "2026-09-21T14:13:20Z, as of 2026-09-21T14:13:20Z") in engine.rows(META)
    assert read_all(engine) == EVENTS
    engine.close()


def test_an_encrypted_node_encrypts_with_a_new_data_key_after_a_restore(tmp_path: Path) -> None:
    SQLiteEngine(tmp_path / "data").close()
    (tmp_path / "key").write_text("ab" * 32)
    (tmp_path / "key").chmod(0o600)
    sources = (KeyFile(tmp_path / "key"),)
    assert keys.begin(tmp_path / "data", sources, NOW).current.number == 1
    assert keys.begin(tmp_path / "data", sources, NOW).current.number == 1
    back_up(tmp_path / "data", tmp_path / "backup", NOW, "1")
    restore(tmp_path / "backup", choose(tmp_path / "backup", None), tmp_path / "new", NOW)
    assert (tmp_path / "new" / KEYS).stat().st_mode & 0o077 == 0
    begun = keys.begin(tmp_path / "new", sources, NOW)
    assert begun.current.number == 2
    assert begun.keys[1] == keys.read(tmp_path / "data", sources).keys[1], "what was encrypted can be read"
    assert not (tmp_path / "new" / RENEW).exists()
    assert keys.begin(tmp_path / "new", sources, NOW).current.number == 2


# -- which of them


def test_the_last_backup_up_to_a_time_is_restored(backup: Path, tmp_path: Path) -> None:
    later = back_up(tmp_path / "data", backup, NOW + DAY, "1").manifest
    first = choose(backup, NOW)
    assert (choose(backup, None), choose(backup, NOW + DAY)) == (later, later)
    assert choose(backup, NOW + DAY - 1) == first != later
    with pytest.raises(
        NotOursError, match="has no backup of that time or before it: the first was taken 2026-09-21T14:13:20Z"
    ):
        choose(backup, NOW - 1)


# -- what is refused


@pytest.mark.parametrize("part", ["database", "segments", "size"])
def test_a_backup_with_a_damaged_file_is_refused_before_anything_is_written(
    backup: Path, tmp_path: Path, part: str
) -> None:
    manifest = choose(backup, None)
    (path, *_) = [backup / entry.file for entry in manifest.files if entry.file.startswith(part) or part == "size"]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data[:-1] if part == "size" else data)
    with pytest.raises(BackupError, match=r"its checksum does not match; nothing was changed; restore another"):
        restore(backup, manifest, tmp_path / "new", NOW)
    path.unlink()
    with pytest.raises(BackupError, match="No such file or directory; nothing was changed"):
        restore(backup, manifest, tmp_path / "new", NOW)
    assert not list(tmp_path.glob("*new*"))


@pytest.mark.parametrize("name", [DATABASE, "berm.keys", "anything"])
def test_nothing_is_overwritten(backup: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / name).write_text("here")
    with pytest.raises(NotOursError, match=f"is not empty \\(it has {name}\\), and nothing is overwritten"):
        restore(backup, choose(backup, None), tmp_path / "new", NOW)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


def test_an_empty_directory_is_taken(backup: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    restore(backup, choose(backup, None), tmp_path / "new", NOW)
    SQLiteEngine(tmp_path / "new").close()


@pytest.mark.parametrize("what", ["file", "nothing", "empty", "foreign"])
def test_what_is_no_backup_is_one_clear_error(tmp_path: Path, what: str) -> None:
    path = tmp_path / "backup"
    if what == "file":
        path.write_text("not ours")
    elif what != "nothing":
        path.mkdir()
    if what == "foreign":
        (path / "manifest-20260921T133320.000000Z.json").write_text('{"name": "an app"}')
    with pytest.raises(NotOursError) as error:
        choose(path, None)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_backup_of_a_newer_schema_is_refused(backup: Path, tmp_path: Path) -> None:
    manifest: Manifest = replace(choose(backup, None), schema=VERSION + 1)
    with pytest.raises(NotOursError, match="is of a newer Berm"):
        restore(backup, manifest, tmp_path / "new", NOW)
    assert not (tmp_path / "new").exists()


# -- cut short


def test_a_restore_that_was_cut_short_leaves_nothing_in_the_place_and_the_next_one_works(
    backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("storage.restore._own", killed)
        with pytest.raises(KeyboardInterrupt):
            restore(backup, choose(backup, None), tmp_path / "new", NOW)
    assert not (tmp_path / "new").exists()
    restore(backup, choose(backup, None), tmp_path / "new", NOW)
    engine = SQLiteEngine(tmp_path / "new")
    assert read_all(engine) == EVENTS
    engine.close()
    assert not (tmp_path / ".new.restoring").exists()


def test_without_room_a_restore_is_one_line_and_changes_nothing(
    backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("storage.restore.os.fsync", full)
    with pytest.raises(
        BackupError, match=r"No space left on device; .*/new was not changed; see whether there is room"
    ):
        restore(backup, choose(backup, None), tmp_path / "new", NOW)
    assert not (tmp_path / "new").exists()

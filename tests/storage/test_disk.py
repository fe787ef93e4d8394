"""What the engine does when the disk is full or fails, and when it is asked to make something last. On real files.

A small file system is mounted where the tests may do that. What no file system here gives, a library gives that fails
calls of the C library: see `disk.c`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.database import LOCK
from storage.interface import META, StorageError, StorageFailed, StorageFull
from storage.sqlite import SQLiteEngine
from tests.disks import ext4, fill, remount, tmpfs
from tests.storage.contract import event, read_all

BIG = b"x" * 300_000


# -- full


def _full(engine: SQLiteEngine) -> int:
    """Commit until nothing more fits; the last seq that did."""
    for seq in range(engine.last() + 1, 10_000):
        try:
            engine.commit([event(seq, payload=BIG)], {META: {("upto",): (str(seq),)}}, True)
        except StorageFull as error:
            said = str(error)
            break
    assert said.startswith(f"writing {engine.path}: ")
    assert said.endswith("; free some space on its disk")
    return seq - 1


def test_a_full_database_keeps_nothing_of_a_group_and_all_of_it_when_there_is_room(tmp_path: Path) -> None:
    engine = SQLiteEngine(tmp_path)
    engine._writer.execute("PRAGMA max_page_count=1000")
    last = _full(engine)
    assert last > 0
    group = [event(last + 1, payload=BIG), event(last + 2, "new/topic", payload=BIG)]
    for _ in range(3):
        with pytest.raises(StorageFull):
            engine.commit(group, {META: {("upto",): ("never",)}}, True)
        assert engine.last() == last
        assert engine.rows(META) == [("upto", str(last))]
    engine._writer.execute("PRAGMA max_page_count=2000")
    engine.commit(group, {META: {("upto",): (str(last + 2),)}}, True)
    assert read_all(engine)[-2:] == group
    assert engine.rows(META) == [("upto", str(last + 2))]
    engine.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    with tmpfs(tmp_path / "disk", 8 << 20) as disk:
        yield disk


def test_a_full_disk_keeps_nothing_of_a_group_and_all_of_it_when_there_is_room(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(3_000_000))
    engine = SQLiteEngine(small_disk / "data")
    last = _full(engine)
    assert last > 0
    for _ in range(3):
        assert _full(engine) == last
        engine.upkeep()
        assert engine.rows(META) == [("upto", str(last))]
        assert [each.seq for each in read_all(engine)] == list(range(1, last + 1))
    ballast.unlink()
    engine.commit([event(last + 1)], {META: {("upto",): (str(last + 1),)}}, True)
    assert engine.last() == last + 1
    assert _full(engine) >= last + 1
    engine.close()
    shutil.move(small_disk / "data", small_disk.parent / "data")
    engine = SQLiteEngine(small_disk.parent / "data")
    assert engine.quarantined is None
    seqs = [each.seq for each in read_all(engine)]
    assert seqs == list(range(1, len(seqs) + 1))
    assert engine.rows(META) == [("upto", str(len(seqs)))]
    engine.close()


def test_on_a_full_disk_a_killed_node_starts(small_disk: Path) -> None:
    data = small_disk / "data"
    engine = SQLiteEngine(data)
    engine.commit([event(1)], {}, True)
    shutil.copytree(data, small_disk / "copy")
    engine.close()
    shutil.rmtree(data)
    (small_disk / "copy").rename(data)
    (data / LOCK).unlink()  # so that there is no room either for the process id that goes into it
    fill(small_disk)
    engine = SQLiteEngine(data)
    assert read_all(engine) == [event(1)]
    engine.close()


def test_on_a_full_disk_a_stopped_node_without_a_reserve_says_what_to_do(small_disk: Path) -> None:
    data = small_disk / "data"
    engine = SQLiteEngine(data)
    engine.commit([event(1)], {}, True)
    engine.close()
    ballast = fill(small_disk)
    with pytest.raises(StorageFull, match=r"^opening .*; free some space on its disk$"):
        SQLiteEngine(data)
    ballast.unlink()
    engine = SQLiteEngine(data)
    assert engine.quarantined is None
    assert read_all(engine) == [event(1)]
    engine.close()


def test_on_a_full_disk_a_stopped_node_starts_by_its_reserve_and_can_tidy_up(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = small_disk / "data"
    engine = SQLiteEngine(data)
    engine.commit([event(seq, payload=BIG) for seq in range(1, 11)], {}, True)
    engine.reserve.make(1_000_000)
    engine.close()
    (data / LOCK).unlink()
    fill(small_disk)
    engine = SQLiteEngine(data)
    assert engine.quarantined is None
    assert caplog.messages == [
        f"the disk is full; gave back the room that {data}/reserve held, so that the node can go on; free some space"
    ]
    assert engine.reserve.spent
    assert len(read_all(engine)) == 10
    engine.commit([event(11)], {META: {("upto",): ("11",)}}, True)
    engine._writer.execute("DELETE FROM tail WHERE seq <= 2")
    engine._gathered = 1 << 30
    engine.upkeep()
    assert engine._gathered == 0
    engine.commit([event(12, payload=BIG)], {}, True)  # in the pages that were given back
    engine.close()
    engine = SQLiteEngine(data)
    assert [each.seq for each in read_all(engine)] == list(range(3, 13))
    assert engine.rows(META) == [("upto", "11")]
    engine.close()


def test_when_the_disk_is_full_the_reserve_is_given_back_and_the_same_group_is_kept(small_disk: Path) -> None:
    engine = SQLiteEngine(small_disk / "data")
    engine.reserve.make(1_000_000)
    fill(small_disk)
    last = _full(engine)
    assert engine.reserve.spent
    engine.commit([event(last + 1, payload=BIG)], {META: {("upto",): (str(last + 1),)}}, True)
    assert [each.seq for each in read_all(engine)] == list(range(1, last + 2))
    engine.close()


def test_a_checkpoint_that_has_no_room_is_done_by_the_reserve(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = SQLiteEngine(small_disk / "data")
    engine.reserve.make(1_500_000)
    engine.commit([event(seq, payload=BIG) for seq in range(1, 5)], {}, True)
    engine._gathered = 1 << 30
    fill(small_disk)
    engine.upkeep()
    assert engine.reserve.spent
    assert "checkpointing" in caplog.messages[1]
    engine.upkeep()
    assert engine._gathered == 0
    assert len(caplog.messages) == 2
    assert engine.path.stat().st_size > 4 * len(BIG)
    engine.close()


def test_a_file_system_that_takes_nothing_is_one_clear_error_and_a_log_on_it_can_be_read(small_disk: Path) -> None:
    data = small_disk / "data"
    engine = SQLiteEngine(data)
    engine.commit([event(1)], {}, True)
    engine.close()
    remount(small_disk, "ro")
    with pytest.raises(StorageError) as error:
        SQLiteEngine(data)
    assert str(error.value) == (
        f"cannot use the data directory {data}: {data}/{LOCK}: Read-only file system; "
        "set storage.path to one that can be written"
    )


@pytest.fixture
def real_disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of 32 MB."""
    with ext4(tmp_path / "disk", 32 << 20) as disk:
        yield disk


def test_a_file_system_that_becomes_read_only_under_a_node_fails_it_with_the_reason(real_disk: Path) -> None:
    data = real_disk / "data"
    engine = SQLiteEngine(data)
    engine.commit([event(1)], {}, True)
    remount(real_disk, "abort")
    said = set()
    for seq in (2, 3):
        with pytest.raises(StorageFailed) as error:
            engine.commit([event(seq)], {}, True)
        said.add(str(error.value))
    assert said == {
        f"writing {engine.path}: disk I/O error (Read-only file system); see whether the disk is sound, "
        "then start the node again"
    }
    assert read_all(engine) == [event(1)]
    engine.close()


def test_on_a_real_file_system_a_full_disk_refuses_and_the_reserve_lets_a_stopped_node_start(real_disk: Path) -> None:
    data = real_disk / "data"
    engine = SQLiteEngine(data)
    engine.reserve.make(1_000_000)
    fill(real_disk)
    last = _full(engine)
    engine.commit([event(last + 1)], {META: {("upto",): (str(last + 1),)}}, True)
    engine.close()
    (real_disk / "ballast").unlink()
    engine = SQLiteEngine(data)
    engine.reserve.make(1_000_000)
    engine.close()
    fill(real_disk)
    engine = SQLiteEngine(data)
    assert engine.quarantined is None
    assert engine.reserve.spent
    assert [each.seq for each in read_all(engine)] == list(range(1, last + 2))
    engine.close()


def test_a_bound_on_the_size_of_files_fails_the_engine_and_loses_nothing(tmp_path: Path) -> None:
    """No disk is full then: only who has set the bound can tell what to do."""
    code = """
import resource, sys
from pathlib import Path
from storage.interface import StorageFailed
from storage.sqlite import SQLiteEngine
from tests.storage.contract import event

resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
engine = SQLiteEngine(Path(sys.argv[1]))
engine.commit([event(1)], {}, True)
try:
    engine.commit([event(2, payload=bytes(4_000_000))], {}, True)
except StorageFailed as error:
    print(error)
engine.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout == (
        f"writing {tmp_path}/berm.db: disk I/O error; see whether the disk is sound, then start the node again\n"
    ), done.stderr
    engine = SQLiteEngine(tmp_path)
    assert read_all(engine) == [event(1)]
    engine.close()


# -- calls that fail


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`disk.c` as a library to preload."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler to make a disk that fails with")
    library = tmp_path_factory.mktemp("shim") / "disk.so"
    source = Path(__file__).with_name("disk.c")
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, "-o", str(library), str(source), "-ldl"], check=True)
    return library


def _run(code: str, directory: Path, shim: Path, targets: str) -> list[object]:
    """Run code on a data directory, above the shim; the lines that it prints, each in JSON."""
    environment = {
        **os.environ,
        "LD_PRELOAD": str(shim),
        "DISK_TARGETS": targets,
        "DISK_COUNT": str(directory / "count"),
        "DISK_FAIL": str(directory / "fail"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", _PROLOGUE + code, str(directory)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


_PROLOGUE = """
import json, sys
from pathlib import Path
from storage.interface import META, StorageError, StorageFailed
from storage.sqlite import SQLiteEngine
from tests.storage.contract import event

directory = Path(sys.argv[1])
count, fail = directory / "count", directory / "fail"
engine = SQLiteEngine(directory / "data")

def commit(seq, sync=True):
    before = count.stat().st_size if count.exists() else 0
    try:
        engine.commit([event(seq)], {META: {("upto",): (str(seq),)}}, sync)
    except StorageFailed as error:
        return f"failed: {error}"
    except StorageError as error:
        return f"refused: {error}"
    return (count.stat().st_size if count.exists() else 0) - before

def say(what):
    print(json.dumps(what), flush=True)
"""


def test_a_group_that_must_last_is_fsynced_and_another_one_is_not(tmp_path: Path, shim: Path) -> None:
    syncs = _run(
        """
commit(1)
say([commit(seq, sync) for seq, sync in enumerate([True, True, False, False, True, False, True], 2)])
engine.close()
""",
        tmp_path,
        shim,
        "berm.db-wal",
    )
    assert syncs == [[1, 1, 0, 0, 1, 0, 1]]


def test_a_checkpoint_fsyncs_the_database_before_the_wal_is_begun_anew(tmp_path: Path, shim: Path) -> None:
    syncs = _run(
        """
engine.upkeep()
engine.commit([event(1, payload=bytes(20_000_000))], {}, False)
before = count.stat().st_size
engine.upkeep()
say(count.stat().st_size - before)
engine.close()
""",
        tmp_path,
        shim,
        "berm.db",
    )
    assert syncs == [1]


def test_after_an_fsync_that_failed_every_group_fails(tmp_path: Path, shim: Path) -> None:
    said = _run(
        """
say(commit(1))
fail.write_text("sync 5")
say(commit(2))
fail.unlink()
say(commit(3))
say(commit(4, sync=False))
say([engine.last() <= 2, engine.rows(META)])
engine.upkeep()
engine.close()
say((directory / "data" / "berm.db-wal").stat().st_size > 0)
""",
        tmp_path,
        shim,
        "berm.db-wal",
    )
    kept, *failed, read, wal_is_left = said
    assert kept == 1
    assert len(failed) == 3
    assert len(set(map(str, failed))) == 1
    assert str(failed[0]).startswith(f"failed: writing {tmp_path}/data/berm.db: disk I/O error; see whether the disk")
    assert read == [True, [["upto", "1"]]]
    assert wal_is_left is True, "what the WAL holds is for the next start to judge"
    engine = SQLiteEngine(tmp_path / "data")
    assert engine.quarantined is None
    assert [each.seq for each in read_all(engine)] in ([1], [1, 2])
    assert engine.rows(META) == [("upto", str(engine.last()))]
    engine.close()


def test_a_checkpoint_whose_fsync_failed_is_told_to_the_next_group(tmp_path: Path, shim: Path) -> None:
    said = _run(
        """
say(commit(1))
fail.write_text("sync 5")
engine._gathered = 1 << 30
engine.upkeep()
fail.unlink()
say(commit(2))
engine.close()
""",
        tmp_path,
        shim,
        "berm.db",
    )
    assert said[0] == 0
    assert str(said[1]).startswith(f"failed: checkpointing {tmp_path}/data/berm.db: disk I/O error")
    engine = SQLiteEngine(tmp_path / "data")
    assert [each.seq for each in read_all(engine)] == [1]
    engine.close()


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOSPC])
def test_a_quota_refuses_as_a_full_disk_does_gives_the_reserve_back_and_is_got_over(
    tmp_path: Path, shim: Path, number: int
) -> None:
    said = _run(
        f"""
engine.reserve.make(100_000)
say(commit(1))
fail.write_text("write {number}")
say([commit(2), engine.reserve.spent])
say(commit(3, sync=False))
fail.unlink()
say(commit(4))
say([engine.last(), engine.rows(META), sorted(path.name for path in (directory / "data").iterdir())])
engine.close()
""",
        tmp_path,
        shim,
        "berm.db-wal:probe",
    )
    why = "database or disk is full" if number == errno.ENOSPC else f"disk I/O error ({os.strerror(number)})"
    refused = f"refused: writing {tmp_path}/data/berm.db: {why}; free some space on its disk"
    files = ["berm.db", "berm.db-shm", "berm.db-wal", "berm.lock"]
    assert said == [1, [refused, True], refused, 1, [4, [["upto", "4"]], files]]


def test_a_quota_in_the_way_of_a_checkpoint_lets_the_wal_grow_until_it_is_gone(tmp_path: Path, shim: Path) -> None:
    said = _run(
        """
commit(1)
fail.write_text("write 122")
engine._gathered = 1 << 30
engine.upkeep()
fail.unlink()
say([commit(2), engine.last()])
engine._gathered = 1 << 30
engine.upkeep()
say(engine._gathered)
engine.close()
""",
        tmp_path,
        shim,
        "berm.db:probe",
    )
    assert said == [[0, 2], 0]


@pytest.mark.parametrize("target", ["berm.db-wal", "berm.db"])
def test_a_write_that_fails_though_there_is_room_fails_the_engine(tmp_path: Path, shim: Path, target: str) -> None:
    said = _run(
        """
say(commit(1))
fail.write_text("write 5")
engine._gathered = 1 << 30
engine.upkeep()
say(commit(2))
fail.unlink()
say(commit(3))
engine.close()
""",
        tmp_path,
        shim,
        target,
    )
    doing = "writing" if target == "berm.db-wal" else "checkpointing"
    failed = f"failed: {doing} {tmp_path}/data/berm.db: disk I/O error; see whether the disk is sound, then start the"
    assert [str(each)[: len(failed)] for each in said[1:]] == [failed] * 2
    engine = SQLiteEngine(tmp_path / "data")
    assert engine.quarantined is None
    assert [each.seq for each in read_all(engine)] == [1]
    engine.close()


def test_a_read_that_fails_is_told_and_fails_nothing_else(tmp_path: Path, shim: Path) -> None:
    said = _run(
        """
for seq in range(1, 200):
    engine.commit([event(seq, payload=bytes(10_000))], {}, False)
engine._gathered = 1 << 30
engine.upkeep()
fail.write_text("read 5")
def read():
    try:
        return len(engine.read(0, 1000, 1000, None)[0])
    except StorageError as error:
        return [type(error).__name__, str(error)]
say(read())
say(engine._failure is None)
fail.unlink()
commit(200)
say([read(), engine.last()])
engine.close()
""",
        tmp_path,
        shim,
        "berm.db:berm.db-wal",
    )
    why = f"reading {tmp_path}/data/berm.db: disk I/O error; see whether the disk is sound"
    assert said[:2] == [["StorageError", why], True]
    assert said[2] == [200, 200]


def test_a_disk_that_can_not_be_read_is_one_clear_error_at_the_start_and_nothing_is_set_aside(
    tmp_path: Path, shim: Path
) -> None:
    said = _run(
        """
commit(1)
engine.close()
fail.write_text("read 5")
try:
    SQLiteEngine(directory / "data")
except StorageError as error:
    say([type(error).__name__, str(error)])
fail.unlink()
engine = SQLiteEngine(directory / "data")
say([engine.quarantined, engine.last()])
engine.close()
""",
        tmp_path,
        shim,
        "berm.db:berm.db-wal",
    )
    why = f"opening {tmp_path}/data/berm.db: disk I/O error; see whether the disk is sound"
    assert said == [["StorageError", why], [None, 1]]


def test_a_failed_engine_can_still_be_read_and_closed(tmp_path: Path) -> None:
    engine = SQLiteEngine(tmp_path)
    engine.commit([event(1)], {}, True)
    engine._failure = StorageFailed("the disk is gone")
    with pytest.raises(StorageFailed, match="the disk is gone"):
        engine.commit([event(2)], {}, True)
    assert read_all(engine) == [event(1)]
    engine.close()
    engine = SQLiteEngine(tmp_path)
    assert read_all(engine) == [event(1)]
    engine.close()

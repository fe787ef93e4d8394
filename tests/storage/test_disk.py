"""What the engine does when the disk is full or fails, and when it is asked to make something last. On real files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from storage.database import LOCK
from storage.interface import META, StorageFailed, StorageFull
from storage.sqlite import SQLiteEngine
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
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system takes root")
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)  # a test that failed may have left a file open


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


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "killed"])
def test_on_a_full_disk_a_killed_node_starts_and_a_stopped_one_says_what_to_do(small_disk: Path, stopped: bool) -> None:
    data = small_disk / "data"
    engine = SQLiteEngine(data)
    engine.commit([event(1)], {}, True)
    if not stopped:
        shutil.copytree(data, small_disk / "copy")
    engine.close()
    if not stopped:
        shutil.rmtree(data)
        (small_disk / "copy").rename(data)
    (data / LOCK).unlink()  # so that there is no room either for the process id that goes into it
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    if stopped:
        with pytest.raises(StorageFull, match=r"^opening .*; free some space on its disk$"):
            SQLiteEngine(data)
    else:
        engine = SQLiteEngine(data)
        assert read_all(engine) == [event(1)]
        engine.close()
    ballast.unlink()
    engine = SQLiteEngine(data)
    assert engine.quarantined is None
    assert read_all(engine) == [event(1)]
    engine.close()


# -- fsync


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`sync.c` as a library to preload."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler to make a disk that fails with")
    library = tmp_path_factory.mktemp("shim") / "sync.so"
    source = Path(__file__).with_name("sync.c")
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, "-o", str(library), str(source), "-ldl"], check=True)
    return library


def _run(code: str, directory: Path, shim: Path, target: str) -> list[object]:
    """Run code on a data directory, above the shim; the lines that it prints, each in JSON."""
    environment = {
        **os.environ,
        "LD_PRELOAD": str(shim),
        "SYNC_TARGET": target,
        "SYNC_COUNT": str(directory / "count"),
        "SYNC_FAIL": str(directory / "fail"),
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
fail.touch()
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
fail.touch()
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

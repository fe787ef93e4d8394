"""The layer that simulates power cuts sees everything, keeps what was synced, and loses what was not."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from tests.crash import power
from tests.crash.disk import RECORD, Change, Disk, File, Operation, StrangeError
from tests.crash.power import Power

SEEDS = range(100)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The witness, compiled."""
    if reason := power.missing():
        pytest.skip(reason)
    return power.build(tmp_path_factory.mktemp("power"))


def _run(library: Path, directory: Path, code: str, *, ordered_names: bool = True, syncs: bool = True) -> Power:
    """Run code in a directory of its own until it ends; `held` is there before."""
    rig = Power(library, directory / "live", directory / "base", directory / "journal", ordered_names, syncs)
    rig.live.mkdir(parents=True)
    (rig.live / "held").write_bytes(b"h" * 5000)
    rig.begin()
    command = rig.watched([sys.executable, "-c", _PROLOGUE + code])
    done = subprocess.run(command, cwd=rig.live, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return rig


_PROLOGUE = """
import os

def put(name, data, sync=False):
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(descriptor, data)
    if sync:
        os.fsync(descriptor)
    os.close(descriptor)

def sync_directory(name="."):
    descriptor = os.open(name, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
"""


def _left(rig: Power, directory: Path) -> list[dict[str, bytes]]:
    """What is left of the directory after a power cut, for every seed."""
    disks = []
    for seed in SEEDS:
        out = directory / str(seed)
        rig.disk().cut(out, Random(seed))
        files = (path for path in out.rglob("*") if path.is_file())
        disks.append({str(path.relative_to(out)): path.read_bytes() for path in files})
    return disks


EVERY_CALL = """
import ctypes, shutil
from pathlib import Path

descriptor = os.open("calls", os.O_RDWR | os.O_CREAT | os.O_EXCL)
os.write(descriptor, b"a" * 1000)
os.writev(descriptor, [b"b" * 10, b"c" * 20])
os.pwrite(descriptor, b"d" * 700, 300)
os.pwritev(descriptor, [b"e" * 7, b"f" * 9], 5000)
other = os.dup(descriptor)
os.lseek(other, 600, os.SEEK_SET)
os.write(other, b"g" * 30)
os.close(other)
os.dup2(descriptor, 500)
os.write(500, b"h" * 11)
os.ftruncate(descriptor, 4000)
os.truncate("calls", 3000)
os.posix_fallocate(descriptor, 2000, 4000)
os.close(descriptor)
with open("appended", "ab") as file:
    file.write(b"i" * 10000)
with open("appended", "ab") as file:
    file.write(b"j" * 10)
with open("held", "r+b") as file:
    file.seek(100)
    file.write(b"k" * 50)
with open("held", "rb") as source, open("copied", "wb") as target:
    os.sendfile(target.fileno(), source.fileno(), 0, 4000)
    os.copy_file_range(source.fileno(), target.fileno(), 1000)
shutil.copyfile("held", "copied again")
Path("directory/below").mkdir(parents=True)
Path("directory/below/file").write_bytes(b"l")
os.rename("directory", "moved")
os.link("calls", "linked")
os.replace("appended", "calls")
os.mkdir("gone")
os.rmdir("gone")
put("gone too", b"m")
os.unlink("gone too")
at = os.open("moved", os.O_RDONLY)
os.close(os.open("by descriptor", os.O_WRONLY | os.O_CREAT, dir_fd=at))
os.rename("by descriptor", "renamed", src_dir_fd=at, dst_dir_fd=at)
os.close(at)

library = ctypes.CDLL(None)
for function in (library.fopen, library.fopen64):
    function.restype = ctypes.c_void_p
for mode in (b"w", b"a"):
    for function in (library.fopen, library.fopen64):
        stream = ctypes.c_void_p(function(b"stream", mode))
        library.fputs(b"n" * 9000, stream)
        library.fflush(stream)
        library.fputs(b"o" * 10, stream)
        library.fclose(stream)
"""

SQLITE = """
import sqlite3
from contextlib import closing

for mode in ("wal", "delete", "truncate", "persist"):
    with closing(sqlite3.connect(mode + ".db", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=" + mode)
        connection.execute("CREATE TABLE numbers (n INTEGER PRIMARY KEY, filler BLOB)")
        for n in range(300):
            connection.execute("INSERT INTO numbers VALUES (?, zeroblob(3000))", (n,))
        connection.execute("DELETE FROM numbers WHERE n % 3 = 0")
        connection.execute("VACUUM")
"""


@pytest.mark.parametrize("code", [EVERY_CALL, SQLITE], ids=["every call", "SQLite"])
def test_the_journal_applied_in_full_gives_the_directory(library: Path, tmp_path: Path, code: str) -> None:
    rig = _run(library, tmp_path, code)
    assert rig.differences() == []
    (rig.live / "held").write_bytes(b"changed by somebody else")
    assert rig.differences() == ["held"]


def test_nothing_that_was_synced_is_lost(library: Path, tmp_path: Path) -> None:
    rig = _run(
        library, tmp_path, "put('kept', b'x' * 5000, sync=True); sync_directory(); put('held', b'y' * 5000, True)"
    )
    expected = {"kept": b"x" * 5000, "held": b"y" * 5000}
    assert all(left == expected for left in _left(rig, tmp_path / "left"))


def test_what_was_not_synced_is_lost_kept_torn_or_nul_bytes(library: Path, tmp_path: Path) -> None:
    rig = _run(library, tmp_path, "put('data', b'x' * 5000); put('held', b'y' * 5000)")
    disks = _left(rig, tmp_path / "left")
    data = [left.get("data") for left in disks]
    assert {None, b"", b"x" * 5000, bytes(5000)} <= set(data)
    torn = {left["held"] for left in disks} - {b"h" * 5000, b"y" * 5000}
    sectors = {content[at : at + 512] for content in torn for at in range(0, 5000, 512)}
    assert sectors <= {bytes([letter]) * size for letter in b"hy" for size in (512, 5000 % 512)}
    assert any(content.startswith(b"y") for content in torn)  # the beginning of a write
    assert any(content.startswith(b"h") for content in torn)  # or its end alone
    assert {("data" in left, left["held"] != b"h" * 5000) for left in disks} == {
        (one, other) for one in (False, True) for other in (False, True)
    }


def test_a_disk_that_lies_about_its_syncs_loses_what_was_synced(library: Path, tmp_path: Path) -> None:
    rig = _run(library, tmp_path, "put('held', b'y' * 5000, sync=True)", syncs=False)
    assert any(left["held"] != b"y" * 5000 for left in _left(rig, tmp_path / "left"))


REPLACE = "put('new', b'y' * 100, sync=True); os.rename('new', 'held'); put('other', b'', sync=True)"


def test_names_last_once_their_directory_was_synced_or_where_names_keep_their_order_any_file(
    library: Path, tmp_path: Path
) -> None:
    old, new = b"h" * 5000, b"y" * 100
    for number, (more, ordered, expected) in enumerate(
        [
            ("", False, {old, new}),
            ("; sync_directory()", False, {new}),
            ("", True, {new}),
        ]
    ):
        place = tmp_path / str(number)
        rig = _run(library, place, REPLACE + more, ordered_names=ordered)
        assert {left["held"] for left in _left(rig, place / "left")} == expected


def test_names_are_lost_from_the_last_one_on(library: Path, tmp_path: Path) -> None:
    rig = _run(library, tmp_path, "for n in range(4): put(str(n), b'')")
    lists = {"".join(sorted(left.keys() - {"held"})) for left in _left(rig, tmp_path / "left")}
    assert lists == {"", "0", "01", "012", "0123"}


def test_the_same_seed_gives_the_same_disk(library: Path, tmp_path: Path) -> None:
    rig = _run(library, tmp_path, SQLITE.replace("300", "20"))
    assert _left(rig, tmp_path / "one") == _left(rig, tmp_path / "two")


MAPPED = """
import mmap
with open("held", "r+b") as file, mmap.mmap(file.fileno(), 100) as memory:
    memory[0] = 1
"""


def test_memory_that_is_mapped_to_be_written_is_not_overlooked(library: Path, tmp_path: Path) -> None:
    rig = _run(library, tmp_path, MAPPED)
    with pytest.raises(StrangeError, match="mapped"):
        rig.disk()


COMMITS = """
import sqlite3, sys
connection = sqlite3.connect("log.db", isolation_level=None)
connection.execute("PRAGMA journal_mode={mode}")
connection.execute("PRAGMA synchronous={synchronous}")
connection.execute("PRAGMA wal_autocheckpoint=20")
connection.execute("CREATE TABLE IF NOT EXISTS numbers (n INTEGER PRIMARY KEY, filler BLOB)")
for n in range(1, 10_000):
    connection.execute("INSERT INTO numbers VALUES (?, randomblob(2000))", (n,))
    os.write(1, b"%d\\n" % n)
"""


def _commits(library: Path, directory: Path, mode: str, synchronous: str) -> list[str]:
    """What was wrong with SQLite's database after a process that commits was killed, for every seed."""
    rig = Power(library, directory / "live", directory / "base", directory / "journal")
    rig.begin()
    code = _PROLOGUE + COMMITS.format(mode=mode, synchronous=synchronous)
    with subprocess.Popen(rig.watched([sys.executable, "-c", code]), cwd=rig.live, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = b""
        while said.count(b"\n") < 150:
            said += os.read(process.stdout.fileno(), 4096)
        process.kill()
        said += process.stdout.read()
    acknowledged = int(said.rstrip().rpartition(b"\n")[2])
    wrong = []
    for seed in SEEDS:
        out = directory / str(seed)
        rig.disk().cut(out, Random(seed))
        try:
            with closing(sqlite3.connect(out / "log.db")) as connection:
                sound = connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                last = connection.execute("SELECT max(n) FROM numbers").fetchone()[0]
        except sqlite3.DatabaseError as error:
            wrong.append(f"seed {seed}: {error}")
        else:
            if not sound or not acknowledged <= last <= acknowledged + 1:
                wrong.append(f"seed {seed}: {acknowledged} acknowledged, {last} there, sound: {sound}")
    return wrong


@pytest.mark.parametrize(("mode", "synchronous"), [("wal", "FULL"), ("delete", "EXTRA")])
def test_sqlite_keeps_what_it_has_committed_where_it_syncs(
    library: Path, tmp_path: Path, mode: str, synchronous: str
) -> None:
    assert _commits(library, tmp_path, mode, synchronous) == []


@pytest.mark.parametrize(("mode", "synchronous"), [("wal", "NORMAL"), ("wal", "OFF"), ("delete", "FULL")])
def test_sqlite_loses_what_it_has_committed_where_it_says_that_it_may(
    library: Path, tmp_path: Path, mode: str, synchronous: str
) -> None:
    """https://sqlite.org/pragma.html#pragma_synchronous."""
    assert _commits(library, tmp_path, mode, synchronous)


def test_a_truncated_tail_does_not_come_back_with_the_size_that_grows_again() -> None:
    file = File(bytearray(b"s" * 2048), size=2048)
    file.change(Change(0, None))
    file.change(Change(1536, b"n" * 512))
    contents = {file.survivor(Random(seed)) for seed in SEEDS}
    assert b"s" * 2048 in contents
    assert bytes(1536) + b"n" * 512 in contents
    assert all(set(content[:1536]) in (set(b"s"), set(b"\0"), set()) for content in contents)


def _record(operation: Operation, path: str = "", data: bytes = b"", at: int = 0) -> bytes:
    return RECORD.pack(operation, len(path), len(data), 1, 2, at) + path.encode() + data


def _disk(directory: Path, journal: bytes) -> Disk:
    """An empty disk, mounted at /d, after what a journal tells."""
    (directory / "base").mkdir(exist_ok=True)
    (directory / "journal").write_bytes(journal)
    disk = Disk.read(directory / "base", Path("/d"))
    disk.replay(directory / "journal")
    return disk


def test_what_is_written_while_a_sync_is_under_way_need_not_last(tmp_path: Path) -> None:
    begun = _record(Operation.CREATE, "/d/file") + _record(Operation.WRITE, data=b"one") + _record(Operation.SYNC_BEGIN)
    ended = begun + _record(Operation.WRITE, data=b"two", at=3) + _record(Operation.SYNC_END)
    contents = set()
    for seed in SEEDS:
        _disk(tmp_path, ended).cut(tmp_path / str(seed), Random(seed))
        contents.add((tmp_path / str(seed) / "file").read_bytes())
    assert contents == {b"one", b"onetwo", b"one\0\0\0"}


def test_a_sync_that_has_not_returned_promises_nothing(tmp_path: Path) -> None:
    journal = (
        _record(Operation.CREATE, "/d/file") + _record(Operation.WRITE, data=b"one") + _record(Operation.SYNC_BEGIN)
    )
    left = set()
    for seed in SEEDS:
        _disk(tmp_path, journal).cut(tmp_path / str(seed), Random(seed))
        file = tmp_path / str(seed) / "file"
        left.add(file.read_bytes() if file.exists() else None)
    assert left == {None, b"", b"one", bytes(3)}


def test_the_last_record_may_be_torn(tmp_path: Path) -> None:
    whole = _record(Operation.CREATE, "/d/file") + _record(Operation.WRITE, data=b"one")
    for length in range(len(whole), len(whole) + RECORD.size + 3):
        disk = _disk(tmp_path, (whole + _record(Operation.WRITE, data=b"two"))[:length])
        disk.write_all(tmp_path / str(length))
        assert (tmp_path / str(length) / "file").read_bytes() == b"one"

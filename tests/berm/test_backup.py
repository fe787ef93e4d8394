"""`berm backup`, `berm restore` and `berm log` as an operator meets them, beside real nodes, and killed midway."""

from __future__ import annotations

import re
import shutil
import signal
import sqlite3
import subprocess
import threading
from contextlib import closing, suppress
from pathlib import Path

import orjson
import pytest

from berm.backup import rate
from storage.sealer import Policy
from storage.sqlite import SQLiteEngine
from tests.berm.helpers import Client, berm
from tests.node import BERM, PATIENCE, Node, wait_until
from tests.storage.contract import event

SEALING = "[storage]\nsegment_bytes = 65536\n"
COUNT = 30_000


def _replayed(data: Path, cwd: Path) -> list[int]:
    """What the messages of a log say, in order."""
    found = berm("replay", "--data", str(data), cwd=cwd)
    assert found.returncode == 0, found.stderr
    return [int(orjson.loads(line)["payload"]) for line in found.stdout.splitlines()]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with segments, and rows beside them."""
    data = tmp_path_factory.mktemp("log") / "data"
    engine = SQLiteEngine(data, policy=Policy(bytes=1 << 20, age=1 << 62))
    for at in range(0, COUNT, 500):
        events = [event(seq, f"plant/{seq % 50}", b"%d" % seq) for seq in range(at + 1, at + 501)]
        engine.commit(events, {}, True)
        while engine.upkeep():
            pass
    engine.close()
    assert len(list((data / "segments").iterdir())) >= 1
    return data


# -- beside a node under load


def test_what_was_acknowledged_before_a_backup_began_is_in_it(tmp_path: Path) -> None:
    stop = threading.Event()
    acknowledged = 0

    def load(port: int) -> None:
        nonlocal acknowledged
        with Client(port, "device") as device:
            while not stop.is_set():
                numbers = range(acknowledged + 1, acknowledged + 201)
                device.publish("plant/a", *(b"%d" % number for number in numbers))
                acknowledged = numbers[-1]

    with Node(tmp_path, SEALING) as node:
        thread = threading.Thread(target=load, args=(node.port,))
        thread.start()
        try:
            before: list[int] = []
            for _ in range(4):
                wait_until("more is acknowledged", lambda: acknowledged >= (before[-1] if before else 0) + 1500)
                before.append(acknowledged)
                done = berm("backup", "backups", "--config", "berm.toml", cwd=tmp_path)
                assert done.returncode == 0, done.stderr
        finally:
            stop.set()
            thread.join()
        manifests = sorted((tmp_path / "backups").glob("manifest-*"))
        assert len(manifests) == 4
        assert list((node.data / "segments").iterdir())
    for number, (manifest, least) in enumerate(zip(manifests, before, strict=True)):
        taken = orjson.loads(manifest.read_bytes())["backup"]["taken"]
        at = f"{manifest.name[9:13]}-{manifest.name[13:15]}-{manifest.name[15:20]}:{manifest.name[20:22]}"
        at = f"{at}:{manifest.name[22:31]}Z"
        assert taken % 1_000_000 == int(manifest.name[25:31])
        done = berm("restore", "backups", "--to", f"restored{number}", "--at", at, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found = _replayed(tmp_path / f"restored{number}", tmp_path)
        assert found == list(range(1, len(found) + 1))
        assert len(found) >= least


def test_a_restored_node_goes_on_with_its_sessions_and_gives_no_seq_twice(tmp_path: Path) -> None:
    with Node(tmp_path / "old") as old:
        with Client(old.port, "display", expiry=3600) as display:
            display.subscribe("plant/#")
        with Client(old.port, "device") as device:
            device.publish("plant/a", b"1", b"2", b"3")
            assert berm("backup", "backups", "--data", str(old.data), cwd=tmp_path).returncode == 0
            device.publish("plant/a", b"lost", b"lost too")
        old.kill()
        with closing(sqlite3.connect(old.data / "berm.db")) as tool:
            (given,) = tool.execute("SELECT max(seq) FROM tail").fetchone()
    with Node(tmp_path / "new") as new:
        new.stop()
        done = berm("restore", "backups", "--to", "new/restored", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    with Node(tmp_path / "new", '[storage]\npath = "restored"\n') as new:
        with Client(new.port, "device") as device:
            device.publish("plant/a", b"4")
        with Client(new.port, "display", expiry=3600) as display:
            display.wait_for({b"1", b"2", b"3", b"4"})
            assert display.payloads == [b"1", b"2", b"3", b"4"]
        assert new.stop() == 0
    found = berm("replay", "--data", "new/restored", cwd=tmp_path).stdout.splitlines()
    assert [orjson.loads(line)["seq"] > given for line in found] == [False, False, False, True]


# -- killed


def _killed(tmp_path: Path, arguments: list[str], when: str, number: int) -> bool:
    """Run a command, and kill it once so many files were there; whether it was killed before it had ended."""
    process = subprocess.Popen([*BERM, *arguments], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    seen: set[str] = set()
    with process:
        while process.poll() is None and len(seen) < number:
            with suppress(FileNotFoundError):  # it has been renamed meanwhile
                seen.update(path.name for path in tmp_path.glob(when))
        process.send_signal(signal.SIGKILL)
        return process.wait(PATIENCE) == -signal.SIGKILL


def test_a_backup_that_is_killed_anywhere_leaves_those_before_it_whole_and_the_next_one_is_complete(
    tmp_path: Path, log: Path
) -> None:
    killed = sum(
        _killed(tmp_path, ["backup", "backups", "--data", str(log), "--limit", "20MB/s"], "backups/**/*", number)
        for number in range(1, 9)
    )
    assert killed >= 4
    whole = len(list((tmp_path / "backups").glob("manifest-*.json")))
    done = berm("backup", "backups", "--data", str(log), "--check", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "backups").glob("manifest-*.json"))) == whole + 1
    assert berm("restore", "backups", "--to", "new", cwd=tmp_path).returncode == 0
    assert _replayed(tmp_path / "new", tmp_path) == list(range(1, COUNT + 1))


def test_a_restore_that_is_killed_anywhere_leaves_nothing_or_all_and_can_be_done_again(
    tmp_path: Path, log: Path
) -> None:
    assert berm("backup", "backups", "--data", str(log), cwd=tmp_path).returncode == 0
    killed = 0
    for number in range(1, 7):
        killed += _killed(
            tmp_path, ["restore", "backups", "--to", f"new{number}"], f".new{number}.restoring/**/*", number
        )
        if not (tmp_path / f"new{number}").exists():
            done = berm("restore", "backups", "--to", f"new{number}", cwd=tmp_path)
            assert done.returncode == 0, done.stderr
        assert _replayed(tmp_path / f"new{number}", tmp_path) == list(range(1, COUNT + 1))
    assert killed >= 3
    assert not list(tmp_path.glob(".*.restoring"))


# -- what it says


def test_a_backup_and_a_restore_tell_what_they_did(tmp_path: Path, log: Path) -> None:
    first = berm("backup", "backups", "--data", str(log), cwd=tmp_path)
    number = len(list((log / "segments").iterdir()))
    line = r"backups/manifest-\S+Z\.json: seqs 1 to 30000, [\d.]+ MB written, 0 segments were there\n"
    assert re.fullmatch(line, first.stdout)
    again = berm("backup", "backups", "--data", str(log), "--keep", "1", cwd=tmp_path)
    assert again.stdout.endswith(f"{number} segments were there, 1 earlier backups removed\n")
    done = berm("restore", "backups", "--to", "new", cwd=tmp_path)
    line = r"new: restored seqs 1 to 30000, as of \S+Z\nnew: the log goes on above seq \d+\n"
    assert re.fullmatch(line, done.stdout)
    assert (first.stderr, again.stderr, done.stderr) == ("", "", "")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["backup", "backups", "--data", "nowhere"], "berm: nowhere/berm.db: there is no log"),
        (["backup", "backups", "--data", "nowhere", "--limit", "fast"], "berm: --limit: 'fast' is no rate"),
        (["restore", "nowhere", "--to", "new"], "berm: nowhere: No such file or directory"),
        (["restore", "file", "--to", "new"], "berm: file: Not a directory"),
        (["restore", "empty", "--to", "new"], "berm: empty is not a backup: there is no manifest in it"),
        (["restore", "empty", "--to", "new", "--at", "soon"], "berm: --at: 'soon' is not a time"),
        (["log", "verify", "--data", "nowhere"], "berm: nowhere/berm.db: there is no log"),
        (["log", "repair", "--data", "nowhere"], "berm: nowhere: there is no log"),
    ],
)
def test_what_is_not_ours_is_one_line_and_nothing_is_changed(
    tmp_path: Path, arguments: list[str], problem: str
) -> None:
    (tmp_path / "file").write_text("not ours")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    done = berm(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(problem)
    assert done.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_restore_into_a_data_directory_is_refused(tmp_path: Path, log: Path) -> None:
    assert berm("backup", "backups", "--data", str(log), cwd=tmp_path).returncode == 0
    done = berm("restore", "backups", "--to", str(log), cwd=tmp_path)
    assert done.returncode == 2
    assert "is not empty" in done.stderr
    assert "nothing is overwritten" in done.stderr


@pytest.mark.parametrize(
    ("text", "number"), [("20MB/s", 20_000_000), ("500kB/s", 500_000), ("1.5M", 1_500_000), ("4096", 4096)]
)
def test_a_rate_is_written_as_people_write_it(text: str, number: int) -> None:
    assert rate(text) == number


@pytest.mark.parametrize("text", ["", "fast", "0", "-1MB/s", "20MiB/s", "20MB/h"])
def test_what_is_no_rate_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="is no rate"):
        rate(text)


# -- damage, and a real node


def test_verify_and_repair_tell_of_a_damaged_segment_and_a_node_serves_the_rest(tmp_path: Path, log: Path) -> None:
    assert berm("backup", "backups", "--data", str(log), cwd=tmp_path).returncode == 0
    assert berm("restore", "backups", "--to", "data", cwd=tmp_path).returncode == 0
    sound = berm("log", "verify", "--deep", "--data", "data", cwd=tmp_path)
    assert (sound.returncode, sound.stderr) == (0, "")
    assert sound.stdout.endswith("ok\n")
    (path, *_) = sorted((tmp_path / "data" / "segments").iterdir())
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    found = berm("log", "verify", "--data", "data", cwd=tmp_path)
    assert found.returncode == 1
    assert re.search(r"block \d+ is damaged: .*; \d+ events are lost, with seqs in \d+", found.stderr)
    lost = re.search(r"lost: seqs .*\n", found.stdout)
    assert lost
    told = berm("log", "repair", "--dry-run", "--data", "data", cwd=tmp_path)
    assert "it would be written anew" in told.stdout
    done = berm("log", "repair", "--data", "data", cwd=tmp_path)
    assert done.returncode == 0
    assert lost[0] in done.stdout
    assert berm("log", "verify", "--data", "data", cwd=tmp_path).returncode == 0
    assert berm("log", "repair", "--data", "data", cwd=tmp_path).stdout == "data: nothing is damaged\n"
    assert COUNT - 600 < len(_replayed(tmp_path / "data", tmp_path)) < COUNT


def test_a_node_is_not_repaired_while_it_runs(tmp_path: Path) -> None:
    with Node(tmp_path) as node:
        done = berm("log", "repair", "--data", str(node.data), cwd=tmp_path)
        assert done.returncode == 2
        assert "is in use by the node" in done.stderr
        assert berm("log", "verify", "--data", str(node.data), cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("where", ["first page", "leaf of the log", "above the leaves", "sessions"])
def test_a_node_starts_on_a_damaged_page_says_what_is_lost_and_serves_the_rest(tmp_path: Path, where: str) -> None:
    with Node(tmp_path) as node:
        with Client(node.port, "display", expiry=3600) as display:
            display.subscribe("plant/#")
        with Client(node.port, "device") as device:
            device.publish("plant/a", *(b"%d" % number for number in range(3000)))
            device.publish("state/a", b"on", retain=True)
        assert node.stop() == 0
        path = node.data / "berm.db"
        with closing(sqlite3.connect(path)) as tool:
            found = tool.execute("SELECT pageno, name, pagetype FROM dbstat").fetchall()
        pages = {
            "first page": [1],
            "leaf of the log": [page for page, name, kind in found if (name, kind) == ("tail", "leaf")][3:],
            "above the leaves": [page for page, name, kind in found if (name, kind) == ("tail", "internal")],
            "sessions": [page for page, name, kind in found if name == "sessions"],
        }
        content = bytearray(path.read_bytes())
        at = (pages[where][0] - 1) * 4096
        content[at : at + 4096] = b"\xa5" * 4096
        path.write_bytes(content)
        node.start()
        assert "berm.db is damaged; reading from it what can be read" in node.stderr
        assert "the node goes on with what could be read of it" in node.stderr
        assert ("with seqs in" in node.stderr) == (where == "leaf of the log")
        assert ("rows of sessions are lost" in node.stderr) == (where == "sessions")
        with Client(node.port, "other") as other:
            other.subscribe("state/#")
            other.wait_for({b"on"})
        if where != "sessions":
            lost = 150 if where == "leaf of the log" else 0
            with Client(node.port, "display", expiry=3600) as display:
                wait_until("the session goes on", lambda: len(display.messages) >= 3000 - lost)
        assert node.stop() == 0
    assert len(_replayed_topic(node.data, "plant/a", tmp_path)) >= 2850


def _replayed_topic(data: Path, topic: str, cwd: Path) -> list[str]:
    return berm("replay", "--data", str(data), "--topic", topic, cwd=cwd).stdout.splitlines()


# -- encrypted


def test_an_encrypted_node_is_backed_up_restored_verified_and_read_around_a_damaged_page(tmp_path: Path) -> None:
    assert berm("keys", "new", "key", cwd=tmp_path).returncode == 0
    config = f'{SEALING}[encryption]\nkey = "file:{tmp_path / "key"}"\n'
    with Node(tmp_path / "old", config) as old:
        with Client(old.port, "device") as device:
            device.publish("plant/a", *(b"%d" % number for number in range(1, 3001)))
            device.publish("state/a", b"0", retain=True)
        wait_until("a segment is sealed", lambda: bool(list((old.data / "segments").glob("*.segment"))))
        done = berm("backup", str(tmp_path / "backups"), "--config", "berm.toml", cwd=tmp_path / "old")
        assert done.returncode == 0, done.stderr
    with Node(tmp_path / "new", config.replace("[storage]", '[storage]\npath = "restored"')) as new:
        assert new.stop() == 0
        shutil.rmtree(tmp_path / "new" / "restored")
        done = berm("restore", str(tmp_path / "backups"), "--to", "restored", cwd=tmp_path / "new")
        assert done.returncode == 0, done.stderr
        verified = berm("log", "verify", "--deep", "--config", "berm.toml", cwd=tmp_path / "new")
        assert (verified.returncode, verified.stderr) == (0, "")
        without = berm("log", "verify", "--data", "restored", cwd=tmp_path / "new")
        assert without.returncode == 1
        assert "is intact, but encrypted with data key 1" in without.stderr
        for where in ("meta", "tail"):
            _spoil(tmp_path / "new" / "restored" / "berm.db", where)
            new.start()
            with Client(new.port, "other") as other:
                other.subscribe("state/#")
                other.wait_for({b"0"})
                other.publish("plant/b", b"1")
            assert new.stop() == 0
        found = berm("replay", "--config", "berm.toml", "-t", "plant/#", cwd=tmp_path / "new").stdout.splitlines()
    numbers = [int(orjson.loads(line)["payload"]) for line in found]
    assert numbers[-2:] == [1, 1]
    assert 2850 < len(set(numbers)) <= 3000


def _spoil(path: Path, table: str) -> None:
    with closing(sqlite3.connect(path)) as tool:
        query = "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY path LIMIT 1"
        (page,) = tool.execute(query, (table,)).fetchone()
    content = bytearray(path.read_bytes())
    content[(page - 1) * 4096 : page * 4096] = b"\xa5" * 4096
    path.write_bytes(content)

"""replay, export, import and query as a shell runs them: what they print, what they leave, and the exit code."""

from __future__ import annotations

import csv
import os
import pty
import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import orjson
import pytest

from tests.berm.helpers import Client, berm
from tests.berm.logs import awkward, contents, event, make, retained, without_seqs
from tests.node import BERM, PATIENCE, Node, wait_until

SUFFIXES = ("sqlite", "ndjson", "csv")


@pytest.fixture
def history(tmp_path: Path) -> Path:
    """A directory with a log of ten minutes, from seq 100 on, and no node on it."""
    kept = event(109, 9, "state", b"on", retain=True)
    make(tmp_path / "data", [*(event(100 + n, n, f"plant/{n % 2}", b'{"v": %d}' % n) for n in range(9)), kept], [kept])
    return tmp_path


def files(directory: Path) -> dict[str, bytes]:
    """All files below a directory with what is in them, but for those that any opening of a database touches."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.suffix not in (".lock", ".db-shm") and not path.name.endswith(("-shm", "-wal"))
    }


def test_replay_prints_csv(history: Path) -> None:
    done = berm("replay", "--format", "csv", "--limit", "1", cwd=history)
    assert (done.returncode, done.stderr) == (0, "")
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [(row["seq"], row["topic"], row["payload"]) for row in rows] == [("100", "plant/0", '{"v": 0}')]


def test_replay_prints_parquet_into_a_pipe(history: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (pip install 'berm[parquet]')")
    with (history / "a.parquet").open("wb") as out:
        done = subprocess.Popen([*BERM, "replay", "-f", "parquet"], cwd=history, stdout=subprocess.PIPE)
        assert done.stdout is not None
        out.write(done.stdout.read())
        done.stdout.close()
        assert done.wait(PATIENCE) == 0
    assert parquet.read_table(history / "a.parquet").column("seq").to_pylist() == list(range(100, 110))


def test_where_pyarrow_is_missing_parquet_is_one_line(history: Path) -> None:
    (history / "pyarrow.py").write_text("raise ImportError('not here')\n")
    for command in (("replay", "-f", "parquet"), ("export", "a.parquet")):
        done = berm(*command, cwd=history)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "berm: Parquet needs pyarrow; install it with: pip install 'berm[parquet]'\n"
    assert not (history / "a.parquet").exists()


def test_since_and_until_and_their_old_names_are_the_same(history: Path) -> None:
    span = ("2026-03-01T10:02Z", "2026-03-01T10:05Z")
    new = berm("replay", "--since", span[0], "--until", span[1], cwd=history)
    old = berm("replay", "--from", span[0], "--to", span[1], cwd=history)
    assert [orjson.loads(line)["seq"] for line in new.stdout.splitlines()] == [102, 103, 104]
    assert old.stdout == new.stdout


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_exported_beside_a_running_node_is_imported_into_another(tmp_path: Path, suffix: str) -> None:
    with Node(tmp_path) as node, Client(node.port, "device") as device:
        device.publish("plant/a", b"1", b"\xff\x00", "zw\u00f6lf".encode())
        device.publish("state", b"on", retain=True)
        done = berm("export", f"a.{suffix}", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr.startswith(f"a.{suffix}: 4 events")
        assert node.stop() == 0
        assert "WARNING" not in node.stderr
    done = berm("import", f"a.{suffix}", "--retained", "--data", "other/data", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "other/data: imported 4 events, set 1 retained messages\n")
    assert without_seqs(contents(tmp_path / "other" / "data")) == without_seqs(contents(tmp_path / "data"))
    assert retained(tmp_path / "other" / "data") == {"state": b"on"}
    with Node(tmp_path / "other") as node, Client(node.port, "display") as display:
        display.subscribe("#")
        display.wait_for({b"on"})
        with Client(node.port, "device") as device:
            device.publish("plant/a", b"after")
        display.wait_for({b"after"})
        assert display.payloads == [b"on", b"after"]


def test_query_asks_a_range(history: Path) -> None:
    sql = "SELECT topic, sum(payload ->> '$.v') AS v FROM events GROUP BY topic ORDER BY topic"
    done = berm("query", sql, "--topic", "plant/#", "--since", "2026-03-01T10:05Z", cwd=history)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == '{"topic":"plant/0","v":14}\n{"topic":"plant/1","v":12}\n'
    done = berm("query", sql, "-t", "plant/0", "-f", "table", cwd=history)
    assert done.stdout == "topic     v\n-------  --\nplant/0  20\n"


@pytest.mark.parametrize("command", [("replay",), ("export", "new.ndjson"), ("query", "SELECT 1")])
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--from-seq", "7"), "seq 7 is not kept any more: the log begins with 100"),
        (("--from-seq", "110"), "there is no seq 110 yet: the log ends with 109"),
        (("--since", "2999-01-01T00:00Z"), "2999-01-01T00:00:00.000000Z is in the future: it is "),
        (("--until", "2020-01-01T00:00Z"), "nothing before 2020-01-01T00:00:00.000000Z is kept: the log begins at "),
        (("--topic", "nowhere/#"), "nothing matches topic nowhere/#\n"),
        (("--topic", "state", "--until", "2026-03-01T10:02Z"), "nothing matches topic state in this range\n"),
        (("--topic", "a/#/b"), "--topic a/#/b: "),
        (("--since", "soon"), "--since: 'soon' is not a time; write it like "),
        (("--format", "xml"), ""),
    ],
)
def test_a_range_that_is_not_there_is_one_line_and_exit_code_2(
    history: Path, command: tuple[str, ...], arguments: tuple[str, ...], line: str
) -> None:
    before = files(history)
    done = berm(*command, *arguments, cwd=history)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"berm: {line}")
    assert done.stderr.count("\n") == 1
    assert files(history) == before


def test_a_client_of_whom_there_is_nothing_is_one_line(history: Path) -> None:
    for command in (("replay",), ("export", "a.ndjson")):
        done = berm(*command, "--client", "nobody", cwd=history)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", "berm: nothing matches client 'nobody'\n")
    done = berm("export", "a.csv", "--client", "dev", cwd=history)
    assert done.returncode == 2
    assert done.stderr.startswith("berm: csv has no room for all that is a client's")
    assert [path.name for path in history.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("sql", "problem"),
    [("DELETE FROM events", "not authorized; only one SELECT"), ("SELECT colour FROM events", "no such column")],
)
def test_a_statement_that_would_do_more_or_is_wrong_is_one_line(history: Path, sql: str, problem: str) -> None:
    before = files(history)
    done = berm("query", sql, cwd=history)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"berm: {problem}")
    assert done.stderr.count("\n") == 1
    assert files(history) == before


def test_import_refuses_a_file_that_is_not_ours_and_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_text("hello\n")
    (tmp_path / "b.ndjson").write_text('{"time":"2026-03-01T10:00:00Z","topic":"a","payload":"x"}\n{}\n')
    for name, problem in (
        ("a.ndjson", "a.ndjson: is neither what berm export writes"),
        ("b.ndjson", "b.ndjson:2: has no topic; nothing was changed"),
        ("c.ndjson", "c.ndjson: cannot be read: No such file or directory"),
        (".", ".: cannot be read: Is a directory"),
    ):
        done = berm("import", name, "--data", "data", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"berm: {problem}")
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_import_refuses_a_directory_that_a_node_runs_on(history: Path) -> None:
    assert berm("export", "a.ndjson", cwd=history).returncode == 0
    with Node(history / "other") as node:
        done = berm("import", "a.ndjson", "--data", str(node.data), cwd=history)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"is in use by the node with process id {node.process.pid}; stop that one" in done.stderr
        assert done.stderr.count("\n") == 1
        assert node.stop() == 0
    assert contents(node.data) == []


def test_import_refuses_what_is_older_than_the_log(history: Path) -> None:
    assert berm("export", "a.ndjson", cwd=history).returncode == 0
    before = files(history)
    done = berm("import", "a.ndjson", cwd=history)
    assert (done.returncode, done.stdout) == (2, "")
    assert "times never run backwards along it; import into an empty data directory, or with --now" in done.stderr
    assert files(history) == before
    done = berm("import", "a.ndjson", "--now", cwd=history)
    assert (done.returncode, done.stderr) == (0, "data: imported 10 events\n")
    assert len(contents(history / "data")) == 20


@pytest.mark.parametrize("command", [("replay",), ("status",), ("export", "new.ndjson"), ("query", "SELECT 1")])
def test_a_data_directory_of_a_newer_version_is_one_line(history: Path, command: tuple[str, ...]) -> None:
    newer(history)
    before = files(history)
    done = berm(*command, cwd=history)
    assert (done.returncode, done.stdout) == (2, "")
    assert "was written by a newer Berm" in done.stderr
    assert done.stderr.count("\n") == 1
    assert files(history) == before


def test_import_leaves_a_data_directory_of_a_newer_version_alone(history: Path) -> None:
    assert berm("export", "a.ndjson", cwd=history).returncode == 0
    newer(history)
    done = berm("import", "a.ndjson", "--now", cwd=history)
    assert (done.returncode, done.stdout) == (2, "")
    assert "was written by a newer Berm" in done.stderr
    assert done.stderr.count("\n") == 1


def newer(directory: Path) -> None:
    """Make the log that of a newer version."""
    with closing(sqlite3.connect(directory / "data" / "berm.db")) as database:
        database.execute("PRAGMA user_version=99")


def test_export_does_not_overwrite_but_by_force(history: Path) -> None:
    (history / "a.csv").write_text("mine")
    done = berm("export", "a.csv", cwd=history)
    assert (done.returncode, done.stderr) == (
        2,
        "berm: a.csv: is there already; name another file, or replace it with --force\n",
    )
    assert (history / "a.csv").read_text() == "mine"
    assert berm("export", "a.csv", "--force", cwd=history).returncode == 0
    assert (history / "a.csv").read_text().startswith("seq,time,")


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A directory with a log that takes a while to go through."""
    make(tmp_path / "data", [event(n, n // 1000, f"plant/{n % 50}", b"%d" % n) for n in range(1, 60_001)])
    return tmp_path


def test_ctrl_c_leaves_nothing_of_an_export(large: Path) -> None:
    process = subprocess.Popen([*BERM, "export", "a.sqlite"], cwd=large, stderr=subprocess.PIPE)
    wait_until("it writes", lambda: bool(list(large.glob(".a.sqlite.*"))) or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said) == (130, b"")
    assert [path.name for path in large.iterdir()] == ["data"]


def test_ctrl_c_ends_a_query_that_runs_for_ever(history: Path) -> None:
    sql = "WITH RECURSIVE c(x) AS (VALUES (1) UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c, events"
    command = [*BERM, "query", sql]
    process = subprocess.Popen(command, cwd=history, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    status = Path(f"/proc/{process.pid}/stat")
    # It has used more time than its start takes: it is in the statement.
    wait_until("it works", lambda: int(status.read_text().rsplit(") ", 1)[1].split()[11]) > 200)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, said) == (130, b"", b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_import_that_a_signal_ends_is_gone_on_with(large: Path, number: signal.Signals) -> None:
    assert berm("export", "a.ndjson", cwd=large).returncode == 0
    new = large / "new"
    command = [*BERM, "import", "a.ndjson", "--data", "new"]
    process = subprocess.Popen(command, cwd=large, stderr=subprocess.PIPE, text=True)
    wait_until("some of it is there", lambda: _count(new) > 0 or process.poll() is not None)
    process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE)
    count = _count(new)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert said.endswith(f"berm: stopped; go on with --skip {count}\n")
    assert 0 < count < 60_000

    done = berm("import", "a.ndjson", "--data", "new", cwd=large)
    assert done.returncode == 2
    assert f"go on with --skip {count}; nothing was changed" in done.stderr
    done = berm("import", "a.ndjson", "--data", "new", "--skip", str(count), cwd=large)
    assert (done.returncode, done.stderr) == (0, f"new: imported {60_000 - count:,} events\n")
    assert [each.payload for each in contents(new)] == [b"%d" % n for n in range(1, 60_001)]


def _count(data: Path) -> int:
    try:
        return len(contents(data))
    except Exception:  # noqa: BLE001 - whatever it is, it is not there yet
        return 0


def test_a_bar_is_shown_to_a_terminal_and_only_there(history: Path) -> None:
    controller, terminal = pty.openpty()
    try:
        process = subprocess.Popen([*BERM, "replay"], cwd=history, stdout=subprocess.PIPE, stderr=terminal)
        out, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        assert len(out.splitlines()) == 10
        assert b"reading" in os.read(controller, 65536)
    finally:
        os.close(controller)
        os.close(terminal)


def test_awkward_events_go_around_by_the_command_line(tmp_path: Path) -> None:
    make(tmp_path / "data", awkward())
    for suffix in SUFFIXES:
        assert berm("export", f"a.{suffix}", cwd=tmp_path).returncode == 0
        assert berm("import", f"a.{suffix}", "--data", suffix, cwd=tmp_path).returncode == 0
        assert without_seqs(contents(tmp_path / suffix)) == without_seqs(awkward())

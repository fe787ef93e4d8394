"""What is in the files, and that they appear whole or not at all."""

from __future__ import annotations

import csv
import sqlite3
from contextlib import closing
from io import BytesIO
from pathlib import Path

import orjson
import pytest

from berm.export import ExportError, export, format_of, replaced, writer
from berm.formats import FIELDS, to_json
from berm.replay import NothingFoundError, Query, Replay, select
from storage.interface import SESSIONS, SUBSCRIPTIONS, WILLS
from storage.sealer import Policy
from storage.sqlite import SQLiteEngine
from tests.berm.logs import PAYLOADS, awkward, event, make


def nothing(*_: object) -> None:
    """Nobody looks how far it is."""


def export_all(data: Path, path: Path, query: Query = Query(), *, force: bool = False) -> str:  # noqa: B008 - a value
    engine = SQLiteEngine(data, readonly=True)
    try:
        return str(export(engine, query, path, format_of(path, None), nothing, force=force))
    finally:
        engine.close()


def test_csv_has_the_fields_of_ndjson(tmp_path: Path) -> None:
    make(tmp_path / "data", awkward())
    export_all(tmp_path / "data", tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == FIELDS
    for row, each in zip(rows[1:], awkward(), strict=True):
        fields = orjson.loads(to_json(each))
        fields["properties"] = orjson.dumps(fields["properties"]).decode() if "properties" in fields else ""
        fields["retain"] = "true" if fields["retain"] else "false"
        assert row == [str(fields.get(name, "")) for name in FIELDS]


def test_a_sqlite_file_can_be_asked_by_topic_and_time_with_an_index(tmp_path: Path) -> None:
    make(tmp_path / "data", awkward(), [awkward()[-1]])
    assert export_all(tmp_path / "data", tmp_path / "a.sqlite") == f"{len(awkward())} events, 1 retained messages"
    with closing(sqlite3.connect(tmp_path / "a.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (value,) = database.execute("SELECT payload ->> '$.value' FROM events WHERE topic = 'plant/1'").fetchone()
        assert value == 1.5
        kinds = [kind for (kind,) in database.execute("SELECT typeof(payload) FROM events ORDER BY seq LIMIT 5")]
        assert kinds == ["text", "text", "text", "blob", "blob"]
        assert database.execute("SELECT topic, payload FROM retained").fetchall() == [("state", "on")]
        for column, value in (("topic", "a"), ("time", "2026")):
            plan = database.execute(f"EXPLAIN QUERY PLAN SELECT * FROM events WHERE {column} = ?", (value,)).fetchall()
            assert f"USING INDEX events_by_{column}" in plan[0][-1]


def test_parquet_has_the_fields_with_types(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (pip install 'berm[parquet]')")
    parquet = pytest.importorskip("pyarrow.parquet")
    make(tmp_path / "data", awkward())
    export_all(tmp_path / "data", tmp_path / "a.parquet")
    table = parquet.read_table(tmp_path / "a.parquet")
    assert tuple(table.column_names) == FIELDS
    assert table.schema.field("time").type == arrow.timestamp("us", "UTC")
    rows = table.to_pylist()
    for row, each in zip(rows, awkward(), strict=True):
        fields = orjson.loads(to_json(each))
        assert (row["seq"], row["topic"], row["payload"], row["retain"], row["encoding"]) == (
            each.seq,
            each.topic,
            fields["payload"],
            each.retain,
            fields.get("encoding"),
        )
        assert round(row["time"].timestamp() * 1e6) == each.ts


def test_row_groups_of_parquet_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (pip install 'berm[parquet]')")
    from pyarrow.parquet import ParquetFile

    from berm import parquet

    monkeypatch.setattr(parquet, "GROUP_EVENTS", 4)
    out = BytesIO()
    lines = writer("parquet", out)
    lines.write([event(n, n) for n in range(1, 11)])
    lines.close()
    file = ParquetFile(BytesIO(out.getvalue()))
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [4, 4, 2]


@pytest.mark.parametrize("suffix", ["sqlite", "ndjson"])
def test_a_client_gets_all_that_is_its_own_and_nothing_of_others(tmp_path: Path, suffix: str) -> None:
    mine = [event(1, 1, client="me"), event(3, 3, "r", b"kept", "me", retain=True)]
    kept = [
        mine[1],
        event(2, 2, "other", b"theirs", "you", retain=True),
        event(9, 0, "old", b"kept", "me", retain=True),
    ]
    make(tmp_path / "data", [mine[0], event(2, 2, "other", b"theirs", "you", retain=True), mine[1]], kept)
    engine = SQLiteEngine(tmp_path / "data")
    for client in ("me", "you"):
        session = (5, 60, 0, 0, 3, b"\xff", b"", b"", f"user of {client}")
        will = (0, 5, "will", f"will of {client}".encode(), 1, 0, b"\x18\0\0\0\5")
        engine.commit([], {SESSIONS: {(client,): session}}, True)
        engine.commit([], {SUBSCRIPTIONS: {(client, "plant/#"): (1, 0, 0)}, WILLS: {(client,): will}}, True)
    engine.close()
    path = tmp_path / f"me.{suffix}"
    assert export_all(tmp_path / "data", path, Query(client="me")) == (
        "2 events, 2 retained messages, 3 rows of a session, its subscriptions and its will"
    )
    content = path.read_bytes()
    assert b"user of me" in content
    assert b"will of me" in content
    assert b"you" not in content
    assert b"theirs" not in content
    if suffix == "ndjson":
        lines = [orjson.loads(line) for line in content.splitlines()]
        assert [line.get("kind") for line in lines] == [None, None, "retained", "sessions", "subscriptions", "wills"]
        assert lines[2]["topic"] == "old"
        assert lines[-1]["properties"] == {"will_delay_interval": 5}
    else:
        with closing(sqlite3.connect(path)) as database:
            assert database.execute("SELECT filter FROM subscriptions").fetchall() == [("plant/#",)]


def test_a_client_of_which_only_a_session_is_left_gets_it(tmp_path: Path) -> None:
    make(tmp_path / "data", [event(1, 1)])
    engine = SQLiteEngine(tmp_path / "data")
    engine.commit([], {SESSIONS: {("me",): (5, 60, 0, 0, 3, b"", b"", b"", "")}}, True)
    engine.close()
    export_all(tmp_path / "data", tmp_path / "me.ndjson", Query(client="me"))
    assert orjson.loads((tmp_path / "me.ndjson").read_bytes())["client_id"] == "me"


def test_a_file_that_is_there_is_not_touched_but_by_force(tmp_path: Path) -> None:
    make(tmp_path / "data", [event(1, 1)])
    path = tmp_path / "a.ndjson"
    path.write_text("mine")
    with pytest.raises(ExportError, match=r"a\.ndjson: is there already; .*--force"):
        export_all(tmp_path / "data", path)
    assert path.read_text() == "mine"
    with pytest.raises(NothingFoundError):
        export_all(tmp_path / "data", path, Query(topics=("nowhere",)), force=True)
    assert path.read_text() == "mine"
    export_all(tmp_path / "data", path, force=True)
    assert path.read_bytes() == to_json(event(1, 1))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.ndjson", "data"]


@pytest.mark.parametrize("suffix", ["sqlite", "ndjson", "csv"])
def test_an_export_that_is_interrupted_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    make(tmp_path / "data", [event(n, n) for n in range(1, 10)])
    engine = SQLiteEngine(tmp_path / "data", readonly=True)

    def interrupted(_: Replay) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(engine, Query(), tmp_path / f"a.{suffix}", suffix, interrupted)
    engine.close()
    assert [each.name for each in tmp_path.iterdir()] == ["data"]


def test_what_cannot_be_written_is_told_with_its_reason(tmp_path: Path) -> None:
    make(tmp_path / "data", [event(1, 1)])
    with pytest.raises(ExportError, match="cannot be written: No such file or directory"):
        export_all(tmp_path / "data", tmp_path / "nowhere" / "a.csv")
    with pytest.raises(ExportError, match="is a directory"):
        export_all(tmp_path / "data", tmp_path, force=True) if tmp_path.suffix else _into(tmp_path)


def _into(directory: Path) -> None:
    with replaced(directory, force=True):
        raise AssertionError


def test_the_format_is_what_is_asked_for_or_what_the_name_says() -> None:
    assert format_of(Path("a.DB"), None) == "sqlite"
    assert format_of(Path("a.jsonl"), None) == "ndjson"
    assert format_of(Path("a"), "csv") == "csv"
    with pytest.raises(ValueError, match=r"a\.txt: its name does not say the format"):
        format_of(Path("a.txt"), None)
    with pytest.raises(ValueError, match="'xml' is not a format"):
        format_of(Path("a.csv"), "xml")


def test_sealed_segments_are_exported_like_the_tail(tmp_path: Path) -> None:
    events = [event(n, n, f"plant/{n % 7}", PAYLOADS[n % len(PAYLOADS)]) for n in range(1, 3000)]
    make(tmp_path / "data", events, policy=Policy(bytes=1, age=1 << 62))
    assert list((tmp_path / "data" / "segments").iterdir())
    export_all(tmp_path / "data", tmp_path / "a.ndjson")
    assert (tmp_path / "a.ndjson").read_bytes() == b"".join(map(to_json, events))
    engine = SQLiteEngine(tmp_path / "data", readonly=True)
    assert [each.seq for each in select(engine, Query(topics=("plant/3",), limit=3))] == [3, 10, 17]
    engine.close()

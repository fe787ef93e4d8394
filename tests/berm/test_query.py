"""SQL over history: what can be asked, and that nothing else can be done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from berm.query import QueryError, SQLRow, asked, written
from berm.replay import NothingFoundError, Query
from storage.sqlite import SQLiteEngine
from tests.berm.logs import MINUTE, START, awkward, event, make


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[SQLiteEngine]:
    telemetry = [event(100 + n, 10 + n, f"plant/{n % 2}", b'{"value": %d}' % n) for n in range(10)]
    make(tmp_path / "data", [*awkward(), *telemetry], [awkward()[-1]])
    engine = SQLiteEngine(tmp_path / "data", readonly=True)
    yield engine
    engine.close()


def ask(engine: SQLiteEngine, sql: str, query: Query = Query()) -> list[SQLRow]:  # noqa: B008 - a value
    with asked(engine, query, sql, lambda _: None) as (_, rows):
        return list(rows)


def text(engine: SQLiteEngine, sql: str, format: str) -> str:
    with asked(engine, Query(), sql, lambda _: None) as answer:
        return b"".join(written(answer, format)).decode()


def test_json_in_payloads_is_aggregated(engine: SQLiteEngine) -> None:
    sql = "SELECT topic, avg(payload ->> '$.value') FROM events GROUP BY topic ORDER BY topic"
    assert ask(engine, sql, Query(topics=("plant/0", "plant/1"), from_seq=100)) == [("plant/0", 4), ("plant/1", 5)]


def test_only_the_range_is_there(engine: SQLiteEngine) -> None:
    query = Query(start=START + 12 * MINUTE, end=START + 15 * MINUTE)
    assert ask(engine, "SELECT seq, time FROM events", query) == [
        (102, "2026-03-01T10:12:00.000000Z"),
        (103, "2026-03-01T10:13:00.000000Z"),
        (104, "2026-03-01T10:14:00.000000Z"),
    ]
    with pytest.raises(NothingFoundError, match="nothing matches topic nowhere"):
        ask(engine, "SELECT 1", Query(topics=("nowhere",)))


def test_retained_messages_can_be_asked_for(engine: SQLiteEngine) -> None:
    assert ask(engine, "SELECT topic, payload FROM retained") == [("state", "on")]


def test_payloads_are_text_or_bytes_as_they_came(engine: SQLiteEngine) -> None:
    found = ask(engine, "SELECT payload FROM events WHERE seq < 10 ORDER BY seq")
    assert [value if isinstance(value, bytes) else str(value).encode() for (value,) in found] == [
        each.payload for each in awkward()[:9]
    ]


def test_tables_out_of_json_and_recursion_work(engine: SQLiteEngine) -> None:
    assert ask(engine, "SELECT value FROM json_each('[1,2]')") == [(1,), (2,)]
    sql = "WITH RECURSIVE c(x) AS (VALUES (1) UNION ALL SELECT x + 1 FROM c LIMIT 3) SELECT sum(x) FROM c"
    assert ask(engine, sql) == [(6,)]


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM events",
        "INSERT INTO retained SELECT * FROM retained",
        "UPDATE events SET qos = 0",
        "DROP TABLE events",
        "CREATE TABLE t (x)",
        "CREATE TEMP VIEW v AS SELECT 1",
        "ATTACH 'x.db' AS x",
        "DETACH main",
        "PRAGMA user_version",
        "PRAGMA user_version = 3",
        "SELECT * FROM pragma_table_info('events')",
        "SELECT load_extension('x')",
        "VACUUM INTO 'x.db'",
        "BEGIN",
        "REINDEX",
        "SELECT 1; SELECT 2",
        "SELECT 1; DELETE FROM events",
    ],
)
def test_nothing_but_one_select_is_done(engine: SQLiteEngine, sql: str, tmp_path: Path) -> None:
    with pytest.raises(QueryError):
        ask(engine, sql)
    assert [each.name for each in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("sql", "problem"),
    [
        ("selec", 'near "selec": syntax error'),
        ("", "incomplete input"),
        ("SELECT colour FROM events", "no such column: colour"),
        ("SELECT payload ->> '$.value' FROM events", "malformed JSON"),
        ("SELECT 1; SELECT 2", "You can only execute one statement at a time; only one SELECT over"),
    ],
)
def test_what_is_wrong_is_told(engine: SQLiteEngine, sql: str, problem: str) -> None:
    with pytest.raises(QueryError) as caught:
        ask(engine, sql)
    assert str(caught.value).startswith(problem)


def test_a_wrong_statement_is_told_before_the_log_is_read(engine: SQLiteEngine) -> None:
    def never(_: object) -> None:
        raise AssertionError("it reads")

    with pytest.raises(QueryError), asked(engine, Query(), "SELECT colour FROM events", never):
        pass


def test_answers_are_tables_json_and_csv(engine: SQLiteEngine) -> None:
    sql = "SELECT 1.5 AS number, 'a\x1b\nb' AS text, x'ff' AS bytes, NULL AS none UNION ALL SELECT 22, '', '', 1"
    assert text(engine, sql, "table") == (
        "number  text        bytes        none\n"
        "------  ----------  -----------  ----\n"
        "   1.5  a\\x1b\\x0ab  base64:/w==\n"
        "    22                              1\n"
    )
    lines = [orjson.loads(line) for line in text(engine, sql, "ndjson").splitlines()]
    assert lines[0] == {"number": 1.5, "text": "a\x1b\nb", "bytes": "base64:/w==", "none": None}
    assert text(engine, sql, "csv").splitlines()[0] == "number,text,bytes,none"


def test_an_empty_answer_has_its_head(engine: SQLiteEngine) -> None:
    assert text(engine, "SELECT seq FROM events WHERE 0", "table") == "seq\n---\n"
    assert text(engine, "SELECT seq FROM events WHERE 0", "ndjson") == ""
    assert text(engine, "SELECT seq FROM events WHERE 0", "csv") == "seq\r\n"

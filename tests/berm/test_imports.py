"""What `berm export` has written comes back as it was; what is no such file changes nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from berm import imports
from berm.export import export
from berm.imports import ImportRefusedError, Options, Report, check, run
from berm.replay import Query
from berm.sources import SourceError, messages
from storage.interface import META, Event, Row, StorageFull, Table
from storage.sqlite import SQLiteEngine
from tests.berm.logs import MINUTE, PAYLOADS, START, awkward, contents, event, make, retained, without_seqs

NOW = START + 60 * MINUTE
FORMATS = ("ndjson", "csv", "sqlite")


def nothing(*_: object) -> None:
    """Nobody looks how far it is."""


def exported(directory: Path, events: list[Event], format: str, kept: list[Event] | None = None) -> Path:
    """A log with these events, and the file that they are exported to."""
    make(directory / "old", events, kept or ())
    path = directory / f"file.{format}"
    engine = SQLiteEngine(directory / "old", readonly=True)
    export(engine, Query(), path, format, nothing)
    engine.close()
    return path


def imported(path: Path, data: Path, options: Options = Options(), now: int = NOW) -> Report:  # noqa: B008 - a value
    """Import a file into a data directory."""
    checked = check(path, options, now)
    engine = SQLiteEngine(data)
    report = Report()
    try:
        assert run(engine, checked, now, report, nothing)
    finally:
        engine.close()
    return report


@pytest.mark.parametrize("format", FORMATS)
def test_what_was_exported_comes_back_as_it_was(tmp_path: Path, format: str) -> None:
    events = awkward()
    report = imported(exported(tmp_path, events, format), tmp_path / "new")
    found = contents(tmp_path / "new")
    assert without_seqs(found) == without_seqs(events)
    assert [each.seq for each in found] == list(range(1, len(events) + 1))
    assert (report.events, report.done, report.retained) == (len(events), len(events), 0)
    assert retained(tmp_path / "new") == {}


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0#+"), min_size=1, max_size=20)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(texts, st.binary(max_size=30) | texts.map(str.encode), texts), min_size=1, max_size=5))
def test_any_topic_payload_and_client_comes_back(tmp_path: Path, parts: list[tuple[str, bytes, str]]) -> None:
    for format in FORMATS:
        path = tmp_path / f"file.{format}"
        engine = SQLiteEngine(tmp_path / "log")
        first = engine.last() + 1
        some = [event(first + n, 0, topic, payload, client) for n, (topic, payload, client) in enumerate(parts)]
        engine.commit(some, {}, False)
        export(engine, Query(from_seq=first), path, format, nothing, force=True)
        engine.close()
        found = [(each.topic, each.payload, each.client) for each in messages(path)]
        assert found == parts, format


@pytest.mark.parametrize("format", ["ndjson", "sqlite"])
def test_retained_messages_are_set_where_that_is_asked_for_even_those_without_an_event(
    tmp_path: Path, format: str
) -> None:
    events = [
        event(1, 1, "a", b"old", retain=True),
        event(2, 2, "gone", b"x", retain=True),
        event(3, 3, "gone", b"", retain=True),
        event(4, 4, "a", b"new", retain=True),
        event(5, 5, "plain", b"x"),
    ]
    lost = event(0, 0, "b", b"its event is not kept any more", retain=True)
    path = exported(tmp_path, events, format, [events[3], lost])
    assert imported(path, tmp_path / "without").events == 5
    assert retained(tmp_path / "without") == {}
    report = imported(path, tmp_path / "new", Options(retained=True))
    assert (report.events, report.retained) == (6, 5)
    assert retained(tmp_path / "new") == {"a": b"new", "b": b"its event is not kept any more"}
    last = contents(tmp_path / "new")[-1]
    assert (last.topic, last.retain, last.ts) == ("b", True, NOW)


def test_a_retained_message_that_has_expired_is_not_set(tmp_path: Path) -> None:
    path = exported(tmp_path, [event(1, 1, "a", b"x", retain=True, expires=NOW)], "ndjson")
    imported(path, tmp_path / "new", Options(retained=True))
    assert retained(tmp_path / "new") == {}


def test_history_goes_behind_what_is_older_and_not_behind_what_is_newer(tmp_path: Path) -> None:
    path = exported(tmp_path, [event(1, 10), event(2, 20)], "csv")
    make(tmp_path / "older", [event(7, 10, "before")])
    imported(path, tmp_path / "older")
    found = contents(tmp_path / "older")
    assert [(each.seq, each.ts) for each in found[:1]] == [(7, START + 10 * MINUTE)]
    assert [each.ts for each in found[1:]] == [START + 10 * MINUTE, START + 20 * MINUTE]
    assert found[1].seq > 7

    make(tmp_path / "newer", [event(7, 11, "before")])
    with pytest.raises(ImportRefusedError, match=r"begins at 2026-03-01T10:10.*log ends at 2026-03-01T10:11.*--now"):
        imported(path, tmp_path / "newer")
    assert [each.topic for each in contents(tmp_path / "newer")] == ["before"]
    imported(path, tmp_path / "newer", Options(now=True))
    assert [each.ts for each in contents(tmp_path / "newer")[1:]] == [NOW, NOW]


def test_seqs_that_the_log_had_reserved_are_not_given_again(tmp_path: Path) -> None:
    path = exported(tmp_path, [event(1, 1)], "ndjson")
    engine = SQLiteEngine(tmp_path / "new")
    engine.commit([], {META: {("reserved",): ("500",)}}, True)
    engine.close()
    imported(path, tmp_path / "new")
    imported(path, tmp_path / "new", Options(now=True))
    assert [each.seq for each in contents(tmp_path / "new")] == [501, 502]


class _Full(SQLiteEngine):
    """Has room for one group."""

    groups = 0

    def commit(self, events: Sequence[Event], state: dict[Table, dict[Row, Row | None]], sync: bool) -> None:
        self.groups += 1
        if self.groups > 1:
            raise StorageFull("no room")
        super().commit(events, state, sync)


def test_an_import_that_is_interrupted_goes_on_where_it_was_and_nothing_is_there_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "GROUP_EVENTS", 10)
    events = [event(n, n // 2, payload=b"%d" % n) for n in range(1, 36)]
    path = exported(tmp_path, events, "ndjson")
    data = tmp_path / "new"
    full = _Full(data)
    report = Report()
    with pytest.raises(StorageFull):
        run(full, check(path, Options(), NOW), NOW, report, nothing)
    full.close()
    assert (report.done, len(contents(data))) == (10, 10)

    for wrong in (0, 9, 11):
        with pytest.raises(ImportRefusedError, match="interrupted, with 10 messages in the log; go on with --skip 10"):
            imported(path, data, Options(skip=wrong))
    engine = SQLiteEngine(data)
    stops = iter([False, True])
    report = Report()
    assert not run(engine, check(path, Options(skip=10), NOW), NOW, report, nothing, lambda: next(stops))
    engine.close()
    assert (report.done, report.events) == (30, 20)
    assert imported(path, data, Options(skip=30)).events == 5
    found = contents(data)
    assert [each.payload for each in found] == [each.payload for each in events]
    assert [each.seq for each in found] == sorted({each.seq for each in found})
    engine = SQLiteEngine(data)
    assert [name for name, _ in engine.rows(META) if str(name).startswith("import")] == []
    engine.close()


HEAD = "time,topic,payload\r\n"
GOOD = '{"time":"2026-03-01T10:00:00Z","topic":"a","payload":"x"}\n'


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.ndjson", b"\x7fELF", "is neither what berm export writes"),
        ("a.csv", b"name,value\r\n1,2\r\n", "is neither what berm export writes"),
        ("a.csv", b"", "is neither what berm export writes"),
        ("a.ndjson", GOOD + "{", ":2: not JSON: "),
        ("a.ndjson", GOOD + "[1]", ":2: not a JSON object"),
        ("a.ndjson", GOOD + "\n" + '{"topic":"a"}', ":3: has no payload"),
        ("a.ndjson", '{"topic":"a","payload":"x"}', "message 1: has no time; --now gives all of them"),
        ("a.ndjson", GOOD.replace('"a"', '"a/#"'), ":1: topic name has a wildcard in it"),
        ("a.ndjson", GOOD.replace('"a"', "5"), ":1: topic: 5 is not a text"),
        ("a.ndjson", GOOD.replace("2026-03-01T10", "2026-03-01T25"), ":1: time: '2026-03-01T25:00:00Z' is not a time"),
        ("a.ndjson", GOOD.replace("00Z", "00"), ":1: time: '2026-03-01T10:00:00' is not a time"),
        ("a.ndjson", GOOD.replace("2026", "2027"), "message 1: 2027-03-01T10:00:00.000000Z is in the future"),
        ("a.ndjson", GOOD + GOOD.replace("T10", "T09"), "message 2: 2026-03-01T09:00:00.000000Z is before the one"),
        ("a.ndjson", GOOD.replace("}", ',"qos":3}'), ":1: there is no QoS 3"),
        ("a.ndjson", GOOD.replace("}", ',"retain":"maybe"}'), ":1: retain: 'maybe' is neither true nor false"),
        ("a.ndjson", GOOD.replace("}", ',"encoding":"hex"}'), ":1: encoding: 'hex' is not base64"),
        ("a.ndjson", GOOD.replace("}", ',"encoding":"base64"}'), ":1: "),
        ("a.ndjson", GOOD.replace("}", ',"colour":1}'), ":1: has a field 'colour'; there are seq, time, "),
        ("a.ndjson", GOOD.replace("}", ',"properties":{"topic_alias":1}}'), "no message has a property 'topic_alias'"),
        (
            "a.ndjson",
            GOOD.replace("}", ',"properties":{"content_type":1}}'),
            ":1: properties: content type: 1 is not a string",
        ),
        ("a.ndjson", GOOD.replace("}", ',"properties":{"user_properties":[["a"]]}}'), "are no pairs of texts"),
        ("a.csv", HEAD + "2026-03-01T10:00:00Z,a\r\n", ":2: has not as many fields"),
        ("a.csv", HEAD + "2026-03-01T10:00:00Z,a,b,c\r\n", ":2: has not as many fields"),
        ("a.csv", HEAD.encode() + b"2026-03-01T10:00:00Z,\xff,x\r\n", "not CSV: "),
        ("a.sqlite", b"SQLite format 3\0" + b"x" * 1000, "file is not a database"),
    ],
)
def test_a_file_with_anything_wrong_in_it_is_refused_with_its_place(
    tmp_path: Path, name: str, content: str | bytes, problem: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(SourceError) as caught:
        check(path, Options(), NOW)
    assert problem in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_another_sqlite_file_is_not_ours(tmp_path: Path) -> None:
    make(tmp_path / "data", [event(1, 1)])
    with pytest.raises(SourceError, match=r"berm\.db: is a SQLite file, but not one that berm export has written"):
        check(tmp_path / "data" / "berm.db", Options(), NOW)
    path = exported(tmp_path / "other", [event(1, 1)], "sqlite")
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version=99")
    with pytest.raises(SourceError, match="newer Berm"):
        check(path, Options(), NOW)


def test_files_of_others_need_topic_payload_and_time_only(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("\ufefftopic,payload\na,1\nb,2\n")
    imported(path, tmp_path / "new", Options(now=True))
    assert without_seqs(contents(tmp_path / "new")) == [
        (NOW, "a", b"1", 0, False, "", b"", 0),
        (NOW, "b", b"2", 0, False, "", b"", 0),
    ]


def test_more_messages_than_a_file_has_cannot_be_skipped(tmp_path: Path) -> None:
    path = exported(tmp_path, awkward(), "ndjson")
    with pytest.raises(SourceError, match=rf"has {len(PAYLOADS) + 2} messages; 99 can't be skipped"):
        check(path, Options(skip=99), NOW)

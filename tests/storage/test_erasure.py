"""What erasure takes, what it leaves byte by byte, and what an interruption leaves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from random import Random

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zstandard import ZstdDecompressor, ZstdError

from broker.mqtt.topic import compile_filters
from storage.erasure import ERASURES, LOOK, PAUSE, Eraser, Matcher, Request, ask, count, mark
from storage.interface import (
    META,
    RETAINED,
    SESSIONS,
    STATE,
    SUBSCRIPTIONS,
    WILLS,
    Event,
    Row,
    StorageError,
    Table,
)
from storage.retention import Keeper, Retention
from storage.sealer import Policy, Sealer
from storage.segment_format import BLOCK_HEADER_BYTES, BLOCK_MAGIC
from storage.sqlite import SQLiteEngine
from tests.storage.contract import START, event, read_all
from tests.storage.test_sealer import FOR_EVER, Clock, settle, tail, topics

CLIENT = "sensor-of-mrs-miller"
SECRET = b"pulse of mrs miller"
EVERYTHING = Retention(compile=compile_filters)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of all that looks after segments."""
    made = Clock()
    for each in (Sealer, Keeper, Eraser):
        monkeypatch.setattr(each.__init__, "__defaults__", (made,))
    return made


Opened = Callable[[], SQLiteEngine]


@pytest.fixture
def opened(tmp_path: Path, clock: Clock) -> Iterator[Opened]:
    """Opens the engine, again and again; the one before is closed."""
    engines: list[SQLiteEngine] = []

    def open() -> SQLiteEngine:
        while engines:
            engines.pop().close()
        engines.append(SQLiteEngine(tmp_path, policy=Policy(bytes=20_000, age=FOR_EVER), retention=EVERYTHING))
        return engines[-1]

    yield open
    while engines:
        engines.pop().close()


def made(seq: int, random: Random) -> Event:
    """Telemetry of several clients, one of them the one that is to be forgotten."""
    client = random.choice((CLIENT, "another", "a third", "sensor-of-mr-miller"))
    content = (SECRET if client == CLIENT else b"reading of another") + random.randbytes(random.choice((8, 300, 6000)))
    topic = random.choice(("home/pulse", "home/steps", f"home/{'pulse' if client == CLIENT else 'other'}/{seq % 7}"))
    if random.random() < 0.1:
        letter = {"error": "x", "client": client, "topic": topic, "payload": content[:18].decode()}
        return Event(seq, START + seq, "$dead/mean", orjson.dumps(letter), 1, False, "processor/mean", b"", 0, 2)
    properties = b"\x26\x00\x04name\x00\x0b" + (b"mrs miller!" if client == CLIENT else b"anybody els")
    return Event(seq, START + seq, topic, content, 1, False, client, properties, 0, 2)


def is_meant(each: Event) -> bool:
    return each.client == CLIENT or (each.topic == "$dead/mean" and orjson.loads(each.payload)["client"] == CLIENT)


def state() -> dict[Table, dict[Row, Row | None]]:
    return {
        RETAINED: {
            ("home/pulse",): (3, START, SECRET, 1, CLIENT, b"", 0),
            ("home/steps",): (4, START, b"reading of another", 1, "another", b"", 0),
        },
        SESSIONS: {
            (CLIENT,): (5, 100, 0, START, 3, b"", b"", b"", "mrs miller!"),
            ("another",): (5, 100, 0, START, 3, b"", b"", b"", ""),
        },
        SUBSCRIPTIONS: {(CLIENT, "home/#"): (1, 0, 0), ("another", "home/#"): (1, 0, 0)},
        WILLS: {
            (CLIENT,): (0, 0, "gone", SECRET, 1, 0, b""),
            ("another",): (0, 0, "gone", b"reading of another", 1, 0, b""),
        },
        STATE: {
            ("mean", 1, CLIENT): (SECRET,),
            ("mean", 1, "another"): (b"reading of another",),
        },
    }


def fill(engine: SQLiteEngine, number: int, random: Random) -> None:
    last = engine.last()
    seq = last + 1
    while seq <= last + number:
        size = random.randint(1, 8)
        engine.commit([made(each, random) for each in range(seq, seq + size)], {}, True)
        seq += size
        settle(engine)


def bytes_of(directory: Path) -> bytes:
    """All that is in a directory, and what can be decompressed of it."""
    found: list[bytes] = []
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            found.append(data)
            at = data.find(BLOCK_MAGIC)
            while at >= 0:
                for start in (
                    at + BLOCK_HEADER_BYTES,
                    at + BLOCK_HEADER_BYTES + int.from_bytes(data[at + 40 : at + 44], "little"),
                ):
                    try:
                        found.append(ZstdDecompressor().decompressobj().decompress(data[start:]))
                    except ZstdError:
                        continue
                at = data.find(BLOCK_MAGIC, at + 1)
    return b"\0".join(found)


def erase(engine: SQLiteEngine, clock: Clock, request: Request) -> dict[str, object]:
    """Ask, and wait until it is done; its report."""
    ask(engine.path.parent, request)
    clock.now += LOOK
    settle(engine)
    report: dict[str, object] = orjson.loads((engine.path.parent / ERASURES / f"{request.id}.json").read_bytes())
    return report


def request(*, clients: tuple[str, ...] = (), topics: tuple[str, ...] = ()) -> Request:
    return Request("20260301T100000.000000Z", clients, topics, "ticket 7")


@pytest.mark.parametrize("seed", range(3))
def test_nothing_of_a_client_is_left_in_any_byte_and_everything_else_is(
    opened: Opened, clock: Clock, tmp_path: Path, seed: int
) -> None:
    random = Random(seed)
    engine = opened()
    engine.commit([], state(), True)
    fill(engine, 400, random)
    before = read_all(engine)
    assert len([*tmp_path.glob("segments/*")]) > 3
    assert SECRET in bytes_of(tmp_path)
    assert CLIENT.encode() in bytes_of(tmp_path)
    report = erase(engine, clock, request(clients=(CLIENT,)))
    everything = bytes_of(tmp_path)
    assert everything.count(SECRET) == 0
    assert everything.count(CLIENT.encode()) == 0
    assert everything.count(b"mrs miller!") == 0
    kept = [each for each in before if not is_meant(each)]
    assert read_all(engine) == kept
    for table, rows in state().items():
        wanted = {key + values for key, values in rows.items() if values and CLIENT not in key + values}
        assert {*engine.rows(table)} == wanted
    counts = report["rows"]
    assert isinstance(counts, dict)
    assert counts["sessions"] == counts["retained"] == counts["wills"] == counts["subscriptions"] == 1
    assert counts["processor_state"] == 1
    assert counts.get("tail", 0) + report["events_in_segments"] == len(before) - len(kept)
    assert report["clients_sha256"] == [sha256(CLIENT.encode()).hexdigest()]
    assert report["reference"] == "ticket 7"
    assert not [*tmp_path.glob(f"{ERASURES}/*.request")]
    assert not {"erasing", "erasure"} & {str(row[0]) for row in engine.rows(META)}
    engine = opened()
    assert read_all(engine) == kept
    fill(engine, 50, random)
    assert read_all(engine)[: len(kept)] == kept


def test_all_of_a_topic_goes_and_it_is_forgotten_that_there_was_one(
    opened: Opened, clock: Clock, tmp_path: Path
) -> None:
    engine = opened()
    engine.commit([], state(), True)
    fill(engine, 300, Random(3))
    before = read_all(engine)
    erase(engine, clock, request(topics=("home/pulse/#",)))
    kept = [
        each
        for each in before
        if not each.topic.startswith("home/pulse")
        and not (each.topic == "$dead/mean" and orjson.loads(each.payload)["topic"].startswith("home/pulse"))
    ]
    assert read_all(engine) == kept
    assert b"home/pulse" not in bytes_of(tmp_path)
    assert not [topic for topic in topics(engine) if topic.startswith("home/pulse")]
    assert [row[0] for row in engine.rows(RETAINED)] == ["home/steps"]


def test_what_comes_after_it_has_begun_is_not_what_was_meant(opened: Opened, clock: Clock) -> None:
    engine = opened()
    fill(engine, 40, Random(4))
    asked: list[Request] = []

    def prepare(asked_for: Request, matcher: Matcher) -> None:
        assert matcher.clients == {CLIENT}
        asked.append(asked_for)

    assert engine.eraser is not None
    engine.eraser.prepare = prepare
    ask(engine.path.parent, request(clients=(CLIENT,)))
    clock.now += LOOK
    for _ in range(20):
        engine.upkeep()
    assert len(asked) == 1
    assert any(map(is_meant, read_all(engine))), "the node has not said that it is ready"
    last = engine.last()
    later = Event(last + 1, START + last + 1, "home/pulse", b"a new beginning", 1, False, CLIENT, b"", 0, 2)
    engine.commit([later], {META: {("erasing",): (mark(asked[0], last),)}}, True)
    settle(engine)
    assert [each for each in read_all(engine) if is_meant(each)] == [later]


def test_two_requests_are_done_one_after_the_other(opened: Opened, clock: Clock, tmp_path: Path) -> None:
    engine = opened()
    fill(engine, 100, Random(5))
    ask(tmp_path, Request("1", (CLIENT,), (), ""))
    ask(tmp_path, Request("2", ("another",), (), ""))
    for _ in range(3):
        clock.now += LOOK
        settle(engine)
    assert sorted(path.name for path in (tmp_path / ERASURES).iterdir()) == ["1.json", "2.json"]
    assert not {CLIENT, "another"} & {each.client for each in read_all(engine)}


def test_of_what_it_does_not_concern_no_file_is_touched(opened: Opened, clock: Clock, tmp_path: Path) -> None:
    engine = opened()
    fill(engine, 200, Random(6))
    inodes = {path.name: path.stat().st_ino for path in tmp_path.glob("segments/*")}
    report = erase(engine, clock, request(clients=("nobody",), topics=("no/such/topic",)))
    assert report["events_in_segments"] == 0
    assert report["rows"] == {}
    assert {path.name: path.stat().st_ino for path in tmp_path.glob("segments/*.segment")} == inodes


def test_a_segment_of_nothing_else_is_removed(opened: Opened, clock: Clock, tmp_path: Path) -> None:
    engine = opened()
    for seq in range(1, 400):
        engine.commit([event(seq, "only/this", payload=bytes(100))], {}, True)
    settle(engine)
    assert [*tmp_path.glob("segments/*")]
    erase(engine, clock, request(topics=("only/#",)))
    assert not [*tmp_path.glob("segments/*")]
    assert read_all(engine) == []
    assert tail(engine) == []
    engine.commit([event(400)], {}, True)
    assert [each.seq for each in read_all(engine)] == [400]


def test_a_full_disk_puts_it_off_and_it_goes_on_later(
    opened: Opened, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = opened()
    fill(engine, 200, Random(7))
    kept = [each for each in read_all(engine) if not is_meant(each)]

    def full(*_: object) -> None:
        raise StorageError("no room")

    with monkeypatch.context() as patched:
        patched.setattr("storage.rewrite.Sealing", full)
        ask(tmp_path, request(clients=(CLIENT,)))
        clock.now += LOOK
        settle(engine)
        assert [*tmp_path.glob("erasures/*.request")]
        assert "no room" in caplog.text
        fill(engine, 100, Random(70))
    clock.now += PAUSE
    settle(engine)
    assert not [*tmp_path.glob("erasures/*.request")]
    assert [each for each in read_all(engine) if each.seq <= kept[-1].seq] == kept


def test_what_is_no_request_is_said_so_and_does_not_stop_the_node(
    opened: Opened, clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = opened()
    (tmp_path / ERASURES).mkdir()
    (tmp_path / ERASURES / "1.request").write_bytes(b"{}")
    clock.now += LOOK
    settle(engine)
    assert "is no request; remove it" in caplog.text
    assert caplog.records[-1].levelno == logging.ERROR
    fill(engine, 50, Random(1))


def test_how_much_there_is_can_be_counted_beforehand(opened: Opened, clock: Clock) -> None:
    engine = opened()
    engine.commit([], state(), True)
    fill(engine, 200, Random(8))
    found = count(engine.rows, read_all(engine), Matcher(request(clients=(CLIENT,)), compile_filters))
    report = erase(engine, clock, request(clients=(CLIENT,)))
    rows = report["rows"]
    assert isinstance(rows, dict)
    assert found["events"] == rows.get("tail", 0) + report["events_in_segments"]
    assert {name: number for name, number in found.items() if name != "events"} == {
        name: number for name, number in rows.items() if name != "tail"
    }


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(0, 400))
def test_whatever_step_it_is_interrupted_at_the_next_run_ends_it(
    tmp_path_factory: pytest.TempPathFactory, seed: int, steps: int
) -> None:
    directory = tmp_path_factory.mktemp("interrupted")
    random = Random(seed)
    policy = Policy(bytes=20_000, age=FOR_EVER)
    engine = SQLiteEngine(directory, policy=policy, retention=EVERYTHING)
    engine.commit([], state(), True)
    fill(engine, 150, random)
    before = read_all(engine)
    ask(directory, request(clients=(CLIENT,)))
    engine.eraser._next_look = 0  # type: ignore[union-attr]
    for _ in range(steps):
        if not engine.upkeep():
            break
    engine.close()
    engine = SQLiteEngine(directory, policy=policy, retention=EVERYTHING)
    settle(engine)
    report = orjson.loads(next(directory.glob("erasures/*.json")).read_bytes())
    kept = [each for each in before if not is_meant(each)]
    assert read_all(engine) == kept
    assert report["rows"].get("tail", 0) + report["events_in_segments"] == len(before) - len(kept)
    everything = bytes_of(directory)
    assert SECRET not in everything
    assert CLIENT.encode() not in everything
    engine.close()


def test_pages_that_had_been_set_free_before_hold_nothing_of_it(
    opened: Opened, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.sealer._SPARE", 1000)  # free pages stay in the database
    engine = opened()
    for seq in range(1, 200):
        payload = SECRET + Random(seq).randbytes(3000)
        engine.commit([Event(seq, START + seq, "home/pulse", payload, 1, False, CLIENT, b"", 0, 2)], {}, True)
    settle(engine)
    assert engine._writer.execute("PRAGMA freelist_count").fetchone()[0] > 100
    assert SECRET in engine.path.read_bytes() + engine.path.with_name("berm.db-wal").read_bytes()
    erase(engine, clock, request(clients=(CLIENT,)))
    assert SECRET not in bytes_of(tmp_path)
    assert CLIENT.encode() not in bytes_of(tmp_path)
    assert engine._writer.execute("SELECT name FROM sqlite_schema WHERE name LIKE 'erasing%'").fetchall() == []
    assert engine._writer.execute("PRAGMA secure_delete").fetchone() == (2,)


@pytest.mark.parametrize("seed", [97, 13])
def test_copies_that_sqlite_leaves_in_the_gaps_of_pages_go_as_well(tmp_path: Path, clock: Clock, seed: int) -> None:
    random = Random(seed)
    policy = Policy(bytes=random.choice((5_000, 20_000, 100_000, 0)), age=FOR_EVER)
    engine = SQLiteEngine(tmp_path, policy=policy, retention=EVERYTHING)
    engine.commit([], state(), True)
    for number in range(60):
        _churn(engine, number, random)
    fill(engine, random.choice((50, 400)), random)
    erase(engine, clock, request(clients=(CLIENT,)))
    everything = bytes_of(tmp_path)
    assert not [each for each in (SECRET, CLIENT.encode(), b"mrs miller!") if each in everything]
    engine.close()


def _churn(engine: SQLiteEngine, number: int, random: Random) -> None:
    """Change a retained message and a session, or remove them."""
    of_client = number % 3 > 0
    payload = (SECRET if of_client else b"o") * random.randrange(1, 60)
    retained: Row = (number, START, payload, 1, CLIENT if of_client else "another", b"", 0)
    topic: Row = (f"home/x{random.randrange(40)}",)
    kept = random.random() < 0.7
    name: Row = (f"c{random.randrange(30)}",)
    session: Row = (5, 100, 0, START, 3, bytes(random.randrange(300)), b"", b"", "")
    rows: dict[Table, dict[Row, Row | None]] = {
        RETAINED: {topic: retained if kept else None},
        SESSIONS: {name: session if random.random() < 0.7 else None},
    }
    engine.commit([], rows, True)


def test_a_part_that_was_to_be_sealed_may_be_erased_as_a_whole(opened: Opened, clock: Clock, tmp_path: Path) -> None:
    engine = opened()
    for seq in range(1, 150):  # more than a part, and too little behind it for the part to be sealed
        engine.commit([event(seq, "only/this", payload=bytes(100))], {}, True)
    assert engine._sealer._parts
    ask(tmp_path, request(topics=("only/#",)))
    clock.now += LOOK
    settle(engine)
    assert read_all(engine) == []
    for seq in range(150, 600):
        engine.commit([event(seq, "another", payload=bytes(100))], {}, True)
    settle(engine)
    assert len([*tmp_path.glob("segments/*.segment")]) >= 2, "sealing goes on"
    assert [each.seq for each in read_all(engine)] == [*range(150, 600)]

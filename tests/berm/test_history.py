"""A node inside a program: how it is started, and how its log is read, queried and followed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import berm
from berm.history import BATCH
from broker.mqtt.errors import ProtocolError
from storage.interface import FSYNC, MEMORY, Event, StorageError
from storage.sealer import Policy
from storage.sqlite import SQLiteEngine
from tests.berm.helpers import Client
from tests.berm.logs import PAYLOADS, START, event, make

OPTIONS = ("mqtt.port=0", "storage.reserve_bytes=0")


def node(directory: Path, *options: str) -> berm.Node:
    return berm.Node(berm.load(None, [*OPTIONS, f"storage.path={directory}", *options]))


def put(running: berm.Node, topic: str, payload: bytes, durability: int = FSYNC) -> None:
    """Have an event in the log, as if a client had published it."""
    running._log.append(START, topic, payload, 1, False, "dev", b"", 0, durability)
    running._log.flush()


async def committed(running: berm.Node) -> None:
    """Wait until all that is in the log can be read."""
    log = running._log
    log.flush()
    while log.committed < log.last:  # noqa: ASYNC110 - a commit or two
        await asyncio.sleep(0.001)


async def seqs(events: AsyncIterator[Event]) -> list[int]:
    return [event.seq async for event in events]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A log of 3000 events, a minute apart, partly sealed."""
    directory = tmp_path / "data"
    events = [event(n, n, f"plant/{n % 3}", PAYLOADS[n % len(PAYLOADS)], "ab"[n % 2]) for n in range(1, 3001)]
    make(directory, events, policy=Policy(bytes=1, age=1 << 62))
    assert list((directory / "segments").iterdir())
    return directory


async def test_everything_comes_in_order(data: Path) -> None:
    async with node(data) as running:
        assert await seqs(running.log.read()) == list(range(1, 3001))
        batches = [batch async for batch in running.log.read_batches()]
        assert [event.seq for batch in batches for event in batch] == list(range(1, 3001))
        assert len(batches) < 30


async def test_filters_times_client_and_limit_narrow_it_down(data: Path) -> None:
    at = datetime.fromtimestamp(START / 1e6, UTC)
    async with node(data) as running:
        log = running.log
        assert await seqs(log.read("plant/1", limit=3)) == [1, 4, 7]
        assert await seqs(log.read(("plant/1", "plant/2"), limit=4)) == [1, 2, 4, 5]
        assert await seqs(log.read(client="a", from_seq=2995)) == [2996, 2998, 3000]
        since, until = at + timedelta(minutes=10), at + timedelta(minutes=13)
        assert await seqs(log.read(since=since, until=until)) == [10, 11, 12]
        assert await seqs(log.read(since="2026-03-01T10:10Z", until="2026-03-01T10:13Z")) == [10, 11, 12]
        assert await seqs(log.read("nowhere/#")) == []
        assert await seqs(log.read(from_seq=3001)) == []


async def test_what_is_live_goes_on_without_a_seam(data: Path) -> None:
    async with node(data) as running:
        read = running.log.read("plant/#", from_seq=2999, live=True)
        assert [(await anext(read)).seq for _ in range(2)] == [2999, 3000]
        waiting = asyncio.ensure_future(anext(read))
        await asyncio.sleep(0)
        assert not waiting.done()
        total = 3 * BATCH
        for n in range(total):
            put(running, "plant/live" if n % 2 else "office", b"%d" % n)
        found = [await waiting, *[await anext(read) for _ in range(total // 2 - 1)]]
        assert [event.payload for event in found] == [b"%d" % n for n in range(1, total, 2)]
        await read.aclose()
        assert not running._log._waiting


async def test_a_reader_that_rests_misses_nothing_and_holds_little(tmp_path: Path) -> None:
    async with node(tmp_path / "data", "storage.memory_bytes=1_048_576") as running:
        read = running.log.read(live=True)
        put(running, "t", b"first")
        assert (await anext(read)).payload == b"first"
        total = 2000
        for n in range(total):
            put(running, "t", b"%6d" % n + b"x" * 2000)
            if n % 100 == 99:
                await committed(running)
        assert running._log.remembered > 1  # it has been left behind by what memory holds
        assert [int((await anext(read)).payload[:6]) for _ in range(total)] == list(range(total))


async def test_messages_that_are_kept_in_memory_only_are_read_too(tmp_path: Path) -> None:
    async with node(tmp_path / "data") as running:
        for n in range(6):
            put(running, *(("m/a", b"%d" % n, MEMORY) if n % 2 else ("a", b"%d" % n)))
        await committed(running)
        assert [event.payload async for event in running.log.read()] == [b"%d" % n for n in range(6)]
        second = [event async for event in running.log.read("m/#", limit=2)][1]
        assert [e.payload async for e in running.log.read(from_seq=second.seq)] == [b"3", b"4", b"5"]


def published(port: int) -> None:
    """A device publishes ten numbers."""
    with Client(port, "device") as device:
        device.publish("plant/a", *(b'{"v": %d}' % n for n in range(10)))


async def test_what_devices_publish_is_read_and_queried(tmp_path: Path) -> None:
    async with node(tmp_path / "data") as running:
        await asyncio.to_thread(published, running.port)
        sql = "SELECT topic, sum(payload ->> '$.v') FROM events GROUP BY topic"
        assert [row async for row in running.log.query(sql, filter="plant/#")] == [("plant/a", 45)]
        with pytest.raises(berm.QueryError, match="only one SELECT"):
            await anext(running.log.query("DELETE FROM events"))
        rows = running.log.query("SELECT seq FROM events")
        assert await anext(rows) == (1,)
        await rows.aclose()


async def test_a_range_that_is_not_there_is_told(data: Path) -> None:
    late = [event(n, n) for n in range(5000, 5010)]
    make(data.parent / "late", late)
    async with node(data.parent / "late") as running:
        log = running.log
        for seq, problem in (
            (10, "seq 10 is not kept any more: the log begins with 5000"),
            (1_000_000, "there is no seq 1000000 yet: the log ends with"),
        ):
            with pytest.raises(berm.RangeError, match=problem):
                await anext(log.read(from_seq=seq))
        with pytest.raises(berm.RangeError, match="in the future"):
            await anext(log.read(since="2999-01-01"))
        with pytest.raises(berm.RangeError, match=r"nothing before .* is kept: the log begins at"):
            await anext(log.read(until="2026-03-01T10:00Z"))
        with pytest.raises(ValueError, match="what is live has no end"):
            await anext(log.read(until="now", live=True))
        with pytest.raises(ValueError, match="'soon' is not a time"):
            await anext(log.read(since="soon"))
        with pytest.raises(ProtocolError):
            await anext(log.read("a/#/b"))


async def test_a_disk_that_cannot_be_read_is_told_to_whoever_reads(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with node(data) as running:
        read = running.log.read()
        await anext(read)

        def broken(*_: object) -> None:
            raise StorageError("reading: no")

        monkeypatch.setattr(SQLiteEngine, "read", broken)
        with pytest.raises(StorageError, match="reading: no"):
            await seqs(read)
        monkeypatch.undo()


async def test_others_have_their_turn_while_everything_is_read(data: Path) -> None:
    async with node(data) as running:
        put(running, "t", b"x")
        await committed(running)
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(others())
        assert len(await seqs(running.log.read())) == 3001
        task.cancel()
        assert turns > 3


async def test_a_node_that_cannot_listen_gives_its_directory_back(tmp_path: Path) -> None:
    async with node(tmp_path / "a") as first:
        with pytest.raises(berm.StartError):
            async with node(tmp_path / "b", f"mqtt.port={first.port}"):
                raise AssertionError
    async with node(tmp_path / "b") as second:
        assert second.port


async def test_times_may_be_spans_and_the_log_says_where_it_ends(tmp_path: Path) -> None:
    async with node(tmp_path / "data") as running:
        put(running, "t", b"x")
        await committed(running)
        assert running.log.last_seq == 1
        assert await seqs(running.log.read(since=timedelta(days=10_000))) == [1]
        assert await seqs(running.log.read(since=timedelta(seconds=1))) == []
        assert await seqs(running.log.read(until=timedelta(seconds=1))) == [1]


def test_what_is_offered_is_there() -> None:
    assert all(getattr(berm, name) for name in berm.__all__)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        berm.nothing_like_it  # noqa: B018 - that is what is tested

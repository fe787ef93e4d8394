"""What was sealed is read again, as from a list."""

from __future__ import annotations

import os
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bench.segments import telemetry
from storage.interface import FSYNC, OS, Accepts, Event
from storage.segment import SCAN_BLOCKS, Recent, Segment, verify
from storage.segment_writer import Shape, write_segment
from tests.storage.contract import event

HIGHEST = 2**63 - 1
SMALL = Shape(level=1, stripe_events=7, block_events=3)
"""Many stripes and blocks of a few events."""

TEXTS = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(("t" * 65535, "é" * 32767, ""))
TOPICS = st.sampled_from(("a", "b", "plant/line1", "plant/ü")) | TEXTS
BYTES = st.binary(max_size=40) | st.sampled_from((b"", bytes(70_000), os.urandom(70_000)))
NUMBERS = st.integers(0, HIGHEST)


@st.composite
def any_events(draw: st.DrawFn) -> list[Event]:
    """Events with whatever the fields of one may be."""
    seqs = sorted(draw(st.sets(st.integers(1, 60) | st.integers(1, HIGHEST), min_size=1, max_size=40)))
    return [
        Event(
            seq,
            draw(NUMBERS),
            draw(TOPICS),
            draw(BYTES),
            draw(st.integers(0, 2)),
            draw(st.booleans()),
            draw(TEXTS),
            draw(BYTES),
            draw(st.just(0) | NUMBERS),
            draw(st.sampled_from((OS, FSYNC))),
        )
        for seq in seqs
    ]


def read_all(segment: Segment, limit: int = 500, accepts: Accepts | None = None) -> list[Event]:
    """Everything that is accepted, going on from wherever a read ends."""
    found: list[Event] = []
    position, last = 0, segment.info.header.last
    while position < last:
        events, reached = segment.read(position, last, limit, accepts)
        assert position < reached <= last
        assert len(events) <= limit
        found += events
        position = reached
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.segment"


@pytest.fixture(scope="module")
def plant() -> list[Event]:
    """Some thousand events of fifty devices; a seq in ten is missing."""
    return [event for event in islice(telemetry(50), 6000) if event.seq % 10]


@pytest.fixture(scope="module")
def sealed(plant: list[Event], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Segment]:
    """The same as a segment of several stripes."""
    path = tmp_path_factory.mktemp("sealed") / "plant.segment"
    write_segment(path, plant, Shape(stripe_events=1000, block_events=64))
    with Segment.open(path, _no_damage) as segment:
        yield segment


def _no_damage(damage: object) -> None:
    raise AssertionError(damage)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(any_events(), st.sampled_from((SMALL, Shape())), st.integers(1, 50))
@example([event(HIGHEST, "a", b"", ts=HIGHEST)], SMALL, 1)
@example([event(1, "a", b"", ts=HIGHEST), event(HIGHEST, "a", b"", ts=0)], SMALL, 1)
def test_events_come_back_as_they_were(events: list[Event], shape: Shape, limit: int) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "any.segment"
        info = write_segment(path, events, shape)
        header = info.header
        assert (header.first, header.last, header.events) == (events[0].seq, events[-1].seq, len(events))
        assert (header.first_ts, header.last_ts) == (events[0].ts, events[-1].ts)
        assert header.content == sum(len(event.payload) + len(event.properties) for event in events)
        assert info.size == path.stat().st_size
        with Segment.open(path, _no_damage) as segment:
            assert segment.info == info
            assert read_all(segment, limit) == events
            assert segment.get([event.seq for event in reversed(events)]) == events
        assert verify(path) == []


@settings(max_examples=150, deadline=None)
@given(
    seqs=st.sets(st.integers(1, 120), min_size=1),
    topics=st.lists(st.sampled_from("abcdef"), min_size=120, max_size=120),
    reads=st.lists(
        st.tuples(
            st.integers(0, 130),
            st.integers(0, 130),
            st.integers(1, 40),
            st.none() | st.sampled_from(("", "a", "bc", "abcdef", "x")),
            st.integers(1, 400),
        ),
        max_size=12,
    ),
    scan=st.sampled_from((4, SCAN_BLOCKS)),
)
def test_reads_are_those_of_a_list(
    seqs: set[int], topics: list[str], reads: list[tuple[int, int, int, str | None, int]], scan: int
) -> None:
    events = [event(seq, topics[seq - 1], bytes(seq % 50)) for seq in sorted(seqs)]
    filters: dict[str | None, Accepts | None] = {
        names: names.__contains__ for *_, names, _ in reads if names is not None
    }
    with (
        TemporaryDirectory() as directory,
        patch("storage.segment.SCAN_BLOCKS", scan),
        patch("storage.segment.FILTERS", 2),
    ):
        path = Path(directory) / "list.segment"
        write_segment(path, events, SMALL)
        with Segment.open(path, _no_damage) as segment:
            for after, upto, limit, names, most in reads:
                if after >= upto:
                    continue
                expected = [
                    each for each in events if after < each.seq <= upto and (names is None or each.topic in names)
                ]
                found, reached = segment.read(after, upto, limit, filters.get(names), most)
                assert after < reached <= upto
                assert found == [each for each in expected if each.seq <= reached]
                assert len(found) <= limit
                assert sum(map(_weight, found[:-1])) < most
                if len(found) == limit or sum(map(_weight, found)) >= most:
                    assert reached == found[-1].seq
                else:
                    assert reached == upto or scan == 4


def _weight(event: Event) -> int:
    return len(event.topic) + len(event.client) + len(event.properties) + len(event.payload)


def test_a_filter_gets_its_topics_in_the_order_of_the_log(sealed: Segment, plant: list[Event]) -> None:
    filters: Sequence[Callable[[str], bool]] = (
        plant[3].topic.__eq__,
        lambda topic: topic.startswith("plant/hall3/"),
        lambda topic: not topic.startswith("plant/hall3/"),
        lambda topic: True,
        lambda topic: False,
    )
    for accepts in filters:
        assert read_all(sealed, 77, accepts) == [event for event in plant if accepts(event.topic)]


def test_a_reader_of_one_topic_opens_no_block_without_it(sealed: Segment, plant: list[Event]) -> None:
    topic = plant[3].topic
    opened: list[set[str]] = []
    block = type(sealed._file).block

    def counted(*arguments: object) -> object:
        found = block(*arguments)  # type: ignore[arg-type] # whatever it is called with
        opened.append(set(found.topics))
        return found

    with patch.object(type(sealed._file), "block", counted):
        assert read_all(sealed, 500, topic.__eq__)
        assert opened
        assert all(topic in topics for topics in opened)
        assert len(opened) * 5 < sealed.info.header.blocks
        opened.clear()
        assert read_all(sealed, 500, "plant/none".__eq__) == []
        assert opened == []


def test_a_stripe_is_opened_once_however_few_events_a_read_may_bring(sealed: Segment) -> None:
    with patch.object(type(sealed._file), "block", autospec=True, side_effect=type(sealed._file).block) as block:
        read_all(sealed, 10)
    assert block.call_count == sealed.info.header.blocks


def test_readers_at_a_few_places_open_each_stripe_once(sealed: Segment, plant: list[Event]) -> None:
    last = sealed.info.header.last
    for most, wanted in ((3, True), (2, False)):
        with Segment.open(sealed.info.path, _no_damage, Recent(most)) as segment:
            positions = [0, 2000, 4000]
            block = type(segment._file).block
            with patch.object(type(segment._file), "block", autospec=True, side_effect=block) as opened:
                while min(positions) < last:
                    for reader, position in enumerate(positions):
                        _, positions[reader] = segment.read(position, last, 100)
            # the second and the third reader start where the first will come by much later
            assert (opened.call_count <= 2 * segment.info.header.blocks) == wanted
            assert len(segment._recent._stripes) == most
        assert not segment._recent._stripes


def test_events_are_found_by_their_seqs(sealed: Segment, plant: list[Event]) -> None:
    wanted = [5999, 1, 2345, 2346, 10, 6001, 0, HIGHEST, 777]
    assert sealed.get(wanted) == [event for event in plant if event.seq in wanted]
    assert sealed.get([]) == []


@pytest.mark.parametrize("count", [1, 5, 100, 10_000])
def test_the_last_events_of_a_topic_are_found(sealed: Segment, plant: list[Event], count: int) -> None:
    topic = plant[17].topic
    assert sealed.last_of(topic, count) == [event for event in plant if event.topic == topic][-count:]
    assert sealed.last_of("plant/none", count) == []


def test_the_events_of_a_client_are_found(sealed: Segment, plant: list[Event]) -> None:
    client = plant[20].client
    assert list(sealed.of_client(client)) == [event for event in plant if event.client == client]
    assert list(sealed.of_client("nobody")) == []


def test_a_time_leads_to_the_first_event_since(sealed: Segment, plant: list[Event]) -> None:
    times = [plant[0].ts - 1, plant[-1].ts, plant[-1].ts + 1]
    for each in plant[::500]:
        times += [each.ts - 1, each.ts, each.ts + 1]
    for ts in times:
        since = [event.seq for event in plant if event.ts >= ts]
        assert sealed.seq_at(ts) == (since[0] if since else plant[-1].seq + 1)


def test_topics_and_clients_are_counted(sealed: Segment, plant: list[Event]) -> None:
    assert sealed.topics == Counter(event.topic for event in plant)
    assert sealed.clients == Counter(event.client for event in plant)


def test_a_segment_that_was_released_is_read_as_before(sealed: Segment, plant: list[Event]) -> None:
    sealed.release()
    assert read_all(sealed) == plant


def test_one_large_event_is_read_in_one_piece(path: Path) -> None:
    events = [event(1, "a", b"x"), event(2, "a", os.urandom(9 << 20)), event(3, "a", b"y")]
    write_segment(path, events)
    with Segment.open(path, _no_damage) as segment:
        assert segment.read(0, 3, 500, None, 4 << 20) == (events[:2], 2)
        assert segment.read(2, 3, 500, None, 4 << 20) == (events[2:], 3)


def test_memory_does_not_grow_with_the_segment(tmp_path: Path) -> None:
    peaks = []
    for stripes in (4, 16):
        path = tmp_path / f"{stripes}.segment"
        write_segment(path, islice(telemetry(100), stripes * 2000), Shape(3, 2000, 200))
        tracemalloc.start()
        with Segment.open(path, _no_damage) as segment:
            count = position = 0
            while position < segment.info.header.last:
                events, position = segment.read(position, segment.info.header.last, 500)
                count += len(events)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count == stripes * 2000
    assert peaks[1] < peaks[0] * 1.15, "four times the events"


def test_telemetry_takes_at_most_30_bytes_an_event(path: Path) -> None:
    info = write_segment(path, islice(telemetry(), 50_000))
    assert 165 < info.header.content / info.header.events < 175
    assert info.size <= 30 * info.header.events

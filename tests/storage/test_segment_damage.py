"""Whatever happens to a segment's file: what is read is what was written, and what is missing is reported."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from unittest.mock import patch
from zlib import crc32

import pytest

from storage.datakey import DataKey
from storage.interface import Event, StorageError
from storage.segment import Damage, Segment, verify
from storage.segment_file import SegmentDamaged
from storage.segment_format import BLOCK_HEADER_BYTES, HEADER_BYTES, BlockHeader
from storage.segment_writer import Shape, write_segment
from tests.storage.contract import event
from tests.storage.test_segment import read_all

SMALL = Shape(level=9, stripe_events=9, block_events=3)
EVENTS = [event(seq, f"plant/line{seq % 4}", b'{"value":%d}' % (seq * 7919)) for seq in range(1, 30) if seq % 13]
LARGE = [event(seq, f"plant/line{seq % 40}", Random(seq).randbytes(60)) for seq in range(1, 4001) if seq % 13]
KEY = DataKey(3, Random(1).randbytes(32))


class Image:
    """The bytes of a segment, and a place to put changed ones."""

    def __init__(self, path: Path, events: list[Event], shape: Shape, key: DataKey | None) -> None:
        self.path = path
        self.events = events
        self.header = write_segment(path, events, shape, key).header
        self.data = path.read_bytes()

    def blocks(self) -> Iterator[tuple[int, BlockHeader]]:
        """Where each block begins, and its header."""
        place = HEADER_BYTES
        while place < self.header.index_at:
            header = BlockHeader.unpack(self.data[place : place + BLOCK_HEADER_BYTES])
            yield place, header
            place += header.size

    def changed(self, *changes: tuple[int, bytes]) -> bytes:
        """With these bytes at these places."""
        data = bytearray(self.data)
        for place, new in changes:
            assert data[place : place + len(new)] != new
            data[place : place + len(new)] = new
        return bytes(data)

    def flipped(self, *places: int) -> bytes:
        """With all bits of the bytes at these places turned."""
        return self.changed(*((place, bytes([self.data[place] ^ 0xFF])) for place in places))

    def survives(self, data: bytes) -> tuple[list[Event], list[Damage]]:
        """What is read of these bytes, and what is reported: it adds up, and nothing is read that was not written."""
        self.path.unlink()
        self.path.write_bytes(data)
        reported: list[Damage] = []
        with Segment.open(self.path, reported.append, keys=keys) as segment:
            found = read_all(segment)
            read_all(segment, 3)
            lost = _without(self.events, found)
            assert _without(found, self.events) == []
            assert found == sorted(found, key=lambda event: event.seq)
            assert sum(damage.events for damage in reported) == len(lost)
            ranges = [each for damage in reported for each in damage.ranges]
            assert all(any(first <= event.seq <= last for first, last in ranges) for event in lost)
            assert not any(first <= event.seq <= last for first, last in ranges for event in found)
            assert segment.get([event.seq for event in self.events]) == found
            topic = self.events[0].topic
            of_topic = [event for event in found if event.topic == topic]
            assert read_all(segment, 500, topic.__eq__) == of_topic
            assert segment.last_of(topic, 2) == of_topic[-2:]
            assert list(segment.of_client("press-7")) == found
        assert sorted(map(str, verify(self.path, keys))) == sorted(map(str, reported))
        return found, reported


def keys(number: int) -> DataKey | None:
    """The one key that there is."""
    return KEY if number == KEY.number else None


def _without(events: list[Event], others: list[Event]) -> list[Event]:
    by_seq = {event.seq: event for event in others}
    return [event for event in events if by_seq.get(event.seq) != event]


@pytest.fixture(params=[None, KEY], ids=["plain", "encrypted"])
def small(tmp_path: Path, request: pytest.FixtureRequest) -> Image:
    return Image(tmp_path / "small.segment", EVENTS, SMALL, request.param)


@pytest.fixture(params=[None, KEY], ids=["plain", "encrypted"])
def large(tmp_path: Path, request: pytest.FixtureRequest) -> Image:
    return Image(tmp_path / "large.segment", LARGE, Shape(3, 800, 64), request.param)


def test_a_changed_byte_costs_one_block_at_most_wherever_it_is(small: Image) -> None:
    random = Random(4)
    for place in range(len(small.data)):
        flipped = bytes([small.data[place] ^ random.randrange(1, 256)])
        found, reported = small.survives(small.changed((place, flipped)))
        assert len(reported) == 1, f"the byte at {place}"
        assert len(EVENTS) - len(found) <= 2 * SMALL.block_events


def test_a_changed_byte_in_a_larger_file_costs_one_block_at_most(large: Image) -> None:
    random = Random(5)
    for place in random.sample(range(len(large.data)), 60):
        found, reported = large.survives(large.flipped(place))
        assert len(reported) == 1, f"the byte at {place}"
        assert len(LARGE) - len(found) <= 2 * 64


def test_a_file_that_was_cut_off_serves_what_is_left(small: Image) -> None:
    served = []
    for size in range(HEADER_BYTES, len(small.data)):
        found, reported = small.survives(small.data[:size])
        assert reported
        served.append(len(found))
    assert served == sorted(served)
    assert served[0] == 0
    assert served[-1] == len(EVENTS)
    for size in range(HEADER_BYTES):
        small.path.write_bytes(small.data[:size])
        with pytest.raises(SegmentDamaged, match="is not a sealed segment"):
            Segment.open(small.path)


def test_what_was_appended_to_a_file_is_reported_and_changes_nothing(small: Image) -> None:
    found, reported = small.survives(small.data + b"more")
    assert found == EVENTS
    assert len(reported) == 2, "the length, and that there is no copy of the header at the end"


@pytest.mark.parametrize("size", [512, 4096])
def test_a_sector_of_zeros_costs_the_blocks_that_it_touches(large: Image, size: int) -> None:
    for place in range(0, len(large.data) - size, 29 * 512):
        touched = [header.events for at, header in large.blocks() if at < place + size and place < at + header.size]
        found, reported = large.survives(large.changed((place, bytes(size))))
        assert reported
        assert len(LARGE) - len(found) <= sum(touched)


def test_each_stripe_is_reported_once_with_all_that_it_lost(large: Image) -> None:
    _, (one, first), _, (other, second), *_ = (each for each in large.blocks() if each[1].stripe == 2)
    _, (damage,) = large.survives(large.flipped(one + 100, other + 5))
    assert damage.events == first.events + second.events
    assert damage.path == large.path
    assert damage.reason.startswith("block ")


def test_without_an_index_all_is_served(small: Image) -> None:
    found, (damage,) = small.survives(small.flipped(small.header.index_at + 70))
    assert found == EVENTS
    assert damage.events == 0
    assert "the index is damaged" in damage.reason


@pytest.mark.parametrize("offset", [0, 30, 100])
@pytest.mark.parametrize("which", [0, 1, 7, -2, -1])
def test_without_an_index_and_a_block_the_rest_is_served(small: Image, which: int, offset: int) -> None:
    place, header = list(small.blocks())[which]
    found, reported = small.survives(small.flipped(small.header.index_at, place + min(offset, header.size - 1)))
    assert len(found) == len(EVENTS) - header.events
    assert len(reported) == 1


def test_without_an_index_and_a_stripe_the_rest_is_served(small: Image) -> None:
    places = [place for place, header in small.blocks() if header.stripe == 1]
    found, (damage,) = small.survives(small.flipped(small.header.index_at, *places))
    assert len(found) == len(EVENTS) - 9
    assert damage.events == 9


def test_any_two_changed_bytes_cost_no_more_than_two_blocks(small: Image) -> None:
    random = Random(6)
    for _ in range(400):
        one, other = random.sample(range(HEADER_BYTES, len(small.data) - HEADER_BYTES), 2)
        found, _ = small.survives(small.flipped(one, other))
        assert len(EVENTS) - len(found) <= 4 * SMALL.block_events


def test_random_bytes_are_no_segment(tmp_path: Path) -> None:
    random = Random(7)
    path = tmp_path / "noise.segment"
    for size in (0, 1, HEADER_BYTES, 5000):
        for data in (random.randbytes(size), bytes(size)):
            path.write_bytes(data)
            with pytest.raises(SegmentDamaged, match=r"noise\.segment is not a sealed segment"):
                Segment.open(path)


def test_a_block_of_another_segment_is_not_taken_for_ones_own(large: Image, tmp_path: Path) -> None:
    """As a disk may give it back that has lost a write, and still has what was there before."""
    others = [event(each.seq, each.topic, Random(-each.seq).randbytes(60)) for each in LARGE]
    other = Image(tmp_path / "other.segment", others, Shape(3, 800, 64), KEY if large.header.key else None)
    place, header = next(
        mine
        for mine, theirs in zip(large.blocks(), other.blocks(), strict=True)
        if (mine[0], mine[1].size) == (theirs[0], theirs[1].size)
    )
    found, reported = large.survives(large.changed((place, other.data[place : place + header.size])))
    assert len(found) == len(LARGE) - header.events
    assert "another segment" in reported[0].reason


def test_a_segment_in_a_payload_is_not_taken_for_blocks(small: Image, tmp_path: Path) -> None:
    """Payloads that don't compress stand in the file as they are, and blocks are looked for among them."""
    noise, block = Random(8).randbytes(100_000), small.data[HEADER_BYTES : HEADER_BYTES + next(small.blocks())[1].size]
    outer = Image(tmp_path / "outer.segment", [event(1), event(2, payload=noise + block), event(3)], Shape(), None)
    assert block in outer.data
    found, reported = outer.survives(outer.flipped(outer.header.index_at, HEADER_BYTES))
    assert found == []
    assert [damage.events for damage in reported] == [3]


def test_a_bad_sector_costs_its_block_and_other_errors_only_the_read(large: Image) -> None:
    bad, header = list(large.blocks())[20]
    pread = os.pread

    def failing(code: int) -> Callable[[int, int, int], bytes]:
        def read(file: int, size: int, place: int) -> bytes:
            if place <= bad < place + size:
                raise OSError(code, os.strerror(code))
            return pread(file, min(size, 1000), place)  # short reads are allowed

        return read

    reported: list[Damage] = []
    with Segment.open(large.path, reported.append, keys=keys) as segment:
        with patch("os.pread", failing(errno.ENOMEM)), pytest.raises(StorageError, match=r"reading .*large.segment: "):
            read_all(segment)
        assert reported == []
        assert read_all(segment) == LARGE
    with Segment.open(large.path, reported.append, keys=keys) as segment, patch("os.pread", failing(errno.EIO)):
        assert len(read_all(segment)) == len(LARGE) - header.events
    assert [damage.events for damage in reported] == [header.events]
    assert "Input/output error" in reported[0].reason


def _with_start(image: Image, start: bytes) -> bytes:
    """Both headers begin like this, with sound checksums."""
    header = start + crc32(start).to_bytes(4, "little")
    header += image.data[len(header) : HEADER_BYTES - 4]
    header += crc32(header).to_bytes(4, "little")
    return header + image.data[HEADER_BYTES:-HEADER_BYTES] + header


def test_a_segment_of_a_newer_version_is_refused(small: Image) -> None:
    start = small.data[:8] + (2).to_bytes(2, "little") + (200).to_bytes(2, "little")
    small.path.write_bytes(_with_start(small, start))
    with pytest.raises(StorageError, match=r"written by a newer Berm \(segment format 2, this one knows 1\)") as raised:
        Segment.open(small.path)
    assert not isinstance(raised.value, SegmentDamaged), "it must not be set aside as if it were damaged"


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none\.segment: No such file"):
        Segment.open(tmp_path / "none.segment")
    with pytest.raises(SegmentDamaged, match="is not a sealed segment"):
        Segment.open(tmp_path)
    os.mkfifo(tmp_path / "pipe.segment")
    with pytest.raises(SegmentDamaged, match="is not a sealed segment"):
        Segment.open(tmp_path / "pipe.segment")


def test_opening_gives_the_file_back_when_it_is_refused(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    path = tmp_path / "noise.segment"
    path.write_bytes(b"noise")
    for _ in range(3):
        with pytest.raises(SegmentDamaged):
            Segment.open(path)
    assert os.listdir("/proc/self/fd") == before

"""The format is what docs/segments.md says: a decoder written from that page, with nothing of the store in it."""

from __future__ import annotations

import hmac
import struct
from itertools import islice
from pathlib import Path
from zlib import crc32

import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from bench.segments import telemetry
from storage import segment_format
from storage.datakey import DataKey
from storage.interface import OS, Event
from storage.segment_format import Columns, differences, numbers, strings
from storage.segment_writer import Shape, write_segment

# -- the decoder


class Head:
    """Columns, one after another."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        self.at += size
        assert self.at <= len(self.data)
        return self.data[self.at - size : self.at]

    def numbers(self) -> list[int]:
        n, w, base = struct.unpack("<IBq", self.take(13))
        planes = [self.take(n) for _ in range(w)]
        return [base + sum(plane[k] << 8 * j for j, plane in enumerate(planes)) for k in range(n)]

    def differences(self) -> list[int]:
        values: list[int] = list(struct.unpack("<q", self.take(8)))
        for difference in self.numbers():
            values.append(values[-1] + difference)
        return values

    def strings(self) -> list[str]:
        return [self.take(length).decode() for length in self.numbers()]


def decrypt(secret: bytes, header: tuple[bytes, bytes, bytes], block: bytes) -> bytes:
    """Head and body of a block of an encrypted file."""
    id, salt, check = header
    first = hmac.digest(secret, b"berm segment" + salt + b"\x01", "sha256")
    second = hmac.digest(secret, first + b"berm segment" + salt + b"\x02", "sha256")
    assert second[:12] == check
    return AESGCM(first).decrypt(id + block[12:16], block[64:], block[:56])


def decode(data: bytes, secret: bytes = b"") -> tuple[list[tuple[object, ...]], tuple[object, ...], Head]:
    """The events of a file, its header, and the columns of its index."""
    head = data[:128]
    assert head == data[-128:]
    assert head[:12] == b"BERM\r\n\x1a\n" + struct.pack("<HH", 1, 128)
    assert (crc32(head[:12]), crc32(head[:124])) == (
        *struct.unpack("<I", head[12:16]),
        *struct.unpack("<I", head[124:]),
    )
    header = struct.unpack("<QQqqQQQIIII8s16s12s", head[16:124])
    index_at, id = header[6], header[11]
    events: list[tuple[object, ...]] = []
    at, number = 128, 0
    while True:
        block = struct.unpack("<4s8sIIIQQIIIIII", data[at : at + 64])
        magic, its_id, its_number, _, count, first, last, head_size, head_raw, body_size, body_raw, crc, own = block
        assert (magic, its_id, own) == (b"BLK\x1a", id, crc32(data[at : at + 60]))
        stored = data[at + 64 : at + 64 + head_size + body_size]
        assert crc32(stored) == crc
        if secret:
            stored = decrypt(secret, header[11:], data[at : at + 64] + stored)
            body_size -= 16
        columns = Head(zstandard.decompress(stored[:head_size]))
        body = Head(zstandard.decompress(stored[head_size:]))
        assert (len(columns.data), len(body.data)) == (head_raw, body_raw)
        if at == index_at:
            assert its_number == 0xFFFFFFFF
            assert at + 64 + head_size + body_size + (16 if secret else 0) + 128 == len(data)
            return sorted(events), header, columns
        assert its_number == number
        at, number = at + 64 + head_size + body_size + (16 if secret else 0), number + 1
        topics, runs, clients = columns.strings(), columns.numbers(), columns.strings()
        names = [topic for topic, run in zip(topics, runs, strict=True) for _ in range(run)]
        seqs, times = columns.differences(), columns.differences()
        senders, flags, expiries = columns.numbers(), columns.numbers(), iter(columns.numbers())
        payloads = [body.take(size) for size in columns.numbers()]
        properties = [body.take(size) for size in columns.numbers()]
        assert len(names) == len(seqs) == count
        assert all(first <= seq <= last for seq in seqs)
        for k, (seq, ts, flag) in enumerate(zip(seqs, times, flags, strict=True)):
            expires = ts + next(expiries) if flag & 32 else 0
            rest = flag & 3, bool(flag & 4), clients[senders[k]], properties[k], expires, flag >> 3 & 3
            events.append((seq, ts, names[k], payloads[k], *rest))


# -- and what it finds


def _fields(event: Event) -> tuple[object, ...]:
    return tuple(getattr(event, name) for name in Event.__slots__)


@pytest.fixture(scope="module")
def events() -> list[Event]:
    """Telemetry, and in it some of everything that an event may have."""
    made = list(islice(telemetry(30), 2000))
    for event in made[::7]:
        event.properties = b"\x26\x00\x01a\x00\x01b"
        event.retain = True
    for event in made[::11]:
        event.expires = event.ts + 60_000_000
        event.qos = 2
    for event in made[::13]:
        event.durability = OS
        event.client = "ü"
        event.payload = b""
    return made


@pytest.fixture(scope="module")
def data(events: list[Event], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("format") / "plant.segment"
    write_segment(path, events, Shape(stripe_events=700, block_events=100))
    return path.read_bytes()


def test_a_decoder_written_from_the_page_reads_all_events(data: bytes, events: list[Event]) -> None:
    found, header, _ = decode(data)
    assert found == [_fields(event) for event in events]
    content = sum(len(event.payload) + len(event.properties) for event in events)
    assert header[:6] == (1, 2000, events[0].ts, events[-1].ts, 2000, content)
    assert header[10] == 0
    assert header[12:] == (bytes(16), bytes(12))


def test_a_decoder_written_from_the_page_reads_what_is_encrypted(events: list[Event], tmp_path: Path) -> None:
    path = tmp_path / "secret.segment"
    key = DataKey(7, bytes(range(32)))
    write_segment(path, events, Shape(stripe_events=700, block_events=100), key)
    found, header, index = decode(path.read_bytes(), key.secret)
    assert found == [_fields(event) for event in events]
    assert header[10] == 7
    assert index.differences() == [events[at].seq for at in range(0, 2000, 700)]


def test_a_decoder_written_from_the_page_finds_what_the_index_says(data: bytes, events: list[Event]) -> None:
    _, header, index = decode(data)
    first, last, first_ts, last_ts = (index.differences() for _ in range(4))
    starts = range(0, 2000, 700)
    assert first == [events[at].seq for at in starts]
    assert last == [events[at : at + 700][-1].seq for at in starts]
    assert first_ts == [events[at].ts for at in starts]
    assert last_ts == [events[at : at + 700][-1].ts for at in starts]
    begin, counts, sizes = index.differences(), index.numbers(), index.numbers()
    assert (len(first), len(counts)) == (header[9], header[8])
    assert begin[-1] == len(counts) == len(sizes)
    assert sum(counts) == 2000
    assert 128 + sum(sizes) == header[6]
    for field in ("topic", "client"):
        names, totals, places = index.strings(), index.numbers(), index.numbers()
        blocks = iter(index.numbers())
        assert names == sorted({getattr(event, field) for event in events})
        for name, total, places_of_name in zip(names, totals, places, strict=True):
            mine = [next(blocks) for _ in range(places_of_name)]
            assert total == sum(getattr(event, field) == name for event in events)
            assert mine == sorted(set(mine))
            assert sum(counts[block] for block in mine) >= total
    assert index.at == len(index.data)


def test_the_page_has_the_sizes_that_the_code_has() -> None:
    page = (Path(__file__).parents[2] / "docs" / "segments.md").read_text()
    assert f"version: {segment_format.VERSION}" in page
    assert f"length of the header: {segment_format.HEADER_BYTES}" in page
    assert f"A block is a header of {segment_format.BLOCK_HEADER_BYTES} bytes" in page


@given(st.lists(st.integers(0, 300) | st.integers(0, 2**63 - 1)), st.integers(-(2**63), 0))
def test_numbers_of_any_width_come_back(values: list[int], base: int) -> None:
    moved = [base + value for value in values]
    columns = Columns(numbers(moved), len(moved))
    assert list(columns.numbers()) == moved
    columns.end()
    assert Head(numbers(moved)).numbers() == moved


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1))
def test_differences_come_back_up_and_down(values: list[int]) -> None:
    columns = Columns(differences(values), len(values))
    assert list(columns.differences()) == values
    columns.end()


@given(st.lists(st.text(st.characters(codec="utf-8"))))
def test_texts_come_back(values: list[str]) -> None:
    columns = Columns(strings(values), len(values))
    assert columns.strings() == values
    columns.end()

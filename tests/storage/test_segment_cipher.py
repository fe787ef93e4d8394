"""An encrypted segment tells nothing without its key, and whoever changes it without the key is found out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from unittest.mock import patch
from zlib import crc32

import pytest
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import GCM
from hypothesis import given, settings

from storage.datakey import DataKey
from storage.interface import Event, StorageError
from storage.segment import Damage, Segment, verify
from storage.segment_file import SegmentDamaged, SegmentLocked
from storage.segment_format import BLOCK_HEADER_BYTES, BlockHeader
from storage.segment_writer import Shape, write_segment
from tests.storage.contract import event
from tests.storage.test_segment import any_events, read_all
from tests.storage.test_segment_damage import EVENTS, KEY, SMALL, Image, keys


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path / "secret.segment", EVENTS, SMALL, KEY)


def test_what_was_encrypted_is_read_again(image: Image) -> None:
    assert image.header.key == KEY.number
    assert image.survives(image.data) == (EVENTS, [])


@settings(max_examples=30, deadline=None)
@given(events=any_events())
def test_whatever_was_encrypted_is_read_again(events: list[Event]) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "any.segment"
        write_segment(path, events, SMALL, KEY)
        assert verify(path, keys) == []
        with Segment.open(path, keys=keys) as segment:
            assert read_all(segment) == events


def test_nothing_of_an_event_can_be_found_in_the_file(tmp_path: Path) -> None:
    noise = [Random(seq).randbytes(40) for seq in range(1, 100)]  # what Zstandard leaves as it is
    events = [event(seq, f"plant/hall-of-secrets/{seq}", payload) for seq, payload in enumerate(noise, 1)]
    secrets = [b"secrets", b"press-7", *(payload[:8] for payload in noise)]
    for key, found in ((None, True), (KEY, False)):
        path = tmp_path / f"{found}.segment"
        write_segment(path, events, Shape(3, 50, 10), key)
        data = path.read_bytes()
        assert [secret in data for secret in secrets] == [found] * len(secrets)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (None, r"and there is no key; say in \[encryption\] where it is"),
        (lambda number: None, "which this data directory does not have; restore its keys from a backup"),
        (lambda number: DataKey(number, bytes(32)), "of another data directory"),
    ],
)
def test_a_segment_whose_key_is_not_at_hand_is_intact_but_locked(
    image: Image, given: Callable[[int], DataKey | None] | None, reason: str
) -> None:
    reported: list[Damage] = []
    with pytest.raises(SegmentLocked, match=f"is intact, but encrypted with data key 3.*{reason}") as raised:
        Segment.open(image.path, reported.append, keys=given)
    assert isinstance(raised.value, StorageError)
    assert not isinstance(raised.value, SegmentDamaged), "it must not be set aside as if it were damaged"
    with pytest.raises(SegmentLocked):
        verify(image.path, given)
    assert reported == []
    assert image.path.read_bytes() == image.data


def test_a_plain_segment_asks_for_no_key(tmp_path: Path) -> None:
    path = tmp_path / "plain.segment"
    write_segment(path, EVENTS, SMALL)

    def asked(number: int) -> DataKey | None:
        raise AssertionError(number)

    with Segment.open(path, keys=asked) as segment:
        assert read_all(segment) == EVENTS


def _with_block(image: Image, place: int, header: BlockHeader, content: bytes) -> bytes:
    """With this block in the place of one that is as long, and its checksums sound."""
    block = replace(header, checksum=crc32(content)).pack() + content
    return image.data[:place] + block + image.data[place + len(block) :]


def test_a_byte_that_was_changed_with_its_checksum_is_found_out(image: Image) -> None:
    for place, header in image.blocks():
        content = image.data[place + BLOCK_HEADER_BYTES : place + header.size]
        for at in {0, header.head_bytes, len(content) - 17, len(content) - 16, len(content) - 1}:
            other = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
            found, (damage,) = image.survives(_with_block(image, place, header, other))
            assert damage.reason.endswith("its authentication tag does not match")
            assert len(found) == len(EVENTS) - header.events


@pytest.mark.parametrize("field", ["number", "stripe", "events", "first", "last", "head_raw", "body_raw"])
def test_a_header_that_was_changed_with_its_checksum_is_found_out(image: Image, field: str) -> None:
    place, header = list(image.blocks())[4]
    content = image.data[place + BLOCK_HEADER_BYTES : place + header.size]
    other = replace(header, **{field: getattr(header, field) + 1})
    reported: list[Damage] = []
    image.path.write_bytes(_with_block(image, place, other, content))
    with Segment.open(image.path, reported.append, keys=keys) as segment:
        assert len(read_all(segment)) == len(EVENTS) - header.events
    assert [damage.events for damage in reported] == [header.events]


def test_a_block_in_the_place_of_another_is_found_out(image: Image) -> None:
    """Its number made to fit, as whoever knows the format can do."""
    blocks = list(image.blocks())
    one, other = next(
        (one, other)
        for one in blocks
        for other in blocks
        if one[0] < other[0] and (one[1].size, one[1].events) == (other[1].size, other[1].events)
    )
    content = image.data[other[0] + BLOCK_HEADER_BYTES : other[0] + other[1].size]
    moved = replace(other[1], number=one[1].number, stripe=one[1].stripe, first=one[1].first, last=one[1].last)
    found, (damage,) = image.survives(_with_block(image, one[0], moved, content))
    assert damage.reason.endswith("its authentication tag does not match")
    assert len(found) == len(EVENTS) - one[1].events


def test_an_index_that_was_changed_with_its_checksum_is_made_anew(image: Image) -> None:
    place = image.header.index_at
    header = BlockHeader.unpack(image.data[place : place + BLOCK_HEADER_BYTES])
    content = bytearray(image.data[place + BLOCK_HEADER_BYTES : place + header.size])
    content[5] ^= 1
    found, (damage,) = image.survives(_with_block(image, place, header, bytes(content)))
    assert found == EVENTS
    assert "the index is damaged (its authentication tag does not match)" in damage.reason


def test_a_damaged_header_leaves_the_key_in_its_copy(image: Image) -> None:
    found, (damage,) = image.survives(image.flipped(*range(90, 120)))
    assert found == EVENTS
    assert "the header is damaged" in damage.reason


def test_no_two_blocks_have_key_and_nonce_in_common(tmp_path: Path) -> None:
    with (
        patch("storage.segment_cipher.AES256", wraps=AES256) as cipher,
        patch("storage.segment_cipher.GCM", wraps=GCM) as mode,
    ):
        blocks = [write_segment(tmp_path / f"{each}", EVENTS, SMALL, KEY).header.blocks for each in range(5)]
    secrets = [call.args[0] for call in cipher.call_args_list]
    nonces = [call.args[0] for call in mode.call_args_list]
    assert len(set(zip(secrets, nonces, strict=True))) == len(nonces) == sum(blocks) + 5
    assert len(set(secrets)) == 5, "one for each segment"


def test_a_large_event_is_encrypted_in_pieces(tmp_path: Path) -> None:
    events = [event(1), event(2, payload=Random(1).randbytes(5 << 20)), event(3)]
    image = Image(tmp_path / "large.segment", events, Shape(), KEY)
    assert image.survives(image.data) == (events, [])


def test_encryption_costs_16_bytes_a_block(tmp_path: Path) -> None:
    plain = Image(tmp_path / "plain.segment", EVENTS, SMALL, None)
    secret = Image(tmp_path / "secret.segment", EVENTS, SMALL, KEY)
    assert secret.header.index_at == plain.header.index_at + 16 * plain.header.blocks

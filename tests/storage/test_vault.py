"""A value that was sealed opens with its context and its key, and with nothing else; no nonce is used twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random
from struct import unpack_from
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from storage.keys import begin, read, rewrap, rotate
from storage.keysource import COPY, KEYS, KeysError
from storage.segment import Segment
from storage.segment_cipher import SegmentCipher
from storage.segment_file import SegmentLocked
from storage.segment_writer import write_segment
from storage.vault import OVERHEAD, Reader, ValueDamaged, ValueLocked, Vault
from tests.storage.contract import event
from tests.storage.test_keys import DAY, GONE, NEW, NOW, OLD
from tests.storage.test_segment import read_all


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path, (OLD,), NOW, 30)


@pytest.fixture(scope="module")
def lasting() -> Iterator[Vault]:
    """One for many examples."""
    with TemporaryDirectory() as directory:
        yield Vault(Path(directory), (OLD,), NOW, 30)


def _nonce(sealed: bytes) -> tuple[int, int, int]:
    """Number of the data key, epoch, counter."""
    version, number, epoch, counter = unpack_from("<BIIQ", sealed)
    assert version == 1
    return number, epoch, counter


@given(st.binary(max_size=300), st.binary(max_size=30))
def test_what_was_sealed_is_opened_again(lasting: Vault, plain: bytes, context: bytes) -> None:
    sealed = lasting.seal(plain, context)
    assert len(sealed) == len(plain) + OVERHEAD
    assert lasting.open(sealed, context) == plain
    assert len(plain) < 6 or plain not in sealed


@given(st.lists(st.tuples(st.binary(max_size=50), st.binary(max_size=9)), max_size=20))
def test_many_values_are_as_one_after_another(lasting: Vault, values: list[tuple[bytes, bytes]]) -> None:
    plains, contexts = [value[0] for value in values], [value[1] for value in values]
    sealed = lasting.seal_many(plains, contexts)
    assert [lasting.open(*each) for each in zip(sealed, contexts, strict=True)] == plains
    assert lasting.open_many(sealed, contexts) == plains


def test_as_many_contexts_as_values_are_asked_for(vault: Vault) -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        vault.seal_many([b"a", b"b"], [b"1"])
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        vault.open_many(vault.seal_many([b"a", b"b"], [b"1", b"2"]), [b"1"])


def test_any_changed_or_missing_byte_is_noticed(vault: Vault) -> None:
    sealed = vault.seal(b"214.5", b"tail 17")
    for at in range(len(sealed)):
        for change in (1, 0x80, 0xFF):
            with pytest.raises((ValueDamaged, ValueLocked)):
                vault.open(sealed[:at] + bytes([sealed[at] ^ change]) + sealed[at + 1 :], b"tail 17")
        with pytest.raises(ValueDamaged):
            vault.open(sealed[:at], b"tail 17")
    with pytest.raises(ValueDamaged):
        vault.open(sealed + b"\0", b"tail 17")
    assert vault.open(sealed, b"tail 17") == b"214.5"


def test_a_value_in_the_place_of_another_does_not_open(vault: Vault) -> None:
    one, other = vault.seal_many([b"off", b"on"], [b"tail 17", b"tail 18"])
    for sealed, context in ((one, b"tail 18"), (other, b"tail 17"), (one, b""), (one, b"retained 17")):
        with pytest.raises(ValueDamaged, match="is damaged, or in the place of another"):
            vault.open(sealed, context)


def test_what_was_never_sealed_does_not_open(vault: Vault) -> None:
    random = Random(5)
    for size in (0, 1, 4, 5, 17, 32, 33, 100):
        with pytest.raises(ValueDamaged, match="not as an encrypted one begins"):
            vault.open(b"\x07" + random.randbytes(size), b"")
        with pytest.raises(ValueDamaged):
            vault.open(b"\x01\x01\0\0\0" + random.randbytes(size), b"")


def test_the_form_is_what_the_page_says(vault: Vault, tmp_path: Path) -> None:
    """Opened with nothing of the store but its data key."""
    sealed = vault.seal(b"214.5", b"tail 17")
    derived = vault.data_key.derive(b"berm value")
    assert AESGCM(derived).decrypt(sealed[5:17], sealed[17:], b"tail 17") == b"214.5"
    assert _nonce(sealed)[:2] == (1, read(tmp_path, (OLD,)).revision)


# -- nonces


def test_no_nonce_comes_twice_in_one_run_or_in_many(tmp_path: Path) -> None:
    nonces = []
    for _ in range(3):
        vault = Vault(tmp_path, (OLD,), NOW, 30)
        nonces += [_nonce(vault.seal(b"", b"")) for _ in range(50)]
        nonces += map(_nonce, vault.seal_many([b""] * 50, [b""] * 50))
        rotate(tmp_path, (OLD,), NOW)
        assert vault.refresh(NOW)
        nonces += [_nonce(vault.seal(b"", b"")) for _ in range(50)]
    assert len(set(nonces)) == len(nonces) == 450
    assert len({epoch for _, epoch, _ in nonces}) == 3


def test_no_nonce_comes_twice_where_a_directory_was_put_back_to_what_it_was(tmp_path: Path) -> None:
    begin(tmp_path, (OLD,), NOW)
    kept = [(tmp_path / name).read_bytes() for name in (KEYS, COPY)]
    nonces = []
    for _ in range(4):
        for name, data in zip((KEYS, COPY), kept, strict=True):
            (tmp_path / name).write_bytes(data)
        vault = Vault(tmp_path, (OLD,), NOW, 30)
        nonces += [_nonce(sealed) for sealed in vault.seal_many([b""] * 100, [b""] * 100)]
    assert len({number_and_epoch[:2] for number_and_epoch in nonces}) == 1, "the same key, and the same epoch"
    assert len(set(nonces)) == len(nonces) == 400


@pytest.mark.parametrize("lowest", [False, True])
def test_the_counter_stays_below_its_end(tmp_path: Path, lowest: bool) -> None:
    with patch("os.urandom", lambda size: bytes(size) if lowest else b"\xff" * size):
        vault = Vault(tmp_path, (OLD,), NOW, 30)
    for _ in range(3):
        assert _nonce(vault.seal(b"", b""))[2] < 2**63 + 3
    assert vault.open(vault.seal(b"on", b""), b"") == b"on"


def test_threads_that_seal_at_the_same_time_share_no_nonce(vault: Vault) -> None:
    sealed: list[list[bytes]] = [[] for _ in range(4)]
    together = threading.Barrier(4)

    def work(into: list[bytes]) -> None:
        together.wait()
        for _ in range(2000):
            into.append(vault.seal(b"", b""))
            into.extend(vault.seal_many([b""] * 3, [b""] * 3))

    threads = [threading.Thread(target=work, args=(into,)) for into in sealed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    nonces = [_nonce(each) for into in sealed for each in into]
    assert len(set(nonces)) == len(nonces) == 32_000


# -- keys that change


def test_what_an_earlier_data_key_has_sealed_is_opened(vault: Vault, tmp_path: Path) -> None:
    before = vault.seal(b"before", b"")
    rotate(tmp_path, (OLD,), NOW)
    assert _nonce(vault.seal(b"", b""))[0] == 1, "it has not looked yet"
    assert vault.refresh(NOW)
    after = vault.seal(b"after", b"")
    assert _nonce(after)[0] == vault.data_key.number == 2
    assert vault.open_many([before, after], [b"", b""]) == [b"before", b"after"]
    again = Vault(tmp_path, (OLD,), NOW, 30)
    assert again.open_many([before, after], [b"", b""]) == [b"before", b"after"]
    assert not vault.refresh(NOW)


def test_a_run_goes_on_while_the_operators_key_changes(vault: Vault, tmp_path: Path) -> None:
    sealed = vault.seal(b"before", b"")
    rewrap(tmp_path, (NEW, OLD))
    with pytest.raises(KeysError, match="the old one holds another"):
        vault.refresh(NOW)
    assert not vault.refresh(NOW), "it is told once"
    assert vault.open(sealed, b"") == b"before"
    assert vault.open(vault.seal(b"after", b""), b"") == b"after"
    assert Vault(tmp_path, (NEW,), NOW, 30).open(sealed, b"") == b"before"


def test_an_old_data_key_is_followed_by_a_new_one_in_a_run(vault: Vault, tmp_path: Path) -> None:
    assert not vault.refresh(NOW + 30 * DAY - 1)
    assert vault.refresh(NOW + 30 * DAY)
    assert vault.data_key.number == 2
    assert not vault.refresh(NOW + 30 * DAY)
    assert vault.refresh(NOW + 60 * DAY)
    assert list(read(tmp_path, (OLD,)).keys) == [1, 2, 3]


def test_where_the_operators_key_is_not_at_hand_it_is_tried_again_in_an_hour(tmp_path: Path) -> None:
    Vault(tmp_path, (OLD,), NOW, 30)
    sources = [OLD]
    vault = Vault(tmp_path, sources, NOW, 30)
    sources[0] = GONE
    later = NOW + 30 * DAY
    with pytest.raises(KeysError, match="one that is gone was asked"):
        vault.refresh(later)
    assert not vault.refresh(later + DAY // 24 - 1)
    with pytest.raises(KeysError, match="one that is gone was asked"):
        vault.refresh(later + DAY // 24)
    sources[0] = OLD
    assert vault.refresh(later + DAY // 12)


def test_a_file_of_keys_that_has_gone_is_told_once_and_taken_up_when_it_is_back(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / KEYS).rename(tmp_path / "away")
    with pytest.raises(KeysError, match=r"berm.keys: No such file"):
        vault.refresh(NOW)
    assert not vault.refresh(NOW)
    assert vault.open(vault.seal(b"on", b""), b"") == b"on"
    (tmp_path / "away").rename(tmp_path / KEYS)
    rotate(tmp_path, (OLD,), NOW)
    assert vault.refresh(NOW)


def test_keys_of_another_directory_are_not_taken_up(vault: Vault, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    begin(other, (OLD,), NOW)
    rotate(other, (OLD,), NOW)
    sealed = vault.seal(b"on", b"")
    (tmp_path / KEYS).write_bytes((other / KEYS).read_bytes())
    (tmp_path / COPY).unlink()
    with pytest.raises(KeysError, match="is not that of this node any more"):
        vault.refresh(NOW)
    assert _nonce(vault.seal(b"", b""))[0] == 1
    assert vault.open(sealed, b"") == b"on"


def test_a_missing_data_key_is_not_taken_for_damage(vault: Vault, tmp_path: Path) -> None:
    rotate(tmp_path, (OLD,), NOW)
    early = Reader(begin(tmp_path, (OLD,), NOW))
    rotate(tmp_path, (OLD,), NOW)
    vault.refresh(NOW)
    sealed = vault.seal(b"on", b"")
    with pytest.raises(ValueLocked, match="encrypted with data key 3, which the data directory does not have"):
        early.open(sealed, b"")
    assert Reader(read(tmp_path, (OLD,))).open(sealed, b"") == b"on"


def test_segments_are_sealed_and_opened_with_the_keys_of_a_vault(vault: Vault, tmp_path: Path) -> None:
    events = [event(seq) for seq in range(1, 50)]
    write_segment(tmp_path / "1", events, key=vault.data_key)
    rotate(tmp_path, (OLD,), NOW)
    vault.refresh(NOW)
    write_segment(tmp_path / "2", events, key=vault.data_key)
    for name, number in (("1", 1), ("2", 2)):
        with Segment.open(tmp_path / name, keys=vault.key) as segment:
            assert segment.info.header.key == number
            assert read_all(segment) == events
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(SegmentLocked, match="of another data directory"):
        Segment.open(tmp_path / "1", keys=Vault(other, (OLD,), NOW, 30).key)


def test_one_data_key_gives_other_keys_to_values_and_to_segments(vault: Vault) -> None:
    with (
        patch("storage.vault.AESGCM", wraps=AESGCM) as values,
        patch("storage.segment_cipher.AESGCM", wraps=AESGCM) as segments,
    ):
        Reader(vault.keyring).open(vault.seal(b"", b""), b"")
        SegmentCipher(vault.data_key)
    used = [call.args[0] for call in (*values.call_args_list, *segments.call_args_list)]
    assert len({*used, vault.data_key.secret}) == 3

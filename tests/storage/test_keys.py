"""The keys of a data directory: wrapped, kept twice, changed whole or not at all, and told apart from wrong ones."""

from __future__ import annotations

import errno
import multiprocessing
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from random import Random
from unittest.mock import patch
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.keys import Keyring, KeysFile, WrappedKey, begin, check_of, read, rewrap, rotate, stamp
from storage.keysource import COPY, KEYS, KeysError

DAY = 86_400_000_000
NOW = 1_790_000_000_000_000


@dataclass(frozen=True)
class Given:
    """A source of an operator's key, and whether it may be asked."""

    key: bytes
    name: str = "a test"

    def __str__(self) -> str:
        return self.name

    def read(self) -> bytes:
        if not self.key:
            raise KeysError(f"{self.name} was asked")
        return self.key


OLD = Given(Random(1).randbytes(32), "the old one")
NEW = Given(Random(2).randbytes(32), "the new one")
GONE = Given(b"", "one that is gone")


def _files(directory: Path) -> list[bytes]:
    return [(directory / name).read_bytes() for name in (KEYS, COPY)]


def _secrets(keyring: Keyring) -> dict[int, bytes]:
    return {number: key.secret for number, key in keyring.keys.items()}


def test_the_first_run_makes_a_data_key_and_later_ones_find_it(tmp_path: Path) -> None:
    first = begin(tmp_path, (OLD,), NOW)
    assert list(first.keys) == [1]
    assert first.since == {1: NOW}
    assert len(first.current.secret) == 32
    assert _secrets(begin(tmp_path, (OLD,), NOW)) == _secrets(read(tmp_path, (OLD,))) == _secrets(first)


def test_no_two_runs_have_the_same_epoch(tmp_path: Path) -> None:
    epochs = [begin(tmp_path, (OLD,), NOW).revision for _ in range(5)]
    rotate(tmp_path, (OLD,), NOW)
    rewrap(tmp_path, (NEW, OLD))
    epochs.append(begin(tmp_path, (NEW,), NOW).revision)
    assert epochs == sorted(set(epochs))


def test_the_epoch_of_a_run_is_on_the_disk_when_it_begins(tmp_path: Path) -> None:
    calls: list[str] = []
    names = ("fsync", "replace")
    real = {name: getattr(os, name) for name in names}

    def watched(name: str) -> Callable[..., object]:
        def calling(*arguments: object) -> object:
            calls.append(name)
            return real[name](*arguments)

        return calling

    with patch("os.fsync", watched("fsync")), patch("os.replace", watched("replace")):
        epoch = begin(tmp_path, (OLD,), NOW).revision
    assert calls == ["fsync", "replace", "fsync"] * 2, "the file, its name, the directory; for both files"
    assert [KeysFile.unpack(data, tmp_path).revision for data in _files(tmp_path)] == [epoch, epoch]


def test_the_files_are_for_nobody_else_and_have_no_secret_in_them(tmp_path: Path) -> None:
    begin(tmp_path, (OLD,), NOW)
    keyring = rotate(tmp_path, (OLD,), NOW)
    for name, data in zip((KEYS, COPY), _files(tmp_path), strict=True):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
        file = KeysFile.unpack(data, tmp_path)
        everything = data + b"".join(key.wrapped for key in file.keys)
        for secret in (OLD.key, *_secrets(keyring).values()):
            assert secret not in everything
            assert secret.hex().encode() not in everything
    assert "secret=" not in repr(keyring)


def test_what_an_earlier_attempt_has_left_gives_nobody_access(tmp_path: Path) -> None:
    left = tmp_path / f"{KEYS}.new"
    left.write_bytes(b"left")
    left.chmod(0o666)
    begin(tmp_path, (OLD,), NOW)
    assert (tmp_path / KEYS).stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(tmp_path)) == [KEYS, COPY]


def test_a_wrong_key_is_told_and_nothing_is_changed(tmp_path: Path) -> None:
    begin(tmp_path, (OLD,), NOW)
    before = _files(tmp_path)
    calls: list[Callable[[], Keyring]] = [
        lambda: read(tmp_path, (NEW,)),
        lambda: begin(tmp_path, (NEW,), NOW),
        lambda: rotate(tmp_path, (NEW,), NOW),
        lambda: rewrap(tmp_path, (NEW,)),
    ]
    for call in calls:
        with pytest.raises(KeysError) as raised:
            call()
        assert str(raised.value) == (
            f"{tmp_path} is encrypted with the operator's key {check_of(OLD.key)}, and the new one holds another "
            f"({check_of(NEW.key)}); nothing was changed; give the right one in [encryption]"
        )
    with pytest.raises(KeysError, match="none of the keys that were given is it"):
        read(tmp_path, (NEW, Given(bytes(32))))
    assert _files(tmp_path) == before


def test_a_new_data_key_leaves_the_others_readable(tmp_path: Path) -> None:
    first = begin(tmp_path, (OLD,), NOW)
    second = rotate(tmp_path, (OLD,), NOW + 5)
    assert second.current.number == 2
    assert second.since == {1: NOW, 2: NOW + 5}
    assert second.keys[1] == first.keys[1]
    assert second.keys[2].secret != second.keys[1].secret
    assert _secrets(read(tmp_path, (OLD,))) == _secrets(second)


def test_a_data_key_is_followed_by_a_new_one_after_so_many_days(tmp_path: Path) -> None:
    assert begin(tmp_path, (OLD,), NOW, 30).current.number == 1
    assert begin(tmp_path, (OLD,), NOW + 30 * DAY - 1, 30).current.number == 1
    assert begin(tmp_path, (OLD,), NOW + 99 * DAY, 0).current.number == 1
    assert begin(tmp_path, (OLD,), NOW + 30 * DAY, 30).current.number == 2
    assert begin(tmp_path, (OLD,), NOW + 31 * DAY, 30).current.number == 2
    assert begin(tmp_path, (OLD,), 0, 30).current.number == 2, "a clock that was not set yet"


def test_a_new_operators_key_wraps_the_same_data_keys(tmp_path: Path) -> None:
    begin(tmp_path, (OLD,), NOW)
    before = rotate(tmp_path, (OLD,), NOW)
    rewrap(tmp_path, (NEW, OLD))
    assert _secrets(read(tmp_path, (NEW, GONE))) == _secrets(before)
    with pytest.raises(KeysError):
        read(tmp_path, (OLD,))
    assert rewrap(tmp_path, (NEW,)).operator == check_of(NEW.key), "once more does no harm"


def test_a_start_with_an_earlier_key_wraps_with_the_new_one(tmp_path: Path) -> None:
    before = begin(tmp_path, (OLD,), NOW)
    begin(tmp_path, (NEW, OLD), NOW)
    assert _secrets(begin(tmp_path, (NEW, GONE), NOW)) == _secrets(before)


def test_an_earlier_key_is_read_only_where_it_is_needed(tmp_path: Path) -> None:
    begin(tmp_path, (OLD, GONE), NOW)
    begin(tmp_path, (OLD, GONE), NOW)
    with pytest.raises(KeysError, match="one that is gone was asked"):
        begin(tmp_path, (NEW, GONE), NOW)


@pytest.mark.parametrize("name", [KEYS, COPY])
@pytest.mark.parametrize("damage", [None, b"", bytes(500)])
def test_either_file_is_enough(tmp_path: Path, name: str, damage: bytes | None) -> None:
    before = begin(tmp_path, (OLD,), NOW)
    path = tmp_path / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    found = begin(tmp_path, (OLD,), NOW)
    assert _secrets(found) == _secrets(before)
    assert found.revision == before.revision + 1
    assert len(found.problems) == 1
    assert found.problems[0].startswith(str(path))
    assert read(tmp_path, (OLD,)).problems == (), "it was written anew"


def test_of_two_files_that_differ_the_later_counts_whichever_it_is(tmp_path: Path) -> None:
    """As a process leaves them that ends between the two."""
    begin(tmp_path, (OLD,), NOW)
    early = (tmp_path / KEYS).read_bytes()
    late = rotate(tmp_path, (OLD,), NOW)
    for name in (KEYS, COPY):
        other = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(early)
        assert _secrets(read(tmp_path, (OLD,))) == _secrets(late)
        assert begin(tmp_path, (OLD,), NOW).revision > late.revision
        late = read(tmp_path, (OLD,))
        assert other not in _files(tmp_path)


def test_an_epoch_is_new_even_where_only_the_earlier_file_fits_the_key(tmp_path: Path) -> None:
    begin(tmp_path, (OLD,), NOW)
    early = (tmp_path / KEYS).read_bytes()
    for _ in range(3):
        late = rewrap(tmp_path, (NEW, OLD))
    (tmp_path / COPY).write_bytes(early)
    assert begin(tmp_path, (OLD,), NOW).revision > late.revision


def test_where_both_files_are_lost_nothing_is_made_in_their_place(tmp_path: Path) -> None:
    begin(tmp_path, (OLD,), NOW)
    for name in (KEYS, COPY):
        (tmp_path / name).write_bytes(b"noise")
    with pytest.raises(KeysError, match=r"berm.keys is damaged; .*copy is damaged; restore it from a backup"):
        begin(tmp_path, (OLD,), NOW)
    assert _files(tmp_path) == [b"noise", b"noise"]
    with pytest.raises(KeysError, match="No such file"):
        read(tmp_path / "none", (OLD,))
    with pytest.raises(KeysError, match="No such file or directory; name a node's data directory"):
        begin(tmp_path / "none", (OLD,), NOW)


def test_any_changed_or_missing_byte_is_noticed(tmp_path: Path) -> None:
    begin(tmp_path, (OLD,), NOW)
    data = (tmp_path / KEYS).read_bytes()
    random = Random(3)
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ random.randrange(1, 256)]) + data[at + 1 :]
        for other in (changed, data[:at], data + data[: at + 1]):
            with pytest.raises(KeysError, match="is damaged"):
                KeysFile.unpack(other, tmp_path)


def _with_checksum(data: bytes) -> bytes:
    return data + b"end %08x\n" % crc32(data)


def test_wrapped_keys_that_were_changed_on_purpose_are_refused(tmp_path: Path) -> None:
    begin(tmp_path, (OLD,), NOW)
    rotate(tmp_path, (OLD,), NOW)
    file = KeysFile.unpack((tmp_path / KEYS).read_bytes(), tmp_path)
    one, two = file.keys
    swapped = (WrappedKey(1, NOW, two.wrapped), WrappedKey(2, NOW, one.wrapped))
    flipped = (one, WrappedKey(2, NOW, bytes([two.wrapped[0] ^ 1]) + two.wrapped[1:]))
    for keys, number in ((swapped, 1), (flipped, 2)):
        changed = KeysFile(file.operator, file.revision + 1, keys).pack()
        (tmp_path / KEYS).write_bytes(changed)
        with pytest.raises(KeysError, match=rf"was changed \(key {number}\); restore it from a backup"):
            read(tmp_path, (OLD,))


def test_a_file_of_a_newer_version_or_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="was written by a newer Berm"):
        KeysFile.unpack(_with_checksum(b"berm keys 2\nwhatever\n"), tmp_path)
    with pytest.raises(KeysError, match="is no file of keys"):
        KeysFile.unpack(_with_checksum(b"berm keys 1\noperator none\n"), tmp_path)


@given(
    st.integers(0, 2**32 - 1),
    st.lists(
        st.tuples(st.integers(0, 2**32 - 1), st.integers(-(2**62), 2**62), st.binary(min_size=48, max_size=48)),
        min_size=1,
    ),
)
def test_what_is_written_is_read_again(revision: int, keys: list[tuple[int, int, bytes]]) -> None:
    file = KeysFile(check_of(OLD.key), revision, tuple(WrappedKey(*key) for key in keys))
    assert KeysFile.unpack(file.pack(), Path("file")) == file


@pytest.mark.parametrize("allowed", [0, 1, 2, 3])
@pytest.mark.parametrize(("call", "calls"), [("fsync", 4), ("replace", 2), ("fchown", 2)])
def test_an_error_at_any_call_leaves_keys_that_open_everything(
    tmp_path: Path, call: str, calls: int, allowed: int
) -> None:
    """As does a process that ends there: nothing was encrypted with what it had begun to write."""
    before = begin(tmp_path, (OLD,), NOW)
    real = getattr(os, call)
    left = allowed

    def failing(*arguments: object) -> object:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    with (
        patch("os.geteuid", return_value=0),
        patch(f"os.{call}", failing),
        nullcontext() if allowed >= calls else pytest.raises(KeysError, match=r"writing .*: No space left on device"),
    ):
        rewrap(tmp_path, (NEW, OLD))
    assert any(_opens(tmp_path, source, before) for source in (OLD, NEW))
    assert _secrets(begin(tmp_path, (NEW, OLD), NOW)) == _secrets(before)
    assert sorted(os.listdir(tmp_path)) == [KEYS, COPY]


def _opens(directory: Path, source: Given, wanted: Keyring) -> bool:
    try:
        return _secrets(read(directory, (source,))) == _secrets(wanted)
    except KeysError:
        return False


def _rotate_often(directory: Path, together: Barrier) -> None:
    together.wait(30)
    for _ in range(50):
        rotate(directory, (OLD,), NOW)


def test_commands_that_change_the_keys_at_the_same_time_lose_none(tmp_path: Path) -> None:
    begin(tmp_path, (OLD,), NOW)
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(3)
    others = [context.Process(target=_rotate_often, args=(tmp_path, together)) for _ in range(2)]
    for other in others:
        other.start()
    _rotate_often(tmp_path, together)
    for other in others:
        other.join(30)
        assert other.exitcode == 0
    assert sorted(read(tmp_path, (OLD,)).keys) == list(range(1, 152))


@given(st.integers(0, 255))
def test_operators_keys_that_differ_anywhere_are_told_apart(bit: int) -> None:
    other = (int.from_bytes(OLD.key, "big") ^ 1 << bit).to_bytes(32, "big")
    assert check_of(other) != check_of(OLD.key)


def test_every_change_can_be_seen_from_outside(tmp_path: Path) -> None:
    begin(tmp_path, (OLD,), NOW)
    before = stamp(tmp_path)
    assert stamp(tmp_path) == before
    rotate(tmp_path, (OLD,), NOW)
    assert stamp(tmp_path) != before
    (tmp_path / KEYS).unlink()
    with pytest.raises(KeysError, match=r"berm.keys: No such file or directory; restore it from a backup, or from"):
        stamp(tmp_path)

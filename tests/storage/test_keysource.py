"""The operator's key: where it comes from, what is one, and what is said where there is none."""

from __future__ import annotations

import os
import sys
from base64 import b64encode, urlsafe_b64encode
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from storage.interface import StorageError
from storage.keysource import KeyCommand, KeyFile, KeysError, KeyVariable, is_encrypted, parse_key

KEY = bytes(range(200, 232))


def _file(path: Path, data: bytes, mode: int = 0o600) -> KeyFile:
    path.write_bytes(data)
    path.chmod(mode)
    return KeyFile(path)


@given(st.binary(min_size=32, max_size=32), st.sampled_from(("", "\n", "\r\n", "  \n")))
def test_a_key_is_taken_in_every_form_that_it_may_have(key: bytes, end: str) -> None:
    for text in (key.hex(), key.hex().upper(), b64encode(key).decode(), urlsafe_b64encode(key).decode().rstrip("=")):
        assert parse_key((text + end).encode(), "a test") == key


@given(st.binary(min_size=32, max_size=32))
def test_32_bytes_are_a_key_as_they_are(key: bytes) -> None:
    assume(not key.isascii())
    assert parse_key(key, "a test") == key


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"correct horse battery staple",
        b"a password of just 32 characters",
        KEY[:16].hex().encode(),
        KEY[:31].hex().encode(),
        KEY.hex().encode() + b"0",
        b64encode(KEY[:31]),
        b64encode(KEY + b"x"),
        b"*" * 44,
        KEY[:31],
        KEY + b"\n",
        bytes(4096),
    ],
)
def test_what_is_no_key_is_refused_in_words_that_do_not_tell_it(data: bytes) -> None:
    with pytest.raises(
        KeysError, match=r"^reading the encryption key: a test holds none; a key is 32 random"
    ) as raised:
        parse_key(data, "a test")
    assert not data.strip() or data.strip().decode("latin-1") not in str(raised.value)
    assert isinstance(raised.value, StorageError)


def test_a_file_gives_its_key(tmp_path: Path) -> None:
    assert _file(tmp_path / "key", KEY).read() == KEY
    assert _file(tmp_path / "key", KEY.hex().encode() + b"\n", 0o400).read() == KEY


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o666])
def test_a_file_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    source = _file(tmp_path / "key", KEY, mode)
    with pytest.raises(KeysError, match=rf"key is open to others than its owner \(mode {mode:04o}\); make it 0600"):
        source.read()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of root's")
def test_a_file_of_roots_may_be_read_by_its_group(tmp_path: Path) -> None:
    with patch("os.geteuid", return_value=1000):
        for mode in (0o440, 0o640):
            assert _file(tmp_path / "key", KEY, mode).read() == KEY
        for mode in (0o644, 0o660, 0o604):
            with pytest.raises(KeysError, match="is open to others"):
                _file(tmp_path / "key", KEY, mode).read()
        os.chown(tmp_path / "key", 1000, 1000)
        with pytest.raises(KeysError, match="is open to others"):
            _file(tmp_path / "key", KEY, 0o640).read()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match=r"none: No such file or directory; see whether the file is there"):
        KeyFile(tmp_path / "none").read()
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(KeysError, match="is not a file"):
            KeyFile(path).read()


def test_a_file_is_given_back_whether_it_holds_a_key_or_not(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    _file(tmp_path / "key", KEY).read()
    for data, mode in ((b"none", 0o600), (KEY, 0o644)):
        with pytest.raises(KeysError):
            _file(tmp_path / "key", data, mode).read()
    assert os.listdir("/proc/self/fd") == before


def test_a_variable_gives_its_key() -> None:
    source = KeyVariable("BERM_TEST_KEY")
    with patch.dict(os.environ, {"BERM_TEST_KEY": KEY.hex()}):
        assert source.read() == KEY
    with pytest.raises(KeysError, match="the environment variable BERM_TEST_KEY is not set"):
        source.read()
    with (
        patch.dict(os.environ, {"BERM_TEST_KEY": "hush"}),
        pytest.raises(KeysError, match="variable BERM_TEST_KEY holds none") as raised,
    ):
        source.read()
    assert "hush" not in str(raised.value)


def _python(program: str) -> KeyCommand:
    return KeyCommand((sys.executable, "-c", program))


def test_a_command_gives_the_key_that_it_prints() -> None:
    assert _python(f"print('{KEY.hex()}')").read() == KEY
    assert _python(f"import sys; sys.stdout.buffer.write(bytes.fromhex('{KEY.hex()}'))").read() == KEY


def test_a_command_that_fails_is_told_with_what_it_said_last() -> None:
    with pytest.raises(KeysError, match=r"ended with 3: no such secret; see why by running it") as raised:
        _python(
            f"import sys; print('{KEY.hex()}'); print('noise\\nno such secret', file=sys.stderr); sys.exit(3)"
        ).read()
    assert KEY.hex() not in str(raised.value)
    with pytest.raises(KeysError, match="ended with 4; "):
        _python("raise SystemExit(4)").read()
    with pytest.raises(KeysError, match="holds none"):
        _python("print('hush')").read()
    with pytest.raises(KeysError, match="the command /none/at/all can't be run: No such file"):
        KeyCommand(("/none/at/all",)).read()


def test_a_command_that_does_not_end_is_not_waited_for() -> None:
    with patch("storage.keysource.COMMAND_SECONDS", 0.05), pytest.raises(KeysError, match="took longer than"):
        _python("import signal; signal.pause()").read()


def test_a_directory_with_either_file_of_keys_is_encrypted(tmp_path: Path) -> None:
    assert not is_encrypted(tmp_path)
    assert not is_encrypted(tmp_path / "none")
    for name in ("berm.keys", "berm.keys.copy"):
        (tmp_path / name).touch()
        assert is_encrypted(tmp_path)
        (tmp_path / name).unlink()

"""Keys from the settings, and `berm keys`: what it prints, what it changes, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from berm import keys
from berm.settings import EncryptionSection, load
from storage.keys import read
from storage.keysource import KeyCommand, KeyFile, KeysError, KeyVariable
from storage.segment_writer import write_segment
from storage.vault import Vault
from tests.berm.helpers import berm
from tests.storage.contract import event

NOW = 1_790_000_000_000_000


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where there are settings, a key, and a data directory with nothing in it."""
    keys.make_key_file(tmp_path / "key")
    (tmp_path / "data").mkdir()
    (tmp_path / "berm.toml").write_text('[encryption]\nkey = "file:key"\n')
    return tmp_path


def _vault(place: Path) -> Vault:
    found = keys.vault(load(place / "berm.toml"), NOW)
    assert found is not None
    return found


def _refused(place: Path, *arguments: str) -> str:
    """What is said where nothing is done."""
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    done = berm(*arguments, cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    (line,) = done.stderr.splitlines()
    return line


# -- from the settings


def test_the_settings_say_where_the_keys_are() -> None:
    section = EncryptionSection(key="file:/etc/berm/key", earlier=("env: OLD_KEY", "command:vault read -f 'a b'"))
    assert keys.sources(section) == (
        KeyFile(Path("/etc/berm/key")),
        KeyVariable("OLD_KEY"),
        KeyCommand(("vault", "read", "-f", "a b")),
    )
    assert keys.sources(EncryptionSection()) == ()


def test_without_a_key_nothing_is_encrypted_and_no_cipher_loaded(tmp_path: Path) -> None:
    settings = load(None, [f"storage.path={tmp_path}"])
    assert keys.vault(settings, NOW) is None
    assert keys.reader(settings) is None
    assert list(tmp_path.iterdir()) == []
    program = "import sys, berm.app, berm.keys; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


def test_a_directory_is_encrypted_from_the_first_start_with_a_key_on(place: Path) -> None:
    settings = load(place / "berm.toml")
    assert keys.reader(settings) is None
    sealed = _vault(place).seal(b"on", b"")
    for opening in (keys.reader(settings), keys.vault(settings, NOW)):
        assert opening is not None
        assert opening.open(sealed, b"") == b"on"


def test_an_encrypted_directory_is_refused_without_a_key(place: Path) -> None:
    _vault(place)
    (place / "berm.toml").write_text("")
    settings = load(place / "berm.toml")
    with pytest.raises(KeysError, match=r"data is encrypted, and the settings name no key; nothing was changed"):
        keys.vault(settings, NOW)
    with pytest.raises(KeysError, match=r"say in encryption.key where it is"):
        keys.reader(settings)


def test_a_start_with_an_earlier_key_goes_over_to_the_new_one(place: Path) -> None:
    sealed = _vault(place).seal(b"on", b"")
    (place / "key").rename(place / "old")
    keys.make_key_file(place / "key")
    with pytest.raises(KeysError, match="holds another"):
        _vault(place)
    (place / "berm.toml").write_text('[encryption]\nkey = "file:key"\nearlier = ["file:old"]\n')
    assert _vault(place).open(sealed, b"") == b"on"
    (place / "old").unlink()
    assert _vault(place).open(sealed, b"") == b"on"


# -- berm keys


def test_keys_are_listed_with_what_they_encrypt(place: Path) -> None:
    vault = _vault(place)
    (place / "data" / "segments").mkdir()
    for number, key in enumerate((None, vault.data_key, vault.data_key)):
        write_segment(place / "data" / "segments" / f"{number}.segment", [event(1)], key=key)
    (place / "data" / "segments" / "9.segment").write_bytes(b"noise")
    assert berm("keys", "rotate", cwd=place).stdout == "data: made data key 2\n"
    found = orjson.loads(berm("keys", "--json", cwd=place).stdout)
    assert [(key["number"], key["segments"]) for key in found["keys"]] == [(1, 2), (2, 0)]
    assert found["keys"][0]["since"] == "2026-09-21T14:13:20.000000Z"
    assert (found["plain_segments"], found["problems"]) == (1, [])
    lines = berm("keys", cwd=place).stdout.splitlines()
    assert lines[1] == f"operator  {found['operator']}"
    assert [line.split() for line in lines[5:]] == [
        ["1", found["keys"][0]["since"], "2"],
        ["2", found["keys"][1]["since"], "0"],
        ["none", "1"],
    ]


def test_a_damaged_file_of_keys_is_told_while_its_copy_serves(place: Path) -> None:
    _vault(place)
    (place / "data" / "berm.keys").write_bytes(b"noise")
    assert "problem   data/berm.keys is damaged\n" in berm("keys", cwd=place).stdout


def test_a_new_key_is_in_a_file_that_only_its_owner_can_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        done = berm("keys", "new", "key", cwd=tmp_path)
    finally:
        os.umask(before)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    key = KeyFile(tmp_path / "key").read()
    assert key.hex() not in done.stdout
    printed = berm("keys", "new", cwd=tmp_path).stdout
    assert len(bytes.fromhex(printed)) == 32
    assert bytes.fromhex(printed) != key


def test_a_key_that_is_there_is_never_written_over(place: Path) -> None:
    assert _refused(place, "keys", "new", "key") == (
        "berm: key is there already, and the key in it may be in use; name another file"
    )
    assert _refused(place, "keys", "new", "none/key") == (
        "berm: making none/key: No such file or directory; name a file in a directory that can be written"
    )


def test_a_running_node_takes_up_the_key_that_a_command_has_made(place: Path) -> None:
    vault = _vault(place)
    assert berm("keys", "rotate", cwd=place).returncode == 0
    assert vault.refresh(NOW)
    assert vault.data_key.number == 2


def test_the_operators_key_is_changed_beside_a_running_node(place: Path) -> None:
    vault = _vault(place)
    sealed = vault.seal(b"on", b"")
    (place / "key").rename(place / "old")
    assert berm("keys", "new", "key", cwd=place).returncode == 0
    done = berm("keys", "rewrap", "--from", "file:old", cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    (place / "old").unlink()
    assert not vault.refresh(NOW)
    assert berm("keys", "rotate", cwd=place).returncode == 0
    assert vault.refresh(NOW)
    assert vault.open(sealed, b"") == b"on"
    assert len(read(place / "data", (KeyFile(place / "key"),)).keys) == 2


@pytest.mark.parametrize("command", [("keys",), ("keys", "rotate"), ("keys", "rewrap"), ("check",)])
def test_a_wrong_or_missing_key_is_one_line_and_nothing_is_changed(place: Path, command: tuple[str, ...]) -> None:
    _vault(place)
    (place / "other").write_text("ab" * 32)
    for mode, wanted in ((0o600, "the file other holds another"), (0o644, "other is open to others than its owner")):
        (place / "other").chmod(mode)
        told = berm(*command, "--set", "encryption.key=file:other", "--set", "mqtt.port=0", cwd=place)
        assert told.returncode == 2
        (line,) = told.stderr.splitlines()
        assert wanted in line
    if command != ("check",):
        assert "the environment variable NONE is not set" in _refused(
            place, *command, "--set", "encryption.key=env:NONE"
        )


def test_a_directory_that_is_not_encrypted_has_no_keys_to_list_or_change(place: Path) -> None:
    for command in ("rotate", "rewrap"):
        assert _refused(place, "keys", command).startswith("berm: data is not encrypted; a node whose settings say")
    assert _refused(place, "keys").startswith("berm: data is not encrypted")


def test_what_is_asked_for_wrongly_is_refused(place: Path) -> None:
    _vault(place)
    assert _refused(place, "keys", "rewrap", "--from", "key").startswith("berm: --from: it does not say where a key is")
    for options in (("--config", "berm.toml"), ("--set", "node.name=a"), ("--json",)):
        assert _refused(place, "keys", *options, "rotate") == "berm: options of `berm keys rotate` stand behind rotate"


def test_check_says_what_encrypts(place: Path) -> None:
    arguments = ("check", "--set", "mqtt.port=0")
    assert (
        "encryption: begins with the next start; the operator's key is in the file key\n"
        in berm(*arguments, cwd=place).stdout
    )
    _vault(place)
    assert "encryption: data key 1; the operator's key is in the file key\n" in berm(*arguments, cwd=place).stdout
    (place / "data" / "berm.keys.copy").unlink()
    assert (
        "encryption: data/berm.keys.copy: No such file or directory; the start writes it anew\n"
        in berm(*arguments, cwd=place).stdout
    )

"""The keys of a data directory: what is written is encrypted with data keys, and these with the operator's key.

The rules:

1. Data keys are random, numbered from 1, and never leave the process but wrapped: encrypted with the operator's key
   (AES key wrap, RFC 3394), each together with its number. So a new operator's key means wrapping some keys anew, and
   nothing else is rewritten; a new data key means a new number for what is written from then on.
2. They are in `berm.keys`, and once more in `berm.keys.copy`: without them everything is lost. A change replaces one
   file after the other, each fsynced and then renamed. Nothing is encrypted with a key before it is in both. Of two
   that differ, the one with the higher revision counts.
3. Every change counts the revision up. The one that a run makes at its start is its epoch: no two runs have the same.
4. Who changes the file holds a lock on the directory, so that a command can do it beside a running node.
5. The file tells which operator's key it was made with. So a wrong key is told as such, and nothing is changed.
"""

from __future__ import annotations

import fcntl
import os
import re
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Final
from zlib import crc32

from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from storage.datakey import KEY_BYTES, DataKey
from storage.files import sync_directory
from storage.keysource import COPY, KEYS, RENEW, KeysError, KeySource, is_encrypted
from storage.transition import need_no_keys

VERSION: Final = 1
LAST_REVISION: Final = (1 << 32) - 1
"""An epoch is a u32."""

_DAY: Final = 86_400_000_000
_NUMBER_BYTES: Final = 8
_FORM: Final = re.compile(
    rb"berm keys (?P<version>\d{1,9})\n"
    rb"operator (?P<operator>[0-9a-f]{16})\n"
    rb"revision (?P<revision>\d{1,10})\n"
    rb"(?P<keys>(?:key \d{1,10} -?\d{1,19} [0-9A-Za-z+/]{64}\n)+)"
)
_END: Final = re.compile(rb"end ([0-9a-f]{8})\n\Z")


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A data key as it stands in the file."""

    number: int
    since: int
    """When it was made, µs since the epoch."""
    wrapped: bytes


@dataclass(frozen=True, slots=True)
class KeysFile:
    """What a file of keys says."""

    operator: str
    """Which operator's key its data keys are wrapped with: see `check_of`."""
    revision: int
    keys: tuple[WrappedKey, ...]
    """By their numbers; the last is the one to encrypt with."""

    def pack(self) -> bytes:
        """Its bytes."""
        lines = [f"berm keys {VERSION}", f"operator {self.operator}", f"revision {self.revision}"]
        lines += [f"key {key.number} {key.since} {b64encode(key.wrapped).decode()}" for key in self.keys]
        data = "".join(f"{line}\n" for line in lines).encode()
        return data + b"end %08x\n" % crc32(data)

    @classmethod
    def unpack(cls, data: bytes, path: Path) -> KeysFile:
        """The file that these bytes are.

        Raises:
            KeysError: they are none, or that of a newer Berm.
        """
        end = _END.search(data)
        if end is None or crc32(data[: end.start()]) != int(end[1], 16):
            raise KeysError(f"{path} is damaged")
        version = re.match(rb"berm keys (\d{1,9})\n", data)
        if version and int(version[1]) > VERSION:
            raise KeysError(f"{path} was written by a newer Berm; install that version")
        found = _FORM.fullmatch(data[: end.start()])
        if found is None:
            raise KeysError(f"{path} is no file of keys")
        keys = [
            WrappedKey(int(number), int(since), b64decode(wrapped))
            for _, number, since, wrapped in map(bytes.split, found["keys"].splitlines())
        ]
        return cls(found["operator"].decode(), int(found["revision"]), tuple(keys))


@dataclass(frozen=True, slots=True)
class Keyring:
    """The data keys of a directory, unwrapped, as of one revision."""

    revision: int
    operator: str
    keys: Mapping[int, DataKey]
    since: Mapping[int, int]
    """When each was made, µs since the epoch."""
    problems: tuple[str, ...] = ()
    """What was wrong with one of the two files."""

    @property
    def current(self) -> DataKey:
        """The one to encrypt with."""
        return self.keys[max(self.keys)]

    def due(self, now: int, days: int) -> bool:
        """Whether there should be a new data key, so many days after the last; 0: never."""
        return days > 0 and now - self.since[max(self.since)] >= days * _DAY

    def with_new_key(self, now: int) -> Keyring:
        """With one more data key, to be written as the next revision."""
        number = max(self.keys, default=0) + 1
        key = DataKey(number, os.urandom(KEY_BYTES))
        return replace(self, keys={**self.keys, number: key}, since={**self.since, number: now})


def check_of(operator_key: bytes) -> str:
    """What tells operator's keys apart without telling anything else of them."""
    return sha256(b"berm operator key" + operator_key).hexdigest()[:16]


def stamp(directory: Path) -> tuple[int, int]:
    """What changes with every change of the keys; it costs one system call.

    Raises:
        KeysError: the file can't be found.
    """
    try:
        status = os.stat(directory / KEYS)
    except OSError as error:
        raise KeysError(f"{directory / KEYS}: {error.strerror}; restore it from a backup, or from {COPY}") from None
    return status.st_ino, status.st_mtime_ns


def read(directory: Path, sources: Sequence[KeySource]) -> Keyring:
    """The keys in a data directory, by the operator's key or an earlier one.

    Raises:
        KeysError: there are none, they are damaged, or none of these is the operator's key.
    """
    return _open(directory, sources, sources[0].read())


def begin(directory: Path, sources: Sequence[KeySource], now: int, days: int = 0) -> Keyring:
    """Begin a run that encrypts; its epoch is the keyring's revision.

    Makes the first data key where there is none, and another one where the last is so many days old; wraps them with
    the operator's key, the first of the sources, where they are wrapped with an earlier one.

    Raises:
        KeysError: as of `read`, or the file can't be written, or it is gone and something is encrypted.
    """
    operator_key = sources[0].read()  # which may take long: nobody waits for it
    with _locked(directory):
        if is_encrypted(directory):
            keyring = _open(directory, sources, operator_key)
            if keyring.due(now, days) or (directory / RENEW).exists():
                keyring = keyring.with_new_key(now)
        else:
            need_no_keys(directory)
            keyring = Keyring(0, "", {}, {}).with_new_key(now)
        keyring = _write(directory, keyring, operator_key)
        (directory / RENEW).unlink(missing_ok=True)
        return keyring


def rotate(directory: Path, sources: Sequence[KeySource], now: int) -> Keyring:
    """Make a new data key for all that is written from now on.

    Raises:
        KeysError: as of `begin`.
    """
    operator_key = sources[0].read()
    with _locked(directory):
        return _write(directory, _open(directory, sources, operator_key).with_new_key(now), operator_key)


def rewrap(directory: Path, sources: Sequence[KeySource]) -> Keyring:
    """Wrap the data keys with the first of these operator's keys, whichever of them they are wrapped with.

    Raises:
        KeysError: as of `begin`.
    """
    operator_key = sources[0].read()
    with _locked(directory):
        return _write(directory, _open(directory, sources, operator_key), operator_key)


def _open(directory: Path, sources: Sequence[KeySource], first_key: bytes) -> Keyring:
    """The keys, from the file with the highest revision that one of the operator's keys fits."""
    files, problems = _files(directory)
    if not files:
        raise KeysError(f"{'; '.join(problems)}; restore it from a backup: without it nothing can be decrypted")
    file, operator_key = _fitting(directory, files, sources, first_key)
    keys = {key.number: _unwrap(directory, key, operator_key) for key in file.keys}
    since = {key.number: key.since for key in file.keys}
    return Keyring(files[0].revision, file.operator, keys, since, tuple(problems))


def _fitting(
    directory: Path, files: Sequence[KeysFile], sources: Sequence[KeySource], first_key: bytes
) -> tuple[KeysFile, bytes]:
    """A file, and the operator's key that it was made with."""
    for source in sources:
        operator_key = first_key if source is sources[0] else source.read()
        check = check_of(operator_key)
        for file in files:
            if file.operator == check:
                return file, operator_key
    given = f"{sources[0]} holds another" if len(sources) == 1 else "none of the keys that were given is it"
    raise KeysError(
        f"{directory} is encrypted with the operator's key {files[0].operator}, and {given} ({check_of(first_key)}); "
        "nothing was changed; give the right one in [encryption]"
    )


def _files(directory: Path) -> tuple[list[KeysFile], list[str]]:
    """Those of the two files that are sound, the higher revision first, and what is wrong with the others."""
    files: list[KeysFile] = []
    problems: list[str] = []
    for path in (directory / KEYS, directory / COPY):
        try:
            files.append(KeysFile.unpack(path.read_bytes(), path))
        except OSError as error:
            problems.append(f"{path}: {error.strerror}")
        except KeysError as error:
            problems.append(str(error))
    return sorted(files, key=lambda file: -file.revision), problems


def _unwrap(directory: Path, key: WrappedKey, operator_key: bytes) -> DataKey:
    try:
        plain = aes_key_unwrap(operator_key, key.wrapped)
    except InvalidUnwrap:
        plain = b""
    if int.from_bytes(plain[:_NUMBER_BYTES], "big") != key.number or len(plain) != _NUMBER_BYTES + KEY_BYTES:
        raise KeysError(f"{directory / KEYS} was changed (key {key.number}); restore it from a backup")
    return DataKey(key.number, plain[_NUMBER_BYTES:])


def _wrap(key: DataKey, since: int, operator_key: bytes) -> WrappedKey:
    plain = key.number.to_bytes(_NUMBER_BYTES, "big") + key.secret
    return WrappedKey(key.number, since, aes_key_wrap(operator_key, plain))


def _write(directory: Path, keyring: Keyring, operator_key: bytes) -> Keyring:
    """Write the keys as the next revision, wrapped with this key; what they are then."""
    revision = keyring.revision + 1
    if revision > LAST_REVISION:
        raise KeysError(f"{directory / KEYS} has been changed {LAST_REVISION} times, and can't be changed any more")
    check = check_of(operator_key)
    numbers = sorted(keyring.keys)
    wrapped = tuple(_wrap(keyring.keys[number], keyring.since[number], operator_key) for number in numbers)
    data = KeysFile(check, revision, wrapped).pack()
    for name in (COPY, KEYS):
        _replace(directory / name, data)
    return replace(keyring, revision=revision, operator=check)


def _replace(path: Path, data: bytes) -> None:
    """Put a file in the place of another, so that either is there whole, whatever happens."""
    new = path.with_name(f"{path.name}.new")
    try:
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            if os.geteuid() == 0:  # a command; the node may be somebody else
                owner = os.stat(path.parent)
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(new, path)
        sync_directory(path.parent)
    except OSError as error:
        raise KeysError(f"writing {path}: {error.strerror}; see whether there is room on the disk") from error


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep others who change the keys waiting."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise KeysError(f"{directory}: {error.strerror}; name a node's data directory") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

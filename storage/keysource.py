"""Where the operator's key comes from: a file, an environment variable, or what a command prints.

The rules:

1. A key is 32 bytes; as such, as 64 hexadecimal digits, or in base64. Nothing else is taken for one, least of all a
   password: what can be guessed is no key.
2. A file that others than its owner can read is refused: the key in it is no secret any more. Where root owns it, and
   the node isn't root, its group may read it: an ACL looks like that, by which systemd hands over secrets.
3. A key is in memory only, and in no message.
"""

from __future__ import annotations

import binascii
import os
import re
import stat
import subprocess
from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from storage.interface import StorageError

KEYS: Final = "berm.keys"
COPY: Final = "berm.keys.copy"
"""What a data directory's own keys are kept in, see `storage.keys`."""
RENEW: Final = "berm.keys.renew"
"""Stands there after a restore: the next run encrypts with a new data key."""
OPERATOR_KEY_BYTES: Final = 32
COMMAND_SECONDS: Final = 30
"""How long a command may take."""
_MOST_BYTES: Final = 4096
"""A file that has more holds no key."""
_FORMS: Final = "32 random bytes, as such, as 64 hexadecimal digits or in base64; `berm keys new` makes one"


class KeysError(StorageError):
    """What is encrypted can't be opened, or nothing can be encrypted: the key or the file of keys isn't as it must be.

    Nothing was changed; the message says what was tried, why it failed and what to do.
    """


def is_encrypted(directory: Path) -> bool:
    """Whether a data directory has keys of its own."""
    return any((directory / name).exists() for name in (KEYS, COPY))


class KeySource(Protocol):
    """Gives the operator's key; its text says from where."""

    def read(self) -> bytes:
        """The key.

        Raises:
            KeysError: there is none, or it is no key.
        """


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A file that nobody else can read."""

    path: Path

    def __str__(self) -> str:
        return f"the file {self.path}"

    def read(self) -> bytes:
        """The key in it.

        Raises:
            KeysError: it can't be read, others can read it too, or there is no key in it.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would make it wait
        except OSError as error:
            raise self._unreadable(error) from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise KeysError(f"reading the encryption key: {self.path} is not a file; name one that holds the key")
            mode = stat.S_IMODE(status.st_mode)
            if mode & (0o037 if status.st_uid == 0 and os.geteuid() != 0 else 0o077):
                raise KeysError(
                    f"reading the encryption key: {self.path} is open to others than its owner (mode {mode:04o}); "
                    "make it 0600, and think of making a new key"
                )
            data = os.read(descriptor, _MOST_BYTES)
        except OSError as error:
            raise self._unreadable(error) from None
        finally:
            os.close(descriptor)
        return parse_key(data, str(self))

    def _unreadable(self, error: OSError) -> KeysError:
        return KeysError(
            f"reading the encryption key: {self.path}: {error.strerror}; "
            "see whether the file is there and whether the node may read it"
        )


@dataclass(frozen=True, slots=True)
class KeyVariable:
    """An environment variable."""

    name: str

    def __str__(self) -> str:
        return f"the environment variable {self.name}"

    def read(self) -> bytes:
        """The key in it.

        Raises:
            KeysError: it isn't set, or there is no key in it.
        """
        value = os.environ.get(self.name)
        if value is None:
            raise KeysError(f"reading the encryption key: {self} is not set; set it to the key")
        return parse_key(os.fsencode(value), str(self))


@dataclass(frozen=True, slots=True)
class KeyCommand:
    """A command that prints the key, such as one that asks a key management service."""

    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"the command {self.arguments[0]}"

    def read(self) -> bytes:
        """What it prints.

        Raises:
            KeysError: it can't be run, fails, takes too long, or prints no key.
        """
        try:
            done = subprocess.run(
                self.arguments, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_SECONDS, check=False
            )
        except OSError as error:
            raise self._failed(f"can't be run: {error.strerror}") from None
        except subprocess.TimeoutExpired:
            raise self._failed(f"took longer than {COMMAND_SECONDS} s") from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise self._failed(f"ended with {done.returncode}" + (f": {said[-1]}" if said else ""))
        return parse_key(done.stdout, str(self))

    def _failed(self, reason: str) -> KeysError:
        return KeysError(f"reading the encryption key: {self} {reason}; see why by running it as the node's user")


def parse_key(data: bytes, source: str) -> bytes:
    """The key that these bytes are, or write out.

    Raises:
        KeysError: they are none.
    """
    if len(data) == OPERATOR_KEY_BYTES and not (data.isascii() and data.decode().isprintable()):
        return data
    text = data.strip()
    if re.fullmatch(rb"[0-9A-Fa-f]{64}", text):
        return bytes.fromhex(text.decode())
    if re.fullmatch(rb"[0-9A-Za-z+/_-]{43}=?", text):
        try:
            key = b64decode(text.rstrip(b"=") + b"=", altchars=b"-_" if {*b"-_"} & {*text} else None, validate=True)
        except binascii.Error:
            pass
        else:
            if len(key) == OPERATOR_KEY_BYTES:
                return key
    raise KeysError(f"reading the encryption key: {source} holds none; a key is {_FORMS}")

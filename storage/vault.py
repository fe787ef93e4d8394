"""Encrypts single values, such as the payload of a row, and decrypts them: AES-256-GCM.

The rules:

1. A sealed value is: version (u8, 1), number of the data key (u32), nonce, ciphertext, tag: 33 bytes more than the
   value. The key is derived from the data key for values only.
2. The nonce is the epoch of the run (u32) and a counter (u64), both little-endian. No two runs of a directory have the
   same epoch (`storage.keys`), and it is on the disk before anything is encrypted. The counter begins somewhere: where
   a directory was copied, or put back to what it was, and its epochs come again, the nonces don't.
3. Each value is bound to a context that says where it belongs: one that was moved doesn't open.
4. One thread changes the keys; any may seal and open meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from struct import Struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from storage import keys
from storage.datakey import DataKey
from storage.interface import StorageError
from storage.keys import Keyring
from storage.keysource import KEYS, KeysError, KeySource

OVERHEAD: Final = 33
"""Bytes by which a sealed value is longer."""

_PURPOSE: Final = b"berm value"
_VERSION: Final = 1
_START: Final = Struct("<BI")
_EPOCH: Final = Struct("<I")
_COUNT: Final = Struct("<Q")
_NONCE_AT: Final = _START.size
_DATA_AT: Final = _NONCE_AT + 12
_HOUR: Final = 3_600_000_000
_GONE: Final = (0, 0)
"""The stamp of a file of keys that can't be found."""


class ValueDamaged(StorageError):
    """What was to be opened isn't what was sealed, or not there."""


class ValueLocked(KeysError):
    """The value may be intact, but its data key isn't at hand."""


class _Sealing:
    """What seals at present."""

    __slots__ = ("counter", "encrypt", "epoch", "start")

    def __init__(self, key: DataKey, epoch: int, counter: count[int]) -> None:
        self.start = _START.pack(_VERSION, key.number)
        self.epoch = _EPOCH.pack(epoch)
        self.counter = counter
        self.encrypt = AESGCM(key.derive(_PURPOSE)).encrypt


class Reader:
    """Opens what was sealed in a data directory, with these keys."""

    __slots__ = ("_keyring", "_openers")

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._openers: dict[bytes, AESGCM] = {}
        """By the first bytes of what they open."""

    @property
    def keyring(self) -> Keyring:
        """The data keys."""
        return self._keyring

    def key(self, number: int) -> DataKey | None:
        """The data key with this number, for segments."""
        return self._keyring.keys.get(number)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """The value that was sealed with this context.

        Raises:
            ValueDamaged: it isn't what was sealed, or was sealed with another context.
            ValueLocked: the data key that it was sealed with isn't at hand.
        """
        opener = self._openers.get(sealed[:_NONCE_AT])
        if opener is None:
            opener = self._opener(sealed)
        try:
            return opener.decrypt(sealed[_NONCE_AT:_DATA_AT], sealed[_DATA_AT:], context)
        except (InvalidTag, ValueError):
            raise ValueDamaged("an encrypted value is damaged, or in the place of another") from None

    def open_many(self, sealed: Iterable[bytes], contexts: Iterable[bytes]) -> list[bytes]:
        """The same for many."""
        return [self.open(each, context) for each, context in zip(sealed, contexts, strict=True)]

    def _opener(self, sealed: bytes) -> AESGCM:
        if len(sealed) < OVERHEAD or sealed[0] != _VERSION:
            raise ValueDamaged("a value is damaged: it is not as an encrypted one begins")
        _, number = _START.unpack_from(sealed)
        key = self._keyring.keys.get(number)
        if key is None:
            raise ValueLocked(
                f"a value is encrypted with data key {number}, which the data directory does not have; "
                "restore its keys from a backup"
            )
        opener = self._openers[sealed[:_NONCE_AT]] = AESGCM(key.derive(_PURPOSE))
        return opener


class Vault(Reader):
    """Seals and opens the values of a data directory, in one run of the node that holds it.

    `now` is in µs since the epoch. A data key is followed by a new one after so many `days`; 0: only when it is asked
    for.

    Raises:
        KeysError: see `storage.keys.begin`.
    """

    __slots__ = ("_again", "_counter", "_days", "_directory", "_epoch", "_sealing", "_sources", "_stamp")

    def __init__(self, directory: Path, sources: Sequence[KeySource], now: int, days: int) -> None:
        self._directory = directory
        self._sources = sources
        self._days = days
        super().__init__(keys.begin(directory, sources, now, days))
        self._stamp = keys.stamp(directory)
        self._again = 0
        """When to try again to make a new data key."""
        self._epoch = self._keyring.revision
        self._counter = count(int.from_bytes(os.urandom(8), "little") >> 1)  # it stays below 2^64 for longer than ever
        self._sealing = _Sealing(self._keyring.current, self._epoch, self._counter)

    @property
    def data_key(self) -> DataKey:
        """The data key to encrypt with at present, for segments."""
        return self._keyring.current

    def seal(self, plain: bytes, context: bytes) -> bytes:
        """The value, encrypted, and bound to this context."""
        sealing = self._sealing
        nonce = sealing.epoch + _COUNT.pack(next(sealing.counter))
        return sealing.start + nonce + sealing.encrypt(nonce, plain, context)

    def seal_many(self, plains: Iterable[bytes], contexts: Iterable[bytes]) -> list[bytes]:
        """The same for many, a little faster."""
        sealing = self._sealing
        start, epoch, counter, encrypt, pack = (
            sealing.start,
            sealing.epoch,
            sealing.counter,
            sealing.encrypt,
            _COUNT.pack,
        )
        return [
            start + (nonce := epoch + pack(next(counter))) + encrypt(nonce, plain, context)
            for plain, context in zip(plains, contexts, strict=True)
        ]

    def refresh(self, now: int) -> bool:
        """Take up keys that a command has made, or make one where the last is old; whether another one encrypts now.

        To be called from time to time. Mostly it is one system call; otherwise it takes as long as getting the
        operator's key does, so nobody should wait for the thread.

        Raises:
            KeysError: the keys can't be read or written. Those that there were go on; it is not tried again before
                the files change, or an hour has passed.
        """
        before = self._keyring.current.number
        try:
            stamp = keys.stamp(self._directory)
        except KeysError:
            told, self._stamp = self._stamp == _GONE, _GONE
            if told:
                return False
            raise
        if stamp != self._stamp:
            self._stamp = stamp
            self._take(keys.read(self._directory, self._sources))
        if self._keyring.due(now, self._days) and now >= self._again:
            self._again = now + _HOUR
            self._take(keys.rotate(self._directory, self._sources, now))
            self._stamp = keys.stamp(self._directory)
        return self._keyring.current.number != before

    def _take(self, found: Keyring) -> None:
        """Go on with these keys, if they are no others than those that there were, and perhaps some more."""
        if not self._keyring.keys.items() <= found.keys.items():
            raise KeysError(
                f"{self._directory / KEYS} is not that of this node any more; put back the one that it had, "
                "or what it has written since its start can't be decrypted after it"
            )
        self._keyring = found
        self._sealing = _Sealing(found.current, self._epoch, self._counter)

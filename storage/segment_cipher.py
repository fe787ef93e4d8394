"""Encrypts the blocks of one segment, and decrypts them: AES-256-GCM, as docs/segments.md has it.

The rules:

1. A segment has a key of its own, derived from a data key and a salt that no other segment has. So a nonce, which is
   the segment's id and the number of a block, need only be new within one segment.
2. A block is bound to its place and to what its header says: another block, or its own header changed, doesn't fit.
3. Whether a key is the right one is told by the segment's header. So a wrong key is never taken for damage.
"""

from __future__ import annotations

import os
from struct import Struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import AEADEncryptionContext, Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import GCM

from storage.datakey import KEY_BYTES, DataKey
from storage.segment_format import CHECK_BYTES, SALT_BYTES, BlockHeader, Damaged

_PURPOSE: Final = b"berm segment"
_NUMBER: Final = Struct("<I")


class SegmentCipher:
    """What one segment is encrypted with."""

    __slots__ = ("_opener", "_secret", "check", "number", "salt")

    def __init__(self, key: DataKey, salt: bytes | None = None) -> None:
        """Without a salt: for a new segment."""
        self.number = key.number
        self.salt = os.urandom(SALT_BYTES) if salt is None else salt
        derived = key.derive(_PURPOSE + self.salt, KEY_BYTES + CHECK_BYTES)
        self._secret, self.check = derived[:KEY_BYTES], derived[KEY_BYTES:]
        self._opener = AESGCM(self._secret)

    def sealing(self, header: BlockHeader) -> AEADEncryptionContext:
        """Encrypts the block with this header; to be used once for each number."""
        encryptor = Cipher(AES256(self._secret), GCM(_nonce(header))).encryptor()
        encryptor.authenticate_additional_data(header.bound())
        return encryptor

    def open(self, header: BlockHeader, data: bytes) -> bytes:
        """Head and body of a block.

        Raises:
            Damaged: they aren't what was written.
        """
        try:
            return self._opener.decrypt(_nonce(header), data, header.bound())
        except InvalidTag:
            raise Damaged("its authentication tag does not match") from None


def _nonce(header: BlockHeader) -> bytes:
    return header.id + _NUMBER.pack(header.number)

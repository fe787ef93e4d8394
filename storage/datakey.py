"""A data key: what encrypts is derived from it, with another purpose for each kind of thing that is encrypted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

KEY_BYTES: Final = 32
"""Of a key for AES-256."""


@dataclass(frozen=True, slots=True)
class DataKey:
    """One of the keys that a data directory has had, by its number, from 1."""

    number: int
    secret: bytes = field(repr=False)

    def derive(self, purpose: bytes, size: int = KEY_BYTES) -> bytes:
        """So many bytes for one purpose: HKDF-Expand (RFC 5869) with SHA-256; the data key is uniform already."""
        return HKDFExpand(SHA256(), size, purpose).derive(self.secret)


Keys = Callable[[int], DataKey | None]
"""The data key with a number, where there is one."""

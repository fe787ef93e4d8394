"""What the system says when something with a socket fails, in its own words: event loops put others around them."""

from __future__ import annotations

import os
from socket import gaierror


class ListenError(OSError):
    """An address can't be listened on; `listener` is the name of the one that was to."""

    def __init__(self, listener: str, address: str, error: Exception) -> None:
        super().__init__(f"cannot listen on {address}: {words(error)}")
        self.listener = listener


def words(error: Exception) -> str:
    """Such as `connection refused`; empty where the error says nothing."""
    if isinstance(error, OSError) and not isinstance(error, gaierror) and error.errno:
        return os.strerror(error.errno).lower()
    return str(getattr(error, "strerror", None) or error).lower()

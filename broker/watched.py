"""A file that is read anew when it changes, and whose last good content goes on where the new one can't be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

_Stamp = tuple[int, int, int] | None


class FileError(Exception):
    """A file can't be used; the message says which (and which line), why, and what to do."""


class Watched(Generic[T]):
    """What a file says, as `parse` has it: `parse` takes the text, and the path for its messages.

    Raises:
        FileError: the file can't be read, or is wrong.
    """

    def __init__(self, path: Path, parse: Callable[[str, str], T]) -> None:
        self.path = path
        self._parse = parse
        self._seen = self._stamp()
        self._loaded: _Stamp = None
        self.current = self.read()

    def changed(self) -> bool:
        """Whether it has changed since it was read, and not since the last question. Looks at the file system.

        The answer is yes once for each change, whether or not what is read then can be used.
        """
        seen, self._seen = self._seen, self._stamp()
        if self._seen == self._loaded or self._seen != seen:
            return False
        self._loaded = self._seen
        return True

    def read(self) -> T:
        """What it says now. Blocks. It is for the caller to make that `current`.

        Raises:
            FileError: it can't be read, or is wrong.
        """
        self._loaded = self._stamp()  # before it is read: what changes meanwhile is a change
        try:
            text = self.path.read_bytes().decode()
        except OSError as error:
            raise FileError(f"{self.path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            raise FileError(f"{self.path}:{line}: not UTF-8; write the line again") from None
        return self._parse(text, str(self.path))

    def _stamp(self) -> _Stamp:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

"""The segments of a directory, as who only copies them sees them: by their headers, without keys, changing nothing."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from storage.catalog import LARGEST, seqs_in
from storage.segment_format import HEADER_BYTES, Damaged, Header
from storage.segment_rebuild import Range

Key = tuple[int, int, int]
"""What tells a file from another one that has taken its name: inode, time of change, size."""
Files = dict[str, Key]
"""By name."""

_NONE: Final[Range] = (LARGEST, LARGEST)


class Sealed:
    """The segments of a directory, which need not be there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._served: dict[tuple[str, Key], Range] = {}

    def files(self) -> Files:
        """Those that there are now.

        Raises:
            OSError: the directory can't be read.
        """
        found: Files = {}
        with suppress(FileNotFoundError), os.scandir(self.directory) as entries:
            for entry in entries:
                if seqs_in(entry.name):
                    with suppress(FileNotFoundError):  # it has gone meanwhile
                        status = entry.stat()
                        found[entry.name] = status.st_ino, status.st_mtime_ns, status.st_size
        return found

    def find(self, after: int) -> tuple[bool, int]:
        """Whether a segment serves the seq that follows this one, and up to which seq that is so.

        Raises:
            OSError: the directory can't be read.
        """
        files = self.files().items()
        self._served = {item: self._served.get(item) or self._range(item[0]) for item in files}
        upto = LARGEST
        for first, last in self._served.values():
            if first <= after + 1 <= last:
                return True, last
            if first > after + 1:
                upto = min(upto, first - 1)
        return False, upto

    def _range(self, name: str) -> Range:
        """The seqs that one serves; none where that can't be told."""
        with suppress(OSError), (self.directory / name).open("rb") as file:
            header = header_of(file.fileno())
            if header is not None:
                return header.first, header.last
        return _NONE


def header_of(file: int) -> Header | None:
    """The header of a segment, or the copy of it; None where both are damaged."""
    for place in (0, max(0, os.fstat(file).st_size - HEADER_BYTES)):
        with suppress(Damaged, OSError):
            return Header.unpack(os.pread(file, HEADER_BYTES, place))
    return None

"""`berm`, with a clock that a test moves: what takes hours takes a moment, and nothing sleeps.

Run as a program, in place of `berm`: the environment's BERM_TEST_CLOCK names a file of eight bytes, the nanoseconds by
which the node's clock is ahead. `Clock` is the test's end of it.
"""

from __future__ import annotations

import os
import sys
import time
from mmap import mmap
from pathlib import Path
from struct import Struct
from typing import Final

VARIABLE: Final = "BERM_TEST_CLOCK"
COMMAND: Final = (sys.executable, str(Path(__file__)))
"""Stands for `berm`."""

_ahead = Struct("<q")


class Clock:
    """How far the clock of the nodes that look at this file is ahead."""

    def __init__(self, file: Path) -> None:
        file.write_bytes(_ahead.pack(0))
        with file.open("r+b") as opened:
            self._map = mmap(opened.fileno(), _ahead.size)

    def advance(self, seconds: float) -> None:
        """Let that much time pass at once."""
        _ahead.pack_into(self._map, 0, _ahead.unpack_from(self._map, 0)[0] + int(seconds * 1e9))


def _main() -> None:
    with Path(os.environ[VARIABLE]).open("r+b") as opened:
        shared = mmap(opened.fileno(), _ahead.size)
    real = time.time_ns
    time.time_ns = lambda: real() + int(_ahead.unpack_from(shared, 0)[0])

    from berm.cli import main  # after the clock, which it takes by its name

    main()


if __name__ == "__main__":
    sys.path.pop(0)  # this folder
    _main()

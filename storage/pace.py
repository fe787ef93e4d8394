"""Holds back who reads or writes much beside a node."""

from __future__ import annotations

from time import monotonic, sleep


class Pace:
    """Is told how many bytes were moved; waits where that is more than `limit` per second, on the average. 0: never."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._began = monotonic()
        self._moved = 0

    def __call__(self, size: int) -> None:
        self._moved += size
        if self._limit and (early := self._moved / self._limit - (monotonic() - self._began)) > 0:
            sleep(early)

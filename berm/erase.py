"""Has what clients have published, or what topics have, erased: by the node that runs, or by this process.

A request is a file in the data directory; see storage/erasure.py. Whoever holds the directory carries it out, and who
asks waits for the report. Where no node runs, this process holds the directory for as long as it takes; where one ends
meanwhile, it takes over from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Final

import orjson

from berm.keys import vault
from berm.settings import Settings
from berm.status import lock_holder
from broker.mqtt.topic import compile_filters
from storage.erasure import REPORT, Matcher, Request, ask, count
from storage.interface import Event, StorageError
from storage.retention import Retention
from storage.sealer import Policy
from storage.sqlite import SQLiteEngine

POLL: Final = 0.1
"""Seconds between two looks for the report."""
READ: Final = 500

Report = dict[str, object]


def request(clients: Sequence[str], topics: Sequence[str], reference: str) -> Request:
    """What is asked for, named by now."""
    return Request(datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ"), tuple(clients), tuple(topics), reference)


def preview(engine: SQLiteEngine, asked: Request) -> Counter[str]:
    """How much there is to erase, by where it is.

    Raises:
        StorageError: the log can't be read.
    """
    return count(engine.rows, _events(engine), Matcher(asked, compile_filters))


def erase(settings: Settings, asked: Request, now: int, waiting: Callable[[], bool]) -> Path:
    """Erase, and wait until it is done; the report. `waiting` is called again and again, and ends it by False.

    Raises:
        InterruptedError: it was ended. What was asked for is done all the same, by the node or by the next one.
        KeysError: the data directory is encrypted, and the keys aren't at hand.
        OSError: the data directory can't be written.
        StorageError: the log can't be opened.
    """
    data = settings.storage.path
    report = ask(data, asked).with_suffix(REPORT)
    while not report.exists():
        if not waiting():
            raise InterruptedError
        if lock_holder(data) is not None:
            sleep(POLL)
            continue
        try:
            engine = SQLiteEngine(
                data,
                policy=Policy(bytes=0),
                unlock=lambda: vault(settings, now),
                retention=Retention(compile=compile_filters),
            )
        except StorageError:
            if lock_holder(data) is None:
                raise
            continue  # a node has come first
        try:
            _work(engine, report, waiting)
        finally:
            engine.close()
    return report


def read(report: Path) -> Report:
    """What a report says."""
    found: Report = orjson.loads(report.read_bytes())
    return found


def _work(engine: SQLiteEngine, report: Path, waiting: Callable[[], bool]) -> None:
    told = monotonic()
    while not report.exists():
        if not engine.upkeep():
            sleep(POLL)
        if monotonic() - told >= POLL:
            told = monotonic()
            if not waiting():
                raise InterruptedError
    while engine.upkeep():
        pass  # the request is removed last


def _events(engine: SQLiteEngine) -> Iterator[Event]:
    position, last = 0, engine.last()
    while position < last:
        events, position = engine.read(position, last, READ, None)
        yield from events

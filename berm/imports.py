"""Puts the messages of a file into the log of a node that is stopped.

The rules:

1. The whole file is read and checked before anything is written.
2. Messages get new seqs, behind all that there are, in the order of the file. They keep their times, and these never
   run backwards along the log: messages that are older than its last event are refused, unless all of them are given
   the time of the import.
3. They are written in groups, each in one transaction, with a row that says how far the file has come. So where an
   import is interrupted, however that is, what is in the log is a beginning of the file, and the next import of it says
   with what `--skip` to go on, so that no message is there twice.
4. Only where it is asked for, messages that were retained are so again, the last one of each topic, unless it has
   expired. Those whose events are not in the file, as all of a mosquitto.db, are published by the import, so that each
   has its place in the log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from berm.sources import Message, SourceError, messages
from berm.times import format_time
from broker.rights import has_many_levels
from storage.interface import FSYNC, META, RETAINED, Engine, Event, StorageError
from storage.log import Log

GROUP_EVENTS: Final = 2000
"""Messages in a group at most,"""
GROUP_BYTES: Final = 4 << 20
"""and bytes that it weighs in memory."""
RING_BYTES: Final = 1 << 20
"""What the log remembers of them: nobody reads here."""
TURNS: Final = 64
"""Turns of upkeep after each group at most."""


class ImportRefusedError(Exception):
    """The file can't go into this log; the message says why, and what would do. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to import. `skip` messages at the begin of the file are in the log already."""

    retained: bool = False
    now: bool = False
    skip: int = 0


@dataclass(frozen=True, slots=True)
class Checked:
    """A file that has been read and found good: how many messages of it are to be imported, and its fingerprint."""

    path: Path
    options: Options
    count: int
    first_ts: int | None
    """The time of the first one after those that are skipped; None where there is none, or the file has no times."""
    digest: str


@dataclass(slots=True)
class Report:
    """What has come into the log so far."""

    done: int = 0
    """Messages, with those that were skipped."""
    events: int = 0
    retained: int = 0
    """Topics whose retained message was set or removed."""

    def __str__(self) -> str:
        text = f"imported {self.events:,} events"
        return f"{text}, set {self.retained:,} retained messages" if self.retained else text


def check(path: Path, options: Options, now: int) -> Checked:
    """Read the whole file.

    Raises:
        SourceError: it can't be read, is none of ours, or has something in it that can't be imported.
    """
    count = 0
    first_ts: int | None = None
    last_ts = 0
    for message in _wanted(path, options):
        if not options.now and not message.kept:
            where = f"{path}: message {count + 1}"
            if message.ts is None:
                raise SourceError(f"{where}: has no time; --now gives all of them the time of the import")
            if message.ts < last_ts:
                raise SourceError(
                    f"{where}: {format_time(message.ts)} is before the one before it; sort them, or --now gives all of "
                    "them the time of the import"
                )
            if message.ts > now:
                raise SourceError(f"{where}: {format_time(message.ts)} is in the future")
            last_ts = message.ts
            if count == options.skip:
                first_ts = message.ts
        count += 1
    if options.skip > count:
        raise SourceError(f"{path}: has {count} messages; {options.skip} can't be skipped")
    return Checked(path, options, count, first_ts, _digest(path))


def run(
    engine: Engine,
    checked: Checked,
    now: int,
    report: Report,
    step: Callable[[int, int], None],
    stopped: Callable[[], bool] = lambda: False,
) -> bool:
    """Import; whether all of it is done: after each group `stopped` is asked whether to go on later.

    `report` is kept up to date on the way, and `step` called with messages done, of how many.

    Raises:
        ImportRefusedError: the log is in the way. Nothing was changed.
        SourceError: the file has changed since it was checked.
        StorageError: the log can't be written any more.
    """
    check_log(engine, checked)
    unfinished = (_unfinished(checked),)
    log = Log(engine, _AtOnce(), _AtOnce(), RING_BYTES)
    report.done = done = checked.options.skip
    gathered = Report()
    for message in islice(_wanted(checked.path, checked.options), done, None):
        event = _append(log, message, now, checked.options)
        gathered.events += 1
        if checked.options.retained or message.kept:
            gathered.retained += _retain(log, event, now)
        if len(log.open.events) < GROUP_EVENTS and log.open.weight < GROUP_BYTES:
            continue
        done += gathered.events
        log.open.put(META, unfinished, (str(done),))
        _commit(log, report, gathered)
        step(report.done, checked.count)
        if stopped():
            _finish(log)
            return False
    log.open.delete(META, unfinished)
    _commit(log, report, gathered)
    _finish(log)
    return True


def _wanted(path: Path, options: Options) -> Iterator[Message]:
    """What is to be imported. A file that only has retained messages, without times, is imported for these."""
    for message in messages(path):
        if not message.kept or options.retained or message.ts is None:
            yield message


def check_log(engine: Engine, checked: Checked) -> None:
    """Check that a file can go into a log.

    Raises:
        ImportRefusedError: the log is in the way.
        StorageError: the log can't be read.
    """
    skip = checked.options.skip
    unfinished = _unfinished(checked)
    for name, value in engine.rows(META):
        if name == unfinished and isinstance(value, str) and value != str(skip):
            raise ImportRefusedError(
                f"{checked.path}: an import of it was interrupted, with {value} messages in the log; "
                f"go on with --skip {value}"
            )
    last_ts = engine.last_ts()
    if checked.first_ts is not None and checked.first_ts < last_ts:
        raise ImportRefusedError(
            f"{checked.path}: begins at {format_time(checked.first_ts)}, and the log ends at {format_time(last_ts)}: "
            "times never run backwards along it; import into an empty data directory, or with --now"
        )


def _unfinished(checked: Checked) -> str:
    """The row of META that says how far this file has come, for as long as it has not come to its end."""
    return f"import {checked.digest}"


def _append(log: Log, message: Message, now: int, options: Options) -> Event:
    ts = now if options.now or message.kept or message.ts is None else message.ts
    return log.append(
        ts,
        message.topic,
        message.payload,
        message.qos,
        message.retain or message.kept,
        message.client,
        message.properties,
        message.expires,
        FSYNC,
    )


def _retain(log: Log, event: Event, now: int) -> int:
    """Do what a broker would do with the retained message that it is, if it is one; how many topics that concerns."""
    if not event.retain or has_many_levels(event.topic):
        return 0
    if event.payload and not 0 < event.expires <= now:
        values = (event.seq, event.ts, event.payload, event.qos, event.client, event.properties, event.expires)
        log.open.put(RETAINED, (event.topic,), values)
    else:
        log.open.delete(RETAINED, (event.topic,))
    return 1


def _commit(log: Log, report: Report, gathered: Report) -> None:
    """Write the open group, and count it once it is kept."""
    log.flush()
    if log.failure is not None:
        raise log.failure
    report.done += gathered.events
    report.events += gathered.events
    report.retained += gathered.retained
    gathered.events = gathered.retained = 0


def _finish(log: Log) -> None:
    """Give back the seqs that were reserved and not used."""
    log.drain(_nothing)
    if log.failure is not None:
        raise log.failure


def _nothing() -> None:
    """Whatever there was to wait for is over when a call returns."""


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from None


class _AtOnce:
    """A worker that does what it is given before it returns: there is no loop that could wait."""

    def submit(
        self,
        work: Callable[[], object],
        done: Callable[[object, BaseException | None], None],
        after: Callable[[], object] | None = None,
    ) -> None:
        """Run `work`, `done` and `after`, one after another."""
        try:
            result = work()
        except StorageError as error:
            done(None, error)
            return
        done(result, None)
        if after is not None:
            for _ in range(TURNS):
                if not after():
                    break

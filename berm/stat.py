"""What the log takes on the disk, how fast it grows, and how long there will be room: `berm log stat`.

Rates come from what is in the log, so they are those of the last hour and day whether a node runs or not; a segment
that lies in a period with a part of it counts with that part. What a node writes to its disk is what the system says of
its process: all that it has caused to be written since its start, the WAL, checkpoints and segments.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import orjson

from berm.settings import RetentionSection
from berm.status import DATABASE, lock_holder
from berm.times import format_time
from storage.catalog import Stretch
from storage.guard import measure
from storage.sqlite import SQLiteEngine

SECOND: Final = 1_000_000
"""µs"""
HOUR: Final = 3600
DAY: Final = 86_400
"""s"""


@dataclass(frozen=True, slots=True)
class Segment:
    """One sealed segment. Times are ISO 8601 in UTC, None where the file can't be read."""

    name: str
    events: int
    bytes: int
    first_time: str | None
    last_time: str | None


@dataclass(frozen=True, slots=True)
class Rate:
    """How much has come in the last so many seconds, or since the oldest event where that is later."""

    seconds: float
    events: int
    events_per_second: float
    bytes_per_second: float
    """On the disk, once it is sealed."""


@dataclass(frozen=True, slots=True)
class Stat:
    """The log of a data directory. Sizes are in bytes; days are None where there is no bound, or nothing comes."""

    data: str
    segments: tuple[Segment, ...]
    segment_events: int
    segment_bytes: int
    bytes_per_event: float | None
    """Of what is sealed."""
    unsealed_events: int
    database_bytes: int
    first_time: str | None
    last_time: str | None
    hour: Rate | None
    day: Rate | None
    disk_free: int
    days_until_disk_full: float | None
    days_until_bytes: float | None
    """Until retention begins to take the oldest segments for their bytes."""
    written_per_day: int | None
    """What the running node writes to its disk."""


def gather(engine: SQLiteEngine, data: Path, retention: RetentionSection, low_space: int, now: int) -> Stat:
    """Look at a data directory, at a time in µs since the epoch.

    Raises:
        OSError: the directory can't be looked at.
        StorageError: the log can't be read.
    """
    segments = engine.segments
    events, size = sum(each.events for each in segments), sum(each.size for each in segments)
    unsealed = engine.unsealed(0)
    database = sum(path.stat().st_size for path in data.glob(f"{DATABASE}*") if path.is_file())
    oldest = engine.oldest()[1]
    each_bytes = size / events if events else database / unsealed if unsealed else 0.0
    hour, day = (_rate(engine, segments, oldest, now, seconds, each_bytes) for seconds in (HOUR, DAY))
    growth = 0.0 if day is None else day.bytes_per_second * DAY
    free, _ = measure(data)
    return Stat(
        data=str(data),
        segments=tuple(map(_segment, segments)),
        segment_events=events,
        segment_bytes=size,
        bytes_per_event=size / events if events else None,
        unsealed_events=unsealed,
        database_bytes=database,
        first_time=format_time(oldest) if oldest else None,
        last_time=format_time(engine.last_ts()) if engine.last_ts() else None,
        hour=hour,
        day=day,
        disk_free=free,
        days_until_disk_full=max(0, free - max(retention.min_free, low_space)) / growth if growth else None,
        days_until_bytes=max(0, retention.bytes - size) / growth if growth and retention.bytes else None,
        written_per_day=_written(lock_holder(data), now),
    )


def to_json(stat: Stat) -> bytes:
    """One JSON object, indented."""
    return orjson.dumps(asdict(stat), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def facts(stat: Stat) -> list[tuple[str, str]]:
    """What there is to say of all segments together, line by line."""
    lines = [("data", stat.data)]
    sealed = f"{len(stat.segments):,}, {stat.segment_events:,} events, {size_of(stat.segment_bytes)}"
    if stat.bytes_per_event is not None:
        sealed += f", {stat.bytes_per_event:.1f} bytes an event"
    lines.append(("segments", sealed))
    lines.append(("not sealed", f"{stat.unsealed_events:,} events; {DATABASE} has {size_of(stat.database_bytes)}"))
    if stat.first_time:
        lines.append(("time", f"{stat.first_time} to {stat.last_time}"))
    for name, rate in (("last hour", stat.hour), ("last day", stat.day)):
        if rate is not None:
            each = f"{rate.events_per_second:,.1f} events and {rate.bytes_per_second:,.0f} bytes a second"
            lines.append((name, f"{rate.events:,} events, {each}"))
    lines.append(("disk", f"{size_of(stat.disk_free)} free{_days(stat.days_until_disk_full, 'until it is short')}"))
    if stat.days_until_bytes is not None:
        lines.append(("retention", f"the oldest go{_days(stat.days_until_bytes, 'from now on')}".replace(",", "")))
    if stat.written_per_day is not None:
        lines.append(("flash", f"the node writes {size_of(stat.written_per_day)} a day"))
    return lines


def size_of(size: float) -> str:
    """A size in bytes, for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:,.4g} TiB"


def _days(days: float | None, words: str) -> str:
    return "" if days is None else f", {days:,.1f} days {words}"


def _segment(stretch: Stretch) -> Segment:
    first, last = (format_time(ts) if ts else None for ts in (stretch.first_ts, stretch.last_ts))
    return Segment(stretch.path.name, stretch.events, stretch.size, first, last)


def _rate(
    engine: SQLiteEngine, segments: Sequence[Stretch], oldest: int, now: int, seconds: int, each_bytes: float
) -> Rate | None:
    begin = max(now - seconds * SECOND, oldest)
    elapsed = (now - begin) / SECOND
    if not oldest or elapsed <= 0:
        return None
    events = engine.unsealed(engine.seq_before(begin))
    for each in segments:
        if each.last_ts >= begin:
            span = each.last_ts - each.first_ts
            part = 1.0 if each.first_ts >= begin or not span else (each.last_ts - begin) / span
            events += round(each.events * part)
    return Rate(round(elapsed, 3), events, events / elapsed, events * each_bytes / elapsed)


def _written(pid: int | None, now: int) -> int | None:
    """Bytes a day that a process has caused to be written; None where the system doesn't tell."""
    if not pid:
        return None
    process = Path("/proc") / str(pid)
    try:
        counts = dict(line.split(": ") for line in (process / "io").read_text().splitlines())
        ticks = int((process / "stat").read_text().rpartition(")")[2].split()[19])
        booted = next(
            int(line.split()[1]) for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime ")
        )
    except (OSError, ValueError, StopIteration):
        return None
    seconds = now / SECOND - booted - ticks / os.sysconf("SC_CLK_TCK")
    written = int(counts["write_bytes"]) - int(counts["cancelled_write_bytes"])
    return round(max(0, written) / seconds * DAY) if seconds >= 1 else None

"""Times as people write them on a command line. Results are in µs since the Unix epoch, like those in the log."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final

SECOND: Final = 1_000_000
"""µs"""
UNITS: Final = {"s": SECOND, "m": 60 * SECOND, "h": 3600 * SECOND, "d": 86400 * SECOND}
FORMS: Final = "10:00, 10:00:05.5, 2026-03-01, 2026-03-01T10:00, 2026-03-01T10:00Z, -90s, -5m, 2h, 2h ago, -1d or now"
"""What is understood, for messages."""

_AGO: Final = re.compile(r"-?(\d{1,9}(?:\.\d+)?)([smhd])(?: ago)?", re.ASCII)
_CLOCK: Final = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d)(?:\.(\d{1,6}))?)?", re.ASCII)
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d([T ].*)?", re.ASCII)
_EPOCH: Final = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
_MICROSECOND: Final = timedelta(microseconds=1)


def parse_time(text: str, now: int, since: int | None = None) -> int:
    """The time that a text means at the time `now`: one of `FORMS`.

    What has no zone is local. A time of day is its last occurrence, or with `since` the first one from there on.

    Raises:
        ValueError: it is none of these, or there is no such time.
    """
    if text == "now":
        return now
    if ago := _AGO.fullmatch(text):
        return now - round(float(ago[1]) * UNITS[ago[2]])
    try:
        if clock := _CLOCK.fullmatch(text):
            return _clock(clock, now, since)
        if _DATE.fullmatch(text):
            return _since_epoch(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r}: there is no such time; write it like {FORMS}") from None
    raise ValueError(f"{text!r} is not a time; write it like {FORMS}")


def format_time(ts: int) -> str:
    """ISO 8601 in UTC, to the microsecond."""
    return f"{(_EPOCH + ts * _MICROSECOND).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def _clock(clock: re.Match[str], now: int, since: int | None) -> int:
    hour, minute, second = int(clock[1]), int(clock[2]), int(clock[3] or 0)
    microsecond = int((clock[4] or "").ljust(6, "0"))
    today = datetime.fromtimestamp((now if since is None else since) // SECOND)
    # The day is moved on the local calendar, where a day need not have 24 hours.
    days = (-1, 0) if since is None else (0, 1)
    times = [
        _since_epoch(
            (today + timedelta(days=day)).replace(hour=hour, minute=minute, second=second, microsecond=microsecond)
        )
        for day in days
    ]
    if since is None:
        return times[1] if times[1] <= now else times[0]
    return times[0] if times[0] >= since else times[1]


def _since_epoch(when: datetime) -> int:
    if when.tzinfo is None:
        when = when.astimezone()
    return (when - _EPOCH) // _MICROSECOND

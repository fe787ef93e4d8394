"""What a client asks for with a replay: where it begins, how fast it goes, and where it ends.

`$replay/<words>/<filter>` is a replay as a topic filter, for every version. The words are one level of it: where to
begin, then, each behind a semicolon, how fast, and where to end:

    all                      everything that is kept
    seq=N                    from this sequence number on
    time=T                   from this time on: RFC 3339 with its zone, or seconds since the epoch
    ago=D                    from so long ago on: 90s, 15m, 2h, 7d
    last=N                   the last N messages of each topic

    speed=X                  X times as fast as it happened; without it as fast as the client takes it
    until=T                  only what came before this time; `now`: only what is there already
    to=N                     only up to this sequence number

With MQTT 5 the words may stand in a user property of the SUBSCRIBE instead, and the filters be plain ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from broker.mqtt.topic import REPLAY, SHARE

REPLAY_PROPERTY: Final = "replay"
"""The user property of a SUBSCRIBE whose value is such words for plain filters."""
MOST_LAST: Final = 10_000
"""Messages of each topic at most that `last` gives."""
_LONGEST: Final = 200
"""Characters of the words at most."""
_SEQ: Final = re.compile(r"[0-9]{1,18}")
_AGO: Final = re.compile(r"([0-9]{1,9})([smhd])")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_EPOCH: Final = re.compile(r"[0-9]{1,11}(\.[0-9]{1,6})?")
_RFC_3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_ZERO: Final = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
_MICROSECOND: Final = timedelta(microseconds=1)
_SPEED: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")


@dataclass(frozen=True, slots=True)
class Request:
    """What the words mean. Times are in µs since the epoch. Of `seq`, `time` and `last` one is set, or none: all."""

    seq: int = 0
    time: int = 0
    last: int = 0
    speed: float = 0.0
    """0: as fast as the client takes it."""
    until: int = 0
    """Only what came before this time; 0: no such end."""
    until_now: bool = False
    to: int = 0
    """Only up to this seq; 0: no such end."""

    @property
    def ends(self) -> bool:
        """Whether it is over some day, rather than going on with what comes."""
        return bool(self.until or self.until_now or self.to)


def is_replay(filter: str) -> bool:
    """Whether a topic filter is one of a replay, well-formed or not."""
    return filter.startswith(REPLAY) or filter == REPLAY[:-1]


def split_replay(filter: str) -> tuple[str, str]:
    """The words, and the topic filter behind them.

    Raises:
        ValueError: there are no words, or no filter.
    """
    words, _, inner = filter[len(REPLAY) :].partition("/")
    if not words or not inner:
        raise ValueError("a replay is $replay/<from>/<filter>")
    if is_replay(inner) or inner.startswith(SHARE):
        raise ValueError("a replay is of topics, not of another replay or a shared subscription")
    return words, inner


def parse_request(words: str, now: int) -> Request:
    """What the words mean at the time `now`, µs since the epoch.

    Raises:
        ValueError: they mean nothing; the message says which, and what would.
    """
    if len(words) > _LONGEST:
        raise ValueError(f"more than {_LONGEST} characters say where a replay begins")
    start, *options = words.split(";")
    request = _parse_start(start, now)
    seen: set[str] = set()
    for option in options:
        name, _, value = option.partition("=")
        if name in seen:
            raise ValueError(f"{name!r} is given twice")
        seen.add(name)
        if name == "speed":
            request = replace(request, speed=_parse_speed(value))
        elif name == "until" and value == "now":
            request = replace(request, until_now=True)
        elif name == "until":
            request = replace(request, until=_parse_time(value))
        elif name == "to":
            request = replace(request, to=_parse_number(name, value))
        else:
            raise ValueError(f"{option!r} is not speed=X, until=T, until=now or to=N")
    if request.to and request.to < request.seq:
        raise ValueError(f"it ends at {request.to}, before it begins")
    if request.until and request.until <= request.time:
        raise ValueError("it ends before it begins")
    return request


def _parse_start(start: str, now: int) -> Request:
    if start == "all":
        return Request()
    name, _, value = start.partition("=")
    if name == "seq":
        return Request(seq=_parse_number(name, value))
    if name == "time":
        return Request(time=_parse_time(value))
    if name == "ago":
        found = _AGO.fullmatch(value)
        if found is None:
            raise ValueError(f"{start!r} is not like ago=90s, ago=15m, ago=2h or ago=7d")
        return Request(time=max(1, now - int(found[1]) * _UNITS[found[2]] * 1_000_000))
    if name == "last":
        last = _parse_number(name, value)
        if last > MOST_LAST:
            raise ValueError(f"last={MOST_LAST} is the most")
        return Request(last=last)
    raise ValueError(f"{start!r} is not all, seq=N, time=T, ago=D or last=N")


def _parse_number(name: str, value: str) -> int:
    number = int(value) if _SEQ.fullmatch(value) else 0
    if not number:
        raise ValueError(f"{f'{name}={value}'!r}: {value!r} is no number from 1 on")
    return number


def _parse_speed(value: str) -> float:
    speed = float(value) if _SPEED.fullmatch(value) else 0.0
    if not speed:
        raise ValueError(f"'speed={value}' is not like speed=1 or speed=0.5")
    return speed


def _parse_time(value: str) -> int:
    if _EPOCH.fullmatch(value):
        seconds, _, fraction = value.partition(".")
        return max(1, int(seconds) * 1_000_000 + int(fraction.ljust(6, "0")))
    if _RFC_3339.fullmatch(value):
        try:
            return max(1, (datetime.fromisoformat(value.upper()) - _ZERO) // _MICROSECOND)
        except (ValueError, OverflowError):
            pass
    raise ValueError(f"{value!r} is not a time like 2026-03-01T10:00:00Z, or seconds since the epoch")

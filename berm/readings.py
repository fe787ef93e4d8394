"""What the parts of a node beside its broker tell of themselves: topics below $SYS/broker/, and their values."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from resource import RUSAGE_SELF, getpagesize, getrusage
from typing import Final

from bridge import Uplink
from broker.statistics import Readings
from processors.runtime import Runtime
from storage.guard import Guard
from storage.log import Log
from storage.sqlite import SQLiteEngine

_STATM: Final = Path("/proc/self/statm")
"""Where Linux says how many pages the process has; the second number is that of those in memory."""
_MAXRSS_UNIT: Final = 1 if sys.platform == "darwin" else 1024
"""Bytes."""


def memory() -> Readings:
    """The memory that the process has resident, in bytes: now, where the system tells that, and at most so far."""
    most = getrusage(RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT
    if _STATM.exists():
        now = int(_STATM.read_text().split()[1]) * getpagesize()
        yield "heap/current", now
        most = max(most, now)  # the system brings it up to date from time to time only
    yield "heap/maximum", most


def disk(guard: Guard) -> Readings:
    """The room that is left on the log's disk, in bytes, and what has been given up for want of it."""
    yield "berm/disk/free", guard.free
    yield "berm/disk/level", int(guard.level)


def retention(engine: SQLiteEngine) -> Readings:
    """What retention has taken since the log began, and what of it readers had not read."""
    taken = engine.retention
    yield "berm/retention/segments", taken.segments
    yield "berm/retention/events", taken.events
    yield "berm/retention/bytes", taken.bytes
    yield "berm/dropped/retention", taken.losses.events
    for name, events in taken.losses.cursors.items():
        yield f"berm/dropped/retention/{name}", events


def processors(runtimes: Iterable[Runtime], log: Log) -> Readings:
    """How far each processor is, and what has come of the events that it has taken."""
    for runtime in runtimes:
        topic = f"berm/processors/{runtime.definition.name}/"
        yield topic + "behind", max(0, log.committed - runtime.position)
        yield topic + "events", runtime.events
        yield topic + "outputs", runtime.outputs
        yield topic + "dead", runtime.dead
        yield topic + "running", int(not runtime.failure)


def bridges(uplinks: Iterable[Uplink], node: str) -> Readings:
    """Whether each bridge is connected, as Mosquitto says it and as we do, and how far each of its routes is."""
    for uplink in uplinks:
        status = uplink.status()
        yield f"connection/{node}-{status.name}/state", int(uplink.up)
        bridge = f"berm/bridges/{status.name}/"
        yield bridge + "connected", int(uplink.up)
        for route in status.routes:
            topic = f"{bridge}routes/{route.name}/"
            yield topic + "behind", route.pending
            yield topic + "inflight", route.in_flight
            yield topic + "forwarded", route.forwarded
            yield topic + "resent", route.resent
            yield topic + "acknowledged", route.acknowledged
            yield topic + "refused", route.refused
            yield topic + "oversized", route.oversized
            yield topic + "expired", route.expired
            yield topic + "looped", route.looped

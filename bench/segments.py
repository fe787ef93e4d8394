"""What sealed segments take and give: bytes for each event, events written and read in a second of one core.

    python -m bench.segments [--events 200000] [--grid] [--layouts] [--directory DIR]

The events are telemetry of a plant, in JSON of about 170 bytes: 1,000 devices report every 5 seconds, each on a topic
of its own, with six readings that are noisy and drift, a counter, and a status that is seldom anything but "ok". They
are sealed into segments of a million and read again. `--grid` tries levels of Zstandard and sizes of stripes and
blocks; `--layouts` compares other ways to arrange payloads before they are compressed. Rates are of processor time.
"""

from __future__ import annotations

import argparse
import re
import resource
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from time import perf_counter, process_time
from typing import Final

from zstandard import ZstdCompressor, train_dictionary

from bench.machine import describe
from berm.process import tune_collector
from storage.interface import FSYNC, Accepts, Event
from storage.log import READ_LIMIT
from storage.segment import Segment
from storage.segment_writer import Sealing, SegmentInfo, Shape

TOPICS: Final = 1000
PERIOD: Final = 5_000_000
"""µs between two reports of a device."""
SEGMENT: Final = 1_000_000
"""Events of a segment."""
START: Final = 1_700_000_000_000_000

_STATES: Final = ("warn", "maintenance", "fault")


@dataclass(slots=True)
class _Device:
    """One machine in the plant, and how it is doing."""

    number: int
    phase: int
    counter: int
    temperature: float
    humidity: float
    pressure: float
    vibration: float
    speed: float

    def report(self, now: int, random: Random) -> bytes:
        """Its next message."""
        gauss = random.gauss
        self.counter += 1
        self.temperature += gauss(0, 0.08)
        self.humidity += gauss(0, 0.05)
        status = "ok" if random.random() < 0.98 else random.choice(_STATES)
        return (
            f'{{"ts":{now // 1000},"device":"press-{self.number:04d}","seq":{self.counter},'
            f'"temperature":{self.temperature + gauss(0, 0.1):.2f},"humidity":{self.humidity + gauss(0, 0.2):.1f},'
            f'"pressure":{self.pressure + gauss(0, 0.05):.2f},"vibration":{abs(self.vibration + gauss(0, 0.01)):.4f},'
            f'"rpm":{self.speed + gauss(0, 6):.0f},"current":{self.speed / 400 + gauss(0, 0.02):.3f},'
            f'"status":"{status}"}}'
        ).encode()


def telemetry(topics: int = TOPICS, seed: int = 1) -> Iterator[Event]:
    """What the plant publishes, without an end, and the same for the same seed."""
    random = Random(seed)
    uniform, gauss = random.uniform, random.gauss
    devices = [
        _Device(
            number,
            random.randrange(PERIOD),
            random.randrange(1, 500_000),
            uniform(18, 90),
            uniform(30, 60),
            uniform(990, 1030),
            uniform(0.01, 0.2),
            uniform(800, 3000),
        )
        for number in range(topics)
    ]
    names = [
        (f"plant/hall{number % 8}/press{number:04d}/telemetry", f"client-{number:04d}") for number in range(topics)
    ]
    seq = last = 0
    begin = START
    while True:
        due = sorted((int(begin + device.phase + gauss(0, 50_000)), device.number) for device in devices)
        begin += PERIOD
        for now, number in due:
            seq += 1
            last = max(last, now + int(random.expovariate(1 / 8000)))  # on the way for 8 ms, as a rule
            topic, client = names[number]
            payload = devices[number].report(now, random)
            yield Event(seq, last, topic, payload, 1, False, client, b"", 0, FSYNC)


class _Clock:
    """Processor time, but for what the making of events takes."""

    def __init__(self) -> None:
        self._made = 0.0

    def making(self, events: Iterable[Event]) -> Iterator[Event]:
        """These events, some thousand at a time."""
        source = iter(events)
        while True:
            began = process_time()
            some = list(islice(source, 4096))
            self._made += process_time() - began
            if not some:
                return
            yield from some

    def now(self) -> float:
        return process_time() - self._made


def _seal(path: Path, events: Iterable[Event], shape: Shape) -> tuple[SegmentInfo, float, list[float]]:
    """The segment, how long it took, and how long each step."""
    clock = _Clock()
    sealing = Sealing(path, clock.making(events), shape)
    steps: list[float] = []
    began = before = clock.now()
    info = None
    while info is None:
        info = sealing.step()
        after = clock.now()
        steps.append(after - before)
        before = after
    return info, before - began, sorted(steps)


def _read(path: Path, accepts: Accepts | None = None) -> int:
    """How many events there are."""
    found = position = 0
    with Segment.open(path) as segment:
        last = segment.info.header.last
        while position < last:
            events, position = segment.read(position, last, READ_LIMIT, accepts)
            found += len(events)
    return found


def _grid(directory: Path, events: list[Event]) -> None:
    """A line for each shape."""
    print(f"{'level':>5} {'stripe':>7} {'block':>6} {'B/event':>8} {'write k/s':>10} {'read k/s':>9} {'step p99':>9}")
    for level in (3, 6, 9, 12, 19):
        for stripe, block in ((4096, 256), (8192, 256), (16384, 256), (16384, 512), (16384, 1024)):
            some = events[: len(events) // 4] if level == 19 else events
            path = directory / f"{level}-{stripe}-{block}"
            info, seconds, steps = _seal(path, some, Shape(level, stripe, block))
            began = process_time()
            found = _read(path)
            reading = process_time() - began
            assert found == len(some)
            print(
                f"{level:5} {stripe:7} {block:6} {info.size / found:8.2f} {found / seconds / 1e3:10.0f} "
                f"{found / reading / 1e3:9.0f} {steps[len(steps) * 99 // 100] * 1e3:6.1f} ms",
                flush=True,
            )
            path.unlink()


# -- other ways to arrange payloads

_NUMBER: Final = re.compile(rb"([0-9.]+)")


def _as_they_came(events: list[Event]) -> bytes:
    return b"".join([event.payload for event in events])


def _split(events: list[Event]) -> bytes:
    """Numbers apart from the text around them: a column for each place in it."""
    groups: dict[tuple[bytes, ...], list[list[bytes]]] = {}
    for event in events:
        parts = _NUMBER.split(event.payload)
        groups.setdefault(tuple(parts[::2]), []).append(parts[1::2])
    return b"\0".join(
        b"\0".join([b"\n".join(text), *(b"\n".join(column) for column in zip(*rows, strict=True))])
        for text, rows in groups.items()
    )


def _layouts(events: list[Event], level: int = 9) -> None:
    """A line for each: bytes of payload alone, the rate of arranging and compressing."""
    ordered = sorted(events[:16384], key=lambda event: (event.topic, event.seq))
    for stripe in range(16384, len(events), 16384):
        ordered += sorted(events[stripe : stripe + 16384], key=lambda event: (event.topic, event.seq))
    trained = train_dictionary(64 << 10, [event.payload for event in events[: len(events) // 8]])
    plain, taught = ZstdCompressor(level=level), ZstdCompressor(level=level, dict_data=trained)
    layouts: tuple[tuple[str, list[Event], ZstdCompressor, Callable[[list[Event]], bytes]], ...] = (
        ("in the order of the log", events, plain, _as_they_came),
        ("in the order of the log, trained dictionary", events, taught, _as_they_came),
        ("by topic", ordered, plain, _as_they_came),
        ("by topic, trained dictionary", ordered, taught, _as_they_came),
        ("by topic, numbers apart", ordered, plain, _split),
    )
    print(f"\n{'payloads, level ' + str(level):45} {'block':>6} {'B/event':>8} {'write k/s':>10}")
    for name, source, compressor, arrange in layouts:
        for block in (256, 1024, 4096):
            began = process_time()
            size = sum(
                len(compressor.compress(arrange(source[at : at + block]))) for at in range(0, len(source), block)
            )
            rate = len(source) / (process_time() - began)
            if compressor is taught:
                size += len(trained.as_bytes()) * len(source) // SEGMENT  # each segment would have one
            print(f"{name:45} {block:6} {size / len(source):8.2f} {rate / 1e3:10.0f}", flush=True)


def _whole(directory: Path, count: int) -> None:
    """Seal that many events, as a node would, and read them."""
    plant = telemetry()
    paths: list[Path] = []
    size = content = 0
    seconds = 0.0
    longest: list[float] = []
    for number in range(0, count, SEGMENT):
        path = directory / f"{number}.segment"
        info, took, steps = _seal(path, islice(plant, min(SEGMENT, count - number)), Shape())
        paths.append(path)
        size += info.size
        content += info.header.content
        seconds += took
        longest += steps
    longest.sort()
    print(f"{count:,} events of {content / count:.0f} B, segments: {len(paths)}")
    print(f"on disk            {size / count:10.2f} B/event")
    print(f"sealing            {count / seconds:10,.0f} events/s")
    median, late = longest[len(longest) // 2] * 1e3, longest[len(longest) * 99 // 100] * 1e3
    print(f"steps              {median:10.2f} ms, p99 {late:.2f} ms")
    for name, accepts in (("all", None), ("one topic", "plant/hall7/press0007/telemetry".__eq__)):
        began, wall = process_time(), perf_counter()
        found = sum(_read(path, accepts) for path in paths)
        took, wall = process_time() - began, perf_counter() - wall
        print(f"reading, {name:9} {count / took:10,.0f} events/s looked at; {found:,} found in {wall * 1e3:,.0f} ms")
    print(f"memory             {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10:10,} MB at the most")


def main() -> None:
    """Measure, and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--grid", action="store_true", help="try levels, stripes and blocks")
    parser.add_argument("--layouts", action="store_true", help="compare ways to arrange payloads")
    parser.add_argument("--directory", type=Path, default=Path(), help="on the disk that is to be measured")
    options = parser.parse_args()
    machine = describe(options.directory)
    print(f"{machine.cores} cores, {machine.processor}; {machine.python}; load {machine.load_average:.2f}", flush=True)
    tune_collector()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        if options.grid or options.layouts:
            events = list(islice(telemetry(), options.events))
            if options.grid:
                _grid(Path(directory), events)
            if options.layouts:
                _layouts(events)
        else:
            _whole(Path(directory), options.events)


if __name__ == "__main__":
    main()

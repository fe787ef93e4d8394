"""The account of a run: what was acknowledged, against what is in the log, and what everyone was given.

An entry is one promise, with its numbers and its faults. No fault anywhere is the proof.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orjson

from berm.replay import Query, select
from broker.mqtt.properties import encode_properties
from storage.interface import RETAINED, Event
from storage.sqlite import SQLiteEngine
from tests.crash.client import HOT, LOAD, STATS, Cloud, Publisher, Subscriber, Window, payload, properties, read_window

_SHOWN: Final = 5
"""Numbers that a fault names at most."""


@dataclass(slots=True)
class Entry:
    """One promise: what was counted, and where it was broken."""

    promise: str
    numbers: str
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{'ok  ' if not self.faults else 'LOSS'} {self.promise}: {self.numbers}"]
        return "\n".join(lines + [f"       {fault}" for fault in self.faults])


class Stored:
    """What is in the log of a node that has stopped."""

    def __init__(self, directory: Path) -> None:
        self.published: dict[str, list[int]] = {}
        """The numbers of each load topic, in log order."""
        self.derived: dict[str, list[int]] = {}
        """The same, of what the filter published, by the topic that it came of."""
        self.windows: list[Window] = []
        self.retained: dict[str, int] = {}
        """The seq of the retained message of each topic."""
        self.last: dict[str, int] = {}
        """The seq of the last event of each topic."""
        self.events: list[Event] = []
        """The load, to be looked at once and let go."""
        self.faults: list[str] = []
        engine = SQLiteEngine(directory, readonly=True)
        try:
            for event in select(engine, Query()):
                self._take(event)
            self.retained = {str(row[0]): int(row[1] or 0) for row in engine.rows(RETAINED)}
        finally:
            engine.close()

    def _take(self, event: Event) -> None:
        topic = event.topic
        self.last[topic] = event.seq
        if topic.startswith(LOAD):
            self.published.setdefault(topic, []).append(_number(event))
            self.events.append(event)
        elif topic.startswith(HOT):
            self.derived.setdefault(topic.removeprefix(HOT), []).append(_number(event))
        elif topic.startswith(STATS):
            self.windows.append(read_window(event.payload))
        else:
            self.faults.append(f"seq {event.seq}: nobody published to {topic}: {event.payload[:200]!r}")

    def check_content(self, publishers: Sequence[Publisher]) -> None:
        """Whether each event is what its publisher sent."""
        by_topic = {publisher.topic: publisher for publisher in publishers}
        for event in self.events:
            publisher, number = by_topic[event.topic], _number(event)
            same = (
                event.payload == payload(event.topic, number)
                and event.qos == publisher.qos
                and event.retain == publisher.retain
                and event.client == publisher.name
                and event.properties == encode_properties(properties(publisher.version, number))
            )
            if not same:
                self.faults.append(f"seq {event.seq} is not what was published: {event}")
        self.events.clear()


def _number(event: Event) -> int:
    number: int = orjson.loads(event.payload)["n"]
    return number


def account(
    directory: Path, publishers: Sequence[Publisher], subscribers: Sequence[Subscriber], cloud: Cloud
) -> list[Entry]:
    """Every promise, checked; `directory` is that of a node that has stopped."""
    stored = Stored(directory)
    stored.check_content(publishers)
    return [
        _everything_is_complete(publishers),
        *(_is_in_the_log(publisher, stored.published.get(publisher.topic, [])) for publisher in publishers),
        Entry("the log holds nothing else", f"{sum(map(len, stored.published.values())):,} events", stored.faults),
        *(_reached(subscriber, publishers, stored) for subscriber in subscribers),
        _filtered_once(stored),
        _aggregated_once(stored),
        _retained(publishers, stored),
        _is_in_the_cloud(cloud, publishers, stored),
        Entry(
            "no client was treated otherwise than the standard says",
            f"{len(publishers) + len(subscribers) + 1} clients",
            [fault for client in (*publishers, *subscribers, cloud) for fault in client.faults[:_SHOWN]],
        ),
    ]


def _everything_is_complete(publishers: Sequence[Publisher]) -> Entry:
    sent = sum(publisher.sent for publisher in publishers)
    acknowledged = sum(len(publisher.acknowledged) for publisher in publishers)
    repeated = sum(publisher.repeated for publisher in publishers)
    return Entry(
        "everything is acknowledged in the end",
        f"{sent:,} published, {acknowledged:,} acknowledged, {repeated:,} sent again",
        [f"{each.name} still waits for {each.owed}" for each in publishers if each.owed],
    )


def _is_in_the_log(publisher: Publisher, stored: list[int]) -> Entry:
    faults = _missing(publisher.acknowledged, stored) + _disorder(stored)
    copies = len(stored) - len(set(stored))
    if publisher.qos == 2 and copies:
        faults.append(f"{copies} twice: {_examples(_repeated(stored))}")
    return Entry(
        f"what {publisher.name} was acknowledged is in the log",
        f"{len(publisher.acknowledged):,} acknowledged at QoS {publisher.qos}, {len(set(stored)):,} in the log, "
        f"{copies:,} twice",
        faults,
    )


def _reached(subscriber: Subscriber, publishers: Sequence[Publisher], stored: Stored) -> Entry:
    faults: list[str] = []
    copies = 0
    for publisher in publishers:
        topic = publisher.topic
        got, kept = list(subscriber.received[topic]), stored.published.get(topic, [])
        found = _missing(publisher.acknowledged, got) + _disorder(got)
        copies += len(got) - len(set(got))
        if invented := set(got) - set(kept):
            found.append(f"{len(invented)} that are not in the log: {_examples(invented)}")
        if publisher.qos == 2 and subscriber.qos == 2 and got != kept and not found:
            found.append(f"not exactly once: {_examples(_repeated(got))} came twice")
        faults += [f"{topic}: {fault}" for fault in found]
    for topic, kept in stored.derived.items():
        got = list(subscriber.received.get(HOT + topic, ()))
        if got and (got != kept if subscriber.qos == 2 else set(got) != set(kept)):
            faults.append(f"{HOT}{topic}: {len(got)} of {len(kept)} derived events came")
    total = sum(map(len, subscriber.received.values()))
    return Entry(
        f"everything reached {subscriber.name}",
        f"{total:,} received at QoS {subscriber.qos} over {subscriber.connections} connections, {copies:,} of them "
        f"copies at QoS 1, beside {subscriber.copies:,} copies at QoS 2 that its packet identifiers told it of",
        faults,
    )


def _filtered_once(stored: Stored) -> Entry:
    faults: list[str] = []
    for topic, numbers in stored.published.items():
        expected, found = [number for number in numbers if number % 2 == 0], stored.derived.get(topic, [])
        if found != expected:
            faults += [f"{topic}: {fault}" for fault in _missing(expected, found)]
            extra = Counter(found) - Counter(expected)
            faults.append(f"{topic}: {len(expected)} events, {len(found)} outputs; too many: {_examples(extra)}")
    return Entry("the filter passed each event once", f"{sum(map(len, stored.derived.values())):,} outputs", faults)


def _aggregated_once(stored: Stored) -> Entry:
    faults: list[str] = []
    twice = Counter((window.key, window.start) for window in stored.windows)
    faults += [f"{key}: the window from {start} came {n} times" for (key, start), n in twice.items() if n > 1]
    counted = 0
    for topic, numbers in stored.published.items():
        key = topic.removeprefix(LOAD)
        windows = [window for window in stored.windows if window.key == key]
        count, total = sum(window.count for window in windows), sum(window.sum for window in windows)
        counted += count
        if (count, total) != (len(numbers), sum(numbers)):
            faults.append(f"{key}: {count} counted, sum {total}; in the log {len(numbers)}, sum {sum(numbers)}")
    return Entry(
        "the windows count each event once", f"{counted:,} events in {len(stored.windows):,} windows", faults[:20]
    )


def _retained(publishers: Sequence[Publisher], stored: Stored) -> Entry:
    topics = [publisher.topic for publisher in publishers if publisher.retain]
    return Entry(
        "the last retained message is kept",
        f"{len(topics)} topics",
        [
            f"{topic}: seq {stored.retained.get(topic)} is kept, {stored.last.get(topic)} was the last"
            for topic in topics
            if stored.retained.get(topic) != stored.last.get(topic)
        ],
    )


def _is_in_the_cloud(cloud: Cloud, publishers: Sequence[Publisher], stored: Stored) -> Entry:
    faults: list[str] = []
    for publisher in publishers:
        got = list(cloud.received[publisher.topic])
        faults += [f"{publisher.topic}: {fault}" for fault in _missing(publisher.acknowledged, got) + _disorder(got)]
    in_log, ledger = sum(map(len, stored.published.values())), cloud.ledger
    if ledger.gaps:
        faults.append(f"{ledger.gaps} gaps in the chain")
    if ledger.received != in_log:
        faults.append(f"{ledger.received} different events arrived, {in_log} are in the log")
    return Entry(
        "everything is in the cloud",
        f"{ledger.received:,} events, {ledger.duplicates:,} copies, {ledger.gaps} gaps",
        faults,
    )


def _missing(promised: Iterable[int], got: Iterable[int]) -> list[str]:
    missing = set(promised) - set(got)
    return [f"{len(missing)} missing: {_examples(missing)}"] if missing else []


def _disorder(numbers: Iterable[int]) -> list[str]:
    """Whether each number came first after all those below it; copies may follow at any time."""
    highest = 0
    wrong: list[int] = []
    seen: set[int] = set()
    for number in numbers:
        if number not in seen and number < highest:
            wrong.append(number)
        seen.add(number)
        highest = max(highest, number)
    return [f"{len(wrong)} out of order: {_examples(wrong)}"] if wrong else []


def _repeated(numbers: Iterable[int]) -> list[int]:
    return [number for number, times in Counter(numbers).items() if times > 1]


def _examples(numbers: Iterable[int]) -> str:
    found = sorted(numbers)
    return ", ".join(map(str, found[:_SHOWN])) + (", ..." if len(found) > _SHOWN else "")

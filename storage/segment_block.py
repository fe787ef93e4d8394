"""One block of a sealed segment: some hundred events of one stripe, those of each topic together, and back.

A stripe is a run of the log: some thousand events. Its blocks share it out by topic, so that a reader of one topic
opens one block of a stripe, and so that what compresses well, the messages of one device, stands side by side. Within
a block events are ordered by topic, and those of a topic by seq.

What events have beside their payloads and properties is the head of a block, payloads and properties are its body.
They are compressed apart: planes of numbers and text have little in common.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import accumulate, chain, repeat
from operator import attrgetter
from struct import error as struct_error
from typing import Final

from zstandard import ZstdDecompressor, ZstdError, frame_content_size

from storage.interface import Event
from storage.segment_format import BlockHeader, Columns, Damaged, differences, expand, numbers, strings

Run = tuple[str, list[Event]]
"""A topic and events of it, in order."""

EXPIRES: Final = 32
"""The flag of an event that expires. The others: bits 0 and 1 QoS, 2 retain, 3 and 4 durability."""

_QOS: Final = [flags & 3 for flags in range(64)]
_RETAIN: Final = [flags & 4 != 0 for flags in range(64)]
_DURABILITY: Final = [flags >> 3 & 3 for flags in range(64)]

_seq = attrgetter("seq")
_ts = attrgetter("ts")
_payload = attrgetter("payload")
_properties = attrgetter("properties")
_client = attrgetter("client")


def weight(event: Event) -> int:
    """What it takes in memory and in a block, uncompressed, roughly; in bytes."""
    return len(event.payload) + len(event.properties) + len(event.topic) + len(event.client)


def runs(by_topic: dict[str, list[Event]], most_events: int, most_bytes: int) -> Iterator[list[Run]]:
    """The events of a stripe as blocks.

    A block ends with the topic that makes it reach `most_events`, so that few topics are spread over two blocks; or in
    the midst of a topic, with twice as many events or with the one that makes it reach `most_bytes`.
    """
    block: list[Run] = []
    count = size = 0
    for topic in sorted(by_topic):
        events = by_topic[topic]
        begin = 0
        for end, event in enumerate(events, 1):
            count += 1
            size += weight(event)
            whole = end == len(events)
            if count >= (most_events if whole else 2 * most_events) or size >= most_bytes:
                block.append((topic, events[begin:end]))
                yield block
                block = []
                begin = end
                count = size = 0
        if begin < len(events):
            block.append((topic, events[begin:]))
    if block:
        yield block


def encode(block: Sequence[Run]) -> tuple[bytes, bytes, Counter[str]]:
    """Head and body of a block, uncompressed, and how many events of each client it has."""
    events = list(chain.from_iterable([run[1] for run in block]))
    payloads = list(map(_payload, events))
    properties = list(map(_properties, events))
    senders = list(map(_client, events))
    clients = Counter(senders)
    ids = {client: id for id, client in enumerate(clients)}
    head = (
        strings([run[0] for run in block]),
        numbers([len(run[1]) for run in block]),
        strings(list(clients)),
        differences(list(map(_seq, events))),
        differences(list(map(_ts, events))),
        numbers(list(map(ids.__getitem__, senders))),
        numbers([_flags(event) for event in events]),
        numbers([event.expires - event.ts for event in events if event.expires]),
        numbers(list(map(len, payloads))),
        numbers(list(map(len, properties))),
    )
    return b"".join(head), b"".join(payloads + properties), clients


def _flags(event: Event) -> int:
    flags = event.qos | event.retain << 2 | event.durability << 3
    return flags | EXPIRES if event.expires else flags


class Block:
    """A block that was read, checked and decrypted: its head in columns, its body as it is.

    Raises:
        Damaged: it isn't what was written.
    """

    __slots__ = (
        "_body",
        "_clients",
        "_counts",
        "_expires",
        "_flags",
        "_payloads",
        "_properties",
        "_senders",
        "_topics",
        "seqs",
        "times",
    )

    def __init__(self, header: BlockHeader, data: bytes, decompressor: ZstdDecompressor) -> None:
        view = memoryview(data)
        try:
            head = decompress(decompressor, view[: header.head_bytes], header.head_raw)
            self._body = decompress(decompressor, view[header.head_bytes :], header.body_raw)
            self._read(Columns(head, header.events), header.events)
        except (struct_error, ValueError, IndexError, ZstdError) as error:
            raise Damaged(f"its data is not that of a block: {error}") from error

    def _read(self, head: Columns, count: int) -> None:
        self._topics = head.strings()
        self._counts = head.numbers()
        self._clients = head.strings()
        self.seqs = head.differences()
        self.times = head.differences()
        self._senders = head.numbers()
        self._flags = head.numbers()
        expires = head.numbers()
        payloads = head.numbers()
        properties = head.numbers()
        head.end()
        columns = (self.seqs, self.times, self._senders, self._flags, payloads, properties)
        if any(len(column) != count for column in columns) or sum(self._counts) != count:
            raise ValueError("its columns are not equally long")
        self._payloads = list(accumulate(payloads, initial=0))
        self._properties = list(accumulate(properties, initial=self._payloads[-1]))
        if self._properties[-1] != len(self._body) or len(self._topics) != len(self._counts):
            raise ValueError("its body is not as long as it should be")
        if max(self._flags) >= 2 * EXPIRES or max(self._senders) >= len(self._clients):
            raise ValueError("a number is too high")
        self._expires: Sequence[int] | None = None
        if expires:
            left = iter(expires)
            self._expires = [
                ts + next(left) if flags & EXPIRES else 0 for flags, ts in zip(self._flags, self.times, strict=True)
            ]

    @property
    def topics(self) -> dict[str, int]:
        """Its topics, and how many events of each it has."""
        return dict(zip(self._topics, self._counts, strict=True))

    @property
    def clients(self) -> Counter[str]:
        """Who published what is in it, and how many each."""
        return Counter(map(self._clients.__getitem__, self._senders))

    def events(self) -> list[Event]:
        """All of them: ordered by topic, then by seq."""
        return self._events(0, len(self.seqs), expand(self._topics, self._counts))

    def events_of(self, topics: Container[str]) -> list[Event]:
        """Those of these topics: ordered by topic, then by seq."""
        found: list[Event] = []
        begin = 0
        for topic, count in zip(self._topics, self._counts, strict=True):
            if topic in topics:
                found += self._events(begin, begin + count, repeat(topic))
            begin += count
        return found

    def event(self, at: int) -> Event:
        """One of them, by its place."""
        for topic, end in zip(self._topics, accumulate(self._counts), strict=True):
            if at < end:
                return self._events(at, at + 1, repeat(topic))[0]
        raise IndexError(at)

    def _events(self, begin: int, end: int, topics: Iterable[str]) -> list[Event]:
        flags = self._flags[begin:end]
        body = self._body
        properties: Iterable[bytes] = repeat(b"")
        if self._properties[begin] != self._properties[end]:
            places = self._properties[begin : end + 1]
            properties = map(body.__getitem__, map(slice, places, places[1:]))
        payloads = self._payloads[begin : end + 1]
        return list(
            map(
                Event,
                self.seqs[begin:end],
                self.times[begin:end],
                topics,
                map(body.__getitem__, map(slice, payloads, payloads[1:])),
                map(_QOS.__getitem__, flags),
                map(_RETAIN.__getitem__, flags),
                map(self._clients.__getitem__, self._senders[begin:end]),
                properties,
                repeat(0) if self._expires is None else self._expires[begin:end],
                map(_DURABILITY.__getitem__, flags),
            )
        )


def decompress(decompressor: ZstdDecompressor, data: memoryview, raw: int) -> bytes:
    """What a frame holds.

    Raises:
        ValueError: it says that it is of another length.
        ZstdError: it isn't a whole frame.
    """
    if frame_content_size(data) != raw:
        raise ValueError("a frame is not of the length that it should be")
    return decompressor.decompress(data, allow_extra_data=False)

"""Messages a second through the data path alone: decoder, hub, log and sessions, without a socket and without a disk.

    python -m bench.inproc [--messages 400000] [--payload 64] [--batch 1000] [--rounds 3] [--only 'QoS 1']

One publisher's frames are encoded beforehand and handed over in batches, as a socket would; the subscriber answers each
batch with acknowledgements that are made beforehand, too. The engine keeps nothing and takes no time, so what is left
is what the loop itself costs, in time of this process on its processor. The best round of each shape counts.
"""

from __future__ import annotations

import argparse
import gc
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import process_time

from broker.connection import Connection
from broker.hub import Hub
from broker.listener import Limits
from broker.mqtt.codec import encode
from broker.mqtt.packets import Connect, Publish, Subscribe, Subscription
from storage.interface import DURABILITY, Event, Row, Table
from storage.log import Log
from storage.memory import MemoryEngine

NOW = 1_700_000_000_000_000
TOPIC = "bench/topic"


@dataclass(frozen=True, slots=True)
class Shape:
    """Who publishes what to whom."""

    name: str
    version: int
    qos: int
    durability: str
    subscribers: int = 1
    window: int = 65535


SHAPES = (
    Shape("QoS 0, memory", 4, 0, "memory"),
    Shape("QoS 0, os", 4, 0, "os"),
    Shape("QoS 1, memory", 4, 1, "memory"),
    Shape("QoS 1, fsync", 4, 1, "fsync"),
    Shape("QoS 1, fsync, MQTT 5", 5, 1, "fsync"),
    Shape("QoS 2, fsync", 4, 2, "fsync"),
    Shape("QoS 1, fsync, 10 subscribers", 4, 1, "fsync", subscribers=10),
    Shape("QoS 1, fsync, subscriber's window 100", 4, 1, "fsync", window=100),
)


class _NoEngine(MemoryEngine):
    """Takes everything and keeps nothing."""

    def commit(self, events: Sequence[Event], state: dict[Table, dict[Row, Row | None]], sync: bool) -> None:
        """Done."""


class _Worker:
    def __init__(self) -> None:
        self.queue: deque[tuple[Callable[[], object], Callable[[object, BaseException | None], None]]] = deque()

    def submit(
        self,
        work: Callable[[], object],
        done: Callable[[object, BaseException | None], None],
        after: Callable[[], object] | None = None,
    ) -> None:
        self.queue.append((work, done))

    def close(self) -> None:
        """There is no thread."""


class _Wire:
    peer = "bench"
    host = ""
    identity = ""
    unfinished = 0

    def __init__(self) -> None:
        self.written = 0

    def write(self, data: bytes) -> None:
        self.written += len(data)

    def close(self) -> None:
        """There is no socket."""

    def abort(self) -> None:
        """There is no socket."""

    def pause_reading(self) -> None:
        """The bench goes on by itself."""

    def resume_reading(self) -> None:
        """The bench goes on by itself."""


class _Node:
    """A hub whose loop is this program."""

    def __init__(self, shape: Shape) -> None:
        self.scheduled: list[Callable[[], None]] = []
        self.worker = _Worker()
        rule = DURABILITY[shape.durability]
        self.hub = Hub(
            Log(_NoEngine(), self.worker, self.worker),
            Limits(receive_maximum=65535, max_inflight=shape.window),
            self.scheduled.append,
            lambda _: rule,
        )

    def connect(self, client_id: str, version: int) -> Connection:
        connection = self.hub.clients.accept(_Wire(), NOW)
        connection.receive(encode(Connect(client_id, version, True, 0, None, None, None), version), NOW)
        self.settle()
        return connection

    def settle(self) -> None:
        """Turn the loop until nothing is left to do."""
        scheduled, queue = self.scheduled, self.worker.queue
        while scheduled or queue:
            if scheduled:
                work = scheduled[:]
                scheduled.clear()
                for call in work:
                    call()
            if queue:
                job, done = queue.popleft()
                done(job(), None)


class _Acknowledger:
    """Answers what a subscriber is sent: identifiers come in order, so the answers can be cut from one string."""

    def __init__(self, connection: Connection, qos: int) -> None:
        self._connection = connection
        self._session = connection.session
        self._answers = [
            b"".join(bytes((first, 2)) + n.to_bytes(2, "big") for n in range(1, 65536))
            for first in ((0x40,) if qos == 1 else (0x50, 0x70))
        ]
        self._next = [0] * len(self._answers)

    def answer(self) -> int:
        """Acknowledge everything that is in flight; how many packets that were."""
        assert self._session is not None
        waiting = [len(self._session.unacked)] if len(self._next) == 1 else [len(self._session.unreceived)]
        if len(self._next) == 2:
            waiting.append(len(self._session.uncompleted))
        for stage, count in enumerate(waiting):
            while count:
                start = self._next[stage]
                taken = min(count, 65535 - start)
                self._connection.receive(self._answers[stage][start * 4 : (start + taken) * 4], NOW)
                self._next[stage] = (start + taken) % 65535
                count -= taken
        return sum(waiting)


def run(shape: Shape, messages: int, payload: int, batch: int) -> float:
    """Messages a second, from the publisher to the last subscriber."""
    node = _Node(shape)
    publisher = node.connect("publisher", shape.version)
    subscribers = [node.connect(f"subscriber-{n}", shape.version) for n in range(shape.subscribers)]
    for subscriber in subscribers:
        subscriber.receive(encode(Subscribe(1, (Subscription(TOPIC, shape.qos),)), shape.version), NOW)
    node.settle()
    acknowledgers = [_Acknowledger(subscriber, shape.qos) for subscriber in subscribers]
    frames = [
        b"".join(
            encode(Publish(TOPIC, bytes(payload), shape.qos, packet_id=start + n if shape.qos else 0), shape.version)
            for n in range(batch)
        )
        for start in range(1, 65536 - batch, batch)
    ]
    released = [
        b"".join(b"\x62\x02" + (start + n).to_bytes(2, "big") for n in range(batch))
        for start in range(1, 65536 - batch, batch)
    ]
    gc.collect()
    gc.freeze()
    began = process_time()
    for n in range(messages // batch):
        publisher.receive(frames[n % len(frames)], NOW)
        node.settle()
        if shape.qos == 2:
            publisher.receive(released[n % len(released)], NOW)
            node.settle()
        if shape.qos:
            while sum(acknowledger.answer() for acknowledger in acknowledgers):
                node.settle()
    elapsed = process_time() - began
    expected = messages // batch * batch * shape.subscribers
    delivered = node.hub.traffic.delivered
    assert delivered == expected, f"{shape.name}: {delivered} of {expected} were delivered"
    return messages / elapsed


def main() -> None:
    """Run every shape and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--messages", type=int, default=400_000)
    parser.add_argument("--payload", type=int, default=64, help="bytes")
    parser.add_argument("--batch", type=int, default=1000, help="messages that one read brings")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="shapes whose name has this in it")
    options = parser.parse_args()
    gc.set_threshold(50_000, 50, 1000)  # as a node sets it
    for shape in (shape for shape in SHAPES if options.only in shape.name):
        rate = max(run(shape, options.messages, options.payload, options.batch) for _ in range(options.rounds))
        print(f"{shape.name:40} {rate:12,.0f} messages/s")


if __name__ == "__main__":
    main()

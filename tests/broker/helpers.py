"""A node in a test: the hub and the log over an engine that outlives them. No socket, no loop, no thread, no clock.

Nothing happens by itself. `turn` turns the loop until it is quiet, reads from the engine included; only `commit` lets
groups reach the engine; `tick` moves the clock; `crash` throws away everything but the engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from broker.connection import Connection
from broker.hub import Hub
from broker.listener import Limits, Listener
from broker.mqtt.codec import Decoder, encode
from broker.mqtt.packets import (
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Subscription,
    Will,
)
from broker.mqtt.properties import Properties, Property
from broker.session import Session
from storage.interface import Event, Row, StorageError, Table
from storage.log import Log
from storage.memory import MemoryEngine

SECOND = 1_000_000
START = 1_700_000_000 * SECOND
FOREVER = 0xFFFFFFFF

P = TypeVar("P")


class Engine(MemoryEngine):
    """Keeps everything, until it is told to refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.fault: StorageError | None = None
        self.commits: list[tuple[list[Event], dict[Table, dict[Row, Row | None]], bool]] = []
        """Every group: what was in it, and whether it was to be synced."""

    def commit(self, events: Sequence[Event], state: dict[Table, dict[Row, Row | None]], sync: bool) -> None:
        if self.fault is not None:
            raise self.fault
        self.commits.append((list(events), state, sync))
        super().commit(events, state, sync)

    def keys(self, table: Table) -> list[object]:
        """The first key column of every row."""
        return [row[0] for row in self.rows(table)]


class Turns:
    """A worker that works when it is told to."""

    def __init__(self) -> None:
        self._queue: deque[tuple[Callable[[], object], Callable[[object, BaseException | None], None]]] = deque()

    def submit(
        self,
        work: Callable[[], object],
        done: Callable[[object, BaseException | None], None],
        after: Callable[[], object] | None = None,
    ) -> None:
        self._queue.append((work, done))

    def step(self) -> bool:
        """Do the oldest piece of work; whether there was one."""
        if not self._queue:
            return False
        work, done = self._queue.popleft()
        try:
            result = work()
        except StorageError as error:
            done(None, error)
        else:
            done(result, None)
        return True

    def close(self) -> None:
        while self.step():
            pass


class FakeWire:
    """The transport of one client. While `jammed`, what is written gathers, as in the buffer of a socket."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.host = peer.partition(":")[0]
        self.identity = ""
        self.version = 5
        self.packets: list[Packet] = []
        self.said: list[str] = []
        """What packets said in words, in order. It is taken out of the packets."""
        self.clauses: list[str] = []
        """Likewise, the clauses that the client has broken."""
        self.unread = bytearray()
        self.unfinished = 0
        self.writes = 0
        self.jammed = False
        self.reading = True
        self.open = True
        self.aborted = False
        self._decoder: Decoder | None = None

    def write(self, data: bytes) -> None:
        assert self.open, "written after it was closed"
        assert data
        self.writes += 1
        self.unread += data
        if not self.jammed:
            self.deliver()

    def deliver(self) -> None:
        """Let the client read everything."""
        if self._decoder is None:
            self._decoder = Decoder(self.version)
        self.packets += map(self._without_words, self._decoder.feed(bytes(self.unread)))
        self.unread.clear()
        assert self._decoder.error is None, self._decoder.error

    def _without_words(self, packet: Packet) -> Packet:
        if isinstance(packet, Pingreq | Pingresp | Publish):
            return packet
        words = [pair for pair in packet.properties if pair[0] in (Property.REASON_STRING, Property.USER_PROPERTY)]
        packet.properties = tuple(pair for pair in packet.properties if pair not in words)
        for _, value in words:
            if isinstance(value, tuple):
                self.clauses.append(value[1])
            else:
                self.said.append(str(value))
        return packet

    def close(self) -> None:
        self.open = False

    def abort(self) -> None:
        self.open = False
        self.aborted = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Client:
    """One client's connection. What it has received is in `packets` until `take` takes it."""

    def __init__(self, node: Node, version: int) -> None:
        self.node = node
        self.version = version
        self.wire = FakeWire(f"192.0.2.1:{40000 + node.accepted}")
        self.wire.version = version
        node.accepted += 1
        self.connection: Connection = node.hub.clients.accept(self.wire, node.now, node.listener)

    def send(self, *packets: Packet) -> None:
        """Send these packets in one piece, and turn the loop."""
        self.send_bytes(b"".join(encode(packet, self.version) for packet in packets))

    def send_bytes(self, data: bytes) -> None:
        self.connection.receive(data, self.node.now)
        self.node.turn()

    def take(self, kind: type[P]) -> list[P]:
        """What has come of this type, in order; it is not given again."""
        packets: Sequence[object] = self.wire.packets
        taken = [packet for packet in packets if isinstance(packet, kind)]
        self.wire.packets = [packet for packet in self.wire.packets if not isinstance(packet, kind)]
        return taken

    def take_all(self) -> list[Packet]:
        """Everything that has come, in order."""
        packets, self.wire.packets = self.wire.packets, []
        return packets

    @property
    def session(self) -> Session:
        assert self.connection.session is not None
        return self.connection.session

    @property
    def open(self) -> bool:
        return self.wire.open

    def subscribe(
        self,
        filter: str,
        qos: int = 2,
        *,
        identifier: int = 0,
        no_local: bool = False,
        retain_as_published: bool = False,
        retain_handling: int = 0,
    ) -> int:
        """Subscribe, wait for the SUBACK, and return its reason code."""
        properties: Properties = ((Property.SUBSCRIPTION_IDENTIFIER, identifier),) if identifier else ()
        subscription = Subscription(filter, qos, no_local, retain_as_published, retain_handling)
        self.send(Subscribe(1, (subscription,), properties))
        self.node.commit()
        (suback,) = self.take(Suback)
        return suback.reasons[0]

    def publish(
        self,
        topic: str = "t",
        payload: bytes = b"x",
        qos: int = 0,
        packet_id: int = 0,
        *,
        retain: bool = False,
        dup: bool = False,
        properties: Properties = (),
    ) -> None:
        """Publish; packet identifier 1 where none is given."""
        self.send(Publish(topic, payload, qos, retain, dup, packet_id or (1 if qos else 0), properties))

    def payloads(self) -> list[bytes]:
        """The payloads of the messages that have come, in order."""
        return [packet.payload for packet in self.take(Publish)]

    def acknowledge(self) -> list[Publish]:
        """Answer everything that has come, until nothing more comes; the messages."""
        messages: list[Publish] = []
        while True:
            self.node.commit()
            came = self.take_all()
            messages += [packet for packet in came if isinstance(packet, Publish)]
            answers = [answer for packet in came if (answer := answer_to(packet)) is not None]
            if not answers:
                return messages
            self.send(*answers)

    def lose(self) -> None:
        """The connection breaks."""
        self.wire.open = False
        self.connection.lost(self.node.now)
        self.node.turn()

    def disconnect(self, reason: int = 0, properties: Properties = ()) -> None:
        self.send(Disconnect(reason, properties))

    def jam(self) -> None:
        """The client reads no more, and the buffers are full."""
        self.wire.jammed = True
        self.connection.on_blocked(True)

    def unjam(self) -> None:
        self.wire.jammed = False
        self.wire.deliver()
        self.connection.on_blocked(False)
        self.node.turn()


def answer_to(packet: Packet) -> Packet | None:
    """What a good receiver says to a packet of the server."""
    match packet:
        case Publish(qos=1):
            return Puback(packet.packet_id)
        case Publish(qos=2):
            return Pubrec(packet.packet_id)
        case Pubrel():
            return Pubcomp(packet.packet_id)
    return None


class Node:
    """A node in miniature."""

    def __init__(
        self,
        limits: Limits | None = None,
        rules: Callable[[str], int | None] | None = None,
        memory_bytes: int = 1 << 24,
    ) -> None:
        self.engine = Engine()
        self.limits = limits or Limits()
        self.now = START
        self.accepted = 0
        self.listener: Listener | None = None
        """Where the connections to come are accepted; None: where nobody says more of."""
        self._rules = rules
        self._memory_bytes = memory_bytes
        self._start()

    def _start(self) -> None:
        self.scheduled: list[Callable[[], None]] = []
        self.writer = Turns()
        self.reader = Turns()
        self.log = Log(self.engine, self.writer, self.reader, self._memory_bytes)
        self.hub = Hub(self.log, self.limits, self.scheduled.append, self._rules)
        self.hub.restore(self.now)
        self.hub.tick(self.now)
        self.commit()

    def crash(self) -> None:
        """The process is gone, and what has not been committed with it; another one starts over the same engine."""
        self._start()

    def restart(self) -> None:
        """Stop in good order, and start again."""
        self.hub.clients.close_all()
        self.commit()
        self._start()

    def turn(self) -> None:
        """Turn the loop until it is quiet. Nothing reaches the engine."""
        while self.scheduled or self.reader.step():
            self.turn_once()

    def turn_once(self) -> None:
        """One turn."""
        scheduled = self.scheduled[:]
        self.scheduled.clear()
        for call in scheduled:
            call()

    def commit(self) -> None:
        """Let everything reach the engine, and turn the loop until all is quiet."""
        self.turn()
        while self.writer.step():
            self.turn()

    def commit_one(self) -> None:
        """Let the group that is on its way reach the engine."""
        self.writer.step()
        self.turn()

    def tick(self, seconds: float = 1.0) -> None:
        """Time passes."""
        self.now += round(seconds * SECOND)
        self.hub.tick(self.now)
        self.turn()

    def open(self, version: int = 5) -> Client:
        """A connection on which nothing was said yet."""
        return Client(self, version)

    def connect(
        self,
        client_id: str = "c",
        version: int = 5,
        *,
        clean: bool = True,
        expiry: int = 0,
        keep_alive: int = 0,
        will: Will | None = None,
        properties: Properties = (),
    ) -> Client:
        """A client whose CONNECT was accepted; its CONNACK is still to be taken."""
        client = self.open(version)
        if expiry:
            properties = ((Property.SESSION_EXPIRY_INTERVAL, expiry), *properties)
        client.send(Connect(client_id, version, clean, keep_alive, will, None, None, properties))
        assert client.open, client.wire.packets
        return client

    def resume(self, client_id: str = "c", version: int = 5, *, properties: Properties = ()) -> Client:
        """A client whose session goes on, and is to be kept; what is owed to it has been committed and sent."""
        expiry = FOREVER if version == 5 else 0
        client = self.connect(client_id, version, clean=False, expiry=expiry, properties=properties)
        self.commit()
        return client

    def subscriber(self, filter: str = "#", qos: int = 2, client_id: str = "s", version: int = 5) -> Client:
        """A clean client with one subscription; its CONNACK and SUBACK are taken."""
        client = self.connect(client_id, version)
        client.subscribe(filter, qos)
        client.take(Connack)
        return client

    def keeper(self, filter: str = "#", qos: int = 2, client_id: str = "k", version: int = 5) -> Client:
        """A client with one subscription whose session is kept; its CONNACK and SUBACK are taken."""
        client = self.resume(client_id, version)
        client.subscribe(filter, qos)
        client.take(Connack)
        return client


def number(packet: Connack, property: int) -> int | None:
    """The value of a numeric property of a CONNACK."""
    for key, value in packet.properties:
        if key == property:
            assert isinstance(value, int)
            return value
    return None


def numbers(count: int, start: int = 0) -> list[bytes]:
    """So many payloads, in order: `0`, `1` and so on from `start`."""
    return [b"%d" % n for n in range(start, start + count)]


def publish_all(client: Client, payloads: list[bytes], qos: int = 1, topic: str = "t") -> None:
    """All of them in one piece, committed and acknowledged."""
    client.send(*(Publish(topic, payload, qos, packet_id=n + 1 if qos else 0) for n, payload in enumerate(payloads)))
    client.acknowledge()
    client.send(*(Pubrel(n + 1) for n in range(len(payloads)) if qos == 2))
    client.acknowledge()

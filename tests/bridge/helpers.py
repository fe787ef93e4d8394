"""A log without a disk, a peer without a socket, and a shell without a loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from bridge.settings import BridgeSettings, RouteSettings
from bridge.stamp import Stamp, read_stamp
from bridge.uplink import State, Uplink
from broker.mqtt.codec import Decoder, encode
from broker.mqtt.packets import Connack, Connect, Disconnect, Packet, Pingreq, Pingresp, Puback, Publish
from broker.mqtt.properties import Properties, Property
from storage.interface import CURSORS, FSYNC, Event, Row, Table
from storage.log import Log
from storage.memory import MemoryEngine

SECOND = 1_000_000
START = 1_700_000_000 * SECOND


class ListEngine(MemoryEngine):
    """Keeps everything, and outlives the logs over it as a disk does."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[int] = []
        """For each group that was kept, how many events it had."""

    @property
    def events(self) -> list[Event]:
        """All of them."""
        return self._events

    def commit(self, events: Sequence[Event], state: dict[Table, dict[Row, Row | None]], sync: bool) -> None:
        self.groups.append(len(events))
        super().commit(events, state, sync)


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

    def run(self) -> None:
        while self._queue:
            work, done = self._queue.popleft()
            done(work(), None)

    def close(self) -> None:
        self.run()


class FakePeer:
    """The server side of one bridge: it keeps what it is sent and answers when it is told to."""

    def __init__(self, version: int = 5) -> None:
        self.version = version
        self.connack = Connack(False, 0)
        self.published: list[Publish] = []
        """Everything that ever arrived, copies too."""
        self.unanswered: list[int] = []
        """Packet identifiers of this connection."""
        self.by_id: dict[int, Publish] = {}
        """What came last under each packet identifier."""
        self.packets: list[Packet] = []
        """Everything of this connection."""
        self._decoder = Decoder()
        self._answers: list[bytes] = []

    def connected(self) -> None:
        self._decoder = Decoder()
        self.unanswered = []
        self.packets = []
        self._answers = []

    def feed(self, data: bytes) -> None:
        for packet in self._decoder.feed(data):
            self.packets.append(packet)
            match packet:
                case Connect():
                    self.answer(self.connack)
                case Pingreq():
                    self.answer(Pingresp())
                case Publish():
                    self.published.append(packet)
                    if packet.qos:
                        assert packet.packet_id not in self.unanswered
                        self.unanswered.append(packet.packet_id)
                        self.by_id[packet.packet_id] = packet
        assert self._decoder.error is None, self._decoder.error

    def answer(self, packet: Packet) -> None:
        self._answers.append(encode(packet, self.version))

    def acknowledge(self, *packet_ids: int, reason: int = 0) -> None:
        for packet_id in packet_ids:
            self.unanswered.remove(packet_id)
            self.answer(Puback(packet_id, reason))

    def take(self) -> bytes:
        data = b"".join(self._answers)
        self._answers.clear()
        return data

    @property
    def topics(self) -> list[str]:
        return [packet.topic for packet in self.published]

    @property
    def connect(self) -> Connect:
        packet = self.packets[0]
        assert isinstance(packet, Connect)
        return packet

    @property
    def goodbye(self) -> Disconnect:
        packet = self.packets[-1]
        assert isinstance(packet, Disconnect)
        return packet


def settings(
    *routes: RouteSettings, version: int = 5, window: int = 1000, window_bytes: int = 1 << 24, keep_alive: int = 30
) -> BridgeSettings:
    return BridgeSettings(
        name="cloud",
        host="cloud.example",
        port=1883,
        client_id="edge-1",
        routes=routes or (RouteSettings("all", "#"),),
        version=version,
        window=window,
        window_bytes=window_bytes,
        keep_alive=keep_alive,
        backoff_min=1.0,
        backoff_max=60.0,
    )


class Rig:
    """An edge node in miniature. `crash` takes everything but the engine; `now` moves when a test moves it."""

    def __init__(self, bridge: BridgeSettings | None = None, memory_bytes: int = 1 << 24, epoch: int = 1) -> None:
        self.settings = bridge or settings()
        self.epoch = epoch
        self.engine = ListEngine()
        self.peer = FakePeer(self.settings.version)
        self.now = START
        self.reports: list[str] = []
        self.wakes = 0
        self._memory_bytes = memory_bytes
        self.start()

    def start(self) -> None:
        self.worker = Turns()
        self.log = Log(self.engine, self.worker, self.worker, self._memory_bytes)
        self.uplink = Uplink(
            self.settings,
            self.log,
            node="edge",
            epoch=self.epoch,
            wake=self._wake,
            report=self.reports.append,
        )
        self.worker.run()

    def crash(self) -> None:
        """The process is gone, and what has not been committed with it."""
        self.start()

    def _wake(self) -> None:
        self.wakes += 1

    def publish(
        self,
        topic: str = "a",
        payload: bytes = b"x",
        qos: int = 1,
        retain: bool = False,
        properties: bytes = b"",
        expires: int = 0,
        durability: int = FSYNC,
    ) -> Event:
        """One event, committed by the time `turn` returns."""
        event = self.log.append(self.now, topic, payload, qos, retain, "dev", properties, expires, durability)
        self.log.flush()
        return event

    def publish_many(self, topics: Iterable[str]) -> None:
        for topic in topics:
            self.publish(topic)

    def open(self) -> None:
        self.peer.connected()
        self.uplink.opened(self.now)
        self.turn()

    def connect(self) -> None:
        self.open()
        assert self.uplink.state is State.UP, self.uplink.want_close

    def drop(self, error: str = "") -> None:
        self.uplink.closed(self.now, error)

    def turn(self) -> None:
        """Everything that happens by itself: commits, reads, bytes both ways. Acknowledgements don't."""
        while True:
            self.worker.run()
            wakes = self.wakes
            data = self.uplink.take()
            if data:
                self.peer.feed(data)
            answers = self.peer.take()
            if answers:
                self.uplink.receive(answers, self.now)
            if not data and not answers and wakes == self.wakes:
                self.worker.run()
                if not (data := self.uplink.take()):
                    return
                self.peer.feed(data)

    def acknowledge(self, *packet_ids: int, reason: int = 0) -> None:
        self.peer.acknowledge(*(packet_ids or tuple(self.peer.unanswered)), reason=reason)
        self.turn()

    def drain(self) -> None:
        """Acknowledge until nothing more comes."""
        self.turn()
        while self.peer.unanswered:
            self.acknowledge()

    def tick(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)
        self.uplink.tick(self.now)
        self.turn()

    def kept(self, route: str = "all") -> int:
        """The position that a restart would find."""
        (position,) = (row[1] for row in self.engine.rows(CURSORS) if row[0] == f"bridge/cloud/{route}")
        assert isinstance(position, int)
        return position


def stamp_of(packet: Publish) -> Stamp:
    stamp = read_stamp(user_properties(packet.properties))
    assert stamp is not None
    return stamp


def user_properties(properties: Properties) -> list[tuple[str, str]]:
    return [value for key, value in properties if key == Property.USER_PROPERTY and isinstance(value, tuple)]

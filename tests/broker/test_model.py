"""The promises of the broker under every order of events that hypothesis can think of.

Publishers and subscribers that follow the protocol, over connections that break in either direction, at a node whose
commits come late, are refused, and whose process dies at any moment. Whatever happens:

1. What is acknowledged, or seen at QoS 1 or 2, is in the engine: no crash takes it back.
2. QoS 2 messages are in the log once, and reach each subscriber once, also those never acknowledged. (Not those kept
   in memory only: what a crash takes back there, it takes back with all traces.)
3. Every acknowledged message of QoS 1 and 2 reaches every kept session that asked for it.
4. First deliveries of one publisher, topic and QoS come in order.
5. QoS 0 messages come once at most. A refused message never comes, unless at QoS 1 another copy of it was kept.
6. An identifier in flight is not used for another message, and no more are in flight than the client takes.
7. What a connection makes the node hold is bounded.

A longer run: `BERM_MODEL_EXAMPLES=20000 python -m pytest tests/broker/test_model.py`.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.listener import Limits
from broker.mqtt.codec import encode
from broker.mqtt.packets import (
    Connack,
    Connect,
    Packet,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    Subscription,
)
from broker.mqtt.properties import Properties, Property
from broker.mqtt.topic import matches
from storage.interface import MEMORY, OS, StorageFull
from tests.broker.helpers import FOREVER, Client, Node

EXAMPLES = int(os.environ.get("BERM_MODEL_EXAMPLES", "500"))
STEPS = 60
LIMITS = Limits(write_buffer=300, receive_maximum=8, max_inflight=5, group_bytes=4000, turn=4)
RULES = {"fsync": None, "os": OS, "memory": MEMORY}
TOPICS = tuple(RULES)
RARELY = st.sampled_from([False, False, False, True])
FULL = StorageFull("cannot write: no space left on device")


@dataclass(slots=True)
class Sent:
    """One message of a publisher, until it is done."""

    payload: bytes
    topic: str
    qos: int
    packet_id: int
    released: bool = False
    """QoS 2: PUBREC has come."""
    repeated: bool = False
    """It went over more than one connection: at QoS 1 an earlier copy may be kept where a later one is refused."""


@dataclass(slots=True)
class Device:
    """A client that follows the protocol. It outlives its connections, and the node."""

    name: str
    version: int
    kept: bool
    filter: str = ""
    qos: int = 0
    window: int = 5
    known: bool = False
    """The node has its session on disk, with its subscription."""
    client: Client | None = None
    up: list[Packet] = field(default_factory=list)
    """What it has written, and the node has not read yet."""
    sent: dict[int, Sent] = field(default_factory=dict)
    held: dict[int, bytes] = field(default_factory=dict)
    """QoS 2 messages that came and were not released."""
    unanswered: dict[int, bytes] = field(default_factory=dict)
    """QoS 1 and 2 messages of this connection, by identifier, until they are answered."""
    seen: Counter[bytes] = field(default_factory=Counter)
    order: dict[tuple[bytes, ...], int] = field(default_factory=dict)

    def connect_packet(self) -> Connect:
        properties: Properties = ()
        if self.version == 5:
            properties = ((Property.RECEIVE_MAXIMUM, self.window),)
            if self.kept:
                properties += ((Property.SESSION_EXPIRY_INTERVAL, FOREVER),)
        return Connect(self.name, self.version, not self.kept, 0, None, None, None, properties)

    def wants(self, payload: bytes) -> bool:
        """Whether the message must reach it; those in memory may be gone."""
        _, topic, _, _ = parts(payload)
        return topic != b"memory" and matches(self.filter, topic.decode())


def parts(payload: bytes) -> tuple[bytes, bytes, int, int]:
    """Publisher, topic, QoS and number of a message."""
    name, topic, qos, number = payload.split(b" ")
    return name, topic, int(qos), int(number)


class Model(RuleBasedStateMachine):
    """The node, its clients, and what must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.acknowledged: set[bytes] = set()
        self.refused: set[bytes] = set()
        self.repeated: set[bytes] = set()
        """Those that went over more than one connection: at QoS 1 the log may have several copies."""
        self.published: Counter[str] = Counter()
        self.committed: Counter[bytes] = Counter()
        self.groups = 0
        self.publishers = [Device("p4", 4, True), Device("p5", 5, True)]
        self.subscribers = [
            Device("s5", 5, True, "#", 2, window=3),
            Device("s4", 4, True, "+", 1),
            Device("clean", 5, False, "#", 2, window=2),
        ]
        self.devices = self.publishers + self.subscribers

    @initialize(memory_bytes=st.sampled_from([1, 1500, 1 << 20]))
    def start(self, memory_bytes: int) -> None:
        self.node = Node(LIMITS, RULES.get, memory_bytes=memory_bytes)
        for device in self.devices:
            self._connect(device)
        while self._everybody_reads():
            self.node.commit()
        self.node.tick()
        self.node.commit()
        for device in self.devices:
            device.known = device.kept

    # -- what happens

    @rule(index=st.sampled_from([0, 1]), topic=st.sampled_from(TOPICS), qos=st.sampled_from([0, 1, 1, 2, 2]))
    def publish(self, index: int, topic: str, qos: int) -> None:
        device = self.publishers[index]
        if device.client is None or len(device.sent) >= LIMITS.receive_maximum:
            return
        key = f"{device.name} {topic} {qos}"
        self.published[key] += 1
        payload = f"{key} {self.published[key]}".encode()
        if not qos:
            device.up.append(Publish(topic, payload))
            return
        packet_id = next(n for n in range(1, 100) if n not in device.sent)
        device.sent[packet_id] = Sent(payload, topic, qos, packet_id)
        device.up.append(Publish(topic, payload, qos, packet_id=packet_id))

    @rule(index=st.integers(0, 4), count=st.integers(1, 12))
    def node_reads(self, index: int, count: int) -> None:
        device = self.devices[index]
        client = device.client
        if client is None or not client.wire.reading or not client.open:
            return
        packets, device.up = device.up[:count], device.up[count:]
        client.connection.receive(b"".join(encode(packet, device.version) for packet in packets), self.node.now)
        self._note()

    @rule(index=st.integers(0, 4), count=st.integers(1, 12))
    def device_reads(self, index: int, count: int) -> None:
        self._read(self.devices[index], count)

    @rule()
    def turn(self) -> None:
        self.node.turn()
        self._note()

    @rule()
    def commit(self) -> None:
        self.node.turn()
        self._note()
        self.node.writer.step()
        self._note()

    @rule()
    def time_passes(self) -> None:
        self.node.tick()
        self._note()

    @rule(index=st.integers(2, 4))
    def jam(self, index: int) -> None:
        client = self.devices[index].client
        if client is not None and client.open and not client.wire.jammed:
            client.jam()

    @rule(index=st.integers(2, 4))
    def unjam(self, index: int) -> None:
        client = self.devices[index].client
        if client is not None and client.open and client.wire.jammed:
            client.unjam()
            self._note()

    @rule()
    def everybody_reads_once(self) -> None:
        self._everybody_reads()

    @rule(index=st.integers(0, 4), noticed=st.booleans(), away=RARELY)
    def connection_breaks(self, index: int, noticed: bool, away: bool) -> None:
        """What was on the wire is lost; the node may learn of it only when the client is there again."""
        device = self.devices[index]
        if device.client is not None:
            if noticed and device.client.open:
                device.client.wire.open = False
                device.client.connection.lost(self.node.now)
            self._forget_connection(device)
            if not away:
                self._connect(device)
                self._note()

    @rule()
    def everybody_returns(self) -> None:
        for device in self.devices:
            if device.client is not None and not device.client.open:
                self._forget_connection(device)
            if device.client is None:
                self._connect(device)
        self._note()

    @precondition(lambda self: self.node.engine.fault is None)
    @rule()
    def disk_is_full(self) -> None:
        self.node.engine.fault = FULL

    @precondition(lambda self: self.node.engine.fault is not None)
    @rule()
    def disk_has_room(self) -> None:
        self.node.engine.fault = None

    @rule(away=RARELY)
    def crash(self, away: bool) -> None:
        self._note()
        self.node.engine.fault = None
        self.node.crash()
        for device in self.devices:
            self._forget_connection(device)
            if not away:
                self._connect(device)
        self._note()

    # -- clients

    def _connect(self, device: Device) -> None:
        client = device.client = Client(self.node, device.version)
        device.unanswered = {}
        device.up = []
        client.connection.receive(encode(device.connect_packet(), device.version), self.node.now)
        if not device.kept:  # a clean client forgets, too
            device.held = {}
            device.seen.clear()
            device.order.clear()
        if device.filter and not device.known:
            device.up.append(Subscribe(1, (Subscription(device.filter, device.qos),)))
        for sent in device.sent.values():
            sent.repeated = True
            self.repeated.add(sent.payload)
        device.up += [
            Pubrel(sent.packet_id)
            if sent.released
            else Publish(sent.topic, sent.payload, sent.qos, False, True, sent.packet_id)
            for sent in device.sent.values()
        ]

    def _forget_connection(self, device: Device) -> None:
        device.client = None
        device.up = []
        device.unanswered = {}

    def _read(self, device: Device, count: int) -> bool:
        client = device.client
        if client is None:
            return False
        packets, client.wire.packets = client.wire.packets[:count], client.wire.packets[count:]
        for packet in packets:
            self._handle(device, packet)
        return bool(packets)

    def _handle(self, device: Device, packet: Packet) -> None:
        match packet:
            case Connack():
                assert packet.reason == 0
                assert packet.session_present == device.known
            case Puback() | Pubrec():
                sent = device.sent[packet.packet_id]
                if packet.reason >= 0x80:
                    if sent.qos == 2 or not sent.repeated:
                        self.refused.add(sent.payload)
                    del device.sent[packet.packet_id]
                elif isinstance(packet, Puback):
                    del device.sent[packet.packet_id]
                else:
                    sent.released = True
                    device.up.append(Pubrel(packet.packet_id))
            case Pubcomp():
                device.sent.pop(packet.packet_id, None)
            case Pubrel():
                device.held.pop(packet.packet_id, None)
                device.unanswered.pop(packet.packet_id, None)
                device.up.append(Pubcomp(packet.packet_id))
            case Publish():
                self._take(device, packet)

    def _take(self, device: Device, packet: Publish) -> None:
        payload = packet.payload
        if packet.qos:
            assert device.unanswered.get(packet.packet_id) in (None, payload), "an identifier in flight was reused"
            device.unanswered[packet.packet_id] = payload
            assert len(device.unanswered) <= device.window, "more in flight than the client takes"
        if packet.qos == 1:
            device.up.append(Puback(packet.packet_id))
            del device.unanswered[packet.packet_id]
        if packet.qos == 2:
            device.up.append(Pubrec(packet.packet_id))
            if packet.packet_id in device.held:
                assert device.held[packet.packet_id] == payload, "an identifier in flight was reused"
                assert packet.dup
                return
            device.held[packet.packet_id] = payload
        device.seen[payload] += 1
        name, topic, qos, number = parts(payload)
        if qos == 0 or (packet.qos == 2 and topic != b"memory"):
            assert device.seen[payload] == 1, f"{payload!r} came twice"
        # A session that has begun between two copies of a message gets the second one behind what came between.
        late = payload in self.repeated and not device.kept
        if device.seen[payload] == 1 and qos and topic != b"memory" and not late:
            stream = (name, topic, bytes((qos,)))
            assert number > device.order.get(stream, 0), f"{payload!r} is out of order"
            device.order[stream] = number

    # -- what must hold

    def _note(self) -> None:
        """Look at what the node has just written, before a later commit can make it good."""
        commits = self.node.engine.commits
        for events, _, _ in commits[self.groups :]:
            self.committed.update(event.payload for event in events if event.durability)
        self.groups = len(commits)
        for device in self.devices:
            if device.client is None:
                continue
            for packet in device.client.wire.packets:
                if isinstance(packet, Publish):
                    _, topic, qos, _ = parts(packet.payload)
                    assert not qos or topic == b"memory" or packet.payload in self.committed, "seen before it was kept"
                    assert packet.payload not in self.refused or not qos, "a refused message was given"
                elif isinstance(packet, Puback | Pubrec) and packet.reason < 0x80:
                    sent = device.sent[packet.packet_id]
                    self.acknowledged.add(sent.payload)
                    assert sent.topic == "memory" or sent.payload in self.committed, "acknowledged before it was kept"

    @invariant()
    def what_is_held_is_bounded(self) -> None:
        assert self.node.hub.crashed == 0
        for session in self.node.hub.sessions.all.values():
            stages = (session.unacked, session.unreceived, session.uncompleted)
            assert len(set().union(*stages)) == sum(map(len, stages)) <= LIMITS.max_inflight
            assert len(session._read_back) <= 32
        for connection in self.node.hub.clients.connections:
            assert connection.pending <= 4 * LIMITS.write_buffer
        assert len(self.node.hub.clients.connections) <= 2 * len(self.devices)

    @invariant()
    def qos_2_is_kept_once(self) -> None:
        for payload, count in self.committed.items():
            assert count == 1 or parts(payload)[2] == 1, f"{payload!r} was kept {count} times"
            assert payload not in self.refused or parts(payload)[2] == 0

    # -- how it ends

    def _everybody_reads(self) -> bool:
        busy = False
        for device in self.devices:
            client = device.client
            if client is None or not client.open:
                continue
            if device.up and client.wire.reading:
                packets, device.up = device.up, []
                client.send(*packets)
                busy = True
            self._note()
            busy = self._read(device, 1000) or busy
        return busy

    def teardown(self) -> None:
        """The disk has room, the connections hold: everything that was promised arrives."""
        if not hasattr(self, "node"):
            return
        self.node.engine.fault = None
        self.node.tick()
        self.node.commit()
        self._note()
        for device in self.devices:
            if device.client is not None and device.client.open and device.client.wire.jammed:
                device.client.unjam()
            if device.client is None or not device.client.open:
                self._connect(device)
        for _ in range(1000):
            self.node.commit()
            self._note()
            if not self._everybody_reads() and not self.node.scheduled:
                break
        else:
            raise AssertionError("it does not come to rest")
        self._check_what_arrived()

    def _check_what_arrived(self) -> None:
        for publisher in self.publishers:
            assert not publisher.sent, f"{publisher.name} waits for an acknowledgement"
        for device in self.subscribers:
            assert device.client is not None
            session = device.client.session
            assert session.live
            assert session.slots == session.window
            assert not session.unacked
            assert not session.unreceived
            assert not session.uncompleted
            if not device.kept:
                continue
            missing = [payload for payload in self.acknowledged if device.wants(payload) and not device.seen[payload]]
            assert not missing, f"{device.name} was not given {missing}"


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

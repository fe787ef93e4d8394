"""The promises of shared subscriptions under every order of events that hypothesis can think of.

Members that follow the protocol come, go, unsubscribe and lose their connections, at a node whose commits come late and
whose process dies at any moment. Whatever happens:

1. Every acknowledged message is received by a member.
2. A message at QoS 2 is received once; where a session has ended that it may have been given to, once at most.
3. A message at QoS 1 that a member has acknowledged is not given again, unless the process died in between.
4. No member has more on its way than it takes, and none under an identifier in use.
5. What is published while one member is alone there comes to it in order, by topic and QoS.

A longer run: `BERM_MODEL_EXAMPLES=20000 python -m pytest tests/broker/test_share_model.py`.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.listener import Limits
from broker.mqtt.packets import Packet, Puback, Pubcomp, Publish, Pubrec, Pubrel, Unsubscribe
from broker.mqtt.properties import Property
from tests.broker.helpers import FOREVER, Client, Node

EXAMPLES = int(os.environ.get("BERM_MODEL_EXAMPLES", "300"))
LIMITS = Limits(write_buffer=300, group_bytes=4000, turn=4)
FILTER = "$share/g/+"
WINDOWS = {"kept": 3, "other": 2, "clean": 2}


@dataclass(slots=True)
class Member:
    """A client of the share. It outlives its connections, and the node."""

    name: str
    client: Client | None = None
    subscribed: bool = False
    inbox: list[Packet] = field(default_factory=list)
    """What has come and was not looked at."""
    held: dict[int, bytes] = field(default_factory=dict)
    """QoS 2 messages that were received and not released, by identifier."""
    under_way: dict[int, bytes] = field(default_factory=dict)
    """Messages of this connection that were received and not answered to the end."""

    @property
    def kept(self) -> bool:
        return self.name != "clean"

    @property
    def there(self) -> bool:
        return self.client is not None and self.client.open


class Model(RuleBasedStateMachine):
    """The node, the members, and what must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.members = [Member(name) for name in WINDOWS]
        self.published = 0
        self.received: Counter[bytes] = Counter()
        self.acknowledged: set[bytes] = set()
        """Those at QoS 1 that a member has acknowledged, in the life of this process."""
        self.excused: set[bytes] = set()
        """Those at QoS 2 that were published before a session ended that they may have been given to."""
        self.alone: Member | None = None
        """The member that is the only one there."""
        self.alone_from = 0
        """What has been published since then begins with this number."""
        self.latest: Counter[tuple[int, int]] = Counter()
        """The highest number that it has received since, by topic and QoS."""

    @initialize(memory_bytes=st.sampled_from([1, 1500, 1 << 20]))
    def start(self, memory_bytes: int) -> None:
        self.node = Node(LIMITS, memory_bytes=memory_bytes)
        self.publisher = self.node.connect("p")
        for member in self.members:
            self._connect(member)

    def _connect(self, member: Member) -> None:
        properties = ((Property.RECEIVE_MAXIMUM, WINDOWS[member.name]),)
        expiry = FOREVER if member.kept else 0
        member.inbox = []
        member.under_way = {}
        if not member.kept:
            member.held = {}
            member.subscribed = False
        member.client = self.node.connect(member.name, clean=not member.kept, expiry=expiry, properties=properties)
        if not member.subscribed:
            member.subscribed = True
            member.client.subscribe(FILTER, 2)
        self._look_who_is_alone()
        self._read(member)

    def _end_of_clean_session(self) -> None:
        self.excused |= {b"%d" % n for n in range(self.published) if n % 2}

    # -- what happens

    @rule(count=st.integers(1, 4))
    def publish(self, count: int) -> None:
        """Even numbers at QoS 1, odd ones at QoS 2."""
        for _ in range(count):
            qos, packet_id = 1 + self.published % 2, self.published % 65535 + 1
            self.publisher.publish(f"t{self.published % 3}", b"%d" % self.published, qos, packet_id)
            if qos == 2:
                self.publisher.send(Pubrel(packet_id))
            self.published += 1

    @rule()
    def commit(self) -> None:
        self.node.commit()
        self.publisher.take_all()
        for member in self.members:
            self._read(member)

    @rule()
    def commit_one(self) -> None:
        self.node.commit_one()

    @rule()
    def tick(self) -> None:
        self.node.tick()

    @rule(index=st.integers(0, 2), count=st.integers(1, 5), backwards=st.booleans())
    def answer(self, index: int, count: int, backwards: bool) -> None:
        member = self.members[index]
        self._read(member)
        for _ in range(count):
            if member.inbox and member.there:
                self._answer(member, member.inbox.pop(-1 if backwards else 0))

    @rule(index=st.integers(0, 2))
    def come(self, index: int) -> None:
        if not self.members[index].there:
            self._connect(self.members[index])

    @rule(index=st.integers(0, 2), orderly=st.booleans())
    def go(self, index: int, orderly: bool) -> None:
        member = self.members[index]
        if not member.there:
            return
        assert member.client is not None
        self._read(member)
        if orderly:
            member.client.disconnect()
        else:
            member.client.lose()
        member.client = None
        if not member.kept:
            self._end_of_clean_session()
        self._look_who_is_alone()

    @rule()
    @precondition(lambda self: self.members[2].there and self.members[2].subscribed)
    def unsubscribe(self) -> None:
        clean = self.members[2]
        assert clean.client is not None
        clean.client.send(Unsubscribe(9, (FILTER,)))
        clean.subscribed = False
        self._look_who_is_alone()

    @rule()
    @precondition(lambda self: self.published)
    def crash(self) -> None:
        for member in self.members:
            self._read(member)
            member.client = None
        self.alone = None
        self._end_of_clean_session()
        self.acknowledged.clear()
        # What was not acknowledged to the publisher may be gone: it is published again.
        kept = {event.payload for events, _, _ in self.node.engine.commits for event in events}
        self.node.crash()
        self.publisher = self.node.connect("p")
        for number in range(self.published):
            if b"%d" % number not in kept:
                qos, packet_id = 1 + number % 2, number % 65535 + 1
                self.publisher.publish(f"t{number % 3}", b"%d" % number, qos, packet_id)
                if qos == 2:
                    self.publisher.send(Pubrel(packet_id))

    # -- what members do

    def _look_who_is_alone(self) -> None:
        there = [member for member in self.members if member.there and member.subscribed]
        self.alone = there[0] if len(there) == 1 else None
        self.alone_from = self.published
        self.latest.clear()

    def _read(self, member: Member) -> None:
        if not member.there:
            return
        assert member.client is not None
        for packet in member.client.take_all():
            if isinstance(packet, Publish):
                self._receive(member, packet)
            if isinstance(packet, (Publish, Pubrel)):
                member.inbox.append(packet)

    def _receive(self, member: Member, packet: Publish) -> None:
        payload, packet_id = packet.payload, packet.packet_id
        assert member.under_way.get(packet_id, payload) == payload, "an identifier in use"
        member.under_way[packet_id] = payload
        assert len(member.under_way) <= WINDOWS[member.name], "more than it takes"
        if packet.qos == 2:
            if packet_id in member.held:
                assert packet.dup
                assert member.held[packet_id] == payload
                return
            member.held[packet_id] = payload
        assert payload not in self.acknowledged, f"{payload!r} was acknowledged"
        number = int(payload)
        if member is self.alone and number >= self.alone_from and not packet.dup:
            key = (number % 3, number % 2)
            assert number >= self.latest[key], f"{number} comes after {self.latest[key]}"
            self.latest[key] = number
        self.received[payload] += 1

    def _answer(self, member: Member, packet: Packet) -> None:
        assert member.client is not None
        match packet:
            case Publish(qos=1, packet_id=packet_id):
                self.acknowledged.add(packet.payload)
                del member.under_way[packet_id]
                member.client.send(Puback(packet_id))
            case Publish(packet_id=packet_id):
                member.client.send(Pubrec(packet_id))
            case Pubrel(packet_id):
                member.held.pop(packet_id, None)
                member.under_way.pop(packet_id, None)
                member.client.send(Pubcomp(packet_id))

    # -- what must hold

    @invariant()
    def qos_2_comes_once_at_most(self) -> None:
        assert not [payload for payload, count in self.received.items() if int(payload) % 2 and count > 1]

    @invariant()
    def shares_are_there_while_they_have_members(self) -> None:
        if hasattr(self, "node"):
            for share in self.node.hub.shares.all.values():
                assert share.members
                assert share.stored == any(member.persistent for member in share.members)
            assert self.node.hub.crashed == 0

    def teardown(self) -> None:
        """Everybody comes and acknowledges: everything that was promised has arrived."""
        if not hasattr(self, "node"):
            return
        for member in self.members:
            if not member.there:
                self._connect(member)
        for _ in range(1000):
            self.node.commit()
            self.publisher.take_all()
            busy = False
            for member in self.members:
                self._read(member)
                while member.inbox:
                    busy = True
                    self._answer(member, member.inbox.pop(0))
            if not busy and not self.node.scheduled:
                break
        else:
            raise AssertionError("it does not come to rest")
        missing = [n for n in range(self.published) if not self.received[b"%d" % n] and b"%d" % n not in self.excused]
        assert not missing, f"nobody was given {missing}"
        for member in self.members:
            assert member.client is not None
            session = member.client.session
            assert session.slots == session.window
            assert not session.shared
            assert not session.unacked
            assert not session.unreceived
            assert not session.uncompleted
        assert all(share.live for share in self.node.hub.shares.all.values())


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

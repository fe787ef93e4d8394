"""Whatever happens in whatever order: nothing is lost, and no position is beyond what the peer has acknowledged."""

from __future__ import annotations

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bridge.ledger import Ledger
from bridge.settings import RouteSettings
from bridge.uplink import State
from broker.mqtt.packets import Connack
from broker.mqtt.properties import Property
from broker.mqtt.reason import Reason
from tests.bridge.helpers import Rig, settings, stamp_of


class Outages(RuleBasedStateMachine):
    """Two routes, of which one's events are all the other's too, through a window of four."""

    def __init__(self) -> None:
        super().__init__()
        routes = (RouteSettings("a", "a/+"), RouteSettings("both", "+/+", prefix="all/"))
        self.rig = Rig(settings(*routes, window=4), memory_bytes=1)
        self.count = 0
        self.acknowledged: set[tuple[str, bytes]] = set()
        """Route prefix and payload, of which the node has been told."""

    @rule(topic=st.sampled_from(("a/1", "b/1", "c", "a/2")), qos=st.sampled_from((1, 2)))
    def publish(self, topic: str, qos: int) -> None:
        self.count += 1
        self.rig.publish(topic, b"%d" % self.count, qos)

    @rule()
    def commit(self) -> None:
        self.rig.worker.run()

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        self.rig.uplink.paused(paused)

    @rule()
    def send(self) -> None:
        self.rig.peer.feed(self.rig.uplink.take())

    @rule()
    def lose(self) -> None:
        """The link breaks with bytes on it."""
        self.rig.uplink.take()
        self.drop()

    @rule(seconds=st.sampled_from((0.1, 1.0, 3.0)))
    def wait(self, seconds: float) -> None:
        self.rig.now += round(seconds * 1_000_000)
        self.rig.uplink.tick(self.rig.now)

    @rule(receive_maximum=st.sampled_from((1, 3, 100)))
    @precondition(lambda self: self.rig.uplink.state is State.IDLE)
    def connect(self, receive_maximum: int) -> None:
        self.rig.peer.connack = Connack(False, 0, ((Property.RECEIVE_MAXIMUM, receive_maximum),))
        self.rig.connect()

    @rule(data=st.data(), fails=st.booleans(), arrives=st.booleans())
    @precondition(lambda self: self.rig.peer.unanswered)
    def answer(self, data: st.DataObject, fails: bool, arrives: bool) -> None:
        rig = self.rig
        packet_ids = data.draw(st.lists(st.sampled_from(rig.peer.unanswered), unique=True))
        reason = Reason.QUOTA_EXCEEDED if fails else Reason.SUCCESS
        rig.peer.acknowledge(*packet_ids, reason=reason)
        answers = rig.peer.take()
        if not arrives:
            self.drop()
            return
        if rig.uplink.state is State.UP:
            if not fails:
                self.acknowledged |= {self._key(packet_id) for packet_id in packet_ids}
            rig.uplink.receive(answers, rig.now)

    def _key(self, packet_id: int) -> tuple[str, bytes]:
        packet = self.rig.peer.by_id[packet_id]
        return ("all/" if packet.topic.startswith("all/") else "", packet.payload)

    @rule()
    def drop(self) -> None:
        self.rig.drop()
        self.rig.peer.connected()

    @rule()
    def crash(self) -> None:
        self.rig.peer.connected()
        self.rig.crash()

    @invariant()
    def no_position_is_beyond_an_unacknowledged_event(self) -> None:
        for route, prefix in zip(self.rig.uplink.routes, ("", "all/"), strict=True):
            for position in (route.position, self.rig.kept(route.name)):
                for event in self.rig.engine.events:
                    if event.seq <= position and self._wanted(prefix, event.topic):
                        assert (prefix, event.payload) in self.acknowledged, (route.name, position, event)

    def _wanted(self, prefix: str, topic: str) -> bool:
        return topic.startswith("a/") or (prefix == "all/" and "/" in topic)

    def teardown(self) -> None:
        rig = self.rig
        rig.drop()
        rig.peer.connack = Connack(False, 0)
        rig.connect()
        rig.drain()
        ledger = Ledger()
        fresh: dict[str, list[bytes]] = {"": [], "all/": []}
        for packet in rig.peer.published:
            stamp = stamp_of(packet)
            assert stamp.prev < stamp.seq
            if ledger.feed(stamp.edge, stamp.epoch, stamp.seq, stamp.prev, stamp.route):
                fresh["all/" if packet.topic.startswith("all/") else ""].append(packet.payload)
        assert ledger.gaps == 0
        for prefix, payloads in fresh.items():
            assert payloads == [event.payload for event in rig.engine.events if self._wanted(prefix, event.topic)]
        assert all(route.pending == 0 for route in rig.uplink.status().routes)


TestOutages = Outages.TestCase
TestOutages.settings = hypothesis_settings(max_examples=100, stateful_step_count=40, deadline=None)

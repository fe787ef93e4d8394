"""Pairs of clients that do everything right, while others don't: a publisher, and a subscriber with a kept session.

They must not notice the others. Their connections last; what was acknowledged arrives, in order, at QoS 2 once, and at
QoS 1 once unless somebody had to send it again. Only what the broker announces may happen to them: a refusal, or the
end of a connection, while nothing can be stored; a refusal, while the disk has no room for what publishers send.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from broker.mqtt.codec import encode
from broker.mqtt.packets import Connect, Packet, Puback, Pubcomp, Publish, Pubrec, Pubrel, Subscribe, Subscription
from broker.mqtt.properties import Properties, Property
from tests.conformance.packets import Packet as Heard
from tests.fuzz.world import Broken, World

_WINDOW: Final = 4
"""Messages that a publisher has under way at most; every setup allows as many."""
_ROUNDS: Final = 60
"""Rounds in which everything has arrived, once nothing is in the way any more."""


@dataclass(slots=True)
class _Sent:
    """A message until it is done."""

    number: int
    qos: int
    released: bool = False

    @property
    def payload(self) -> bytes:
        return b"%d" % self.number


class Pair:
    """One pair, in one version."""

    def __init__(self, world: World, version: int) -> None:
        self._world = world
        self._version = version
        self._publisher_name, self._subscriber_name = f"bystander {version} p", f"bystander {version} s"
        self._sent: dict[int, _Sent] = {}
        self._next_id = 1
        self._published = 0
        self._acknowledged: set[tuple[int, int]] = set()
        """(QoS, number)"""
        self._refused: set[tuple[int, int]] = set()
        self._again: set[tuple[int, int]] = set()
        """Those sent more than once."""
        self._got: dict[int, list[int]] = {1: [], 2: []}
        self._held: dict[int, bytes] = {}
        """Messages at QoS 2 that wait for their PUBREL, by identifier."""
        self._resumed = False
        """The subscriber has been disconnected: at QoS 1 something may come again."""
        self._away: set[str] = set()
        """Those of the two that were not let in while nothing can be stored, and try again."""
        self._connect(self._publisher_name, new=True)
        self._connect(self._subscriber_name, new=True)
        self._say(self._subscriber_name, Subscribe(1, (Subscription(f"bystander/{version}/+", 2),)))
        self._await()

    @property
    def exchanged(self) -> int:
        """Messages that have arrived."""
        return sum(map(len, self._got.values()))

    def speak(self) -> None:
        """Publish one more message, unless many enough are under way."""
        if len(self._sent) < _WINDOW:
            while self._next_id in self._sent:
                self._next_id = self._next_id % 9 + 1
            self._published += 1
            self._sent[self._next_id] = sent = _Sent(self._published, 1 + self._published % 2)
            self._publish(self._next_id, sent, dup=False)
            self._next_id = self._next_id % 9 + 1

    def attend(self) -> bool:
        """Deal with what has come; whether anything has."""
        self._watch()
        came = False
        for name, deal in ((self._publisher_name, self._acknowledge), (self._subscriber_name, self._receive)):
            ear = self._world.links[name].ear
            packets = ear.inbox[:]
            ear.inbox.clear()
            ear.answers.clear()
            for packet in packets:
                came = True
                deal(packet)
        return came

    def reconnect(self) -> None:
        """The node was started again: take up the sessions."""
        self._resumed = True
        self._connect(self._publisher_name)
        self._connect(self._subscriber_name)

    def finish(self) -> None:
        """Nothing is in the way any more: everything must arrive.

        Raises:
            Broken: it does not.
        """
        for _ in range(_ROUNDS):
            self._world.node.tick(1.1)
            self._world.node.commit()
            self._world.settle()
            self.attend()
            if not self._sent and not self._missing:
                break
        if self._sent:
            raise Broken("a bystander's message is never acknowledged", str(self._sent))
        if self._missing:
            raise Broken("a bystander's message is lost", f"QoS and number: {sorted(self._missing)}")
        came = {(qos, number) for qos, numbers in self._got.items() for number in numbers}
        if refused := came & (self._refused - self._again):
            raise Broken("a message arrives that was refused", f"QoS and number: {sorted(refused)}")

    @property
    def _missing(self) -> set[tuple[int, int]]:
        return self._acknowledged - {(qos, number) for qos, numbers in self._got.items() for number in numbers}

    # -- the publisher

    def _publish(self, id: int, sent: _Sent, dup: bool) -> None:
        topic = f"bystander/{self._version}/{sent.qos}"
        self._say(self._publisher_name, Publish(topic, sent.payload, sent.qos, False, dup, id))

    def _send_again(self) -> None:
        for id, sent in self._sent.items():
            if sent.released:
                self._say(self._publisher_name, Pubrel(id))
            else:
                self._again.add((sent.qos, sent.number))
                self._publish(id, sent, dup=True)

    def _acknowledge(self, packet: Heard) -> None:
        fields = dict(packet.fields)
        if packet.kind not in ("PUBACK", "PUBREC", "PUBCOMP"):
            raise Broken(f"a bystander that publishes is sent a {packet.kind}")
        id, reason = fields["id"], fields.get("reason", 0)
        assert isinstance(id, int)
        assert isinstance(reason, int)
        sent = self._sent.get(id)
        if sent is None or (sent.qos == 1) != (packet.kind == "PUBACK"):
            raise Broken(f"a bystander is sent a {packet.kind} for nothing")
        done_before = packet.kind == "PUBCOMP" and reason == 0x92 and self._resumed
        if reason and not done_before and not (self._world.faulty or self._world.refusing):
            raise Broken(f"a bystander is refused: {packet.kind} 0x{reason:02x}")
        if reason >= 0x80 and not done_before:
            self._refused.add((sent.qos, sent.number))
            del self._sent[id]
        elif packet.kind == "PUBREC":
            self._acknowledged.add((2, sent.number))
            sent.released = True
            self._say(self._publisher_name, Pubrel(id))
        else:
            self._acknowledged.add((sent.qos, sent.number))
            del self._sent[id]

    # -- the subscriber

    def _receive(self, packet: Heard) -> None:
        fields = dict(packet.fields)
        id = fields.get("id")
        if packet.kind == "PUBREL":
            assert isinstance(id, int)
            self._held.pop(id, None)
            self._say(self._subscriber_name, Pubcomp(id))
        elif packet.kind != "PUBLISH":
            raise Broken(f"a bystander that subscribes is sent a {packet.kind}")
        else:
            assert isinstance(id, int)
            payload, qos = fields["payload"], fields["qos"]
            assert isinstance(payload, bytes)
            assert isinstance(qos, int)
            if fields["topic"] != f"bystander/{self._version}/{qos}":
                raise Broken("a bystander is sent somebody else's message", str(packet))
            if qos == 1:
                self._take(1, payload)
                self._say(self._subscriber_name, Puback(id))
            else:
                if self._held.get(id) != payload:
                    if id in self._held:
                        raise Broken("another message comes under an identifier that is in use")
                    self._held[id] = payload
                    self._take(2, payload)
                self._say(self._subscriber_name, Pubrec(id))

    def _take(self, qos: int, payload: bytes) -> None:
        number, got = int(payload), self._got[qos]
        if number in got:
            if qos == 2 or not (self._resumed or (qos, number) in self._again):
                raise Broken(f"a bystander gets a message at QoS {qos} twice", f"number {number}")
        elif got and number < max(got) and not (self._world.refusing and (qos, number) in self._again):
            # One that was refused may be sent again by a publisher that was not told so, and be taken on then.
            raise Broken(f"a bystander gets messages at QoS {qos} out of order", f"{number} after {got[-3:]}")
        got.append(number)

    # -- connections

    def _connect(self, name: str, new: bool = False) -> None:
        properties: Properties = ((Property.SESSION_EXPIRY_INTERVAL, 0xFFFFFFFF),) if self._version == 5 else ()
        link = self._world.open(name)
        self._say(name, Connect(name, self._version, new, 0, None, None, None, properties))
        if new and self._version == 4:  # a clean session does not last: one that does begins with the next CONNECT
            self._world.settle()
            link = self._world.open(name)
            self._say(name, Connect(name, self._version, False, 0, None, None, None, properties))
        self._world.settle()
        self._away.discard(name)
        if not link.ear.inbox or link.ear.inbox[0].kind != "CONNACK" or not link.ear.accepted:
            if self._world.node.log.failure is None:
                raise Broken("a bystander can't connect", " ".join(map(str, link.ear.inbox)))
            self._away.add(name)
            link.ear.inbox.clear()
        elif link.ear.inbox.pop(0).all("present")[0] != (not new):
            raise Broken("a bystander's session is gone")
        elif name == self._publisher_name:
            self._send_again()

    def _await(self) -> None:
        """Wait until the subscription is there, and everything is on the disk, also what may be late by a second."""
        self._world.settle()
        self._world.node.commit()
        self._world.node.tick(1.1)
        self._world.node.commit()
        link = self._world.links[self._subscriber_name]
        (suback,) = link.ear.inbox
        assert suback.kind == "SUBACK"
        link.ear.inbox.clear()

    def _watch(self) -> None:
        """See that both are connected, and come back where they need not be."""
        for name in (self._publisher_name, self._subscriber_name):
            link = self._world.links[name]
            if link.wire.open:
                continue
            if self._world.node.log.failure is None and name not in self._away:
                raise Broken("a bystander is disconnected", " ".join(map(str, link.ear.inbox)))
            self._resumed = True
            self._connect(name)

    def _say(self, name: str, *packets: Packet) -> None:
        self._world.links[name].send(b"".join(encode(packet, self._version) for packet in packets))


def pairs(world: World) -> tuple[Pair, ...]:
    """One that speaks 3.1.1, and one that speaks 5."""
    return Pair(world, 4), Pair(world, 5)

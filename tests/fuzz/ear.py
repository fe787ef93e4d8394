"""One client's ear: whether what the broker sends it is what a broker may send, by the rules of its version.

The ear is told what the client says, just before the broker reads it (`said`), and what the broker says (`hear`). It
shares no code with the broker for what it hears, and knows nothing of its state. It may forgive: what the client has
said counts although the broker has not come to it yet.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from broker.mqtt.codec import Decoder
from broker.mqtt.packets import (
    Connect,
    Packet,
    Pingreq,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    Unsubscribe,
)
from broker.mqtt.properties import Property, first
from tests.conformance.packets import Packet as Heard
from tests.conformance.packets import Unreadable, Value, decode, encode, take

SENT, RECEIVED, RELEASED = 1, 2, 3
"""How far a message to the client is: sent at QoS 1; sent at QoS 2; its PUBREC has been said."""

Owed = tuple[int, str, bytes, bool]
"""A message of the client whose acknowledgement is due: packet identifier, topic, payload, and whether it may be one
that the broker has already."""


class Wrong(BaseException):
    """The broker has said what it may not say. No `except Exception` of the broker's swallows it."""


class Ear:
    """One connection's. `kept`: whether a message of this topic and payload is where no crash takes it back;
    `window`: messages that the broker may have in flight to anyone; `largest`: bytes of a packet to the broker."""

    def __init__(self, kept: Callable[[str, bytes], bool], window: int, largest: int) -> None:
        self.version = 0
        """That of the CONNECT; 0: none was said, or no version that is known."""
        self.inbox: list[Heard] = []
        """What has been heard, for whoever takes it."""
        self.answers: list[bytes] = []
        """What a good client says to it."""
        self.accepted = False
        self.over = False
        """The broker has refused the client, or said its last word."""
        self._kept = kept
        self._mouth = Decoder(0, largest)
        self._held = bytearray()
        self._connect: Connect | None = None
        self._present = False
        self._window = window
        self._largest = 0
        self._aliases: dict[int, str] = {}
        self._alias_maximum = 0
        self._inflight: dict[int, int] = {}
        self._released: deque[int] = deque()
        """Identifiers of PUBRECs without an error, in order: their PUBRELs are due in that order."""
        self._told: dict[int, str] = {}
        """Aliases that the client has set."""
        self._at_qos1: deque[Owed] = deque()
        """Messages of the client whose PUBACK is due, in order."""
        self._at_qos2: deque[Owed] = deque()
        self._unreleased: set[int] = set()
        """Identifiers of messages at QoS 2 whose PUBREL the client has not said."""
        self._due: Counter[tuple[str, int]] = Counter()
        """Answers that are due: type and packet identifier."""
        self._ahead: Counter[int] = Counter()
        """PUBACKs for messages of an earlier connection that the client has not heard again yet: the broker may read
        them after it has written the message, and before the client hears it."""
        self._completed: Counter[int] = Counter()
        """PUBCOMPs for PUBRELs of which the same holds."""
        self._asked: dict[int, deque[int]] = {}
        """How many codes the next SUBACKs and UNSUBACKs of an identifier have."""

    # -- what the client says

    def said(self, data: bytes) -> None:
        """The client has sent these bytes, and the broker is about to read them."""
        for packet in self._mouth.feed(data):
            self._note(packet)
        self.version = self._mouth.version

    def _note(self, packet: Packet) -> None:
        match packet:
            case Connect():
                if self._connect is None:
                    self._greet(packet)
            case Publish(qos=0):
                self._topic(packet)
            case Publish(qos=1):
                self._at_qos1.append((packet.packet_id, self._topic(packet), packet.payload, False))
            case Publish():
                again = packet.packet_id in self._unreleased
                self._at_qos2.append((packet.packet_id, self._topic(packet), packet.payload, again))
                self._unreleased.add(packet.packet_id)
            case Puback():
                if self._inflight.get(packet.packet_id) == SENT:
                    del self._inflight[packet.packet_id]
                elif self._may_resume or not self.accepted:
                    self._ahead[packet.packet_id] += 1
            case Pubrec():
                self._received(packet)
            case Pubcomp():
                if self._inflight.get(packet.packet_id) == RELEASED:
                    del self._inflight[packet.packet_id]
                elif self._may_resume or not self.accepted:
                    self._completed[packet.packet_id] += 1
            case Pubrel():
                self._unreleased.discard(packet.packet_id)
                self._due["PUBCOMP", packet.packet_id] += 1
            case Subscribe():
                self._due["SUBACK", packet.packet_id] += 1
                self._asked.setdefault(packet.packet_id, deque()).append(len(packet.subscriptions))
            case Unsubscribe():
                self._due["UNSUBACK", packet.packet_id] += 1
                self._asked.setdefault(packet.packet_id, deque()).append(len(packet.filters))
            case Pingreq():
                self._due["PINGRESP", 0] += 1

    def _greet(self, packet: Connect) -> None:
        self._connect = packet
        self._window = min(self._window, _number(packet, Property.RECEIVE_MAXIMUM, 65535))
        self._largest = _number(packet, Property.MAXIMUM_PACKET_SIZE, 0)
        self._alias_maximum = _number(packet, Property.TOPIC_ALIAS_MAXIMUM, 0)

    def _topic(self, packet: Publish) -> str:
        alias = first(packet.properties, Property.TOPIC_ALIAS) if packet.properties else None
        if not isinstance(alias, int):
            return packet.topic
        if packet.topic:
            self._told[alias] = packet.topic
        return self._told.get(alias, "")

    def _received(self, packet: Pubrec) -> None:
        id = packet.packet_id
        stage = self._inflight.get(id)
        if packet.reason >= 0x80:
            if stage == RECEIVED:
                del self._inflight[id]
            return
        self._released.append(id)
        if stage == RECEIVED:
            self._inflight[id] = RELEASED

    # -- what the broker says

    def hear(self, data: bytes) -> None:
        """The broker has sent these bytes.

        Raises:
            Wrong: it should not have.
        """
        self._held += data
        version = self.version or 4
        while True:
            before = len(self._held)
            try:
                taken = take(self._held)
                if taken is None:
                    return
                packet = decode(*taken, version)
            except Unreadable as error:
                raise Wrong(f"the broker sends what is no packet of version {version}: {error}") from error
            size = before - len(self._held)
            if self._largest and size > self._largest:
                raise Wrong(f"{packet.kind} of more bytes than the client takes ({size} > {self._largest})")
            if self.over:
                raise Wrong(f"{packet.kind} after the broker's last word")
            self._check(packet)
            self.inbox.append(packet)

    def ended(self) -> None:
        """The broker has closed the connection, and everything has been heard.

        Raises:
            Wrong: it has been closed inside a packet.
        """
        if self._held:
            raise Wrong("the connection is closed inside a packet")

    def _check(self, packet: Heard) -> None:
        fields = dict(packet.fields)
        if self._connect is None and packet.kind != "CONNACK":
            raise Wrong(f"{packet.kind} before there was a CONNECT")
        if not self.accepted and packet.kind not in ("CONNACK", "AUTH"):
            raise Wrong(f"{packet.kind} before the CONNACK")
        _CHECKS[packet.kind](self, packet, fields)

    def _connack(self, packet: Heard, fields: dict[str, Value]) -> None:
        if self.accepted:
            raise Wrong("a second CONNACK")
        self._present = fields["present"] == 1
        if fields["reason"]:
            self.over = True
            return
        self.accepted = True
        if self._connect is None:
            raise Wrong("a CONNACK that accepts no CONNECT")
        if self._present and self._connect.clean_start:
            raise Wrong("a session is present after a clean start")

    def _publish(self, packet: Heard, fields: dict[str, Value]) -> None:
        topic, payload, qos = fields["topic"], fields["payload"], fields["qos"]
        assert isinstance(topic, str)
        assert isinstance(payload, bytes)
        topic = self._resolved(topic, fields.get("topic-alias", 0))
        if not qos:
            return
        id = fields["id"]
        assert isinstance(id, int)
        if id in self._inflight:
            raise Wrong("a packet identifier is in use twice")
        if fields["dup"] and not self._may_resume:
            raise Wrong("DUP in a session that is new")
        if qos == 1 and self._ahead[id]:
            self._ahead[id] -= 1
            return
        self._inflight[id] = SENT if qos == 1 else RECEIVED
        if len(self._inflight) > self._window:
            raise Wrong(f"more messages in flight than {self._window}")
        if not self._kept(topic, payload):
            raise Wrong("a message is seen at QoS 1 or 2 that a crash can take back")
        self.answers.append(encode("PUBACK" if qos == 1 else "PUBREC", (("id", id),), self.version))

    def _resolved(self, topic: str, alias: Value) -> str:
        if alias:
            assert isinstance(alias, int)
            if alias > self._alias_maximum:
                raise Wrong("a topic alias above the client's maximum")
            if topic:
                self._aliases[alias] = topic
            return self._aliases.get(alias, "") or self._no_topic()
        return topic or self._no_topic()

    def _no_topic(self) -> str:
        raise Wrong("a PUBLISH without a topic")

    @property
    def began(self) -> bool:
        """Whether the session began with this connection, as far as the client was told."""
        return self.accepted and not self._may_resume

    @property
    def _may_resume(self) -> bool:
        """Whether the session may be an earlier one. MQTT 3.1 does not say."""
        return self._present or (self.version == 3 and self._connect is not None and not self._connect.clean_start)

    def _puback(self, packet: Heard, fields: dict[str, Value]) -> None:
        self._settle(self._at_qos1, "PUBACK", fields)

    def _pubrec(self, packet: Heard, fields: dict[str, Value]) -> None:
        self._settle(self._at_qos2, "PUBREC", fields)

    def _settle(self, due: deque[Owed], kind: str, fields: dict[str, Value]) -> None:
        """The oldest message that is due is acknowledged."""
        if not due:
            raise Wrong(f"a {kind} that nobody waits for")
        id, topic, payload, again = due.popleft()
        if id != fields["id"]:
            raise Wrong(f"{kind}s in another order than the messages that they are for")
        reason = fields.get("reason", 0)
        assert isinstance(reason, int)
        if reason >= 0x80:
            if kind == "PUBREC" and not any(each[0] == id for each in due):  # else a client that repeated it too early
                self._unreleased.discard(id)
        elif not (again or (kind == "PUBREC" and self._may_resume) or self._kept(topic, payload)):
            raise Wrong(f"a {kind} for a message that is not in the log")

    def _pubrel(self, packet: Heard, fields: dict[str, Value]) -> None:
        id = fields["id"]
        assert isinstance(id, int)
        self.answers.append(encode("PUBCOMP", (("id", id),), self.version))
        if self._released and self._released[0] == id:
            self._released.popleft()
        elif not self._may_resume:
            raise Wrong("a PUBREL that is not due, or not yet")
        else:
            if id in self._released:
                raise Wrong("PUBRELs in another order than the PUBRECs that they are for")
            if self._completed[id]:
                self._completed[id] -= 1
            elif not fields.get("reason"):
                self._inflight[id] = RELEASED

    def _answered(self, packet: Heard, fields: dict[str, Value]) -> None:
        id = fields.get("id", 0)
        assert isinstance(id, int)
        if not self._due[packet.kind, id]:
            raise Wrong(f"a {packet.kind} that nobody waits for")
        self._due[packet.kind, id] -= 1

    def _codes(self, packet: Heard, fields: dict[str, Value]) -> None:
        self._answered(packet, fields)
        id = fields["id"]
        assert isinstance(id, int)
        wanted, came = self._asked[id].popleft(), len(packet.all("code"))
        if came != wanted and (packet.kind == "SUBACK" or self.version == 5):
            raise Wrong(f"{packet.kind} with {came} codes, not {wanted}")

    def _disconnect(self, packet: Heard, fields: dict[str, Value]) -> None:
        self.over = True

    def _auth(self, packet: Heard, fields: dict[str, Value]) -> None:
        if self._connect is None or first(self._connect.properties, Property.AUTHENTICATION_METHOD) is None:
            raise Wrong("an AUTH for a client that has named no method")


def _number(packet: Connect, property: Property, default: int) -> int:
    value = first(packet.properties, property)
    return value if isinstance(value, int) else default


_CHECKS: Final[dict[str, Callable[[Ear, Heard, dict[str, Value]], None]]] = {
    "CONNACK": Ear._connack,
    "PUBLISH": Ear._publish,
    "PUBACK": Ear._puback,
    "PUBREC": Ear._pubrec,
    "PUBREL": Ear._pubrel,
    "PUBCOMP": Ear._answered,
    "SUBACK": Ear._codes,
    "UNSUBACK": Ear._codes,
    "PINGRESP": Ear._answered,
    "DISCONNECT": Ear._disconnect,
    "AUTH": Ear._auth,
}

"""One network connection's protocol: bytes in; bytes, and calls to the hub, out. It knows no socket.

The shell gives it what it reads (`receive`), tells it when the peer can't take more (`blocked`) and when the connection
is gone (`lost`). What it has to say gathers in `out`, and the hub writes it to the wire once per turn of the loop.

Whatever a peer sends, the worst that comes of it is a `ProtocolError`, which ends this connection: with the reason
code where the version has one, and one line in the log.

What one connection can make the broker hold is bounded. Messages for it are given out up to `limit` bytes; then its
session reads the log instead. Answers to it (PUBACK, PINGRESP, SUBACK and the like) can't be left out: where as many
bytes of them again wait for a peer that does not read, or for a commit, the peer is not read from until they are gone.

Until its client may be told that it is connected, a connection has a `Login`, and no session.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from broker.acl import Who
from broker.aliases import Aliases
from broker.answers import encode_answer
from broker.mount import MountedDecoder
from broker.mqtt.codec import Decoder, encode
from broker.mqtt.errors import ProtocolError
from broker.mqtt.packets import (
    REASONS,
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
    Will,
)
from broker.mqtt.properties import Properties, Property, encode_properties, first, number
from broker.mqtt.reason import Reason
from broker.offer import breaks_format, check_publish, check_subscribe
from broker.rights import forbids_filter
from broker.router import Grant

if TYPE_CHECKING:
    from broker.auth import Authorizer
    from broker.hub import Hub
    from broker.listener import Listener
    from broker.login import Login, Renewal
    from broker.quotas import Throttle
    from broker.session import Session

_TRAVELS_NOT: Final = frozenset((Property.TOPIC_ALIAS, Property.MESSAGE_EXPIRY_INTERVAL))
"""Properties of a PUBLISH that concern the connection, or that the log keeps in another form."""

_INVALID: Final = frozenset(
    (Reason.MALFORMED_PACKET, Reason.PROTOCOL_ERROR, Reason.TOPIC_NAME_INVALID, Reason.PACKET_TOO_LARGE)
)
"""What is wrong with a CONNECT that is none: before MQTT 5 nobody answers it."""

_CLIENTS_REASONS: Final = frozenset((0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, *range(0x93, 0x9A)))
"""The reason codes of DISCONNECT that clients may use; the others are for servers (section 3.14.2.1)."""

_BROKEN: Final = "MQTT-4.13.1-1"
"""What says that a malformed packet or a protocol error ends the connection, where nothing says more."""

_READ_BUDGET: Final = 64 << 10
"""Bytes after which a connection waits for the end of the turn, so that what comes out keeps up with what goes in."""
_NAME_SHOWN: Final = 64
"""Characters of a client identifier that a line in the log shows: it may have 65,535 bytes."""
_WHYS: Final = 5
"""Refusals that one SUBACK gives reasons for in words."""
_NOBODY: Final = Who("")
_SPOILT: Final = "a PUBLISH whose payload is not the UTF-8 that it says it is"
_IN_USE: Final = "a PUBLISH with the packet identifier of a QoS 2 message whose PUBREL is due"


class Wire(Protocol):
    """The transport under a connection."""

    peer: str
    """Who is at the other end, for people: `127.0.0.1:50123`."""
    host: str
    """The address of the other end, without a port; empty where it has none."""
    identity: str
    """Who the transport has proved the other end to be, such as a certificate's common name; empty: nobody."""

    def write(self, data: bytes) -> None:
        """Send, or keep until it can be sent."""

    def close(self) -> None:
        """Close once everything written has been sent."""

    def abort(self) -> None:
        """Close at once."""

    def pause_reading(self) -> None:
        """Let the peer wait."""

    def resume_reading(self) -> None:
        """Let the peer go on."""


class Connection:
    """One client at the other end of a wire."""

    __slots__ = (
        "_aliases",
        "_checked",
        "_decoder",
        "_hub",
        "_traffic",
        "aliases",
        "blocked",
        "closed",
        "corked",
        "heard",
        "held",
        "keep_alive",
        "kept",
        "limit",
        "limits",
        "listener",
        "login",
        "max_packet_size",
        "opened",
        "out",
        "owed",
        "paused_until",
        "pending",
        "permitted",
        "problem_information",
        "promised",
        "quota",
        "renewal",
        "rules",
        "session",
        "shaped",
        "throttle",
        "unread",
        "unreleased",
        "version",
        "volatile",
        "who",
        "will",
        "wire",
    )

    def __init__(self, hub: Hub, wire: Wire, now: int, listener: Listener) -> None:
        self.wire = wire
        self.listener = listener
        self.limits = limits = listener.limits
        self.session: Session | None = None
        self.version = 0
        self.opened = now
        self.heard = now
        self.keep_alive = 0
        """How long the client may be silent, µs; 0: for ever."""
        self.will: Will | None = None
        self.max_packet_size = 0
        """The largest packet that the client takes; 0: any."""
        self.aliases: Aliases | None = None
        """Those that stand for topics in what the client is sent; None: it takes none."""
        self.problem_information = True
        """Whether the client asks for words in packets that refuse something."""
        self.shaped = bool(listener.mount_point)
        """Frames that suit other clients may not suit this one: topics, aliases or the size of packets differ."""
        self.out: list[bytes] = []
        self.pending = 0
        """Bytes in `out`, and of what is to be sent after a commit."""
        self.promised = 0
        """How many packets were ever to be sent after a commit, acknowledgements of messages aside."""
        self.kept = 0
        """How many of them have been sent."""
        self.limit = limits.write_buffer
        self.corked = False
        """What is in `out` has to wait for a commit."""
        self.blocked = False
        """The wire takes no more for now."""
        self.unread = 0
        """Bytes that were written nevertheless."""
        self.owed = 0
        """QoS 1 and 2 messages of the client that are not acknowledged yet."""
        self.unreleased: set[int] = set()
        """QoS 2 messages that came on this connection and whose PUBREL has not."""
        self.quota = limits.receive_maximum
        """How many of either the client may have."""
        self.held = False
        """Nothing is read from the wire for now."""
        self.volatile = False
        """Held for readers that would lose events which are kept in memory only."""
        self.closed = False
        self.who = _NOBODY
        self.rules: Authorizer | None = None
        """What is asked whether the client may do something; None: it may do everything."""
        self.permitted: set[str] = listener.topics
        """Topics that it is known to be allowed to publish to."""
        self.login: Login | None = None
        """Of a client that is still to prove who it is."""
        self.renewal: Renewal | None = None
        self.throttle: Throttle | None = None
        """The rates that it is to keep; None: any."""
        self.paused_until = 0
        """It has run ahead of its rates, and is not read from before, µs since the epoch."""
        self._hub = hub
        self._traffic = hub.traffic
        self._decoder = Decoder(0, limits.max_packet_size)
        if listener.mount_point:
            self._decoder = MountedDecoder(listener.mount_point, 0, limits.max_packet_size)
        self._aliases: dict[int, str] = {}
        self._checked = limits.max_qos < 2 or not limits.retain_available or limits.check_payload_format
        """Each PUBLISH is held against what is offered."""

    # -- in

    def receive(self, data: bytes, now: int) -> None:
        """Handle what was read from the wire."""
        if self.closed:
            return
        hub = self._hub
        hub.now = self.heard = now
        session = self.session
        if session is None:
            self._introduce(data)
            return
        try:
            packets = self._decoder.feed(data)
            traffic = self._traffic
            traffic.bytes_received += len(data)
            traffic.packets_received += len(packets)
            for packet in packets:
                _HANDLERS[packet.TYPE](self, packet)
                if self.closed:
                    return
            if self._decoder.error is not None:
                raise self._decoder.error
        except ProtocolError as error:
            self.fail(error)
            error.__traceback__ = None  # whose frames hold this connection, which holds the error in its decoder
            return
        if session.shares or not session.live:
            session.pump()
        if self.throttle is not None:
            self._spend(packets, len(data))
        if len(data) >= _READ_BUDGET or self.owed > self.quota:
            hub.hold(self)

    def _introduce(self, data: bytes) -> None:
        """Handle what comes before the client is connected, and with what connects it."""
        if self.login is None or not self.login.waiting:
            packets = self._decoder.feed(data)
            self._traffic.bytes_received += len(data)
            self._traffic.packets_received += len(packets)
            self._handle(packets)
        elif not self.login.hold(data):
            self.fail(ProtocolError(Reason.QUOTA_EXCEEDED, "sends too much ahead of its CONNACK"))

    def _handle(self, packets: Sequence[Packet]) -> None:
        """Handle packets up to one whose answer has to be waited for."""
        try:
            for index, packet in enumerate(packets, 1):
                _HANDLERS[packet.TYPE](self, packet)
                if self.closed:
                    return
                if self.login is not None and self.login.waiting:
                    self.login.rest = packets[index:]
                    self._hub.hold(self)
                    return
            if self._decoder.error is not None:
                raise self._decoder.error
        except ProtocolError as error:
            self.fail(error)
            error.__traceback__ = None  # whose frames hold this connection, which holds the error in its decoder
            return
        session = self.session
        if session is not None and (session.shares or not session.live):
            session.pump()
        if self.congested:
            self._hub.hold(self)

    def go_on(self, login: Login) -> None:
        """The answer has come that was waited for: handle what has come meanwhile."""
        self._handle(login.rest)
        held = login.take()
        if held and not self.closed:
            self.receive(held, self._hub.now)

    def _spend(self, packets: Sequence[Packet], size: int) -> None:
        """Count what was read, and read no more for as long as it was more than the rates allow."""
        throttle, hub = self.throttle, self._hub
        assert throttle is not None
        messages = sum(packet.TYPE == Publish.TYPE for packet in packets)
        self.paused_until = throttle.spend(messages, size, hub.now)
        if self.paused_until > hub.now and not self.closed:
            hub.throttled += 1
            hub.hold(self)

    def on_blocked(self, blocked: bool) -> None:
        """The wire can take no more, or can again."""
        self.blocked = blocked
        if not blocked:
            self.unread = 0
            self.hungry()

    @property
    def congested(self) -> bool:
        """Whether so much waits for the client, or for a commit, that nothing more should be read from it."""
        return (
            self.owed > self.quota
            or self.unread > self.limit
            or self.pending > 2 * self.limit
            or self.paused_until > self._hub.now
            or (self.login is not None and self.login.waiting)
        )

    def lost(self, now: int) -> None:
        """The wire is gone."""
        if not self.closed:
            self._hub.now = now
            self.out.clear()
            self._end(will=True)

    # -- out

    def send(self, data: bytes) -> None:
        """Write at the end of this turn."""
        if not self.closed:
            if not self.out:
                self._hub.touch(self)
            self.out.append(data)
            self.pending += len(data)
            self._traffic.packets_whole += 1

    def send_publish(self, head: bytes, tail: bytes) -> None:
        """Write a QoS 0 PUBLISH at the end of this turn."""
        out = self.out
        if not out:
            self._hub.touch(self)
        out.append(head)
        out.append(tail)
        size = len(tail)
        self.pending += len(head) + size
        traffic = self._traffic
        traffic.payload_sent += size
        traffic.delivered += 1

    def send_numbered(self, head: bytes, packet_id: int, tail: bytes) -> None:
        """Write a QoS 1 or 2 PUBLISH at the end of this turn."""
        out = self.out
        if not out:
            self._hub.touch(self)
        out.append(head)
        out.append(packet_id.to_bytes(2))
        out.append(tail)
        size = len(tail)
        self.pending += len(head) + size + 2
        traffic = self._traffic
        traffic.payload_sent += size
        traffic.delivered += 1

    def hungry(self) -> None:
        """Have the session go on with its cursor in the next turn."""
        self._hub.touch(self)

    def fail(self, error: ProtocolError) -> None:
        """End the connection for what the peer has done."""
        if self.login is not None:
            self._hub.refused_logins += 1
        broken = error.clause
        if not broken and error.reason in (Reason.MALFORMED_PACKET, Reason.PROTOCOL_ERROR):
            broken = _BROKEN
        clause = f" [{broken}]" if broken else ""
        self._hub.complain(f"{self.name}: {error}{clause} (reason 0x{error.reason:02x}); connection closed")
        self.close(error.reason, "" if error.private else str(error), broken)

    def close(self, reason: Reason, why: str = "", clause: str = "", properties: Properties = ()) -> None:
        """End the connection, and tell the client why, where its version can: by a reason code, and in words."""
        if self.closed:
            return
        self.version = self.version or self._decoder.version
        packet: Connack | Disconnect | None = None
        if self.session is not None:
            if self.version == 5:  # [MQTT-4.13.1-1]
                packet = Disconnect(_sayable(reason, Disconnect.TYPE), properties)
        elif self.version == 5 or (self.version and reason not in _INVALID):  # [MQTT-3.1.4-1]
            packet = Connack(False, _sayable(reason, Connack.TYPE), properties)
        elif reason == Reason.UNSUPPORTED_PROTOCOL_VERSION:
            self.send(encode(Connack(False, reason), 4))  # [MQTT-3.1.2-2]
        if packet is not None:
            with suppress(ProtocolError):  # [MQTT-3.1.2-24] it takes no packet as large as this one
                self.send(encode_answer(self, packet, why, clause))
        self._end(will=True)

    def abort(self) -> None:
        """End the connection at once, with nothing more said."""
        self.out.clear()
        self.wire.abort()
        if not self.closed:
            self._end(will=True)

    @property
    def name(self) -> str:
        """Who this is, for the log."""
        place = f"{self.wire.peer} at {self.listener.name}" if self.listener.name else self.wire.peer
        if self.session is None:
            return f"connection from {place}"
        client_id = self.session.client_id
        more = "..." if len(client_id) > _NAME_SHOWN else ""
        return f"client {client_id[:_NAME_SHOWN]!r}{more} from {place}"

    def _end(self, will: bool) -> None:
        if self.out:
            data = b"".join(self.out)
            self.out = []
            self._traffic.bytes_sent += len(data)
            self.wire.write(data)
        self.closed = True
        if self.login is not None:
            self.login.withdraw()
        self.wire.close()
        self._hub.clients.disconnected(self, will)

    # -- what the client says

    def _on_connect(self, packet: Connect) -> None:
        if self.version:
            raise ProtocolError(Reason.PROTOCOL_ERROR, "a second CONNECT", "MQTT-3.1.0-2")
        self._traffic.connects += 1
        self.version = packet.version
        self._take_wishes(packet.properties)
        listener, limits = self.listener, self.limits
        if limits.redirect is not None:
            reference: Properties = ()
            if limits.server_reference and packet.version == 5:
                reference = ((Property.SERVER_REFERENCE, limits.server_reference),)
            self.close(limits.redirect, "nobody is connected here", properties=reference)
            return
        if listener.meter is not None and not listener.meter.may_connect(self._hub.now):
            raise ProtocolError(
                Reason.CONNECTION_RATE_EXCEEDED, f"more clients connect to listener {listener.name} than connect_rate"
            )
        if listener.access is None and first(packet.properties, Property.AUTHENTICATION_METHOD) is None:
            self.admit(packet, "", ())
            return
        from broker.login import Login  # where nobody is asked who it is, nobody needs it

        self.login = Login(self._hub, self, packet)
        self.login.begin(listener.access)

    def _take_wishes(self, properties: Properties) -> None:
        """Note what a CONNECT says of the packets that its client is to be sent."""
        if not properties:
            return
        self.max_packet_size = number(properties, Property.MAXIMUM_PACKET_SIZE, 0)
        self.problem_information = number(properties, Property.REQUEST_PROBLEM_INFORMATION, 1) == 1
        # [MQTT-3.1.2-26] [MQTT-3.1.2-27] [MQTT-3.3.2-11]
        most = min(number(properties, Property.TOPIC_ALIAS_MAXIMUM, 0), self.limits.max_topic_aliases)
        if most:
            self.aliases = Aliases(most)
        if most or self.max_packet_size:
            self.shaped = True

    def admit(self, packet: Connect, username: str, properties: Properties) -> None:
        """The client has proved to be this user (empty: nobody in particular): connect it.

        Raises:
            ProtocolError: it can't be connected nevertheless.
        """
        self._hub.clients.connect(self, packet, username, properties)
        self.login = None
        method = first(packet.properties, Property.AUTHENTICATION_METHOD)
        if isinstance(method, str):
            from broker.login import Renewal

            self.renewal = Renewal(self, method)

    def _on_publish(self, packet: Publish) -> None:
        session = self.session
        if session is None:
            raise _not_connected()
        hub = self._hub
        spoilt = self._checked and self._is_spoilt(packet)
        topic, properties, expires = packet.topic, b"", 0
        if packet.properties:
            topic, properties, expires = self._resolve(packet)
        qos = packet.qos
        if qos:
            if qos == 2:
                if packet.packet_id in session.received:
                    hub.acknowledge_again(self, packet.packet_id)  # [MQTT-4.3.3-10]
                    return
                self.unreleased.add(packet.packet_id)
            self.owed += 1
            if (self.owed > self.quota or len(self.unreleased) > self.quota) and self.version == 5:
                raise ProtocolError(
                    Reason.RECEIVE_MAXIMUM_EXCEEDED,
                    f"more than {self.quota} messages whose acknowledgement is due",
                    "MQTT-3.3.4-7",
                )
            if qos == 2:
                session.received.add(packet.packet_id)
            elif session.received and packet.packet_id in session.received and self.version == 5:
                self._refuse(packet, Reason.PACKET_IDENTIFIER_IN_USE, _IN_USE, "MQTT-2.2.1-3")
                return
        if spoilt:
            self._refuse(packet, Reason.PAYLOAD_FORMAT_INVALID, _SPOILT, "section 3.3.2.3.2")
            return
        hub.publish(self, topic, packet.payload, qos, packet.retain, properties, expires, packet.packet_id)

    def _is_spoilt(self, packet: Publish) -> bool:
        """Whether the payload is not what it is said to be, where that is looked at.

        Raises:
            ProtocolError: the message has something that is not offered here.
        """
        limits = self.limits
        check_publish(limits, packet)
        return limits.check_payload_format and breaks_format(packet.properties, packet.payload)

    def _refuse(self, packet: Publish, reason: Reason, why: str, clause: str) -> None:
        """Take a message not on that is not as it should be. At QoS 0 only a DISCONNECT can say so."""
        if not packet.qos:
            raise ProtocolError(reason, why, clause)
        self._hub.refused_messages += 1
        self._hub.reject(self, packet.qos, packet.packet_id, reason, why, clause)

    def _resolve(self, packet: Publish) -> tuple[str, bytes, int]:
        """The topic that an alias stands for, the properties that travel on, and when the message expires."""
        topic = packet.topic
        if first(packet.properties, Property.SUBSCRIPTION_IDENTIFIER) is not None:
            raise ProtocolError(
                Reason.PROTOCOL_ERROR, "a client's PUBLISH with a subscription identifier", "MQTT-3.3.4-6"
            )
        alias = number(packet.properties, Property.TOPIC_ALIAS, 0)
        if alias:
            if alias > self.limits.topic_alias_maximum:
                raise ProtocolError(
                    Reason.TOPIC_ALIAS_INVALID, f"topic alias {alias} is above the maximum", "MQTT-3.3.2-9"
                )
            if topic:
                self._aliases[alias] = topic
            elif alias in self._aliases:
                topic = self._aliases[alias]
            else:
                raise ProtocolError(Reason.PROTOCOL_ERROR, f"topic alias {alias} was never set", "section 3.3.2.3.4")
        interval = first(packet.properties, Property.MESSAGE_EXPIRY_INTERVAL)
        expires = self._hub.now + interval * 1_000_000 if isinstance(interval, int) else 0
        properties = encode_properties(tuple(p for p in packet.properties if p[0] not in _TRAVELS_NOT))
        return topic, properties, expires

    def _on_puback(self, packet: Puback) -> None:
        session = self.session
        if session is None:
            raise _not_connected()
        session.on_puback(packet.packet_id)

    def _on_pubrec(self, packet: Pubrec) -> None:
        self._connected().on_pubrec(packet.packet_id, packet.reason)

    def _on_pubcomp(self, packet: Pubcomp) -> None:
        self._connected().on_pubcomp(packet.packet_id)

    def _on_pubrel(self, packet: Pubrel) -> None:
        session = self._connected()
        packet_id = packet.packet_id
        self.unreleased.discard(packet_id)
        answer = b"\x70\x02" + packet_id.to_bytes(2)
        if packet_id in session.received:
            session.received.discard(packet_id)
            if session.persistent:
                self._hub.checkpoint(session)
        elif self.version == 5:
            why = "no QoS 2 message has this packet identifier"
            answer = encode_answer(self, Pubcomp(packet_id, Reason.PACKET_IDENTIFIER_NOT_FOUND), why)
        session.answer(answer)  # [MQTT-4.3.3-11]

    def _on_subscribe(self, packet: Subscribe) -> None:
        session = self._connected()
        if self.version == 5:
            check_subscribe(self.limits, packet)
        self._check_answer(Suback(packet.packet_id, (0,) * len(packet.subscriptions)))
        identifier = number(packet.properties, Property.SUBSCRIPTION_IDENTIFIER, 0)
        reasons: list[int] = []
        whys: list[str] = []
        for asked in packet.subscriptions:
            reason, why = self._subscribe(session, asked, identifier)
            reasons.append(reason)
            if why:
                whys.append(why)
                self._hub.complain(f"{self.name}: {why} (reason 0x{reason:02x})")
        # [MQTT-3.8.4-1] [MQTT-3.8.4-2] [MQTT-3.8.4-6]
        session.answer(encode_answer(self, Suback(packet.packet_id, tuple(reasons)), "; ".join(whys[:_WHYS])))

    def _subscribe(self, session: Session, asked: Subscription, identifier: int) -> tuple[int, str]:
        """Grant a subscription, or don't: the reason code, and why not."""
        hub = self._hub
        replaced = session.granted(asked.filter)
        if (refusal := forbids_filter(self, asked.filter)) is not None:
            hub.forbidden_subscriptions += 1
            return refusal
        most = self.limits.max_subscriptions
        if replaced is None and session.subscriptions >= most:
            return Reason.QUOTA_EXCEEDED, f"can't subscribe to {asked.filter[:64]!r}: it has {most} subscriptions"
        qos = min(asked.qos, self.limits.max_qos)  # [MQTT-3.2.2-10]
        since = hub.log.committed if replaced is None else replaced.since  # [MQTT-3.8.4-4]
        grant = Grant(asked.filter, qos, asked.no_local, asked.retain_as_published, identifier, since)
        hub.sessions.subscribe(session, grant)  # [MQTT-3.8.4-3]
        # [MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-11]
        wanted = asked.retain_handling == 0 or (asked.retain_handling == 1 and replaced is None)
        # Nobody is new to what many share: no retained messages.
        if wanted and self.limits.retain_available and asked.filter not in session.shares:
            session.want_retained(grant, self.promised + 1 if session.expiry else 0)  # behind the SUBACK
        return qos, ""

    def _check_answer(self, answer: Suback | Unsuback) -> None:
        """Check that the client takes an answer as large as this one, before anything is done that it would tell of.

        Raises:
            ProtocolError: it does not.
        """
        if self.max_packet_size:
            encode_answer(self, answer)

    def _on_unsubscribe(self, packet: Unsubscribe) -> None:
        session = self._connected()
        self._check_answer(Unsuback(packet.packet_id, (0,) * len(packet.filters)))
        reasons = tuple(
            Reason.SUCCESS if self._hub.sessions.unsubscribe(session, filter) else Reason.NO_SUBSCRIPTION_EXISTED
            for filter in packet.filters
        )
        session.answer(encode_answer(self, Unsuback(packet.packet_id, reasons)))  # [MQTT-3.10.4-4]

    def _on_pingreq(self, _: Pingreq) -> None:
        self._connected()
        self.send(b"\xd0\x00")  # [MQTT-3.12.4-1]

    def _on_disconnect(self, packet: Disconnect) -> None:
        if self.login is not None:  # it has thought better of it
            self._end(will=False)
            return
        session = self._connected()
        if packet.reason not in _CLIENTS_REASONS:
            raise ProtocolError(
                Reason.PROTOCOL_ERROR,
                f"a DISCONNECT with reason code 0x{packet.reason:02X}, which is for servers",
                "MQTT-3.14.2-1",
            )
        if first(packet.properties, Property.SERVER_REFERENCE) is not None:
            raise ProtocolError(
                Reason.PROTOCOL_ERROR,
                "a DISCONNECT with a server reference, which is for servers",
                "section 3.14.2.2.5",
            )
        interval = first(packet.properties, Property.SESSION_EXPIRY_INTERVAL)
        if isinstance(interval, int):
            if interval and not session.expiry:
                raise ProtocolError(
                    Reason.PROTOCOL_ERROR,
                    "a session that ends with its connection can't be prolonged",
                    "section 3.14.2.2.2",
                )
            self._hub.sessions.prolong(session, min(interval, self.limits.max_session_expiry))
        self._end(will=packet.reason != Reason.NORMAL_DISCONNECTION)  # [MQTT-3.14.4-3]

    def _on_auth(self, packet: Auth) -> None:
        asked = self.login or self.renewal
        if asked is None:
            raise ProtocolError(
                Reason.PROTOCOL_ERROR, "an AUTH without an authentication method in the CONNECT", "MQTT-4.12.0-7"
            )
        asked.on_auth(packet)

    def _on_unexpected(self, packet: Packet) -> None:
        raise ProtocolError(
            Reason.PROTOCOL_ERROR, f"{type(packet).__name__.upper()} is for servers to send", "section 2.1.2"
        )

    def _connected(self) -> Session:
        if self.session is None:
            raise _not_connected()
        return self.session


def _not_connected() -> ProtocolError:
    return ProtocolError(Reason.PROTOCOL_ERROR, "the first packet must be CONNECT", "MQTT-3.1.0-1")


def _sayable(reason: Reason, packet_type: int) -> Reason:
    return reason if reason in REASONS[packet_type] else Reason.UNSPECIFIED_ERROR


_unexpected = Connection._on_unexpected
_HANDLERS: Final[tuple[Callable[[Connection, Any], None], ...]] = (
    _unexpected,
    Connection._on_connect,
    _unexpected,
    Connection._on_publish,
    Connection._on_puback,
    Connection._on_pubrec,
    Connection._on_pubrel,
    Connection._on_pubcomp,
    Connection._on_subscribe,
    _unexpected,
    Connection._on_unsubscribe,
    _unexpected,
    Connection._on_pingreq,
    _unexpected,
    Connection._on_disconnect,
    Connection._on_auth,
)
"""What is done with a packet, by its type."""

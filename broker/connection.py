"""One network connection's protocol: bytes in; bytes, and calls to the hub, out. It knows no socket.

The shell gives it what it reads (`receive`), tells it when the peer can't take more (`blocked`) and when the connection
is gone (`lost`). What it has to say gathers in `out`, and the hub writes it to the wire once per turn of the loop.

Whatever a peer sends, the worst that comes of it is a `ProtocolError`, which ends this connection: with the reason
code where the version has one, and one line in the log.

What one connection can make the broker hold is bounded. Messages for it are given out up to `limit` bytes; then its
session reads the log instead. Answers to it (PUBACK, PINGRESP, SUBACK and the like) can't be left out: where as many
bytes of them again wait for a peer that does not read, or for a commit, the peer is not read from until they are gone.

Until its client may be told that it is connected, a connection has a `Login`, and no session.

What it may take of a turn of the loop is bounded, too (pressure.py). What has come beyond that is kept; so is what
comes while it is not known who the client is. Then the connection is `resting`. Where the wire ends meanwhile, what is
kept still counts: the connection ends behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from broker.acl import Who
from broker.answers import encode_answer
from broker.handlers import HANDLERS
from broker.mount import MountedDecoder
from broker.mqtt.codec import Decoder, encode
from broker.mqtt.errors import ProtocolError
from broker.mqtt.packets import REASONS, Connack, Connect, Disconnect, Packet, Publish, Will
from broker.mqtt.properties import Properties, Property, first
from broker.mqtt.reason import Reason
from broker.names import shown
from broker.pressure import FILTER
from broker.wire import Gone, Wire

if TYPE_CHECKING:
    from broker.aliases import Aliases
    from broker.auth import Authorizer
    from broker.hub import Hub
    from broker.listener import Listener
    from broker.login import Login, Renewal
    from broker.quotas import Throttle
    from broker.session import Session

_INVALID: Final = frozenset(
    (Reason.MALFORMED_PACKET, Reason.PROTOCOL_ERROR, Reason.TOPIC_NAME_INVALID, Reason.PACKET_TOO_LARGE)
)
"""What is wrong with a CONNECT that is none: before MQTT 5 nobody answers it."""
_BROKEN: Final = "MQTT-4.13.1-1"
"""What says that a malformed packet or a protocol error ends the connection, where nothing says more."""
_READ_BUDGET: Final = 64 << 10
"""Bytes after which a connection waits for the end of the turn, so that what comes out keeps up with what goes in."""
_STRETCH: Final = 8 << 10
"""Bytes that are taken apart at a time."""
_LARGE: Final = 16 << 10
"""Bytes of a packet that is not whole which nobody minds."""
_TRICKLE: Final = 4096
"""Bytes of it that are next to nothing."""
AHEAD: Final = 256 << 10
"""Bytes that a client may send on without waiting for its CONNACK."""
_NOBODY: Final = Who("")
_NOTHING: Final[Iterator[Packet]] = iter(())


class Connection:
    """One client at the other end of a wire."""

    __slots__ = (
        "_decoder",
        "_rest",
        "_traffic",
        "_unfinished",
        "aliases",
        "blocked",
        "checked",
        "claimed",
        "closed",
        "corked",
        "gone",
        "heard",
        "held",
        "hub",
        "keep_alive",
        "kept",
        "kept_bytes",
        "left",
        "limit",
        "limits",
        "listener",
        "login",
        "max_packet_size",
        "named",
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
        "resting",
        "rules",
        "scarce",
        "session",
        "shaped",
        "stopped",
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
        self.hub = hub
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
        self.scarce = False
        """Held for want of room on the disk."""
        self.closed = False
        self.gone = False
        """The wire has ended, and what came on it is still being handled."""
        self.stopped = False
        """Nothing more is to be handled for now."""
        self.resting = False
        """Something is kept that has come and was not handled."""
        self.kept_bytes = 0
        """How much of that nobody has looked at."""
        self.left = 0
        """What it may still take of this turn."""
        self.claimed = ""
        """The client identifier in its CONNECT."""
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
        self._rest = _NOTHING
        """Packets that were taken apart and not handled."""
        self._traffic = hub.traffic
        self._unfinished = (0, -1)
        """Bytes that had come of a packet that is not whole when that was asked last, and by which look."""
        self._decoder = Decoder(0, limits.max_packet_size)
        if listener.mount_point:
            self._decoder = MountedDecoder(listener.mount_point, 0, limits.max_packet_size)
        self.named: dict[int, str] = {}
        """Topics that the client has given aliases, by alias."""
        self.checked = limits.max_qos < 2 or not limits.retain_available or limits.check_payload_format
        """Each PUBLISH is held against what is offered."""

    # -- in

    def receive(self, data: bytes, now: int) -> None:
        """Handle what was read from the wire."""
        if self.closed:
            return
        self.hub.now = self.heard = now
        self._traffic.bytes_received += len(data)
        if self.throttle is not None:
            self._spend(0, len(data))
        decoder = self._decoder
        if self.resting:
            decoder.keep(data)
            if decoder.at_hand > AHEAD and self.session is None:
                self.fail(ProtocolError(Reason.QUOTA_EXCEEDED, "sends too much ahead of its CONNACK"))
            self._account()
            return
        self._take(decoder.feed(data, _STRETCH))
        if len(data) >= _READ_BUDGET or self.owed > self.quota:
            self.hub.pressure.hold(self)

    def go_on(self) -> None:
        """Handle what was kept, or some of it."""
        self._take(None)

    def _take(self, packets: list[Packet] | None) -> None:
        """Handle these packets, or those that were kept, and what is at hand, until the turn of others has come."""
        pressure, decoder = self.hub.pressure, self._decoder
        allowance = self.left = pressure.allowance()
        self.stopped = False
        rest: Iterator[Packet] = self._rest
        try:
            while True:
                if packets is not None:
                    self._count(packets)
                    rest = iter(packets)
                for packet in rest:
                    HANDLERS[packet.TYPE](self, packet)
                    if self.stopped:
                        break
                else:
                    if decoder.error is not None:
                        raise decoder.error
                    if not decoder.at_hand:
                        self.resting = False
                        self._rest = _NOTHING
                        break
                if self.closed:
                    return
                if self.stopped or self.left < 0:
                    self.resting = True
                    self._rest = rest
                    pressure.hold(self)
                    break
                packets = decoder.more(_STRETCH)
        except ProtocolError as error:
            self.fail(error)
            error.__traceback__ = None  # whose frames hold this connection, which holds the error in its decoder
            return
        finally:
            pressure.left -= allowance - self.left
            if self.resting or self.kept_bytes:
                self._account()
        session = self.session
        if session is not None and session.reads:
            self.hungry()
        if self.gone and not self.resting:
            self._lose()

    def _count(self, packets: list[Packet]) -> None:
        """These packets are about to be handled."""
        self._traffic.packets_received += len(packets)
        self.left -= len(packets)
        if self.throttle is not None:
            self._spend(sum(packet.TYPE == Publish.TYPE for packet in packets), 0)

    def spend_filters(self, filters: int) -> None:
        """So many topic filters are about to be handled, which takes longer than a message does."""
        self.left -= FILTER * filters
        if self.left < 0:
            self.stopped = True
        if self.throttle is not None:
            self._spend(filters, 0)

    def _spend(self, messages: int, size: int) -> None:
        """Count what was read, and read no more for as long as it was more than the rates allow."""
        throttle, hub = self.throttle, self.hub
        assert throttle is not None
        self.paused_until = throttle.spend(messages, size, hub.now)
        if self.paused_until > hub.now and not self.held:
            hub.throttled += 1
            hub.pressure.hold(self)

    def _account(self) -> None:
        """Have it known how much is kept."""
        kept = self._decoder.at_hand if self.resting and not self.closed else 0
        if kept != self.kept_bytes:
            self.hub.pressure.kept += kept - self.kept_bytes
            self.kept_bytes = kept

    def on_blocked(self, blocked: bool) -> None:
        """The wire can take no more, or can again."""
        self.blocked = blocked
        if not blocked:
            self.unread = 0
            self.hub.pressure.reads_again(self)
            self.hungry()

    @property
    def congested(self) -> bool:
        """Whether so much waits for the client, or for a commit, that nothing more should be read from it."""
        return (
            self.owed > self.quota
            or self.unread > self.limit
            or self.pending > 2 * self.limit
            or self.paused_until > self.hub.now
            or (self.login is not None and self.login.waiting)
        )

    def dawdles(self) -> bool:
        """Whether much has come of a packet, and since this was asked before, next to nothing of the rest."""
        decoder = self._decoder
        size, looks = decoder.unfinished + self.wire.unfinished, decoder.looks
        before, self._unfinished = self._unfinished, (size, looks)
        return size > _LARGE and looks == before[1] and size - before[0] < _TRICKLE and not self.held

    def lost(self, now: int) -> None:
        """The wire is gone. What has come on it is handled nevertheless."""
        if self.closed:
            return
        self.hub.now = now
        self.out.clear()
        if not self.resting or self.session is None:
            self._lose()
            return
        self.gone = True
        self.wire.close()
        self.wire = Gone(self.wire)
        self.blocked = False
        self.unread = 0
        self.throttle = None
        self.paused_until = 0
        self.hub.pressure.hurry(self)

    def _lose(self) -> None:
        if not self.closed:
            self.out.clear()
            self.end(will=True)

    # -- out

    def send(self, data: bytes) -> None:
        """Write at the end of this turn."""
        if not self.closed:
            if not self.out:
                self.hub.touch(self)
            self.out.append(data)
            self.pending += len(data)
            self._traffic.packets_whole += 1

    def send_publish(self, head: bytes, tail: bytes) -> None:
        """Write a QoS 0 PUBLISH at the end of this turn."""
        out = self.out
        if not out:
            self.hub.touch(self)
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
            self.hub.touch(self)
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
        self.hub.touch(self)

    def fail(self, error: ProtocolError) -> None:
        """End the connection for what the peer has done."""
        if self.login is not None:
            self.hub.refused_logins += 1
        broken = error.clause
        if not broken and error.reason in (Reason.MALFORMED_PACKET, Reason.PROTOCOL_ERROR):
            broken = _BROKEN
        clause = f" [{broken}]" if broken else ""
        self.hub.complain(f"{self.name}: {error}{clause} (reason 0x{error.reason:02x}); connection closed")
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
        self.end(will=True)

    def abort(self) -> None:
        """End the connection at once, with nothing more said."""
        self.out.clear()
        self.wire.abort()
        if not self.closed:
            self.end(will=True)

    @property
    def name(self) -> str:
        """Who this is, for the log."""
        place = f"{self.wire.peer} at {self.listener.name}" if self.listener.name else self.wire.peer
        if self.session is not None:
            return f"client {shown(self.session.client_id)} from {place}"
        if self.claimed:
            return f"connection of client {shown(self.claimed)} from {place}"
        return f"connection from {place}"

    def end(self, will: bool) -> None:
        """It is over; with `will`, otherwise than by a DISCONNECT that takes the will back."""
        if self.out:
            data = b"".join(self.out)
            self.out = []
            self._traffic.bytes_sent += len(data)
            self.wire.write(data)
        self.closed = self.stopped = True
        self._rest = _NOTHING
        self._account()
        if self.login is not None:
            self.login.withdraw()
        self.wire.close()
        self.hub.clients.disconnected(self, will)

    def admit(self, packet: Connect, username: str, properties: Properties) -> None:
        """The client has proved to be this user (empty: nobody in particular): connect it.

        Raises:
            ProtocolError: it can't be connected nevertheless.
        """
        self.hub.clients.connect(self, packet, username, properties)
        self.login = None
        method = first(packet.properties, Property.AUTHENTICATION_METHOD)
        if isinstance(method, str):
            from broker.login import Renewal

            self.renewal = Renewal(self, method)

    def connected(self) -> Session:
        """The session.

        Raises:
            ProtocolError: there has been no CONNECT.
        """
        if self.session is None:
            raise self.not_connected()
        return self.session

    def not_connected(self) -> ProtocolError:
        """What is wrong with a packet that comes before the CONNECT."""
        return ProtocolError(Reason.PROTOCOL_ERROR, "the first packet must be CONNECT", "MQTT-3.1.0-1")


def _sayable(reason: Reason, packet_type: int) -> Reason:
    return reason if reason in REASONS[packet_type] else Reason.UNSPECIFIED_ERROR

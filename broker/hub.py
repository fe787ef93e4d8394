"""The data path: admit, append, commit, acknowledge, fan out. And who is connected as whom.

What happens to a PUBLISH:

1. `publish` appends it to the log's open group and remembers whom to acknowledge. Nothing waits.
2. At the end of the turn of the loop the open group goes to the engine, unless one is on its way; then it goes when
   that one is back, with everything that has arrived since: group commit.
3. When it has committed, its acknowledgements go out, and its events to every live session, in log order.

QoS 0 messages and those with durability `memory` are fanned out (and acknowledged) in step 1: nobody was promised that
they are kept. A group that the engine refuses is never acknowledged: MQTT 5 publishers are told 0x97 and their messages
are taken out; older clients have no such answer, so their messages stay, to be tried again, and their sockets are not
read until they are kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from heapq import heappop, heappush
from uuid import uuid4

from broker.acl import Who
from broker.connection import Connection, Wire
from broker.frames import FrameCache
from broker.listener import Listener
from broker.mqtt.codec import encode
from broker.mqtt.errors import ProtocolError
from broker.mqtt.packets import Connack, Connect
from broker.mqtt.properties import Properties, Property, first
from broker.mqtt.reason import Reason
from broker.mqtt.topic import SHARE, matches
from broker.retained import Retained
from broker.router import Grant, Router
from broker.session import NEVER, Session
from broker.wills import SECOND, Wills
from storage.interface import (
    FSYNC,
    MEMORY,
    OS,
    RETAINED,
    SESSIONS,
    SUBSCRIPTIONS,
    Event,
    Group,
    Log,
    Row,
    StorageError,
    Table,
)

_logger = logging.getLogger("berm.broker")

_REFRESH = 60
"""Seconds after which the rows of all connected sessions are brought up to date."""
_COMPLAINTS = 20
"""Lines about misbehaving peers that one second may log."""
_RULES_KEPT = 10_000
_REFRESHED = 500
"""Rows of connected sessions that one second brings up to date at most."""
_PROMISE = 100
"""Bytes that something to be sent after a commit takes in memory beside its own."""
_PERMITTED = 1000
"""Topics at most that are remembered as permitted to one client by rules."""
_LONG = 256
"""Characters of a topic that is not worth remembering."""
_BRIDGE_STATE = "$SYS/broker/connection/+/state"
"""Where a bridge of Mosquitto says whether it is up."""

Acknowledgement = tuple[Connection, bytes, Event | None]
"""Whom to send what once this event is kept; None: a message that is not to be kept at all."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds that clients meet. Sizes in bytes, times in seconds; 0 keep alive: no cap."""

    max_connections: int = 10_000
    max_packet_size: int = 1 << 20
    receive_maximum: int = 1000
    max_inflight: int = 1000
    max_keep_alive: int = 0
    topic_alias_maximum: int = 16
    max_session_expiry: int = NEVER
    max_subscriptions: int = 1000
    connect_timeout: int = 10
    write_buffer: int = 512 << 10
    group_bytes: int = 4 << 20
    queue_qos0: bool = False


class _Promises:
    """What has to be sent once a group has committed."""

    __slots__ = ("acknowledgements", "sessions", "then")

    def __init__(self) -> None:
        self.acknowledgements: list[Acknowledgement] = []
        self.then: list[tuple[Connection, bytes]] = []
        self.sessions: set[Session] = set()
        """Whose row goes with the group."""


class Hub:
    """The broker, without a socket. Every method is called on the loop.

    `schedule` runs a function in the next turn of the loop. `durability` answers what a rule says for a topic, or None.
    """

    def __init__(
        self,
        log: Log,
        limits: Limits,
        schedule: Callable[[Callable[[], None]], object],
        durability: Callable[[str], int | None] | None = None,
    ) -> None:
        self.log = log
        self.limits = limits
        """The node's own; those of a listener are what its clients meet."""
        self.listener = Listener("", limits)
        """Where a connection comes from that nobody says more of."""
        self.queue_qos0 = limits.queue_qos0
        self.frames = FrameCache()
        self.router: Router[Session] = Router(Session.denies)
        self.retained = Retained()
        self.sessions: dict[str, Session] = {}
        self.connections: set[Connection] = set()
        self.clients = 0
        """Connections whose CONNECT was accepted."""
        self.now = log.last_ts
        """The time of what is being handled, µs since the epoch."""
        self.received = 0
        self.delivered = 0
        self.refused_messages = 0
        self.forbidden = 0
        """Messages to topics that their clients may not publish to."""
        self.forbidden_subscriptions = 0
        self.refused_logins = 0
        """Clients that did not prove who they are, or that may not connect."""
        self.throttled = 0
        """How often a client was made to wait for having run ahead of its rates."""
        self.crashed = 0
        """Connections ended by an error of ours."""
        self.dropped_full = 0
        self.dropped_expired = 0
        self.dropped_oversized = 0
        self.dropped_away = 0
        self.dropped_gone = 0
        self.dropped_denied = 0
        self.behind: set[Session] = set()
        """Connected sessions that read the log from their cursors."""
        self._crowded = False
        """Whether sessions that are getting on need events that the log's memory would soon drop."""
        self._rule = durability
        self._rules: dict[str, int | None] = {}
        self._schedule = schedule
        self._scheduled = False
        self._touched: list[Connection] = []
        self._promises = _Promises()
        self._promised = _Promises()
        """Of the group on its way."""
        self._dirty: set[Session] = set()
        self._refreshing: list[Session] = []
        """Connected sessions whose rows are yet to be brought up to date in this round."""
        self._held: dict[Connection, None] = {}
        self._strangers: dict[Connection, None] = {}
        """Connections without a CONNECT, the oldest first."""
        self._wills = Wills(log, self._originate)
        self._leaving: list[tuple[int, str]] = []
        """A heap of when sessions end (µs since the epoch, client identifier), unless their clients return before."""
        self._next_second = 0
        self._next_refresh = 0
        self._complaints = 0
        log.listener = self

    # -- messages

    def publish(
        self,
        connection: Connection,
        topic: str,
        payload: bytes,
        qos: int,
        retain: bool,
        properties: bytes,
        expires: int,
        packet_id: int,
    ) -> None:
        """Admit one message of a client."""
        log = self.log
        self.received += 1
        if topic not in connection.permitted:
            refusal = self._forbids_topic(connection, topic)
            if refusal is not None:
                self._forbid(connection, topic, qos, packet_id, refusal)
                return
        if log.failure is not None and self._cannot_keep(connection, qos, packet_id):
            return
        session = connection.session
        assert session is not None
        if self._rule is None:
            durability = FSYNC if qos else OS
        else:
            durability = self._durability(topic, qos)
        event = log.append(self.now, topic, payload, qos, retain, session.client_id, properties, expires, durability)
        if qos == 0:
            self._fan_out_early(event)
        elif durability == MEMORY and connection.owed == 1:
            connection.owed = 0
            connection.send((b"\x40\x02" if qos == 1 else b"\x50\x02") + packet_id.to_bytes(2))
            self._fan_out_early(event)
        else:
            ack = (b"\x40\x02" if qos == 1 else b"\x50\x02") + packet_id.to_bytes(2)  # [MQTT-4.3.2-4], [MQTT-4.3.3-8]
            self._promises.acknowledgements.append((connection, ack, event))
            if qos == 2 and session.expiry:
                self._promises.sessions.add(session)
            if durability == MEMORY:
                self._fan_out_early(event)
        if retain:
            self._keep_retained(event)
        if not self._scheduled:
            self._wake()
        if self._crowded and durability == MEMORY and qos:
            connection.volatile = True
            self.hold(connection)
        elif log.open.weight > self.limits.group_bytes:
            self.hold(connection)

    def emit(
        self,
        client: str,
        messages: Iterable[tuple[str, bytes, int, bool]],
        rows: Iterable[tuple[Table, Row, Row | None]] = (),
    ) -> None:
        """Append messages (topic, payload, qos, retain) of a processor, and its rows of state, to one group."""
        for topic, payload, qos, retain in messages:
            self._originate(client, topic, payload, qos, retain, b"", 0)
        group = self.log.open
        for table, key, values in rows:
            if values is None:
                group.delete(table, key)
            else:
                group.put(table, key, values)
        self._wake()

    def _originate(
        self, client: str, topic: str, payload: bytes, qos: int, retain: bool, properties: bytes, expires: int
    ) -> None:
        durability = self._durability(topic, qos)
        event = self.log.append(self.now, topic, payload, qos, retain, client, properties, expires, durability)
        if event.early:
            self._fan_out_early(event)
        if retain:
            self._keep_retained(event)
        self._wake()

    def _durability(self, topic: str, qos: int) -> int:
        rule = None
        if self._rule is not None:
            rules = self._rules
            if topic not in rules:
                if len(rules) >= _RULES_KEPT:
                    rules.clear()
                rules[topic] = self._rule(topic)
            rule = rules[topic]
        if rule is None:
            return FSYNC if qos else OS
        return rule if qos else min(rule, OS)

    def _fan_out_early(self, event: Event) -> None:
        for delivery in self.router.match(event.topic):
            session = delivery.session
            if session.live:
                try:
                    session.give(event, delivery)
                except Exception:  # noqa: BLE001 - handed to `crash`, which logs it with its stack
                    self.crash(session.connection)

    def _keep_retained(self, event: Event) -> None:
        if event.early:
            self.retained.store(event)
        self._put_retained(event)

    def _put_retained(self, event: Event) -> None:
        if event.durability == MEMORY:
            return
        if event.payload:
            self.log.open.put(
                RETAINED,
                (event.topic,),
                (event.seq, event.ts, event.payload, event.qos, event.client, event.properties, event.expires),
            )
        else:
            self.log.open.delete(RETAINED, (event.topic,))

    def _cannot_keep(self, connection: Connection, qos: int, packet_id: int) -> bool:
        """What becomes of a message while nothing can be stored; whether that settles it."""
        if qos == 0:
            self.dropped_full += 1
            return True
        if connection.version == 5:
            self._refuse(connection, qos, packet_id, Reason.QUOTA_EXCEEDED)
            return True
        self.hold(connection)
        if self.log.open.weight <= self.limits.group_bytes:
            return False
        # What waits is as much as may wait. Nothing was acknowledged: the client will send it again.
        self._take_back(connection, qos, packet_id)
        self.complain(f"{connection.name}: nothing can be stored, and no more can wait; connection closed")
        connection.close(Reason.QUOTA_EXCEEDED)
        return True

    def _forbids_topic(self, connection: Connection, topic: str) -> Reason | None:
        """Why a client may not publish to a topic. What it may is remembered as permitted."""
        listener, rules = connection.listener, connection.rules
        if listener.meter is not None and listener.meter.quotas.objection(topic) is not None:
            return Reason.TOPIC_NAME_INVALID
        if topic[0] == "$" and not _may_publish(topic, listener):
            return Reason.NOT_AUTHORIZED
        if rules is not None and not rules.may_publish(connection.who, topic):
            return Reason.NOT_AUTHORIZED
        if len(topic) <= _LONG:
            permitted = connection.permitted
            if len(permitted) >= (_RULES_KEPT if rules is None else _PERMITTED):
                permitted.clear()
            permitted.add(topic)
        return None

    def forbids_filter(self, connection: Connection, filter: str) -> Reason | None:
        """Why a client may not subscribe by a valid filter."""
        meter, rules = connection.listener.meter, connection.rules
        if meter is not None and (objection := meter.quotas.objection(filter)) is not None:
            self.complain(f"{connection.name}: can't subscribe to {filter[:64]!r}: {objection}")
            return Reason.TOPIC_FILTER_INVALID
        if rules is not None and not rules.may_subscribe(connection.who, filter):
            self.forbidden_subscriptions += 1
            self.complain(f"{connection.name}: may not subscribe to {filter[:64]!r}")
            return Reason.NOT_AUTHORIZED
        return None

    def _forbid(self, connection: Connection, topic: str, qos: int, packet_id: int, reason: Reason) -> None:
        """Drop a message to a topic that is not its client's. Before MQTT 5 an acknowledgement can't say so: as
        Mosquitto, acknowledge it nevertheless (MQTT 3.1.1 allows that, or to close, which a bridge would answer for
        ever)."""
        self.forbidden += 1
        self.complain(f"{connection.name}: may not publish to {topic[:64]!r} (reason 0x{reason:02x}); message dropped")
        if not qos:
            return
        answer = (b"\x40" if qos == 1 else b"\x50") + b"\x02" + packet_id.to_bytes(2)
        if connection.version == 5:
            self._take_back(connection, qos, packet_id)
            connection.owed += 1
            answer = answer[:1] + b"\x03" + answer[2:] + bytes((reason,))
        self._promises.acknowledgements.append((connection, answer, None))
        self._wake()

    def _refuse(self, connection: Connection, qos: int, packet_id: int, reason: Reason) -> None:
        self.refused_messages += 1
        self._take_back(connection, qos, packet_id)
        connection.send((b"\x40\x03" if qos == 1 else b"\x50\x03") + packet_id.to_bytes(2) + bytes((reason,)))

    def _take_back(self, connection: Connection, qos: int, packet_id: int) -> None:
        """Forget a message that was not taken on."""
        connection.owed -= 1
        if qos == 2 and connection.session is not None:
            connection.unreleased -= 1
            connection.session.received.discard(packet_id)

    # -- turns of the loop

    def touch(self, connection: Connection) -> None:
        """Write this connection, and let its session go on reading, at the end of the turn."""
        self._touched.append(connection)
        if not self._scheduled:
            self._wake()

    def after_commit(self, connection: Connection, data: bytes) -> None:
        """Send this once everything appended so far has committed."""
        connection.pending += len(data) + _PROMISE
        self._promises.then.append((connection, data))
        if connection.congested:
            self.hold(connection)
        if not self._scheduled:
            self._wake()

    def _keep(self, promises: _Promises) -> None:
        """Send what was promised."""
        for connection, data, _ in promises.acknowledgements:
            connection.owed -= 1
            if not connection.closed:
                if not connection.out:
                    self.touch(connection)
                connection.out.append(data)
                connection.pending += len(data)
        for connection, data in promises.then:
            connection.pending -= len(data) + _PROMISE
            connection.send(data)

    def changed(self, session: Session) -> None:
        """Write this session's row within about a second."""
        session.dirty = True
        self._dirty.add(session)

    def checkpoint(self, session: Session) -> None:
        """Write this session's row with the open group, fsynced."""
        self._promises.sessions.add(session)
        self.log.open.durability = FSYNC
        if not self._scheduled:
            self._wake()

    def _wake(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._schedule(self.turn)

    def turn(self) -> None:
        """The end of a turn: hand over the open group, and write what has gathered for each connection."""
        self._scheduled = False
        self.log.flush()
        self._promise_nothing_open()
        touched, self._touched = self._touched, []
        for connection in touched:
            if connection.closed:
                continue
            try:
                session = connection.session
                if session is not None and not session.live:
                    session.pump()
                if connection.out:
                    data = b"".join(connection.out)
                    connection.out.clear()
                    connection.pending -= len(data)
                    connection.wire.write(data)
                    if connection.blocked:
                        self.written_unread(connection, len(data))
            except Exception:  # noqa: BLE001 - handed to `crash`, which logs it with its stack
                self.crash(connection)
        if self._rule is not None:
            self._crowded = self._is_crowded()
        if self._held:
            self._release()

    def _is_crowded(self) -> bool:
        edge = self.log.edge
        return edge > 0 and any(session.position < edge and not session.stalled for session in self.behind)

    def written_unread(self, connection: Connection, size: int) -> None:
        """So much was written that the peer has no room for."""
        connection.unread += size
        if connection.congested:
            self.hold(connection)

    def _promise_nothing_open(self) -> None:
        """Promises about a group that holds nothing, with none on its way, are kept already."""
        promises = self._promises
        if (promises.then or promises.acknowledgements) and not self.log.busy and not self.log.open:
            promises.then, then = [], promises.then
            promises.acknowledgements, acknowledgements = [], promises.acknowledgements
            kept = _Promises()
            kept.then, kept.acknowledgements = then, acknowledgements
            self._keep(kept)

    def crash(self, connection: Connection | None) -> None:
        """End a connection for an error of ours: the one that is being handled."""
        self.crashed += 1
        _logger.exception("%s: an error of ours; connection closed", connection.name if connection else "no connection")
        if connection is not None:
            connection.abort()

    # -- what becomes of groups

    def sealing(self, group: Group) -> None:
        """Add the rows that go with the group."""
        promises = self._promises
        for session in promises.sessions:
            if self.sessions.get(session.client_id) is session and session.persistent:
                session.save(group)
        self._promised = promises
        self._promises = _Promises()

    def committed(self, group: Group) -> None:
        """Acknowledge, then fan out, in log order."""
        promised = self._promised
        self._promised = _Promises()
        self._keep(promised)
        match = self.router.match
        for event in group.events:
            if event.qos and event.durability:
                for delivery in match(event.topic):
                    session = delivery.session
                    if session.live:
                        try:
                            session.give(event, delivery)
                        except Exception:  # noqa: BLE001 - handed to `crash`, which logs it with its stack
                            self.crash(session.connection)
                if event.retain:
                    self.retained.store(event)
        self._wake()

    def refused(self, group: Group, error: StorageError) -> None:
        """Answer MQTT 5 publishers, and let the others wait."""
        promises, newer = self._promised, self._promises
        self._promised = _Promises()
        self._promises = promises
        promises.then += newer.then
        promises.sessions |= newer.sessions
        acknowledgements = promises.acknowledgements + newer.acknowledgements
        promises.acknowledgements = []
        out: set[int] = set()
        for connection, ack, event in acknowledgements:
            if connection.version < 5 or connection.closed:
                promises.acknowledgements.append((connection, ack, event))
                self.hold(connection)
            elif event is None or event.durability == MEMORY:  # only its turn was waited for
                connection.owed -= 1
                connection.send(ack)
            else:
                out.add(event.seq)
                self._refuse(connection, event.qos, int.from_bytes(ack[2:4]), Reason.QUOTA_EXCEEDED)
        kept = [event for event in group.events if event.seq not in out and event.qos]
        self.dropped_full += sum(1 for event in group.events if event.qos == 0)
        group.events[:] = kept
        self._refill_retained(group)
        _logger.error("%s; publishers wait or are refused until it can be stored", error)

    def _refill_retained(self, group: Group) -> None:
        """The rows of retained messages that the group still holds, and no others."""
        group.state.pop(RETAINED, None)
        for event in group.events:
            if event.retain:
                self._put_retained(event)

    def hold(self, connection: Connection) -> None:
        """Read no more from this connection until the log, and its client, have caught up."""
        if not connection.held and not connection.closed:
            connection.held = True
            connection.wire.pause_reading()
            self._held[connection] = None
            self._wake()

    def _release(self) -> None:
        log = self.log
        if log.failure is not None or log.open.weight > self.limits.group_bytes:
            return
        crowded = self._crowded
        for connection in [c for c in self._held if not (c.congested or (crowded and c.volatile))]:
            del self._held[connection]
            connection.held = connection.volatile = False
            connection.heard = self.now
            connection.wire.resume_reading()

    # -- connections

    def accept(self, wire: Wire, now: int, listener: Listener | None = None) -> Connection:
        """A peer has opened a connection."""
        connection = Connection(self, wire, now, listener or self.listener)
        self.connections.add(connection)
        self._strangers[connection] = None
        if len(self._strangers) > self.limits.max_connections:
            oldest = next(iter(self._strangers))
            self.complain(f"{oldest.name}: closed, since {self.limits.max_connections} more wait for their CONNECT")
            oldest.close(Reason.SERVER_BUSY)
        return connection

    def connect(self, connection: Connection, packet: Connect, username: str = "", properties: Properties = ()) -> None:
        """A client says who it is, and has proved to be this user; `properties` are for its CONNACK.

        Raises:
            ProtocolError: there is no room for it, or it may not have the will that it asks for.
        """
        listener, limits = connection.listener, connection.limits
        client_id = packet.client_id or f"auto-{uuid4().hex}"
        self._authorize(connection, Who(client_id, username))
        if packet.will is not None and (refusal := self._forbids_topic(connection, packet.will.topic)) is not None:
            raise ProtocolError(refusal, f"may not publish to {packet.will.topic[:64]!r}, the topic of its will")
        session = self.sessions.get(packet.client_id)
        if session is not None and 0 < session.ends <= self.now:  # [MQTT-4.1.0-2]
            self._end_session(session)
            session = None
        self._check_room(listener, None if session is None else session.connection, username)
        v5 = packet.version == 5
        if v5:
            asked = _number(packet.properties, Property.SESSION_EXPIRY_INTERVAL, 0)
        else:
            asked = 0 if packet.clean_start else NEVER
        expiry = min(asked, limits.max_session_expiry)
        if v5:
            properties = _connack_properties(packet, limits, client_id, asked, expiry) + properties
            _check_size(properties, connection.max_packet_size)
        session = self.sessions.get(client_id)
        if session is not None and session.connection is not None:
            self.complain(f"{session.connection.name}: taken over by a connection from {connection.wire.peer}")
            session.connection.close(Reason.SESSION_TAKEN_OVER)  # [MQTT-3.1.4-3]
            session = self.sessions.get(client_id)
        if session is not None and packet.clean_start:  # [MQTT-3.1.2-4]
            self._end_session(session)
            session = None
        self._wills.withdraw(client_id)  # [MQTT-3.1.3-9]
        present = session is not None
        if session is None:
            session = self.sessions[client_id] = Session(self, client_id, packet.version, expiry, self.log.committed)
        session.expiry = expiry
        if not expiry:
            session.forget(self.log.open)
        connection.session = session
        self.clients += 1
        listener.clients += 1
        if listener.meter is not None:
            listener.meter.enter(username)
            connection.throttle = listener.meter.throttle(self.now)
        del self._strangers[connection]
        connection.keep_alive = _keep_alive(packet, limits) * SECOND * 3 // 2  # [MQTT-3.1.2-22]
        connection.will = packet.will
        if packet.will is not None:
            self._wills.keep(client_id, packet.will)
        connection.send(encode(Connack(present, Reason.SUCCESS, properties), packet.version))
        if session.persistent:
            self.changed(session)
        window = min(limits.max_inflight, _number(packet.properties, Property.RECEIVE_MAXIMUM, 65535))
        for grant in session.grants.values():
            self.router.add(session, grant)
        session.attach(connection, window)

    def _authorize(self, connection: Connection, who: Who) -> None:
        """From now on rules are asked about this client."""
        access = connection.listener.access
        connection.who = who
        connection.rules = None
        connection.permitted = connection.listener.topics
        if access is not None and access.authorizer is not None and not access.authorizer.unlimited:
            connection.rules = access.authorizer
            connection.permitted = set()

    def rules_changed(self, listener: Listener) -> None:
        """The authorizer of a listener is another, or says otherwise than it did: ask it anew about everything."""
        self.router.forget()
        for connection in self.connections:
            if connection.listener is listener and connection.session is not None:
                self._authorize(connection, connection.who)
                connection.session.rules_changed()

    def expel(self, listener: Listener, users: Set[str]) -> None:
        """Disconnect these users, where it was not the transport that has proved who they are."""
        for connection in list(self.connections):
            if connection.listener is listener and connection.who.username in users and not connection.wire.identity:
                self.complain(f"{connection.name}: user {connection.who.username!r} is not what it was; closed")
                connection.close(Reason.NOT_AUTHORIZED)

    def _check_room(self, listener: Listener, leaving: Connection | None, username: str) -> None:
        """Refuse a client where there are as many as may be, unless another connection makes room for it."""
        most = self.limits.max_connections
        if self.clients >= most and leaving is None:
            raise ProtocolError(Reason.SERVER_BUSY, f"{most} clients are connected (mqtt.max_connections)")
        most = listener.limits.max_connections
        if listener.clients >= most and (leaving is None or leaving.listener is not listener):
            raise ProtocolError(
                Reason.SERVER_BUSY, f"{most} clients are connected to listener {listener.name} (max_connections)"
            )
        meter = listener.meter
        if meter is None or meter.has_room(username):
            return
        if leaving is None or leaving.listener is not listener or leaving.who.username != username:
            raise ProtocolError(
                Reason.QUOTA_EXCEEDED, f"user {username[:64]!r} has all connections that one may (user_connections)"
            )

    def disconnected(self, connection: Connection, will: bool) -> None:
        """A connection has ended; with `will`, otherwise than by a DISCONNECT."""
        self.connections.discard(connection)
        self._strangers.pop(connection, None)
        self._held.pop(connection, None)
        session = connection.session
        if session is None or session.connection is not connection:
            return
        self.clients -= 1
        connection.listener.clients -= 1
        if connection.listener.meter is not None:
            connection.listener.meter.leave(connection.who.username)
        for filter in session.grants:
            self.router.remove(session, filter)
        session.detach(self.now)
        if connection.will is not None:
            if will and self._may_leave(connection, connection.will.topic):
                self._wills.leave(session.client_id, connection.will, self.now, session.persistent)
            else:  # [MQTT-3.14.4-3]
                self._wills.discard(session.client_id)
        if session.persistent:
            session.save(self.log.open)
            self._leaves(session)
        else:
            self._end_session(session)
        self._wake()

    def _may_leave(self, connection: Connection, topic: str) -> bool:
        """Whether the topic of a will is still one that its client may publish to: rules may have changed."""
        if self._forbids_topic(connection, topic) is None:
            return True
        self.forbidden += 1
        self.complain(f"{connection.name}: may not publish to {topic[:64]!r} any more; its will is dropped")
        return False

    def _leaves(self, session: Session) -> None:
        if session.expiry == NEVER:
            return
        heappush(self._leaving, (session.ends, session.client_id))
        if len(self._leaving) > 2 * len(self.sessions) + 1000:  # clients that come and go leave entries behind
            self._leaving = sorted((s.ends, s.client_id) for s in self.sessions.values() if s.ends)

    def subscribe(self, session: Session, grant: Grant) -> None:
        """Give a session a subscription, on disk where the session is to last."""
        session.subscribe(grant)
        self.router.add(session, grant)
        if session.persistent:
            options = grant.qos | grant.no_local << 2 | grant.retain_as_published << 3
            session.stored = True
            self.log.open.put(
                SUBSCRIPTIONS, (session.client_id, grant.filter), (options, grant.identifier, grant.since)
            )
            self.checkpoint(session)

    def unsubscribe(self, session: Session, filter: str) -> bool:
        """Take a subscription away; whether there was one."""
        if not session.unsubscribe(filter):
            return False
        self.router.remove(session, filter)
        if session.persistent:
            self.log.open.delete(SUBSCRIPTIONS, (session.client_id, filter))
            self.checkpoint(session)
        return True

    def _end_session(self, session: Session) -> None:
        self.sessions.pop(session.client_id, None)
        session.forget(self.log.open)
        self._wills.session_ended(session.client_id, self.now)
        self._wake()

    # -- time

    def tick(self, now: int) -> None:
        """Do what time brings: to be called a few times a second."""
        self.now = now
        if self._held:
            self._release()
        self._expire(now)
        if now < self._next_second:
            return
        self._next_second = now + SECOND
        self._close_silent(now)
        self._save_changed(now)
        for session in self.behind:
            session.check_progress()
        if self._complaints > _COMPLAINTS:
            _logger.warning("%d more lines about clients were left out", self._complaints - _COMPLAINTS)
        self._complaints = 0
        self.log.retry()
        self._wake()

    def _save_changed(self, now: int) -> None:
        """Put the rows of sessions whose QoS 1 messages were acknowledged, and in turn those of all connected ones."""
        if now >= self._next_refresh:
            self._next_refresh = now + _REFRESH * SECOND
            self._refreshing = [s for s in self.sessions.values() if s.persistent and s.connection is not None]
        dirty, self._dirty = self._dirty, set()
        dirty = {session for session in dirty if session.dirty}
        dirty.update(self._refreshing[-_REFRESHED:])
        del self._refreshing[-_REFRESHED:]
        for session in dirty:
            if self.sessions.get(session.client_id) is session and session.persistent:
                session.save(self.log.open)
            session.dirty = False

    def _close_silent(self, now: int) -> None:
        late = [each for each in self._strangers if now > each.opened + each.limits.connect_timeout * SECOND]
        for connection in late:
            what = "no CONNECT" if connection.login is None else "not sure who it is"
            self.complain(f"{connection.name}: {what} within {connection.limits.connect_timeout} s; closed")
            connection.close(Reason.PROTOCOL_ERROR if connection.login is None else Reason.SERVER_BUSY)
        silent = [
            connection
            for connection in self.connections
            if connection.keep_alive
            and now > connection.heard + connection.keep_alive
            and (not connection.held or connection.unread)
        ]
        for connection in silent:
            seconds = (now - connection.heard) // SECOND
            what = "has read nothing" if connection.held else "silent"
            self.complain(f"{connection.name}: {what} for {seconds} s, longer than its keep alive allows; closed")
            connection.close(Reason.KEEP_ALIVE_TIMEOUT)  # [MQTT-3.1.2-22]

    def _expire(self, now: int) -> None:
        self._wills.tick(now)
        leaving = self._leaving
        while leaving and leaving[0][0] <= now:
            ends, client_id = heappop(leaving)
            session = self.sessions.get(client_id)
            if session is not None and session.ends == ends:
                self._end_session(session)

    def complain(self, line: str) -> None:
        """Log a line about a peer; not more than some in a second."""
        self._complaints += 1
        if self._complaints <= _COMPLAINTS:
            _logger.warning("%s", line)

    # -- start and stop

    def restore(self, now: int) -> None:
        """Take up what an earlier run left: sessions, subscriptions, retained messages, wills. Blocks."""
        self.now = now
        log = self.log
        for row in log.rows(SESSIONS):
            session = Session.restore(self, row)
            session.ended = session.ended or now
            self.sessions[session.client_id] = session
            self._leaves(session)
        grants: dict[str, list[Grant]] = {}
        for client_id, filter, options, identifier, since in log.rows(SUBSCRIPTIONS):
            assert isinstance(client_id, str)
            assert isinstance(filter, str)
            assert isinstance(options, int)
            assert isinstance(identifier, int)
            assert isinstance(since, int)
            grant = Grant(filter, options & 3, bool(options & 4), bool(options & 8), identifier, since)
            grants.setdefault(client_id, []).append(grant)
        for client_id, found in grants.items():
            if client_id in self.sessions:
                self.sessions[client_id].restore_grants(found)
        for row in log.rows(RETAINED):
            self.retained.store(_retained_event(row))
        self._wills.restore(now)

    def close_connections(self) -> None:
        """Tell every client that the server is going."""
        for connection in list(self.connections):
            connection.close(Reason.SERVER_SHUTTING_DOWN)


def _may_publish(topic: str, listener: Listener) -> bool:
    """Whether clients may publish to it: $SYS is the server's, and $share is no topic (as Mosquitto has it)."""
    if topic.startswith(SHARE) or (listener.mount_point and topic[0] == "$"):
        return False
    return topic.partition("/")[0] != "$SYS" or matches(_BRIDGE_STATE, topic)


def _keep_alive(packet: Connect, limits: Limits) -> int:
    cap = limits.max_keep_alive
    if packet.version == 5 and cap and (packet.keep_alive > cap or not packet.keep_alive):
        return cap
    return packet.keep_alive


def _connack_properties(packet: Connect, limits: Limits, client_id: str, asked: int, expiry: int) -> Properties:
    properties: list[tuple[int, int | str | bytes | tuple[str, str]]] = [
        (Property.RECEIVE_MAXIMUM, limits.receive_maximum),
        (Property.MAXIMUM_PACKET_SIZE, limits.max_packet_size),
        (Property.TOPIC_ALIAS_MAXIMUM, limits.topic_alias_maximum),
        (Property.SHARED_SUBSCRIPTION_AVAILABLE, 0),
    ]
    if not packet.client_id:
        properties.append((Property.ASSIGNED_CLIENT_IDENTIFIER, client_id))  # [MQTT-3.1.3-6]
    if expiry != asked:
        properties.append((Property.SESSION_EXPIRY_INTERVAL, expiry))
    keep_alive = _keep_alive(packet, limits)
    if keep_alive != packet.keep_alive:
        properties.append((Property.SERVER_KEEP_ALIVE, keep_alive))  # [MQTT-3.1.2-21]
    return tuple(properties)


def _check_size(properties: Properties, largest: int) -> None:
    size = len(encode(Connack(False, Reason.SUCCESS, properties), 5)) if largest else 0
    if size > largest:  # [MQTT-3.1.2-24]
        raise ProtocolError(
            Reason.PACKET_TOO_LARGE, f"takes packets of {largest} bytes at most, and its CONNACK would have {size}"
        )


def _number(properties: Properties, property: Property, default: int) -> int:
    value = first(properties, property) if properties else None
    return value if isinstance(value, int) else default


def _retained_event(row: Row) -> Event:
    topic, seq, ts, payload, qos, client, properties, expires = row
    assert isinstance(topic, str)
    assert isinstance(seq, int)
    assert isinstance(ts, int)
    assert isinstance(payload, bytes)
    assert isinstance(qos, int)
    assert isinstance(client, str)
    assert isinstance(properties, bytes)
    assert isinstance(expires, int)
    return Event(seq, ts, topic, payload, qos, True, client, properties, expires, FSYNC if qos else OS)

"""Who is connected: from the first byte of a connection to its end, and which session it has."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from broker.acl import Who
from broker.connack import accepting_properties, asked_expiry, check_size, keep_alive
from broker.connection import Connection
from broker.listener import Limits, Listener
from broker.mqtt.codec import encode
from broker.mqtt.errors import ProtocolError
from broker.mqtt.packets import Connack, Connect, Will
from broker.mqtt.properties import Properties, Property, number
from broker.mqtt.reason import Reason
from broker.names import shown
from broker.offer import check_will
from broker.rights import LEVELS, authorize, forbids_topic, has_many_levels
from broker.session import Session
from broker.wills import SECOND, Wills
from broker.wire import Wire

if TYPE_CHECKING:
    from broker.hub import Hub


_PATIENCE: Final = 60
"""Seconds within which something must come of a packet that is not whole."""


class Clients:
    """The connections of a node. `limits` are the node's own; those of a listener are what its clients meet."""

    __slots__ = ("_hub", "_limits", "_next_look", "_strangers", "_wills", "connections", "count", "listener")

    def __init__(self, hub: Hub, limits: Limits, wills: Wills) -> None:
        self.connections: set[Connection] = set()
        self.count = 0
        """Connections whose CONNECT was accepted."""
        self.listener = Listener("", limits)
        """Where a connection comes from that nobody says more of."""
        self._hub = hub
        self._limits = limits
        self._wills = wills
        self._next_look = 0
        self._strangers: dict[Connection, None] = {}
        """Connections without a CONNECT, the oldest first."""

    def accept(self, wire: Wire, now: int, listener: Listener | None = None) -> Connection:
        """A peer has opened a connection; `now` in µs since the epoch."""
        self._hub.traffic.sockets += 1
        connection = Connection(self._hub, wire, now, listener or self.listener)
        self.connections.add(connection)
        self._strangers[connection] = None
        if self._hub.is_behind:
            self._hub.pressure.hold(connection)
        most = self._limits.max_connections
        if len(self._strangers) > most:
            oldest = next(iter(self._strangers))
            self._hub.complain(f"{oldest.name}: closed, since {most} more wait for their CONNECT")
            oldest.close(Reason.SERVER_BUSY, "too many connections wait for their CONNECT")
        return connection

    def connect(self, connection: Connection, packet: Connect, username: str = "", properties: Properties = ()) -> None:
        """A client says who it is, and has proved to be this user; `properties` are for its CONNACK.

        Raises:
            ProtocolError: there is no room for it, its client identifier is another user's, or it may not have the will
                that it asks for. Nothing has changed then.
        """
        hub, listener, limits = self._hub, connection.listener, connection.limits
        client_id = packet.client_id or f"auto-{uuid4().hex}"
        authorize(connection, Who(client_id, username))
        if packet.will is not None:
            self._check_will(connection, packet.will)
        session = hub.sessions.get(client_id, hub.now)
        _check_owner(session, username)
        self._check_room(listener, None if session is None else session.connection, username)
        expiry = min(asked_expiry(packet), limits.max_session_expiry)
        if expiry:
            self._check_sessions(session)
        properties = accepting_properties(packet, limits, connection.who, expiry) + properties
        check_size(properties, connection.max_packet_size)
        if session is not None and session.connection is not None and session.connection.resting:
            hub.pressure.go_on(session.connection)  # it may have said goodbye
            session = hub.sessions.get(client_id, hub.now)
        if session is not None and session.connection is not None:
            hub.complain(f"{session.connection.name}: taken over by a connection from {connection.wire.peer}")
            session.connection.close(Reason.SESSION_TAKEN_OVER)  # [MQTT-3.1.4-3]
            session = hub.sessions.get(client_id, hub.now)
        if session is not None and packet.clean_start:  # [MQTT-3.1.2-4]
            hub.sessions.end(session)
            session = None
        present = session is not None
        if session is None:
            session = hub.sessions.begin(client_id, packet.version, expiry)
        self._wills.withdraw(client_id)  # [MQTT-3.1.3-9]
        session.username = username
        hub.sessions.prolong(session, expiry)
        if not expiry:
            session.forget(hub.log.open)
        connection.session = session
        self._count_in(connection, username)
        connection.keep_alive = keep_alive(packet, limits) * SECOND * 3 // 2  # [MQTT-3.1.2-22]
        connection.will = packet.will
        if packet.will is not None:
            self._wills.keep(client_id, packet.will)  # [MQTT-3.1.2-7]
            hub.cork(connection)
        connection.send(encode(Connack(present, Reason.SUCCESS, properties), packet.version))
        if session.persistent:
            hub.changed(session)
        for grant in session.grants.values():
            hub.router.add(session, grant)
        session.attach(connection, min(limits.max_inflight, number(packet.properties, Property.RECEIVE_MAXIMUM, 65535)))
        hub.shares.connected(session)

    def _check_will(self, connection: Connection, will: Will) -> None:
        check_will(connection.limits, will)
        if (refusal := forbids_topic(connection, will.topic)) is not None:
            raise ProtocolError(refusal, f"may not publish to {shown(will.topic)}, the topic of its will")
        if will.retain and has_many_levels(will.topic):
            raise ProtocolError(Reason.TOPIC_NAME_INVALID, f"a retained will whose topic has more than {LEVELS} levels")
        log = self._hub.log
        if log.failure is not None and log.open.weight > self._limits.group_bytes:
            raise ProtocolError(Reason.QUOTA_EXCEEDED, "nothing can be stored, and no more wills can wait")

    def _count_in(self, connection: Connection, username: str) -> None:
        self.count += 1
        listener = connection.listener
        listener.clients += 1
        if listener.meter is not None:
            listener.meter.enter(username)
            connection.throttle = listener.meter.throttle(self._hub.now)
        del self._strangers[connection]

    def _check_room(self, listener: Listener, leaving: Connection | None, username: str) -> None:
        """Refuse a client where there are as many as may be, unless another connection makes room for it."""
        most = self._limits.max_connections
        if self.count >= most and leaving is None:
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
                Reason.QUOTA_EXCEEDED, f"user {shown(username)} has all connections that one may (user_connections)"
            )

    def _check_sessions(self, session: Session | None) -> None:
        """Refuse a client whose session would be one more than may outlive their connections."""
        most = self._limits.max_sessions
        if self._hub.sessions.lasting >= most and (session is None or not session.persistent):
            raise ProtocolError(Reason.QUOTA_EXCEEDED, f"{most} sessions are kept (mqtt.max_sessions)")

    def disconnected(self, connection: Connection, will: bool) -> None:
        """A connection has ended; with `will`, otherwise than by a DISCONNECT."""
        hub = self._hub
        self.connections.discard(connection)
        self._strangers.pop(connection, None)
        hub.pressure.let_go(connection)
        session = connection.session
        if session is None or session.connection is not connection:
            return
        self.count -= 1
        connection.listener.clients -= 1
        if connection.listener.meter is not None:
            connection.listener.meter.leave(connection.who.username)
        hub.replays.disconnected(session)
        for filter in session.grants:
            hub.router.remove(session, filter)
        session.detach(hub.now)
        hub.shares.disconnected(session)
        if connection.will is not None:
            if will and self._may_leave(connection, connection.will.topic):
                self._wills.leave(session.client_id, connection.will, hub.now, session.persistent)
            else:  # [MQTT-3.14.4-3]
                self._wills.discard(session.client_id)
        hub.sessions.leave(session)
        hub.wake()

    def _may_leave(self, connection: Connection, topic: str) -> bool:
        """Whether the topic of a will is still one that its client may publish to: rules may have changed."""
        if forbids_topic(connection, topic) is None:
            return True
        self._hub.forbidden += 1
        self._hub.complain(f"{connection.name}: may not publish to {shown(topic)} any more; its will is dropped")
        return False

    # -- what others bring about

    def rules_changed(self, listener: Listener) -> None:
        """The authorizer of a listener is another, or says otherwise than it did: ask it anew about everything."""
        self._hub.router.forget()
        for connection in self.connections:
            if connection.listener is listener and connection.session is not None:
                authorize(connection, connection.who)
                connection.session.rules_changed()

    def expel(self, listener: Listener, users: Set[str]) -> None:
        """Disconnect these users, where it was not the transport that has proved who they are."""
        for connection in list(self.connections):
            if connection.listener is listener and connection.who.username in users and not connection.wire.identity:
                self._hub.complain(
                    f"{connection.name}: user {shown(connection.who.username)} is not what it was; closed"
                )
                connection.close(Reason.NOT_AUTHORIZED, "it has to prove anew who it is")

    def close_silent(self, now: int) -> None:
        """Close those that have been silent for longer than they may."""
        late = [each for each in self._strangers if now > each.opened + each.limits.connect_timeout * SECOND]
        for connection in late:
            what = "no CONNECT" if connection.login is None else "not sure who it is"
            why = f"{what} within {connection.limits.connect_timeout} s"
            self._hub.complain(f"{connection.name}: {why}; closed")
            connection.close(Reason.PROTOCOL_ERROR if connection.login is None else Reason.SERVER_BUSY, why)
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
            why = f"{what} for {seconds} s, longer than its keep alive allows"
            self._hub.complain(f"{connection.name}: {why} [MQTT-3.1.2-22]; closed")
            connection.close(Reason.KEEP_ALIVE_TIMEOUT, why, "MQTT-3.1.2-22")

    def close_dawdlers(self, now: int) -> None:
        """Close those that leave the rest of a large packet to be waited for."""
        if now < self._next_look:
            return
        self._next_look = now + _PATIENCE * SECOND
        for connection in [each for each in self.connections if each.dawdles()]:
            why = f"the rest of a packet has not come within {_PATIENCE} s"
            self._hub.complain(f"{connection.name}: {why}; closed")
            connection.close(Reason.UNSPECIFIED_ERROR, why)

    def close_all(self) -> None:
        """Tell every client that the server is going."""
        for connection in list(self.connections):
            connection.close(Reason.SERVER_SHUTTING_DOWN)


def _check_owner(session: Session | None, username: str) -> None:
    """Refuse a client whose identifier is that of another user's session. Nobody's is anybody's to take."""
    if session is not None and session.username and session.username != username:
        owner, client_id = session.username, session.client_id
        who = f"user {shown(username)}" if username else "nobody in particular"
        raise ProtocolError(
            Reason.NOT_AUTHORIZED,
            f"the session of client {shown(client_id)} is user {shown(owner)}'s; this is {who}",
            private=True,
        )

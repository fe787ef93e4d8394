"""The data path: admit, append, commit, acknowledge, fan out.

What happens to a PUBLISH:

1. `publish` appends it to the log's open group and remembers whom to acknowledge. Nothing waits.
2. At the end of the turn of the loop the open group goes to the engine, unless one is on its way; then it goes when
   that one is back, with everything that has arrived since: group commit.
3. When it has committed, its acknowledgements go out, and its events to every live session, in log order.

QoS 0 messages and those with durability `memory` are fanned out (and acknowledged) in step 1: nobody was promised that
they are kept. A group that the engine refuses is never acknowledged: MQTT 5 publishers are told 0x97 and their messages
are taken out; older clients have no such answer, so their messages stay, to be tried again, and their sockets are not
read until they are kept.

While the disk is short of room (`ration`), QoS 0 messages are kept in memory only; then MQTT 5 publishers are told
0x97, and older ones are not read from after what has come. What the broker has to write for itself goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from broker.clients import Clients
from broker.connection import Connection
from broker.durability import Durability
from broker.follower import Follower
from broker.frames import FrameCache
from broker.listener import Limits
from broker.mqtt.reason import Reason
from broker.names import shown
from broker.pressure import Pressure
from broker.promises import ENVELOPE, Promises
from broker.refusals import Refusals
from broker.replays import Replays
from broker.retained import Retained
from broker.rights import LEVELS, forbids_topic, has_many_levels
from broker.router import Router
from broker.session import Session
from broker.sessions import Sessions
from broker.shares import Shares
from broker.traffic import Traffic
from broker.wills import SECOND, Wills
from storage.interface import (
    FSYNC,
    MEMORY,
    OS,
    RETAINED,
    Event,
    Group,
    Log,
    Row,
    StorageError,
    Table,
)

_logger = logging.getLogger("berm.broker")

_COMPLAINTS = 20
"""Lines about misbehaving peers that one second may log."""
_STEPS = 4000
"""Events that sessions which read the log may look at in one turn of the loop, all together: thousands may return at
once."""


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
        self.queue_qos0 = limits.queue_qos0
        self.frames = FrameCache()
        self.router: Router[Follower] = Router(_denies)
        self.retained = Retained(limits.max_retained, limits.retained_memory)
        self.traffic = Traffic()
        self.wills = Wills(log, self._originate)
        self.sessions = Sessions(self, self.wills)
        self.shares = Shares(self)
        self.replays = Replays(self)
        self.clients = Clients(self, limits, self.wills)
        self.now = log.last_ts
        """The time of what is being handled, µs since the epoch."""
        self.commits = 0
        """Groups that the engine has kept."""
        self.refused_messages = 0
        self.unretained = 0
        """Messages that were not retained, for want of room for more of them."""
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
        self.behind: set[Follower] = set()
        """Sessions and shared subscriptions with connected clients that read the log from their cursors."""
        self.durability = Durability(durability)
        self.pressure = Pressure(self)
        self.refusals = Refusals(self)
        self.promises = Promises()
        """Of the open group."""
        self._promised = Promises()
        """Of the group on its way."""
        self._schedule = schedule
        self._scheduled = False
        self._touched: list[Connection] = []
        self._overtaken: dict[str, int] = {}
        """Retained messages that have gone out early, by topic: older ones may have yet to commit."""
        self._next_second = 0
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
        traffic = self.traffic
        traffic.received += 1
        traffic.payload_received += len(payload)
        if topic not in connection.permitted:
            refusal = forbids_topic(connection, topic)
            if refusal is not None:
                self.forbidden += 1
                self.refusals.reject(connection, qos, packet_id, refusal, f"may not publish to {shown(topic)}")
                return
            if retain and has_many_levels(topic):
                why = f"a retained message whose topic has more than {LEVELS} levels: {shown(topic)}"
                self.refusals.reject(connection, qos, packet_id, Reason.TOPIC_NAME_INVALID, why)
                return
        if log.failure is not None and self.refusals.cannot_keep(connection, qos, packet_id):
            return
        session = connection.session
        assert session is not None
        if self.durability.plain:
            durability = FSYNC if qos else OS
        else:
            durability = self.durability.of(topic, qos)
            if self.durability.refusing and qos and durability and self.refusals.turn_away(connection, qos, packet_id):
                return
        if retain and not self.retained.has_room(topic, len(payload), len(properties)):
            if self.refusals.no_room_to_retain(connection, topic, qos, packet_id):
                return
            retain = False
        event = log.append(self.now, topic, payload, qos, retain, session.client_id, properties, expires, durability)
        if qos == 0:
            self._fan_out_early(event)
        elif durability == MEMORY and connection.owed == 1:
            connection.owed = 0
            connection.send((b"\x40\x02" if qos == 1 else b"\x50\x02") + packet_id.to_bytes(2))
            self._fan_out_early(event)
        else:
            ack = (b"\x40\x02" if qos == 1 else b"\x50\x02") + packet_id.to_bytes(2)  # [MQTT-4.3.2-4], [MQTT-4.3.3-8]
            self.promises.acknowledgements.append((connection, ack, event))
            if qos == 2 and session.expiry:
                self.promises.sessions.add(session)
            if durability == MEMORY:
                self._fan_out_early(event)
        if retain:
            self._keep_retained(event)
        if not self._scheduled:
            self.wake()
        if self.pressure.crowded and durability == MEMORY and qos:
            connection.volatile = True
            self.pressure.hold(connection)
        elif log.open.weight > self.limits.group_bytes:
            self.pressure.hold(connection)

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
        self.wake()

    def announce(self, messages: Iterable[tuple[str, bytes]]) -> None:
        """Publish what the broker says of itself (topic, payload): retained, at QoS 0, and beside the log.

        No position moves by it, and nothing is written. Who has no room gets what holds by then once there is some.
        """
        late: dict[Follower, None] = {}
        for topic, payload in messages:
            event = Event(0, self.now, topic, payload, 0, True, "", b"", 0, MEMORY)
            self.retained.store(event)
            for delivery in self.router.match(topic):
                follower = delivery.session
                try:
                    if not follower.tell(event, delivery):
                        late[follower] = None
                except Exception:  # noqa: BLE001 - handed to `crash`, which logs it with its stack
                    self.crash(follower.connection)
        for follower in late:
            follower.tell_later()

    def _originate(
        self, client: str, topic: str, payload: bytes, qos: int, retain: bool, properties: bytes, expires: int
    ) -> None:
        durability = self.durability.of(topic, qos)
        if retain and not self.retained.has_room(topic, len(payload), len(properties)):
            self.unretained += 1
            retain = False
        event = self.log.append(self.now, topic, payload, qos, retain, client, properties, expires, durability)
        if event.early:
            self._fan_out_early(event)
        if retain:
            self._keep_retained(event)
        self.wake()

    def _fan_out_early(self, event: Event) -> None:
        for delivery in self.router.match(event.topic):
            follower = delivery.session
            if follower.live:
                try:
                    follower.give(event, delivery)
                except Exception:  # noqa: BLE001 - handed to `crash`, which logs it with its stack
                    self.crash(follower.connection)

    def _keep_retained(self, event: Event) -> None:
        if event.early:
            self.retained.store(event)
            self._overtaken[event.topic] = event.seq
        self._put_retained(event)

    def _put_retained(self, event: Event) -> None:
        if event.durability == MEMORY and (
            not self.durability.sparing or self.durability.asked(event.topic, event.qos) == MEMORY
        ):
            return  # to spare the disk the log goes without it, but not the row that a new subscriber is given
        if event.payload:
            self.log.open.put(
                RETAINED,
                (event.topic,),
                (event.seq, event.ts, event.payload, event.qos, event.client, event.properties, event.expires),
            )
        else:
            self.log.open.delete(RETAINED, (event.topic,))

    def ration(self, *, qos0: bool, all_qos: bool) -> None:
        """The disk is short of room, or no longer: whether to store no QoS 0 messages, and none of any publisher."""
        self.durability.ration(qos0=qos0, all_qos=all_qos)
        self.wake()

    # -- turns of the loop

    def touch(self, connection: Connection) -> None:
        """Write this connection, and let its session go on reading, at the end of the turn."""
        self._touched.append(connection)
        if not self._scheduled:
            self.wake()

    def after_commit(self, connection: Connection, data: bytes) -> None:
        """Send this once everything appended so far has committed."""
        connection.promised += 1
        connection.pending += len(data) + ENVELOPE
        self.promises.add(connection, data)
        if connection.congested:
            self.pressure.hold(connection)
        if not self._scheduled:
            self.wake()

    def cork(self, connection: Connection) -> None:
        """Write nothing to this connection, its CONNACK above all, before what was stored for it has committed."""
        connection.corked = True
        self.log.open.durability = FSYNC
        self.after_commit(connection, b"")

    def _keep(self, promises: Promises) -> None:
        """Send what was promised."""
        self.traffic.packets_whole += len(promises.acknowledgements)
        for connection, data, _ in promises.acknowledgements:
            connection.owed -= 1
            if not connection.closed:
                if not connection.out:
                    self.touch(connection)
                connection.out.append(data)
                connection.pending += len(data)
        for connection, data in promises.then:
            connection.kept += 1
            connection.pending -= len(data) + ENVELOPE
            if connection.corked:
                connection.corked = False
                self.touch(connection)
            connection.send(data)

    def changed(self, session: Session) -> None:
        """Write this session's row within about a second."""
        self.sessions.changed(session)

    def checkpoint(self, session: Session) -> None:
        """Write this session's row with the open group, fsynced."""
        self.promises.sessions.add(session)
        self.log.open.durability = FSYNC
        if not self._scheduled:
            self.wake()

    def wake(self) -> None:
        """Have `turn` called."""
        if not self._scheduled:
            self._scheduled = True
            self._schedule(self.turn)

    def turn(self) -> None:
        """The end of a turn: hand over the open group, and write what has gathered for each connection."""
        self._scheduled = False
        self.pressure.begin_turn()
        self.replays.begin_turn()
        self.log.flush()
        self._promise_nothing_open()
        touched, self._touched = self._touched, []
        late: list[Connection] = []
        steps = _STEPS
        for connection in dict.fromkeys(touched):
            if connection.closed:
                continue
            try:
                session = connection.session
                if session is not None and session.reads:
                    if steps > 0:
                        steps -= session.pump()
                    else:
                        late.append(connection)
                if connection.out and not connection.corked:
                    data = b"".join(connection.out)
                    connection.out.clear()
                    connection.pending -= len(data)
                    self.traffic.bytes_sent += len(data)
                    connection.wire.write(data)
                    if connection.blocked:
                        self.written_unread(connection, len(data))
                    elif 2 * len(data) >= connection.limit:  # it was full, or full for a replay, and has room again
                        self.touch(connection)
            except Exception:  # noqa: BLE001 - handed to `crash`, which logs it with its stack
                self.crash(connection)
        if late:  # they are the first, next time
            self._touched[:0] = late
            self.wake()
        if self.durability.has_rules:
            self.pressure.crowded = self._is_crowded()
        self.pressure.release()

    def _is_crowded(self) -> bool:
        edge = self.log.edge
        return edge > 0 and any(follower.position < edge and not follower.stalled for follower in self.behind)

    def written_unread(self, connection: Connection, size: int) -> None:
        """So much was written that the peer has no room for."""
        connection.unread += size
        if connection.congested:
            self.pressure.hold(connection)

    def _promise_nothing_open(self) -> None:
        """Promises about a group that holds nothing, with none on its way, are kept already."""
        if self.promises and not self.log.busy and not self.log.open:
            kept, self.promises = self.promises, Promises()
            self.promises.sessions = kept.sessions
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
        self.sessions.save(self.promises.sessions, group)
        self._promised, self.promises = self.promises, Promises()

    def committed(self, group: Group) -> None:
        """Acknowledge, then fan out, in log order."""
        if group.durability > MEMORY:
            self.commits += 1
        self.refusals.on_kept(group)
        promised, self._promised = self._promised, Promises()
        self._keep(promised)
        match = self.router.match
        for event in group.events:
            if event.qos and event.durability:
                for delivery in match(event.topic):
                    follower = delivery.session
                    if follower.live:
                        try:
                            follower.give(event, delivery)
                        except Exception:  # noqa: BLE001 - handed to `crash`, which logs it with its stack
                            self.crash(follower.connection)
                if event.retain and event.seq > self._overtaken.get(event.topic, 0):
                    self.retained.store(event)
        if self._overtaken:
            self._overtaken = {topic: seq for topic, seq in self._overtaken.items() if seq > self.log.committed}
        self.wake()

    def refused(self, group: Group, error: StorageError) -> None:
        """Answer MQTT 5 publishers, and let the others wait."""
        promises, newer = self._promised, self.promises
        self._promised = Promises()
        self.promises = promises
        promises.acknowledgements += newer.acknowledgements
        promises.then += newer.then
        promises.sessions |= newer.sessions
        self.refusals.on_refused(group, promises, error)
        group.state.pop(RETAINED, None)  # the rows of what the group still holds, and no others
        for event in group.events:
            if event.retain:
                self._put_retained(event)

    @property
    def is_behind(self) -> bool:
        """Whether so much waits for a commit that is under way that those who come now have to wait, too."""
        return self.log.failure is None and self.log.open.weight > self.limits.group_bytes

    # -- time

    def tick(self, now: int) -> None:
        """Do what time brings: to be called a few times a second."""
        self.now = now
        self.pressure.release()
        self.wills.tick(now)
        self.sessions.expire(now)
        self.replays.tick(now)
        if now < self._next_second:
            return
        self._next_second = now + SECOND
        self.clients.close_silent(now)
        self.clients.close_dawdlers(now)
        self.sessions.save_changed(now)
        self.shares.save_changed()
        for follower in self.behind:
            follower.check_progress()
        if self._complaints > _COMPLAINTS:
            _logger.warning("%d more lines about clients were left out", self._complaints - _COMPLAINTS)
        self._complaints = 0
        self.log.retry()
        self.wake()

    def complain(self, line: str) -> None:
        """Log a line about a peer; not more than some in a second."""
        self._complaints += 1
        if self._complaints <= _COMPLAINTS:
            _logger.warning("%s", line)

    # -- start

    def restore(self, now: int) -> None:
        """Take up what an earlier run left: sessions, subscriptions, retained messages, wills. Blocks."""
        self.now = now
        self.sessions.restore(now)
        clients: dict[str, str] = {}  # each row has a copy of its own
        for row in self.log.rows(RETAINED):
            event = _retained_event(row)
            event.client = clients.setdefault(event.client, event.client)
            self.retained.store(event)
        self.wills.restore(now, self.sessions.all)


def _denies(follower: Follower, topic: str) -> bool:
    return follower.denies(topic)


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

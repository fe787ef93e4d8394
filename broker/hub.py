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
from typing import Final

from broker.answers import encode_answer
from broker.clients import Clients
from broker.connection import Connection
from broker.follower import Follower
from broker.frames import FrameCache
from broker.listener import Limits
from broker.mqtt.packets import Puback, Pubrec
from broker.mqtt.reason import Reason
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
    StorageFailed,
    Table,
)

_logger = logging.getLogger("berm.broker")

_COMPLAINTS = 20
"""Lines about misbehaving peers that one second may log."""
_RULES_KEPT = 10_000
_PUMPED = 100
"""Sessions that one turn of the loop lets read the log: thousands may return at once."""
_MANY = 20
"""Things to be sent after a commit, at which those for connections that are gone are looked for."""
_PROMISE = 100
"""Bytes that something to be sent after a commit takes in memory beside its own."""

Acknowledgement = tuple[Connection, bytes, Event | None]
"""Whom to send what once this event is kept; None: a message that is not to be kept at all."""
_EARLIER: Final = Event(0, 0, "", b"", 2, False, "", b"", 0, FSYNC)
"""Stands in an acknowledgement for the event of a message that is repeated."""


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
        self.queue_qos0 = limits.queue_qos0
        self.frames = FrameCache()
        self.router: Router[Follower] = Router(_denies)
        self.retained = Retained()
        self.traffic = Traffic()
        self._wills = Wills(log, self._originate)
        self.sessions = Sessions(self, self._wills)
        self.shares = Shares(self)
        self.clients = Clients(self, limits, self._wills)
        self.now = log.last_ts
        """The time of what is being handled, µs since the epoch."""
        self.commits = 0
        """Groups that the engine has kept."""
        self.refused_messages = 0
        self.forbidden = 0
        """Messages to topics that their clients may not publish to."""
        self.forbidden_subscriptions = 0
        self.refused_logins = 0
        """Clients that did not prove who they are, or that may not connect."""
        self.unstored = 0
        """QoS 0 messages that were not stored, to spare the disk."""
        self.refusing = False
        """Whether the disk has so little room that nothing is stored for publishers."""
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
        self._crowded = False
        """Whether sessions that are getting on need events that the log's memory would soon drop."""
        self._sparing = False
        """Whether the disk has so little room that QoS 0 messages are not stored."""
        self._plain = durability is None
        """Whether the QoS alone says how long a message is kept."""
        self._rule = durability
        self._rules: dict[str, int | None] = {}
        self._schedule = schedule
        self._scheduled = False
        self._touched: list[Connection] = []
        self._promises = _Promises()
        self._many_promises = _MANY
        self._promised = _Promises()
        """Of the group on its way."""
        self._overtaken: dict[str, int] = {}
        """Retained messages that have gone out early, by topic: older ones may have yet to commit."""
        self._held: dict[Connection, bool] = {}
        """Connections that are not read from, and whether that is for want of room on the disk."""
        self._waiting: set[str] = set()
        """Clients that have sent what nobody can keep now, and that is not refused: it will be tried again."""
        self._refusal = ""
        """Why the group before was refused, as it was told: retries that fail alike are not told again."""
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
                self.reject(connection, qos, packet_id, refusal, f"may not publish to {topic[:64]!r}")
                return
            if retain and has_many_levels(topic):
                why = f"a retained message whose topic has more than {LEVELS} levels: {topic[:64]!r}"
                self.reject(connection, qos, packet_id, Reason.TOPIC_NAME_INVALID, why)
                return
        if log.failure is not None and self._cannot_keep(connection, qos, packet_id):
            return
        session = connection.session
        assert session is not None
        if self._plain:
            durability = FSYNC if qos else OS
        else:
            durability = self._durability(topic, qos)
            if self.refusing and qos and durability and self._turns_away(connection, qos, packet_id):
                return
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
            self.wake()
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
        durability = self._durability(topic, qos)
        event = self.log.append(self.now, topic, payload, qos, retain, client, properties, expires, durability)
        if event.early:
            self._fan_out_early(event)
        if retain:
            self._keep_retained(event)
        self.wake()

    def _durability(self, topic: str, qos: int) -> int:
        asked = self._asked(topic, qos)
        if self._sparing and not qos and asked:
            self.unstored += 1
            return MEMORY
        return asked

    def _asked(self, topic: str, qos: int) -> int:
        """The durability that a message is to have."""
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
        if event.durability == MEMORY and (not self._sparing or self._asked(event.topic, event.qos) == MEMORY):
            return  # to spare the disk the log goes without it, but not the row that a new subscriber is given
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
            self._waiting.add(connection.who.client_id)
            return False
        # What waits is as much as may wait. Nothing was acknowledged: the client will send it again.
        self._take_back(connection, qos, packet_id)
        self.complain(f"{connection.name}: nothing can be stored, and no more can wait; connection closed")
        connection.close(Reason.QUOTA_EXCEEDED)
        return True

    def _turns_away(self, connection: Connection, qos: int, packet_id: int) -> bool:
        """What becomes of a message while the disk is short of room; whether that settles it."""
        if connection.version == 5:
            self.refused_messages += 1
            self._answer_in_turn(connection, qos, packet_id, Reason.QUOTA_EXCEEDED, "the disk is nearly full")
            return True
        # What has been read of it already is stored; nobody could be told otherwise.
        self.hold(connection)
        if connection in self._held:
            self._held[connection] = True
        return False

    def ration(self, *, qos0: bool, all_qos: bool) -> None:
        """The disk is short of room, or no longer: whether to store no QoS 0 messages, and none of any publisher."""
        self._sparing, self.refusing = qos0, all_qos
        self._plain = self._rule is None and not qos0 and not all_qos
        self.wake()

    def reject(
        self, connection: Connection, qos: int, packet_id: int, reason: Reason, why: str, clause: str = ""
    ) -> None:
        """Drop a message that may not be published, and answer in its turn. Before MQTT 5 an acknowledgement can't say
        so: as Mosquitto, acknowledge it nevertheless (MQTT 3.1.1 allows that, or to close, which a bridge would answer
        for ever)."""
        broken = f" [{clause}]" if clause else ""
        self.complain(f"{connection.name}: {why}{broken} (reason 0x{reason:02x}); message dropped")
        if not qos:
            return
        if connection.version == 5:
            self._answer_in_turn(connection, qos, packet_id, reason, why, clause)
            return
        answer = (b"\x40\x02" if qos == 1 else b"\x50\x02") + packet_id.to_bytes(2)
        self._promises.acknowledgements.append((connection, answer, None))
        self.wake()

    def _answer_in_turn(
        self, connection: Connection, qos: int, packet_id: int, reason: Reason, why: str, clause: str = ""
    ) -> None:
        """Tell an MQTT 5 client that a message was not taken on, behind the answers to what came before."""
        self._take_back(connection, qos, packet_id)
        answer = _refusal(connection, qos, packet_id, reason, why, clause)
        if self.log.failure is not None:  # whatever came before is refused at once, too
            connection.send(answer)
            return
        connection.owed += 1
        self._promises.acknowledgements.append((connection, answer, None))
        self.wake()

    def acknowledge_again(self, connection: Connection, packet_id: int) -> None:
        """Answer a QoS 2 message that is repeated: in its turn [MQTT-4.6.0-3], once it is kept [MQTT-4.3.3-10]."""
        answer = b"\x50\x02" + packet_id.to_bytes(2)
        if self.log.failure is not None and connection.version == 5 and connection.who.client_id not in self._waiting:
            connection.send(answer)  # what is received, and neither refused nor waiting, is kept
            return
        connection.owed += 1
        self._promises.acknowledgements.append((connection, answer, _EARLIER))
        self.wake()

    def _refuse(self, connection: Connection, qos: int, packet_id: int, reason: Reason) -> None:
        self.refused_messages += 1
        self._take_back(connection, qos, packet_id)
        connection.send(_refusal(connection, qos, packet_id, reason, "nothing can be stored now"))

    def _take_back(self, connection: Connection, qos: int, packet_id: int) -> None:
        """Forget a message that was not taken on."""
        connection.owed -= 1
        if qos == 2 and connection.session is not None:
            connection.unreleased.discard(packet_id)
            connection.session.received.discard(packet_id)

    # -- turns of the loop

    def touch(self, connection: Connection) -> None:
        """Write this connection, and let its session go on reading, at the end of the turn."""
        self._touched.append(connection)
        if not self._scheduled:
            self.wake()

    def after_commit(self, connection: Connection, data: bytes) -> None:
        """Send this once everything appended so far has committed."""
        connection.promised += 1
        connection.pending += len(data) + _PROMISE
        then = self._promises.then
        then.append((connection, data))
        if len(then) > self._many_promises:  # nothing commits, and clients come and go
            then[:] = [each for each in then if not each[0].closed]
            self._many_promises = 2 * len(then) + _MANY
        if connection.congested:
            self.hold(connection)
        if not self._scheduled:
            self.wake()

    def cork(self, connection: Connection) -> None:
        """Write nothing to this connection, its CONNACK above all, before what was stored for it has committed."""
        connection.corked = True
        self.log.open.durability = FSYNC
        self.after_commit(connection, b"")

    def _keep(self, promises: _Promises) -> None:
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
            connection.pending -= len(data) + _PROMISE
            if connection.corked:
                connection.corked = False
                self.touch(connection)
            connection.send(data)

    def changed(self, session: Session) -> None:
        """Write this session's row within about a second."""
        self.sessions.changed(session)

    def checkpoint(self, session: Session) -> None:
        """Write this session's row with the open group, fsynced."""
        self._promises.sessions.add(session)
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
        self.log.flush()
        self._promise_nothing_open()
        touched, self._touched = self._touched, []
        pumped = 0
        for connection in dict.fromkeys(touched):
            if connection.closed:
                continue
            try:
                session = connection.session
                if session is not None and (session.shares or not session.live):
                    if pumped < _PUMPED:
                        session.pump()
                    else:
                        self.touch(connection)
                    pumped += 1
                if connection.out and not connection.corked:
                    data = b"".join(connection.out)
                    connection.out.clear()
                    connection.pending -= len(data)
                    self.traffic.bytes_sent += len(data)
                    connection.wire.write(data)
                    if connection.blocked:
                        self.written_unread(connection, len(data))
                    elif len(data) >= connection.limit:  # it was full, and has room again
                        self.touch(connection)
            except Exception:  # noqa: BLE001 - handed to `crash`, which logs it with its stack
                self.crash(connection)
        if self._rule is not None:
            self._crowded = self._is_crowded()
        if self._held:
            self._release()

    def _is_crowded(self) -> bool:
        edge = self.log.edge
        return edge > 0 and any(follower.position < edge and not follower.stalled for follower in self.behind)

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
        self.sessions.save(promises.sessions, group)
        self._promised = promises
        self._promises = _Promises()
        self._many_promises = _MANY

    def committed(self, group: Group) -> None:
        """Acknowledge, then fan out, in log order."""
        if group.durability > MEMORY:
            self.commits += 1
            self._refusal = ""
        self._waiting = set()
        promised = self._promised
        self._promised = _Promises()
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
        promises, newer = self._promised, self._promises
        self._promised = _Promises()
        self._promises = promises
        promises.then += newer.then
        promises.sessions |= newer.sessions
        acknowledgements = promises.acknowledgements + newer.acknowledgements
        promises.acknowledgements = []
        out: set[int] = set()
        waiting = {event.client for connection, _, event in acknowledgements if event and _may_wait(connection)}
        self._waiting = waiting
        for connection, ack, event in acknowledgements:
            if _may_wait(connection):
                promises.acknowledgements.append((connection, ack, event))
                self.hold(connection)
            elif event is _EARLIER and connection.who.client_id in waiting:  # what it repeats may be what waits
                promises.acknowledgements.append((connection, ack, event))
            elif event is _EARLIER and not _is_received(connection, ack):  # it was refused a moment ago
                self._refuse(connection, 2, int.from_bytes(ack[2:4]), Reason.QUOTA_EXCEEDED)
            elif event is None or event is _EARLIER or event.durability == MEMORY:  # only its turn was waited for
                connection.owed -= 1
                connection.send(ack)
            else:
                out.add(event.seq)
                self._refuse(connection, event.qos, int.from_bytes(ack[2:4]), Reason.QUOTA_EXCEEDED)
        kept = [event for event in group.events if event.seq not in out and event.qos]
        self.dropped_full += sum(1 for event in group.events if event.qos == 0)
        group.events[:] = kept
        self._refill_retained(group)
        if not isinstance(error, StorageFailed) and str(error) != self._refusal:  # after a failure the node ends
            self._refusal = str(error)
            _logger.error("%s; publishers wait or are refused until it can be stored", error)

    def _refill_retained(self, group: Group) -> None:
        """The rows of retained messages that the group still holds, and no others."""
        group.state.pop(RETAINED, None)
        for event in group.events:
            if event.retain:
                self._put_retained(event)

    @property
    def is_behind(self) -> bool:
        """Whether so much waits for a commit that is under way that those who come now have to wait, too."""
        return self.log.failure is None and self.log.open.weight > self.limits.group_bytes

    def hold(self, connection: Connection) -> None:
        """Read no more from this connection until the log, and its client, have caught up."""
        if not connection.held and not connection.closed:
            connection.held = True
            connection.wire.pause_reading()
            self._held[connection] = False
            self.wake()

    def let_go(self, connection: Connection) -> None:
        """This connection is gone."""
        self._held.pop(connection, None)

    def _release(self) -> None:
        log = self.log
        if log.failure is not None or log.open.weight > self.limits.group_bytes:
            return
        crowded, refusing = self._crowded, self.refusing
        for connection in [
            c
            for c, scarce in self._held.items()
            if not (c.congested or (crowded and c.volatile) or (refusing and scarce))
        ]:
            del self._held[connection]
            connection.held = connection.volatile = False
            connection.heard = self.now
            connection.wire.resume_reading()

    # -- time

    def tick(self, now: int) -> None:
        """Do what time brings: to be called a few times a second."""
        self.now = now
        if self._held:
            self._release()
        self._wills.tick(now)
        self.sessions.expire(now)
        if now < self._next_second:
            return
        self._next_second = now + SECOND
        self.clients.close_silent(now)
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
        for row in self.log.rows(RETAINED):
            self.retained.store(_retained_event(row))
        self._wills.restore(now, self.sessions.all)


def _denies(follower: Follower, topic: str) -> bool:
    return follower.denies(topic)


def _may_wait(connection: Connection) -> bool:
    """Whether messages that came on this connection wait where they can't be kept, since nobody can be told so."""
    return connection.version < 5 or connection.closed


def _is_received(connection: Connection, ack: bytes) -> bool:
    return connection.session is not None and int.from_bytes(ack[2:4]) in connection.session.received


def _refusal(connection: Connection, qos: int, packet_id: int, reason: Reason, why: str, clause: str = "") -> bytes:
    """The answer to a message that is not taken on."""
    kind = Puback if qos == 1 else Pubrec
    return encode_answer(connection, kind(packet_id, reason), why, clause)


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

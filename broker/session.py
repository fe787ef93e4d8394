"""One client's session: its subscriptions, its place in the log, and what it has not acknowledged yet.

A session is a cursor. While its client is connected it is in one of two states:

- *live*: it has been given everything that was committed, and the hub gives it each further event as it commits;
- *behind*: its window or its socket was full, or it has been away. Nothing is queued for it: it reads the log from its
  cursor whenever there is room, until it has caught up. Then it is live again.

Events that go out before they commit (QoS 0, durability `memory`) reach live sessions at once, ahead of their turn. So
that a session that falls behind does not read them again, it remembers up to which seq it has had them (`early_upto`);
and a session that becomes live is given those that have gone out and not yet committed.

Outbound packet identifiers move unacked (QoS 1 PUBLISH sent), or unreceived (QoS 2 PUBLISH sent) then uncompleted
(PUBREL sent). They hold seqs only: a message that must be sent again is read back from the log, a few at a time. Each
takes one slot of the window while it is on its way: slots = window - (sent and unacknowledged) - uncompleted. Nothing
new is sent before everything old has been sent again, so an identifier is always free where there is a slot.

Retained messages for a new subscription are not gathered either: a walk over the tree of them goes on as room appears.

What outlives the process is one row: the position, these identifiers, and the inbound QoS 2 identifiers. The row is
always a consistent snapshot, since it says of every event up to the position that it was acknowledged or is in flight.
QoS 1 progress is written lazily; a QoS 2 step is committed before the packet that tells the client of it is sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from struct import Struct
from typing import TYPE_CHECKING, Final, Protocol

from broker.mount import seen_properties
from broker.mqtt.properties import NEVER, Property, encode_properties
from broker.mqtt.topic import compile_filters, matches
from broker.mqtt.wire import encode_varint
from broker.router import Delivery, Grant, merge
from storage.interface import SESSIONS, SUBSCRIPTIONS, Accepts, Cursor, Event, Group, Log, Row

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.frames import FrameCache
    from broker.retained import Retained

_UNACKED, _UNRECEIVED, _UNCOMPLETED = 1, 2, 3
_inflight = Struct(">BHQ")
_identifier = Struct(">H")
_MATCHES_KEPT = 1024
_SLICE: Final = 32
"""Messages that are read back at a time."""
_STEPS: Final = 2000
"""Events that one turn of the loop looks at for one session."""


class Host(Protocol):
    """What a session needs of the hub."""

    log: Log
    frames: FrameCache
    retained: Retained
    behind: set[Session]
    now: int
    queue_qos0: bool
    dropped_expired: int
    dropped_oversized: int
    dropped_away: int
    dropped_gone: int
    dropped_denied: int
    delivered: int

    def changed(self, session: Session) -> None:
        """Write its row within about a second."""

    def checkpoint(self, session: Session) -> None:
        """Write its row with the open group, and have that group fsynced."""

    def after_commit(self, connection: Connection, data: bytes) -> None:
        """Send this once the open group has committed."""


@dataclass(slots=True)
class _Walk:
    """The retained messages that a subscription gets: those of up to `committed`, and early ones of up to `last`."""

    steps: Iterator[Event | None]
    delivery: Delivery[Session]
    committed: int
    last: int


class Session:
    """One client's session. Every method is called on the loop."""

    __slots__ = (
        "_accepts",
        "_cursor",
        "_host",
        "_matches",
        "_next_id",
        "_parked",
        "_read_back",
        "_reading",
        "_resend",
        "_retained",
        "_seen_at",
        "away_upto",
        "client_id",
        "connection",
        "dirty",
        "dup_upto",
        "early_upto",
        "ended",
        "expiry",
        "grants",
        "live",
        "mount",
        "received",
        "slots",
        "stalled",
        "stored",
        "unacked",
        "uncompleted",
        "unreceived",
        "v5",
        "version",
        "window",
    )

    def __init__(self, host: Host, client_id: str, version: int, expiry: int, position: int) -> None:
        self.client_id = client_id
        self.version = version
        self.v5 = version == 5
        self.expiry = expiry
        """Session expiry interval in s; 0: it ends with its connection; NEVER."""
        self.ended = 0
        """When its last connection ended, µs since the epoch; 0 while connected."""
        self.connection: Connection | None = None
        self.live = False
        self.stalled = False
        """Whether it is behind, and has taken nothing from the log for a second."""
        self._seen_at = position
        self.grants: dict[str, Grant] = {}
        self.mount = ""
        """What is taken off the topics that its client is given: the mount point of the listener."""
        self.window = 0
        self.slots = 0
        """How many more QoS 1 and 2 messages may be in flight."""
        self.unacked: dict[int, int] = {}
        self.unreceived: dict[int, int] = {}
        self.uncompleted: dict[int, int] = {}
        self.received: set[int] = set()
        """Inbound QoS 2 packet identifiers, from PUBLISH until PUBREL."""
        self.early_upto = 0
        self.away_upto = 0
        """Up to here it was away: QoS 0 messages are not made up for, unless `queue_qos0`."""
        self.dup_upto = 0
        """Up to here an earlier run may have sent messages already: they carry DUP."""
        self.dirty = False
        self.stored = False
        """Whether the engine may have rows of it."""
        self._host = host
        self._parked = position
        self._cursor: Cursor | None = None
        self._resend: dict[int, int] = {}
        """What this connection has not been sent again yet: packet identifier to seq, in the order of seqs."""
        self._read_back: dict[int, Event | None] = {}
        """The next few of these messages, by seq; None: no longer in the log."""
        self._reading = False
        self._retained: dict[str, _Walk] = {}
        """Of the subscriptions that wait for their retained messages, by filter; the first is under way."""
        self._next_id = 1
        self._matches: dict[str, Delivery[Session] | None] = {}
        self._accepts: Accepts | None = None
        """Compiled when it is needed: a client may change a thousand subscriptions one by one."""

    # -- state that outlives the connection

    @property
    def persistent(self) -> bool:
        """Whether it outlives its connection."""
        return self.expiry != 0

    @property
    def ends(self) -> int:
        """When it ends unless its client returns, µs since the epoch; 0: not as things are."""
        return self.ended + self.expiry * 1_000_000 if self.ended and self.expiry != NEVER else 0

    @property
    def position(self) -> int:
        """Every event up to this seq has been given to the client, or did not match."""
        if self.live:
            return self._host.log.committed
        return self._parked if self._cursor is None else self._cursor.position

    def save(self, group: Group) -> None:
        """Put its row into a group."""
        inflight = b"".join(
            _inflight.pack(stage, packet_id, seq)
            for stage, window in (
                (_UNACKED, self.unacked),
                (_UNRECEIVED, self.unreceived),
                (_UNCOMPLETED, self.uncompleted),
            )
            for packet_id, seq in window.items()
        )
        received = b"".join(map(_identifier.pack, self.received))
        connected = int(self.connection is not None)
        values = (self.version, self.expiry, connected, self.ended, self.position, inflight, received)
        group.put(SESSIONS, (self.client_id,), values)
        self.dirty = False
        self.stored = True

    @classmethod
    def restore(cls, host: Host, row: Row) -> Session:
        """The session that a row describes, without its subscriptions."""
        client_id, version, expiry, connected, ended, position, inflight, received = row
        assert isinstance(client_id, str)
        assert isinstance(version, int)
        assert isinstance(expiry, int)
        assert isinstance(ended, int)
        assert isinstance(position, int)
        assert isinstance(inflight, bytes)
        assert isinstance(received, bytes)
        session = cls(host, client_id, version, expiry, position)
        session.ended = ended
        session.stored = True
        windows = {_UNACKED: session.unacked, _UNRECEIVED: session.unreceived, _UNCOMPLETED: session.uncompleted}
        for stage, packet_id, seq in _inflight.iter_unpack(inflight):
            windows[stage][packet_id] = seq
        session.received = {packet_id for (packet_id,) in _identifier.iter_unpack(received)}
        if connected:
            session.dup_upto = host.log.last
        return session

    def forget(self, group: Group) -> None:
        """Delete everything that is kept of it."""
        if not self.stored:
            return
        group.delete(SESSIONS, (self.client_id,))
        for filter in self.grants:
            group.delete(SUBSCRIPTIONS, (self.client_id, filter))
        self.stored = False

    # -- connections come and go

    def attach(self, connection: Connection, window: int) -> None:
        """A client has connected: send again what is in flight, then go on from the cursor."""
        self.connection = connection
        self.rules_changed()  # they may be others for this client than for the one before
        self.version = connection.version
        self.v5 = connection.version == 5
        self.ended = 0
        self.mount = connection.listener.mount_point
        self.window = window
        self.slots = window - len(self.uncompleted)
        log = self._host.log
        self.away_upto = log.last
        sent = sorted((seq, packet_id) for w in (self.unacked, self.unreceived) for packet_id, seq in w.items())
        self._resend = {packet_id: seq for seq, packet_id in sent}  # [MQTT-4.4.0-1], [MQTT-4.6.0-1]
        for packet_id in self.uncompleted:
            self.answer(b"\x62\x02" + packet_id.to_bytes(2))
        self._cursor = self._cursor_from(self._parked)
        self._host.behind.add(self)
        self._hungry()

    def detach(self, now: int) -> None:
        """The connection is gone: from now on the session is its position."""
        if self.live:
            self.early_upto = self._host.log.last
        self._parked = self.position
        self._host.behind.discard(self)
        self.live = False
        self.connection = None
        self.ended = now
        self._resend = {}
        self._read_back = {}
        self._reading = False
        self._retained = {}
        if self._cursor is not None:
            self._cursor.close()
            self._cursor = None

    # -- subscriptions

    def subscribe(self, grant: Grant) -> None:
        """Add or replace a subscription."""
        self.grants[grant.filter] = grant
        self._filters_changed()

    def unsubscribe(self, filter: str) -> bool:
        """Remove a subscription; whether there was one."""
        found = self.grants.pop(filter, None) is not None
        if found:
            self._retained.pop(filter, None)
            self._filters_changed()
        return found

    def restore_grants(self, grants: list[Grant]) -> None:
        """Take over the subscriptions of an earlier run."""
        self.grants = {grant.filter: grant for grant in grants}
        self._filters_changed()

    def _filters_changed(self) -> None:
        self._matches.clear()
        self._accepts = None
        if self._cursor is not None:
            self._hungry()

    def _cursor_from(self, position: int) -> Cursor:
        if self._accepts is None:
            self._accepts = compile_filters(tuple(self.grants))
        return self._host.log.cursor(position, self._accepts, self._hungry)

    def _hungry(self) -> None:
        if self.connection is not None:
            self.connection.hungry()

    def denies(self, topic: str) -> bool:
        """Whether rules keep this topic from the client that is connected."""
        connection = self.connection
        if connection is None or connection.rules is None:
            return False
        return not connection.rules.may_receive(connection.who, topic)

    def rules_changed(self) -> None:
        """Rules may say otherwise than they did."""
        self._matches.clear()

    def _match(self, topic: str) -> Delivery[Session] | None:
        found = self._matches.get(topic)
        if found is None and topic not in self._matches:
            if len(self._matches) >= _MATCHES_KEPT:
                self._matches.clear()
            grants = [g for g in self.grants.values() if matches(g.filter, topic)]
            found = merge(self, grants, self.denies(topic))
            self._matches[topic] = found
        return found

    # -- outbound messages

    def give(self, event: Event, delivery: Delivery[Session]) -> None:
        """One event for a live session, in log order or early."""
        connection = self.connection
        assert connection is not None
        qos = delivery.qos if delivery.qos < event.qos else event.qos
        if connection.blocked or connection.pending >= connection.limit or (qos and self.slots <= 0):
            self._fall_behind(event)
        elif delivery.plain and not event.expires and not connection.shaped:
            head, tail = self._host.frames.frame(event, self.v5, qos, False)
            if qos == 0:
                connection.send_publish(head, tail)
            else:
                self._send_numbered(event.seq, qos, head, tail)
        else:
            self._deliver(event, delivery)

    def want_retained(self, grant: Grant) -> None:
        """Give it the retained messages that there were before this subscription."""
        delivery = merge(self, [grant])
        assert delivery is not None
        log = self._host.log
        self._retained[grant.filter] = _Walk(self._host.retained.walk(grant.filter), delivery, log.committed, log.last)
        if self.live:
            self._fall_behind(None)
        else:
            self._hungry()

    def pump(self) -> None:
        """Go on reading the log while there is room; become live where it ends."""
        connection, cursor = self.connection, self._cursor
        if connection is None or cursor is None:
            return
        if self._accepts is None:
            position = cursor.position
            cursor.close()
            self._cursor = cursor = self._cursor_from(position)
        for _ in range(_STEPS):
            if self.slots <= 0 or connection.blocked or connection.pending >= connection.limit:
                cursor.release()
                self._read_back = {}
                return
            if self._resend:
                if not self._send_again():
                    return
            elif self._retained:
                self._give_retained()
            elif (event := cursor.next()) is not None:
                self._catch_up(event)
            else:
                if cursor.caught_up:
                    self._go_live()
                return
        connection.hungry()

    def _send_again(self) -> bool:
        """Send the next message again, or have it read back; False: it is on its way."""
        if self._reading:
            return False
        packet_id, seq = next(iter(self._resend.items()))
        if seq not in self._read_back:
            self._reading = True
            self._load(list(islice(self._resend.values(), min(self.slots, _SLICE))))
            return not self._reading
        event = self._read_back.pop(seq)
        del self._resend[packet_id]
        if event is not None:
            self._repeat(packet_id, event)
        else:
            self._host.dropped_gone += 1
            self._give_up(packet_id)
        return True

    def _load(self, seqs: list[int]) -> None:
        connection = self.connection

        def loaded(events: list[Event]) -> None:
            if self.connection is connection:
                self._reading = False
                self._read_back = {**dict.fromkeys(seqs), **{event.seq: event for event in events}}
                self._hungry()

        self._host.log.get(seqs, loaded)

    def _give_up(self, packet_id: int) -> None:
        """A message can't be sent again. At QoS 2 the client may hold its identifier, and must release it."""
        if self.unacked.pop(packet_id, None) is None:
            self.uncompleted[packet_id] = self.unreceived.pop(packet_id)
            self.slots -= 1
            self._release(packet_id)

    def _give_retained(self) -> None:
        """One step of the walk over the retained messages."""
        filter, walk = next(iter(self._retained.items()))
        try:
            event = next(walk.steps)
        except StopIteration:
            del self._retained[filter]
            return
        # What became the retained message later comes as a message of the subscription.
        if event is not None and event.seq <= (walk.last if event.early else walk.committed):
            if self.denies(event.topic):
                self._host.dropped_denied += 1
            else:
                self._deliver(event, walk.delivery, retained=True)

    def _fall_behind(self, event: Event | None) -> None:
        """Read the log from just before this event; None: from what has committed."""
        log = self._host.log
        if event is None or not event.early:
            self.early_upto = log.last
        else:
            self.early_upto = event.seq - 1
        position = log.committed if event is None or event.early else event.seq - 1
        self.live = False
        self.stalled = False
        self._cursor = self._cursor_from(position)
        self._host.behind.add(self)
        self._hungry()

    def _go_live(self) -> None:
        assert self._cursor is not None
        self._cursor.close()
        self._cursor = None
        self._host.behind.discard(self)
        self.live = True
        for event in self._host.log.uncommitted():
            if event.early and event.seq > self.early_upto and (delivery := self._match(event.topic)) is not None:
                if event.seq > delivery.since:
                    self.give(event, delivery)
                if not self.live:
                    break

    def check_progress(self) -> None:
        """Find out whether it has taken anything from the log since the last call."""
        self.stalled = self.position == self._seen_at
        self._seen_at = self.position

    def _catch_up(self, event: Event) -> None:
        delivery = self._match(event.topic)
        if delivery is not None and event.seq <= delivery.since:
            grants = [g for g in self.grants.values() if g.since < event.seq and matches(g.filter, event.topic)]
            delivery = merge(self, grants, delivery.denied)
        if delivery is None or (event.early and event.seq <= self.early_upto):
            return
        if (event.qos == 0 or delivery.qos == 0) and event.seq <= self.away_upto and not self._host.queue_qos0:
            self._host.dropped_away += 1
            return
        self._deliver(event, delivery, dup=event.seq <= self.dup_upto)

    def _deliver(self, event: Event, delivery: Delivery[Session], *, retained: bool = False, dup: bool = False) -> None:
        if self.mount and not event.topic.startswith(self.mount):
            return
        host = self._host
        if delivery.denied:
            host.dropped_denied += 1
            return
        if event.expires and event.expires <= host.now:  # [MQTT-3.3.2-5]
            host.dropped_expired += 1
            return
        if delivery.no_local and event.client == self.client_id:
            if delivery.own is None:
                return
            delivery = delivery.own
        qos = min(event.qos, delivery.qos)
        retain = event.retain and (retained or delivery.retain_as_published)  # [MQTT-3.3.1-12]
        dup = dup and qos == 1  # at QoS 2 it is in the session's row before it goes out: it has never gone out
        if dup or self.mount or (self.v5 and (event.expires or delivery.identifiers)):
            head, tail = self._special_frame(event, qos, retain, dup, delivery.identifiers)
        else:
            head, tail = host.frames.frame(event, self.v5, qos, retain)
        if self._fits(head, tail, qos):
            if qos == 0:
                assert self.connection is not None
                self.connection.send_publish(head, tail)
            else:
                self._send_numbered(event.seq, qos, head, tail)

    def _repeat(self, packet_id: int, event: Event) -> None:
        """Send a message again, under the identifier that it has [MQTT-3.3.1-1]."""
        if self.mount and not event.topic.startswith(self.mount):
            self._give_up(packet_id)
            return
        if self.denies(event.topic):
            self._host.dropped_denied += 1
            self._give_up(packet_id)
            return
        qos = 1 if packet_id in self.unacked else 2
        delivery = self._match(event.topic)
        retain = event.retain
        identifiers: tuple[int, ...] = ()
        if delivery is not None:
            # What is older than the subscription was sent as a retained message.
            retain = event.retain and (delivery.retain_as_published or event.seq <= delivery.since)
            identifiers = delivery.identifiers
        head, tail = self._special_frame(event, qos, retain, True, identifiers)
        if not self._fits(head, tail, qos):
            self._give_up(packet_id)
            return
        self.slots -= 1
        connection = self.connection
        assert connection is not None
        if qos == 1:
            connection.send_numbered(head, packet_id, tail)
        else:
            self._host.delivered += 1
            self.answer(head + packet_id.to_bytes(2) + tail)

    def _fits(self, head: bytes, tail: bytes, qos: int) -> bool:
        assert self.connection is not None
        largest = self.connection.max_packet_size
        if largest and len(head) + len(tail) + (2 if qos else 0) > largest:  # [MQTT-3.1.2-24], [MQTT-3.1.2-25]
            self._host.dropped_oversized += 1
            return False
        return True

    def _special_frame(
        self, event: Event, qos: int, retain: bool, dup: bool, identifiers: tuple[int, ...]
    ) -> tuple[bytes, bytes]:
        first = 0x30 | dup << 3 | qos << 1 | retain
        tail = event.payload
        if self.v5:
            properties = event.properties
            if self.mount:
                properties = seen_properties(self.mount, properties)
            if event.expires:  # [MQTT-3.3.2-6]
                left = max(1, (event.expires - self._host.now) // 1_000_000)
                properties += encode_properties(((Property.MESSAGE_EXPIRY_INTERVAL, left),))
            if identifiers:
                properties += encode_properties(tuple((Property.SUBSCRIPTION_IDENTIFIER, i) for i in identifiers))
            tail = encode_varint(len(properties)) + properties + tail
        return self._host.frames.build(event.topic.removeprefix(self.mount), first, qos, tail)

    def _send_numbered(self, seq: int, qos: int, head: bytes, tail: bytes) -> None:
        packet_id = self._next_id
        unacked = self.unacked
        while packet_id in unacked or packet_id in self.unreceived or packet_id in self.uncompleted:
            packet_id = packet_id % 65535 + 1  # [MQTT-2.2.1-4]
        self._next_id = packet_id % 65535 + 1
        self.slots -= 1
        if qos == 1:
            unacked[packet_id] = seq
            if self.expiry and not self.dirty:
                self._host.changed(self)
            connection = self.connection
            assert connection is not None
            connection.send_numbered(head, packet_id, tail)
        else:
            self.unreceived[packet_id] = seq
            self._host.delivered += 1
            if self.expiry:
                self._host.checkpoint(self)
            self.answer(head + packet_id.to_bytes(2) + tail)

    def answer(self, data: bytes) -> None:
        """Send this once everything that was checkpointed is on disk; at once where the session is not to last."""
        connection = self.connection
        assert connection is not None
        if self.expiry:
            self._host.after_commit(connection, data)
        else:
            connection.send(data)

    # -- what the client acknowledges

    def on_puback(self, packet_id: int) -> None:
        """QoS 1: the client has it."""
        if self.unacked.pop(packet_id, None) is not None:
            if self._resend:
                self._settle(packet_id)
                return
            self.slots += 1
            if self.expiry and not self.dirty:
                self._host.changed(self)

    def on_pubrec(self, packet_id: int, reason: int) -> None:
        """QoS 2: the client has it, or (reason of 0x80 and above) does not want it."""
        seq = self.unreceived.pop(packet_id, None)
        if reason >= 0x80:
            if seq is not None:
                self._settle(packet_id)
            return
        if seq is not None:
            self.uncompleted[packet_id] = seq
            if self._resend.pop(packet_id, None) is not None:
                self.slots -= 1
        elif packet_id not in self.uncompleted:
            reply = packet_id.to_bytes(2)
            self.answer(b"\x62\x03" + reply + b"\x92" if self.v5 else b"\x62\x02" + reply)
            return
        self._release(packet_id)

    def _release(self, packet_id: int) -> None:
        if self.expiry:
            self._host.checkpoint(self)
        self.answer(b"\x62\x02" + packet_id.to_bytes(2))  # [MQTT-4.3.3-4]

    def on_pubcomp(self, packet_id: int) -> None:
        """QoS 2: done; the identifier is free."""
        if self.uncompleted.pop(packet_id, None) is not None:
            self._settle(packet_id)

    def _settle(self, packet_id: int) -> None:
        """A message is done: its slot is free, if it had one on this connection."""
        if not self._resend or self._resend.pop(packet_id, None) is None:
            self.slots += 1
        if self.expiry and not self.dirty:
            self._host.changed(self)

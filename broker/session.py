"""One client's session: its subscriptions, its place in the log, and what it has not acknowledged yet.

A session is a cursor: a `Follower` of the log. Beside what it reads itself it is given what comes of its shared
subscriptions (`shares`), which are followers of their own: `shared` says which messages on their way are theirs.

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
from typing import TYPE_CHECKING, Final

from broker.follower import Follower, Host
from broker.mount import LONGEST, seen_properties
from broker.mqtt.errors import ProtocolError
from broker.mqtt.properties import NEVER, Property, encode_properties
from broker.mqtt.reason import Reason
from broker.mqtt.topic import compile_filters, matches
from broker.mqtt.wire import VARINT_MAX, encode_varint
from broker.rights import has_many_levels
from broker.router import REMEMBERED, Delivery, Grant, merge
from storage.interface import SESSIONS, SUBSCRIPTIONS, Accepts, Event, Group, Row

if TYPE_CHECKING:
    from broker.aliases import Aliases
    from broker.connection import Connection
    from broker.frames import Frame
    from broker.share import Share

_UNACKED, _UNRECEIVED, _UNCOMPLETED = 1, 2, 3
_inflight = Struct(">BHQ")
_identifier = Struct(">H")
_MATCHES_KEPT = 1024
_OF_BROKER: Final = "$SYS/"
"""What each filter begins with that matches what the broker says of itself."""
_SLICE: Final = 32
"""Messages that are read back at a time."""
_ALIAS: Final = bytes((Property.TOPIC_ALIAS,))
_SURE: Final = VARINT_MAX - 4 - LONGEST
"""Bytes of properties and payload that fit into a packet beside any topic and packet identifier."""
_MATCHED: Final = 8
"""Subscriptions that are held against a new topic in the time of another step."""
_STEPS: Final = 2000
"""Events that one turn of the loop looks at for one session."""


@dataclass(slots=True)
class _Walk:
    """The retained messages that a subscription gets: those of up to `committed`, and early ones of up to `last`."""

    steps: Iterator[Event | None]
    delivery: Delivery[Follower]
    committed: int
    last: int
    after: int
    """It begins when its connection has been sent so many packets that wait for commits: behind its SUBACK."""


class Session(Follower):
    """One client's session. Every method is called on the loop."""

    __slots__ = (
        "_compiled",
        "_long",
        "_matches",
        "_next_id",
        "_read_back",
        "_reading",
        "_resend",
        "_retained",
        "client_id",
        "dirty",
        "dup_upto",
        "ended",
        "expiry",
        "grants",
        "mount",
        "received",
        "shared",
        "shares",
        "slots",
        "stored",
        "unacked",
        "uncompleted",
        "unreceived",
        "username",
        "v5",
        "version",
        "window",
    )

    def __init__(self, host: Host, client_id: str, version: int, expiry: int, position: int) -> None:
        super().__init__(host, position)
        self.client_id = client_id
        self.username = ""
        """Whose it is; empty: nobody's in particular."""
        self.version = version
        self.v5 = version == 5
        self.expiry = expiry
        """Session expiry interval in s; 0: it ends with its connection; NEVER."""
        self.ended = 0
        """When its last connection ended, µs since the epoch; 0 while connected."""
        self.grants: dict[str, Grant] = {}
        self.shares: dict[str, Share] = {}
        """Its shared subscriptions, by filter."""
        self.shared: dict[int, Share] = {}
        """Which of them a message comes of: unacked or unreceived packet identifier to shared subscription."""
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
        self.dup_upto = 0
        """Up to here an earlier run may have sent messages already: they carry DUP."""
        self.dirty = False
        self.stored = False
        """Whether the engine may have rows of it."""
        self._resend: dict[int, int] = {}
        """What this connection has not been sent again yet: packet identifier to seq, in the order of seqs."""
        self._read_back: dict[int, Event | None] = {}
        """The next few of these messages, by seq; None: no longer in the log."""
        self._reading = False
        self._retained: dict[str, _Walk] = {}
        """Of the subscriptions that wait for their retained messages, by filter; the first is under way."""
        self._next_id = 1
        self._matches: dict[str, Delivery[Follower] | None] = {}
        self._compiled: Accepts | None = None
        """Compiled when it is needed: a client may change a thousand subscriptions one by one."""
        self._long: set[str] = set()
        """Its filters of many levels."""

    # -- state that outlives the connection

    @property
    def persistent(self) -> bool:
        """Whether it outlives its connection."""
        return self.expiry != 0

    @property
    def ends(self) -> int:
        """When it ends unless its client returns, µs since the epoch; 0: not as things are."""
        return self.ended + self.expiry * 1_000_000 if self.ended and self.expiry != NEVER else 0

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
        values = (
            self.version,
            self.expiry,
            connected,
            self.ended,
            self.position,
            inflight,
            received,
            self._shared_row(),
            self.username,
        )
        group.put(SESSIONS, (self.client_id,), values)
        self.dirty = False
        self.stored = True

    def _shared_row(self) -> bytes:
        """For each shared subscription with messages on their way: filter, U+0000, their number, packet identifiers."""
        ids: dict[Share, list[int]] = {}
        for packet_id, share in self.shared.items():
            ids.setdefault(share, []).append(packet_id)
        return b"".join(
            share.filter.encode() + b"\0" + b"".join(map(_identifier.pack, (len(found), *found)))
            for share, found in ids.items()
        )

    def restore_shared(self, row: bytes) -> None:
        """Take over which messages on their way are of shared subscriptions."""
        while row:
            filter, _, row = row.partition(b"\0")
            end = 2 + 2 * int.from_bytes(row[:2])
            share = self.shares.get(filter.decode())
            if share is not None:
                for (packet_id,) in _identifier.iter_unpack(row[2:end]):
                    self.shared[packet_id] = share
                share.expect(self)
            row = row[end:]

    @classmethod
    def restore(cls, host: Host, row: Row) -> Session:
        """The session that a row describes, without its subscriptions."""
        client_id, version, expiry, connected, ended, position, inflight, received, shared, username = row
        assert isinstance(client_id, str)
        assert isinstance(version, int)
        assert isinstance(expiry, int)
        assert isinstance(ended, int)
        assert isinstance(position, int)
        assert isinstance(inflight, bytes)
        assert isinstance(received, bytes)
        assert isinstance(shared, bytes)
        assert isinstance(username, str)
        session = cls(host, client_id, version, expiry, position)
        session.ended = ended
        session.stored = True
        session.username = username
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
        for filter in (*self.grants, *self.shares):
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
        sent = sorted((seq, packet_id) for w in (self.unacked, self.unreceived) for packet_id, seq in w.items())
        self._resend = {packet_id: seq for seq, packet_id in sent}  # [MQTT-4.4.0-1], [MQTT-4.6.0-1]
        for packet_id in self.uncompleted:
            self.answer(b"\x62\x02" + packet_id.to_bytes(2))
        self._begin()

    def detach(self, now: int) -> None:
        """The connection is gone: from now on the session is its position."""
        self._park()
        self.connection = None
        self.ended = now
        self._resend = {}
        self._read_back = {}
        self._reading = False
        self._retained = {}

    # -- subscriptions

    @property
    def subscriptions(self) -> int:
        """How many it has."""
        return len(self.grants) + len(self.shares)

    def has_long_filter(self, beside: str) -> bool:
        """Whether it has a subscription of many levels beside the one with this filter."""
        return bool(self._long - {beside})

    def hold_share(self, share: Share) -> None:
        """It is a member of a shared subscription."""
        self.shares[share.filter] = share
        self._note(share.filter)

    def drop_share(self, filter: str) -> Share | None:
        """It is a member no more; of which shared subscription it was."""
        self._long.discard(filter)
        return self.shares.pop(filter, None)

    def _note(self, filter: str) -> None:
        if has_many_levels(filter):
            self._long.add(filter)

    def granted(self, filter: str) -> Grant | None:
        """Its subscription with this filter."""
        share = self.shares.get(filter)
        return self.grants.get(filter) if share is None else share.members[self]

    def subscribe(self, grant: Grant) -> None:
        """Add or replace a subscription."""
        self.grants[grant.filter] = grant
        self._note(grant.filter)
        self._filters_changed()

    def unsubscribe(self, filter: str) -> bool:
        """Remove a subscription; whether there was one."""
        found = self.grants.pop(filter, None) is not None
        if found:
            self._long.discard(filter)
            self._retained.pop(filter, None)
            self._filters_changed()
        return found

    def restore_grants(self, grants: list[Grant]) -> None:
        """Take over the subscriptions of an earlier run."""
        self.grants = {grant.filter: grant for grant in grants}
        for filter in self.grants:
            self._note(filter)
        self._filters_changed()

    def _filters_changed(self) -> None:
        self._matches.clear()
        self._compiled = None
        if self._cursor is not None:
            self._hungry()

    def _accepts(self) -> Accepts:
        if self._compiled is None:
            self._compiled = compile_filters(tuple(self.grants))
        return self._compiled

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
        for share in self.shares.values():
            share.forget()

    def _match(self, topic: str) -> Delivery[Follower] | None:
        found = self._matches.get(topic)
        if found is None and topic not in self._matches:
            grants = [g for g in self.grants.values() if matches(g.filter, topic)]
            found = merge(self, grants, self.denies(topic))
            if len(topic) <= REMEMBERED:
                if len(self._matches) >= _MATCHES_KEPT:
                    self._matches.clear()
                self._matches[topic] = found
        return found

    # -- outbound messages

    def give(self, event: Event, delivery: Delivery[Follower]) -> None:
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

    def tell(self, event: Event, delivery: Delivery[Follower]) -> bool:
        if not self.has_room(0):
            return False
        self._deliver(event, delivery)
        return True

    def tell_later(self) -> None:
        for grant in self.grants.values():
            if grant.filter.startswith(_OF_BROKER):
                self.want_retained(grant)

    def want_retained(self, grant: Grant, after: int = 0) -> None:
        """Give it the retained messages that there were before this subscription.

        They begin when its connection has been sent so many packets that wait for commits.
        """
        delivery: Delivery[Follower] | None = merge(self, [grant])
        assert delivery is not None
        log = self._host.log
        walk = _Walk(self._host.retained.walk(grant.filter), delivery, log.committed, log.last, after)
        self._retained[grant.filter] = walk
        if self.live:
            self._fall_behind(None)
        else:
            self._hungry()

    def pump(self) -> None:
        """Go on reading the log while there is room; become live where it ends. So, too, its shared subscriptions."""
        if not self.live:
            self._pump()
        for share in self.shares.values():
            if not share.live:
                share.pump()

    def _pump(self) -> None:
        if self._compiled is None and self._cursor is not None:
            self._read_from(self._cursor.position)
        connection, cursor = self.connection, self._cursor
        if connection is None or cursor is None:
            return
        steps = _STEPS
        while steps > 0:
            steps -= 1
            if self.slots <= 0 or connection.blocked or connection.pending >= connection.limit:
                cursor.release()
                self._read_back = {}
                return
            if self._resend:
                if not self._send_again():
                    return
            elif self._retained:
                if connection.kept < next(iter(self._retained.values())).after:
                    cursor.release()
                    return  # its SUBACK goes first, and with it the connection is touched
                self._give_retained()
            elif (event := cursor.next()) is not None:
                if event.topic not in self._matches:
                    steps -= len(self.grants) // _MATCHED
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
        self.shared.pop(packet_id, None)
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

    def _deliver(
        self, event: Event, delivery: Delivery[Follower], *, retained: bool = False, dup: bool = False
    ) -> None:
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
        retain = event.retain and (retained or delivery.retain_as_published)  # [MQTT-3.3.1-12]
        self._send(event, delivery, retain, dup)

    def _send(
        self, event: Event, delivery: Delivery[Follower], retain: bool, dup: bool, share: Share | None = None
    ) -> bool:
        """Send a message for the first time on this connection; False: its client does not take what is so large."""
        qos = min(event.qos, delivery.qos)
        dup = dup and qos == 1  # at QoS 2 it is in the session's row before it goes out: it has never gone out
        connection = self.connection
        assert connection is not None
        # A QoS 2 message may wait for a commit while others overtake it: it has no alias.
        if connection.aliases is not None and (qos < 2 or not (self.expiry or share)):
            head, tail = self._aliased_frame(event, qos, retain, dup, delivery.identifiers, connection.aliases)
        elif dup or self.mount or (self.v5 and (event.expires or delivery.identifiers)):
            head, tail = self._special_frame(event, qos, retain, dup, delivery.identifiers)
        else:
            head, tail = self._host.frames.frame(event, self.v5, qos, retain)
        if not self._fits(head, tail, qos):
            self._host.dropped_oversized += 1
            return False
        if qos == 0:
            connection.send_publish(head, tail)
        else:
            self._send_numbered(event.seq, qos, head, tail, share)
        return True

    def has_room(self, qos: int) -> bool:
        """Whether it can be given a message of a shared subscription at this QoS now."""
        connection = self.connection
        return (
            connection is not None
            and not connection.blocked
            and connection.pending < connection.limit
            and not (qos and (self.slots <= 0 or self._resend))
        )

    def give_shared(self, event: Event, delivery: Delivery[Session], share: Share) -> bool:
        """One event of a shared subscription, where there is room; False: its client does not take what is so large."""
        connection = self.connection
        assert connection is not None
        if not delivery.plain or event.expires or connection.shaped:
            return self._send(event, delivery, event.retain and delivery.retain_as_published, False, share)
        qos = delivery.qos if delivery.qos < event.qos else event.qos
        head, tail = self._host.frames.frame(event, self.v5, qos, False)
        if qos == 0:
            connection.send_publish(head, tail)
        else:
            self._send_numbered(event.seq, qos, head, tail, share)
        return True

    def release(self, share: Share) -> list[int]:
        """Give back what is of this shared subscription and was sent at QoS 1 without an answer: its seqs.

        What was sent at QoS 2 is this client's and nobody else's [MQTT-4.8.2-4] [MQTT-4.8.2-5].
        """
        ids = [packet_id for packet_id, its in self.shared.items() if its is share and packet_id in self.unacked]
        for packet_id in ids:
            del self.shared[packet_id]
        seqs = [self.unacked.pop(packet_id) for packet_id in ids]
        if ids and self.expiry:
            self._host.changed(self)
        return seqs

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
        share = self.shared.get(packet_id)
        delivery = self._match(event.topic) if share is None else share.delivery_of(self)
        retain = event.retain
        identifiers: tuple[int, ...] = ()
        if delivery is not None:
            # What is older than the subscription was sent as a retained message.
            retain = event.retain and (delivery.retain_as_published or event.seq <= delivery.since)
            identifiers = delivery.identifiers
        head, tail = self._special_frame(event, qos, retain, True, identifiers)
        if not self._fits(head, tail, qos):
            self._host.dropped_oversized += 1
            self._give_up(packet_id)
            return
        self.slots -= 1
        connection = self.connection
        assert connection is not None
        if qos == 1:
            connection.send_numbered(head, packet_id, tail)
        else:
            self._host.traffic.publish_whole(len(tail))
            self.answer(head + packet_id.to_bytes(2) + tail)

    def _fits(self, head: bytes, tail: bytes, qos: int) -> bool:
        assert self.connection is not None
        largest = self.connection.max_packet_size
        # [MQTT-3.1.2-24], [MQTT-3.1.2-25]
        return bool(head) and not (largest and len(head) + len(tail) + (2 if qos else 0) > largest)

    def _aliased_frame(
        self, event: Event, qos: int, retain: bool, dup: bool, identifiers: tuple[int, ...], aliases: Aliases
    ) -> Frame:
        """A frame in which an alias stands for the topic, or is set, unless there is no room for setting it."""
        alias = aliases.find(event.topic)
        if alias:
            return self._special_frame(event, qos, retain, dup, identifiers, alias, known=True)
        alias = aliases.offer(event.topic)
        if alias:
            head, tail = self._special_frame(event, qos, retain, dup, identifiers, alias)
            if self._fits(head, tail, qos):
                aliases.set(event.topic, alias)
                return head, tail
        return self._special_frame(event, qos, retain, dup, identifiers)

    def _special_frame(
        self,
        event: Event,
        qos: int,
        retain: bool,
        dup: bool,
        identifiers: tuple[int, ...],
        alias: int = 0,
        *,
        known: bool = False,
    ) -> Frame:
        """A frame for this client alone; empty: no packet can be so large. A `known` alias goes without the topic."""
        first = 0x30 | dup << 3 | qos << 1 | retain
        topic = "" if known else event.topic.removeprefix(self.mount)
        tail = event.payload
        if self.v5:
            properties = event.properties
            if self.mount:
                properties = seen_properties(self.mount, properties)
            if event.expires:  # [MQTT-3.3.2-6]
                left = max(1, -((self._host.now - event.expires) // 1_000_000))  # whole seconds that it has waited
                properties += encode_properties(((Property.MESSAGE_EXPIRY_INTERVAL, left),))
            if identifiers:
                properties += encode_properties(tuple((Property.SUBSCRIPTION_IDENTIFIER, i) for i in identifiers))
            if alias:
                properties += _ALIAS + alias.to_bytes(2)
            tail = encode_varint(len(properties)) + properties + tail
        if len(tail) > _SURE and len(tail) + len(topic.encode()) + 4 > VARINT_MAX:
            return b"", b""
        return self._host.frames.build(topic, first, qos, tail)

    def _send_numbered(self, seq: int, qos: int, head: bytes, tail: bytes, share: Share | None = None) -> None:
        packet_id = self._next_id
        unacked = self.unacked
        while packet_id in unacked or packet_id in self.unreceived or packet_id in self.uncompleted:
            packet_id = packet_id % 65535 + 1  # [MQTT-2.2.1-4]
        self._next_id = packet_id % 65535 + 1
        self.slots -= 1
        if share is not None:
            self.shared[packet_id] = share
        if qos == 1:
            unacked[packet_id] = seq
            if self.expiry and not self.dirty:
                self._host.changed(self)
            connection = self.connection
            assert connection is not None
            connection.send_numbered(head, packet_id, tail)
        else:
            self.unreceived[packet_id] = seq
            self._host.traffic.publish_whole(len(tail))
            data = head + packet_id.to_bytes(2) + tail
            if self.expiry or (share is not None and share.stored):
                assert self.connection is not None
                self._host.checkpoint(self)
                self._host.after_commit(self.connection, data)
            else:
                self.answer(data)

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
            if self.shared:
                self.shared.pop(packet_id, None)
            if self._resend:
                self._settle(packet_id)
                return
            self.slots += 1
            if self.expiry and not self.dirty:
                self._host.changed(self)
        elif packet_id in self.unreceived or packet_id in self.uncompleted:
            raise _out_of_place("a PUBACK for a QoS 2 message")

    def on_pubrec(self, packet_id: int, reason: int) -> None:
        """QoS 2: the client has it, or (reason of 0x80 and above) does not want it."""
        seq = self.unreceived.pop(packet_id, None)
        if seq is None and packet_id in self.unacked:
            raise _out_of_place("a PUBREC for a QoS 1 message")
        if seq is not None and self.shared:
            self.shared.pop(packet_id, None)  # also where it is refused: nobody else gets it [MQTT-4.8.2-6]
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
        elif packet_id in self.unacked or packet_id in self.unreceived:
            raise _out_of_place("a PUBCOMP for a message without a PUBREL")

    def _settle(self, packet_id: int) -> None:
        """A message is done: its slot is free, if it had one on this connection."""
        if not self._resend or self._resend.pop(packet_id, None) is None:
            self.slots += 1
        if self.expiry and not self.dirty:
            self._host.changed(self)


def _out_of_place(what: str) -> ProtocolError:
    return ProtocolError(Reason.PROTOCOL_ERROR, what)  # [MQTT-4.13.1-1]

"""One client's session: its subscriptions, its place in the log, and what comes of both.

A session is a cursor: a `Follower` of the log. What its client was sent and has not acknowledged yet is its `Window`.
Beside what it reads itself it is given what comes of its shared subscriptions (`shares`), which are followers of their
own.

Whatever has to be sent waits for room in this order: what was sent before on another connection, retained messages for
new subscriptions, the log. What outlives the process is one row (`session_row`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.follower import Follower, Host
from broker.framing import aliased_frame, fits, special_frame
from broker.mqtt.properties import NEVER
from broker.mqtt.topic import compile_filters, matches
from broker.retained_walk import Walk, Walks
from broker.rights import has_many_levels
from broker.router import REMEMBERED, Delivery, Grant, merge
from broker.window import Window
from storage.interface import SESSIONS, SUBSCRIPTIONS, Accepts, Event, Group

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.replay import Replay
    from broker.share import Share

_MATCHES_KEPT = 1024
_OF_BROKER: Final = "$SYS/"
"""What each filter begins with that matches what the broker says of itself."""
_MATCHED: Final = 8
"""Subscriptions that are held against a new topic in the time of another step."""
_STEPS: Final = 1000
"""Events that one turn of the loop looks at for one session."""


class Session(Window):
    """One client's session. Every method is called on the loop."""

    __slots__ = (
        "_compiled",
        "_long",
        "_matches",
        "_walks",
        "client_id",
        "dup_upto",
        "ended",
        "grants",
        "received",
        "replays",
        "shares",
        "stored",
        "username",
        "version",
    )

    def __init__(self, host: Host, client_id: str, version: int, expiry: int, position: int) -> None:
        super().__init__(host, expiry, position)
        self.client_id = client_id
        self.username = ""
        """Whose it is; empty: nobody's in particular."""
        self.version = version
        self.v5 = version == 5
        self.ended = 0
        """When its last connection ended, µs since the epoch; 0 while connected."""
        self.grants: dict[str, Grant] = {}
        self.shares: dict[str, Share] = {}
        """Its shared subscriptions, by filter."""
        self.replays: dict[str, Replay] = {}
        """What is being replayed to its client, by filter."""
        self.received: set[int] = set()
        """Inbound QoS 2 packet identifiers, from PUBLISH until PUBREL."""
        self.dup_upto = 0
        """Up to here an earlier run may have sent messages already: they carry DUP."""
        self.stored = False
        """Whether the engine may have rows of it."""
        self._walks = Walks()
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

    def _changed(self) -> None:
        self._host.changed(self)

    def _checkpoint(self) -> None:
        self._host.checkpoint(self)

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
        self._open(window)
        self._begin()

    def detach(self, now: int) -> None:
        """The connection is gone: from now on the session is its position."""
        self._park()
        self.connection = None
        self.ended = now
        self._close()
        self._walks.disconnected()

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
        if self._walks:
            self._walks.change(grant.filter, self._alone(grant))
        self._filters_changed()

    def unsubscribe(self, filter: str) -> bool:
        """Remove a subscription; whether there was one."""
        found = self.grants.pop(filter, None) is not None
        if found:
            self._long.discard(filter)
            self._walks.drop(filter)
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
        for replay in self.replays.values():
            replay.forget()

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

    def _alone(self, grant: Grant) -> Delivery[Follower]:
        """How it gets messages where there is this subscription alone."""
        delivery: Delivery[Follower] | None = merge(self, [grant])
        assert delivery is not None
        return delivery

    def _delivery_of(self, packet_id: int, topic: str) -> Delivery[Follower] | None:
        share = self.shared.get(packet_id)
        return self._match(topic) if share is None else share.delivery_of(self)

    # -- messages that come by

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

    def send_replayed(self, seq: int, head: bytes, tail: bytes) -> None:
        """A message of a replay at QoS 1, whose frame is made."""
        self._send_numbered(seq, 1, head, tail)

    def catch_early(self, grant: Grant) -> None:
        """Give it what has gone out before it commits, and before there was this subscription. It has to be live."""
        for event in self._host.log.uncommitted():
            if not self.live:
                return
            if event.early and matches(grant.filter, event.topic):
                others = [g for g in self.grants.values() if g is not grant and matches(g.filter, event.topic)]
                delivery = self._match(event.topic)
                if delivery is not None and not others:
                    self.give(event, delivery)

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
        host = self._host
        steps = host.retained.walk(grant.filter)
        self._walks.put(grant.filter, Walk(steps, self._alone(grant), host.log.committed, host.log.last, after))
        if self.live:
            self._fall_behind(None)
        else:
            self._hungry()

    # -- messages that it reads

    def go_on(self) -> None:
        """Have it, and what reads the log for it, go on in the next turn."""
        self._hungry()

    @property
    def reads(self) -> bool:
        """Whether it, or something for it, may have something to read from the log."""
        return not self.live or bool(self.shares or self.replays)

    def pump(self) -> int:
        """Go on reading the log while there is room; become live where it ends. How many steps that took.

        So, too, its shared subscriptions and its replays.
        """
        steps = 1
        if not self.live:
            steps += _STEPS - self._pump()
        for share in self.shares.values():
            if not share.live:
                steps += share.pump()
        if self.replays and self.connection is not None:
            self._host.replays.pump(self)
        return steps

    def _pump(self) -> int:
        """The same for its own; how many steps are left."""
        if self._compiled is None and self._cursor is not None:
            self._read_from(self._cursor.position)
        connection, cursor = self.connection, self._cursor
        if connection is None or cursor is None:
            return _STEPS
        steps = _STEPS
        while steps > 0:
            steps -= 1
            if self.slots <= 0 or connection.blocked or connection.pending >= connection.limit:
                cursor.release()
                self._read_back.clear()
                return steps
            if self._resend:
                if not self._send_again():
                    return steps
            elif self._walks:
                if connection.kept < self._walks.first.after:
                    cursor.release()
                    return steps  # its SUBACK goes first, and with it the connection is touched
                self._give_retained()
            elif (event := cursor.next()) is not None:
                if event.topic not in self._matches:
                    steps -= len(self.grants) // _MATCHED
                self._catch_up(event)
            else:
                if cursor.caught_up:
                    self._go_live()
                return steps
        connection.hungry()
        return 0

    def _give_retained(self) -> None:
        """One step of the walk over the retained messages."""
        walk = self._walks.first
        event = self._walks.step()
        if event is None or not (walk.gives(event) or self._has_missed(event)):
            return
        if self.denies(event.topic):
            self._host.dropped_denied += 1
        else:
            self._deliver(event, walk.delivery, retained=True)

    def _has_missed(self, event: Event) -> bool:
        """Whether a message that was retained since came while it was away, so that it gets it in no other way."""
        delivery = self._match(event.topic)
        return delivery is not None and self._misses(event, delivery)

    def _misses(self, event: Event, delivery: Delivery[Follower]) -> bool:
        """Whether it was away when this message came, which is not made up for."""
        return (event.qos == 0 or delivery.qos == 0) and event.seq <= self.away_upto and not self._host.queue_qos0

    def _catch_up(self, event: Event) -> None:
        delivery = self._match(event.topic)
        if delivery is not None and event.seq <= delivery.since:
            grants = [g for g in self.grants.values() if g.since < event.seq and matches(g.filter, event.topic)]
            delivery = merge(self, grants, delivery.denied)
        if delivery is None or (event.early and event.seq <= self.early_upto):
            return
        if self._misses(event, delivery):
            self._host.dropped_away += 1
            return
        self._deliver(event, delivery, dup=event.seq <= self.dup_upto)

    # -- out

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
        host, connection = self._host, self.connection
        assert connection is not None
        qos = min(event.qos, delivery.qos)
        dup = dup and qos == 1  # at QoS 2 it is in the session's row before it goes out: it has never gone out
        identifiers = delivery.identifiers
        # A QoS 2 message may wait for a commit while others overtake it: it has no alias.
        if connection.aliases is not None and (qos < 2 or not (self.expiry or share)):
            head, tail = aliased_frame(host, connection, event, qos, retain, dup, identifiers)
        elif dup or self.mount or (self.v5 and (event.expires or identifiers)):
            head, tail = special_frame(host, connection, event, qos, retain, dup, identifiers)
        else:
            head, tail = host.frames.frame(event, self.v5, qos, retain)
        if not fits(connection, head, tail, qos):
            host.dropped_oversized += 1
            return False
        if qos == 0:
            connection.send_publish(head, tail)
        else:
            self._send_numbered(event.seq, qos, head, tail, share)
        return True

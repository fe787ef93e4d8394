"""A shared subscription: one follower of the log whose messages each go to one of its members.

`$share/<name>/<filter>` is one subscription however many sessions hold it, with one position in the log. A message
goes to that member, of those with room for it, who has the fewest on their way. Where nobody has room it waits in the
log, as for a slow session; where no member is connected, too, as long as one of them is to return.

What a member was sent at QoS 1 and has not acknowledged when its connection ends is given to another that is there, or
to the first that comes, if that is not the member itself: then it is sent again as to any session. What was sent at
QoS 2 stays with its member, and ends with that member's session.

What outlives the process, where a member's session does, is one row: the position, and what waits to be given to
another member. It is always written together with the rows of its members that have changed, so that each event up to
the position is acknowledged, or in flight in one of these rows. What is in flight to members whose sessions die with
the process counts as what waits.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from struct import Struct
from typing import TYPE_CHECKING, Final

from broker.follower import Follower, Host
from broker.mqtt.topic import compile_filters, matches, parse_share
from broker.read_back import ReadBack
from broker.router import REMEMBERED, Delivery, Grant, merge
from storage.interface import SHARES, Accepts, Event, Group

if TYPE_CHECKING:
    from broker.session import Session

_seq = Struct(">Q")
_TOPICS_KEPT: Final = 1024
_COMPARED: Final = 32
"""Members with room that are compared; where there are more, another part of them is compared each time."""
_STEPS: Final = 1000
"""Events that one turn of the loop looks at for one shared subscription."""

_Deliveries = tuple[Delivery["Session"], ...]


class Share(Follower):
    """One shared subscription. Every method is called on the loop."""

    __slots__ = (
        "_deliveries",
        "_grant",
        "_has_row",
        "_held",
        "_here",
        "_lost",
        "_next",
        "_passing",
        "_patient",
        "_plan",
        "_read_back",
        "_returned",
        "changed",
        "filter",
        "members",
        "stored",
        "unsaved",
    )

    def __init__(self, host: Host, filter: str, position: int) -> None:
        super().__init__(host, position)
        share = parse_share(filter)
        assert share is not None
        self.filter = filter
        self.members: dict[Session, Grant] = {}
        self.unsaved: set[Session] = set()
        """Members whose rows have changed: they are written with its own."""
        self._here: dict[Session, None] = {}
        """Members that are connected."""
        self._passing: set[Session] = set()
        """Members whose sessions end with their connections."""
        self.stored = False
        """Whether a member's session, and so this, is to outlive the process."""
        self.changed = False
        """Whether its row is not what it should be."""
        self._has_row = False
        self._grant = Grant(share[1], 0, False, False, 0, position)
        plan = merge(self, [self._grant])
        assert plan is not None
        self._plan: Delivery[Follower] = plan
        self._deliveries: dict[str, _Deliveries] = {}
        """By topic: the connected members that may be given it, and how."""
        self._next = 0
        """Which of them is looked at first."""
        self._held: Event | None = None
        """An event that the cursor has given and that nobody had room for."""
        self._returned: list[int] = []
        """A heap of seqs that a member was given and that are to be given to another."""
        self._read_back = ReadBack(host.log)
        """The next few of them."""
        self._patient = False
        """It is not to be asked to go on by what it does itself."""
        self._lost: dict[Session, None] = {}
        """Members that are away, and may have unacknowledged messages of it."""

    @property
    def grant(self) -> Grant:
        """What the router is told: the filter behind the share's name."""
        return self._grant

    def _at(self) -> int:
        return super()._at() if self._held is None else self._held.seq - 1

    def denies(self, topic: str) -> bool:
        """Never: it is members who are denied."""
        return False

    # -- members

    def join(self, session: Session, grant: Grant) -> None:
        """A connected session has subscribed, or changed how."""
        self.members[session] = grant
        if session.dirty:
            self.unsaved.add(session)
        self._enter(session)

    def restore(self, session: Session, grant: Grant) -> None:
        """A session of an earlier run is a member."""
        self.members[session] = grant
        self.stored = self._has_row = True

    def expect(self, session: Session) -> None:
        """A session of an earlier run may have unacknowledged messages of it."""
        self._lost[session] = None

    def quit(self, session: Session) -> None:
        """A session has unsubscribed. What it was sent it keeps."""
        self._leave(session)
        self.forget()
        self._attend()

    def connected(self, session: Session) -> None:
        """A member is there again. What others were sent and can't acknowledge now is for those who are there."""
        self._lost.pop(session, None)
        self._enter(session)
        for member in list(self._lost):
            self._take_back(member)
        self._lost.clear()

    def disconnected(self, session: Session) -> None:
        """The connection of a member is gone."""
        self._here.pop(session, None)
        self._note_whether_it_lasts(session)
        self.forget()
        self._attend()
        if self._here:
            self._take_back(session)
        elif session.persistent:
            self._lost[session] = None

    def ended(self, session: Session) -> None:
        """The session of a member is over."""
        self._leave(session)
        self._take_back(session)
        self._attend()

    def _enter(self, session: Session) -> None:
        """A member is there."""
        self._here[session] = None
        self._note_whether_it_lasts(session)
        self.forget()
        self._attend()

    def _note_whether_it_lasts(self, session: Session) -> None:
        """A client may say otherwise with each CONNECT and DISCONNECT."""
        if session.persistent:
            self._passing.discard(session)
        else:
            self._passing.add(session)

    def _leave(self, session: Session) -> None:
        """A session is a member no more."""
        self.members.pop(session, None)
        self.unsaved.discard(session)
        self._here.pop(session, None)
        self._passing.discard(session)
        self._lost.pop(session, None)

    def forget(self) -> None:
        """Members, or what they may be given, have changed."""
        self._deliveries.clear()

    def delivery_of(self, session: Session) -> Delivery[Follower] | None:
        """How a member gets its messages; None where it is a member no more."""
        grant = self.members.get(session)
        return None if grant is None else merge(session, [grant])

    def _attend(self) -> None:
        """Read the log while a member is connected, and only then."""
        stored = len(self.members) > len(self._passing)
        self.changed = self.changed or stored != self.stored
        self.stored = stored
        if self._here and not self.live and self._cursor is None:
            self._begin()
        elif not self._here and (self.live or self._cursor is not None):
            self._park()
            self._held = None
            self._read_back.stop()

    def _take_back(self, member: Session) -> None:
        """Have what a member can't acknowledge given to another."""
        for seq in member.release(self):
            heappush(self._returned, seq)
            self.changed = True
        if self._returned and self.live:
            self._fall_behind(None)
        elif self._returned:
            self._hungry()

    # -- events

    def give(self, event: Event, delivery: Delivery[Follower]) -> None:
        """One event, while it is live: in log order, or early."""
        if not self._hand_out(event):
            self._fall_behind(event)

    def tell(self, event: Event, delivery: Delivery[Follower]) -> bool:
        if not self._hand_out(event):
            self._host.dropped_full += 1
        return True

    def pump(self) -> int:
        """Go on reading the log while a member has room; become live where it ends. How many steps that took."""
        cursor = self._cursor
        if cursor is None:
            return 0
        for step in range(_STEPS):
            if self._cursor is not cursor:  # an error of ours has ended the last member's connection
                return step
            if self._returned:
                if not self._give_returned():
                    return step
                continue
            event = self._held or cursor.next()
            if event is None:
                if cursor.caught_up:
                    self._catch_last()
                return step
            if not self._catch_up(event):
                self._held = event
                cursor.release()
                return step
            self._held = None
        self._hungry()
        return _STEPS

    def _catch_last(self) -> None:
        """Become live. Where nobody has room for what has gone out early, that is tried again once somebody has."""
        self._patient = True
        try:
            self._go_live()
        finally:
            self._patient = False

    def _catch_up(self, event: Event) -> bool:
        if event.early and event.seq <= self.early_upto:
            return True
        if event.qos == 0 and event.seq <= self.away_upto and not self._host.queue_qos0:
            self._host.dropped_away += 1
            return True
        return self._hand_out(event)

    def _give_returned(self) -> bool:
        """Give the oldest of what has come back; False: it is being read, or nobody has room."""
        seq = self._returned[0]
        if seq not in self._read_back:
            return self._read_back.ask(sorted(self._returned), self._hungry)
        event = self._read_back[seq]
        if event is None:
            self._host.dropped_gone += 1
        elif not self._hand_out(event):
            return False
        heappop(self._returned)
        self._read_back.drop(seq)
        self.changed = True
        return True

    def _hand_out(self, event: Event) -> bool:
        """Give an event to the member that has the fewest on their way; False: nobody has room."""
        host = self._host
        if event.expires and event.expires <= host.now:  # [MQTT-3.3.2-5]
            host.dropped_expired += 1
            return True
        deliveries = self._deliveries.get(event.topic)
        if deliveries is None:
            deliveries = self._find(event.topic)
        if not deliveries:
            host.dropped_denied += 1
            return True
        self.changed = True
        while deliveries:
            delivery = self._choose(deliveries, event.qos)
            if delivery is None:
                return False
            session = delivery.session
            try:
                if session.give_shared(event, delivery, self):
                    return True
            except Exception:  # noqa: BLE001 - handed to `crash`, which logs it with its stack
                host.crash(session.connection)
                return True
            deliveries = tuple(each for each in deliveries if each is not delivery)
        return True

    def _choose(self, deliveries: _Deliveries, qos: int) -> Delivery[Session] | None:
        """Whom to give a message: of those with room who has the fewest on their way, then the fewest bytes unsent."""
        count = len(deliveries)
        best: Delivery[Session] | None = None
        fewest = compared = 0
        for index in range(self._next, self._next + count):
            delivery = deliveries[index % count]
            session = delivery.session
            connection = session.connection
            if connection is None or not session.has_room(min(qos, delivery.qos)):
                continue
            load = (session.window - session.slots << 32) + connection.pending
            if best is None or load < fewest:
                best, fewest = delivery, load
                self._next = (index + 1) % count
            compared += 1
            if compared == _COMPARED:
                break
        return best

    def _find(self, topic: str) -> _Deliveries:
        found = tuple(
            delivery
            for session in self._here
            if topic.startswith(session.mount) and not session.denies(topic)
            if (delivery := merge(session, [self.members[session]])) is not None
        )
        if len(topic) <= REMEMBERED:
            if len(self._deliveries) >= _TOPICS_KEPT:
                self._deliveries.clear()
            self._deliveries[topic] = found
        return found

    def _accepts(self) -> Accepts:
        return compile_filters((self._grant.filter,))

    def _match(self, topic: str) -> Delivery[Follower] | None:
        return self._plan if matches(self._grant.filter, topic) else None

    def _hungry(self) -> None:
        if self._patient:
            return
        for member in self._here:
            if member.connection is not None:
                member.connection.hungry()
                return

    # -- what outlives the process

    def save(self, group: Group) -> None:
        """Put its row into a group. The rows of members that have changed have to go with it."""
        self.changed = False
        if not self.stored:
            if self._has_row:
                group.delete(SHARES, (self.filter,))
            self._has_row = False
            return
        self._has_row = True
        waiting = list(self._returned)
        for member in self._passing:
            waiting += [
                member.unacked[packet_id]
                for packet_id, share in member.shared.items()
                if share is self and packet_id in member.unacked
            ]
        group.put(SHARES, (self.filter,), (self.position, b"".join(map(_seq.pack, sorted(waiting)))))

    def restore_row(self, position: int, returned: bytes) -> None:
        """Take up where an earlier run was."""
        self._parked = position
        self._returned = [seq for (seq,) in _seq.iter_unpack(returned)]
        heapify(self._returned)

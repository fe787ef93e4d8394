"""One replay: a client reads what is in the log, from a place that it has named, and on into what comes.

A replay is a cursor and nothing else. It is in no tree of subscriptions and nothing is queued for it: it reads what has
committed, in log order, and where the log ends it waits for the next commit. So there is no seam between history and
the present: each event comes once, whether it was stored years ago or a moment ago.

It takes of its session's window and of its connection's buffer no more than a part, so that what else the client has
subscribed to still finds room; what it can't take waits in the log. It ends with its connection.

How it gives an event:

- Its topic is the one that the client has subscribed to: `$replay/<words>/` stands before it [MQTT-3.3.2-3], unless it
  was asked for with a plain filter.
- With MQTT 5 it says by two user properties, behind those of the message, which event it is: `seq`, and `time`, that
  of its ingest.
- At QoS 1 at most, and at QoS 0 where the session outlives the connection: what is unacknowledged then would have to be
  sent again by a session that has no replay any more.
- Also where its message expiry interval is over: that is about delivery, and this is history.

Where it was asked for with a plain filter it hands over, once it has caught up, to the subscription that it looks like.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from sys import maxsize
from typing import TYPE_CHECKING, Final

from broker.framing import fits
from broker.mount import LONGEST, seen_properties
from broker.mqtt.properties import Property, encode_properties
from broker.mqtt.topic import compile_filters
from broker.mqtt.wire import VARINT_MAX, encode_string, encode_varint
from broker.read_back import ReadBack
from broker.router import REMEMBERED, Grant
from storage.interface import Accepts, Cursor, Event

if TYPE_CHECKING:
    from broker.follower import Host
    from broker.replay_request import Request
    from broker.session import Session

MOST_PICKED: Final = 100_000
"""Events that a replay of the last of each topic begins with at most: the newest ones."""
_TOPICS_KEPT: Final = 1024
_SECOND: Final = 1_000_000
_SEQ: Final = bytes((Property.USER_PROPERTY,)) + encode_string("seq")
_TIME: Final = bytes((Property.USER_PROPERTY,)) + encode_string("time") + (27).to_bytes(2)
"""What stands before a time of 27 characters."""
_EPOCH: Final = datetime(1970, 1, 1)
"""UTC, which is said by the Z behind a time."""


class Replay:
    """One replay of a connected session. Every method is called on the loop.

    `grant` says how the client has subscribed, `prefix` what stands before topics (empty: it hands over).
    """

    __slots__ = (
        "_base",
        "_cursor",
        "_first_ts",
        "_held",
        "_host",
        "_identifiers",
        "_names",
        "_picked",
        "_prefix",
        "_qos",
        "_read_back",
        "_request",
        "_second",
        "_session",
        "_upto",
        "due",
        "grant",
        "holds",
        "over",
    )

    def __init__(self, host: Host, session: Session, grant: Grant, prefix: str, request: Request) -> None:
        self.grant = grant
        self.over = False
        """It gives nothing any more."""
        self.due = 0
        """When it goes on, µs since the epoch, where it goes on with the speed of what happened; 0: now."""
        self.holds = False
        """It may hold events, since something else than reading keeps it from going on."""
        self._host = host
        self._session = session
        self._request = request
        self._prefix = prefix
        self._qos = 0 if session.expiry else min(1, grant.qos)
        self._identifiers = b""
        if grant.identifier:
            self._identifiers = encode_properties(((Property.SUBSCRIPTION_IDENTIFIER, grant.identifier),))
        self._first_ts = request.time
        self._upto = request.to or maxsize
        """It ends behind this seq."""
        if request.until_now:
            self._upto = min(self._upto, host.log.committed)
        self._cursor: Cursor | None = None
        self._picked: list[int] = []
        """Seqs that come before what the cursor reads, in descending order."""
        self._read_back = ReadBack(host.log)
        self._held: Event | None = None
        """An event that was read and that is still to be given."""
        self._base: tuple[int, int] | None = None
        """When the first event was given, and when it had come."""
        self._names: dict[str, bytes] = {}
        """What stands in packets for a topic; empty where it is not for this client."""
        self._second = (0, b"")
        """The second in which the last event came, and how it is written."""

    @property
    def qos(self) -> int:
        """At which QoS it gives at most."""
        return self._qos

    @property
    def hands_over(self) -> bool:
        """Whether an ordinary subscription follows."""
        return not self._prefix

    # -- where it begins, and ends

    def begin(self) -> None:
        """Find where the first event is."""
        log, request = self._host.log, self._request
        if request.last:
            position = log.committed

            def found(seqs: list[int]) -> None:
                self._picked = seqs[::-1]
                self._read_from(position)

            log.latest(self._accepts(), request.last, MOST_PICKED, found)
        elif request.time:
            log.seek(request.time, self._read_from)
        else:
            self._read_from(max(0, request.seq - 1))

    def _accepts(self) -> Accepts:
        return compile_filters((self.grant.filter if self.hands_over else self.grant.filter[len(self._prefix) :],))

    def _read_from(self, position: int) -> None:
        if not self.over:
            self._cursor = self._host.log.cursor(position, self._accepts(), self._hungry)
            self._hungry()

    def stop(self) -> None:
        """It is over, or its client is gone."""
        self.over = True
        self._held = None
        self._picked = []
        self._read_back.stop()
        if self._cursor is not None:
            self._cursor.close()

    def release(self) -> None:
        """Hold no more events in memory than one."""
        self._read_back.clear()
        if self._cursor is not None:
            self._cursor.release()

    def forget(self) -> None:
        """Rules may say otherwise than they did."""
        self._names.clear()

    def _hungry(self) -> None:
        if not self.over:
            self._session.go_on()

    # -- on

    def pump(self, steps: int) -> int:
        """Look at so many events at most while there is room; how many of the steps are left."""
        self.holds = True
        while steps > 0 and not self.over and self._has_room():
            event = self._held or self._next()
            if event is None:
                self.holds = False
                if self._is_through():
                    self.stop()
                return steps
            self._held = None
            if self._is_beyond(event):
                self.stop()
                return steps
            if event.ts >= self._first_ts:  # or it was kept in memory only, where the log can't find a time
                if self._request.speed and self._is_early(event):
                    self._held = event
                    return steps
                self._give(event)
            steps -= 1
        return steps

    @property
    def has_caught_up(self) -> bool:
        """Whether it has given all that there is, and what commits next is the next to give."""
        log, cursor = self._host.log, self._cursor
        if self._held is not None or self._picked or cursor is None or cursor.position != log.committed:
            return False  # the position may also be further on, where it has begun
        following = next(iter(log.uncommitted()), None)
        return following is None or following.ts >= self._first_ts

    def _has_room(self) -> bool:
        session = self._session
        connection = session.connection
        return (
            connection is not None
            and not connection.blocked
            and connection.pending * 2 < connection.limit
            and not (self._qos and session.slots <= session.window >> 2)
        )

    def _next(self) -> Event | None:
        while self._picked:
            picked, read_back = self._picked, self._read_back
            seq = picked[-1]
            if seq not in read_back and not read_back.ask(reversed(picked), self._hungry):
                return None
            picked.pop()
            event = read_back[seq]
            read_back.drop(seq)
            if event is not None:
                return event
            self._host.dropped_gone += 1
        return None if self._cursor is None else self._cursor.next()

    def _is_beyond(self, event: Event) -> bool:
        """Whether an event lies behind the end."""
        return event.seq > self._upto or 0 < self._request.until <= event.ts

    def _is_through(self) -> bool:
        """Whether nothing can come any more."""
        cursor = self._cursor
        if cursor is None or self._picked:
            return False
        return cursor.position >= self._upto or (self._request.until > 0 and cursor.caught_up)

    def _is_early(self, event: Event) -> bool:
        """Whether the time of an event has not come, at the speed that was asked for."""
        now = self._host.now
        if self._base is None:
            self._base = now, event.ts
        begun, first = self._base
        due = begun + int((event.ts - first) / self._request.speed)
        self.due = due if due > now else 0
        return self.due > 0

    # -- out

    def _give(self, event: Event) -> None:
        host, session, grant = self._host, self._session, self.grant
        connection = session.connection
        assert connection is not None
        name = self._names.get(event.topic)
        if name is None:
            name = self._name(event.topic)
        if not name:
            host.dropped_denied += 1
            return
        if grant.no_local and event.client == session.client_id:  # [MQTT-3.8.3-3]
            return
        qos = event.qos if event.qos < self._qos else self._qos
        tail = event.payload
        if connection.version == 5:
            properties = self._properties(event, session.mount)
            tail = encode_varint(len(properties)) + properties + tail
        retain = event.retain and grant.retain_as_published  # [MQTT-3.3.1-12] [MQTT-3.3.1-13]
        size = len(name) + len(tail) + (2 if qos else 0)
        head = bytes((0x30 | qos << 1 | retain,)) + encode_varint(size) + name if size <= VARINT_MAX else b""
        if not fits(connection, head, tail, qos):
            host.dropped_oversized += 1
        elif qos:
            session.send_replayed(event.seq, head, tail)
        else:
            connection.send_publish(head, tail)

    def _name(self, topic: str) -> bytes:
        """What stands in packets for a topic."""
        session = self._session
        name = b""
        if not session.denies(topic):
            written = (self._prefix + topic.removeprefix(session.mount)).encode()
            if len(written) <= LONGEST:
                name = len(written).to_bytes(2) + written
        if len(topic) <= REMEMBERED:
            if len(self._names) >= _TOPICS_KEPT:
                self._names.clear()
            self._names[topic] = name
        return name

    def _properties(self, event: Event, mount: str) -> bytes:
        """The properties of a message, and what says which event it is."""
        properties = event.properties
        if mount:
            properties = seen_properties(mount, properties)
        seq = b"%d" % event.seq
        second, written = self._second
        at, fraction = divmod(event.ts, _SECOND)
        if at != second:
            written = (_EPOCH + timedelta(seconds=at)).isoformat().encode()
            self._second = at, written
        return b"".join(
            (properties, self._identifiers, _SEQ, len(seq).to_bytes(2), seq, _TIME, written, b".%06dZ" % fraction)
        )

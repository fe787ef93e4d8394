"""Who is fed from the log as it grows: one client's session, or a shared subscription.

A follower is a cursor. While a client of it is connected it is in one of two states:

- *live*: it has been given everything that was committed, and the hub gives it each further event as it commits;
- *behind*: its window or its socket was full, or it has been away. Nothing is queued for it: it reads the log from its
  cursor whenever there is room, until it has caught up. Then it is live again.

Events that go out before they commit (QoS 0, durability `memory`) reach live followers at once, ahead of their turn. So
that one that falls behind does not read them again, it remembers up to which seq it has had them (`early_upto`); and
one that becomes live is given those that have gone out and not yet committed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from storage.interface import Accepts, Cursor, Event, Log

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.frames import FrameCache
    from broker.replays import Replays
    from broker.retained import Retained
    from broker.router import Delivery
    from broker.session import Session
    from broker.traffic import Traffic


class Host(Protocol):
    """What a follower needs of the hub."""

    log: Log
    frames: FrameCache
    retained: Retained
    behind: set[Follower]
    now: int
    queue_qos0: bool
    dropped_full: int
    dropped_expired: int
    dropped_oversized: int
    dropped_away: int
    dropped_gone: int
    dropped_denied: int
    traffic: Traffic
    replays: Replays

    def changed(self, session: Session) -> None:
        """Write its row within about a second."""

    def checkpoint(self, session: Session) -> None:
        """Write its row, and those of its shared subscriptions, with the open group, and have that group fsynced."""

    def after_commit(self, connection: Connection, data: bytes) -> None:
        """Send this once the open group has committed."""

    def wake(self) -> None:
        """Have the next turn of the loop look at everything."""

    def crash(self, connection: Connection | None) -> None:
        """End a connection for an error of ours: the one that is being handled."""


class Follower:
    """One reader whom the hub feeds. Every method is called on the loop."""

    __slots__ = (
        "_cursor",
        "_host",
        "_parked",
        "_seen_at",
        "away_upto",
        "connection",
        "early_upto",
        "live",
        "stalled",
    )

    def __init__(self, host: Host, position: int) -> None:
        self.connection: Connection | None = None
        """Whom an error of ours in `give` is laid to."""
        self.live = False
        self.stalled = False
        """Whether it is behind, and has taken nothing from the log for a second."""
        self.early_upto = 0
        self.away_upto = 0
        """Up to here it was away: QoS 0 messages are not made up for, unless `queue_qos0`."""
        self._host = host
        self._parked = position
        self._cursor: Cursor | None = None
        self._seen_at = position

    @property
    def position(self) -> int:
        """Every event up to this seq has been given, or did not match."""
        return self._at()

    def _at(self) -> int:
        if self.live:
            return self._host.log.committed
        return self._parked if self._cursor is None else self._cursor.position

    def denies(self, topic: str) -> bool:
        """Whether rules keep this topic from it."""
        raise NotImplementedError

    def give(self, event: Event, delivery: Delivery[Follower]) -> None:
        """One event, while it is live: in log order, or early."""
        raise NotImplementedError

    def tell(self, event: Event, delivery: Delivery[Follower]) -> bool:
        """What the broker says of itself, and the log does not hold; False: there is no room for it."""
        raise NotImplementedError

    def tell_later(self) -> None:
        """There was no room for something of what the broker says: give all of it once there is."""

    def check_progress(self) -> None:
        """Find out whether it has taken anything from the log since the last call."""
        self.stalled = self.position == self._seen_at
        self._seen_at = self.position

    def _accepts(self) -> Accepts:
        """Which topics it reads."""
        raise NotImplementedError

    def _match(self, topic: str) -> Delivery[Follower] | None:
        """How it gets the messages of a topic."""
        raise NotImplementedError

    def _hungry(self) -> None:
        """Have it go on with its cursor in the next turn."""
        raise NotImplementedError

    def _read_from(self, position: int) -> None:
        if self._cursor is not None:
            self._cursor.close()
        self._cursor = self._host.log.cursor(position, self._accepts(), self._hungry)

    def _begin(self) -> None:
        """A client is there: go on from where it was."""
        self.away_upto = self._host.log.last
        self._read_from(self._parked)
        self._host.behind.add(self)
        self._hungry()

    def _park(self) -> None:
        """No client is there: from now on it is its position."""
        if self.live:
            self.early_upto = self._host.log.last
        self._parked = self.position
        self._host.behind.discard(self)
        self.live = False
        if self._cursor is not None:
            self._cursor.close()
            self._cursor = None

    def _fall_behind(self, event: Event | None) -> None:
        """Read the log from just before this event; None: from what has committed."""
        log = self._host.log
        if event is None or not event.early:
            self.early_upto = log.last
        else:
            self.early_upto = event.seq - 1
        self.live = False
        self.stalled = False
        self._read_from(log.committed if event is None or event.early else event.seq - 1)
        self._host.behind.add(self)
        self._hungry()

    def _go_live(self) -> None:
        assert self._cursor is not None
        self._cursor.close()
        self._cursor = None
        self._host.behind.discard(self)
        self._host.wake()  # others may wait for it
        self.live = True
        for event in self._host.log.uncommitted():
            if event.early and event.seq > self.early_upto and (delivery := self._match(event.topic)) is not None:
                if event.seq > delivery.since:
                    self.give(event, delivery)
                if not self.live:
                    break

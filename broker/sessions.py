"""Every session, whether its client is connected or not, and the rows of those that are to last.

A session's row is written with the group that its change belongs to, or, where nothing hangs on it, within about a
second. The rows of connected sessions are brought up to date in turn, a few each second, so that little is read again
after a crash.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final

from broker.mqtt.properties import NEVER
from broker.mqtt.topic import SHARE
from broker.router import Grant
from broker.session import Session
from broker.session_row import restore_session, restore_shared, save_session
from broker.wills import SECOND, Wills
from storage.interface import SESSIONS, SUBSCRIPTIONS, Group

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker.hub import Hub
    from broker.share import Share

_REFRESH: Final = 60
"""Seconds after which the rows of all connected sessions are brought up to date."""
_REFRESHED: Final = 500
"""Rows of connected sessions that one second brings up to date at most."""


class Sessions:
    """The sessions of a node. Times are µs since the epoch."""

    __slots__ = (
        "_dirty",
        "_hub",
        "_leaving",
        "_next_refresh",
        "_refreshing",
        "_wills",
        "all",
        "expired",
        "lasting",
        "shared",
        "subscriptions",
    )

    def __init__(self, hub: Hub, wills: Wills) -> None:
        self.all: dict[str, Session] = {}
        """By client identifier."""
        self.expired = 0
        """Those that have ended because their clients did not return in time."""
        self.lasting = 0
        """Those that outlive their connections."""
        self.subscriptions = 0
        """Of all sessions together, without shared ones."""
        self.shared = 0
        """Shared subscriptions of all sessions together."""
        self._hub = hub
        self._wills = wills
        self._dirty: set[Session] = set()
        self._refreshing: list[Session] = []
        """Connected sessions whose rows are yet to be brought up to date in this round."""
        self._next_refresh = 0
        self._leaving: list[tuple[int, str]] = []
        """A heap of when sessions end (time, client identifier), unless their clients return before."""

    # -- from the first CONNECT to the end

    def get(self, client_id: str, now: int) -> Session | None:
        """The session of a client that has one."""
        session = self.all.get(client_id)
        if session is not None and 0 < session.ends <= now:  # [MQTT-4.1.0-2]
            self.expired += 1
            self.end(session)
            return None
        return session

    def begin(self, client_id: str, version: int, expiry: int) -> Session:
        """Make a session for a client that has none; `expiry` in s."""
        session = self.all[client_id] = Session(self._hub, client_id, version, expiry, self._hub.log.committed)
        self.lasting += session.persistent
        return session

    def prolong(self, session: Session, expiry: int) -> None:
        """Change how long a connected session is to last after its connection; `expiry` in s."""
        self.lasting -= session.persistent
        session.expiry = expiry
        self.lasting += session.persistent

    def leave(self, session: Session) -> None:
        """Its connection is gone: keep it for as long as it is to last."""
        if not session.persistent:
            self.end(session)
            return
        self.save((session,), self._hub.log.open)
        self._expect_end(session)

    def end(self, session: Session) -> None:
        """Forget it, and everything that is kept of it."""
        if self.all.pop(session.client_id, None) is session:
            self._count((*session.grants, *session.shares), -1)
            self.lasting -= session.persistent
        session.forget(self._hub.log.open)
        self._hub.shares.ended(session)
        self._wills.session_ended(session.client_id, self._hub.now)
        self._hub.wake()

    def expire(self, now: int) -> None:
        """End those whose time is over."""
        leaving = self._leaving
        while leaving and leaving[0][0] <= now:
            ends, client_id = heappop(leaving)
            session = self.all.get(client_id)
            if session is not None and session.ends == ends:
                self.expired += 1
                self.end(session)

    def _expect_end(self, session: Session) -> None:
        if session.expiry == NEVER:
            return
        heappush(self._leaving, (session.ends, session.client_id))
        if len(self._leaving) > 2 * len(self.all) + 1000:  # clients that come and go leave entries behind
            self._leaving = sorted((s.ends, s.client_id) for s in self.all.values() if s.ends)

    # -- subscriptions

    def subscribe(self, session: Session, grant: Grant) -> None:
        """Give a session a subscription, on disk where the session is to last."""
        if grant.filter not in session.grants and grant.filter not in session.shares:
            self._count((grant.filter,), 1)
        if grant.filter.startswith(SHARE):
            self._hub.shares.join(session, grant)
        else:
            session.subscribe(grant)
            self._hub.router.add(session, grant)
        self._keep(session, grant)

    def _keep(self, session: Session, grant: Grant) -> None:
        if session.persistent:
            options = grant.qos | grant.no_local << 2 | grant.retain_as_published << 3
            session.stored = True
            self._hub.log.open.put(
                SUBSCRIPTIONS, (session.client_id, grant.filter), (options, grant.identifier, grant.since)
            )
            self._hub.checkpoint(session)

    def expect(self, session: Session, grant: Grant) -> None:
        """A session is to have a subscription once a replay hands over; after a crash it has it at once."""
        self._keep(session, grant)

    def expect_no_more(self, session: Session, filter: str) -> None:
        """It is not: the replay has been ended."""
        self._forget(session, filter)

    def unsubscribe(self, session: Session, filter: str) -> bool:
        """Take a subscription away; whether there was one."""
        if self._hub.replays.stop(session, filter):
            return True
        if session.unsubscribe(filter):
            self._hub.router.remove(session, filter)
        elif not self._hub.shares.quit(session, filter):
            return False
        self._count((filter,), -1)
        self._forget(session, filter)
        return True

    def _forget(self, session: Session, filter: str) -> None:
        if session.persistent:
            self._hub.log.open.delete(SUBSCRIPTIONS, (session.client_id, filter))
            self._hub.checkpoint(session)

    def _count(self, filters: Iterable[str], by: int) -> None:
        for filter in filters:
            if filter.startswith(SHARE):
                self.shared += by
            else:
                self.subscriptions += by

    # -- rows

    def changed(self, session: Session) -> None:
        """Write its row within about a second."""
        session.dirty = True
        self._dirty.add(session)
        for share in session.shares.values():
            share.unsaved.add(session)

    def save(self, sessions: Iterable[Session], group: Group) -> None:
        """Put the rows of those into the group that are there and to last, and all that belong together with them."""
        waiting = list(sessions)
        saved: set[Share] = set()
        while waiting:
            session = waiting.pop()
            if session.persistent and self.all.get(session.client_id) is session:
                save_session(session, group)
            session.dirty = False
            if session.shares or session.shared:
                for share in session.shares.values():
                    share.unsaved.discard(session)
                for share in {*session.shares.values(), *session.shared.values()} - saved:
                    saved.add(share)
                    share.save(group)
                    waiting += share.unsaved

    def save_share(self, share: Share, group: Group) -> None:
        """Put the row of a shared subscription into the group, and all that belong together with it."""
        share.save(group)
        self.save(list(share.unsaved), group)

    def save_changed(self, now: int) -> None:
        """Put the rows of those that have changed into the open group, and in turn those of all connected ones."""
        if now >= self._next_refresh:
            self._next_refresh = now + _REFRESH * SECOND
            self._refreshing = [s for s in self.all.values() if s.persistent and s.connection is not None]
        dirty, self._dirty = self._dirty, set()
        dirty = {session for session in dirty if session.dirty}
        dirty.update(self._refreshing[-_REFRESHED:])
        del self._refreshing[-_REFRESHED:]
        self.save(dirty, self._hub.log.open)

    def restore(self, now: int) -> None:
        """Take up those of an earlier run. Blocks."""
        log = self._hub.log
        under_way: dict[Session, bytes] = {}
        """Which messages on their way to a session are of shared subscriptions."""
        for row in log.rows(SESSIONS):
            session, under_way[session] = restore_session(self._hub, row)
            session.ended = session.ended or now
            self.all[session.client_id] = session
            self.lasting += session.persistent
            self._expect_end(session)
        grants: dict[str, list[Grant]] = {}
        shared: list[tuple[Session, Grant]] = []
        for client_id, filter, options, identifier, since in log.rows(SUBSCRIPTIONS):
            assert isinstance(client_id, str)
            assert isinstance(filter, str)
            assert isinstance(options, int)
            assert isinstance(identifier, int)
            assert isinstance(since, int)
            grant = Grant(filter, options & 3, bool(options & 4), bool(options & 8), identifier, since)
            if filter.startswith(SHARE) and client_id in self.all:
                shared.append((self.all[client_id], grant))
            else:
                grants.setdefault(client_id, []).append(grant)
        self._hub.shares.restore(shared)
        for session, grant in shared:
            self._count((grant.filter,), 1)
            restore_shared(session, under_way[session])
        for client_id, found in grants.items():
            if client_id in self.all:
                self.all[client_id].restore_grants(found)
                self._count(self.all[client_id].grants, 1)

"""Every shared subscription, who is a member of which, and their rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.router import Grant
from broker.session import Session
from broker.share import Share
from storage.interface import SHARES

if TYPE_CHECKING:
    from broker.hub import Hub


class Shares:
    """The shared subscriptions of a node."""

    __slots__ = ("_hub", "all")

    def __init__(self, hub: Hub) -> None:
        self.all: dict[str, Share] = {}
        """By filter, `$share/<name>/` included."""
        self._hub = hub

    def join(self, session: Session, grant: Grant) -> None:
        """A connected session has subscribed, or changed how."""
        share = self.all.get(grant.filter)
        if share is None:
            share = self._make(grant.filter, grant.since)
            share.early_upto = self._hub.log.last
        session.hold_share(share)
        share.join(session, grant)

    def quit(self, session: Session, filter: str) -> bool:
        """A session has unsubscribed; whether it was a member."""
        share = session.drop_share(filter)
        if share is None:
            return False
        share.quit(session)
        self._look_at(share)
        return True

    def connected(self, session: Session) -> None:
        """The client of a session is there."""
        for share in session.shares.values():
            share.connected(session)

    def disconnected(self, session: Session) -> None:
        """The client of a session is gone."""
        for share in session.shares.values():
            share.disconnected(session)

    def ended(self, session: Session) -> None:
        """A session is over."""
        for share in {*session.shares.values(), *session.shared.values()}:
            share.ended(session)
            self._look_at(share)

    def save_changed(self) -> None:
        """Put the rows of those that have changed into the open group, with their members'."""
        for share in self.all.values():
            if share.changed:
                self._hub.sessions.save_share(share, self._hub.log.open)

    def restore(self, grants: list[tuple[Session, Grant]]) -> None:
        """Take up those of an earlier run: who was a member, and how. Blocks."""
        for session, grant in grants:
            share = self.all.get(grant.filter) or self._make(grant.filter, grant.since)
            session.hold_share(share)
            share.restore(session, grant)
        for filter, position, returned in self._hub.log.rows(SHARES):
            assert isinstance(filter, str)
            assert isinstance(position, int)
            assert isinstance(returned, bytes)
            if filter in self.all:
                self.all[filter].restore_row(position, returned)

    def _make(self, filter: str, position: int) -> Share:
        share = self.all[filter] = Share(self._hub, filter, position)
        self._hub.router.add(share, share.grant)
        return share

    def _look_at(self, share: Share) -> None:
        """A member has left: without members there is none; else its row changes with what the member has left."""
        if self.all.get(share.filter) is not share:
            return
        if not share.members:
            del self.all[share.filter]
            self._hub.router.remove(share, share.grant.filter)
        self._hub.sessions.save_share(share, self._hub.log.open)

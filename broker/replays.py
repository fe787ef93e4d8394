"""Every replay: what may be replayed to whom, and how much of a turn of the loop replays take.

Replays have millions of events to give, and others are waiting: all of them together look at so many events in a turn.
Those sessions share that out which had a replay to go on with in the turn before, and the replays of a session take
turns. So a replay is as fast as the node has nothing else to do, and nobody waits for it for more than some
milliseconds.

A few replays hold what they have read while they wait for room, or for their share; others read it again.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from broker.listener import Limits
from broker.mqtt.reason import Reason
from broker.mqtt.topic import REPLAY, SHARE
from broker.names import shown
from broker.replay import Replay
from broker.replay_request import Request, is_replay, parse_request, split_replay
from broker.rights import LEVELS, has_many_levels
from broker.router import Grant

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.hub import Hub
    from broker.session import Session

_PART: Final = 40
"""Which part of what a turn of the loop may cost all replays together may take: an event counts 1."""
_SMALL: Final = 200
"""Which part of it each session may take at least."""
_HOLDING: Final = 16
"""Replays that may hold more than one event while they wait."""


class Replays:
    """The replays of a node."""

    __slots__ = ("_holding", "_hub", "_pumped", "_sharing", "all", "begun")

    def __init__(self, hub: Hub) -> None:
        self.all: dict[Replay, Session] = {}
        self.begun = 0
        """How many there have ever been."""
        self._hub = hub
        self._holding: dict[Replay, None] = {}
        """Those that may hold events, the one that has gone on last at the end."""
        self._pumped: set[Session] = set()
        """Those sessions that have gone on in this turn."""
        self._sharing = 1
        """How many have in the turn before."""

    # -- from the SUBSCRIBE to the end

    def begin(self, connection: Connection, session: Session, grant: Grant, words: str | None) -> tuple[int, str]:
        """Begin a replay, in the place of one with the same filter: the granted QoS and a remark, or why not.

        `words` say how where the filter is a plain one, and a subscription is to follow; None: they are in the filter.
        """
        hub = self._hub
        filter = grant.filter
        try:
            prefix, inner = "", filter
            if words is None:
                words, inner = split_replay(filter)
                prefix = f"{REPLAY}{words}/"
            elif is_replay(filter) or filter.startswith(SHARE):
                raise ValueError("a replay by a user property is of plain filters")
            request = parse_request(words, hub.now)
            if not prefix and request.ends:
                raise ValueError("a subscription is to follow, so the replay can't end")
        except ValueError as error:
            return Reason.TOPIC_FILTER_INVALID, f"can't replay {shown(filter)}: {error}"
        refusal = self._forbids(connection, words, inner) or self._lacks(session, filter, connection.limits)
        if refusal is not None:
            return refusal
        objection, remark = self._judge(request)
        if objection:
            return Reason.TOPIC_FILTER_INVALID, f"can't replay {shown(filter)}: {objection}"
        self.stop(session, filter)
        if not prefix:
            hub.sessions.unsubscribe(session, filter)
        made = Replay(hub, session, grant, prefix, request)
        session.replays[filter] = made
        self.all[made] = session
        self.begun += 1
        if made.hands_over:
            hub.sessions.expect(session, grant)
        made.begin()
        return grant.qos if made.hands_over else made.qos, remark

    def _forbids(self, connection: Connection, words: str, inner: str) -> tuple[Reason, str] | None:
        """Why a client may not have what came by a filter replayed to it."""
        rules, limits, full = connection.rules, connection.limits, f"{REPLAY}{words}/{inner}"
        if not limits.replay:
            return Reason.IMPLEMENTATION_SPECIFIC_ERROR, f"can't replay {shown(inner)}: replays are not available"
        if has_many_levels(full):
            return Reason.QUOTA_EXCEEDED, f"can't replay {shown(inner)}: it has more than {LEVELS} levels"
        if rules is not None and not (
            rules.may_subscribe(connection.who, full) and rules.may_subscribe(connection.who, inner)
        ):
            return Reason.NOT_AUTHORIZED, f"may not have {shown(inner)} replayed"
        return None

    def _lacks(self, session: Session, filter: str, limits: Limits) -> tuple[Reason, str] | None:
        if len(session.replays) >= limits.max_replays and filter not in session.replays:
            return Reason.QUOTA_EXCEEDED, f"can't replay {shown(filter)}: it has {limits.max_replays} replays"
        return None

    def _judge(self, request: Request) -> tuple[str, str]:
        """What is against a replay, and what is to be said of it otherwise; empty: nothing."""
        log, now = self._hub.log, self._hub.now
        oldest, oldest_ts = log.oldest
        since = f"the oldest event that is kept is {oldest}, of {_time(oldest_ts)}"
        if max(request.time, request.until) > now:
            return f"its time is to come; it is {_time(now)}", ""
        if request.seq > log.last + 1:
            return f"the last event is {log.last}", ""
        if not oldest:
            return "", ""
        if request.seq and request.seq < oldest:
            return since, ""
        if 0 < request.until <= oldest_ts or 0 < request.to < oldest:
            return f"it ends before it begins; {since}", ""
        if 0 < request.time < oldest_ts and oldest > 1:
            return "", since
        return "", ""

    def stop(self, session: Session, filter: str) -> bool:
        """End a replay; whether there was one."""
        found = session.replays.pop(filter, None)
        if found is None:
            return False
        if found.hands_over:
            self._hub.sessions.expect_no_more(session, filter)
        self._end(found)
        return True

    def disconnected(self, session: Session) -> None:
        """The client of a session is gone. Of those that were to hand over, the subscriptions stay with the session."""
        replays = list(session.replays.values())
        session.replays.clear()
        for each in replays:
            self._end(each)
            if each.hands_over and session.persistent:
                self._hub.sessions.subscribe(session, replace(each.grant, since=self._hub.log.committed))

    def _end(self, found: Replay) -> None:
        found.stop()
        self._holding.pop(found, None)
        self.all.pop(found, None)

    # -- on

    def begin_turn(self) -> None:
        """Everybody may take something again."""
        self._sharing = max(1, len(self._pumped))
        self._pumped.clear()

    def tick(self, now: int) -> None:
        """Let those go on whose next event is due."""
        for each, session in self.all.items():
            if 0 < each.due <= now:
                each.due = 0
                session.go_on()

    def pump(self, session: Session) -> None:
        """Let the replays of a session go on while there is room."""
        self._pumped.add(session)
        turn = self._hub.limits.turn
        steps = max(1, turn // _SMALL, turn // _PART // self._sharing)
        for filter, each in list(session.replays.items()):
            if steps <= 0:
                session.go_on()
                return
            steps = each.pump(steps)
            if each.over:
                self.stop(session, filter)
            elif each.hands_over and self._may_follow(session) and each.has_caught_up:
                self._hand_over(session, filter, each)
            else:
                self._hold(each)
                if steps <= 0:  # the others first, next time
                    session.replays[filter] = session.replays.pop(filter)
        if steps <= 0:
            session.go_on()

    def _hold(self, found: Replay) -> None:
        holding = self._holding
        holding.pop(found, None)
        if not found.holds:
            return
        holding[found] = None
        if len(holding) > _HOLDING:
            first = next(iter(holding))
            del holding[first]
            first.release()

    def _may_follow(self, session: Session) -> bool:
        """Whether a subscription would give all that commits from now on: it is not behind, and was not away then."""
        return session.live and session.away_upto <= self._hub.log.committed

    def _hand_over(self, session: Session, filter: str, found: Replay) -> None:
        """All has been given that has committed: what comes is for the subscription, from now on."""
        del session.replays[filter]
        self._end(found)
        grant = replace(found.grant, since=self._hub.log.committed)
        self._hub.sessions.subscribe(session, grant)
        session.catch_early(grant)


def _time(ts: int) -> str:
    """A time in µs since the epoch, for people."""
    return datetime.fromtimestamp(ts // 1_000_000, UTC).isoformat().replace("+00:00", "Z")

"""The retained messages that one session's new subscriptions get.

They are not gathered: a walk over the tree of them goes on as room appears, and holds one place in each level of it. So
it goes on, too, when a session that is kept is taken up again. It does not outlive the process.

A walk gives what was retained when it was asked for; what has replaced that since comes as a message of the
subscription. It begins behind the SUBACK, which may have to wait for a commit.
"""

from __future__ import annotations

from dataclasses import dataclass

from broker.follower import Follower
from broker.retained import RetainedWalk
from broker.router import Delivery
from storage.interface import Event


@dataclass(slots=True)
class Walk:
    """The retained messages that one subscription gets."""

    steps: RetainedWalk
    delivery: Delivery[Follower]
    committed: int
    """It gives those of up to this seq,"""
    last: int
    """and of those that go out before they commit, up to this one."""
    after: int
    """It begins when its connection has been sent so many packets that wait for commits: behind its SUBACK."""

    def gives(self, event: Event) -> bool:
        """Whether this message was there when it was asked for."""
        return event.seq <= (self.last if event.early else self.committed)


class Walks:
    """Those of one session's subscriptions that wait for their retained messages; the first is under way."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[str, Walk] = {}
        """By filter."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def first(self) -> Walk:
        """The one that is under way. There has to be one."""
        return next(iter(self._waiting.values()))

    def put(self, filter: str, walk: Walk) -> None:
        """A subscription waits; one that waited already, or is under way, begins anew."""
        self._waiting[filter] = walk

    def change(self, filter: str, delivery: Delivery[Follower]) -> None:
        """A subscription was replaced: what is still to come of its walk comes as the new one says."""
        walk = self._waiting.get(filter)
        if walk is not None:
            walk.delivery = delivery

    def drop(self, filter: str) -> None:
        """A subscription waits no more."""
        self._waiting.pop(filter, None)

    def step(self) -> Event | None:
        """Take one step of the first: the message that it finds, if any."""
        filter, walk = next(iter(self._waiting.items()))
        try:
            return next(walk.steps)
        except StopIteration:
            del self._waiting[filter]
            return None

    def disconnected(self) -> None:
        """The connection that they counted packets of is gone, and no SUBACK comes on the next one."""
        for walk in self._waiting.values():
            walk.after = 0
            walk.steps.put_down()

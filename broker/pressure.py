"""Who is not read from for now, and how much of a turn of the loop each connection may take.

The rules:

1. A connection is held while there is too much that it has not taken, that has yet to commit, or that it has sent ahead
   of its rates (`Connection.congested`); while the log takes nothing more; while readers would lose what is kept in
   memory only (`volatile`); and while the disk has no room for what it sends (`scarce`).
2. A turn handles so many packets of all connections together, of each of them some at least. What one has sent beyond
   that is kept as it came, and it is held; in the turns that follow those who have something kept go on one after
   another. So nobody waits for long, whatever another sends.
3. What is kept is bounded: where it is much, more of it is handled at a time.
4. A turn asks only those that may have become free. Who waits for a peer that does not read, or for its rates, is set
   aside until that has changed.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.hub import Hub

_KEPT: Final = 32 << 20
"""Bytes that are kept of what all have sent."""
_MANY: Final = 20
FILTER: Final = 100
"""What a topic filter in a SUBSCRIBE or UNSUBSCRIBE costs, counted in packets."""


class Pressure:
    """The connections that are held, and what is left of the turn."""

    __slots__ = (
        "_aside",
        "_held",
        "_hub",
        "_late",
        "_least",
        "_most",
        "_most_late",
        "_number",
        "_turn",
        "crowded",
        "kept",
        "left",
    )

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._held: dict[Connection, None] = {}
        """Those to be asked in each turn, in the order in which they may go on."""
        self._aside: set[Connection] = set()
        """Those whose peers do not read."""
        self._late: list[tuple[int, int, Connection]] = []
        """A heap of those that have run ahead of their rates: until when, and a number that is nobody else's."""
        self._most_late = _MANY
        """How many there may be before those whose connections are gone are looked for."""
        self._number = count()
        self.crowded = False
        """Whether sessions that are getting on need events that the log's memory would soon drop."""
        self.kept = 0
        """Bytes that have come and that nobody has looked at."""
        self._turn = hub.limits.turn
        """What one turn may cost: a packet counts 1, a topic filter in one as `FILTER`."""
        self._most = self._turn // 2
        """What one connection may take of it at a time."""
        self._least = self._turn // 16
        """What each may take even where others have taken all."""
        self.left = self._turn

    @property
    def count(self) -> int:
        """How many connections are held."""
        return len(self._held) + len(self._aside) + len(self._late)

    def allowance(self) -> int:
        """What a connection may take of the turn now."""
        if self.kept > _KEPT:
            return 10 * self._turn
        return max(self._least, min(self._most, self.left))

    def begin_turn(self) -> None:
        """Everybody may take something again."""
        self.left = self._turn

    def hold(self, connection: Connection) -> None:
        """Read no more from this connection until the log, and its client, have caught up."""
        if not connection.held and not connection.closed:
            connection.held = True
            connection.wire.pause_reading()
            self._held[connection] = None
            self._hub.wake()

    def let_go(self, connection: Connection) -> None:
        """This connection is gone."""
        self._held.pop(connection, None)
        self._aside.discard(connection)

    def reads_again(self, connection: Connection) -> None:
        """The peer takes again what it is sent."""
        if connection in self._aside:
            self._aside.discard(connection)
            self._ask(connection)

    def release(self) -> None:
        """Let those go on that have nothing more to wait for."""
        hub = self._hub
        now = hub.now
        late = self._late
        while late and late[0][0] <= now:
            self._ask(heappop(late)[2])
        for connection in list(self._held):
            if hub.is_behind:
                return
            if connection.closed:
                continue
            if connection.congested:
                self._set_aside(connection, now)
            elif not self._waits_for_others(connection):
                self._free(connection)

    def hurry(self, connection: Connection) -> None:
        """There is nobody any more who could be made to wait: what has been kept is all that there is."""
        self._ask(connection)

    def go_on(self, connection: Connection) -> None:
        """Handle some of what has been kept of this connection."""
        try:
            connection.go_on()
        except Exception:  # noqa: BLE001 - handed to `crash`, which logs it with its stack
            self._hub.crash(connection)

    def _ask(self, connection: Connection) -> None:
        if connection.held and not connection.closed:
            self._held[connection] = None

    def _waits_for_others(self, connection: Connection) -> bool:
        hub = self._hub
        return (
            (self.crowded and connection.volatile)
            or (hub.durability.refusing and connection.scarce)
            or (hub.log.failure is not None and connection.version != 5)  # who could not be told so is to wait
        )

    def _set_aside(self, connection: Connection, now: int) -> None:
        if connection.paused_until > now:
            del self._held[connection]
            late = self._late
            heappush(late, (connection.paused_until, next(self._number), connection))
            if len(late) > self._most_late:
                late[:] = [each for each in late if not each[2].closed]
                heapify(late)
                self._most_late = 2 * len(late) + _MANY
        elif connection.unread > connection.limit:
            del self._held[connection]
            self._aside.add(connection)

    def _free(self, connection: Connection) -> None:
        if connection.resting:
            if self.left <= 0:
                self._hub.wake()
                return
            self.go_on(connection)
            if connection.closed:
                return
        if connection.resting or connection.congested:
            del self._held[connection]  # to the end of the row
            self._held[connection] = None
            self._hub.wake()
            return
        del self._held[connection]
        connection.held = connection.volatile = connection.scarce = False
        connection.heard = self._hub.now
        connection.wire.resume_reading()

"""What the broker tells of itself below $SYS/broker/: Mosquitto's topics with Mosquitto's meanings; ours are in berm/.

The rules:

1. All values are read at once, whenever an interval is over. Nothing is computed for each message but plain sums.
2. A value is published when its text is another than it was: retained, at QoS 0, and beside the log. A new subscriber
   gets all that holds, and a new process begins with nothing. What is told of the log does not change by being told.
3. A load is how much there is of something per minute, averaged over 1, 5 and 15 minutes: each interval moves it from
   where it was towards what the interval had, by 1 - exp(-interval / period). So has Mosquitto, and Unix its load.
4. What other parts tell comes from `sources`: topics below $SYS/broker/, and their values.

Time is passed in, in µs of a clock that never jumps. docs/sys.md lists all topics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from math import exp
from typing import TYPE_CHECKING, Final

from broker.session import Session
from broker.survey import Survey

if TYPE_CHECKING:
    from broker.hub import Hub
    from broker.listener import Listener

PREFIX: Final = "$SYS/broker/"
PERIODS: Final = {"1min": 60, "5min": 300, "15min": 900}
"""What a load is averaged over, in s."""
SECOND: Final = 1_000_000
"""µs"""
MINUTE: Final = 60 * SECOND
_NEVER: Final = 1 << 62

Value = int | str
Readings = Iterable[tuple[str, Value]]


class Load:
    """How much of something there is per minute, averaged over each of PERIODS."""

    __slots__ = ("_total", "averages")

    def __init__(self) -> None:
        self.averages = dict.fromkeys(PERIODS, 0.0)
        self._total = 0

    def add(self, total: int, elapsed: int) -> None:
        """By now there has been so much of it altogether; `elapsed` µs since the last call."""
        rate = (total - self._total) * MINUTE / elapsed
        self._total = total
        for name, period in PERIODS.items():
            self.averages[name] = rate + exp(-elapsed / (period * SECOND)) * (self.averages[name] - rate)


class Statistics:
    """Publishes the values of one node. `interval` in s; 0: never. `listeners` are those that have a name of their own.

    Every method is called on the loop.
    """

    def __init__(
        self,
        hub: Hub,
        version: str,
        interval: int,
        now: int,
        listeners: Sequence[Listener] = (),
        sources: Sequence[Callable[[], Readings]] = (),
    ) -> None:
        self._hub = hub
        self._version = version
        self._interval = interval * SECOND
        self._listeners = listeners
        self._sources = sources
        self._began = now
        self._told_at = now
        self._next = now if interval else _NEVER
        self._survey = Survey(hub)
        self._most_clients = 0
        self._loads: dict[str, Load] = {}
        self._told: dict[str, str] = {}
        """By topic, what was published last."""

    def tick(self, now: int) -> None:
        """Publish what has changed, when it is time: to be called a few times a second."""
        hub = self._hub
        self._most_clients = max(self._most_clients, hub.clients.count)
        if now < self._next:
            self._survey.step()
            return
        self._survey.begin()
        self._survey.step()
        self._next = now + self._interval
        changed: list[tuple[str, bytes]] = []
        for name, value in chain(self._standard(now), self._own(), *(source() for source in self._sources)):
            text = str(value)
            if self._told.get(name) != text:
                self._told[name] = text
                changed.append((PREFIX + name, text.encode()))
        self._told_at = now
        hub.announce(changed)

    def _standard(self, now: int) -> Iterator[tuple[str, Value]]:
        """What Mosquitto has, too."""
        hub = self._hub
        traffic, sessions, connected = hub.traffic, hub.sessions, hub.clients.count
        total = len(sessions.all)
        dropped = hub.dropped_full + hub.dropped_oversized + hub.dropped_gone
        yield "version", f"berm version {self._version}"
        yield "uptime", f"{(now - self._began) // SECOND} seconds"
        yield "clients/total", total
        yield "clients/connected", connected
        yield "clients/active", connected
        yield "clients/disconnected", total - connected
        yield "clients/inactive", total - connected
        yield "clients/maximum", self._most_clients
        yield "clients/expired", sessions.expired
        yield "bytes/received", traffic.bytes_received
        yield "bytes/sent", traffic.bytes_sent
        yield "messages/received", traffic.packets_received
        yield "messages/sent", traffic.packets_sent
        yield "publish/messages/received", traffic.received
        yield "publish/messages/sent", traffic.delivered
        yield "publish/messages/dropped", dropped
        yield "publish/bytes/received", traffic.payload_received
        yield "publish/bytes/sent", traffic.payload_sent
        stored = hub.retained.count + self._backlog
        yield "messages/stored", stored
        yield "store/messages/count", stored
        yield "store/messages/bytes", hub.retained.size
        yield "subscriptions/count", sessions.subscriptions
        yield "shared_subscriptions/count", sessions.shared
        yield "retained messages/count", hub.retained.count
        elapsed = now - self._told_at
        yield from self._load("messages/received", traffic.packets_received, elapsed)
        yield from self._load("messages/sent", traffic.packets_sent, elapsed)
        yield from self._load("publish/received", traffic.received, elapsed)
        yield from self._load("publish/sent", traffic.delivered, elapsed)
        yield from self._load("publish/dropped", dropped, elapsed)
        yield from self._load("bytes/received", traffic.bytes_received, elapsed)
        yield from self._load("bytes/sent", traffic.bytes_sent, elapsed)
        yield from self._load("sockets", traffic.sockets, elapsed)
        yield from self._load("connections", traffic.connects, elapsed)

    def _load(self, name: str, total: int, elapsed: int) -> Iterator[tuple[str, Value]]:
        load = self._loads.setdefault(name, Load())
        if elapsed:
            load.add(total, elapsed)
        for period, average in load.averages.items():
            yield f"load/{name}/{period}", f"{average:.2f}"

    @property
    def _backlog(self) -> int:
        """How many seqs the log has after the position of the reader of it that is most behind, connected or not."""
        hub = self._hub
        positions = [share.position for share in hub.shares.all.values()]
        if self._survey.last.lowest >= 0:
            positions.append(self._survey.last.lowest)
        return max(0, hub.log.committed - min(positions, default=hub.log.committed))

    def _own(self) -> Iterator[tuple[str, Value]]:
        """What only we have."""
        hub = self._hub
        log = hub.log
        behind = [follower for follower in hub.behind if isinstance(follower, Session)]
        lags = [log.committed - session.position for session in behind]
        yield "berm/version", self._version
        yield "berm/log/seq", log.last
        yield "berm/log/committed", log.committed
        yield "berm/log/commits", hub.commits
        yield "berm/log/writable", int(log.failure is None and not hub.durability.refusing)
        yield "berm/log/unstored", hub.durability.unstored
        yield "berm/log/backlog", self._backlog
        yield "berm/sessions/behind", len(behind)
        yield "berm/sessions/stalled", sum(session.stalled for session in behind)
        yield "berm/sessions/lag", max(lags, default=0)
        yield "berm/sessions/inflight", self._survey.last.inflight
        shares = hub.shares.all.values()
        yield "berm/shares/count", len(shares)
        yield "berm/shares/lag", max((log.committed - share.position for share in shares), default=0)
        yield "berm/dropped/full", hub.dropped_full
        yield "berm/dropped/expired", hub.dropped_expired
        yield "berm/dropped/oversized", hub.dropped_oversized
        yield "berm/dropped/away", hub.dropped_away
        yield "berm/dropped/gone", hub.dropped_gone
        yield "berm/dropped/denied", hub.dropped_denied
        yield "berm/refused/messages", hub.refused_messages
        yield "berm/refused/retained", hub.unretained
        yield "berm/refused/logins", hub.refused_logins
        yield "berm/forbidden/messages", hub.forbidden
        yield "berm/forbidden/subscriptions", hub.forbidden_subscriptions
        yield "berm/throttled", hub.throttled
        yield "berm/crashed", hub.crashed
        for listener in self._listeners:
            yield f"berm/listeners/{listener.name}/clients", listener.clients

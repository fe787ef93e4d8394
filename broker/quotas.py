"""How much one client, and all clients of a listener together, may ask of the broker.

A rate is a token bucket: after a pause a second's worth may come at once. What has arrived is handled or kept; who has
had more than the rate is not read from until that is made up for. So a rate loses no message: it makes senders wait.
Only connecting is refused at its rate, since there is nobody yet who could be made to wait.

A bound that is not set costs nothing: a client without rates has no `Throttle` at all. Times are µs since the epoch and
passed in; rates are by the second.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

_SECOND: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Quotas:
    """The bounds of a listener, and of each of its clients; 0: none. Beside them stand those of `Limits`.

    `message_rate` and `byte_rate` are for each client, and what they count is PUBLISH packets, and bytes of anything.
    """

    connect_rate: float = 0
    """CONNECTs of all clients together."""
    user_connections: int = 0
    """Connections of one user name at a time."""
    message_rate: float = 0
    byte_rate: float = 0
    total_message_rate: float = 0
    """For all clients of the listener together, as is the next."""
    total_byte_rate: float = 0
    topic_levels: int = 0
    topic_length: int = 0
    """Bytes of a topic name or topic filter."""

    def objection(self, topic: str) -> str | None:
        """What is wrong with the size of a topic name or topic filter, or None."""
        levels, length = self.topic_levels, self.topic_length
        if levels and topic.count("/") >= levels:
            return f"it has more than {levels} levels"
        if length and len(topic) * 4 > length and len(topic.encode()) > length:
            return f"it has more than {length} bytes"
        return None


class TokenBucket:
    """Lets `rate` a second pass, and after a pause as many at once; at least one."""

    __slots__ = ("_at", "_level", "_most", "_rate")

    def __init__(self, rate: float, now: int) -> None:
        self._rate = rate
        self._most = max(rate, 1.0)
        self._level = self._most
        self._at = now

    def take(self, now: int) -> bool:
        """Take one, where there is one."""
        self._fill(now)
        if self._level < 1:
            return False
        self._level -= 1
        return True

    def spend(self, amount: int, now: int) -> int:
        """Take so many, where need be on credit; when the bucket is out of debt: `now` where it is in none."""
        self._fill(now)
        self._level -= amount
        if self._level >= 0:
            return now
        return now + int(-self._level / self._rate * _SECOND) + 1

    def _fill(self, now: int) -> None:
        if now > self._at:
            self._level = min(self._most, self._level + (now - self._at) * self._rate / _SECOND)
        self._at = now


class Throttle:
    """The rates that one connection keeps: its own, and those that it shares with others."""

    __slots__ = ("_bytes", "_messages")

    def __init__(self, messages: tuple[TokenBucket, ...], sizes: tuple[TokenBucket, ...]) -> None:
        self._messages = messages
        self._bytes = sizes

    def spend(self, messages: int, size: int, now: int) -> int:
        """So much was read; before when nothing more should be: `now` where more may come at once."""
        until = now
        for bucket in self._messages:
            until = max(until, bucket.spend(messages, now))
        for bucket in self._bytes:
            until = max(until, bucket.spend(size, now))
        return until


class Meter:
    """What the clients of one listener have used of its quotas."""

    __slots__ = ("_connects", "_sizes", "_total", "_users", "quotas")

    def __init__(self, quotas: Quotas, now: int) -> None:
        self.quotas = quotas
        self._connects = _buckets(quotas.connect_rate, now)
        self._total = _buckets(quotas.total_message_rate, now)
        self._sizes = _buckets(quotas.total_byte_rate, now)
        self._users: Counter[str] = Counter()

    def may_connect(self, now: int) -> bool:
        """Whether one more CONNECT is within the rate. It counts where it is."""
        return all(bucket.take(now) for bucket in self._connects)

    def has_room(self, username: str) -> bool:
        """Whether a user may have one more connection; those without a name are bounded by other bounds only."""
        most = self.quotas.user_connections
        return not most or not username or self._users[username] < most

    def enter(self, username: str) -> None:
        """A user has one more connection."""
        self._users[username] += 1

    def leave(self, username: str) -> None:
        """A user has one connection less."""
        self._users[username] -= 1
        if not self._users[username]:
            del self._users[username]

    def throttle(self, now: int) -> Throttle | None:
        """The rates of a new connection; None: none."""
        messages = self._total + _buckets(self.quotas.message_rate, now)
        sizes = self._sizes + _buckets(self.quotas.byte_rate, now)
        return Throttle(messages, sizes) if messages or sizes else None


def _buckets(rate: float, now: int) -> tuple[TokenBucket, ...]:
    return (TokenBucket(rate, now),) if rate else ()

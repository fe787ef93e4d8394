"""The nodes that sequences are played on: their bounds, and which client connects to which listener.

Clients a, b and c come to the plain listener, as does whoever must not notice anything; d comes below a mount point;
e is asked for a password, which takes a while to check, or for an exchange of AUTH, and meets rules and quotas.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Final

from broker.acl import Policy, parse
from broker.auth import Access, Challenge, Check, Proof, Verdict
from broker.listener import Limits, Listener
from broker.mqtt.reason import Reason
from broker.quotas import Meter, Quotas
from storage.interface import MEMORY

SLOTS: Final = "abcde"
"""The clients that a sequence may have."""
ASKED: Final = "e"
"""The one that is asked who it is."""
MOUNT: Final = "m/"
MEMORY_LEVEL: Final = "memory"
"""Topics with this level are kept in memory only."""

_RULES: Final = (
    """\
deny publish x/a/b
deny receive x/b
deny subscribe $x/#
allow all %c/# user=me
allow all #
""",
    """\
deny receive x/a
deny all x/b/#
""",
)
_QUOTAS: Final = Quotas(connect_rate=50, message_rate=20, byte_rate=5000, topic_levels=20, topic_length=200)


@dataclass(frozen=True, slots=True)
class Setup:
    """The bounds of one node."""

    limits: Limits
    memory_bytes: int
    """What the log keeps in memory."""


_TIGHT: Final = Limits(
    max_connections=12,
    max_packet_size=3500,
    receive_maximum=6,
    max_inflight=5,
    topic_alias_maximum=3,
    max_subscriptions=8,
    connect_timeout=10,
    write_buffer=700,
    group_bytes=6000,
    turn=8,
)
SETUPS: Final = (
    Setup(_TIGHT, 3000),
    Setup(replace(_TIGHT, write_buffer=20_000, max_inflight=20, receive_maximum=20, queue_qos0=True), 1),
    Setup(Limits(max_connections=12, max_packet_size=10_000, max_subscriptions=100), 1 << 20),
)


def durability(topic: str) -> int | None:
    """The rule of all setups."""
    return MEMORY if MEMORY_LEVEL in topic.split("/") else None


class Doorman:
    """Checks passwords, and takes its time: it answers when it is told to. Users without a password come in at once."""

    def __init__(self) -> None:
        self._waiting: deque[Check] = deque()

    def authenticate(self, check: Check) -> None:
        """Answer later, where there is something to check."""
        if check.applicant.username is None:
            check.answer(Verdict(Reason.SUCCESS))
        else:
            self._waiting.append(check)

    def answer(self) -> None:
        """Give everyone who waits an answer."""
        while self._waiting:
            check = self._waiting.popleft()
            right = check.applicant.password == b"secret"
            reason = Reason.SUCCESS if right else Reason.BAD_USER_NAME_OR_PASSWORD
            check.answer(Verdict(reason, check.applicant.username or "" if right else "", "wrong"))


class _Slow:
    """The authentication method `slow`: the server asks once, and the client says `go`."""

    def begin(self) -> _Slow:
        """A client begins with it; it keeps nothing of it."""
        return self

    def step(self, data: bytes) -> Challenge | Proof | Verdict:
        """Take what the client says."""
        if data == b"go":
            return Proof("me", b"gone")
        return Verdict(Reason.NOT_AUTHORIZED, why="no") if data == b"no" else Challenge(b"?")


class Doors:
    """The listeners of a node."""

    def __init__(self, setup: Setup, now: int) -> None:
        self.doorman = Doorman()
        limits = setup.limits
        asked = replace(limits, max_keep_alive=60, max_session_expiry=1000, max_connections=2)
        self._policies = [Policy(parse(rules, "rules"), True) for rules in _RULES]
        self._plain = Listener("", limits)
        self._mounted = Listener("mounted", limits, mount_point=MOUNT)
        self.asked = Listener("asked", asked, access=self._access(), meter=Meter(_QUOTAS, now))
        """Where clients are asked who they are."""

    def _access(self) -> Access:
        return Access(self.doorman, {"slow": _Slow()}, None, self._policies[0])

    def other_rules(self) -> None:
        """Have other rules for those who are asked who they are."""
        self._policies.reverse()
        self.asked.access = self._access()

    def of(self, client: str) -> Listener:
        """Where a client connects."""
        return {"d": self._mounted, ASKED: self.asked}.get(client, self._plain)

"""What the hub knows of a listener: the bounds that its clients meet, and where their topics are in the tree of all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from broker.mqtt.properties import NEVER
from broker.mqtt.reason import Reason

if TYPE_CHECKING:
    from broker.auth import Access
    from broker.quotas import Meter


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds that clients meet, and what of MQTT there is for them.

    Sizes in bytes, times in seconds; 0 keep alive: no cap; 0 `max_retained` or `retained_memory`: no bound. A client
    may set `topic_alias_maximum` aliases, and for what it is sent `max_topic_aliases` are set. A `turn` of the loop
    handles so many packets (see pressure.py). In `response_topic_prefix` %c is the client identifier and %u the user
    name; empty: no response information. With `redirect` nobody is connected, and MQTT 5 clients are told that, and
    `server_reference`.
    """

    max_connections: int = 10_000
    max_packet_size: int = 1 << 20
    receive_maximum: int = 1000
    max_inflight: int = 1000
    max_keep_alive: int = 0
    topic_alias_maximum: int = 16
    max_topic_aliases: int = 16
    max_session_expiry: int = NEVER
    max_subscriptions: int = 1000
    connect_timeout: int = 10
    write_buffer: int = 512 << 10
    max_sessions: int = 100_000
    max_retained: int = 0
    retained_memory: int = 128 << 20
    group_bytes: int = 4 << 20
    turn: int = 4000
    queue_qos0: bool = False
    max_qos: int = 2
    retain_available: bool = True
    wildcard_subscription_available: bool = True
    subscription_identifier_available: bool = True
    shared_subscription_available: bool = True
    replay: bool = True
    max_replays: int = 16
    check_payload_format: bool = False
    reason_strings: bool = True
    response_topic_prefix: str = ""
    redirect: Reason | None = None
    server_reference: str = ""


@dataclass(slots=True, eq=False)
class Listener:
    """One place where clients connect. The node's own bounds on connections hold beside those of `limits`."""

    name: str
    limits: Limits
    mount_point: str = ""
    """What is put before each topic that its clients name, and taken off those that they receive."""
    clients: int = 0
    """Connections to it whose CONNECT was accepted."""
    access: Access | None = None
    """Who may connect, and do what; None: everyone, as nobody in particular, and everything."""
    meter: Meter | None = None
    """Its quotas, and what has been used of them; None: none."""
    topics: set[str] = field(default_factory=set)
    """Topics that any client to which no rules apply may publish to: those found so lately."""

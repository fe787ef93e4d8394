"""The control packets as values.

Versions are 3 (MQTT 3.1), 4 (3.1.1) and 5. A packet holds what its fields mean, not how they are written; fields that a
version does not have keep their defaults. Packets are meant to be shared and not to be changed. They are not declared
frozen because a frozen dataclass takes three times as long to construct, and one is constructed for every message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from broker.mqtt.properties import Properties


@dataclass(frozen=True, slots=True)
class Will:
    """What the server publishes when the connection ends without a DISCONNECT."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: Properties = ()


@dataclass(frozen=True, slots=True)
class Subscription:
    """A topic filter and the options asked for with it."""

    filter: str
    qos: int
    no_local: bool = False
    retain_as_published: bool = False
    retain_handling: int = 0


@dataclass(slots=True)
class Connect:
    """The client asks to be connected. `clean_start` is `clean session` before MQTT 5; `keep_alive` is in seconds."""

    TYPE: ClassVar[int] = 1
    client_id: str
    version: int
    clean_start: bool
    keep_alive: int
    will: Will | None
    username: str | None
    password: bytes | None
    properties: Properties = ()


@dataclass(slots=True)
class Connack:
    """The server answers a CONNECT. `reason` is a reason code in every version."""

    TYPE: ClassVar[int] = 2
    session_present: bool
    reason: int
    properties: Properties = ()


@dataclass(slots=True)
class Publish:
    """A message. `packet_id` is 0 at QoS 0; `topic` is empty where a topic alias stands for it."""

    TYPE: ClassVar[int] = 3
    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    dup: bool = False
    packet_id: int = 0
    properties: Properties = ()


@dataclass(slots=True)
class Puback:
    """The receiver of a QoS 1 message has taken it, or refuses it."""

    TYPE: ClassVar[int] = 4
    packet_id: int
    reason: int = 0
    properties: Properties = ()


@dataclass(slots=True)
class Pubrec:
    """The receiver of a QoS 2 message has taken it, or refuses it."""

    TYPE: ClassVar[int] = 5
    packet_id: int
    reason: int = 0
    properties: Properties = ()


@dataclass(slots=True)
class Pubrel:
    """The sender of a QoS 2 message will not send it again."""

    TYPE: ClassVar[int] = 6
    packet_id: int
    reason: int = 0
    properties: Properties = ()


@dataclass(slots=True)
class Pubcomp:
    """The receiver of a QoS 2 message has forgotten its packet identifier."""

    TYPE: ClassVar[int] = 7
    packet_id: int
    reason: int = 0
    properties: Properties = ()


@dataclass(slots=True)
class Subscribe:
    """The client asks for the messages that match these filters."""

    TYPE: ClassVar[int] = 8
    packet_id: int
    subscriptions: tuple[Subscription, ...]
    properties: Properties = ()


@dataclass(slots=True)
class Suback:
    """The granted QoS, or the reason of refusal, for each filter of a SUBSCRIBE."""

    TYPE: ClassVar[int] = 9
    packet_id: int
    reasons: tuple[int, ...]
    properties: Properties = ()


@dataclass(slots=True)
class Unsubscribe:
    """The client asks for no more messages by these filters."""

    TYPE: ClassVar[int] = 10
    packet_id: int
    filters: tuple[str, ...]
    properties: Properties = ()


@dataclass(slots=True)
class Unsuback:
    """What became of each filter of an UNSUBSCRIBE; before MQTT 5 without reasons."""

    TYPE: ClassVar[int] = 11
    packet_id: int
    reasons: tuple[int, ...] = ()
    properties: Properties = ()


@dataclass(slots=True)
class Pingreq:
    """The client is alive."""

    TYPE: ClassVar[int] = 12


@dataclass(slots=True)
class Pingresp:
    """The server is alive."""

    TYPE: ClassVar[int] = 13


@dataclass(slots=True)
class Disconnect:
    """The sender is about to close the connection."""

    TYPE: ClassVar[int] = 14
    reason: int = 0
    properties: Properties = ()


@dataclass(slots=True)
class Auth:
    """One step of an enhanced authentication; MQTT 5 only."""

    TYPE: ClassVar[int] = 15
    reason: int = 0
    properties: Properties = ()


Packet = (
    Connect
    | Connack
    | Publish
    | Puback
    | Pubrec
    | Pubrel
    | Pubcomp
    | Subscribe
    | Suback
    | Unsubscribe
    | Unsuback
    | Pingreq
    | Pingresp
    | Disconnect
    | Auth
)

_PUBLISHED: Final = frozenset((0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99))
_RELEASED: Final = frozenset((0x00, 0x92))

REASONS: Final[dict[int, frozenset[int]]] = {
    Connack.TYPE: frozenset((0x00, *range(0x80, 0x8B), 0x8C, 0x90, 0x95, 0x97, *range(0x99, 0x9E), 0x9F)),
    Puback.TYPE: _PUBLISHED,
    Pubrec.TYPE: _PUBLISHED,
    Pubrel.TYPE: _RELEASED,
    Pubcomp.TYPE: _RELEASED,
    Suback.TYPE: frozenset((0x00, 0x01, 0x02, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2)),
    Unsuback.TYPE: frozenset((0x00, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91)),
    Disconnect.TYPE: frozenset(
        (0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8B, *range(0x8C, 0x91), *range(0x93, 0xA3))
    ),
    Auth.TYPE: frozenset((0x00, 0x18, 0x19)),
}
"""The reason codes that a packet of each type may carry in MQTT 5 (section 2.4, and 3.x.2.1 of each packet)."""

"""What a peer allows, what it answers, and what a bridge makes of it.

| the peer says | the bridge |
| --- | --- |
| PUBACK below 0x80 (0x10, no matching subscribers, too) | acknowledged: the position may move over it |
| PUBACK 0x87 not authorized, 0x90 topic name invalid, 0x99 payload format invalid | refused: the same event would be refused for ever, so it is counted, told of once per route and reason, and passed over |
| any other PUBACK of 0x80 or above (0x80, 0x83, 0x91, 0x97) | not acknowledged: closes, waits, sends it again from the floor; it stands still rather than lose it |
| CONNACK 0x88 server unavailable, 0x89 server busy, 0x97 quota exceeded, 0x9F connection rate exceeded | waits as after a lost connection |
| any other CONNACK of 0x80 or above | waits the longest backoff: only people can mend it |
| DISCONNECT 0x87 not authorized, 0x8A banned, 0x8E session taken over | waits the longest backoff: two bridges that share a client identifier must not fight |
| any other DISCONNECT | waits as after a lost connection |

MQTT 3.1.1 has no reason codes in PUBACK and no DISCONNECT from the server: there, a PUBACK is an acknowledgement.
"""  # noqa: E501 - a row of a table is a line

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from broker.mqtt.codec import MAX_PACKET_SIZE
from broker.mqtt.packets import Connack
from broker.mqtt.properties import Properties, Property, first
from broker.mqtt.reason import Reason

REFUSALS: Final = frozenset((Reason.NOT_AUTHORIZED, Reason.TOPIC_NAME_INVALID, Reason.PAYLOAD_FORMAT_INVALID))
"""PUBACK reasons that no repetition changes."""

_PASSING: Final = frozenset(
    (
        Reason.SERVER_UNAVAILABLE,
        Reason.SERVER_BUSY,
        Reason.QUOTA_EXCEEDED,
        Reason.CONNECTION_RATE_EXCEEDED,
    )
)
_LASTING: Final = frozenset((Reason.NOT_AUTHORIZED, Reason.BANNED, Reason.SESSION_TAKEN_OVER))


def connack_lasts(reason: int) -> bool:
    """Whether a refused CONNECT is likely to be refused again soon."""
    return reason not in _PASSING


def disconnect_lasts(reason: int) -> bool:
    """Whether coming back soon after this DISCONNECT would do harm."""
    return reason in _LASTING


@dataclass(frozen=True, slots=True)
class Peer:
    """What one CONNACK allows; the defaults are those of a peer that sets no limit, as MQTT 3.1.1 ones are."""

    receive_maximum: int = 65535
    max_packet_size: int = MAX_PACKET_SIZE
    max_qos: int = 2
    retain_available: bool = True
    keep_alive: int | None = None
    """s; None where the peer leaves it to the client."""


def read_connack(packet: Connack) -> Peer:
    """The limits in a CONNACK."""
    properties = packet.properties
    return Peer(
        receive_maximum=_number(properties, Property.RECEIVE_MAXIMUM) or 65535,
        max_packet_size=_number(properties, Property.MAXIMUM_PACKET_SIZE) or MAX_PACKET_SIZE,
        max_qos=2 if (max_qos := _number(properties, Property.MAXIMUM_QOS)) is None else max_qos,
        retain_available=_number(properties, Property.RETAIN_AVAILABLE) != 0,
        keep_alive=_number(properties, Property.SERVER_KEEP_ALIVE),
    )


def _number(properties: Properties, key: Property) -> int | None:
    value = first(properties, key)
    return value if isinstance(value, int) else None


def describe(reason: int, properties: Properties = ()) -> str:
    """A reason code in words, with the peer's own Reason String where it gave one."""
    try:
        name = Reason(reason).name.lower().replace("_", " ")
    except ValueError:
        name = "unknown reason"
    said = first(properties, Property.REASON_STRING)
    return f"0x{reason:02X} {name}" + (f" ({said!r})" if isinstance(said, str) else "")

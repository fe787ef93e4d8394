"""What MQTT 5 says of properties and reason codes, written down from its tables and not from the codec's.

The tests hold it against the codec, so that a slip in one of the two shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from broker.mqtt.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
)
from broker.mqtt.properties import WILL

BYTE: Final = "byte"
TWO_BYTES: Final = "two byte integer"
FOUR_BYTES: Final = "four byte integer"
VARINT: Final = "variable byte integer"
STRING: Final = "UTF-8 encoded string"
BINARY: Final = "binary data"
PAIR: Final = "UTF-8 string pair"

ANY: Final = "any"
BOOLEAN: Final = "0 or 1"
POSITIVE: Final = "not 0"
TOPIC: Final = "topic name"

CONNECT: Final = Connect.TYPE
CONNACK: Final = Connack.TYPE
PUBLISH: Final = Publish.TYPE
PUBACK: Final = Puback.TYPE
PUBREC: Final = Pubrec.TYPE
PUBREL: Final = Pubrel.TYPE
PUBCOMP: Final = Pubcomp.TYPE
SUBSCRIBE: Final = Subscribe.TYPE
SUBACK: Final = Suback.TYPE
UNSUBSCRIBE: Final = Unsubscribe.TYPE
UNSUBACK: Final = Unsuback.TYPE
DISCONNECT: Final = Disconnect.TYPE
AUTH: Final = Auth.TYPE

PLACES: Final = (
    WILL,
    CONNECT,
    CONNACK,
    PUBLISH,
    PUBACK,
    PUBREC,
    PUBREL,
    PUBCOMP,
    SUBSCRIBE,
    SUBACK,
    UNSUBSCRIBE,
    UNSUBACK,
    DISCONNECT,
    AUTH,
)
"""Where properties may stand: every packet but PINGREQ and PINGRESP, and the will inside a CONNECT."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the table of properties (2.2.2.2), with what the sections of the packets say of the value."""

    name: str
    type: str
    domain: str
    places: frozenset[int]


def _rule(name: str, type: str, domain: str, *places: int) -> Rule:
    return Rule(name, type, domain, frozenset(places))


_ANSWERS: Final = (CONNACK, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK, DISCONNECT, AUTH)

RULES: Final = {
    0x01: _rule("Payload Format Indicator", BYTE, BOOLEAN, PUBLISH, WILL),
    0x02: _rule("Message Expiry Interval", FOUR_BYTES, ANY, PUBLISH, WILL),
    0x03: _rule("Content Type", STRING, ANY, PUBLISH, WILL),
    0x08: _rule("Response Topic", STRING, TOPIC, PUBLISH, WILL),
    0x09: _rule("Correlation Data", BINARY, ANY, PUBLISH, WILL),
    0x0B: _rule("Subscription Identifier", VARINT, POSITIVE, PUBLISH, SUBSCRIBE),
    0x11: _rule("Session Expiry Interval", FOUR_BYTES, ANY, CONNECT, CONNACK, DISCONNECT),
    0x12: _rule("Assigned Client Identifier", STRING, ANY, CONNACK),
    0x13: _rule("Server Keep Alive", TWO_BYTES, ANY, CONNACK),
    0x15: _rule("Authentication Method", STRING, ANY, CONNECT, CONNACK, AUTH),
    0x16: _rule("Authentication Data", BINARY, ANY, CONNECT, CONNACK, AUTH),
    0x17: _rule("Request Problem Information", BYTE, BOOLEAN, CONNECT),
    0x18: _rule("Will Delay Interval", FOUR_BYTES, ANY, WILL),
    0x19: _rule("Request Response Information", BYTE, BOOLEAN, CONNECT),
    0x1A: _rule("Response Information", STRING, ANY, CONNACK),
    0x1C: _rule("Server Reference", STRING, ANY, CONNACK, DISCONNECT),
    0x1F: _rule("Reason String", STRING, ANY, *_ANSWERS),
    0x21: _rule("Receive Maximum", TWO_BYTES, POSITIVE, CONNECT, CONNACK),
    0x22: _rule("Topic Alias Maximum", TWO_BYTES, ANY, CONNECT, CONNACK),
    0x23: _rule("Topic Alias", TWO_BYTES, POSITIVE, PUBLISH),
    0x24: _rule("Maximum QoS", BYTE, BOOLEAN, CONNACK),
    0x25: _rule("Retain Available", BYTE, BOOLEAN, CONNACK),
    0x26: _rule("User Property", PAIR, ANY, *PLACES),
    0x27: _rule("Maximum Packet Size", FOUR_BYTES, POSITIVE, CONNECT, CONNACK),
    0x28: _rule("Wildcard Subscription Available", BYTE, BOOLEAN, CONNACK),
    0x29: _rule("Subscription Identifier Available", BYTE, BOOLEAN, CONNACK),
    0x2A: _rule("Shared Subscription Available", BYTE, BOOLEAN, CONNACK),
}
"""Every property, by its identifier."""

REPEATABLE: Final = frozenset({(0x0B, PUBLISH)} | {(0x26, place) for place in PLACES})
"""Which property may stand more than once in which packet."""

_REFUSABLE: Final = (CONNACK, PUBACK, PUBREC, SUBACK, UNSUBACK, DISCONNECT)

REASON_CODES: Final[dict[int, tuple[int, ...]]] = {
    0x00: (CONNACK, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK, DISCONNECT, AUTH),
    0x01: (SUBACK,),
    0x02: (SUBACK,),
    0x04: (DISCONNECT,),
    0x10: (PUBACK, PUBREC),
    0x11: (UNSUBACK,),
    0x18: (AUTH,),
    0x19: (AUTH,),
    0x80: _REFUSABLE,
    0x81: (CONNACK, DISCONNECT),
    0x82: (CONNACK, DISCONNECT),
    0x83: _REFUSABLE,
    0x84: (CONNACK,),
    0x85: (CONNACK,),
    0x86: (CONNACK,),
    0x87: _REFUSABLE,
    0x88: (CONNACK,),
    0x89: (CONNACK, DISCONNECT),
    0x8A: (CONNACK,),
    0x8B: (DISCONNECT,),
    0x8C: (CONNACK, DISCONNECT),
    0x8D: (DISCONNECT,),
    0x8E: (DISCONNECT,),
    0x8F: (SUBACK, UNSUBACK, DISCONNECT),
    0x90: (CONNACK, PUBACK, PUBREC, DISCONNECT),
    0x91: (PUBACK, PUBREC, SUBACK, UNSUBACK),
    0x92: (PUBREL, PUBCOMP),
    0x93: (DISCONNECT,),
    0x94: (DISCONNECT,),
    0x95: (CONNACK, DISCONNECT),
    0x96: (DISCONNECT,),
    0x97: (CONNACK, PUBACK, PUBREC, SUBACK, DISCONNECT),
    0x98: (DISCONNECT,),
    0x99: (CONNACK, PUBACK, PUBREC, DISCONNECT),
    0x9A: (CONNACK, DISCONNECT),
    0x9B: (CONNACK, DISCONNECT),
    0x9C: (CONNACK, DISCONNECT),
    0x9D: (CONNACK, DISCONNECT),
    0x9E: (SUBACK, DISCONNECT),
    0x9F: (CONNACK, DISCONNECT),
    0xA0: (DISCONNECT,),
    0xA1: (SUBACK, DISCONNECT),
    0xA2: (SUBACK, DISCONNECT),
}
"""Which packets may carry each reason code (2.4)."""


def reasons_of(type: int) -> list[int]:
    """The reason codes that a packet of this type may carry."""
    return [reason for reason, types in REASON_CODES.items() if type in types]

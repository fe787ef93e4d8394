"""Answers to one client that say in words why: by a Reason String, where it may have one and there is room for it.

Whether it may is for the operator to say (`reason_strings`), and for the client (Request Problem Information), except
in CONNACK and DISCONNECT. Properties are left out where the packet would be larger than the client takes; a packet that
is too large without them is not sent.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from broker.mqtt.codec import encode
from broker.mqtt.errors import ProtocolError
from broker.mqtt.packets import Auth, Connack, Disconnect, Puback, Pubcomp, Pubrec, Pubrel, Suback, Unsuback
from broker.mqtt.properties import Properties, Property
from broker.mqtt.reason import Reason

if TYPE_CHECKING:
    from broker.connection import Connection

Answer = Connack | Puback | Pubrec | Pubrel | Pubcomp | Suback | Unsuback | Disconnect | Auth

CLAUSE: Final = "clause"
"""The name of the user property that names what a client has broken."""
_UNASKED: Final = (Connack.TYPE, Disconnect.TYPE)
"""Packets whose words the client can't do without asking [MQTT-3.1.2-29]."""
_LONGEST: Final = 512
"""Characters of a Reason String."""


def encode_answer(connection: Connection, packet: Answer, why: str = "", clause: str = "") -> bytes:
    """The bytes of a packet for this client, with as many of the words as may be said.

    Raises:
        ProtocolError: the client takes no packet as large as this one is without any.
    """
    version, largest = connection.version, connection.max_packet_size
    if version == 5 and why and _may_be_said(connection, packet):
        for words in _wordings(why[:_LONGEST], clause):
            data = encode(replace(packet, properties=packet.properties + words), 5)
            # [MQTT-3.2.2-19] [MQTT-3.2.2-20] [MQTT-3.4.2-2] [MQTT-3.4.2-3] [MQTT-3.5.2-2] [MQTT-3.5.2-3]
            # [MQTT-3.6.2-2] [MQTT-3.6.2-3] [MQTT-3.9.2-1] [MQTT-3.9.2-2] [MQTT-3.11.2-1] [MQTT-3.11.2-2]
            # [MQTT-3.14.2-3] [MQTT-3.14.2-4]
            if not largest or len(data) <= largest:
                return data
    data = encode(packet, version)
    if largest and len(data) > largest:
        raise ProtocolError(
            Reason.PACKET_TOO_LARGE,
            f"takes packets of {largest} bytes at most, and its {type(packet).__name__.upper()} would have {len(data)}",
            "MQTT-3.1.2-24",
        )
    return data


def _may_be_said(connection: Connection, packet: Answer) -> bool:
    return connection.limits.reason_strings and (connection.problem_information or packet.TYPE in _UNASKED)


def _wordings(why: str, clause: str) -> list[Properties]:
    """What might be said, most first."""
    said = (Property.REASON_STRING, why)
    short: Properties = (said,)
    return [(said, (Property.USER_PROPERTY, (CLAUSE, clause))), short] if clause else [short]

"""What a client publishes, and what it acknowledges: PUBLISH, PUBACK, PUBREC, PUBREL and PUBCOMP of a connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.answers import encode_answer
from broker.mqtt.errors import ProtocolError
from broker.mqtt.packets import Puback, Pubcomp, Publish, Pubrec, Pubrel
from broker.mqtt.properties import Property, encode_properties, first, number
from broker.mqtt.reason import Reason
from broker.offer import breaks_format, check_publish

if TYPE_CHECKING:
    from broker.connection import Connection

_TRAVELS_NOT: Final = frozenset((Property.TOPIC_ALIAS, Property.MESSAGE_EXPIRY_INTERVAL))
"""Properties of a PUBLISH that concern the connection, or that the log keeps in another form."""
_SHORT: Final = 256
"""Characters of a topic that are not counted where it has an alias: the number of aliases bounds them."""
_ALIASED: Final = 128 << 10
"""Characters of all topics together that have aliases, where one of them is longer."""
_SPOILT: Final = "a PUBLISH whose payload is not the UTF-8 that it says it is"
_IN_USE: Final = "a PUBLISH with the packet identifier of a QoS 2 message whose PUBREL is due"


def on_publish(connection: Connection, packet: Publish) -> None:
    """Take a message on, unless it is one that the client has sent before, or is not as it should be."""
    session = connection.session
    if session is None:
        raise connection.not_connected()
    hub = connection.hub
    spoilt = connection.checked and _is_spoilt(connection, packet)
    topic, properties, expires = packet.topic, b"", 0
    if packet.properties:
        topic, properties, expires = _resolve(connection, packet)
    qos = packet.qos
    if qos:
        if qos == 2:
            if packet.packet_id in session.received:
                hub.refusals.acknowledge_again(connection, packet.packet_id)  # [MQTT-4.3.3-10]
                return
            connection.unreleased.add(packet.packet_id)
        connection.owed += 1
        quota = connection.quota
        if (connection.owed > quota or len(connection.unreleased) > quota) and connection.version == 5:
            raise ProtocolError(
                Reason.RECEIVE_MAXIMUM_EXCEEDED,
                f"more than {quota} messages whose acknowledgement is due",
                "MQTT-3.3.4-7",
            )
        if qos == 2:
            session.received.add(packet.packet_id)
        elif session.received and packet.packet_id in session.received and connection.version == 5:
            _refuse(connection, packet, Reason.PACKET_IDENTIFIER_IN_USE, _IN_USE, "MQTT-2.2.1-3")
            return
    if spoilt:
        _refuse(connection, packet, Reason.PAYLOAD_FORMAT_INVALID, _SPOILT, "section 3.3.2.3.2")
        return
    hub.publish(connection, topic, packet.payload, qos, packet.retain, properties, expires, packet.packet_id)


def _is_spoilt(connection: Connection, packet: Publish) -> bool:
    """Whether the payload is not what it is said to be, where that is looked at.

    Raises:
        ProtocolError: the message has something that is not offered here.
    """
    limits = connection.limits
    check_publish(limits, packet)
    return limits.check_payload_format and breaks_format(packet.properties, packet.payload)


def _refuse(connection: Connection, packet: Publish, reason: Reason, why: str, clause: str) -> None:
    """Take a message not on that is not as it should be. At QoS 0 only a DISCONNECT can say so."""
    if not packet.qos:
        raise ProtocolError(reason, why, clause)
    connection.hub.refused_messages += 1
    connection.hub.refusals.reject(connection, packet.qos, packet.packet_id, reason, why, clause)


def _resolve(connection: Connection, packet: Publish) -> tuple[str, bytes, int]:
    """The topic that an alias stands for, the properties that travel on, and when the message expires."""
    topic = packet.topic
    if first(packet.properties, Property.SUBSCRIPTION_IDENTIFIER) is not None:
        raise ProtocolError(Reason.PROTOCOL_ERROR, "a client's PUBLISH with a subscription identifier", "MQTT-3.3.4-6")
    alias = number(packet.properties, Property.TOPIC_ALIAS, 0)
    if alias:
        if alias > connection.limits.topic_alias_maximum:
            raise ProtocolError(Reason.TOPIC_ALIAS_INVALID, f"topic alias {alias} is above the maximum", "MQTT-3.3.2-9")
        if topic:
            _set_alias(connection.named, alias, topic)
        elif alias in connection.named:
            topic = connection.named[alias]
        else:
            raise ProtocolError(Reason.PROTOCOL_ERROR, f"topic alias {alias} was never set", "section 3.3.2.3.4")
    interval = first(packet.properties, Property.MESSAGE_EXPIRY_INTERVAL)
    expires = connection.hub.now + interval * 1_000_000 if isinstance(interval, int) else 0
    properties = encode_properties(tuple(p for p in packet.properties if p[0] not in _TRAVELS_NOT))
    return topic, properties, expires


def _set_alias(named: dict[int, str], alias: int, topic: str) -> None:
    named[alias] = topic
    if len(topic) > _SHORT and sum(map(len, named.values())) > _ALIASED:
        raise ProtocolError(Reason.QUOTA_EXCEEDED, f"the topics that have aliases have more than {_ALIASED} characters")


def on_puback(connection: Connection, packet: Puback) -> None:
    """QoS 1: the client has a message."""
    session = connection.session
    if session is None:
        raise connection.not_connected()
    session.on_puback(packet.packet_id)


def on_pubrec(connection: Connection, packet: Pubrec) -> None:
    """QoS 2: the client has a message, or does not want it."""
    connection.connected().on_pubrec(packet.packet_id, packet.reason)


def on_pubcomp(connection: Connection, packet: Pubcomp) -> None:
    """QoS 2: a message is done with."""
    connection.connected().on_pubcomp(packet.packet_id)


def on_pubrel(connection: Connection, packet: Pubrel) -> None:
    """QoS 2: the client knows that a message of its own was taken on, and may use its identifier again."""
    session = connection.connected()
    packet_id = packet.packet_id
    connection.unreleased.discard(packet_id)
    answer = b"\x70\x02" + packet_id.to_bytes(2)
    if packet_id in session.received:
        session.received.discard(packet_id)
        if session.persistent:
            connection.hub.checkpoint(session)
    elif connection.version == 5:
        why = "no QoS 2 message has this packet identifier"
        answer = encode_answer(connection, Pubcomp(packet_id, Reason.PACKET_IDENTIFIER_NOT_FOUND), why)
    session.answer(answer)  # [MQTT-4.3.3-11]

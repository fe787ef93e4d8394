"""What a CONNACK says that accepts a client: where the server's bounds differ from what the client has asked for."""

from __future__ import annotations

import re

from broker.acl import Who
from broker.listener import Limits
from broker.mount import LONGEST
from broker.mqtt.codec import encode
from broker.mqtt.errors import ProtocolError
from broker.mqtt.packets import Connack, Connect
from broker.mqtt.properties import NEVER, Properties, Property, Value, number
from broker.mqtt.reason import Reason


def asked_expiry(packet: Connect) -> int:
    """The session expiry interval that a CONNECT asks for, s. Before MQTT 5 a session ends at once or never."""
    if packet.version == 5:
        return number(packet.properties, Property.SESSION_EXPIRY_INTERVAL, 0)
    return 0 if packet.clean_start else NEVER


def keep_alive(packet: Connect, limits: Limits) -> int:
    """How long the client may be silent, s; 0: for ever."""
    cap = limits.max_keep_alive
    if packet.version == 5 and cap and (packet.keep_alive > cap or not packet.keep_alive):
        return cap
    return packet.keep_alive


def accepting_properties(packet: Connect, limits: Limits, who: Who, expiry: int) -> Properties:
    """The properties of the CONNACK; `expiry` is the session expiry interval that the client gets, s."""
    if packet.version != 5:
        return ()
    properties: list[tuple[int, Value]] = [
        (Property.RECEIVE_MAXIMUM, limits.receive_maximum),
        (Property.MAXIMUM_PACKET_SIZE, limits.max_packet_size),
        (Property.TOPIC_ALIAS_MAXIMUM, limits.topic_alias_maximum),
    ]
    if limits.max_qos < 2:
        properties.append((Property.MAXIMUM_QOS, limits.max_qos))  # [MQTT-3.2.2-9]
    properties += [(property, 0) for property, available in _available(limits) if not available]
    if not packet.client_id:
        properties.append((Property.ASSIGNED_CLIENT_IDENTIFIER, who.client_id))  # [MQTT-3.1.3-6]
    if expiry != asked_expiry(packet):
        properties.append((Property.SESSION_EXPIRY_INTERVAL, expiry))
    kept = keep_alive(packet, limits)
    if kept != packet.keep_alive:
        properties.append((Property.SERVER_KEEP_ALIVE, kept))  # [MQTT-3.1.2-21]
    if number(packet.properties, Property.REQUEST_RESPONSE_INFORMATION, 0):  # [MQTT-3.1.2-28]
        prefix = response_topic(limits.response_topic_prefix, who)
        if prefix:
            properties.append((Property.RESPONSE_INFORMATION, prefix))
    return tuple(properties)


def response_topic(prefix: str, who: Who) -> str:
    """What topics for responses to this client begin with; empty: nothing in particular.

    A name that the client hasn't, or that would make it no part of a topic, gives none.
    """
    names = {"%c": who.client_id, "%u": who.username}
    if not all(names[each] for each in names if each in prefix):
        return ""
    topic = re.sub("%[cu]", lambda found: names[found[0]], prefix)
    return "" if any(each in topic for each in "+#") or len(topic.encode()) >= LONGEST else topic


def _available(limits: Limits) -> tuple[tuple[Property, bool], ...]:
    return (
        (Property.RETAIN_AVAILABLE, limits.retain_available),
        (Property.WILDCARD_SUBSCRIPTION_AVAILABLE, limits.wildcard_subscription_available),
        (Property.SUBSCRIPTION_IDENTIFIER_AVAILABLE, limits.subscription_identifier_available),
        (Property.SHARED_SUBSCRIPTION_AVAILABLE, limits.shared_subscription_available),
    )


def check_size(properties: Properties, largest: int) -> None:
    """Check that a client takes the CONNACK that it would get; `largest` bytes, 0: any.

    Raises:
        ProtocolError: it does not.
    """
    size = len(encode(Connack(False, Reason.SUCCESS, properties), 5)) if largest else 0
    if size > largest:
        raise ProtocolError(
            Reason.PACKET_TOO_LARGE,
            f"takes packets of {largest} bytes at most, and its CONNACK would have {size}",
            "MQTT-3.1.2-24",
        )

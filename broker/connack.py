"""What a CONNACK says that accepts a client: where the server's bounds differ from what the client has asked for."""

from __future__ import annotations

from broker.listener import Limits
from broker.mqtt.codec import encode
from broker.mqtt.errors import ProtocolError
from broker.mqtt.packets import Connack, Connect
from broker.mqtt.properties import NEVER, Properties, Property, first
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


def accepting_properties(packet: Connect, limits: Limits, client_id: str, expiry: int) -> Properties:
    """The properties of the CONNACK; `expiry` is the session expiry interval that the client gets, s."""
    if packet.version != 5:
        return ()
    properties: list[tuple[int, int | str | bytes | tuple[str, str]]] = [
        (Property.RECEIVE_MAXIMUM, limits.receive_maximum),
        (Property.MAXIMUM_PACKET_SIZE, limits.max_packet_size),
        (Property.TOPIC_ALIAS_MAXIMUM, limits.topic_alias_maximum),
        (Property.SHARED_SUBSCRIPTION_AVAILABLE, 0),
    ]
    if not packet.client_id:
        properties.append((Property.ASSIGNED_CLIENT_IDENTIFIER, client_id))  # [MQTT-3.1.3-6]
    if expiry != asked_expiry(packet):
        properties.append((Property.SESSION_EXPIRY_INTERVAL, expiry))
    kept = keep_alive(packet, limits)
    if kept != packet.keep_alive:
        properties.append((Property.SERVER_KEEP_ALIVE, kept))  # [MQTT-3.1.2-21]
    return tuple(properties)


def check_size(properties: Properties, largest: int) -> None:
    """Check that a client takes the CONNACK that it would get; `largest` bytes, 0: any.

    Raises:
        ProtocolError: it does not.
    """
    size = len(encode(Connack(False, Reason.SUCCESS, properties), 5)) if largest else 0
    if size > largest:  # [MQTT-3.1.2-24]
        raise ProtocolError(
            Reason.PACKET_TOO_LARGE, f"takes packets of {largest} bytes at most, and its CONNACK would have {size}"
        )


def number(properties: Properties, property: Property, default: int) -> int:
    """The value of a numeric property, where it is there."""
    value = first(properties, property) if properties else None
    return value if isinstance(value, int) else default

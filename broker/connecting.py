"""What a client says of its connection: CONNECT, AUTH, PINGREQ and DISCONNECT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.aliases import Aliases
from broker.mqtt.errors import ProtocolError
from broker.mqtt.packets import Auth, Connect, Disconnect, Pingreq
from broker.mqtt.properties import Properties, Property, first, number
from broker.mqtt.reason import Reason

if TYPE_CHECKING:
    from broker.connection import Connection

_CLIENTS_REASONS: Final = frozenset((0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, *range(0x93, 0x9A)))
"""The reason codes of DISCONNECT that clients may use; the others are for servers (section 3.14.2.1)."""
_CLIENT_ID: Final = 1024
"""Bytes of a client identifier: each event of the log has it."""


def on_connect(connection: Connection, packet: Connect) -> None:
    """Connect a client, or find out first who it is."""
    if connection.version:
        raise ProtocolError(Reason.PROTOCOL_ERROR, "a second CONNECT", "MQTT-3.1.0-2")
    hub, listener, limits = connection.hub, connection.listener, connection.limits
    hub.traffic.connects += 1
    connection.version = packet.version
    connection.claimed = packet.client_id
    _take_wishes(connection, packet.properties)
    if limits.redirect is not None:
        reference: Properties = ()
        if limits.server_reference and packet.version == 5:
            reference = ((Property.SERVER_REFERENCE, limits.server_reference),)
        connection.close(limits.redirect, "nobody is connected here", properties=reference)
        return
    if listener.meter is not None and not listener.meter.may_connect(hub.now):
        raise ProtocolError(
            Reason.CONNECTION_RATE_EXCEEDED, f"more clients connect to listener {listener.name} than connect_rate"
        )
    if len(packet.client_id) * 4 > _CLIENT_ID and len(packet.client_id.encode()) > _CLIENT_ID:
        raise ProtocolError(
            Reason.CLIENT_IDENTIFIER_NOT_VALID, f"a client identifier of more than {_CLIENT_ID} bytes", "MQTT-3.1.3-8"
        )
    if listener.access is None and first(packet.properties, Property.AUTHENTICATION_METHOD) is None:
        connection.admit(packet, "", ())
        return
    from broker.login import Login  # where nobody is asked who it is, nobody needs it

    connection.login = Login(hub, connection, packet)
    connection.login.begin(listener.access)
    if connection.login is not None and connection.login.waiting:
        connection.stopped = True


def _take_wishes(connection: Connection, properties: Properties) -> None:
    """Note what a CONNECT says of the packets that its client is to be sent."""
    if not properties:
        return
    connection.max_packet_size = number(properties, Property.MAXIMUM_PACKET_SIZE, 0)
    connection.problem_information = number(properties, Property.REQUEST_PROBLEM_INFORMATION, 1) == 1
    # [MQTT-3.1.2-26] [MQTT-3.1.2-27] [MQTT-3.3.2-11]
    most = min(number(properties, Property.TOPIC_ALIAS_MAXIMUM, 0), connection.limits.max_topic_aliases)
    if most:
        connection.aliases = Aliases(most)
    if most or connection.max_packet_size:
        connection.shaped = True


def on_auth(connection: Connection, packet: Auth) -> None:
    """Go on with finding out who the client is."""
    asked = connection.login or connection.renewal
    if asked is None:
        raise ProtocolError(
            Reason.PROTOCOL_ERROR, "an AUTH without an authentication method in the CONNECT", "MQTT-4.12.0-7"
        )
    asked.on_auth(packet)


def on_pingreq(connection: Connection, _: Pingreq) -> None:
    """Answer."""
    connection.connected()
    connection.send(b"\xd0\x00")  # [MQTT-3.12.4-1]


def on_disconnect(connection: Connection, packet: Disconnect) -> None:
    """The client goes."""
    if connection.login is not None:  # it has thought better of it
        connection.end(will=False)
        return
    session = connection.connected()
    if packet.reason not in _CLIENTS_REASONS:
        raise ProtocolError(
            Reason.PROTOCOL_ERROR,
            f"a DISCONNECT with reason code 0x{packet.reason:02X}, which is for servers",
            "MQTT-3.14.2-1",
        )
    if first(packet.properties, Property.SERVER_REFERENCE) is not None:
        raise ProtocolError(
            Reason.PROTOCOL_ERROR, "a DISCONNECT with a server reference, which is for servers", "section 3.14.2.2.5"
        )
    interval = first(packet.properties, Property.SESSION_EXPIRY_INTERVAL)
    if isinstance(interval, int):
        if interval and not session.expiry:
            raise ProtocolError(
                Reason.PROTOCOL_ERROR,
                "a session that ends with its connection can't be prolonged",
                "section 3.14.2.2.2",
            )
        connection.hub.sessions.prolong(session, min(interval, connection.limits.max_session_expiry))
    connection.end(will=packet.reason != Reason.NORMAL_DISCONNECTION)  # [MQTT-3.14.4-3]

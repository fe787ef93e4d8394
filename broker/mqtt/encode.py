"""Packets to bytes: every type of every version.

What a version cannot say is left out: before MQTT 5 properties and the reasons of acknowledgements. What no version can
say (a packet identifier of 0, a string that is too long) is a `ValueError`: the caller erred, and nothing is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from broker.mqtt.errors import ProtocolError
from broker.mqtt.packets import (
    REASONS,
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
    Will,
)
from broker.mqtt.properties import WILL, Properties, Property, check_properties, encode_properties, first
from broker.mqtt.reason import return_code
from broker.mqtt.topic import SHARE, validate_filter, validate_name
from broker.mqtt.wire import encode_binary, encode_string, encode_varint

_NAMES: Final[dict[str, bytes]] = {}
"""Topic names that were found valid, as they are written. One for all connections, so that its bound is one for all."""

_NAMES_MAX: Final = 4096
_NAME_SIZE_MAX: Final = 256


def encode(packet: Packet, version: int) -> bytes:
    """The bytes of a packet in a version of MQTT (3, 4 or 5).

    Raises:
        ValueError: a field is out of its range, or the version has no such packet.
    """
    return _ENCODERS[packet.TYPE](packet, version)


def _packet(first: int, body: bytes) -> bytes:
    return bytes((first,)) + encode_varint(len(body)) + body


def _publish(packet: Publish, version: int) -> bytes:
    qos = packet.qos
    if not 0 <= qos <= 2:
        raise ValueError(f"QoS {qos}")
    if packet.dup and not qos:  # [MQTT-3.3.1-2]
        raise ValueError("DUP at QoS 0")
    body = _NAMES.get(packet.topic) or _name(packet, version)
    if qos:
        body += _packet_id(packet.packet_id)
    elif packet.packet_id:  # [MQTT-2.2.1-2]
        raise ValueError("packet identifier at QoS 0")
    if version == 5:
        body += _properties(packet.properties, Publish.TYPE)
    size = len(body) + len(packet.payload)
    first = 0x30 | packet.dup << 3 | qos << 1 | packet.retain
    return bytes((first,)) + encode_varint(size) + body + packet.payload


def _name(packet: Publish, version: int) -> bytes:
    topic = packet.topic
    if not topic and version == 5 and first(packet.properties, Property.TOPIC_ALIAS) is not None:
        return b"\0\0"
    _valid(validate_name, topic)
    name = encode_string(topic)
    if len(name) <= _NAME_SIZE_MAX:
        if len(_NAMES) >= _NAMES_MAX:
            _NAMES.clear()
        _NAMES[topic] = name
    return name


def _connect(packet: Connect, version: int) -> bytes:
    if packet.version != version:
        raise ValueError(f"CONNECT for version {packet.version} in version {version}")
    if version < 5 and packet.password is not None and packet.username is None:
        raise ValueError("password without a user name")
    if not packet.client_id and (version == 3 or (version == 4 and not packet.clean_start)):
        raise ValueError("client identifier is empty")
    if not 0 <= packet.keep_alive <= 0xFFFF:
        raise ValueError(f"keep alive of {packet.keep_alive} s")
    flags = packet.clean_start << 1
    payload = encode_string(packet.client_id)
    if packet.will is not None:
        flags |= 0x04 | packet.will.qos << 3 | packet.will.retain << 5
        payload += _will(packet.will, version)
    if packet.username is not None:
        flags |= 0x80
        payload += encode_string(packet.username)
    if packet.password is not None:
        flags |= 0x40
        payload += encode_binary(packet.password)
    body = encode_string("MQIsdp" if version == 3 else "MQTT") + bytes((version, flags))
    body += packet.keep_alive.to_bytes(2, "big")
    if version == 5:
        body += _properties(packet.properties, Connect.TYPE)
    return _packet(0x10, body + payload)


def _will(will: Will, version: int) -> bytes:
    if not 0 <= will.qos <= 2:
        raise ValueError(f"will QoS {will.qos}")
    _valid(validate_name, will.topic)
    properties = _properties(will.properties, WILL) if version == 5 else b""
    return properties + encode_string(will.topic) + encode_binary(will.payload)


def _connack(packet: Connack, version: int) -> bytes:
    if packet.session_present and packet.reason:  # [MQTT-3.2.2-6]
        raise ValueError("session present in a CONNACK that refuses")
    if version == 5:
        _check_reason(packet.reason, Connack.TYPE)
        body = bytes((packet.session_present, packet.reason)) + _properties(packet.properties, Connack.TYPE)
    else:
        # MQTT 3.1 has no session present flag.
        body = bytes((packet.session_present and version == 4, return_code(packet.reason)))
    return _packet(0x20, body)


def _acknowledgement(first: int) -> Callable[[Puback | Pubrec | Pubrel | Pubcomp, int], bytes]:
    start = bytes((first, 2))

    def encode_acknowledgement(packet: Puback | Pubrec | Pubrel | Pubcomp, version: int) -> bytes:
        if version < 5 or not (packet.reason or packet.properties):
            return start + _packet_id(packet.packet_id)
        _check_reason(packet.reason, packet.TYPE)
        body = _packet_id(packet.packet_id) + bytes((packet.reason,))
        if packet.properties:
            body += _properties(packet.properties, packet.TYPE)
        return _packet(first, body)

    return encode_acknowledgement


def _subscribe(packet: Subscribe, version: int) -> bytes:
    if not packet.subscriptions:  # [MQTT-3.8.3-2]
        raise ValueError("SUBSCRIBE without a topic filter")
    body = _packet_id(packet.packet_id)
    if version == 5:
        body += _properties(packet.properties, Subscribe.TYPE)
    return _packet(0x82, body + b"".join(_subscription(each, version) for each in packet.subscriptions))


def _subscription(subscription: Subscription, version: int) -> bytes:
    _valid(validate_filter, subscription.filter)
    if not 0 <= subscription.qos <= 2 or not 0 <= subscription.retain_handling <= 2:
        raise ValueError(f"no such options: {subscription}")
    if subscription.no_local and subscription.filter.startswith(SHARE):  # [MQTT-3.8.3-4]
        raise ValueError("no local on a shared subscription")
    options = subscription.qos
    if version == 5:
        options |= (
            subscription.no_local << 2 | subscription.retain_as_published << 3 | subscription.retain_handling << 4
        )
    return encode_string(subscription.filter) + bytes((options,))


def _suback(packet: Suback, version: int) -> bytes:
    if not packet.reasons:
        raise ValueError("SUBACK without a reason code")
    for reason in packet.reasons:
        _check_reason(reason, Suback.TYPE)
    if version < 5:
        return _packet(0x90, _packet_id(packet.packet_id) + bytes(min(reason, 0x80) for reason in packet.reasons))
    return _packet(
        0x90, _packet_id(packet.packet_id) + _properties(packet.properties, Suback.TYPE) + bytes(packet.reasons)
    )


def _unsubscribe(packet: Unsubscribe, version: int) -> bytes:
    if not packet.filters:  # [MQTT-3.10.3-2]
        raise ValueError("UNSUBSCRIBE without a topic filter")
    for filter in packet.filters:
        _valid(validate_filter, filter)
    body = _packet_id(packet.packet_id)
    if version == 5:
        body += _properties(packet.properties, Unsubscribe.TYPE)
    return _packet(0xA2, body + b"".join(map(encode_string, packet.filters)))


def _unsuback(packet: Unsuback, version: int) -> bytes:
    if version < 5:
        return _packet(0xB0, _packet_id(packet.packet_id))
    if not packet.reasons:
        raise ValueError("UNSUBACK without a reason code")
    for reason in packet.reasons:
        _check_reason(reason, Unsuback.TYPE)
    return _packet(
        0xB0, _packet_id(packet.packet_id) + _properties(packet.properties, Unsuback.TYPE) + bytes(packet.reasons)
    )


def _pingreq(packet: Pingreq, version: int) -> bytes:
    return b"\xc0\x00"


def _pingresp(packet: Pingresp, version: int) -> bytes:
    return b"\xd0\x00"


def _disconnect(packet: Disconnect, version: int) -> bytes:
    if version < 5 or not (packet.reason or packet.properties):
        return b"\xe0\x00"
    _check_reason(packet.reason, Disconnect.TYPE)
    body = bytes((packet.reason,))
    if packet.properties:
        body += _properties(packet.properties, Disconnect.TYPE)
    return _packet(0xE0, body)


def _auth(packet: Auth, version: int) -> bytes:
    if version < 5:
        raise ValueError(f"there is no AUTH in version {version}")
    if not (packet.reason or packet.properties):
        return b"\xf0\x00"
    _check_reason(packet.reason, Auth.TYPE)
    return _packet(0xF0, bytes((packet.reason,)) + _properties(packet.properties, Auth.TYPE))


def _packet_id(packet_id: int) -> bytes:
    if not 0 < packet_id <= 0xFFFF:  # [MQTT-2.2.1-3] [MQTT-2.2.1-4]
        raise ValueError(f"packet identifier {packet_id}")
    return packet_id.to_bytes(2, "big")


def _properties(properties: Properties, type: int) -> bytes:
    if not properties and type != Auth.TYPE:
        return b"\0"  # [MQTT-2.2.2-1]
    check_properties(properties, type)
    written = encode_properties(properties)
    return encode_varint(len(written)) + written


def _check_reason(reason: int, type: int) -> None:
    if reason not in REASONS[type]:
        raise ValueError(f"packet of type {type} with reason code {reason}")


def _valid(check: Callable[[str], None], text: str) -> None:
    try:
        check(text)
    except ProtocolError as error:
        raise ValueError(str(error)) from error


_ENCODERS: Final[dict[int, Callable[[Any, int], bytes]]] = {
    Connect.TYPE: _connect,
    Connack.TYPE: _connack,
    Publish.TYPE: _publish,
    Puback.TYPE: _acknowledgement(0x40),
    Pubrec.TYPE: _acknowledgement(0x50),
    Pubrel.TYPE: _acknowledgement(0x62),
    Pubcomp.TYPE: _acknowledgement(0x70),
    Subscribe.TYPE: _subscribe,
    Suback.TYPE: _suback,
    Unsubscribe.TYPE: _unsubscribe,
    Unsuback.TYPE: _unsuback,
    Pingreq.TYPE: _pingreq,
    Pingresp.TYPE: _pingresp,
    Disconnect.TYPE: _disconnect,
    Auth.TYPE: _auth,
}

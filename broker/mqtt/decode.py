"""One whole packet from its bytes: every type of every version.

The decoder in `codec` takes the most frequent packets apart by itself and leaves all others, and everything that is
wrong, to this module. Whatever the bytes are, a function here returns a packet or raises a ProtocolError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

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
from broker.mqtt.properties import WILL, Properties, Property, read_properties
from broker.mqtt.reason import RETURN_CODES, Reason
from broker.mqtt.topic import SHARE, validate_filter, validate_name
from broker.mqtt.wire import Reader, decode_text

PROTOCOLS: Final = {("MQIsdp", 3): 3, ("MQTT", 4): 4, ("MQTT", 5): 5}
"""The protocol names and levels that are spoken, and the version each means."""

_TOPICS_MAX: Final = 4096
_TOPIC_SIZE_MAX: Final = 256

_FLAGS: Final = {
    Pubrel.TYPE: "MQTT-3.6.1-1",
    Subscribe.TYPE: "MQTT-3.8.1-1",
    Unsubscribe.TYPE: "MQTT-3.10.1-1",
    Disconnect.TYPE: "MQTT-3.14.1-1",
    Auth.TYPE: "MQTT-3.15.1-1",
}
"""What says which flags a packet has, by its type, where not only the section on all packets does."""

_REASONED: Final = {
    Connack.TYPE: "MQTT-3.2.2-8",
    Puback.TYPE: "MQTT-3.4.2-1",
    Pubrec.TYPE: "MQTT-3.5.2-1",
    Pubrel.TYPE: "MQTT-3.6.2-1",
    Pubcomp.TYPE: "MQTT-3.7.2-1",
    Suback.TYPE: "MQTT-3.9.3-2",
    Unsuback.TYPE: "MQTT-3.11.3-2",
    Disconnect.TYPE: "MQTT-3.14.2-1",
    Auth.TYPE: "MQTT-3.15.2-1",
}
"""What says which reason codes a packet may have, by its type."""

TOPICS: Final[dict[bytes, str]] = {}
"""Topic names that were found valid, by their bytes. One for all connections, so that its bound is one for all."""


def check_first_byte(first: int, version: int) -> None:
    """Check type and flags of a packet; `version` is 0 while none is known.

    Raises:
        ProtocolError: no such packet may come, or its flags are not those of its type.
    """
    type = first >> 4
    flags = first & 0x0F
    if version == 0 and type != Connect.TYPE:
        raise ProtocolError(Reason.PROTOCOL_ERROR, "the first packet is not a CONNECT", "MQTT-3.1.0-1")
    if version != 0 and type == Connect.TYPE:
        raise ProtocolError(Reason.PROTOCOL_ERROR, "a second CONNECT", "MQTT-3.1.0-2")
    if type == 0 or (type == Auth.TYPE and version < 5):
        raise ProtocolError(Reason.MALFORMED_PACKET, f"packet type {type} is reserved", "section 2.1.2")
    if type == Publish.TYPE:
        if flags & 0x06 == 0x06:
            raise ProtocolError(Reason.MALFORMED_PACKET, "PUBLISH with QoS 3", "MQTT-3.3.1-4")
        if flags & 0x0E == 0x08:
            raise ProtocolError(Reason.MALFORMED_PACKET, "PUBLISH with DUP at QoS 0", "MQTT-3.3.1-2")
        return
    wanted = 0x02 if type in (Pubrel.TYPE, Subscribe.TYPE, Unsubscribe.TYPE) else 0
    # MQTT 3.1 sets DUP when it sends one of these three again, and says nothing of the flags of others. Whether a
    # CONNECT is of that version is still to be read.
    lenient = not version or (version == 3 and (not wanted or flags == wanted | 0x08))
    if flags != wanted and not lenient:
        clause = _FLAGS.get(type, "MQTT-2.1.3-1")
        raise ProtocolError(Reason.MALFORMED_PACKET, f"packet of type {type} with flags {flags}", clause)


def decode_packet(first: int, data: bytes, at: int, end: int, version: int) -> Packet:
    """The packet whose first byte is `first` and whose variable header and payload are `data[at:end]`.

    Raises:
        ProtocolError: it is not a valid packet of this version.
    """
    check_first_byte(first, version)
    reader = Reader(data, at, end)
    packet = _DECODERS[first >> 4](reader, first, version)
    reader.finish()
    return packet


def read_version(reader: Reader) -> int:
    """The version that a CONNECT asks for.

    Raises:
        ProtocolError: it is none of those that are spoken.
    """
    name = reader.string()
    level = reader.byte()
    version = PROTOCOLS.get((name, level))
    if version is None:
        clause = "MQTT-3.1.2-2" if name == "MQTT" else "MQTT-3.1.2-1"
        raise ProtocolError(
            Reason.UNSUPPORTED_PROTOCOL_VERSION, f"protocol {name[:16]!r} level {level} is not spoken", clause
        )
    return version


def _connect(reader: Reader, first: int, version: int) -> Packet:
    version = read_version(reader)
    if first & 0x0F and version > 3:
        raise ProtocolError(Reason.MALFORMED_PACKET, f"CONNECT with flags {first & 0x0F}", "MQTT-2.1.3-1")
    flags = reader.byte()
    _check_connect_flags(flags, version)
    keep_alive = reader.two_bytes()
    properties = _properties(reader, Connect.TYPE) if version == 5 else ()
    client_id = reader.string()  # [MQTT-3.1.3-3] [MQTT-3.1.3-4]
    clean_start = bool(flags & 0x02)
    # MQTT 3.1 knows no empty client identifier, 3.1.1 only with a clean session. That 3.1 ends it after 23 characters
    # is not enforced: its clients have longer ones, and no server minds.
    if not client_id and (version == 3 or (version == 4 and not clean_start)):
        raise ProtocolError(Reason.CLIENT_IDENTIFIER_NOT_VALID, "client identifier is empty", "section 3.1.3.1")
    will = _will(reader, flags, version) if flags & 0x04 else None
    username = password = None
    # In MQTT 3.1 the remaining length goes before the flags: the fields may be left out.
    if flags & 0x80 and not (version == 3 and reader.at == reader.end):  # [MQTT-3.1.2-16] [MQTT-3.1.2-17]
        username = reader.string()  # [MQTT-3.1.3-12]
    if flags & 0x40 and not (version == 3 and reader.at == reader.end):  # [MQTT-3.1.2-18] [MQTT-3.1.2-19]
        password = reader.binary()
    return Connect(client_id, version, clean_start, keep_alive, will, username, password, properties)


def _check_connect_flags(flags: int, version: int) -> None:
    # MQTT 3.1 uses none of the flags that are reserved, and disregards the will's where there is no will.
    if flags & 0x01 and version > 3:
        raise ProtocolError(Reason.MALFORMED_PACKET, "reserved CONNECT flag is set", "MQTT-3.1.2-3")
    if flags & 0x18 == 0x18 and (flags & 0x04 or version > 3):
        raise ProtocolError(Reason.MALFORMED_PACKET, "will QoS is 3", "MQTT-3.1.2-12")
    if flags & 0x38 and not flags & 0x04 and version > 3:
        clause = "MQTT-3.1.2-11" if flags & 0x18 else "MQTT-3.1.2-13"
        raise ProtocolError(Reason.MALFORMED_PACKET, "will QoS or will retain without a will", clause)
    if version < 5 and flags & 0xC0 == 0x40:
        raise ProtocolError(Reason.MALFORMED_PACKET, "password without a user name", "section 3.1.2.9")


def _will(reader: Reader, flags: int, version: int) -> Will:
    properties = _properties(reader, WILL) if version == 5 else ()
    topic = reader.string()  # [MQTT-3.1.3-11]
    validate_name(topic)
    payload = reader.binary()  # [MQTT-3.1.2-9]
    return Will(topic, payload, flags >> 3 & 3, bool(flags & 0x20), properties)


def _connack(reader: Reader, first: int, version: int) -> Packet:
    flags = reader.byte()
    if flags > (version > 3):
        raise ProtocolError(Reason.MALFORMED_PACKET, "reserved CONNACK flag is set", "MQTT-3.2.2-1")
    code = reader.byte()
    if version == 5:
        _check_reason(code, Connack.TYPE)
    elif code < len(RETURN_CODES):
        code = RETURN_CODES[code]
    else:
        raise ProtocolError(Reason.PROTOCOL_ERROR, f"there is no CONNECT return code {code}", "MQTT-3.2.2-8")
    if flags and code:
        raise ProtocolError(Reason.PROTOCOL_ERROR, "session present in a CONNACK that refuses", "MQTT-3.2.2-6")
    properties = _properties(reader, Connack.TYPE) if version == 5 else ()
    return Connack(bool(flags), code, properties)


def _publish(reader: Reader, first: int, version: int) -> Packet:
    topic = _topic(reader)
    qos = first >> 1 & 3
    packet_id = reader.packet_id() if qos else 0
    properties = _properties(reader, Publish.TYPE) if version == 5 else ()
    if not topic and not _has_alias(properties):
        raise ProtocolError(Reason.PROTOCOL_ERROR, "PUBLISH with neither topic name nor topic alias", "section 3.3.2.1")
    payload = reader.rest()
    return Publish(topic, payload, qos, bool(first & 0x01), bool(first & 0x08), packet_id, properties)


def _topic(reader: Reader) -> str:
    name = reader.binary()
    topic = TOPICS.get(name)
    if topic is None:
        topic = decode_text(name)  # [MQTT-3.3.2-1]
        if topic:
            validate_name(topic)  # [MQTT-3.3.2-2]
            if len(name) <= _TOPIC_SIZE_MAX:
                if len(TOPICS) >= _TOPICS_MAX:
                    TOPICS.clear()
                TOPICS[name] = topic
    return topic


def _has_alias(properties: Properties) -> bool:
    return any(id == Property.TOPIC_ALIAS for id, _ in properties)


def _puback(reader: Reader, first: int, version: int) -> Packet:
    return Puback(*_acknowledgement(reader, Puback.TYPE, version))


def _pubrec(reader: Reader, first: int, version: int) -> Packet:
    return Pubrec(*_acknowledgement(reader, Pubrec.TYPE, version))


def _pubrel(reader: Reader, first: int, version: int) -> Packet:
    return Pubrel(*_acknowledgement(reader, Pubrel.TYPE, version))


def _pubcomp(reader: Reader, first: int, version: int) -> Packet:
    return Pubcomp(*_acknowledgement(reader, Pubcomp.TYPE, version))


def _acknowledgement(reader: Reader, type: int, version: int) -> tuple[int, int, Properties]:
    packet_id = reader.packet_id()
    if version < 5 or reader.at == reader.end:
        return packet_id, 0, ()
    reason = reader.byte()
    _check_reason(reason, type)
    return packet_id, reason, _properties(reader, type) if reader.at < reader.end else ()


def _subscribe(reader: Reader, first: int, version: int) -> Packet:
    packet_id = reader.packet_id()
    properties = _properties(reader, Subscribe.TYPE) if version == 5 else ()
    subscriptions: list[Subscription] = []
    while reader.at < reader.end:
        subscriptions.append(_subscription(reader, version))
    if not subscriptions:
        raise ProtocolError(Reason.PROTOCOL_ERROR, "SUBSCRIBE without a topic filter", "MQTT-3.8.3-2")
    return Subscribe(packet_id, tuple(subscriptions), properties)


def _subscription(reader: Reader, version: int) -> Subscription:
    filter = reader.string()  # [MQTT-3.8.3-1]
    validate_filter(filter)
    options = reader.byte()
    if options & (0xC0 if version == 5 else 0xFC):
        raise ProtocolError(Reason.MALFORMED_PACKET, "reserved subscription option is set", "MQTT-3.8.3-5")
    qos = options & 0x03
    if qos == 3:
        # Before MQTT 5 the packet is malformed; in MQTT 5 it breaks a rule.
        reason = Reason.PROTOCOL_ERROR if version == 5 else Reason.MALFORMED_PACKET
        raise ProtocolError(reason, "subscription with QoS 3", "section 3.8.3.1")
    no_local = bool(options & 0x04)
    if no_local and filter.startswith(SHARE):
        raise ProtocolError(Reason.PROTOCOL_ERROR, "no local on a shared subscription", "MQTT-3.8.3-4")
    retain_handling = options >> 4
    if retain_handling == 3:
        raise ProtocolError(Reason.PROTOCOL_ERROR, "retain handling is 3", "section 3.8.3.1")
    return Subscription(filter, qos, no_local, bool(options & 0x08), retain_handling)


def _suback(reader: Reader, first: int, version: int) -> Packet:
    packet_id = reader.packet_id()
    properties = _properties(reader, Suback.TYPE) if version == 5 else ()
    reasons = tuple(reader.rest())
    if not reasons:
        raise ProtocolError(Reason.PROTOCOL_ERROR, "SUBACK without a reason code", "section 3.9.3")
    for reason in reasons:
        if version == 5:
            _check_reason(reason, Suback.TYPE)
        elif reason not in (0, 1, 2, 0x80):
            raise ProtocolError(Reason.PROTOCOL_ERROR, f"there is no SUBACK return code {reason}", "MQTT-3.9.3-2")
    return Suback(packet_id, reasons, properties)


def _unsubscribe(reader: Reader, first: int, version: int) -> Packet:
    packet_id = reader.packet_id()
    properties = _properties(reader, Unsubscribe.TYPE) if version == 5 else ()
    filters: list[str] = []
    while reader.at < reader.end:
        filters.append(reader.string())  # [MQTT-3.10.3-1]
        validate_filter(filters[-1])
    if not filters:
        raise ProtocolError(Reason.PROTOCOL_ERROR, "UNSUBSCRIBE without a topic filter", "MQTT-3.10.3-2")
    return Unsubscribe(packet_id, tuple(filters), properties)


def _unsuback(reader: Reader, first: int, version: int) -> Packet:
    packet_id = reader.packet_id()
    if version < 5:
        return Unsuback(packet_id)
    properties = _properties(reader, Unsuback.TYPE)
    reasons = tuple(reader.rest())
    if not reasons:
        raise ProtocolError(Reason.PROTOCOL_ERROR, "UNSUBACK without a reason code", "section 3.11.3")
    for reason in reasons:
        _check_reason(reason, Unsuback.TYPE)
    return Unsuback(packet_id, reasons, properties)


def _pingreq(reader: Reader, first: int, version: int) -> Packet:
    return Pingreq()


def _pingresp(reader: Reader, first: int, version: int) -> Packet:
    return Pingresp()


def _disconnect(reader: Reader, first: int, version: int) -> Packet:
    if version < 5 or reader.at == reader.end:
        return Disconnect()
    reason = reader.byte()
    _check_reason(reason, Disconnect.TYPE)
    return Disconnect(reason, _properties(reader, Disconnect.TYPE) if reader.at < reader.end else ())


def _auth(reader: Reader, first: int, version: int) -> Packet:
    if reader.at == reader.end:
        return Auth()
    reason = reader.byte()
    _check_reason(reason, Auth.TYPE)
    return Auth(reason, _properties(reader, Auth.TYPE))


def _check_reason(reason: int, type: int) -> None:
    if reason not in REASONS[type]:
        raise ProtocolError(
            Reason.PROTOCOL_ERROR, f"packet of type {type} with reason code 0x{reason:02X}", _REASONED[type]
        )


def _properties(reader: Reader, type: int) -> Properties:
    size = reader.varint()
    if not size and type != Auth.TYPE:
        return ()
    end = reader.at + size
    if end > reader.end:
        raise ProtocolError(Reason.MALFORMED_PACKET, "properties are longer than the packet")
    properties = read_properties(Reader(reader.data, reader.at, end), type)
    reader.at = end
    return properties


_DECODERS: Final[dict[int, Callable[[Reader, int, int], Packet]]] = {
    Connect.TYPE: _connect,
    Connack.TYPE: _connack,
    Publish.TYPE: _publish,
    Puback.TYPE: _puback,
    Pubrec.TYPE: _pubrec,
    Pubrel.TYPE: _pubrel,
    Pubcomp.TYPE: _pubcomp,
    Subscribe.TYPE: _subscribe,
    Suback.TYPE: _suback,
    Unsubscribe.TYPE: _unsubscribe,
    Unsuback.TYPE: _unsuback,
    Pingreq.TYPE: _pingreq,
    Pingresp.TYPE: _pingresp,
    Disconnect.TYPE: _disconnect,
    Auth.TYPE: _auth,
}

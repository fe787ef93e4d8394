"""Properties of MQTT 5: which there are, what they hold, where each may stand (section 2.2.2).

Properties are pairs (identifier, value) in the order of the wire, since the order of user properties has a meaning. A
value is an int, a str, bytes, or a pair of str (a user property). Each property but two may stand once in a packet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from broker.mqtt.errors import ProtocolError
from broker.mqtt.reason import Reason
from broker.mqtt.topic import validate_name
from broker.mqtt.wire import Reader, encode_binary, encode_string, encode_varint

NEVER: Final = 0xFFFFFFFF
"""The session expiry interval of a session that never expires."""

Value = int | str | bytes | tuple[str, str]
Properties = tuple[tuple[int, Value], ...]


class Property(IntEnum):
    """A property identifier."""

    PAYLOAD_FORMAT_INDICATOR = 0x01
    MESSAGE_EXPIRY_INTERVAL = 0x02
    CONTENT_TYPE = 0x03
    RESPONSE_TOPIC = 0x08
    CORRELATION_DATA = 0x09
    SUBSCRIPTION_IDENTIFIER = 0x0B
    SESSION_EXPIRY_INTERVAL = 0x11
    ASSIGNED_CLIENT_IDENTIFIER = 0x12
    SERVER_KEEP_ALIVE = 0x13
    AUTHENTICATION_METHOD = 0x15
    AUTHENTICATION_DATA = 0x16
    REQUEST_PROBLEM_INFORMATION = 0x17
    WILL_DELAY_INTERVAL = 0x18
    REQUEST_RESPONSE_INFORMATION = 0x19
    RESPONSE_INFORMATION = 0x1A
    SERVER_REFERENCE = 0x1C
    REASON_STRING = 0x1F
    RECEIVE_MAXIMUM = 0x21
    TOPIC_ALIAS_MAXIMUM = 0x22
    TOPIC_ALIAS = 0x23
    MAXIMUM_QOS = 0x24
    RETAIN_AVAILABLE = 0x25
    USER_PROPERTY = 0x26
    MAXIMUM_PACKET_SIZE = 0x27
    WILDCARD_SUBSCRIPTION_AVAILABLE = 0x28
    SUBSCRIPTION_IDENTIFIER_AVAILABLE = 0x29
    SHARED_SUBSCRIPTION_AVAILABLE = 0x2A


WILL: Final = 0
"""Where a packet type is asked for: the will properties inside a CONNECT."""

_CONNECT: Final = 1
_CONNACK: Final = 2
_PUBLISH: Final = 3
_SUBSCRIBE: Final = 8
_DISCONNECT: Final = 14
_AUTH: Final = 15
_MESSAGE: Final = (_PUBLISH, WILL)
_AUTHENTICATING: Final = (_CONNECT, _CONNACK, _AUTH)
_ANYWHERE: Final = (WILL, _CONNECT, _CONNACK, _PUBLISH, 4, 5, 6, 7, _SUBSCRIBE, 9, 10, 11, _DISCONNECT, _AUTH)
_REASONED: Final = (_CONNACK, 4, 5, 6, 7, 9, 11, _DISCONNECT, _AUTH)


@dataclass(frozen=True, slots=True)
class _Kind:
    """How the values of some properties are read and written."""

    read: Callable[[Reader], Value]
    write: Callable[[Value], bytes]


def _write_number(size: int) -> Callable[[Value], bytes]:
    def write(value: Value) -> bytes:
        if not isinstance(value, int) or not 0 <= value < 1 << 8 * size:
            raise ValueError(f"{value!r} is not a number of {size} bytes")
        return value.to_bytes(size, "big")

    return write


def _write_varint(value: Value) -> bytes:
    if not isinstance(value, int):
        raise ValueError(f"{value!r} is not a number")
    return encode_varint(value)


def _write_string(value: Value) -> bytes:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a string")
    return encode_string(value)


def _write_binary(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError(f"{value!r} is not bytes")
    return encode_binary(value)


def _write_pair(value: Value) -> bytes:
    if not isinstance(value, tuple) or len(value) != 2:
        raise ValueError(f"{value!r} is not a pair of strings")
    return _write_string(value[0]) + _write_string(value[1])


_BYTE: Final = _Kind(Reader.byte, _write_number(1))
_TWO_BYTES: Final = _Kind(Reader.two_bytes, _write_number(2))
_FOUR_BYTES: Final = _Kind(Reader.four_bytes, _write_number(4))
_VARINT: Final = _Kind(Reader.varint, _write_varint)
_STRING: Final = _Kind(Reader.string, _write_string)
_BINARY: Final = _Kind(Reader.binary, _write_binary)
_PAIR: Final = _Kind(Reader.pair, _write_pair)


def _boolean(value: Value) -> None:
    if value not in (0, 1):
        raise ProtocolError(Reason.PROTOCOL_ERROR, f"{value!r} is neither 0 nor 1", "section 2.2.2.2")


def _not_zero(value: Value) -> None:
    if value == 0:
        raise ProtocolError(Reason.PROTOCOL_ERROR, "it is 0", "section 2.2.2.2")


def _alias(value: Value) -> None:
    if value == 0:
        raise ProtocolError(Reason.TOPIC_ALIAS_INVALID, "it is 0", "MQTT-3.3.2-8")


def _topic(value: Value) -> None:
    if isinstance(value, str):
        try:
            validate_name(value)
        except ProtocolError as error:
            raise ProtocolError(Reason.PROTOCOL_ERROR, str(error), "MQTT-3.3.2-14") from error


def _any(value: Value) -> None:
    """Every value of the kind will do."""


_TABLE: Final[dict[int, tuple[_Kind, Callable[[Value], None], tuple[int, ...]]]] = {
    Property.PAYLOAD_FORMAT_INDICATOR: (_BYTE, _boolean, _MESSAGE),
    Property.MESSAGE_EXPIRY_INTERVAL: (_FOUR_BYTES, _any, _MESSAGE),
    Property.CONTENT_TYPE: (_STRING, _any, _MESSAGE),
    Property.RESPONSE_TOPIC: (_STRING, _topic, _MESSAGE),
    Property.CORRELATION_DATA: (_BINARY, _any, _MESSAGE),
    Property.SUBSCRIPTION_IDENTIFIER: (_VARINT, _not_zero, (_PUBLISH, _SUBSCRIBE)),
    Property.SESSION_EXPIRY_INTERVAL: (_FOUR_BYTES, _any, (_CONNECT, _CONNACK, _DISCONNECT)),
    Property.ASSIGNED_CLIENT_IDENTIFIER: (_STRING, _any, (_CONNACK,)),
    Property.SERVER_KEEP_ALIVE: (_TWO_BYTES, _any, (_CONNACK,)),
    Property.AUTHENTICATION_METHOD: (_STRING, _any, _AUTHENTICATING),
    Property.AUTHENTICATION_DATA: (_BINARY, _any, _AUTHENTICATING),
    Property.REQUEST_PROBLEM_INFORMATION: (_BYTE, _boolean, (_CONNECT,)),
    Property.WILL_DELAY_INTERVAL: (_FOUR_BYTES, _any, (WILL,)),
    Property.REQUEST_RESPONSE_INFORMATION: (_BYTE, _boolean, (_CONNECT,)),
    Property.RESPONSE_INFORMATION: (_STRING, _any, (_CONNACK,)),
    Property.SERVER_REFERENCE: (_STRING, _any, (_CONNACK, _DISCONNECT)),
    Property.REASON_STRING: (_STRING, _any, _REASONED),
    Property.RECEIVE_MAXIMUM: (_TWO_BYTES, _not_zero, (_CONNECT, _CONNACK)),
    Property.TOPIC_ALIAS_MAXIMUM: (_TWO_BYTES, _any, (_CONNECT, _CONNACK)),
    Property.TOPIC_ALIAS: (_TWO_BYTES, _alias, (_PUBLISH,)),
    Property.MAXIMUM_QOS: (_BYTE, _boolean, (_CONNACK,)),
    Property.RETAIN_AVAILABLE: (_BYTE, _boolean, (_CONNACK,)),
    Property.USER_PROPERTY: (_PAIR, _any, _ANYWHERE),
    Property.MAXIMUM_PACKET_SIZE: (_FOUR_BYTES, _not_zero, (_CONNECT, _CONNACK)),
    Property.WILDCARD_SUBSCRIPTION_AVAILABLE: (_BYTE, _boolean, (_CONNACK,)),
    Property.SUBSCRIPTION_IDENTIFIER_AVAILABLE: (_BYTE, _boolean, (_CONNACK,)),
    Property.SHARED_SUBSCRIPTION_AVAILABLE: (_BYTE, _boolean, (_CONNACK,)),
}
"""Of each property: its kind, the check of its value, and the packet types it may stand in."""

_ALLOWED: Final[dict[int, dict[int, tuple[_Kind, Callable[[Value], None]]]]] = {
    place: {int(id): (kind, check) for id, (kind, check, places) in _TABLE.items() if place in places}
    for place in _ANYWHERE
}
_USER_PROPERTY: Final = int(Property.USER_PROPERTY)
_SUBSCRIPTION_IDENTIFIER: Final = int(Property.SUBSCRIPTION_IDENTIFIER)


def first(properties: Properties, id: int) -> Value | None:
    """The value of the first property with this identifier, or None where there is none."""
    for each, value in properties:
        if each == id:
            return value
    return None


def number(properties: Properties, property: Property, default: int) -> int:
    """The value of a numeric property, where it is there."""
    value = first(properties, property) if properties else None
    return value if isinstance(value, int) else default


def decode_properties(data: bytes, packet_type: int) -> Properties:
    """The properties of a packet of this type (`WILL`: of a will), from the bytes that follow their length.

    Raises:
        ProtocolError: they are malformed, not allowed there, given twice or out of range.
    """
    return read_properties(Reader(data, 0, len(data)), packet_type)


def read_properties(reader: Reader, packet_type: int) -> Properties:
    """All that is left in the reader, as `decode_properties` does."""
    properties: list[tuple[int, Value]] = []
    allowed = _ALLOWED[packet_type]
    seen = 0
    while reader.at < reader.end:
        # An identifier is a variable byte integer, but none that is known takes more than one byte.
        id = reader.byte()
        entry = allowed.get(id)
        if entry is None:
            raise ProtocolError(
                Reason.MALFORMED_PACKET, f"property {_name(id)} does not belong in this packet", "section 2.2.2.2"
            )
        if seen >> id & 1 and not _repeatable(id, packet_type):
            raise ProtocolError(Reason.PROTOCOL_ERROR, f"{_name(id)} is given twice", "section 2.2.2.2")
        seen |= 1 << id
        kind, check = entry
        value = kind.read(reader)
        try:
            check(value)
        except ProtocolError as error:
            raise ProtocolError(error.reason, f"{_name(id)}: {error}", error.clause) from error
        properties.append((id, value))
    _check_authentication(seen, packet_type)
    return tuple(properties)


def encode_properties(properties: Properties) -> bytes:
    """The wire form of properties, without their length in front.

    Raises:
        ValueError: an identifier is unknown, or a value has the wrong type or is out of range.
    """
    return b"".join(_encode_property(id, value) for id, value in properties)


def check_properties(properties: Properties, packet_type: int) -> None:
    """Check that properties of one's own may stand together in a packet of this type.

    Raises:
        ValueError: one does not belong there, is given twice, or lacks another that it needs.
    """
    allowed = _ALLOWED[packet_type]
    seen = 0
    for id, _ in properties:
        if id not in allowed:
            raise ValueError(f"property {_name(id)} does not belong in a packet of type {packet_type}")
        if seen >> id & 1 and not _repeatable(id, packet_type):
            raise ValueError(f"{_name(id)} is given twice")
        seen |= 1 << id
    try:
        _check_authentication(seen, packet_type)
    except ProtocolError as error:
        raise ValueError(str(error)) from error


def _name(id: int) -> str:
    return Property(id).name.lower().replace("_", " ") if id in _TABLE else f"0x{id:02X}"


def _repeatable(id: int, packet_type: int) -> bool:
    # A forwarded message names every subscription that it matched; a SUBSCRIBE has one identifier for all its filters.
    return id == _USER_PROPERTY or (id == _SUBSCRIPTION_IDENTIFIER and packet_type == _PUBLISH)


def _check_authentication(seen: int, packet_type: int) -> None:
    if seen >> Property.AUTHENTICATION_METHOD & 1:
        return
    if packet_type == _AUTH or seen >> Property.AUTHENTICATION_DATA & 1:
        raise ProtocolError(Reason.PROTOCOL_ERROR, "authentication method is missing", "section 4.12")


def _encode_property(id: int, value: Value) -> bytes:
    if id not in _TABLE:
        raise ValueError(f"there is no property {id}")
    kind, check, _ = _TABLE[id]
    try:
        check(value)
        return bytes((id,)) + kind.write(value)
    except (ProtocolError, ValueError) as error:
        raise ValueError(f"{_name(id)}: {error}") from error

"""PUBLISH frames for one client alone: where what `frames` has for many does not suit it.

These differ from client to client, and so are made for each: topic aliases, topics below a mount point, the time that
is left of an expiry interval, subscription identifiers, and DUP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.mount import LONGEST, seen_properties
from broker.mqtt.properties import Property, encode_properties
from broker.mqtt.wire import VARINT_MAX, encode_varint
from storage.interface import Event

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.follower import Host
    from broker.frames import Frame

_ALIAS: Final = bytes((Property.TOPIC_ALIAS,))
_SURE: Final = VARINT_MAX - 4 - LONGEST
"""Bytes of properties and payload that fit into a packet beside any topic and packet identifier."""


def fits(connection: Connection, head: bytes, tail: bytes, qos: int) -> bool:
    """Whether the client takes a packet as large as this one [MQTT-3.1.2-24] [MQTT-3.1.2-25]."""
    largest = connection.max_packet_size
    return bool(head) and not (largest and len(head) + len(tail) + (2 if qos else 0) > largest)


def aliased_frame(
    host: Host, connection: Connection, event: Event, qos: int, retain: bool, dup: bool, identifiers: tuple[int, ...]
) -> Frame:
    """A frame in which an alias stands for the topic, or is set, unless there is no room for setting it."""
    aliases = connection.aliases
    assert aliases is not None
    alias = aliases.find(event.topic)
    if alias:
        return special_frame(host, connection, event, qos, retain, dup, identifiers, alias, True)
    alias = aliases.offer(event.topic)
    if alias:
        head, tail = special_frame(host, connection, event, qos, retain, dup, identifiers, alias)
        if fits(connection, head, tail, qos):
            aliases.set(event.topic, alias)
            return head, tail
    return special_frame(host, connection, event, qos, retain, dup, identifiers)


def special_frame(
    host: Host,
    connection: Connection,
    event: Event,
    qos: int,
    retain: bool,
    dup: bool,
    identifiers: tuple[int, ...],
    alias: int = 0,
    known: bool = False,
) -> Frame:
    """A frame for this client; empty: no packet can be so large. A `known` alias goes without the topic."""
    mount = connection.listener.mount_point
    first = 0x30 | dup << 3 | qos << 1 | retain
    topic = "" if known else event.topic.removeprefix(mount)
    tail = event.payload
    if connection.version == 5:
        properties = event.properties
        if mount:
            properties = seen_properties(mount, properties)
        if event.expires:  # [MQTT-3.3.2-6]
            left = max(1, -((host.now - event.expires) // 1_000_000))  # whole seconds that it has waited
            properties += encode_properties(((Property.MESSAGE_EXPIRY_INTERVAL, left),))
        if identifiers:
            properties += encode_properties(tuple((Property.SUBSCRIPTION_IDENTIFIER, i) for i in identifiers))
        if alias:
            properties += _ALIAS + alias.to_bytes(2)
        tail = encode_varint(len(properties)) + properties + tail
    if len(tail) > _SURE and len(tail) + len(topic.encode()) + 4 > VARINT_MAX:
        return b"", b""
    return host.frames.build(topic, first, qos, tail)

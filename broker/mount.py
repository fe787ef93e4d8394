"""Mount points: the clients of a listener see one branch of the tree of topics as if it were all of it.

The prefix is put before topics and filters where packets are decoded, and taken off where PUBLISH packets for these
clients are encoded. Everything between knows full topics only: the log, rules, processors, bridges, stored sessions.

- In a shared subscription the prefix goes before the filter, behind the share's name; in a replay likewise, behind
  the words that say where it begins.
- A response topic is a topic: it is translated as well, in both directions.
- Topics that begin with `$` are the server's, and there is one server: a client that publishes to one of them is
  refused, whatever follows the `$`. A filter is always below the prefix, so that `$SYS/#` matches nothing.
- What is not below the prefix is never given to a client of the listener, even where its session was made elsewhere.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from broker.mqtt.codec import MAX_PACKET_SIZE, Decoder
from broker.mqtt.errors import ProtocolError
from broker.mqtt.packets import Connect, Packet, Publish, Subscribe, Unsubscribe
from broker.mqtt.properties import Properties, Property, decode_properties, encode_properties
from broker.mqtt.reason import Reason
from broker.mqtt.topic import REPLAY, SHARE, parse_share
from broker.replay_request import is_replay

LONGEST: Final = 65535
"""Bytes of a topic at most."""
_RESPONSE_TOPIC: Final = bytes((Property.RESPONSE_TOPIC,))


class MountedDecoder(Decoder):
    """Decodes packets of a listener's clients; their topics come out in full."""

    __slots__ = ("_mount",)

    def __init__(self, mount: str, version: int, max_packet_size: int) -> None:
        super().__init__(version, max_packet_size)
        self._mount = mount

    def more(self, stretch: int = MAX_PACKET_SIZE) -> list[Packet]:
        """Go on with what is at hand."""
        packets = super().more(stretch)
        for index, packet in enumerate(packets):
            try:
                self._translate(packet)
            except ProtocolError as error:
                self.error = error
                return packets[:index]
        return packets

    def _translate(self, packet: Packet) -> None:
        if isinstance(packet, Publish):
            if packet.topic:  # an alias may stand for it
                packet.topic = self._full(packet.topic)
            if packet.properties:
                packet.properties = self._full_properties(packet.properties)
        elif isinstance(packet, Subscribe):
            packet.subscriptions = tuple(
                replace(each, filter=self._full_filter(each.filter)) for each in packet.subscriptions
            )
        elif isinstance(packet, Unsubscribe):
            packet.filters = tuple(self._full_filter(filter) for filter in packet.filters)
        elif isinstance(packet, Connect) and packet.will is not None:
            will = packet.will
            packet.will = replace(will, topic=self._full(will.topic), properties=self._full_properties(will.properties))

    def _full(self, topic: str) -> str:
        if topic[0] == "$":
            return topic
        topic = self._mount + topic
        if len(topic) > LONGEST // 4 and len(topic.encode()) > LONGEST:
            raise ProtocolError(
                Reason.TOPIC_NAME_INVALID,
                f"a topic of more than {LONGEST} bytes, mount point included",
                "MQTT-4.7.3-3",
            )
        return topic

    def _full_filter(self, filter: str) -> str:
        share = parse_share(filter)
        if is_replay(filter):
            words, slash, inner = filter[len(REPLAY) :].partition("/")
            return f"{REPLAY}{words}/{self._mount}{inner}" if slash and inner else filter
        if share is None:
            return self._mount + filter
        return f"{SHARE}{share[0]}/{self._mount}{share[1]}"

    def _full_properties(self, properties: Properties) -> Properties:
        return tuple(
            (key, self._full(value)) if key == Property.RESPONSE_TOPIC and isinstance(value, str) else (key, value)
            for key, value in properties
        )


def seen_properties(mount: str, properties: bytes) -> bytes:
    """The encoded properties of a message as clients below a mount point see them."""
    if _RESPONSE_TOPIC not in properties:
        return properties
    return encode_properties(
        tuple(
            (key, value.removeprefix(mount))
            if key == Property.RESPONSE_TOPIC and isinstance(value, str)
            else (key, value)
            for key, value in decode_properties(properties, Publish.TYPE)
        )
    )

"""The stamp: user properties by which whoever receives a forwarded message can prove that nothing is missing.

| user property | says |
| --- | --- |
| berm-edge | the node that forwarded it; each hop adds its own behind those before it, so the last is the forwarder |
| berm-route | `bridge/route`: the chain that it belongs to |
| berm-epoch | the numbering that seq counts in |
| berm-seq | its place in that node's log: with edge and epoch, the same for every copy of one event |
| berm-prev | the seq of the event before it in the chain, 0 for the first |
| berm-hops | how many bridges it has been over, this one included |

A chain links the events that a route sends at the route's own QoS: all of them on a QoS 0 route, and on a QoS 1 route
those that somebody was promised. What the policy leaves out (expired, looped) is no link and leaves no gap. What the
peer can't or won't take (oversized, refused) is a link that never arrives, so the cloud sees the gap that there is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from broker.mqtt.packets import Publish
from broker.mqtt.properties import Property, decode_properties, encode_properties
from broker.mqtt.wire import encode_string

EDGE: Final = "berm-edge"
ROUTE: Final = "berm-route"
EPOCH: Final = "berm-epoch"
SEQ: Final = "berm-seq"
PREV: Final = "berm-prev"
HOPS: Final = "berm-hops"
KEYS: Final = frozenset((EDGE, ROUTE, EPOCH, SEQ, PREV, HOPS))

MARK: Final = b"berm-"
"""Properties without these bytes carry no stamp, and need no decoding to know so."""
MAX_HOPS: Final = 8
"""A message that has been over this many bridges goes no further."""


def _pair(key: str, value: str) -> bytes:
    return b"%c%b%b" % (Property.USER_PROPERTY, encode_string(key), encode_string(value))


_SEQ_HEAD: Final = b"%c%b\0" % (Property.USER_PROPERTY, encode_string(SEQ))
_PREV_HEAD: Final = b"%c%b\0" % (Property.USER_PROPERTY, encode_string(PREV))


@dataclass(frozen=True, slots=True)
class Trail:
    """What a message that has been over bridges before brings with it: its other properties, its nodes, its hops."""

    rest: bytes
    edges: tuple[str, ...]
    hops: int

    def looped(self, node: str) -> bool:
        """Whether it has been at `node` before, or has been over too many bridges to go on."""
        return self.hops >= MAX_HOPS or node in self.edges


def read_trail(properties: bytes) -> Trail:
    """Take an earlier stamp out of a PUBLISH's properties, which are in wire encoding without their length."""
    rest: list[tuple[int, int | str | bytes | tuple[str, str]]] = []
    edges: list[str] = []
    hops = 0
    for key, value in decode_properties(properties, Publish.TYPE):
        if key != Property.USER_PROPERTY or not isinstance(value, tuple) or value[0] not in KEYS:
            rest.append((key, value))
        elif value[0] == EDGE:
            edges.append(value[1])
        elif value[0] == HOPS:
            hops = max(hops, _number(value[1]) or 0)
    return Trail(encode_properties(tuple(rest)), tuple(edges), max(hops, len(edges)))


class Stamper:
    """Writes one route's stamps."""

    __slots__ = ("_node", "_place")

    def __init__(self, node: str, epoch: int, route: str) -> None:
        self._node = _pair(EDGE, node)
        self._place = _pair(ROUTE, route) + _pair(EPOCH, str(epoch))

    def stamp(self, seq: int, prev: int, trail: Trail | None) -> bytes:
        """The stamp of one event, in wire encoding; `trail` is what it brought from bridges before this one."""
        now, before = b"%d" % seq, b"%d" % prev
        own = b"%b%b%c%b%b%c%b" % (self._place, _SEQ_HEAD, len(now), now, _PREV_HEAD, len(before), before)
        if trail is None:
            return b"%b%b%b" % (self._node, own, _FIRST_HOP)
        edges = b"".join(_pair(EDGE, edge) for edge in trail.edges)
        return b"%b%b%b%b" % (edges, self._node, own, _pair(HOPS, str(trail.hops + 1)))


_FIRST_HOP: Final = _pair(HOPS, "1")


@dataclass(frozen=True, slots=True)
class Stamp:
    """A stamp as its receiver reads it; `edge` is the node that forwarded the message last."""

    edge: str
    route: str
    epoch: int
    seq: int
    prev: int
    hops: int


def read_stamp(user_properties: Iterable[tuple[str, str]]) -> Stamp | None:
    """The stamp among a message's user properties, or None where there is none that is whole."""
    found = {key: value for key, value in user_properties if key in KEYS}
    edge, route = found.get(EDGE), found.get(ROUTE)
    epoch, seq, prev, hops = (_number(found.get(key, "")) for key in (EPOCH, SEQ, PREV, HOPS))
    if edge is None or route is None or epoch is None or seq is None or prev is None or hops is None:
        return None
    return Stamp(edge, route, epoch, seq, prev, hops)


def _number(text: str) -> int | None:
    return int(text) if len(text) <= 20 and text.isascii() and text.isdigit() else None

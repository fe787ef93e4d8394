"""Hypothesis strategies: every valid packet of every version, topics, filters, and ways to cut bytes into pieces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from broker.mqtt.packets import (
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
from broker.mqtt.properties import WILL, Properties, Value
from broker.mqtt.reason import RETURN_CODES
from tests.broker.mqtt import specification as spec

VERSIONS: Final = (3, 4, 5)

_CHARACTERS: Final = st.characters(codec="utf-8", exclude_characters="\0")


def texts(max_size: int = 12) -> SearchStrategy[str]:
    """Strings that MQTT can carry: anything but surrogates and U+0000."""
    return st.text(_CHARACTERS, max_size=max_size)


def topics() -> SearchStrategy[str]:
    """Topic names, of a few levels that coincide often and of any other characters."""
    alike = st.lists(st.sampled_from(("a", "b", "", "$a")), min_size=1, max_size=5).map("/".join)
    other = st.text(st.characters(codec="utf-8", exclude_characters="\0+#"), min_size=1, max_size=12)
    return st.one_of(alike, other).filter(bool)


@st.composite
def filters(draw: DrawFn) -> str:
    """Topic filters without a share."""
    if draw(st.integers(0, 5)) == 0:
        return draw(topics().filter(lambda topic: not topic.startswith("$share/")))
    levels = draw(st.lists(st.sampled_from(("a", "b", "", "$a", "+")), min_size=1, max_size=5))
    if draw(st.booleans()):
        levels[-1] = "#"
    return "/".join(levels) or "+"


@st.composite
def shares(draw: DrawFn) -> str:
    """Topic filters with a share."""
    name = draw(st.text(st.characters(codec="utf-8", exclude_characters="\0+#/"), min_size=1, max_size=5))
    return f"$share/{name}/{draw(filters())}"


def cuts(size: int) -> SearchStrategy[list[int]]:
    """Where to cut so many bytes; two cuts in one place make an empty piece."""
    return st.lists(st.integers(0, size), max_size=8)


_IDENTIFIERS: Final = st.integers(1, 65535)
_NUMBERS: Final = {spec.BYTE: 0xFF, spec.TWO_BYTES: 0xFFFF, spec.FOUR_BYTES: 0xFFFFFFFF, spec.VARINT: 268_435_455}


def values(id: int) -> SearchStrategy[Value]:
    """The valid values of a property."""
    rule = spec.RULES[id]
    if rule.type in _NUMBERS:
        most = 1 if rule.domain == spec.BOOLEAN else _NUMBERS[rule.type]
        return st.integers(int(rule.domain == spec.POSITIVE), most)
    if rule.type == spec.BINARY:
        return st.binary(max_size=12)
    if rule.type == spec.PAIR:
        return st.tuples(texts(), texts())
    return topics() if rule.domain == spec.TOPIC else texts()


@st.composite
def properties(draw: DrawFn, place: int) -> Properties:
    """The valid properties of a packet, in any order."""
    allowed = [id for id, rule in spec.RULES.items() if place in rule.places]
    chosen = draw(st.lists(st.sampled_from(allowed), max_size=6))
    ids = [id for i, id in enumerate(chosen) if (id, place) in spec.REPEATABLE or id not in chosen[:i]]
    if 0x16 in ids and 0x15 not in ids:
        ids.append(0x15)
    return tuple((id, draw(values(id))) for id in draw(st.permutations(ids)))


def _properties(version: int, place: int) -> SearchStrategy[Properties]:
    return properties(place) if version == 5 else st.just(())


def _wills(version: int) -> SearchStrategy[Will]:
    return st.builds(
        Will, topics(), st.binary(max_size=20), st.integers(0, 2), st.booleans(), _properties(version, WILL)
    )


@st.composite
def connects(draw: DrawFn, version: int) -> Connect:
    """CONNECT packets."""
    clean_start = draw(st.booleans())
    nameless = version == 5 or (version == 4 and clean_start)
    client_id = draw(texts() if nameless else texts().filter(bool))
    username = draw(st.none() | texts())
    password = draw(st.none() | st.binary(max_size=20)) if version == 5 or username is not None else None
    return Connect(
        client_id,
        version,
        clean_start,
        draw(st.integers(0, 65535)),
        draw(st.none() | _wills(version)),
        username,
        password,
        draw(_properties(version, Connect.TYPE)),
    )


@st.composite
def connacks(draw: DrawFn, version: int) -> Connack:
    """CONNACK packets."""
    reasons = spec.reasons_of(Connack.TYPE) if version == 5 else [int(reason) for reason in RETURN_CODES]
    reason = draw(st.sampled_from(reasons))
    session_present = draw(st.booleans()) if version > 3 and not reason else False
    return Connack(session_present, reason, draw(_properties(version, Connack.TYPE)))


@st.composite
def publishes(draw: DrawFn, version: int) -> Publish:
    """PUBLISH packets; in MQTT 5 some with an alias for a topic."""
    qos = draw(st.integers(0, 2))
    carried = draw(_properties(version, Publish.TYPE))
    aliased = any(id == 0x23 for id, _ in carried)
    return Publish(
        draw(st.just("") | topics()) if aliased else draw(topics()),
        draw(st.binary(max_size=200)),
        qos,
        draw(st.booleans()),
        draw(st.booleans()) if qos else False,
        draw(_IDENTIFIERS) if qos else 0,
        carried,
    )


@st.composite
def acknowledgements(
    draw: DrawFn, version: int, kind: type[Puback] | type[Pubrec] | type[Pubrel] | type[Pubcomp]
) -> Puback | Pubrec | Pubrel | Pubcomp:
    """PUBACK, PUBREC, PUBREL and PUBCOMP packets."""
    if version < 5:
        return kind(draw(_IDENTIFIERS))
    return kind(
        draw(_IDENTIFIERS), draw(st.sampled_from(spec.reasons_of(kind.TYPE))), draw(_properties(version, kind.TYPE))
    )


@st.composite
def _subscriptions(draw: DrawFn, version: int) -> Subscription:
    filter = draw(filters() | shares())
    qos = draw(st.integers(0, 2))
    if version < 5:
        return Subscription(filter, qos)
    no_local = draw(st.booleans()) and not filter.startswith("$share/")
    return Subscription(filter, qos, no_local, draw(st.booleans()), draw(st.integers(0, 2)))


def subscribes(version: int) -> SearchStrategy[Subscribe]:
    """SUBSCRIBE packets."""
    asked = st.lists(_subscriptions(version), min_size=1, max_size=4).map(tuple)
    return st.builds(Subscribe, _IDENTIFIERS, asked, _properties(version, Subscribe.TYPE))


def subacks(version: int) -> SearchStrategy[Suback]:
    """SUBACK packets."""
    known = spec.reasons_of(Suback.TYPE) if version == 5 else [0, 1, 2, 0x80]
    reasons = st.lists(st.sampled_from(known), min_size=1, max_size=4).map(tuple)
    return st.builds(Suback, _IDENTIFIERS, reasons, _properties(version, Suback.TYPE))


def unsubscribes(version: int) -> SearchStrategy[Unsubscribe]:
    """UNSUBSCRIBE packets."""
    named = st.lists(filters() | shares(), min_size=1, max_size=4).map(tuple)
    return st.builds(Unsubscribe, _IDENTIFIERS, named, _properties(version, Unsubscribe.TYPE))


def unsubacks(version: int) -> SearchStrategy[Unsuback]:
    """UNSUBACK packets."""
    if version < 5:
        return st.builds(Unsuback, _IDENTIFIERS)
    reasons = st.lists(st.sampled_from(spec.reasons_of(Unsuback.TYPE)), min_size=1, max_size=4).map(tuple)
    return st.builds(Unsuback, _IDENTIFIERS, reasons, _properties(version, Unsuback.TYPE))


def disconnects(version: int) -> SearchStrategy[Disconnect]:
    """DISCONNECT packets."""
    if version < 5:
        return st.just(Disconnect())
    reasons = st.sampled_from(spec.reasons_of(Disconnect.TYPE))
    return st.builds(Disconnect, reasons, _properties(version, Disconnect.TYPE))


@st.composite
def auths(draw: DrawFn, version: int) -> Auth:
    """AUTH packets; but for the shortest one, each names its method."""
    carried = draw(_properties(version, Auth.TYPE))
    if all(id != 0x15 for id, _ in carried):
        carried = ((0x15, draw(texts())), *carried)
    return draw(st.just(Auth()) | st.builds(Auth, st.sampled_from(spec.reasons_of(Auth.TYPE)), st.just(carried)))


_BY_TYPE: Final[dict[type[Packet], Callable[[int], SearchStrategy[Packet]]]] = {
    Connect: connects,
    Connack: connacks,
    Publish: publishes,
    Puback: lambda version: acknowledgements(version, Puback),
    Pubrec: lambda version: acknowledgements(version, Pubrec),
    Pubrel: lambda version: acknowledgements(version, Pubrel),
    Pubcomp: lambda version: acknowledgements(version, Pubcomp),
    Subscribe: subscribes,
    Suback: subacks,
    Unsubscribe: unsubscribes,
    Unsuback: unsubacks,
    Pingreq: lambda version: st.just(Pingreq()),
    Pingresp: lambda version: st.just(Pingresp()),
    Disconnect: disconnects,
    Auth: auths,
}

KINDS: Final = [(kind, version) for version in VERSIONS for kind in _BY_TYPE if kind is not Auth or version == 5]
"""Every type of packet with every version that has it."""


def packets(kind: type[Packet], version: int) -> SearchStrategy[Packet]:
    """The valid packets of a type and version."""
    return _BY_TYPE[kind](version)


def streams(version: int) -> SearchStrategy[list[Packet]]:
    """What may follow a CONNECT, in any order."""
    kinds = [kind for kind, each in KINDS if each == version and kind is not Connect]
    return st.lists(st.one_of([packets(kind, version) for kind in kinds]), max_size=5)

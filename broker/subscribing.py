"""What a client wants to be given: its SUBSCRIBE and UNSUBSCRIBE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.answers import encode_answer
from broker.mqtt.packets import Suback, Subscribe, Subscription, Unsuback, Unsubscribe
from broker.mqtt.properties import Property, number
from broker.mqtt.reason import Reason
from broker.mqtt.topic import parse_share
from broker.names import shown
from broker.offer import check_subscribe
from broker.replay_request import REPLAY_PROPERTY, is_replay
from broker.rights import forbids_filter
from broker.router import Grant

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.session import Session

_WHYS: Final = 5
"""Refusals that one SUBACK gives reasons for in words."""
_LEVEL: Final = 64
"""What each level of a topic filter weighs beside its characters: the tree of all subscriptions has a node for it."""
_LIGHT: Final = 512
"""Filters of this weight are not counted: the number of subscriptions bounds them."""
_HEAVY: Final = 512 << 10
"""What all filters of a client with a heavier one may weigh together."""


def on_subscribe(connection: Connection, packet: Subscribe) -> None:
    """Grant subscriptions, or say why not."""
    session = connection.connected()
    if connection.version == 5:
        check_subscribe(connection.limits, packet)
    _check_answer(connection, Suback(packet.packet_id, (0,) * len(packet.subscriptions)))
    connection.spend_filters(len(packet.subscriptions))
    identifier = number(packet.properties, Property.SUBSCRIPTION_IDENTIFIER, 0)
    words = _replay_words(packet)
    reasons: list[int] = []
    whys: list[str] = []
    for asked in packet.subscriptions:
        reason, why = _subscribe(connection, session, asked, identifier, words)
        reasons.append(reason)
        if why:
            whys.append(why)
        if reason >= Reason.UNSPECIFIED_ERROR:
            connection.hub.complain(f"{connection.name}: {why} (reason 0x{reason:02x})")
    # [MQTT-3.8.4-1] [MQTT-3.8.4-2] [MQTT-3.8.4-6]
    session.answer(encode_answer(connection, Suback(packet.packet_id, tuple(reasons)), "; ".join(whys[:_WHYS])))


def _replay_words(packet: Subscribe) -> str | None:
    """What a client says by a user property of its SUBSCRIBE of how plain filters are to be replayed first."""
    for key, value in packet.properties:
        if key == Property.USER_PROPERTY and isinstance(value, tuple) and value[0] == REPLAY_PROPERTY:
            return value[1]
    return None


def _subscribe(
    connection: Connection, session: Session, asked: Subscription, identifier: int, words: str | None
) -> tuple[int, str]:
    """Grant a subscription, or don't: the reason code, and why not, or what else is to be said."""
    hub, limits = connection.hub, connection.limits
    replaced = session.granted(asked.filter)
    if (refusal := forbids_filter(connection, asked.filter)) is not None:
        hub.forbidden_subscriptions += 1
        return refusal
    if replaced is None and (objection := _objection(session, asked.filter, limits.max_subscriptions)):
        return Reason.QUOTA_EXCEEDED, f"can't subscribe to {shown(asked.filter)}: {objection}"
    qos = min(asked.qos, limits.max_qos)  # [MQTT-3.2.2-10]
    since = hub.log.committed if replaced is None else replaced.since  # [MQTT-3.8.4-4]
    grant = Grant(asked.filter, qos, asked.no_local, asked.retain_as_published, identifier, since)
    if words is not None or is_replay(asked.filter):
        return hub.replays.begin(connection, session, grant, words)
    if _shares_replay(connection, asked.filter):
        return Reason.TOPIC_FILTER_INVALID, f"can't subscribe to {shown(asked.filter)}: replays are not shared"
    hub.replays.stop(session, asked.filter)
    hub.sessions.subscribe(session, grant)  # [MQTT-3.8.4-3]
    # [MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-11]
    wanted = asked.retain_handling == 0 or (asked.retain_handling == 1 and replaced is None)
    # Nobody is new to what many share: no retained messages.
    if wanted and limits.retain_available and asked.filter not in session.shares:
        session.want_retained(grant, connection.promised + 1 if session.expiry else 0)  # behind the SUBACK
    return qos, ""


def _shares_replay(connection: Connection, filter: str) -> bool:
    """Whether this is a shared subscription to a replay."""
    share = parse_share(filter)
    return share is not None and is_replay(share[1].removeprefix(connection.listener.mount_point))


def _objection(session: Session, filter: str, most: int) -> str:
    """Why a session can't have one more subscription; empty where it can."""
    if session.subscriptions >= most:
        return f"it has {most} subscriptions"
    weight = _weight(filter)
    if weight > _LIGHT and weight + sum(map(_weight, (*session.grants, *session.shares))) > _HEAVY:
        return "its topic filters are too long"
    return ""


def _weight(filter: str) -> int:
    return len(filter) + _LEVEL * filter.count("/")


def on_unsubscribe(connection: Connection, packet: Unsubscribe) -> None:
    """Take subscriptions back."""
    session = connection.connected()
    _check_answer(connection, Unsuback(packet.packet_id, (0,) * len(packet.filters)))
    connection.spend_filters(len(packet.filters))
    unsubscribe = connection.hub.sessions.unsubscribe
    reasons = tuple(
        Reason.SUCCESS if unsubscribe(session, filter) else Reason.NO_SUBSCRIPTION_EXISTED for filter in packet.filters
    )
    session.answer(encode_answer(connection, Unsuback(packet.packet_id, reasons)))  # [MQTT-3.10.4-4]


def _check_answer(connection: Connection, answer: Suback | Unsuback) -> None:
    """Check that the client takes an answer as large as this one, before anything is done that it would tell of.

    Raises:
        ProtocolError: it does not.
    """
    if connection.max_packet_size:
        encode_answer(connection, answer)

"""What a client may do with topics: the quotas of its listener, what is the server's alone, and the rules for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.acl import Who
from broker.listener import Listener
from broker.mqtt.reason import Reason
from broker.mqtt.topic import REPLAY, SHARE, matches
from broker.names import shown
from broker.offer import reason_in_words, unavailable

if TYPE_CHECKING:
    from broker.connection import Connection

_PERMITTED: Final = 10_000
"""Topics at most that are remembered as permitted to the clients of a listener to whom no rules apply."""
_PERMITTED_BY_RULES: Final = 1000
"""Topics at most that are remembered as permitted to one client by rules."""
LEVELS: Final = 200
"""Levels of a retained message's topic at most, and of all filters of a client but one: each costs 250 bytes in a tree,
so that 65 kB on the wire would take 19 MB."""
_LONG: Final = 256
"""Characters of a topic that is not worth remembering."""
_SERVERS: Final = ("$SYS", REPLAY[:-1])
"""First levels of topics that are the server's."""
_BRIDGE_STATE: Final = "$SYS/broker/connection/+/state"
"""Where a bridge of Mosquitto says whether it is up."""


def authorize(connection: Connection, who: Who) -> None:
    """From now on rules are asked about this client."""
    access = connection.listener.access
    connection.who = who
    connection.rules = None
    connection.permitted = connection.listener.topics
    if access is not None and access.authorizer is not None and not access.authorizer.unlimited:
        connection.rules = access.authorizer
        connection.permitted = set()


def forbids_topic(connection: Connection, topic: str) -> Reason | None:
    """Why a client may not publish to a topic. What it may is remembered as permitted."""
    listener, rules = connection.listener, connection.rules
    if listener.meter is not None and listener.meter.quotas.objection(topic) is not None:
        return Reason.TOPIC_NAME_INVALID
    if topic[0] == "$" and not _is_for_clients(topic, listener):
        return Reason.NOT_AUTHORIZED
    if rules is not None and not rules.may_publish(connection.who, topic):
        return Reason.NOT_AUTHORIZED
    if len(topic) <= _LONG and not has_many_levels(topic):
        permitted = connection.permitted
        if len(permitted) >= (_PERMITTED if rules is None else _PERMITTED_BY_RULES):
            permitted.clear()
        permitted.add(topic)
    return None


def forbids_filter(connection: Connection, filter: str) -> tuple[Reason, str] | None:
    """Why a client may not subscribe by a valid filter: the reason code, and the same in words."""
    meter, rules = connection.listener.meter, connection.rules
    if (lacking := unavailable(connection.limits, filter)) is not None:
        return lacking, f"can't subscribe to {shown(filter)}: {reason_in_words(lacking)}"
    if meter is not None and (objection := meter.quotas.objection(filter)) is not None:
        return Reason.TOPIC_FILTER_INVALID, f"can't subscribe to {shown(filter)}: {objection}"
    session = connection.session
    if has_many_levels(filter) and session is not None and session.has_long_filter(filter):
        why = f"it has another filter with more than {LEVELS} levels"
        return Reason.QUOTA_EXCEEDED, f"can't subscribe to {shown(filter)}: {why}"
    if rules is not None and not rules.may_subscribe(connection.who, filter):
        return Reason.NOT_AUTHORIZED, f"may not subscribe to {shown(filter)}"
    return None


def has_many_levels(topic: str) -> bool:
    """Whether a topic or filter has so many levels that trees are not for any number of them."""
    return topic.count("/") >= LEVELS


def _is_for_clients(topic: str, listener: Listener) -> bool:
    """Whether clients may publish to it: not what is the server's, and $share is no topic (as Mosquitto has it)."""
    if topic.startswith(SHARE) or (listener.mount_point and topic[0] == "$"):
        return False
    return topic.partition("/")[0] not in _SERVERS or matches(_BRIDGE_STATE, topic)

"""What a node holds: within its bounds at every moment, and nothing of clients that are gone for good.

What the hub can reach is walked: attributes, containers, and the objects of `broker` and `storage` in them. So a leak
is found wherever it is, and its path is told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from types import FunctionType, MethodType
from typing import Final

from broker.connection import Connection
from broker.hub import Hub
from broker.mqtt.packets import Will
from broker.router import Grant
from broker.session import Session
from storage.interface import RETAINED, SESSIONS, SUBSCRIPTIONS, WILLS, Event
from tests.broker.helpers import Node
from tests.fuzz.setups import MEMORY_LEVEL
from tests.fuzz.world import Broken, Link, World

_CACHES: Final = (
    "._cache",  # of the router: dropped when it is full,
    "._seen",  # and the tree of what is in it
    ".frames.",  # of encoded frames and topics, likewise
    ".topics",  # of those that a listener's clients may publish to
    "durability._found",  # by topic
    ".retained",  # retained messages stay
    "._ring",  # the log's, bounded by its bytes
    ".engine",
)
"""Parts of paths to what is kept on purpose, within bounds that tests of its own watch."""
_SLACK: Final = 30
"""Bytes that answers may take in memory for one byte of what they answer."""
_EVENT: Final = 50
"""The same of events."""
_WILL: Final = 500
"""Bytes that a will takes in memory beside its payload."""
_GONE: Final = 50
"""Connections that have ended, and that something is still to be done about, while nothing can be stored."""


def check_bounds(world: World) -> None:
    """See that every bound is kept.

    Raises:
        Broken: one is not.
    """
    for link in world.links.values():
        if not link.connection.closed:
            _check_link(link, world.largest.get(link.name, 0))
    weight, most = world.node.log.open.weight, world.setup.limits.group_bytes
    most += _EVENT * sum(world.largest.values())
    if world.node.log.failure is None:  # whoever comes and goes leaves a will each time, for as long as a commit takes
        most += world.accepted * (_WILL + max(world.largest.values(), default=0))
    if weight > most:
        raise Broken("the open group is larger than group_bytes allows", f"{weight} bytes")


def check_gone(node: Node) -> None:
    """See that connections are not kept for long after their end, even while nothing can be stored.

    Raises:
        Broken: they are.
    """
    gone = [path for path, each in reachable(node.hub) if isinstance(each, Connection) and each.closed]
    if len(gone) > _GONE:
        raise Broken("connections that have ended gather", f"{len(gone)}, such as {gone[0]}")


def _check_link(link: Link, largest: int) -> None:
    connection = link.connection
    limits, session = connection.limits, connection.session
    slack = _SLACK * largest + limits.max_packet_size
    for what, size, most in (
        ("what waits to be sent", connection.pending, 2 * limits.write_buffer + slack),
        ("what the peer does not read", len(link.wire.unread), 4 * limits.write_buffer + slack),
        ("topic aliases", len(connection.named), limits.topic_alias_maximum),
    ):
        if size > most:
            raise Broken(f"{what} is beyond its bound", f"{link.name}: {size} of {most}")
    if session is None:
        return
    inflight = len(session.unacked) + len(session.unreceived) + len(session.uncompleted)
    for what, size, most in (
        ("messages in flight", inflight, limits.max_inflight),
        ("messages at QoS 2 without their PUBREL", _without_pubrel(link, session), limits.receive_maximum),
        ("subscriptions", len(session.grants), limits.max_subscriptions),
        ("replays", len(session.replays), limits.max_replays),
    ):
        if size > most:
            raise Broken(f"{what} are beyond their bound", f"{link.name}: {size} of {most}")


def _without_pubrel(link: Link, session: Session) -> int:
    """What counts against the Receive Maximum of this connection for as long as no other has begun the session."""
    return len(session.received) if link.ear.version == 5 and link.ear.began else 0


def check_empty(node: Node) -> None:
    """See that nothing is left of any client: all have gone, their sessions have ended, and everything is committed.

    Raises:
        Broken: something is left.
    """
    for table in (SESSIONS, SUBSCRIPTIONS, WILLS):
        if rows := node.engine.rows(table):
            raise Broken(f"rows of {table.name} are left of clients that are gone", str(rows[:3]))
    fresh = dict(_sizes(Node(node.limits).hub))
    for path, size in _sizes(node.hub):
        if size > fresh.get(path, 0) and not any(cache in path for cache in _CACHES):
            raise Broken(f"something is left of clients that are gone: {path}", f"{size} entries")
    for path, found in reachable(node.hub):
        if isinstance(found, Connection | Session | Grant | Will):
            raise Broken(f"a {type(found).__name__} is left of clients that are gone", path)


def check_retained(node: Node) -> None:
    """See that the retained messages in memory are those on disk: a new start must not change them.

    Raises:
        Broken: they are not.
    """
    stored = {str(topic): seq for topic, seq, *_ in node.engine.rows(RETAINED) if not str(topic).startswith("$")}
    found = [event for event in node.hub.retained.match("#") if MEMORY_LEVEL not in event.topic.split("/")]
    remembered = {event.topic: event.seq for event in found}
    differing = [topic for topic in sorted({*stored, *remembered}) if stored.get(topic) != remembered.get(topic)]
    if differing:
        raise Broken("retained messages on disk are not those in memory", f"topics {differing[:5]}")


def reachable(hub: Hub) -> Iterator[tuple[str, object]]:
    """Everything that a hub holds on to, and by which path."""
    seen: set[int] = set()
    waiting: deque[tuple[str, object]] = deque([("hub", hub)])
    while waiting:
        path, found = waiting.popleft()
        if id(found) in seen:
            continue
        seen.add(id(found))
        yield path, found
        waiting += _parts(path, found)


def _parts(path: str, found: object) -> Iterator[tuple[str, object]]:
    if isinstance(found, dict):
        for key, value in list(found.items()):
            yield f"{path}[key]", key
            yield f"{path}[{key!r:.40}]", value
    elif isinstance(found, list | tuple | set | frozenset | deque):
        yield from ((f"{path}[...]", each) for each in list(found))
    elif isinstance(found, MethodType):
        yield f"{path}.__self__", found.__self__
    elif isinstance(found, FunctionType):
        yield from ((f"{path}.<cell>", cell.cell_contents) for cell in found.__closure__ or () if _full(cell))
    elif type(found).__module__.startswith(("broker.", "storage.")) and not isinstance(found, Event | type):
        yield from ((f"{path}.{name}", value) for name, value in _attributes(found))


def _full(cell: object) -> bool:
    return hasattr(cell, "cell_contents")


def _attributes(found: object) -> Iterator[tuple[str, object]]:
    for kind in type(found).__mro__:
        for name in getattr(kind, "__slots__", ()):
            if hasattr(found, name):
                yield name, getattr(found, name)
    yield from vars(found).items() if hasattr(found, "__dict__") else ()


def _sizes(hub: Hub) -> Iterator[tuple[str, int]]:
    """How much is in each container that attributes alone lead to."""
    for path, found in reachable(hub):
        if "[" not in path and isinstance(found, dict | list | set | deque):
            yield path, len(found)

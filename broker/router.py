"""Who gets what: a tree of topic filters, and a cache of what each topic name matched.

The tree has one node per filter level; `+` and `#` are levels like any other. Walking it costs one step per topic level
and matching wildcard, however many subscriptions there are. The result for a topic name is cached until a subscription
changes that could alter it: a hot topic is one dictionary lookup.

One session gets one copy of a message however many of its subscriptions match [MQTT-3.3.4-2]: at the highest QoS of
them, with all their identifiers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)

REMEMBERED: Final = 256
"""Characters of a topic for which anything is remembered: caches count topics, and one may have 65,535 bytes."""
_CACHED_TOPICS = 10_000


@dataclass(frozen=True, slots=True)
class Grant:
    """A subscription as it was granted. `since`: events up to this seq came before it. `identifier` 0: none."""

    filter: str
    qos: int
    no_local: bool
    retain_as_published: bool
    identifier: int
    since: int


@dataclass(frozen=True, slots=True)
class Delivery(Generic[S_co]):
    """How one session gets the messages of one topic."""

    session: S_co
    qos: int
    retain_as_published: bool
    identifiers: tuple[int, ...]
    since: int
    """The latest `since` of the grants: below it, the grants have to be looked at one by one."""
    plain: bool
    """Nothing special: no identifiers, no No Local, no Retain As Published. The fast path."""
    no_local: bool
    """Some of the grants do not want the session's own messages."""
    own: Delivery[S_co] | None
    """How the session gets its own messages."""
    denied: bool = False
    """It does not: rules are against it."""


def merge(session: S, grants: Iterable[Grant], denied: bool = False) -> Delivery[S] | None:
    """One delivery from all grants of a session that match a topic; None where there are none."""
    found = list(grants)
    if not found:
        return None
    no_local = any(grant.no_local for grant in found)
    retain_as_published = any(grant.retain_as_published for grant in found)
    identifiers = tuple(grant.identifier for grant in found if grant.identifier)
    return Delivery(
        session,
        max(grant.qos for grant in found),  # [MQTT-3.3.4-2]
        retain_as_published,
        identifiers,  # [MQTT-3.3.4-4]
        max(grant.since for grant in found),
        not (no_local or retain_as_published or identifiers or denied),
        no_local,
        merge(session, [grant for grant in found if not grant.no_local]) if no_local else None,  # [MQTT-3.8.3-3]
        denied,
    )


@dataclass(slots=True)
class _Node(Generic[S]):
    children: dict[str, _Node[S]] = field(default_factory=dict)
    grants: dict[S, Grant] = field(default_factory=dict)


class Router(Generic[S]):
    """The subscriptions of every connected session. `denies`: whether rules keep a topic from a session."""

    __slots__ = ("_cache", "_denies", "_root")

    def __init__(self, denies: Callable[[S, str], bool] = lambda session, topic: False) -> None:
        self._root: _Node[S] = _Node()
        self._denies = denies
        self._cache: dict[str, tuple[Delivery[S], ...]] = {}

    def add(self, session: S, grant: Grant) -> None:
        """Add a subscription, or replace the one with the same filter."""
        node = self._root
        for level in grant.filter.split("/"):
            child = node.children.get(level)
            if child is None:
                node.children[level] = child = _Node()
            node = child
        node.grants[session] = grant
        self._forget(grant.filter)

    def remove(self, session: S, filter: str) -> None:
        """Remove a subscription, where there is one, and the branch that only it needed."""
        path = [self._root]
        levels = filter.split("/")
        for level in levels:
            child = path[-1].children.get(level)
            if child is None:
                return
            path.append(child)
        path[-1].grants.pop(session, None)
        for depth in range(len(levels), 0, -1):
            if path[depth].grants or path[depth].children:
                break
            del path[depth - 1].children[levels[depth - 1]]
        self._forget(filter)

    def match(self, topic: str) -> tuple[Delivery[S], ...]:
        """How each session gets the messages of this topic."""
        found = self._cache.get(topic)
        if found is None:
            found = self._walk(topic)
            if len(topic) <= REMEMBERED:
                if len(self._cache) >= _CACHED_TOPICS:
                    self._cache.clear()
                self._cache[topic] = found
        return found

    def forget(self) -> None:
        """Find everything anew: rules have changed."""
        self._cache.clear()

    def _walk(self, topic: str) -> tuple[Delivery[S], ...]:
        levels = topic.split("/")
        # [MQTT-4.7.2-1] a leading wildcard does not match a topic that begins with $.
        nodes = [self._root.children[levels[0]]] if levels[0] in self._root.children else []
        grants: dict[S, list[Grant]] = {}
        if not topic.startswith("$"):
            if "+" in self._root.children:
                nodes.append(self._root.children["+"])
            if "#" in self._root.children:
                _collect(self._root.children["#"], grants)
        for level in levels[1:]:
            below: list[_Node[S]] = []
            for node in nodes:
                children = node.children
                if "#" in children:
                    _collect(children["#"], grants)
                if level in children:
                    below.append(children[level])
                if "+" in children:
                    below.append(children["+"])
            nodes = below
        for node in nodes:
            _collect(node, grants)
            if "#" in node.children:  # a filter's trailing /# matches its parent, too
                _collect(node.children["#"], grants)
        denies = self._denies
        return tuple(
            delivery
            for session, found in grants.items()
            if (delivery := merge(session, found, denies(session, topic))) is not None
        )

    def _forget(self, filter: str) -> None:
        if "+" in filter or "#" in filter:
            self._cache.clear()
        else:
            self._cache.pop(filter, None)


def _collect(node: _Node[S], grants: dict[S, list[Grant]]) -> None:
    for session, grant in node.grants.items():
        grants.setdefault(session, []).append(grant)

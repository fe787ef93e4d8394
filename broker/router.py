"""Who gets what: a tree of topic filters, and a cache of what each topic name matched.

The tree has one node per filter level; `+` and `#` are levels like any other. Walking it costs one step per topic level
and matching wildcard, however many subscriptions there are: how one subscription is served is made when it is added,
and shared by all topics that it alone matches. The result for a topic name is cached until a subscription changes that
could alter it: a hot topic is one dictionary lookup.

So that a change finds those, the cached topics are a tree, too, of a few levels. A changed filter is walked down it and
forgets what it reaches. Where it forks too widely it forgets the branch, whether it matches or not. So a change takes a
bounded number of steps, beside those that undo what a match has done: clients that subscribe all day long cost the
topics below their filters a walk, and others nothing. `#`, or a `+` with very many levels to stand for, costs all.

One session gets one copy of a message however many of its subscriptions match [MQTT-3.3.4-2]: at the highest QoS of
them, with all their identifiers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)

REMEMBERED: Final = 256
"""Characters of a topic for which anything is remembered: caches count topics, and one may have 65,535 bytes."""
_CACHED_TOPICS: Final = 10_000
_BRANCHES: Final = 10_000
"""Places at most in the tree of cached topics."""
_DEPTH: Final = 4
"""Levels of it: topics with more are told apart by these."""
_FORKS: Final = 64
"""Branches at most that a changed filter is followed into at one level."""


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
    found = [_alone(session, grant) for grant in grants]
    if not found:
        return None
    delivery = found[0] if len(found) == 1 else _joined(found)
    return _denied(delivery) if denied else delivery


def _alone(session: S, grant: Grant) -> Delivery[S]:
    """How a session gets what this one of its grants alone matches."""
    identifiers = (grant.identifier,) if grant.identifier else ()  # [MQTT-3.3.4-3]
    plain = not (grant.no_local or grant.retain_as_published or identifiers)
    return Delivery(
        session, grant.qos, grant.retain_as_published, identifiers, grant.since, plain, grant.no_local, None
    )


def _joined(parts: Sequence[Delivery[S]]) -> Delivery[S]:
    """How a session gets what several of its grants match."""
    no_local = any(part.no_local for part in parts)
    own = [part for part in parts if not part.no_local] if no_local else []  # [MQTT-3.8.3-3]
    return Delivery(
        parts[0].session,
        max(part.qos for part in parts),  # [MQTT-3.3.4-2]
        any(part.retain_as_published for part in parts),
        tuple(identifier for part in parts for identifier in part.identifiers),  # [MQTT-3.3.4-4]
        max(part.since for part in parts),
        all(part.plain for part in parts),
        no_local,
        (own[0] if len(own) == 1 else _joined(own)) if own else None,
    )


def _denied(found: Delivery[S]) -> Delivery[S]:
    """The same, against which rules are."""
    rap, identifiers = found.retain_as_published, found.identifiers
    return Delivery(found.session, found.qos, rap, identifiers, found.since, False, found.no_local, found.own, True)


@dataclass(slots=True)
class _Node(Generic[S]):
    children: dict[str, _Node[S]] = field(default_factory=dict)
    grants: dict[S, Delivery[S]] = field(default_factory=dict)


@dataclass(slots=True)
class _Branch:
    """Cached topics that begin alike."""

    below: dict[str, _Branch] = field(default_factory=dict)
    topics: list[str] = field(default_factory=list)
    """Those with one level more, or, at `_DEPTH`, with any number more."""


class Router(Generic[S]):
    """The subscriptions of every connected session. `denies`: whether rules keep a topic from a session."""

    __slots__ = ("_branches", "_cache", "_denies", "_root", "_seen")

    def __init__(self, denies: Callable[[S, str], bool] = lambda session, topic: False) -> None:
        self._root: _Node[S] = _Node()
        self._denies = denies
        self._cache: dict[str, tuple[Delivery[S], ...] | None] = {}
        """By topic; None: what it was is not true any more."""
        self._seen = _Branch()
        """The same topics."""
        self._branches = 0

    def add(self, session: S, grant: Grant) -> None:
        """Add a subscription, or replace the one with the same filter."""
        node = self._root
        for level in grant.filter.split("/"):
            child = node.children.get(level)
            if child is None:
                node.children[level] = child = _Node()
            node = child
        node.grants[session] = _alone(session, grant)
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
        if path[-1].grants.pop(session, None) is None:
            return
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
                if topic not in self._cache:
                    self._plant(topic)
                self._cache[topic] = found
        return found

    def forget(self) -> None:
        """Find everything anew: rules have changed."""
        self._cache.clear()
        self._seen = _Branch()
        self._branches = 0

    def _walk(self, topic: str) -> tuple[Delivery[S], ...]:
        levels = topic.split("/")
        root = self._root.children
        # [MQTT-4.7.2-1] a leading wildcard does not match a topic that begins with $.
        nodes = [root[levels[0]]] if levels[0] in root else []
        found: list[dict[S, Delivery[S]]] = []
        if not topic.startswith("$"):
            if "+" in root:
                nodes.append(root["+"])
            if "#" in root:
                found.append(root["#"].grants)
        for level in levels[1:]:
            below: list[_Node[S]] = []
            for node in nodes:
                children = node.children
                if "#" in children:
                    found.append(children["#"].grants)
                if level in children:
                    below.append(children[level])
                if "+" in children:
                    below.append(children["+"])
            nodes = below
        for node in nodes:
            if node.grants:
                found.append(node.grants)
            if "#" in node.children:  # a filter's trailing /# matches its parent, too
                found.append(node.children["#"].grants)
        if not found:
            return ()
        denies = self._denies
        return tuple(
            _denied(delivery) if denies(session, topic) else delivery
            for session, delivery in (found[0] if len(found) == 1 else _united(found)).items()
        )

    # -- what is cached

    def _plant(self, topic: str) -> None:
        """Find room for one more topic, and a place among those that are cached."""
        if len(self._cache) >= _CACHED_TOPICS or self._branches >= _BRANCHES:
            self.forget()
        branch = self._seen
        for level in topic.split("/", _DEPTH)[:-1]:
            child = branch.below.get(level)
            if child is None:
                branch.below[level] = child = _Branch()
                self._branches += 1
            branch = child
        branch.topics.append(topic)

    def _forget(self, filter: str) -> None:
        """Find the topics anew that this filter matches, and perhaps some more."""
        if "+" not in filter and "#" not in filter:
            self._mark(filter)
        elif self._cache:
            levels = filter.split("/")
            deep = levels[-1] == "#"
            for branch in self._reached(levels[:-1] if deep else levels):
                if deep:
                    self._fell(branch)

    def _reached(self, levels: list[str]) -> list[_Branch]:
        """Forget the topics that have these levels, wildcards among them; the branches of those that have more."""
        reached = [("", self._seen)]
        for depth, level in enumerate(levels):
            last = depth == len(levels) - 1
            following: list[tuple[str, _Branch]] = []
            for beginning, branch in reached:
                if depth == _DEPTH or (level == "+" and len(following) + len(branch.below) > _FORKS):
                    self._fell(branch)
                elif level == "+":
                    if last:
                        self._drop(branch)
                    following += [(f"{beginning}{name}/", child) for name, child in branch.below.items()]
                else:
                    if last:
                        self._mark(beginning + level)
                    if (child := branch.below.get(level)) is not None:
                        following.append((f"{beginning}{level}/", child))
            reached = following
        return [branch for _, branch in reached]

    def _mark(self, topic: str) -> None:
        """Forget one topic; its place stays."""
        if topic in self._cache:
            self._cache[topic] = None

    def _fell(self, branch: _Branch) -> None:
        """Forget what is in a branch."""
        waiting = [branch]
        while waiting:
            each = waiting.pop()
            self._drop(each)
            self._branches -= len(each.below)
            waiting += each.below.values()
        branch.below.clear()

    def _drop(self, branch: _Branch) -> None:
        """Forget the topics at one place."""
        for topic in branch.topics:
            del self._cache[topic]
        branch.topics.clear()


def _united(found: Sequence[dict[S, Delivery[S]]]) -> dict[S, Delivery[S]]:
    """What several filters give, by session: one delivery for each."""
    united = dict(found[0])
    several: dict[S, list[Delivery[S]]] = {}
    for grants in found[1:]:
        if united.keys().isdisjoint(grants.keys()):
            united |= grants
            continue
        for session, delivery in grants.items():
            if session in united:
                several.setdefault(session, [united[session]]).append(delivery)
            else:
                united[session] = delivery
    for session, deliveries in several.items():
        united[session] = _joined(deliveries)
    return united

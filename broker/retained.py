"""Retained messages: a tree of topic names, walked with a topic filter. The router's twin.

A walk may take long: who walks stops where there is no more room for messages, and goes on when there is. So a walk
holds nothing of its own but one place in each level. It sees a level's nodes as they were when it came there; the list
of them is shared by all walks until a topic comes or goes. Where a walk is put down for a while it keeps no such list.

What the tree takes in memory is counted as it grows, by message and by node: a topic of many levels costs more than its
bytes. Who wants it bounded asks `has_room` before it stores a message of a client. What shrinks it, or leaves it as
large as it is, is always welcome, so a full tree can be emptied and kept up to date. `store` itself refuses nothing:
what was kept once, or comes from the broker itself, stays.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from storage.interface import Event

_MESSAGE: Final = 250
"""Bytes that a message takes beside its topic, payload and properties,"""
_NODE: Final = 170
"""a node beside its level,"""
_PARENT: Final = 140
"""and one with nodes below it more than one without. Measured; where more nodes share a parent each takes less."""


@dataclass(slots=True)
class _Node:
    number: int
    """Of those that a node has below it each has a higher one than those before it."""
    children: dict[str, _Node] | None = None
    event: Event | None = None
    below: tuple[_Node, ...] | None = None
    """The children that a wildcard reaches; None since they have changed."""


class Retained:
    """The last retained message of each topic. `max_messages`, `max_memory` (bytes): see `has_room`; 0: no bound."""

    __slots__ = ("_max_memory", "_max_messages", "_nodes", "_root", "count", "memory", "size")

    def __init__(self, max_messages: int = 0, max_memory: int = 0) -> None:
        self._max_messages = max_messages
        self._max_memory = max_memory
        self._root = _Node(0)
        self._nodes = 0
        """How many there ever were."""
        self.count = 0
        self.size = 0
        """Bytes of all payloads together."""
        self.memory = 0
        """Bytes that all messages and the tree of them take, about."""

    def has_room(self, topic: str, payload: int, properties: int) -> bool:
        """Whether a message with so many bytes of payload and of properties may be kept for its topic.

        One that removes what is there always may, and one that replaces another that is at least as large.
        """
        if not payload:
            return True
        messages, memory = 1, _MESSAGE + _of_text(topic) + payload + properties
        node: _Node | None = self._root
        for level in topic.split("/"):
            child = None
            if node is None or node.children is None:
                memory += _PARENT
            else:
                child = node.children.get(level)
            if child is None:
                memory += _NODE + _of_text(level)
            node = child
        if node is not None and node.event is not None:
            messages, memory = 0, memory - _of_message(node.event)
        return (not messages or not self._max_messages or self.count < self._max_messages) and (
            memory <= 0 or not self._max_memory or self.memory + memory <= self._max_memory
        )

    def store(self, event: Event) -> None:
        """Keep this message for its topic [MQTT-3.3.1-5]; an empty payload removes what is there [MQTT-3.3.1-6]."""
        if not event.payload:
            self._discard(event.topic)
            return
        node = self._root
        for level in event.topic.split("/"):
            if node.children is None:
                node.children = {}
                self.memory += _PARENT
            child = node.children.get(level)
            if child is None:
                self._nodes += 1
                node.children[level] = child = _Node(self._nodes)
                node.below = None
                self.memory += _NODE + _of_text(level)
            node = child
        if node.event is not None:
            self._uncount(node.event)
        self.count += 1
        self.size += len(event.payload)
        self.memory += _of_message(event)
        node.event = event

    def match(self, filter: str) -> Iterator[Event]:
        """The retained messages whose topic matches the filter, in no particular order."""
        return (event for event in self.walk(filter) if event is not None)

    def walk(self, filter: str) -> RetainedWalk:
        """What `match` finds, and None for each step that finds nothing. The tree may change between two steps."""
        return RetainedWalk(self, self._root, filter)

    def below(self, node: _Node) -> tuple[_Node, ...]:
        """The children that a wildcard reaches: at the first level not those that begin with $ [MQTT-4.7.2-1]."""
        if node.children is None:
            return ()
        if node.below is None:
            first = node is self._root
            node.below = tuple(child for level, child in node.children.items() if not (first and level.startswith("$")))
        return node.below

    def _discard(self, topic: str) -> None:
        path: list[tuple[_Node, str]] = []
        node = self._root
        for level in topic.split("/"):
            child = None if node.children is None else node.children.get(level)
            if child is None:
                return
            path.append((node, level))
            node = child
        if node.event is not None:
            self._uncount(node.event)
            node.event = None
        for parent, level in reversed(path):
            assert parent.children is not None
            node = parent.children[level]
            if node.event is not None or node.children is not None:
                break
            self._prune(parent, level)

    def _prune(self, parent: _Node, level: str) -> None:
        """Take away a node that nothing is at or below."""
        assert parent.children is not None
        del parent.children[level]
        parent.below = None
        self.memory -= _NODE + _of_text(level)
        if not parent.children:
            parent.children = None
            self.memory -= _PARENT

    def _uncount(self, event: Event) -> None:
        self.count -= 1
        self.size -= len(event.payload)
        self.memory -= _of_message(event)


@dataclass(slots=True)
class _Level:
    """Where a walk is in one level of the tree."""

    parent: _Node | None
    nodes: tuple[_Node, ...] | None
    """Those to be looked at; None: what is below the parent now, behind `number`."""
    depth: int
    at: int = 0
    number: int = 0


class RetainedWalk:
    """One walk. Put down, it holds nothing but a number for each level that it is in."""

    __slots__ = ("_levels", "_retained", "_stack")

    def __init__(self, retained: Retained, root: _Node, filter: str) -> None:
        self._retained = retained
        self._levels = filter.split("/")
        self._stack = [_Level(None, (root,), 0)]

    def __iter__(self) -> RetainedWalk:
        return self

    def __next__(self) -> Event | None:
        """The message that the next step finds, if any."""
        stack, levels = self._stack, self._levels
        while stack:
            here = stack[-1]
            if here.nodes is None:
                assert here.parent is not None
                here.nodes = self._retained.below(here.parent)
                here.at = bisect_right(here.nodes, here.number, key=_number)
            if here.at == len(here.nodes):
                stack.pop()
                continue
            node = here.nodes[here.at]
            here.at += 1
            here.number = node.number
            depth = here.depth
            if depth == len(levels):
                return node.event
            level = levels[depth]
            if level == "#":
                stack.append(_Level(node, self._retained.below(node), depth))
                return node.event
            if level == "+":
                stack.append(_Level(node, self._retained.below(node), depth + 1))
            elif node.children is not None and level in node.children:
                stack.append(_Level(None, (node.children[level],), depth + 1))
                continue
            return None
        raise StopIteration

    def put_down(self) -> None:
        """Nobody goes on with it for a while, and the tree may become another one meanwhile."""
        for here in self._stack:
            if here.parent is not None:
                here.nodes = None


def _number(node: _Node) -> int:
    return node.number


def _of_message(event: Event) -> int:
    """Bytes that a message takes."""
    return _MESSAGE + _of_text(event.topic) + len(event.payload) + len(event.properties)


def _of_text(text: str) -> int:
    """Bytes that characters take at most, those in UTF-8 that may be kept beside them included."""
    return len(text) if text.isascii() else 4 * len(text)

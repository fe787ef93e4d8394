"""Retained messages: a tree of topic names, walked with a topic filter. The router's twin.

A walk may take long: who walks stops where there is no more room for messages, and goes on when there is. So a walk
holds nothing of its own but one place in each level. It sees a level's nodes as they were when it came there; the list
of them is shared by all walks until a topic comes or goes.

What the tree takes in memory is counted as it grows, by message and by node: a topic of many levels costs more than its
bytes. Who wants it bounded asks `has_room` before it stores a message of a client. What shrinks it, or leaves it as
large as it is, is always welcome, so a full tree can be emptied and kept up to date. `store` itself refuses nothing:
what was kept once, or comes from the broker itself, stays.
"""

from __future__ import annotations

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
    children: dict[str, _Node] | None = None
    event: Event | None = None
    below: tuple[_Node, ...] | None = None
    """The children that a wildcard reaches; None since they have changed."""


class Retained:
    """The last retained message of each topic. `max_messages`, `max_memory` (bytes): see `has_room`; 0: no bound."""

    __slots__ = ("_max_memory", "_max_messages", "_root", "count", "memory", "size")

    def __init__(self, max_messages: int = 0, max_memory: int = 0) -> None:
        self._max_messages = max_messages
        self._max_memory = max_memory
        self._root = _Node()
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
                node.children[level] = child = _Node()
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

    def walk(self, filter: str) -> Iterator[Event | None]:
        """What `match` finds, and None for each step that finds nothing. The tree may change between two steps."""
        levels = filter.split("/")
        stack: list[tuple[Iterator[_Node], int]] = [(iter((self._root,)), 0)]
        while stack:
            nodes, depth = stack[-1]
            node = next(nodes, None)
            if node is None:
                stack.pop()
                continue
            if depth == len(levels):
                yield node.event
                continue
            level = levels[depth]
            if level == "#":
                stack.append((iter(self._below(node)), depth))
                yield node.event
            elif level == "+":
                stack.append((iter(self._below(node)), depth + 1))
                yield None
            elif node.children is not None and level in node.children:
                stack.append((iter((node.children[level],)), depth + 1))
            else:
                yield None

    def _below(self, node: _Node) -> tuple[_Node, ...]:
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


def _of_message(event: Event) -> int:
    """Bytes that a message takes."""
    return _MESSAGE + _of_text(event.topic) + len(event.payload) + len(event.properties)


def _of_text(text: str) -> int:
    """Bytes that characters take at most, those in UTF-8 that may be kept beside them included."""
    return len(text) if text.isascii() else 4 * len(text)

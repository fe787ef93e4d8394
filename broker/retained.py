"""Retained messages: a tree of topic names, walked with a topic filter. The router's twin.

A walk may take long: who walks stops where there is no more room for messages, and goes on when there is. So a walk
holds nothing of its own but one place in each level. It sees a level's nodes as they were when it came there; the list
of them is shared by all walks until a topic comes or goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from storage.interface import Event


@dataclass(slots=True)
class _Node:
    children: dict[str, _Node] = field(default_factory=dict)
    event: Event | None = None
    below: tuple[_Node, ...] | None = None
    """The children that a wildcard reaches; None since they have changed."""


class Retained:
    """The last retained message of each topic."""

    __slots__ = ("_root", "count", "size")

    def __init__(self) -> None:
        self._root = _Node()
        self.count = 0
        self.size = 0
        """Bytes of all payloads together."""

    def store(self, event: Event) -> None:
        """Keep this message for its topic [MQTT-3.3.1-5]; an empty payload removes what is there [MQTT-3.3.1-6]."""
        if not event.payload:
            self._discard(event.topic)
            return
        node = self._root
        for level in event.topic.split("/"):
            child = node.children.get(level)
            if child is None:
                node.children[level] = child = _Node()
                node.below = None
            node = child
        if node.event is None:
            self.count += 1
        else:
            self.size -= len(node.event.payload)
        self.size += len(event.payload)
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
            elif level in node.children:
                stack.append((iter((node.children[level],)), depth + 1))
            else:
                yield None

    def _below(self, node: _Node) -> tuple[_Node, ...]:
        """The children that a wildcard reaches: at the first level not those that begin with $ [MQTT-4.7.2-1]."""
        if node.below is None:
            first = node is self._root
            node.below = tuple(child for level, child in node.children.items() if not (first and level.startswith("$")))
        return node.below

    def _discard(self, topic: str) -> None:
        path = [self._root]
        levels = topic.split("/")
        for level in levels:
            child = path[-1].children.get(level)
            if child is None:
                return
            path.append(child)
        gone = path[-1].event
        if gone is not None:
            self.count -= 1
            self.size -= len(gone.payload)
        path[-1].event = None
        for depth in range(len(levels), 0, -1):
            if path[depth].event is not None or path[depth].children:
                break
            del path[depth - 1].children[levels[depth - 1]]
            path[depth - 1].below = None

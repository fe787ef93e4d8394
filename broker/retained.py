"""Retained messages: a tree of topic names, walked with a topic filter. The router's twin."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from storage.interface import Event


@dataclass(slots=True)
class _Node:
    children: dict[str, _Node] = field(default_factory=dict)
    event: Event | None = None


class Retained:
    """The last retained message of each topic."""

    __slots__ = ("_root", "count")

    def __init__(self) -> None:
        self._root = _Node()
        self.count = 0

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
            node = child
        if node.event is None:
            self.count += 1
        node.event = event

    def match(self, filter: str) -> Iterator[Event]:
        """The retained messages whose topic matches the filter, in no particular order."""
        stack: list[tuple[_Node, int]] = [(self._root, 0)]
        levels = filter.split("/")
        while stack:
            node, depth = stack.pop()
            if depth == len(levels):
                if node.event is not None:
                    yield node.event
                continue
            level = levels[depth]
            if level == "#":
                if node.event is not None:
                    yield node.event
                stack.extend((child, depth) for child in self._below(node, depth))
            elif level == "+":
                stack.extend((child, depth + 1) for child in self._below(node, depth))
            elif level in node.children:
                stack.append((node.children[level], depth + 1))

    def _below(self, node: _Node, depth: int) -> Iterator[_Node]:
        """The children that a wildcard reaches: at the first level not those that begin with $ [MQTT-4.7.2-1]."""
        for level, child in node.children.items():
            if depth or node is not self._root or not level.startswith("$"):
                yield child

    def _discard(self, topic: str) -> None:
        path = [self._root]
        levels = topic.split("/")
        for level in levels:
            child = path[-1].children.get(level)
            if child is None:
                return
            path.append(child)
        if path[-1].event is not None:
            self.count -= 1
        path[-1].event = None
        for depth in range(len(levels), 0, -1):
            if path[depth].event is not None or path[depth].children:
                break
            del path[depth - 1].children[levels[depth - 1]]

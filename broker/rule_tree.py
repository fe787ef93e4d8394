"""Rules as a tree of levels, and what they mean for one client.

A rule is told by its place in the list. A node has the first rule for each whom that ends there: the others after it
decide nothing. `%c` and `%u` are levels of a kind of their own, `Template`s, that match as the client is called.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

NEVER: Final = 1 << 60
"""The place of a rule that there is none of."""
EVERYONE: Final = ""
NOBODY: Final = "anonymous"
SUBSTITUTE: Final = re.compile("%([cu%])")


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """A level with %c or %u in it. The same text is the same template throughout a list of rules."""

    text: str

    def unusable(self, misfits: frozenset[str]) -> bool:
        """Whether it can't be filled in, since one of these is in it."""
        return not misfits.isdisjoint(SUBSTITUTE.findall(self.text))

    @property
    def leads(self) -> bool:
        """Whether it begins with what is put in, so that it matches like a wildcard at the first level."""
        return self.text[0] == "%"


@dataclass(slots=True, eq=False)
class Node:
    """A place in the tree."""

    children: dict[str, Node] = field(default_factory=dict)
    templates: dict[Template, Node] = field(default_factory=dict)
    allowed: dict[str, int] = field(default_factory=dict)
    """The rules that end here."""
    denied: dict[str, int] = field(default_factory=dict)
    _denied_below: dict[str, int] | None = None

    @property
    def denied_below(self) -> dict[str, int]:
        """The first rules that deny, here and anywhere below. To be asked for once the tree is complete."""
        if self._denied_below is None:
            self._denied_below = firsts(node.denied for node in self._below())
        return self._denied_below

    def _below(self) -> Iterator[Node]:
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.children.values()
            waiting += node.templates.values()


class Client:
    """What rules and templates mean for one client. `templates`: those of the whole list of rules."""

    __slots__ = ("_keys", "misfits", "texts")

    def __init__(self, client_id: str, username: str, templates: Iterable[Template]) -> None:
        self._keys = f"user={username}" if username else NOBODY, f"client={client_id}"
        values = {"c": client_id, "u": username, "%": "%"}
        self.misfits = frozenset(key for key, value in values.items() if _is_no_level(value))
        """Which of %c and %u stand for a text that can't be (a part of) a level."""
        texts: dict[str, list[Template]] = {}
        for template in templates:
            if not template.unusable(self.misfits):
                text = SUBSTITUTE.sub(lambda found: values[found[1]], template.text)
                texts.setdefault(text, []).append(template)
        self.texts = {text: tuple(found) for text, found in texts.items()}
        """The templates that match a level, by level."""

    def first(self, rules: Mapping[str, int]) -> int:
        """The place of the first of these rules that concerns the client."""
        if not rules:
            return NEVER
        user, client = self._keys
        return min(rules.get(EVERYONE, NEVER), rules.get(user, NEVER), rules.get(client, NEVER))


def firsts(found: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The first for each whom of all these rules."""
    first: dict[str, int] = {}
    for rules in found:
        for whom, place in rules.items():
            first[whom] = min(place, first.get(whom, NEVER))
    return first


def _is_no_level(value: str) -> bool:
    return not value or "/" in value or "+" in value or "#" in value


def plant(root: Node, templates: dict[str, Template], allow: bool, filter: str, whom: str, place: int) -> None:
    """Put one more rule into a tree. `templates`: those of the whole list, by text."""
    node = root
    for level in filter.split("/"):
        if "%" in level:
            template = templates.setdefault(level, Template(level))
            node = node.templates.setdefault(template, Node())
        else:
            node = node.children.setdefault(level, Node())
    (node.allowed if allow else node.denied).setdefault(whom, place)


def covering(root: Node, levels: Sequence[str], client: Client) -> Iterator[Node]:
    """Where filters end that match every topic that this filter matches."""
    places = [root]
    for depth, level in enumerate(levels):
        wild = depth > 0 or not level.startswith("$")  # [MQTT-4.7.2-1]
        following: list[Node] = []
        for place in places:
            children = place.children
            if wild and "#" in children:
                yield children["#"]
            if level == "#":
                continue
            if wild and "+" in children:
                following.append(children["+"])
            if level == "+":
                continue
            if level in children:
                following.append(children[level])
            following += _filled(place, level, client, wild)
        places = following
    if levels[-1] != "#":
        for place in places:
            yield place
            if "#" in place.children:  # a filter's trailing /# matches its parent, too
                yield place.children["#"]


def meeting(root: Node, levels: Sequence[str], client: Client) -> Iterator[dict[str, int]]:
    """The rules that deny whose filters have a topic in common with this filter."""
    places = [root]
    for depth, level in enumerate(levels):
        if level == "#":
            for place in places:
                yield from _reached(place, depth)
            return
        wild = depth > 0 or not level.startswith("$")
        following: list[Node] = []
        for place in places:
            children = place.children
            if wild and "#" in children:
                yield children["#"].denied
            if level == "+":
                following += [child for each, child in children.items() if each != "#" and (depth or each[:1] != "$")]
                following += [child for template, child in place.templates.items() if depth or template.text[0] != "$"]
            else:
                if level in children:
                    following.append(children[level])
                if wild and "+" in children:
                    following.append(children["+"])
                following += _filled(place, level, client, wild)
            for template, child in place.templates.items() if client.misfits else ():
                if template.unusable(client.misfits):
                    yield child.denied_below
        places = following
    for place in places:
        yield place.denied
        if "#" in place.children:
            yield place.children["#"].denied


def _filled(place: Node, level: str, client: Client, wild: bool) -> list[Node]:
    """The children of a place whose templates are this level, once they are filled in."""
    found = client.texts.get(level, ())
    return [place.templates[each] for each in found if each in place.templates and (wild or not each.leads)]


def _reached(place: Node, depth: int) -> Iterator[dict[str, int]]:
    """The rules that deny anything that a # at this depth can match."""
    if depth:
        yield place.denied_below
        return
    for level, child in place.children.items():
        if level[:1] != "$":
            yield child.denied_below
    for template, child in place.templates.items():
        if template.text[0] != "$":
            yield child.denied_below

"""Finds the first rule that matches a topic: one step per level of the topic, however many rules there are.

Walking the tree of rules with a topic reaches many places at once, since a level may be matched by its name, by `+` and
by templates. The places that are reached together are one state; which state a level leads to from another is worked
out once and remembered. Levels that no rule names all lead to the same, so a topic that was never seen before costs no
more than others. What differs by client is only which templates a level matches: so one set of states is for all.

A state remembers, too, which rules end there, and which end by a `#`. The states that are remembered are bounded by the
places in them; beyond, they are forgotten, all at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from broker.rule_tree import NEVER, Client, Node, Template, firsts

_PLACES: Final = 30_000
"""Places at most, in all states together, that are remembered, and"""
_STATE: Final = 8
"""as how many a state counts itself: it takes about 1 kB."""


class _State:
    """The places in the tree that a topic reaches with its levels so far. `wild`: whether wildcards match the next."""

    __slots__ = ("_barred", "deep", "exact", "named", "names", "other", "places", "templated", "templates", "wild")

    def __init__(self, places: tuple[Node, ...], wild: bool = True) -> None:
        self.places = places
        self.wild = wild
        self.exact = _ending(places)
        """The rules whose filters end here."""
        self.deep = _ending(place.children["#"] for place in places if "#" in place.children) if wild else {}
        """Those whose filters go on with a #: they match here, and whatever follows."""
        self.templates = frozenset(each for place in places for each in place.templates)
        self.names = frozenset(each for place in places for each in place.children) - {"+", "#"}
        """What rules call the next level."""
        self.named: dict[str, _State] = {}
        """Where that leads, by name, as far as it was asked for,"""
        self.other: _State | None = None
        """and where any other name does;"""
        self.templated: dict[tuple[str | None, frozenset[Template]], _State] = {}
        """and both where templates match, too: by the name (None: any other) and the templates."""
        self._barred: dict[frozenset[str], dict[str, int]] = {}

    def barred(self, misfits: frozenset[str]) -> dict[str, int]:
        """The rules that deny a topic that goes on, to clients by whose names templates can't be filled in."""
        found = self._barred.get(misfits)
        if found is None:
            self._barred[misfits] = found = firsts(
                child.denied_below
                for place in self.places
                for template, child in place.templates.items()
                if template.unusable(misfits)
            )
        return found

    def reach(self, name: str | None, matched: frozenset[Template]) -> tuple[Node, ...]:
        """The places that a level leads to. The same ones come in the same order, whatever the way to them."""
        reached: list[Node] = []
        for place in self.places:
            if name is not None and name in place.children:
                reached.append(place.children[name])
            if self.wild and "+" in place.children:
                reached.append(place.children["+"])
            if matched:
                reached += [child for template, child in place.templates.items() if template in matched]
        return tuple(reached)


class Matcher:
    """The rules for one action, as they are planted in a tree."""

    __slots__ = ("_begin", "_begin_dollar", "_room", "_root", "_states")

    def __init__(self, root: Node) -> None:
        self._root = root
        self._forget()

    def first(self, topic: str, client: Client) -> int:
        """The place of the first rule that concerns the client and matches the topic."""
        first = NEVER
        state = self._begin_dollar if topic[:1] == "$" else self._begin  # [MQTT-4.7.2-1]
        for level in topic.split("/"):
            if not state.places:
                return first
            if state.deep:
                first = min(first, client.first(state.deep))
            if state.templates:
                if client.misfits:
                    first = min(first, client.first(state.barred(client.misfits)))
                if level in client.texts:
                    state = self._fill_in(state, level, client.texts[level])
                    continue
            following = state.named.get(level)
            if following is None:
                following = state.other
                if following is None or level in state.names:
                    following = self._step(state, level)
            state = following
        if state.deep:  # a filter's trailing /# matches its parent, too
            first = min(first, client.first(state.deep))
        return min(first, client.first(state.exact)) if state.exact else first

    def _step(self, state: _State, level: str) -> _State:
        """Where a level leads from a state for the first time, where no template matches."""
        if level in state.names:
            state.named[level] = following = self._state(state.reach(level, frozenset()))
        else:
            state.other = following = self._state(state.reach(None, frozenset()))
        return following

    def _fill_in(self, state: _State, level: str, filled: tuple[Template, ...]) -> _State:
        """Where a level leads that some templates are, once they are filled in."""
        name = level if level in state.names else None
        matched = frozenset(each for each in filled if each in state.templates and (state.wild or not each.leads))
        following = state.templated.get((name, matched))
        if following is None:
            following = self._state(state.reach(name, matched))
            state.templated[name, matched] = following
        return following

    def _state(self, places: tuple[Node, ...]) -> _State:
        found = self._states.get(places)
        if found is None:
            size = _STATE + len(places)
            if size > self._room:
                self._forget()
            self._room -= size
            self._states[places] = found = _State(places)
        return found

    def _forget(self) -> None:
        self._room = _PLACES
        self._states: dict[tuple[Node, ...], _State] = {}
        self._begin = _State((self._root,))
        self._begin_dollar = _State((self._root,), wild=False)


def _ending(nodes: Iterable[Node]) -> dict[str, int]:
    """The first for each whom of the rules that end at these nodes."""
    return firsts(rules for node in nodes for rules in (node.allowed, node.denied))

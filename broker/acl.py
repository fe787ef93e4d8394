"""Who may do what with which topics: rules in an order, compiled to trees of levels.

A rule allows or denies actions (`publish`, `subscribe`, `receive`) on a topic filter, to everyone or to one user, one
client, or those without a user name. The rules of the game:

1. The first rule that concerns the client, the action and the topic decides; where none does, the list's default.
2. A subscription is allowed only where every topic that its filter can match is. A deny rule ahead of the allow rule
   that covers the filter is in its way where the two have any topic in common. `receive` is asked for each topic on
   its way to a subscriber: rules may let a client subscribe to more than it is given.
3. `%c` stands for the client identifier and `%u` for the user name, `%%` for a percent sign. They fill (a part of) one
   level: what is compared is that level with that text. A text with `/`, `+`, `#` or nothing in it can't be a level's,
   so an allow rule never grows by it; a deny rule whose %c or %u is such a text matches whatever there is from that
   level on.
4. Wildcards, and a level that begins with `%c` or `%u`, do not match a topic that begins with `$` at its first level.

Topics here are full ones, mount points included. Deciding takes microseconds; who asks often remembers the answers,
for as long as the policy is this one.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from broker.mqtt.errors import ProtocolError
from broker.mqtt.topic import SHARE, parse_share, validate_filter
from broker.watched import FileError

PUBLISH: Final = "publish"
SUBSCRIBE: Final = "subscribe"
RECEIVE: Final = "receive"
ACTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    PUBLISH: (PUBLISH,),
    SUBSCRIBE: (SUBSCRIBE,),
    RECEIVE: (RECEIVE,),
    "read": (SUBSCRIBE, RECEIVE),
    "all": (PUBLISH, SUBSCRIBE, RECEIVE),
}
"""What each word for actions in a rule means."""

_NEVER: Final = 1 << 60
"""The place of a rule that there is none of."""
_EVERYONE: Final = ""
_NOBODY: Final = "anonymous"
_SUBSTITUTE: Final = re.compile("%([cu%])")
_FORM: Final = "allow|deny ACTIONS FILTER [user=NAME | client=ID | anonymous]"


@dataclass(frozen=True, slots=True)
class Who:
    """Whom rules are asked about. `username` is empty for one that has not proved any."""

    client_id: str
    username: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `whom`: `user=NAME`, `client=ID`, `anonymous`, or empty for everyone.

    Raises:
        ValueError: the filter, an action or `whom` is wrong.
    """

    allow: bool
    actions: tuple[str, ...]
    filter: str
    whom: str = _EVERYONE

    def __post_init__(self) -> None:
        if not self.actions or any(action not in (PUBLISH, SUBSCRIBE, RECEIVE) for action in self.actions):
            raise ValueError(f"actions are {PUBLISH}, {SUBSCRIBE} and {RECEIVE}")
        try:
            validate_filter(self.filter)
        except ProtocolError as error:
            raise ValueError(str(error)) from None
        if self.filter.startswith(SHARE):
            raise ValueError("a shared subscription is asked about by the filter behind its share; give that filter")
        if "%" in _SUBSTITUTE.sub("", self.filter):
            raise ValueError("a % is followed by c, u or %")
        if self.whom not in (_EVERYONE, _NOBODY) and not re.fullmatch("(user|client)=.+", self.whom):
            raise ValueError("whom is `user=NAME`, `client=ID` or `anonymous`")


@dataclass(slots=True)
class _Node:
    """A place in a tree of levels. Rules are told by their places in the list, the first for each whom."""

    children: dict[str, _Node] = field(default_factory=dict)
    templates: list[tuple[str, _Node]] = field(default_factory=list)
    """Levels with %c or %u in them."""
    allowed: dict[str, int] = field(default_factory=dict)
    """The rules that end here."""
    denied: dict[str, int] = field(default_factory=dict)

    def below(self) -> Iterator[_Node]:
        """The node, and all under it."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.children.values()
            waiting += [child for _, child in node.templates]


class Policy:
    """A list of rules, compiled. `default`: what is right where no rule decides."""

    __slots__ = ("_receive_open", "_trees", "default", "rules")

    def __init__(self, rules: Iterable[Rule], default: bool) -> None:
        self.rules = tuple(rules)
        self.default = default
        self._trees = {action: _Node() for action in (PUBLISH, SUBSCRIBE, RECEIVE)}
        for place, rule in enumerate(self.rules):
            for action in rule.actions:
                _plant(self._trees[action], rule, place)
        self._receive_open = default and not any(RECEIVE in rule.actions and not rule.allow for rule in self.rules)

    @property
    def unlimited(self) -> bool:
        """Whether everything is allowed to everyone."""
        return self.default and all(rule.allow for rule in self.rules)

    def may_publish(self, who: Who, topic: str) -> bool:
        """Whether a client may publish to a topic."""
        return self._decide(PUBLISH, who, topic)

    def may_receive(self, who: Who, topic: str) -> bool:
        """Whether a client may be given a message of a topic."""
        return self._receive_open or self._decide(RECEIVE, who, topic)

    def may_subscribe(self, who: Who, filter: str) -> bool:
        """Whether a client may subscribe by a valid filter, that of a shared subscription included."""
        share = parse_share(filter)
        levels = (filter if share is None else share[1]).split("/")
        root, client = self._trees[SUBSCRIBE], _Client(who)
        denied = min((client.first(node.denied) for node in _meeting(root, levels, client)), default=_NEVER)
        allowed = min((client.first(node.allowed) for node in _covering(root, levels, client)), default=_NEVER)
        return self.default if denied == allowed else allowed < denied

    def _decide(self, action: str, who: Who, topic: str) -> bool:
        allowed = denied = _NEVER
        client = _Client(who)
        for node, only_denies in _matching(self._trees[action], topic.split("/"), client):
            denied = min(denied, client.first(node.denied))
            if not only_denies:
                allowed = min(allowed, client.first(node.allowed))
        return self.default if denied == allowed else allowed < denied


class _Client:
    """What rules and templates mean for one client."""

    __slots__ = ("_keys", "_values")

    def __init__(self, who: Who) -> None:
        self._keys = (_EVERYONE, f"user={who.username}" if who.username else _NOBODY, f"client={who.client_id}")
        self._values = {"c": who.client_id, "u": who.username, "%": "%"}

    def first(self, rules: dict[str, int]) -> int:
        """The place of the first of these rules that concerns the client."""
        return min(rules.get(key, _NEVER) for key in self._keys) if rules else _NEVER

    def matches(self, template: str, level: str) -> bool:
        """Whether a level is what the template says; never where that can't be (a part of) a level."""
        return self.usable(template) and _SUBSTITUTE.sub(lambda found: self._values[found[1]], template) == level

    def usable(self, template: str) -> bool:
        """Whether each value in it can be (a part of) a level."""
        values = [self._values[each] for each in _SUBSTITUTE.findall(template)]
        return not any(not value or "/" in value or "+" in value or "#" in value for value in values)


def _plant(root: _Node, rule: Rule, place: int) -> None:
    node = root
    for level in rule.filter.split("/"):
        if "%" not in level:
            node = node.children.setdefault(level, _Node())
            continue
        found = next((child for template, child in node.templates if template == level), None)
        if found is None:
            found = _Node()
            node.templates.append((level, found))
        node = found
    (node.allowed if rule.allow else node.denied).setdefault(rule.whom, place)


def _matching(root: _Node, levels: Sequence[str], client: _Client) -> Iterator[tuple[_Node, bool]]:
    """Where filters end that match a topic; with True: only deny rules count there."""
    places = [root]
    for depth, level in enumerate(levels):
        wild = depth > 0 or not level.startswith("$")  # [MQTT-4.7.2-1]
        following: list[_Node] = []
        for place in places:
            children = place.children
            if level in children:
                following.append(children[level])
            if wild and "+" in children:
                following.append(children["+"])
            if wild and "#" in children:
                yield children["#"], False
            for template, child in place.templates:
                if not client.usable(template):
                    yield from ((node, True) for node in child.below())
                elif (wild or template[0] != "%") and client.matches(template, level):
                    following.append(child)
        places = following
    for place in places:
        yield place, False
        if "#" in place.children:  # a filter's trailing /# matches its parent, too
            yield place.children["#"], False


def _covering(root: _Node, levels: Sequence[str], client: _Client) -> Iterator[_Node]:
    """Where filters end that match every topic that this filter matches."""
    places = [root]
    for depth, level in enumerate(levels):
        wild = depth > 0 or not level.startswith("$")
        following: list[_Node] = []
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
            following += [
                child
                for template, child in place.templates
                if (wild or template[0] != "%") and client.matches(template, level)
            ]
        places = following
    if levels[-1] != "#":
        for place in places:
            yield place
            if "#" in place.children:
                yield place.children["#"]


def _meeting(root: _Node, levels: Sequence[str], client: _Client) -> Iterator[_Node]:
    """Where filters end that have a topic in common with this filter."""
    places = [root]
    for depth, level in enumerate(levels):
        if level == "#":
            for place in places:
                yield from _reached(place, depth)
            return
        following: list[_Node] = []
        for place in places:
            children = place.children
            if "#" in children and (depth > 0 or not level.startswith("$")):
                yield children["#"]
            if level == "+":
                following += [child for each, child in children.items() if each != "#" and (depth or each[:1] != "$")]
                following += [child for template, child in place.templates if depth or template[0] != "$"]
            else:
                if level in children:
                    following.append(children[level])
                if "+" in children and (depth > 0 or not level.startswith("$")):
                    following.append(children["+"])
            for template, child in place.templates:
                if not client.usable(template):
                    yield from child.below()
                elif level != "+" and (depth or level[:1] != "$" or template[0] != "%"):
                    following += [child] if client.matches(template, level) else []
        places = following
    for place in places:
        yield place
        if "#" in place.children:
            yield place.children["#"]


def _reached(place: _Node, depth: int) -> Iterator[_Node]:
    """Everything that a # at this depth can match."""
    if depth:
        yield from place.below()
        return
    for level, child in place.children.items():
        if level[:1] != "$":
            yield from child.below()
    for template, child in place.templates:
        if template[0] != "$":
            yield from child.below()


def parse(text: str, name: str) -> tuple[Rule, ...]:
    """The rules of a file, one a line: `allow|deny ACTIONS FILTER [user=NAME | client=ID | anonymous]`.

    ACTIONS are words of `ACTIONS` with commas between them. Words with spaces in them stand in quotes, as in a shell.
    An empty line, and one that begins with `#`, says nothing. `name` is what messages call the file.

    Raises:
        FileError: a line is wrong; the message tells the first.
    """
    rules: list[Rule] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                rules.append(_parse_rule(line))
            except ValueError as error:
                raise FileError(f"{name}:{number}: {error}; write `{_FORM}`") from None
    return tuple(rules)


def _parse_rule(line: str) -> Rule:
    words = shlex.split(line)
    if not 3 <= len(words) <= 4:
        raise ValueError("not three or four words")
    verdict, actions, filter, whom = (*words, "")[:4]
    if verdict not in ("allow", "deny"):
        raise ValueError(f"{verdict!r} is neither allow nor deny")
    meant: dict[str, None] = {}
    for word in actions.split(","):
        if word not in ACTIONS:
            raise ValueError(f"{word!r} is none of {', '.join(ACTIONS)}")
        meant.update(dict.fromkeys(ACTIONS[word]))
    return Rule(verdict == "allow", tuple(meant), filter, whom)

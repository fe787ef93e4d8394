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

Topics here are full ones, mount points included. Deciding about a topic takes a step per level of it, microseconds,
however many rules there are (`rule_matcher`); about a filter with wildcards, it takes longer the more rules there are.
Who asks often remembers the answers, for as long as the policy is this one.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from broker.mqtt.errors import ProtocolError
from broker.mqtt.topic import SHARE, parse_share, validate_filter
from broker.rule_matcher import Matcher
from broker.rule_tree import EVERYONE, NEVER, NOBODY, SUBSTITUTE, Client, Node, Template, covering, meeting, plant
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

_FILLED_IN: Final = 10_000
"""Clients at most that are remembered, and levels with their names in them; each takes 500 bytes, or less."""
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
    whom: str = EVERYONE

    def __post_init__(self) -> None:
        if not self.actions or any(action not in (PUBLISH, SUBSCRIBE, RECEIVE) for action in self.actions):
            raise ValueError(f"actions are {PUBLISH}, {SUBSCRIBE} and {RECEIVE}")
        try:
            validate_filter(self.filter)
        except ProtocolError as error:
            raise ValueError(str(error)) from None
        if self.filter.startswith(SHARE):
            raise ValueError("a shared subscription is asked about by the filter behind its share; give that filter")
        if "%" in SUBSTITUTE.sub("", self.filter):
            raise ValueError("a % is followed by c, u or %")
        if self.whom not in (EVERYONE, NOBODY) and not re.fullmatch("(user|client)=.+", self.whom):
            raise ValueError("whom is `user=NAME`, `client=ID` or `anonymous`")


class Policy:
    """A list of rules, compiled. `default`: what is right where no rule decides."""

    __slots__ = ("_clients", "_matchers", "_receive_open", "_room", "_subscribe", "_templates", "default", "rules")

    def __init__(self, rules: Iterable[Rule], default: bool) -> None:
        self.rules = tuple(rules)
        self.default = default
        templates: dict[str, Template] = {}
        trees = {action: Node() for action in (PUBLISH, SUBSCRIBE, RECEIVE)}
        for place, rule in enumerate(self.rules):
            for action in rule.actions:
                plant(trees[action], templates, rule.allow, rule.filter, rule.whom, place)
        self._subscribe = trees[SUBSCRIBE]
        self._matchers = {action: Matcher(tree) for action, tree in trees.items()}
        self._templates = tuple(templates.values())
        self._receive_open = default and not any(RECEIVE in rule.actions and not rule.allow for rule in self.rules)
        self._clients: dict[Who, Client] = {}
        self._room = _FILLED_IN

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
        plain = filter if share is None else share[1]
        if "+" not in plain and "#" not in plain:
            return self._decide(SUBSCRIBE, who, plain)
        levels, client = plain.split("/"), self._client(who)
        denied = min((client.first(rules) for rules in meeting(self._subscribe, levels, client)), default=NEVER)
        allowed = min((client.first(node.allowed) for node in covering(self._subscribe, levels, client)), default=NEVER)
        return self.default if denied == allowed else allowed < denied

    def _decide(self, action: str, who: Who, topic: str) -> bool:
        first = self._matchers[action].first(topic, self._client(who))
        return self.default if first == NEVER else self.rules[first].allow

    def _client(self, who: Who) -> Client:
        found = self._clients.get(who)
        if found is None:
            size = 1 + len(self._templates)
            if size > self._room:
                self._clients.clear()
                self._room = _FILLED_IN
            self._room -= size
            self._clients[who] = found = Client(who.client_id, who.username, self._templates)
        return found


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

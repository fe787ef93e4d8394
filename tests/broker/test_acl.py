"""Rules decide as a reading of the list from top to bottom would, and no name of a client makes one wider."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from itertools import product
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker import acl, rule_matcher
from broker.acl import ACTIONS, PUBLISH, RECEIVE, SUBSCRIBE, Policy, Rule, Who, parse
from broker.mqtt.topic import matches
from broker.watched import FileError
from tests.broker.mqtt.steps import steps

uncompiled = pytest.mark.skipif(
    not str(rule_matcher.__file__).endswith(".py"), reason="instructions can be counted in Python only"
)

WHO = Who("c1", "alice")


def policy(*lines: str, default: bool = False) -> Policy:
    return Policy(parse("\n".join(lines), "acl"), default)


def test_the_first_rule_that_matches_decides() -> None:
    rules = ("deny publish a/secret", "allow publish a/#", "deny publish #")
    assert policy(*rules).may_publish(WHO, "a/b")
    assert not policy(*rules).may_publish(WHO, "a/secret")
    assert policy(*reversed(rules), default=True).may_publish(WHO, "a/secret") is False
    assert policy("allow publish a/#", "deny publish a/secret").may_publish(WHO, "a/secret")


@pytest.mark.parametrize("default", [True, False])
def test_where_no_rule_matches_the_default_decides(default: bool) -> None:
    found = policy("allow publish a", "deny publish b", default=default)
    assert found.may_publish(WHO, "c") is default
    assert found.may_receive(WHO, "a") is default
    assert found.may_subscribe(WHO, "#") is default


def test_a_rule_is_for_the_actions_that_it_names() -> None:
    found = policy("allow publish p", "allow subscribe s", "allow receive r", "allow read b", "allow all a")
    allowed = {
        topic: (found.may_publish(WHO, topic), found.may_subscribe(WHO, topic), found.may_receive(WHO, topic))
        for topic in "psrba"
    }
    assert allowed == {
        "p": (True, False, False),
        "s": (False, True, False),
        "r": (False, False, True),
        "b": (False, True, True),
        "a": (True, True, True),
    }


def test_a_rule_for_a_user_a_client_or_those_without_a_name_is_for_nobody_else() -> None:
    found = policy("allow all u user=alice", "allow all c client=c1", "allow all n anonymous")
    asked = {who: [topic for topic in "ucn" if found.may_publish(who, topic)] for who in (WHO, Who("c1"), Who("c2"))}
    assert asked == {WHO: ["u", "c"], Who("c1"): ["c", "n"], Who("c2"): ["n"]}
    assert not found.may_publish(Who("alice"), "u")
    assert not found.may_publish(Who("x", "c1"), "c")


@pytest.mark.parametrize(
    ("filter", "yes", "no"),
    [
        ("%c/x", ["c1/x"], ["alice/x", "%c/x", "c1/y", "c1"]),
        ("%u/#", ["alice", "alice/x/y"], ["c1/x", "alicex"]),
        ("a/dev-%c-%u/+", ["a/dev-c1-alice/x"], ["a/dev-c1-bob/x", "a/dev-c1-alice"]),
        ("a/100%%/%c", ["a/100%/c1"], ["a/100%%/c1"]),
        ("+/%c", ["x/c1"], ["$SYS/c1", "x/c2"]),
    ],
)
def test_the_client_identifier_and_the_user_name_stand_where_the_rule_says(
    filter: str, yes: list[str], no: list[str]
) -> None:
    found = policy(f"allow all {filter}")
    for topic in yes:
        assert found.may_publish(WHO, topic)
        assert found.may_subscribe(WHO, topic)
    for topic in no:
        assert not found.may_publish(WHO, topic)
        assert not found.may_subscribe(WHO, topic)


HOSTILE = ["+", "#", "a/b", "+/x", "a/#", "/", "#/", ""]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_can_not_be_a_level_gets_nothing_by_a_rule_that_allows(name: str) -> None:
    found = policy("allow all devices/%c/x", "allow all users/%u/#", "allow all mixed/%c-%u")
    who = Who(name, name)
    for topic in (
        "devices/+/x",
        "devices/#",
        "devices/a/x",
        "devices/a/b/x",
        "devices//x",
        f"devices/{name}/x",
        "users",
        "users/a",
        "users//a",
        f"users/{name}/a",
        "mixed/-",
        f"mixed/{name}-{name}",
    ):
        if not re.search("[+#]", topic):
            assert not found.may_publish(who, topic)
            assert not found.may_receive(who, topic)
        assert not found.may_subscribe(who, topic)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_can_not_be_a_level_does_not_escape_a_rule_that_denies(name: str) -> None:
    found = policy("deny all devices/%c/secret", "allow all #")
    who = Who(name)
    assert not found.may_publish(who, "devices/a/b/secret")
    assert not found.may_receive(who, "devices/a/secret")
    assert not found.may_subscribe(who, "devices/a/#")
    assert not found.may_subscribe(who, "#")
    assert found.may_publish(who, "other")
    assert found.may_publish(Who("a"), "devices/b/secret")


def test_a_name_that_begins_with_a_dollar_opens_no_topic_of_the_server() -> None:
    found = policy("allow all %c/#", "allow all %u/#", "allow all +/x")
    who = Who("$SYS", "$SYS")
    assert not found.may_receive(who, "$SYS/broker/load")
    assert not found.may_subscribe(who, "$SYS/#")
    assert not found.may_receive(who, "$SYS/x")
    assert policy("allow all a/%c").may_publish(who, "a/$SYS")
    assert policy("allow all $SYS/%c").may_receive(Who("c1"), "$SYS/c1")


@pytest.mark.parametrize(
    ("filter", "all_allowed", "but_secret"),
    [
        ("plant", True, True),
        ("plant/a", True, True),
        ("plant/+", True, True),
        ("plant/secret", True, True),  # plant/+ allows it first
        ("plant/#", True, False),
        ("plant/+/t", True, False),
        ("$share/g/plant/#", True, False),
        ("$share/g/plant/a", True, True),
        ("plant/secret/#", True, False),
        ("#", False, False),
        ("+/a", False, False),
        ("$share/g/#", False, False),
        ("plants/#", False, False),
    ],
)
def test_a_subscription_is_allowed_where_all_that_it_can_match_is(
    filter: str, all_allowed: bool, but_secret: bool
) -> None:
    rules = ("allow subscribe plant/+", "deny subscribe plant/secret/#", "allow subscribe plant/#")
    assert policy(*rules).may_subscribe(WHO, filter) is but_secret
    assert policy("allow subscribe plant/#").may_subscribe(WHO, filter) is all_allowed


level = st.sampled_from(["a", "b", "", "$x", "+", "%c", "%u", "x%c"])
last = st.sampled_from(["a", "b", "", "+", "#", "%c", "$x"])


@st.composite
def filters(draw: st.DrawFn) -> str:
    levels = [*draw(st.lists(level, max_size=2)), draw(last)]
    return "/".join(levels) or "a"


names = st.sampled_from(["c1", "a", "$x", "+", "#", "a/b", ""])
whoms = st.sampled_from(["", "", "", "user=a", "client=c1", "anonymous"])
rules = st.lists(st.builds(Rule, st.booleans(), st.sampled_from(list(ACTIONS.values())), filters(), whoms), max_size=6)
TOPICS = [
    "/".join(levels) for size in (1, 2, 3) for levels in product(["a", "b", "", "$x", "c1", "xc1", "z"], repeat=size)
]
TOPICS = [topic for topic in TOPICS if topic]


def concerns(rule: Rule, who: Who) -> bool:
    return rule.whom in ("", f"client={who.client_id}", f"user={who.username}" if who.username else "anonymous")


def reading(rules: list[Rule], default: bool, action: str, who: Who, topic: str) -> bool:
    """What a reader of the list would say."""
    for rule in rules:
        if action in rule.actions and concerns(rule, who) and _rule_matches(rule, who, topic):
            return rule.allow
    return default


def _rule_matches(rule: Rule, who: Who, topic: str) -> bool:
    filled: list[str] = []
    for depth, each in enumerate(rule.filter.split("/")):
        values = {"%c": who.client_id, "%u": who.username}
        used = [value for key, value in values.items() if key in each]
        if any(not value or re.search("[/+#]", value) for value in used):
            if rule.allow:
                return False
            # everything from this level on, whatever the levels before it match
            beginning = topic.split("/")[:depth]
            rest = len(topic.split("/")) > depth
            return rest and (not depth or matches("/".join(filled) or "\0", "/".join(beginning) or "\0"))
        text = each.replace("%c", who.client_id).replace("%u", who.username)
        if depth == 0 and each.startswith("%") and topic.startswith("$"):
            return False
        filled.append(text)
    return matches("/".join(filled), topic)


@given(rules, st.booleans(), names, names, st.sampled_from(TOPICS))
@example([Rule(False, (PUBLISH,), "%c/a")], True, "+", "", "b")
def test_rules_decide_as_a_reader_of_the_list_would(
    rules: list[Rule], default: bool, client_id: str, username: str, topic: str
) -> None:
    who = Who(client_id, username)
    found = Policy(rules, default)
    assert found.may_publish(who, topic) == reading(rules, default, PUBLISH, who, topic)
    assert found.may_receive(who, topic) == reading(rules, default, RECEIVE, who, topic)


@given(
    st.lists(rules, min_size=1, max_size=3).map(lambda lists: [rule for each in lists for rule in each]),
    st.booleans(),
    st.lists(
        st.tuples(
            st.sampled_from((PUBLISH, RECEIVE, SUBSCRIBE)), st.builds(Who, names, names), st.sampled_from(TOPICS)
        ),
        min_size=5,
        max_size=30,
    ),
    st.sampled_from((1, 20, 40, 30_000)),
    st.sampled_from((1, 5, 1000)),
)
def test_what_was_asked_before_and_by_whom_changes_no_answer(
    rules: list[Rule], default: bool, asked: list[tuple[str, Who, str]], places: int, filled_in: int
) -> None:
    with patch.object(rule_matcher, "_PLACES", places), patch.object(acl, "_FILLED_IN", filled_in):
        found = Policy(rules, default)
        ask = {PUBLISH: found.may_publish, RECEIVE: found.may_receive, SUBSCRIBE: found.may_subscribe}
        for action, who, topic in asked:
            assert ask[action](who, topic) == reading(rules, default, action, who, topic), (action, who, topic)


@given(rules, st.booleans(), names, names, filters().filter(lambda filter: "%" not in filter))
def test_no_topic_that_an_allowed_subscription_matches_is_denied(
    rules: list[Rule], default: bool, client_id: str, username: str, filter: str
) -> None:
    who = Who(client_id, username)
    if Policy(rules, default).may_subscribe(who, filter):
        for topic in TOPICS:
            if matches(filter, topic):
                assert reading(rules, default, SUBSCRIBE, who, topic), topic


@given(rules, st.booleans(), names, names, st.sampled_from(TOPICS))
def test_a_subscription_without_wildcards_is_decided_as_its_one_topic_is(
    rules: list[Rule], default: bool, client_id: str, username: str, topic: str
) -> None:
    who = Who(client_id, username)
    expected = reading(rules, default, SUBSCRIBE, who, topic)
    assert Policy(rules, default).may_subscribe(who, topic) == expected


@pytest.mark.parametrize(
    ("denied", "filter"),
    [
        ("a/%c", "a/+"),
        ("a/%c/x", "+/c1/x"),
        ("%c/x", "+/x"),
        ("%c/x", "#"),
        ("a/+", "a/b"),
        ("a/b", "a/+"),
        ("a/#", "a"),
        ("a", "a/#"),
        ("a/b/c", "a/#"),
        ("+/b", "a/+"),
        ("#", "a"),
        ("$SYS/+", "$SYS/#"),
    ],
)
def test_a_deny_rule_that_shares_a_topic_with_a_filter_is_in_its_way(denied: str, filter: str) -> None:
    assert not policy(f"deny subscribe {denied}", default=True).may_subscribe(WHO, filter)


@pytest.mark.parametrize(
    ("denied", "filter"),
    [
        ("a/%c", "a/c2"),
        ("%c/x", "+/y"),
        ("$SYS/#", "#"),
        ("$SYS/#", "+/a"),
        ("#", "$SYS/a"),
        ("a/+", "a"),
        ("a/b", "a"),
    ],
)
def test_a_deny_rule_that_shares_no_topic_with_a_filter_is_not_in_its_way(denied: str, filter: str) -> None:
    assert policy(f"deny subscribe {denied}", default=True).may_subscribe(WHO, filter)


def test_a_filter_of_many_wildcards_takes_one_way_through_the_rules() -> None:
    many = "/".join(["+"] * 64)
    assert policy(f"allow subscribe {many}").may_subscribe(WHO, many)
    assert not policy(f"deny subscribe {many}", f"allow subscribe {many}").may_subscribe(WHO, many)


SHAPES = {
    "names": lambda n: f"+/n{n}/+/x",
    "clients": lambda n: f"n{n}/%c/+/x",
    "parts of names": lambda n: f"+/n{n}-%c/x",
    "every other wildcard": lambda n: "/".join("+" if n >> bit & 1 else f"n{bit}" for bit in range(9)),
    "the same place": lambda n: f"+/{'+/' * (n % 3)}#",
}


def many(shape: Callable[[int], str], count: int) -> Policy:
    """So many rules of one shape, for users of their own."""
    return Policy([Rule(n % 2 == 0, (PUBLISH,), shape(n), f"user=u{n % 7}") for n in range(count)], False)


@uncompiled
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_topic_that_was_never_asked_about_takes_a_step_per_level_however_many_rules_there_are(
    shape: Callable[[int], str],
) -> None:
    def work(count: int) -> int:
        found = many(shape, count)
        names = [f"{first}/n{n}-c1/c1/x/n4/{last}" for first in ("n0", "a") for n in (0, 1, 9) for last in ("x", "n5")]
        for topic in names:
            found.may_publish(WHO, topic)
        unseen = [topic.replace("a/", "new/") for topic in names]
        return max(steps(partial(found.may_publish, WHO, topic)) for topic in unseen)

    assert work(500) < 1.5 * work(8)


@uncompiled
def test_what_is_remembered_of_rules_and_clients_is_bounded() -> None:
    found = many(SHAPES["every other wildcard"], 512)
    for n in range(2000):
        topic = "/".join(f"n{bit}" if n * 7919 >> bit & 1 else "x" for bit in range(9))
        found.may_publish(Who(f"c{n}", f"u{n % 7}"), topic)
        states = found._matchers[PUBLISH]._states
        assert sum(8 + len(places) for places in states) <= rule_matcher._PLACES
    with_templates = many(SHAPES["parts of names"], 500)
    for n in range(100):
        with_templates.may_publish(Who(f"c{n}"), "a")
        assert sum(1 + len(client.texts) for client in with_templates._clients.values()) <= acl._FILLED_IN


def test_where_every_rule_allows_and_the_default_too_nothing_needs_to_be_asked() -> None:
    assert Policy((), True).unlimited
    assert policy("allow publish a", default=True).unlimited
    assert not policy("allow all #").unlimited
    assert not policy("deny all a", default=True).unlimited


def test_a_filter_of_thousands_of_levels_is_like_any_other() -> None:
    deep = "/".join(["a"] * 20_000)
    found = policy(f"allow all {deep}", f"deny all {deep}/%c", default=False)
    assert found.may_publish(WHO, deep)
    assert not found.may_subscribe(Who("a/b"), "#")
    assert not found.may_publish(Who("a/b"), deep + "/x")


def test_a_file_has_comments_quotes_and_lists_of_actions() -> None:
    text = "# who may what\n\n  # indented\nallow publish,receive 'a b/#' 'user=the boss'\ndeny all #\n"
    assert parse(text, "acl") == (
        Rule(True, (PUBLISH, RECEIVE), "a b/#", "user=the boss"),
        Rule(False, (PUBLISH, SUBSCRIBE, RECEIVE), "#"),
    )


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("allow publish", "not three or four words"),
        ("allow publish a b c", "not three or four words"),
        ("permit publish a", "'permit' is neither allow nor deny"),
        ("allow write a", "'write' is none of publish, subscribe, receive, read, all"),
        ("allow publish, a", "'' is none of"),
        ("allow publish a/#/b", "'#' is not the whole last level"),
        ("allow publish a+", "'\\+' is not a whole level"),
        ("allow publish ''", "empty"),
        ("allow publish a/%d", "a % is followed by c, u or %"),
        ("allow publish a/%", "a % is followed by c, u or %"),
        ("allow publish $share/g/a", "give that filter"),
        ("allow publish a alice", "whom is"),
        ("allow publish a user=", "whom is"),
        ("allow publish 'a", "quot"),
    ],
)
def test_a_wrong_line_is_told_with_its_file_its_line_and_what_to_write(line: str, problem: str) -> None:
    with pytest.raises(FileError, match=rf"^/etc/acl:3: .*{problem}.*; write `allow\|deny ACTIONS FILTER"):
        parse(f"# rules\nallow all a\n{line}\n", "/etc/acl")

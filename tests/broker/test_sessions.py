"""Whose a session is, and how many there may be."""

from __future__ import annotations

import random

import pytest

from broker.auth import Access, Attempt, Challenge, Check, Gate, Proof, Verdict
from broker.listener import Limits, Listener
from broker.mqtt.packets import (
    Connack,
    Connect,
    Disconnect,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Will,
)
from broker.mqtt.properties import Properties, Property
from broker.mqtt.reason import Reason
from storage.interface import SESSIONS, SUBSCRIPTIONS, WILLS
from tests.broker.helpers import FOREVER, Client, Node

VERSIONS = pytest.mark.parametrize("version", [3, 4, 5])


class Believes:
    """Believes every user name."""

    def authenticate(self, check: Check) -> None:
        check.answer(Verdict(Reason.SUCCESS, check.applicant.username or ""))


class Says:
    """A method of enhanced authentication: the client is whoever it says it is."""

    def begin(self) -> Attempt:
        return self

    def step(self, data: bytes) -> Challenge | Proof | Verdict:
        return Proof(data.decode(), b"")


def shared_node(limits: Limits | None = None) -> Node:
    """A node with users."""
    node = Node(limits)
    node.listener = Listener("front", node.limits, access=Access(Believes(), {"SAYS": Says()}))
    return node


def come(
    node: Node,
    username: str,
    client_id: str = "c",
    version: int = 5,
    *,
    clean: bool = False,
    expiry: int = FOREVER,
    will: Will | None = None,
) -> Client:
    """A client that connects as this user (empty: as nobody), whether it is accepted or not."""
    client = node.open(version)
    properties: Properties = ((Property.SESSION_EXPIRY_INTERVAL, expiry),) if version == 5 and expiry else ()
    client.send(Connect(client_id, version, clean, 0, will, username or None, None, properties))
    return client


def delayed_will(delay: int) -> Will:
    return Will("will", b"gone", 1, False, ((Property.WILL_DELAY_INTERVAL, delay),))


def is_accepted(client: Client, *, present: bool | None = None) -> bool:
    """Whether its CONNECT was; where `present` is given, with this as session present."""
    (connack,) = client.take(Connack)
    return connack.reason == Reason.SUCCESS and (present is None or connack.session_present is present)


# -- whose it is


@pytest.mark.parametrize("other", ["bob", ""], ids=["another", "nobody"])
@pytest.mark.parametrize("clean", [False, True], ids=["resume", "clean"])
@pytest.mark.parametrize("away", [False, True], ids=["connected", "away"])
@VERSIONS
def test_a_session_is_not_for_another_user_to_take_or_to_end(
    version: int, away: bool, clean: bool, other: str, caplog: pytest.LogCaptureFixture
) -> None:
    node = shared_node()
    alice = come(node, "alice", version=version)
    alice.subscribe("t", 1)
    alice.take(Connack)
    session = alice.session
    if away:
        alice.lose()
    node.commit()
    commits = len(node.engine.commits)
    rows = [node.engine.rows(table) for table in (SESSIONS, SUBSCRIPTIONS)]
    bob = come(node, other, version=version, clean=clean)
    node.commit()
    (connack,) = bob.take_all()
    assert connack == Connack(False, Reason.NOT_AUTHORIZED)
    assert not bob.open
    assert bob.wire.said == [], "whose it is is not told"
    who = "user 'bob'" if other else "nobody in particular"
    lines = [line for line in caplog.messages if "session" in line]
    assert lines == [
        f"connection of client 'c' from {bob.wire.peer} at front: the session of client 'c' is user 'alice''s; "
        f"this is {who} (reason 0x87); connection closed"
    ]
    assert node.hub.sessions.all == {"c": session}
    assert session.connection is (None if away else alice.connection)
    assert node.hub.clients.count == (0 if away else 1)
    assert len(node.engine.commits) == commits
    assert [node.engine.rows(table) for table in (SESSIONS, SUBSCRIPTIONS)] == rows
    come(node, "carol", "p").publish("t", b"for alice", 1)
    node.commit()
    if away:
        alice = come(node, "alice", version=version)
        assert is_accepted(alice, present=None if version == 3 else True)
        node.commit()
    assert alice.payloads() == [b"for alice"]


@pytest.mark.parametrize("expiry", [0, FOREVER])
def test_a_connected_client_is_not_disconnected_by_another_user(expiry: int) -> None:
    node = shared_node()
    alice = come(node, "alice", expiry=expiry)
    for username in ("bob", ""):
        assert not is_accepted(come(node, username, clean=True, expiry=0))
    assert alice.open
    again = come(node, "alice")
    assert is_accepted(again)
    assert not alice.open
    assert alice.take(Disconnect) == [Disconnect(Reason.SESSION_TAKEN_OVER)]


def test_a_will_that_waits_is_not_for_another_user_to_withdraw() -> None:
    node = shared_node()
    watcher = come(node, "carol", "w")
    watcher.subscribe("will")
    come(node, "alice", will=delayed_will(10)).lose()
    node.tick(5)
    assert not is_accepted(come(node, "bob", clean=True))
    node.commit()
    assert watcher.payloads() == []
    assert node.engine.keys(WILLS) == ["c"]
    node.tick(5)
    node.commit()
    assert watcher.payloads() == [b"gone"]


def test_messages_on_their_way_in_both_directions_are_not_touched_by_another_user() -> None:
    node = shared_node()
    alice = come(node, "alice")
    alice.subscribe("t")
    publisher = come(node, "carol", "p")
    for n, qos in enumerate((1, 2, 2)):
        publisher.publish("t", b"%d" % n, qos, n + 1)
    node.commit()
    alice.send(Pubrec(2), Publish("u", b"", 2, packet_id=9))
    node.commit()
    session = alice.session
    alice.lose()
    before = (dict(session.unacked), dict(session.unreceived), dict(session.uncompleted), set(session.received))
    assert [len(each) for each in before] == [1, 1, 1, 1]
    for clean in (True, False):
        assert not is_accepted(come(node, "bob", clean=clean))
    assert (session.unacked, session.unreceived, session.uncompleted, session.received) == before
    alice = come(node, "alice")
    node.commit()
    came = alice.take_all()[1:]
    assert sorted(map(str, came)) == sorted(
        map(
            str,
            (
                Pubrel(2),
                Publish("t", b"0", 1, dup=True, packet_id=1),
                Publish("t", b"2", 2, dup=True, packet_id=3),
            ),
        )
    )
    alice.send(Puback(1), Pubcomp(2), Pubrec(3), Pubrel(9))
    node.commit()
    assert alice.take(Pubcomp) == [Pubcomp(9)]


def test_a_session_of_nobody_is_whose_user_takes_it_first() -> None:
    node = shared_node()
    anonymous = come(node, "")
    anonymous.subscribe("t")
    anonymous.lose()
    assert is_accepted(come(node, ""), present=True), "nobody may have it as well"
    alice = come(node, "alice")
    assert is_accepted(alice, present=True)
    for username in ("bob", ""):
        assert not is_accepted(come(node, username))
    alice.lose()
    for username in ("bob", ""):
        assert not is_accepted(come(node, username))
    assert is_accepted(come(node, "alice"), present=True)


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "stopped"])
def test_a_session_is_the_same_users_after_a_restart(killed: bool) -> None:
    node = shared_node()
    come(node, "alice").subscribe("t")
    come(node, "", "nobody's").subscribe("t")
    node.commit()
    if killed:
        node.crash()
    else:
        node.restart()
    node.listener = Listener("front", node.limits, access=Access(Believes()))
    assert not is_accepted(come(node, "bob"))
    assert not is_accepted(come(node, ""))
    assert is_accepted(come(node, "alice"), present=True)
    assert is_accepted(come(node, "bob", "nobody's"), present=True)
    node.tick()
    node.commit()
    assert {row[0]: row[-1] for row in node.engine.rows(SESSIONS)} == {"c": "alice", "nobody's": "bob"}


def test_a_session_that_is_over_is_nobodys() -> None:
    node = shared_node()
    come(node, "alice", "ended", expiry=0).lose()
    come(node, "alice", "cleaned").lose()
    come(node, "alice", "cleaned", clean=True, expiry=0).disconnect()
    come(node, "alice", "given up").disconnect(properties=((Property.SESSION_EXPIRY_INTERVAL, 0),))
    come(node, "alice", "expired", expiry=10).lose()
    node.tick(10)
    for client_id in ("ended", "cleaned", "given up", "expired"):
        assert is_accepted(come(node, "bob", client_id), present=False), client_id
        assert not is_accepted(come(node, "alice", client_id)), client_id


def test_however_a_user_proves_who_it_is_its_sessions_are_its_own() -> None:
    node = shared_node()
    by_certificate = Listener("certificates", node.limits, access=Access(Gate(anonymous=False)))

    def by_method(username: str) -> Client:
        client = node.open()
        method = ((Property.AUTHENTICATION_METHOD, "SAYS"), (Property.AUTHENTICATION_DATA, username.encode()))
        client.send(Connect("c", 5, False, 0, None, None, None, ((Property.SESSION_EXPIRY_INTERVAL, 60), *method)))
        return client

    def certified(username: str) -> Client:
        front, node.listener = node.listener, by_certificate
        client = node.open()
        node.listener = front
        client.wire.identity = username
        client.send(Connect("c", 5, False, 0, None, None, None, ((Property.SESSION_EXPIRY_INTERVAL, 60),)))
        return client

    assert is_accepted(come(node, "alice"))
    for way in (by_method, certified, lambda username: come(node, username)):
        assert not is_accepted(way("bob"))
        assert is_accepted(way("alice"), present=True)
        assert not is_accepted(way("bob"))


def test_the_will_of_a_session_that_ended_with_its_node_is_not_for_another_user_to_withdraw() -> None:
    node = shared_node()
    watcher = come(node, "carol", "w")
    watcher.subscribe("will")
    come(node, "alice", expiry=0, will=delayed_will(FOREVER))
    node.commit()
    watcher.lose()
    node.crash()
    node.listener = Listener("front", node.limits, access=Access(Believes()))
    assert is_accepted(come(node, "bob"), present=False)
    node.commit()
    watcher = come(node, "carol", "w")
    node.commit()
    assert watcher.payloads() == [b"gone"]


# -- how many there may be


@pytest.mark.parametrize(("version", "reason"), [(5, Reason.QUOTA_EXCEEDED), (4, Reason.SERVER_UNAVAILABLE)])
def test_a_session_that_is_to_last_and_is_one_too_many_is_refused(version: int, reason: Reason) -> None:
    node = Node(Limits(max_sessions=2))
    node.keeper(client_id="a", version=version).lose()
    node.keeper(client_id="b", version=version)
    refused = come(node, "", "c", version)
    assert refused.take_all() == [Connack(False, reason)]
    assert not refused.open
    assert refused.wire.said == (["2 sessions are kept (mqtt.max_sessions)"] if version == 5 else [])
    node.commit()
    assert sorted(map(str, node.engine.keys(SESSIONS))) == ["a", "b"]
    assert is_accepted(come(node, "", "c", version, clean=True, expiry=0)), "it does not last"
    assert is_accepted(come(node, "", "a", version), present=True)
    assert is_accepted(come(node, "", "b", version), present=True)


def test_a_session_that_ends_makes_room_for_another() -> None:
    node = Node(Limits(max_sessions=1))

    def clean() -> None:
        come(node, "", clean=True, expiry=0).lose()

    def shorten() -> None:
        come(node, "", expiry=0).lose()

    def give_up() -> None:
        come(node, "").disconnect(properties=((Property.SESSION_EXPIRY_INTERVAL, 0),))

    def expire() -> None:
        come(node, "", expiry=5).lose()
        node.tick(5)

    for end in (clean, shorten, give_up, expire):
        assert is_accepted(come(node, ""))
        assert not is_accepted(come(node, "", "other"))
        end()
        assert node.hub.sessions.lasting == 0
        other = come(node, "", "other")
        assert is_accepted(other)
        other.disconnect(properties=((Property.SESSION_EXPIRY_INTERVAL, 0),))


def test_a_client_that_takes_its_place_anew_needs_no_more_room() -> None:
    node = Node(Limits(max_sessions=1))
    come(node, "").lose()
    assert is_accepted(come(node, "", clean=True), present=False)
    assert is_accepted(come(node, "", clean=True), present=False)
    assert node.hub.sessions.lasting == 1


def test_a_connected_client_stays_where_the_one_that_would_take_over_is_one_too_many() -> None:
    node = Node(Limits(max_sessions=1))
    come(node, "", "a")
    first = come(node, "", expiry=0)
    first.subscribe("t")
    assert not is_accepted(come(node, ""))
    assert first.open
    assert is_accepted(come(node, "", expiry=0))
    assert not first.open


def test_sessions_of_an_earlier_run_count_and_all_of_them_stay() -> None:
    node = Node(Limits(max_sessions=3))
    for client_id in ("a", "b", "c"):
        node.keeper(client_id=client_id)
    node.commit()
    node.limits = Limits(max_sessions=2)
    node.crash()
    for client_id in ("a", "b", "c"):
        assert is_accepted(come(node, "", client_id), present=True)
    assert not is_accepted(come(node, "", "d"))
    come(node, "", "a", clean=True, expiry=0)
    assert not is_accepted(come(node, "", "d"))
    come(node, "", "b", clean=True, expiry=0)
    assert is_accepted(come(node, "", "d"))


@pytest.mark.parametrize("seed", range(20))
def test_whatever_clients_do_as_many_sessions_are_counted_as_outlive_their_connections(seed: int) -> None:
    chance = random.Random(seed)
    node = Node(Limits(max_sessions=4))
    clients: list[Client] = []
    for _ in range(200):
        match chance.randrange(6):
            case 0 | 1 | 2:
                clean, expiry = chance.random() < 0.3, chance.choice((0, 3, FOREVER))
                version = chance.choice((4, 5))
                client = come(node, "", f"c{chance.randrange(7)}", version, clean=clean, expiry=expiry)
                if client.open:
                    clients.append(client)
            case 3 if clients:
                clients.pop(chance.randrange(len(clients))).lose()
            case 4 if clients:
                client = clients.pop(chance.randrange(len(clients)))
                if client.open and client.version == 5 and client.session.persistent:
                    expiry = chance.choice((0, 3, FOREVER))
                    client.disconnect(properties=((Property.SESSION_EXPIRY_INTERVAL, expiry),))
            case 5 if chance.random() < 0.2:
                node.commit()
                node.restart()
                clients = []
            case _:
                node.tick(chance.choice((1, 3)))
        clients = [client for client in clients if client.open]
        sessions = node.hub.sessions
        assert sessions.lasting == sum(session.persistent for session in sessions.all.values()) <= 4

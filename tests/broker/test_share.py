"""Shared subscriptions: who gets what, and what becomes of it when a member leaves."""

from __future__ import annotations

import pytest

from broker.acl import Who
from broker.listener import Limits
from broker.mqtt.packets import (
    Connack,
    Pingreq,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    Subscription,
    Unsubscribe,
)
from broker.mqtt.properties import Property, first
from broker.mqtt.reason import Reason
from broker.session import Session
from broker.share import Share
from storage.interface import MEMORY, SHARES, SUBSCRIPTIONS
from tests.broker.helpers import Client, Node, number

ALL = "$share/g/#"
FILTER = "$share/g/t"


def publish(node: Node, *payloads: bytes, qos: int = 1, topic: str = "t", settle: bool = True) -> None:
    """Publish these in order, by a client that comes and goes."""
    publisher = node.connect("publisher")
    for packet_id, payload in enumerate(payloads, 1):
        publisher.publish(topic, payload, qos, packet_id if qos else 0)
        if settle:
            node.commit()
    node.commit()
    publisher.disconnect()


def share_of(node: Node, filter: str = FILTER) -> Share:
    return node.hub.shares.all[filter]


def numbers(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % n for n in range(start, start + count)]


def sent(client: Client) -> list[Publish]:
    """The messages that have come, and are not acknowledged."""
    return client.take(Publish)


# -- who gets what


@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_each_message_goes_to_one_member(version: int, qos: int) -> None:
    node = Node()
    members = [node.subscriber(FILTER, qos, name, version) for name in "abc"]
    publish(node, *numbers(9), qos=qos)
    came = [[message.payload for message in member.acknowledge()] for member in members]
    assert sorted(payload for each in came for payload in each) == numbers(9)
    assert [len(each) for each in came] == [3, 3, 3]


def test_a_message_goes_to_the_member_with_the_fewest_on_their_way() -> None:
    node = Node()
    a, b = node.subscriber(FILTER, 1, "a"), node.subscriber(FILTER, 1, "b")
    publish(node, *numbers(4))
    slow, fast = sent(a), b.acknowledge()
    publish(node, *numbers(2, 4))
    assert [len(slow), len(fast)] == [2, 2]
    assert sent(a) == []
    assert len(b.payloads()) == 2


def test_a_member_gets_messages_at_its_own_qos_and_with_its_own_identifier() -> None:
    node = Node()
    a, b = node.connect("a"), node.connect("b")
    a.subscribe(FILTER, 0, identifier=7)
    b.subscribe(FILTER, 2, identifier=8)
    publish(node, *numbers(2), qos=2)
    (one,), (two,) = sent(a), sent(b)
    assert (one.qos, first(one.properties, Property.SUBSCRIPTION_IDENTIFIER)) == (0, 7)
    assert (two.qos, first(two.properties, Property.SUBSCRIPTION_IDENTIFIER)) == (2, 8)


def test_each_share_name_and_each_filter_gets_every_message() -> None:
    node = Node()
    members = [node.subscriber(filter, 1, filter) for filter in ("$share/g/t", "$share/h/t", "$share/g/+", "t")]
    publish(node, b"1")
    assert [member.payloads() for member in members] == [[b"1"]] * 4


def test_a_member_gets_what_its_other_subscriptions_ask_for_as_well() -> None:
    node = Node()
    client = node.subscriber(FILTER, 1)
    client.subscribe("t", 1)
    publish(node, b"1")
    first_, second = sent(client)
    assert first_.packet_id != second.packet_id
    client.send(Puback(first_.packet_id), Puback(second.packet_id))
    assert not client.session.unacked
    assert not client.session.shared


def test_retained_messages_are_not_for_shared_subscriptions() -> None:
    node = Node()
    node.connect("p").publish("t", b"old", 1, retain=True)
    node.commit()
    assert node.subscriber(FILTER, 1).payloads() == []


def test_a_wildcard_of_a_share_gets_no_topic_of_the_server() -> None:
    """[MQTT-4.7.2-1]"""
    node = Node()
    client = node.subscriber(ALL, 1)
    node.hub.announce([("$SYS/broker/uptime", b"1")])
    node.commit()
    assert client.payloads() == []


def test_an_expired_message_goes_to_nobody() -> None:
    node = Node()
    client = node.keeper(FILTER, 1)
    client.lose()
    node.connect("p").publish("t", b"x", 1, properties=((Property.MESSAGE_EXPIRY_INTERVAL, 5),))
    node.commit()
    node.tick(6)
    assert node.resume("k").payloads() == []
    assert node.hub.dropped_expired == 1


def test_a_message_too_large_for_one_member_goes_to_another() -> None:
    node = Node()
    small = node.connect("a", properties=((Property.MAXIMUM_PACKET_SIZE, 100),))
    small.subscribe(FILTER, 1)
    large = node.subscriber(FILTER, 1, "b")
    publish(node, *(b"%d" % n * 200 for n in range(3)))
    assert small.payloads() == []
    assert len(large.payloads()) == 3


class Rules:
    """Rules under which one user may receive nothing."""

    unlimited = False

    def may_receive(self, who: Who, topic: str) -> bool:
        return who.client_id != "denied"


def deny(client: Client) -> None:
    client.connection.rules = Rules()  # type: ignore[assignment]  # of rules a session asks for this only
    client.session.rules_changed()


def test_a_member_that_may_not_receive_a_topic_is_passed_over() -> None:
    node = Node()
    denied, other = node.subscriber(FILTER, 1, "denied"), node.subscriber(FILTER, 1, "b")
    deny(denied)
    publish(node, *numbers(4))
    assert denied.payloads() == []
    assert other.payloads() == numbers(4)


def test_what_no_member_may_receive_is_counted_and_keeps_nothing_back() -> None:
    node = Node()
    denied = node.subscriber(FILTER, 1, "denied")
    deny(denied)
    publish(node, *numbers(4))
    assert node.hub.dropped_denied == 4
    assert share_of(node).position == node.log.committed


# -- where nobody has room, or nobody is there


def test_where_no_member_has_room_messages_wait_in_the_log_and_come_in_order() -> None:
    node = Node(Limits(max_inflight=2))
    a, b = node.subscriber(FILTER, 1, "a"), node.subscriber(FILTER, 1, "b")
    publish(node, *numbers(10))
    assert not share_of(node).live
    assert len(a.wire.packets) == len(b.wire.packets) == 2
    came: list[bytes] = []
    while messages := [(message, client) for client in (a, b) for message in sent(client)]:
        for message, client in messages:
            came.append(message.payload)
            client.send(Puback(message.packet_id))
    assert sorted(came[:4]) == numbers(4)
    assert sorted(came) == numbers(10)
    assert share_of(node).live


def test_one_member_alone_gets_messages_in_order() -> None:
    node = Node(Limits(max_inflight=2))
    client = node.subscriber(FILTER, 1)
    publish(node, *numbers(10))
    assert [message.payload for message in client.acknowledge()] == numbers(10)


def test_a_member_that_does_not_read_is_passed_over() -> None:
    node = Node()
    a, b = node.subscriber(FILTER, 0, "a"), node.subscriber(FILTER, 0, "b")
    a.jam()
    publish(node, *numbers(5), qos=0)
    assert b.payloads() == numbers(5)
    b.jam()
    publish(node, b"5", qos=0)
    assert not share_of(node).live
    a.unjam()
    assert a.payloads() == [b"5"]


def test_messages_wait_for_a_member_whose_session_is_kept() -> None:
    node = Node()
    node.keeper(FILTER, 1).lose()
    publish(node, *numbers(3))
    share = share_of(node)
    assert not share.live
    assert node.resume("k").payloads() == numbers(3)


def test_messages_of_qos_0_do_not_wait() -> None:
    node = Node()
    node.keeper(FILTER, 1).lose()
    publish(node, b"1", qos=0)
    assert node.resume("k").payloads() == []
    assert node.hub.dropped_away == 1


def test_a_new_member_gets_what_waits_for_the_share() -> None:
    node = Node()
    node.keeper(FILTER, 1).lose()
    publish(node, *numbers(3))
    assert node.connect("b").subscribe(FILTER, 1) == 1
    publish(node, b"3")
    came = node.hub.sessions.all["b"].connection
    assert came is not None
    assert len(node.hub.sessions.all["b"].unacked) == 4


def test_a_share_begins_with_its_first_member_and_ends_with_its_last() -> None:
    node = Node()
    publish(node, b"before")
    a, b = node.subscriber(FILTER, 1, "a"), node.subscriber(FILTER, 1, "b")
    a.lose()
    publish(node, b"1")
    assert b.payloads() == [b"1"]
    b.lose()
    assert node.hub.shares.all == {}
    assert node.hub.router.match("t") == ()
    publish(node, b"2")
    assert node.subscriber(FILTER, 1, "a").payloads() == []


def test_what_went_out_early_comes_once_although_the_share_fell_behind() -> None:
    node = Node()
    client = node.subscriber(FILTER, 0)
    publisher = node.connect("p")
    publisher.publish("t", b"1")
    client.jam()
    publisher.publish("t", b"2")
    publisher.publish("t", b"3")
    node.commit()
    client.unjam()
    assert client.payloads() == numbers(3, 1)


def test_what_was_published_before_is_not_for_a_new_share_although_it_has_not_committed() -> None:
    node = Node()
    client = node.connect()
    node.connect("p").publish("t", b"before")
    client.send(Subscribe(1, (Subscription(FILTER, 0),)))
    node.commit()
    assert client.payloads() == []


def test_members_whose_buffers_were_full_are_given_more_once_that_is_written() -> None:
    node = Node(Limits(write_buffer=300))
    members = [node.subscriber(FILTER, 0, name) for name in "ab"]
    publish(node, *(b"%d" % n * 100 for n in range(30)), qos=0, settle=False)
    assert sum(len(member.payloads()) for member in members) == 30


def test_a_member_whose_buffer_was_full_is_given_more_also_of_what_has_not_committed() -> None:
    node = Node(Limits(write_buffer=300, max_inflight=4), lambda topic: MEMORY)
    client = node.subscriber(FILTER, 1)
    publisher = node.connect("p")
    for packet_id in range(1, 9):
        publisher.publish("t", b"%d" % packet_id * 100, 1, packet_id)
    messages = sent(client)
    assert len(messages) == 4
    client.send(Pingreq(), *(Puback(message.packet_id) for message in messages))
    assert len(sent(client)) == 4


# -- what becomes of what is under way


def test_what_a_member_has_not_acknowledged_goes_to_another_when_its_connection_ends() -> None:
    node = Node()
    a, b = node.subscriber(FILTER, 1, "a"), node.subscriber(FILTER, 1, "b")
    publish(node, *numbers(6))
    lost = [message.payload for message in sent(a)]
    b.acknowledge()
    a.lose()
    node.commit()
    came = sent(b)
    assert [message.payload for message in came] == lost
    assert not any(message.dup for message in came)


def test_what_has_come_back_is_given_before_what_is_newer() -> None:
    node = Node(Limits(max_inflight=2))
    a, b = node.subscriber(FILTER, 1, "a"), node.subscriber(FILTER, 1, "b")
    publish(node, *numbers(8))
    assert len(sent(a)) == 2
    a.lose()
    came = [message.payload for message in b.acknowledge()]
    assert sorted(came[:4]) == numbers(4)
    assert came[4:] == numbers(4, 4)


def test_what_a_lone_member_has_not_acknowledged_is_sent_to_it_again() -> None:
    """[MQTT-4.4.0-1]"""
    node = Node()
    client = node.keeper(FILTER, 1)
    publish(node, *numbers(3))
    before = [(message.payload, message.packet_id) for message in sent(client)]
    client.lose()
    client = node.resume("k")
    again = sent(client)
    assert [(message.payload, message.packet_id) for message in again] == before
    assert all(message.dup for message in again)


def test_what_an_absent_member_has_not_acknowledged_goes_to_the_first_who_comes() -> None:
    node = Node()
    a, b = node.keeper(FILTER, 1, "a"), node.keeper(FILTER, 1, "b")
    b.lose()
    publish(node, *numbers(3))
    assert len(sent(a)) == 3
    a.lose()
    b = node.resume("b")
    assert [message.payload for message in b.acknowledge()] == numbers(3)
    a = node.resume("a")
    assert sent(a) == []
    assert a.session.slots == a.session.window


def test_what_was_acknowledged_goes_to_nobody_else() -> None:
    node = Node()
    a, b = node.keeper(FILTER, 1, "a"), node.keeper(FILTER, 1, "b")
    publish(node, *numbers(4))
    b.acknowledge()
    first_, second = sent(a)
    a.send(Puback(second.packet_id))
    a.lose()
    node.commit()
    assert b.payloads() == [first_.payload]


@pytest.mark.parametrize("received", [False, True])
def test_a_message_at_qos_2_stays_with_its_member(received: bool) -> None:
    """[MQTT-4.8.2-4]"""
    node = Node()
    a, b = node.keeper(FILTER, 2, "a"), node.keeper(FILTER, 2, "b")
    publish(node, b"1", qos=2)
    (owner,) = [client for client in (a, b) if client.wire.packets]
    other = b if owner is a else a
    (message,) = sent(owner)
    if received:
        owner.send(Pubrec(message.packet_id))
        node.commit()
        owner.take(Pubrel)
    owner.lose()
    node.commit()
    assert other.take_all() == []
    back = node.resume(owner.session.client_id if owner.connection.session else "a")
    if received:
        assert back.take(Pubrel) == [Pubrel(message.packet_id)]
        back.send(Pubcomp(message.packet_id))
    else:
        (again,) = sent(back)
        assert (again.payload, again.packet_id, again.dup) == (b"1", message.packet_id, True)
        back.send(Pubrec(message.packet_id))
    node.commit()
    assert not back.session.unreceived


def test_a_message_at_qos_2_of_a_session_that_ends_goes_to_nobody_else() -> None:
    """[MQTT-4.8.2-5]"""
    node = Node()
    a, b = node.subscriber(FILTER, 2, "a"), node.subscriber(FILTER, 2, "b")
    publish(node, *numbers(2), qos=2)
    assert len(sent(a)) == len(sent(b)) == 1
    a.lose()
    node.commit()
    assert sent(b) == []


@pytest.mark.parametrize("qos", [1, 2])
def test_a_message_that_a_member_refuses_goes_to_nobody_else(qos: int) -> None:
    """[MQTT-4.8.2-6]"""
    node = Node()
    a, b = node.subscriber(FILTER, qos, "a"), node.subscriber(FILTER, qos, "b")
    publish(node, *numbers(2), qos=qos)
    (message,) = sent(a)
    sent(b)
    refusal = Puback(message.packet_id, Reason.NOT_AUTHORIZED)
    a.send(refusal if qos == 1 else Pubrec(message.packet_id, Reason.NOT_AUTHORIZED))
    a.lose()
    node.commit()
    assert sent(b) == []


def test_a_member_that_unsubscribes_keeps_what_it_was_sent_and_gets_no_more() -> None:
    """[MQTT-3.10.4-3]"""
    node = Node()
    a, b = node.subscriber(FILTER, 1, "a"), node.subscriber(FILTER, 1, "b")
    publish(node, *numbers(4))
    mine = sent(a)
    a.send(Unsubscribe(9, (FILTER,)))
    publish(node, *numbers(4, 4))
    assert a.payloads() == []
    b.acknowledge()
    a.send(*(Puback(message.packet_id) for message in mine))
    a.lose()
    node.commit()
    assert sent(b) == []


def test_what_a_former_member_never_acknowledged_goes_to_a_member_when_its_session_ends() -> None:
    node = Node()
    a, b = node.subscriber(FILTER, 1, "a"), node.subscriber(FILTER, 1, "b")
    publish(node, *numbers(2))
    (mine,) = sent(a)
    b.acknowledge()
    a.send(Unsubscribe(9, (FILTER,)))
    a.lose()
    node.commit()
    assert b.payloads() == [mine.payload]


def test_a_client_identifier_taken_over_hands_on_what_its_connection_was_sent() -> None:
    node = Node()
    node.keeper(FILTER, 1, "a")
    b = node.keeper(FILTER, 1, "b")
    publish(node, *numbers(2))
    other = b.acknowledge()
    node.resume("a")
    assert len(other) + len(b.acknowledge()) == 2


# -- what outlives the process


def test_what_members_were_given_survives_a_crash() -> None:
    node = Node()
    a, b = node.keeper(FILTER, 1, "a"), node.keeper(FILTER, 1, "b")
    publish(node, *numbers(6))
    node.tick()
    node.commit()
    mine = [message.payload for message in sent(a)]
    b.acknowledge()
    node.tick()
    node.commit()
    node.crash()
    a = node.resume("a")
    assert [message.payload for message in sent(a)] == mine
    assert sent(node.resume("b")) == []


def test_what_one_member_was_given_is_stored_with_the_progress_of_another() -> None:
    node = Node()
    a, b = node.keeper(FILTER, 2, "a"), node.keeper(FILTER, 2, "b")
    publish(node, b"1", qos=1)
    publish(node, b"2", qos=2)  # a QoS 2 step is stored at once
    payloads = {client.session.client_id: [message.payload for message in sent(client)] for client in (a, b)}
    assert sorted(payloads.values()) == [[b"1"], [b"2"]]
    node.crash()
    for client_id, expected in payloads.items():
        assert node.resume(client_id).payloads() == expected


def test_what_was_handed_on_is_not_sent_to_its_first_member_after_a_crash() -> None:
    node = Node()
    a, b = node.keeper(FILTER, 1, "a"), node.keeper(FILTER, 1, "b")
    b.lose()
    publish(node, *numbers(3))
    a.lose()
    b = node.resume("b")
    assert len(b.acknowledge()) == 3
    node.tick()
    node.commit()
    node.crash()
    assert node.resume("a").payloads() == []


def test_what_waits_for_another_member_survives_a_crash() -> None:
    node = Node(Limits(max_inflight=1))
    a, _ = node.keeper(FILTER, 1, "a"), node.keeper(FILTER, 1, "b")
    publish(node, *numbers(2))
    (message,) = sent(a)
    a.lose()  # the other has no room
    node.tick()
    node.commit()
    node.crash()
    (again,) = sent(node.resume("a"))
    assert again.payload == message.payload


def test_what_an_absent_member_has_not_acknowledged_goes_to_the_first_who_comes_after_a_restart() -> None:
    node = Node()
    a, b = node.keeper(FILTER, 1, "a"), node.keeper(FILTER, 1, "b")
    b.lose()
    publish(node, *numbers(3))
    assert len(sent(a)) == 3
    node.restart()
    assert [message.payload for message in node.resume("b").acknowledge()] == numbers(3)
    assert node.resume("a").payloads() == []


def test_what_is_sent_again_has_the_identifier_of_its_subscription() -> None:
    node = Node()
    client = node.resume("k")
    client.subscribe(FILTER, 1, identifier=7)
    publish(node, b"1")
    client.lose()
    (again,) = sent(node.resume("k"))
    assert first(again.properties, Property.SUBSCRIPTION_IDENTIFIER) == 7


def test_what_members_without_kept_sessions_have_done_is_stored_within_about_a_second() -> None:
    node = Node()
    node.keeper(FILTER, 1, "k").lose()
    publish(node, *numbers(3))
    clean = node.subscriber(FILTER, 1, "c")
    clean.acknowledge()
    publish(node, *numbers(3))
    clean.acknowledge()
    node.tick()
    node.commit()
    node.crash()
    assert node.resume("k").payloads() == []


def test_a_share_is_stored_no_more_when_its_last_kept_session_is_kept_no_more() -> None:
    node = Node()
    node.keeper(FILTER, 1).lose()
    client = node.connect("k", clean=False)
    node.tick()
    node.commit()
    assert node.engine.keys(SHARES) == []
    publish(node, b"1")
    assert client.payloads() == [b"1"]


def test_what_a_session_that_dies_with_the_process_has_not_acknowledged_goes_to_another() -> None:
    node = Node()
    kept = node.keeper(FILTER, 1, "k")
    clean = node.subscriber(FILTER, 1, "c")
    publish(node, *numbers(4))
    mine = [message.payload for message in sent(clean)]
    kept.acknowledge()
    node.tick()
    node.commit()
    node.crash()
    assert [message.payload for message in sent(node.resume("k"))] == mine


@pytest.mark.parametrize("member_is_kept", [False, True])
def test_a_message_at_qos_2_is_given_once_across_a_crash(member_is_kept: bool) -> None:
    node = Node()
    node.keeper(FILTER, 2, "k").lose()
    member = node.keeper(FILTER, 2, "m") if member_is_kept else node.subscriber(FILTER, 2, "m")
    publish(node, b"1", qos=2)
    (message,) = sent(member)
    node.crash()
    assert sent(node.resume("k")) == []
    if member_is_kept:
        (again,) = sent(node.resume("m"))
        assert (again.packet_id, again.dup) == (message.packet_id, True)


def test_a_kept_member_is_a_member_after_a_restart() -> None:
    node = Node()
    node.keeper(FILTER, 1)
    node.restart()
    publish(node, *numbers(2))
    assert node.resume("k").payloads() == numbers(2)


def test_nothing_is_left_of_a_share_whose_members_are_gone() -> None:
    node = Node()
    client = node.keeper(FILTER, 1)
    publish(node, b"1")
    node.tick()
    node.commit()
    assert node.engine.keys(SHARES) == [FILTER]
    client.acknowledge()
    client.send(Unsubscribe(9, (FILTER,)))
    node.commit()
    assert node.engine.keys(SHARES) == node.engine.keys(SUBSCRIPTIONS) == []
    assert node.hub.shares.all == {}


def test_a_share_without_kept_members_is_not_stored() -> None:
    node = Node()
    node.subscriber(FILTER, 2, "a")
    publish(node, *numbers(2), qos=2)
    node.tick()
    node.commit()
    assert node.engine.keys(SHARES) == []


def test_a_share_is_stored_from_when_a_kept_session_joins_and_for_as_long_as_one_is_a_member() -> None:
    node = Node()
    node.subscriber(FILTER, 1, "a")
    kept = node.keeper(FILTER, 1)
    assert node.engine.keys(SHARES) == [FILTER]
    kept.disconnect(0, ((Property.SESSION_EXPIRY_INTERVAL, 0),))
    node.commit()
    assert node.engine.keys(SHARES) == []
    assert node.hub.shares.all.keys() == {FILTER}


# -- bounds


def test_who_comes_or_goes_costs_as_much_however_many_members_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    def count(session: Session) -> bool:
        nonlocal asked
        asked += 1
        return session.expiry != 0

    monkeypatch.setattr(Session, "persistent", property(count))

    def cost(members: int) -> int:
        """How often a session is asked whether it is kept while two come and go among so many."""
        node = Node()
        for n in range(members):
            node.subscriber(FILTER, 1, f"clean-{n}")
            node.keeper(FILTER, 1, f"kept-{n}").lose()
        before = asked
        node.subscriber(FILTER, 1, "clean").lose()
        node.keeper(FILTER, 1, "kept").lose()
        publish(node, b"x")
        client = node.resume("kept")
        publish(node, *numbers(3))
        client.acknowledge()
        client.lose()
        node.commit()
        return asked - before

    assert cost(2) == cost(60)


def test_shared_subscriptions_count_among_those_that_a_client_may_have() -> None:
    node = Node(Limits(max_subscriptions=2))
    client = node.connect()
    assert client.subscribe("t", 1) == 1
    assert client.subscribe(FILTER, 1) == 1
    assert client.subscribe(FILTER, 2) == 2
    assert client.subscribe("$share/g/u", 1) == Reason.QUOTA_EXCEEDED


def test_a_connack_does_not_say_that_there_are_no_shared_subscriptions() -> None:
    node = Node()
    (connack,) = node.connect().take(Connack)
    assert number(connack, Property.SHARED_SUBSCRIPTION_AVAILABLE) is None


@pytest.mark.parametrize("live", [False, True])
def test_an_error_of_ours_ends_the_connection_of_the_member_that_it_is_about(
    live: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = Node(Limits(max_inflight=1))
    a, b = node.keeper(FILTER, 1, "a"), node.subscriber(FILTER, 1, "b")
    if not live:
        publish(node, *numbers(3))
    give = type(a.session).give_shared

    def fails(*args: object) -> bool:
        if args[0] is a.session:
            raise RuntimeError("a bug")
        return give(*args)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(type(a.session), "give_shared", fails)
    if live:
        publish(node, b"x", b"y")
    else:
        (message,) = sent(a)
        a.send(Puback(message.packet_id))
    assert a.wire.aborted
    assert b.open
    publish(node, b"z")
    assert b.acknowledge()[-1].payload == b"z"

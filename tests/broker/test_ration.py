"""While the disk is short of room: what is no longer stored, who is told so, who waits, and what goes on."""

from __future__ import annotations

import pytest

from broker.listener import Limits
from broker.mqtt.packets import (
    Connack,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Subscription,
    Will,
)
from broker.mqtt.reason import Reason
from storage.interface import CURSORS, MEMORY, RETAINED, SESSIONS, StorageFull
from tests.broker.helpers import FOREVER, Client, Node


def publisher(node: Node, version: int = 5, client_id: str = "p", *, keep: bool = False) -> Client:
    client = node.resume(client_id, version) if keep else node.connect(client_id, version)
    node.commit()
    client.take(Connack)
    return client


def low(node: Node) -> None:
    node.hub.ration(qos0=True, all_qos=False)
    node.turn()


def full(node: Node) -> None:
    node.hub.ration(qos0=True, all_qos=True)
    node.turn()


def plenty(node: Node) -> None:
    node.hub.ration(qos0=False, all_qos=False)
    node.turn()


def stored(node: Node) -> list[bytes]:
    return [event.payload for events, _, _ in node.engine.commits for event in events if event.durability]


# -- QoS 0


@pytest.mark.parametrize("rules", [None, lambda topic: None], ids=["without rules", "with rules"])
def test_qos_0_messages_are_delivered_and_not_stored_and_others_are(rules: None) -> None:
    node = Node(rules=rules)
    subscriber, client = node.subscriber("#", 1), publisher(node)
    low(node)
    client.publish("t", b"0", 0)
    client.publish("t", b"1", 1)
    node.commit()
    plenty(node)
    client.publish("t", b"0 again", 0)
    node.commit()
    assert subscriber.payloads() == [b"0", b"1", b"0 again"]
    assert client.take_all() == [Puback(1)]
    assert stored(node) == [b"1", b"0 again"]
    assert node.hub.durability.unstored == 1
    assert node.hub.dropped_full == 0


def test_what_a_rule_keeps_in_memory_anyway_is_not_counted() -> None:
    node = Node(rules=lambda topic: MEMORY)
    client = publisher(node)
    low(node)
    client.publish("t", b"0", 0)
    assert node.hub.durability.unstored == 0


def test_a_retained_message_at_qos_0_is_the_retained_one_after_a_crash_too() -> None:
    node = Node(rules=lambda topic: MEMORY if topic == "fleeting" else None)
    client = publisher(node)
    client.publish("t", b"old", 0, retain=True)
    client.publish("gone", b"old", 0, retain=True)
    node.commit()
    low(node)
    client.publish("t", b"new", 0, retain=True)
    client.publish("gone", b"", 0, retain=True)
    client.publish("fleeting", b"new", 0, retain=True)
    node.commit()
    assert stored(node) == [b"old", b"old"]
    assert [(row[0], row[3]) for row in node.engine.rows(RETAINED)] == [("t", b"new")]
    node.crash()
    assert node.subscriber("#", 0).payloads() == [b"new"]


# -- QoS 1 and 2


@pytest.mark.parametrize("qos", [1, 2])
def test_mqtt_5_publishers_are_told_so_in_their_turn_and_nothing_of_it_is_kept(qos: int) -> None:
    node = Node()
    subscriber, client = node.subscriber(), publisher(node, keep=True)
    answer = Puback if qos == 1 else Pubrec
    client.publish("t", b"before", qos, 1)
    full(node)
    client.publish("t", b"refused", qos, 2, retain=True)
    assert client.take_all() == []
    node.commit()
    assert client.take_all() == [answer(1), answer(2, Reason.QUOTA_EXCEEDED)]
    client.publish("t", b"refused", qos, 3)
    node.commit()
    assert client.take_all() == [answer(3, Reason.QUOTA_EXCEEDED)]
    assert client.wire.said == ["the disk is nearly full"] * 2
    assert client.wire.reading
    assert client.connection.owed == 0
    plenty(node)
    client.publish("t", b"after", qos, 2)
    node.commit()
    assert client.take_all() == [answer(2)]
    assert [message.payload for message in subscriber.acknowledge()] == [b"before", b"after"]
    assert stored(node) == [b"before", b"after"]
    assert node.hub.refused_messages == 2
    assert node.hub.retained.count == 0


@pytest.mark.parametrize("version", [3, 4])
def test_older_publishers_are_not_read_from_until_there_is_room_and_lose_nothing(version: int) -> None:
    node = Node()
    subscriber, client, other = node.subscriber(), publisher(node, version), publisher(node, version, "q")
    full(node)
    client.send(*(Publish("t", b"%d" % number, 1, packet_id=number) for number in (1, 2)))
    node.commit()
    assert client.take_all() == [Puback(1), Puback(2)], "it had been read; nobody could be told that it is not kept"
    for _ in range(100):
        node.tick()
        node.commit()
        assert not client.wire.reading
    assert client.open
    assert other.wire.reading, "it has published nothing"
    plenty(node)
    assert client.wire.reading
    client.publish("t", b"3", 1, 3)
    node.commit()
    assert client.take_all() == [Puback(3)]
    assert [message.payload for message in subscriber.acknowledge()] == [b"1", b"2", b"3"]


def test_a_publisher_that_waited_for_something_else_goes_on_when_that_is_over() -> None:
    node = Node(Limits(group_bytes=1000))
    full(node)
    client = publisher(node, 4)
    node.connect("q").publish("t", b"x", 0, retain=True)  # a group on its way
    client.publish("t", bytes(5000), 0)
    assert not client.wire.reading, "the open group is large"
    node.commit()
    assert client.wire.reading


def test_what_is_to_be_kept_in_memory_only_is_taken_on() -> None:
    node = Node(rules=lambda topic: MEMORY if topic == "m" else None)
    subscriber, new, old = node.subscriber("m", 1), publisher(node), publisher(node, 4, "q")
    full(node)
    for client in (new, old):
        client.publish("m", b"x", 1)
        node.commit()
        assert client.take_all() == [Puback(1)]
        assert client.wire.reading
    assert len(subscriber.acknowledge()) == 2


def test_sessions_wills_acknowledgements_and_what_processors_do_go_on() -> None:
    node = Node()
    client = publisher(node, keep=True)
    client.publish("t", b"x", 2, 7)
    node.commit()
    client.take_all()
    dying = node.connect("d", will=Will("will", b"gone", 1, False))
    node.commit()
    full(node)
    client.send(Pubrel(7), Subscribe(1, (Subscription("#", 1),)))
    node.commit()
    assert client.take_all() == [Pubcomp(7), Suback(1, (1,))]
    dying.lose()
    node.hub.emit("$processor/p", [("out", b"sum", 1, False)], [(CURSORS, ("processor/p",), (3,))])
    node.keeper("elsewhere", client_id="new")
    assert [message.payload for message in client.acknowledge()] == [b"gone", b"sum"]
    assert stored(node) == [b"x", b"gone", b"sum"]
    assert node.engine.rows(CURSORS) == [("processor/p", 3)]
    assert node.engine.keys(SESSIONS) == ["p", "new"]


def test_a_disk_that_fills_all_the_same_refuses_and_makes_wait_as_without_a_guard() -> None:
    node = Node()
    client, old = publisher(node), publisher(node, 4, "q")
    old.publish("t", b"waits", 1)
    node.engine.fault = StorageFull("writing /data/berm.db: database or disk is full; free some space on its disk")
    node.commit()
    full(node)
    client.publish("t", b"refused", 1)
    assert client.take_all() == [Puback(1, Reason.QUOTA_EXCEEDED)]
    node.engine.fault = None
    node.tick()
    node.commit()
    assert old.take_all() == [Puback(1)]
    assert old.wire.reading
    old.publish("t", b"the last one", 1)
    node.commit()
    assert old.take_all() == [Puback(1)]
    assert not old.wire.reading


def test_a_full_disk_is_told_once_however_often_it_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    node = Node()
    old = publisher(node, 4)
    for _ in range(2):
        node.engine.fault = StorageFull("the disk is full")
        old.publish("t", b"waits", 1)
        for _ in range(5):
            node.tick()
            node.commit()
        node.engine.fault = None
        node.tick()
        node.commit()
        assert old.take_all() == [Puback(1)]
    assert caplog.messages == ["the disk is full; publishers wait or are refused until it can be stored"] * 2


def test_a_session_that_is_kept_is_given_what_it_missed_while_the_disk_was_short_of_room() -> None:
    node = Node()
    node.keeper("t", 1).lose()
    client = publisher(node)
    client.publish("t", b"1", 1)
    node.commit()
    full(node)
    client.publish("t", b"2", 1)
    node.commit()
    plenty(node)
    client.publish("t", b"3", 1)
    node.commit()
    keeper = node.resume("k")
    assert [message.payload for message in keeper.acknowledge()] == [b"1", b"3"]
    assert node.hub.sessions.all["k"].expiry == FOREVER

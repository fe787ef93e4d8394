"""What a replay gives, in which order, and how it ends or goes on into what comes."""

from __future__ import annotations

from collections import Counter

import pytest

from broker.listener import Limits
from broker.mqtt.codec import encode
from broker.mqtt.packets import Puback, Publish, Suback, Subscribe, Subscription, Unsuback, Unsubscribe
from broker.mqtt.properties import Property
from broker.mqtt.reason import Reason
from broker.mqtt.topic import matches
from storage.interface import MEMORY, SUBSCRIPTIONS
from tests.broker.helpers import Client, Node, numbers, publish_all


def filled(node: Node, count: int, topic: str = "t", qos: int = 1) -> Client:
    """So many events, one in each second from START on, whose payloads are numbers; their publisher."""
    publisher = node.connect("publisher")
    for payload in numbers(count):
        publisher.publish(topic, payload, qos)
        node.commit()
        node.tick()
    publisher.take_all()
    return publisher


def payloads(client: Client) -> list[bytes]:
    """Of what comes, all of it acknowledged."""
    return [message.payload for message in client.acknowledge()]


def unsubscribe(client: Client, filter: str) -> int:
    client.send(Unsubscribe(9, (filter,)))
    client.node.commit()
    (unsuback,) = client.take(Unsuback)
    return unsuback.reasons[0]


# -- what is given


@pytest.mark.parametrize("memory_bytes", [1, 1 << 24])
@pytest.mark.parametrize("version", [3, 4, 5])
def test_all_that_is_kept_comes_in_order_and_then_what_is_published(version: int, memory_bytes: int) -> None:
    node = Node(memory_bytes=memory_bytes)
    publisher = filled(node, 5)
    viewer = node.connect("v", version)
    assert viewer.subscribe("$replay/all/#", 1) == 1
    assert payloads(viewer) == numbers(5)
    publish_all(publisher, numbers(3, 5), qos=2)
    publish_all(publisher, numbers(3, 8), qos=0)
    assert payloads(viewer) == numbers(6, 5)


def test_topics_are_those_that_were_subscribed_to_and_nothing_is_retained() -> None:
    node = Node()
    publisher = node.connect("publisher")
    publisher.publish("plant/a", b"1", 1, retain=True)
    publisher.publish("office", b"2", 1)
    node.commit()
    viewer = node.connect("v")
    viewer.subscribe("$replay/all;until=now/plant/+", 1)
    (message,) = viewer.acknowledge()
    assert message.topic == "$replay/all;until=now/plant/a"
    assert matches("$replay/all;until=now/plant/+", message.topic)
    assert not message.retain


def test_retain_as_published_keeps_the_flag() -> None:
    node = Node()
    node.connect("publisher").publish("a", b"1", 1, retain=True)
    node.commit()
    viewer = node.connect("v")
    viewer.subscribe("$replay/all/a", 1, retain_as_published=True)
    assert [message.retain for message in viewer.acknowledge()] == [True]


def test_mqtt_5_clients_are_told_which_event_it_is_behind_what_the_publisher_said() -> None:
    node = Node()
    publisher = node.connect("publisher")
    publisher.publish("t", b"x", 1, properties=((Property.USER_PROPERTY, ("seq", "mine")),))
    node.commit()
    viewer = node.connect("v")
    viewer.subscribe("$replay/all/t", 1, identifier=7)
    (message,) = viewer.acknowledge()
    assert message.properties == (
        (Property.USER_PROPERTY, ("seq", "mine")),
        (Property.SUBSCRIPTION_IDENTIFIER, 7),
        (Property.USER_PROPERTY, ("seq", "1")),
        (Property.USER_PROPERTY, ("time", "2023-11-14T22:13:20.000000Z")),
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("all", numbers(10)),
        ("all;until=now", numbers(10)),
        ("all;to=4", numbers(4)),
        ("seq=4", numbers(7, 3)),
        ("seq=4;to=6", numbers(3, 3)),
        ("seq=11", []),
        ("time=1700000004", numbers(6, 4)),
        ("time=1700000003.5", numbers(6, 4)),
        ("time=2023-11-14T22:13:24Z", numbers(6, 4)),
        ("time=2023-11-14T17:13:24-05:00", numbers(6, 4)),
        ("time=1700000004;until=1700000007", numbers(3, 4)),
        ("time=1", numbers(10)),
        ("ago=6s", numbers(6, 4)),
        ("ago=1m", numbers(10)),
        ("last=3", numbers(3, 7)),
        ("last=3;until=now", numbers(3, 7)),
        ("last=3;to=9", numbers(2, 7)),
        ("last=100", numbers(10)),
    ],
)
@pytest.mark.parametrize("memory_bytes", [1, 1 << 24])
def test_words_say_where_it_begins_and_ends(memory_bytes: int, words: str, expected: list[bytes]) -> None:
    node = Node(memory_bytes=memory_bytes)
    publisher = filled(node, 10)
    viewer = node.connect("v")
    assert viewer.subscribe(f"$replay/{words}/t", 1) == 1
    assert payloads(viewer) == expected
    publish_all(publisher, [b"new"])
    ends = "until" in words or "to=" in words
    assert payloads(viewer) == ([] if ends else [b"new"])
    assert len(node.hub.replays.all) == len(viewer.session.replays) == (not ends)


def test_the_last_of_each_topic_come_in_the_order_of_the_log() -> None:
    node = Node()
    publisher = node.connect("publisher")
    for number in range(9):
        publisher.publish("abc"[number % 3] if number < 7 else "a", b"%d" % number, 1)
        node.commit()
    viewer = node.connect("v")
    viewer.subscribe("$replay/last=2/+", 1)
    assert payloads(viewer) == [b"1", b"2", b"4", b"5", b"7", b"8"]


def test_the_end_can_be_asked_for_by_unsubscribing() -> None:
    node = Node()
    filled(node, 3)
    viewer = node.connect("v")
    viewer.subscribe("$replay/all;until=now/t", 1)
    viewer.subscribe("$replay/all/t", 1)
    viewer.acknowledge()
    assert unsubscribe(viewer, "$replay/all;until=now/t") == Reason.NO_SUBSCRIPTION_EXISTED
    assert unsubscribe(viewer, "$replay/all/t") == Reason.SUCCESS
    publish_all(node.connect("p"), [b"new"])
    assert payloads(viewer) == []
    assert not node.hub.replays.all


def test_an_empty_log_is_replayed_as_nothing_and_then_goes_on() -> None:
    node = Node()
    viewer = node.connect("v")
    viewer.subscribe("$replay/all;until=now/#", 1)
    viewer.subscribe("$replay/last=5/#", 1)
    viewer.subscribe("$replay/seq=1/#", 1)
    publish_all(node.connect("p"), [b"1"])
    assert sorted(message.topic for message in viewer.acknowledge()) == ["$replay/last=5/t", "$replay/seq=1/t"]


def test_with_speed_each_message_comes_in_its_time() -> None:
    node = Node()
    filled(node, 4)
    viewer = node.connect("v")
    viewer.subscribe("$replay/all;speed=0.5;until=now/t", 1)
    came = [payloads(viewer)]
    for _ in range(7):
        node.tick()
        came.append(payloads(viewer))
    assert came == [[b"0"], [], [b"1"], [], [b"2"], [], [b"3"], []]
    assert not node.hub.replays.all


def test_a_faster_one_goes_on_into_what_comes() -> None:
    node = Node()
    publisher = filled(node, 4)
    viewer = node.connect("v")
    viewer.subscribe("$replay/all;speed=3/t", 1)
    node.tick()
    assert payloads(viewer) == numbers(4)
    publish_all(publisher, [b"new"])
    assert payloads(viewer) == []
    node.tick(1)
    assert payloads(viewer) == [b"new"]


@pytest.mark.parametrize(
    ("event_qos", "asked", "granted", "given"), [(2, 2, 1, 1), (1, 1, 1, 1), (0, 1, 1, 0), (2, 0, 0, 0)]
)
def test_the_quality_of_service_is_1_at_most(event_qos: int, asked: int, granted: int, given: int) -> None:
    node = Node()
    publish_all(node.connect("p"), [b"x"], qos=event_qos)
    viewer = node.connect("v")
    assert viewer.subscribe("$replay/all/t", asked) == granted
    assert [message.qos for message in viewer.acknowledge()] == [given]


def test_a_session_that_outlives_its_connection_is_replayed_to_at_qos_0() -> None:
    node = Node()
    filled(node, 3)
    viewer = node.resume("v")
    assert viewer.subscribe("$replay/all/t", 2) == 0
    assert [message.qos for message in viewer.acknowledge()] == [0, 0, 0]
    viewer.lose()
    assert not node.hub.replays.all
    again = node.resume("v")
    publish_all(node.connect("p"), [b"new"])
    assert payloads(again) == []
    assert node.engine.keys(SUBSCRIPTIONS) == []


def test_what_has_expired_is_history_all_the_same() -> None:
    node = Node()
    node.connect("p").publish("t", b"x", 1, properties=((Property.MESSAGE_EXPIRY_INTERVAL, 1),))
    node.commit()
    node.tick(10)
    viewer = node.connect("v")
    viewer.subscribe("$replay/all/t", 1)
    (message,) = viewer.acknowledge()
    assert Property.MESSAGE_EXPIRY_INTERVAL not in dict(message.properties)


def test_what_is_kept_in_memory_only_is_replayed_for_as_long_as_memory_has_it() -> None:
    node = Node(rules=lambda topic: MEMORY)
    filled(node, 3)
    viewer = node.connect("v")
    viewer.subscribe("$replay/all/t", 1)
    assert payloads(viewer) == numbers(3)
    late = node.connect("w")
    late.subscribe("$replay/time=1700000001/t", 1)
    assert payloads(late) == numbers(2, 1)


def test_own_messages_are_left_out_where_no_local_is_asked_for() -> None:
    node = Node()
    filled(node, 2)
    viewer = node.connect("v")
    viewer.publish("t", b"own", 1)
    viewer.subscribe("$replay/all/t", 1, no_local=True)
    assert payloads(viewer) == numbers(2)


def test_what_is_too_large_for_the_client_is_left_out_and_counted() -> None:
    node = Node()
    publish_all(node.connect("p"), [b"x", b"y" * 300, b"z"])
    viewer = node.connect("v", properties=((Property.MAXIMUM_PACKET_SIZE, 200),))
    viewer.subscribe("$replay/all/t", 1)
    assert payloads(viewer) == [b"x", b"z"]
    assert node.hub.dropped_oversized == 1


# -- room


def test_nothing_more_is_sent_than_the_client_acknowledges_and_each_comes_once() -> None:
    node = Node()
    filled(node, 30)
    viewer = node.connect("v", properties=((Property.RECEIVE_MAXIMUM, 4),))
    viewer.subscribe("$replay/all/t", 1)
    seen: list[bytes] = []
    while messages := viewer.take(Publish):
        assert len(messages) <= 4
        seen += [message.payload for message in messages]
        viewer.send(*(Puback(message.packet_id) for message in messages))
    assert seen == numbers(30)


def test_a_replay_that_is_not_acknowledged_leaves_room_for_what_is_published() -> None:
    node = Node()
    publisher = filled(node, 30)
    viewer = node.connect("v", properties=((Property.RECEIVE_MAXIMUM, 8),))
    viewer.subscribe("$replay/all/t", 1)
    viewer.subscribe("new", 1)
    stuck = viewer.take(Publish)
    publish_all(publisher, [b"now"], topic="new")
    (now,) = viewer.take(Publish)
    assert now.payload == b"now"
    viewer.send(*(Puback(message.packet_id) for message in [*stuck, now]))
    assert len(viewer.take(Publish)) == len(stuck) == 6


def test_a_client_that_does_not_read_costs_no_more_than_half_of_its_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(Limits(write_buffer=4000))
    publish_all(node.connect("p"), [b"%099d" % n for n in range(200)])
    viewer = node.connect("v", 4)
    viewer.subscribe("$replay/seq=201/t", 0)
    sizes: list[int] = []
    write = viewer.wire.write

    def written(data: bytes) -> None:
        sizes.append(len(data))
        write(data)

    monkeypatch.setattr(viewer.wire, "write", written)
    viewer.connection.receive(encode(Subscribe(1, (Subscription("$replay/all/t", 0),)), 4), node.now)
    node.turn()
    assert viewer.payloads() == [b"%099d" % n for n in range(200)]
    assert 1900 < max(sizes) < 2200


def test_a_client_whose_socket_is_full_holds_nothing_and_goes_on_when_it_reads() -> None:
    node = Node()
    filled(node, 20)
    viewer = node.connect("v")
    viewer.jam()
    viewer.send(Subscribe(1, (Subscription("$replay/all/t", 0),)))
    node.commit()
    assert len(viewer.wire.unread) == len(encode(Suback(1, (0,)), 5))
    viewer.unjam()
    node.commit()
    assert viewer.payloads() == numbers(20)


@pytest.mark.parametrize("viewers", [1, 5])
def test_all_replays_together_take_a_part_of_each_turn_and_share_it(viewers: int) -> None:
    node = Node(Limits(turn=4000))
    publish_all(node.connect("p"), numbers(900), qos=0)
    clients = [node.connect(f"v{n}") for n in range(viewers)]
    for client in clients:
        client.take_all()
        client.connection.receive(encode(Subscribe(1, (Subscription("$replay/all/t", 0),)), 5), node.now)
    rows: list[list[int]] = []
    while node.scheduled or node.reader.step():
        node.turn_once()
        rows.append([len(client.take(Publish)) for client in clients])
    assert [sum(column) for column in zip(*rows, strict=True)] == [900] * viewers
    settled = [row for row in rows[3:] if all(row)][:-2]
    assert settled
    assert max(map(sum, settled)) <= 100
    assert all(max(row) == min(row) for row in settled)


def test_the_replays_of_a_client_take_turns() -> None:
    node = Node(Limits(turn=400))
    publish_all(node.connect("p"), numbers(100), qos=0)
    viewer = node.connect("v")
    filters = tuple(Subscription(f"$replay/all;to={end}/t", 0) for end in (100, 101, 102))
    viewer.connection.receive(encode(Subscribe(1, filters), 5), node.now)
    seen: Counter[str] = Counter()
    while node.scheduled or node.reader.step():
        node.turn_once()
        seen.update(message.topic for message in viewer.take(Publish))
        assert not seen or max(seen.values()) - min(seen.values()) <= 20 or len(seen) < 3
    assert sorted(seen.values()) == [100, 100, 100]


def test_only_some_replays_hold_what_they_have_read() -> None:
    node = Node(Limits(max_replays=100), memory_bytes=1)
    publish_all(node.connect("p"), numbers(100))
    viewer = node.connect("v", properties=((Property.RECEIVE_MAXIMUM, 1),))
    viewer.send(Subscribe(1, tuple(Subscription(f"$replay/all;to={end}/t", 1) for end in range(101, 141))))
    node.commit()
    assert len(node.hub.replays._holding) == 16
    counts: Counter[str] = Counter()
    for message in viewer.acknowledge():
        counts[message.topic] += 1
    assert sorted(counts.values()) == [100] * 40


def test_many_that_read_at_once_do_not_throw_away_what_others_have_read() -> None:
    node = Node(Limits(max_replays=100), memory_bytes=1)
    publisher = node.connect("p")
    for start in range(0, 1200, 200):
        publish_all(publisher, numbers(200, start))
    viewer = node.connect("v")
    wanted = tuple(Subscription(f"$replay/all;to={end}/t", 0) for end in range(1201, 1241))
    viewer.connection.receive(encode(Subscribe(1, wanted), 5), node.now)
    reads = 0
    while (read := node.reader.step()) or node.scheduled:
        reads += read
        node.turn_once()
        assert reads < 1000
    assert len(viewer.take(Publish)) == 40 * 1200


def test_what_commits_while_the_last_ones_are_looked_for_is_not_left_out() -> None:
    node = Node()
    publisher = filled(node, 5)
    viewer = node.connect("v")
    viewer.connection.receive(encode(Subscribe(1, (Subscription("$replay/last=2/t", 0),)), 5), node.now)
    publisher.connection.receive(encode(Publish("t", b"5", 1, packet_id=9), 5), node.now)
    while node.scheduled or node.writer.step():
        node.turn_once()
    assert node.log.committed == 6
    assert viewer.payloads() == []
    node.commit()
    assert viewer.payloads() == numbers(3, 3)


def test_nothing_is_left_of_a_replay_when_its_connection_ends() -> None:
    node = Node(memory_bytes=1)
    filled(node, 5)
    viewer = node.connect("v")
    for words in ("all", "last=2", "time=1700000001", "all;speed=1"):
        viewer.connection.receive(encode(Subscribe(1, (Subscription(f"$replay/{words}/#", 1),)), 5), node.now)
    viewer.connection.lost(node.now)
    node.commit()
    replays = node.hub.replays
    assert not replays.all
    assert not replays._holding
    assert not node.log._waiting
    node.tick(10)
    assert not node.hub.sessions.all.get("v")

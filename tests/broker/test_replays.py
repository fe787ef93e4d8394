"""Which replays are granted to whom, and how one by a plain filter becomes the subscription that it looks like."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest

from broker.acl import Policy, parse
from broker.auth import Access, Check, Verdict
from broker.listener import Limits, Listener
from broker.mqtt.codec import encode
from broker.mqtt.packets import Connect, Puback, Publish, Suback, Subscribe, Subscription, Unsuback, Unsubscribe
from broker.mqtt.properties import Properties, Property
from broker.mqtt.reason import Reason
from storage.interface import SUBSCRIPTIONS
from tests.broker.helpers import FOREVER, Client, Node, numbers, publish_all

TOPIC = "plant/a"


def filled(node: Node, number: int = 10, qos: int = 1) -> Client:
    """So many events, one in each second; their publisher, on a listener without rules."""
    listener, node.listener = node.listener, None
    publisher = node.connect("publisher")
    node.listener = listener
    for payload in numbers(number):
        publisher.publish(TOPIC, payload, qos)
        node.commit()
        node.tick()
    publisher.take_all()
    return publisher


def ask(client: Client, words: str, filter: str = "plant/#", qos: int = 1) -> int:
    """Subscribe by a plain filter, to be replayed first; the reason code."""
    _send(client, words, filter, qos)
    client.node.commit()
    (suback,) = client.take(Suback)
    return suback.reasons[0]


def _send(client: Client, words: str, filter: str = "plant/#", qos: int = 1) -> None:
    """The same, and nothing happens yet."""
    properties: Properties = ((Property.USER_PROPERTY, ("replay", words)),)
    subscribe = Subscribe(1, (Subscription(filter, qos),), properties)
    client.connection.receive(encode(subscribe, 5), client.node.now)


def payloads(client: Client) -> list[bytes]:
    return [message.payload for message in client.acknowledge()]


def drop_oldest(node: Node, number: int) -> None:
    """Retention takes so many events, out of memory, too."""
    node.commit()
    del node.engine._events[:number]
    node.restart()


def unsubscribe(client: Client, filter: str) -> int:
    client.send(Unsubscribe(9, (filter,)))
    client.node.commit()
    (unsuback,) = client.take(Unsuback)
    return unsuback.reasons[0]


# -- what is refused


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sometimes", "'sometimes' is not all, seq=N, time=T, ago=D or last=N"),
        ("seq=3", "the oldest event that is kept is 5, of 2023-11-14T22:13:24Z"),
        ("seq=4;to=9", "the oldest event that is kept is 5, of 2023-11-14T22:13:24Z"),
        ("all;to=4", "it ends before it begins; the oldest event that is kept is 5, of 2023-11-14T22:13:24Z"),
        (
            "all;until=1700000001",
            "it ends before it begins; the oldest event that is kept is 5, of 2023-11-14T22:13:24Z",
        ),
        ("seq=99999999", "the last event is"),
        ("time=2023-11-15T00:00:00Z", "its time is to come; it is 2023-11-14T22:13:30Z"),
        ("all;until=2023-11-15T00:00:00Z", "its time is to come; it is 2023-11-14T22:13:30Z"),
    ],
)
@pytest.mark.parametrize("plain", [False, True])
def test_what_can_not_be_replayed_is_refused_in_words_and_nothing_changes(plain: bool, words: str, said: str) -> None:
    node = Node()
    filled(node)
    drop_oldest(node, 4)
    viewer = node.connect("v")
    if plain:
        said = "a subscription is to follow" if "to=" in words or "until=" in words else said
        assert ask(viewer, words) == Reason.TOPIC_FILTER_INVALID
    else:
        assert viewer.subscribe(f"$replay/{words}/plant/#") == Reason.TOPIC_FILTER_INVALID
    (line,) = viewer.wire.said
    assert said in line
    assert payloads(viewer) == []
    assert not viewer.session.replays
    assert not viewer.session.subscriptions


@pytest.mark.parametrize(
    "filter", ["$replay/sometimes/#", "$replay/all", "$replay/#", "$replay", "$replay/+/x", "$replay/all/"]
)
def test_before_mqtt_5_a_refusal_is_0x80(filter: str) -> None:
    node = Node()
    viewer = node.connect("v", 4)
    assert viewer.subscribe(filter) == 0x80
    assert viewer.open


@pytest.mark.parametrize("words", ["time=1700000000", "ago=1h"])
def test_from_a_time_before_the_oldest_it_begins_there_and_says_so(words: str) -> None:
    node = Node()
    filled(node)
    drop_oldest(node, 4)
    viewer = node.connect("v")
    assert viewer.subscribe(f"$replay/{words}/plant/#", 1) == 1
    assert viewer.wire.said == ["the oldest event that is kept is 5, of 2023-11-14T22:13:24Z"]
    assert payloads(viewer) == numbers(6, 4)


def test_all_begins_at_the_oldest() -> None:
    node = Node()
    filled(node)
    drop_oldest(node, 4)
    viewer = node.connect("v")
    assert viewer.subscribe("$replay/all/plant/#", 1) == 1
    assert viewer.wire.said == []
    assert payloads(viewer) == numbers(6, 4)


def test_a_filter_that_matches_nothing_is_granted() -> None:
    node = Node()
    filled(node)
    viewer = node.connect("v")
    assert viewer.subscribe("$replay/all;until=now/office", 1) == 1
    assert payloads(viewer) == []
    assert not node.hub.replays.all


def test_a_client_has_no_more_replays_than_it_may() -> None:
    node = Node(Limits(max_replays=2))
    filled(node)
    viewer = node.connect("v")
    assert viewer.subscribe("$replay/all/a", 1) == 1
    assert viewer.subscribe("$replay/all/b", 1) == 1
    assert viewer.subscribe("$replay/all/c", 1) == Reason.QUOTA_EXCEEDED
    assert viewer.subscribe("$replay/all/b", 0) == 0
    assert unsubscribe(viewer, "$replay/all/a") == Reason.SUCCESS
    assert viewer.subscribe("$replay/all/c", 1) == 1
    assert sorted(viewer.session.replays) == ["$replay/all/b", "$replay/all/c"]


def test_where_there_are_no_replays_they_are_refused() -> None:
    node = Node(Limits(replay=False))
    filled(node)
    viewer = node.connect("v")
    assert viewer.subscribe("$replay/all/#", 1) == Reason.IMPLEMENTATION_SPECIFIC_ERROR
    assert ask(viewer, "all") == Reason.IMPLEMENTATION_SPECIFIC_ERROR
    assert viewer.subscribe("plant/#", 1) == 1


def test_a_filter_of_many_levels_is_not_replayed() -> None:
    node = Node()
    assert node.connect("v").subscribe("$replay/all" + "/+" * 300) == Reason.QUOTA_EXCEEDED


def test_replays_are_not_shared_and_shared_subscriptions_are_not_replayed() -> None:
    node = Node()
    viewer = node.connect("v")
    assert viewer.subscribe("$share/g/$replay/all/#") == Reason.TOPIC_FILTER_INVALID
    assert ask(viewer, "all", "$share/g/#") == Reason.TOPIC_FILTER_INVALID
    assert ask(viewer, "all", "$replay/all/#") == Reason.TOPIC_FILTER_INVALID
    assert not viewer.session.subscriptions


@pytest.mark.parametrize("topic", ["$replay", "$replay/all/x", "$replay/x"])
def test_nobody_publishes_to_a_replay(topic: str) -> None:
    node = Node()
    client = node.connect("c")
    client.publish(topic, b"x", 1)
    node.commit()
    (puback,) = client.take(Puback)
    assert puback.reason == Reason.NOT_AUTHORIZED


# -- rights


class Believes:
    """Believes every user name."""

    def authenticate(self, check: Check) -> None:
        check.answer(Verdict(Reason.SUCCESS, check.applicant.username or ""))


def guarded(*lines: str, mount: str = "") -> Node:
    """A node whose clients meet these rules, and may do nothing else."""
    node = Node()
    access = Access(Believes(), authorizer=Policy(parse("\n".join(lines), "acl"), False))
    node.listener = Listener("front", node.limits, mount, access=access)
    return node


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("rules", "allowed"),
    [
        (("allow read #",), False),
        (("allow subscribe $replay/#",), False),
        (("allow read plant/#", "allow subscribe $replay/#"), True),
        (("allow read plant/#", "allow subscribe $replay/+/plant/#"), True),
        (("allow read plant/a", "allow subscribe $replay/#"), False),
        (("deny subscribe $replay/#", "allow read #"), False),
        (("allow read #", "allow subscribe $replay/last=1/#"), False),
    ],
)
def test_rules_must_allow_the_replay_and_the_filter_behind_it(
    rules: tuple[str, ...], allowed: bool, plain: bool
) -> None:
    node = guarded(*rules)
    filled(node)
    viewer = node.connect("v")
    reason = ask(viewer, "all") if plain else viewer.subscribe("$replay/all/plant/#", 1)
    assert (reason == 1) is allowed
    assert payloads(viewer) == (numbers(10) if allowed else [])
    assert allowed or reason == Reason.NOT_AUTHORIZED


def test_what_a_client_may_not_receive_is_not_replayed_to_it_and_counted() -> None:
    node = guarded("deny receive plant/a", "allow all #", "allow subscribe $replay/#")
    publisher = filled(node, 3)
    publish_all(publisher, [b"b"], topic="plant/b")
    viewer = node.connect("v")
    assert viewer.subscribe("$replay/all/plant/#", 1) == 1
    assert payloads(viewer) == [b"b"]
    assert node.hub.dropped_denied == 3


def test_rules_that_change_hold_from_the_next_message_on() -> None:
    node = guarded("allow all #", "allow subscribe $replay/#")
    publisher = filled(node, 3)
    viewer = node.connect("v")
    viewer.subscribe("$replay/all/plant/#", 1)
    assert payloads(viewer) == numbers(3)
    assert node.listener is not None
    assert node.listener.access is not None
    node.listener.access = replace(node.listener.access, authorizer=Policy(parse("deny receive plant/a", "acl"), True))
    node.hub.clients.rules_changed(node.listener)
    publish_all(publisher, [b"3"], topic=TOPIC)
    assert payloads(viewer) == []


@pytest.mark.parametrize("plain", [False, True])
def test_below_a_mount_point_history_is_what_is_below_it(plain: bool) -> None:
    node = Node()
    publisher = filled(node, 3)
    node.listener = Listener("plant", node.limits, "plant/")
    viewer = node.connect("v")
    if plain:
        assert ask(viewer, "all", "#") == 1
    else:
        assert viewer.subscribe("$replay/all/#", 1) == 1
    publish_all(publisher, [b"no"], topic="office")
    publish_all(publisher, [b"3"], topic=TOPIC)
    came = viewer.acknowledge()
    assert [message.payload for message in came] == numbers(4)
    assert {message.topic for message in came} == {"a" if plain else "$replay/all/a"}
    assert viewer.subscribe("$share/g/$replay/all/#") == Reason.TOPIC_FILTER_INVALID
    assert unsubscribe(viewer, "#" if plain else "$replay/all/#") == Reason.SUCCESS


def test_below_a_mount_point_rules_are_asked_about_full_topics() -> None:
    node = guarded("allow read plant/#", "allow subscribe $replay/+/plant/#", mount="plant/")
    filled(node, 3)
    viewer = node.connect("v")
    assert viewer.subscribe("$replay/all/#", 1) == 1
    assert payloads(viewer) == numbers(3)


# -- the subscription that follows


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("memory_bytes", [1, 1 << 24])
def test_a_plain_filter_is_replayed_and_becomes_a_subscription_without_a_seam(memory_bytes: int, qos: int) -> None:
    node = Node(memory_bytes=memory_bytes)
    publisher = filled(node)
    viewer = node.connect("v")
    assert ask(viewer, "seq=4", qos=2) == 2
    came = viewer.acknowledge()
    assert [message.payload for message in came] == numbers(7, 3)
    assert {message.topic for message in came} == {TOPIC}
    assert not viewer.session.replays
    publish_all(publisher, numbers(3, 10), qos=qos, topic=TOPIC)
    came = viewer.acknowledge()
    assert [message.payload for message in came] == numbers(3, 10)
    assert [(message.qos, message.properties) for message in came] == [(qos, ())] * 3


def test_messages_that_go_out_before_they_commit_are_not_lost_where_it_hands_over() -> None:
    node = Node()
    publisher = filled(node, 2)
    viewer = node.connect("v")
    publisher.publish(TOPIC, b"2", 0)
    _send(viewer, "all", qos=0)
    publisher.publish(TOPIC, b"3", 0)
    assert not viewer.session.replays
    assert node.log.busy
    publisher.publish(TOPIC, b"4", 0)
    node.commit()
    assert viewer.payloads() == numbers(5)


def test_messages_that_go_out_before_they_commit_are_not_lost_where_the_session_is_behind() -> None:
    node = Node()
    publisher = filled(node, 2)
    viewer = node.connect("v", properties=((Property.RECEIVE_MAXIMUM, 1),))
    viewer.subscribe("other", 1)
    publish_all(publisher, [b"x"], topic="other")
    publisher.publish("other", b"y", 1)
    publisher.publish(TOPIC, b"2", 0)
    node.commit_one()
    assert not viewer.session.live
    _send(viewer, "all", qos=0)
    node.turn()
    assert node.log.busy
    came = viewer.acknowledge()
    assert [message.payload for message in came if message.topic == "other"] == [b"x", b"y"]
    assert [message.payload for message in came if message.topic == TOPIC] == numbers(3)
    assert not viewer.session.replays


@pytest.mark.parametrize("qos", [0, 1])
def test_what_was_on_its_way_and_is_older_than_what_was_asked_for_does_not_come(qos: int) -> None:
    node = Node()
    publisher = filled(node, 2)
    by_seq, by_time = node.connect("s"), node.connect("t")
    publisher.publish(TOPIC, b"2", qos)
    node.tick()
    _send(by_seq, "seq=4")
    _send(by_time, f"time={node.now // 1_000_000}")
    publisher.publish(TOPIC, b"3", qos)
    node.commit()
    publish_all(publisher, [b"4"], topic=TOPIC)
    assert payloads(by_seq) == payloads(by_time) == numbers(2, 3)
    assert not node.hub.replays.all


def test_they_come_once_where_another_subscription_has_them() -> None:
    node = Node()
    publisher = filled(node, 2)
    viewer = node.subscriber(TOPIC, 0, "v")
    publisher.publish(TOPIC, b"2", 0)
    _send(viewer, "all", qos=0)
    node.commit()
    assert sorted(viewer.payloads()) == numbers(3)


def test_the_subscription_of_a_kept_session_stays_with_it() -> None:
    node = Node()
    publisher = filled(node, 3)
    viewer = node.resume("v")
    assert ask(viewer, "all") == 1
    assert [(message.payload, message.qos) for message in viewer.acknowledge()] == [(n, 0) for n in numbers(3)]
    viewer.lose()
    publish_all(publisher, numbers(2, 3), topic=TOPIC)
    node.restart()
    assert payloads(node.resume("v")) == numbers(2, 3)


@pytest.mark.parametrize("crash", [False, True])
def test_where_the_connection_ends_before_the_subscription_is_there_nevertheless(crash: bool) -> None:
    node = Node()
    filled(node, 3)
    viewer = node.resume("v")
    assert ask(viewer, "all;speed=1") == 1
    assert payloads(viewer) == numbers(1)
    node.commit()
    if crash:
        node.crash()
    else:
        viewer.lose()
        node.commit()
    publish_all(node.connect("p"), [b"new"], topic=TOPIC)
    again = node.resume("v")
    assert payloads(again) == [b"new"]
    publish_all(node.connect("p"), [b"newer"], topic=TOPIC)
    assert payloads(again) == [b"newer"]


def test_of_a_session_that_ends_nothing_stays() -> None:
    node = Node()
    filled(node, 3)
    viewer = node.resume("v")
    ask(viewer, "all;speed=1")
    node.commit()
    assert node.engine.keys(SUBSCRIPTIONS) == ["v"]
    viewer.lose()
    node.connect("v")
    node.commit()
    assert node.engine.keys(SUBSCRIPTIONS) == []
    assert not node.hub.replays.all
    assert not node.hub.sessions.subscriptions


@pytest.mark.parametrize("caught_up", [False, True])
def test_unsubscribing_ends_both(caught_up: bool) -> None:
    node = Node()
    publisher = filled(node, 3)
    viewer = node.resume("v")
    ask(viewer, "all" if caught_up else "all;speed=1")
    viewer.acknowledge()
    assert unsubscribe(viewer, "plant/#") == Reason.SUCCESS
    publish_all(publisher, [b"3"], topic=TOPIC)
    assert payloads(viewer) == []
    assert node.engine.keys(SUBSCRIPTIONS) == []
    assert node.hub.sessions.subscriptions == 0


def test_it_takes_the_place_of_a_subscription_with_the_same_filter_and_the_other_way_round() -> None:
    node = Node()
    publisher = filled(node, 3)
    viewer = node.connect("v")
    viewer.subscribe("plant/#", 1)
    ask(viewer, "all;speed=1")
    assert node.hub.sessions.subscriptions == 0
    publish_all(publisher, [b"3"], topic=TOPIC)
    assert payloads(viewer) == [b"0"]
    viewer.subscribe("plant/#", 1)
    publish_all(publisher, [b"4"], topic=TOPIC)
    assert payloads(viewer) == [b"4"]
    node.tick(60)
    assert payloads(viewer) == []


def test_a_client_that_is_behind_becomes_live_before_its_replay_hands_over() -> None:
    node = Node(memory_bytes=1)
    publisher = filled(node, 20)
    viewer = node.connect("v", properties=((Property.RECEIVE_MAXIMUM, 4),))
    viewer.subscribe("other", 1)
    ask(viewer, "all")
    held = viewer.take(Publish)
    publish_all(publisher, numbers(8), topic="other")
    assert not viewer.session.live
    seen: list[Publish] = []
    for number in count():
        if not held:
            break
        publisher.publish(TOPIC, b"%d" % (20 + number), 0)
        seen += held
        viewer.send(*(Puback(message.packet_id) for message in held if message.qos))
        node.commit()
        held = viewer.take(Publish)
        if number > 20:
            break
    viewer.send(*(Puback(message.packet_id) for message in held if message.qos))
    seen += held + viewer.acknowledge()
    assert [message.payload for message in seen if message.topic == "other"] == numbers(8)
    replayed = [message.payload for message in seen if message.topic == TOPIC]
    assert replayed == numbers(len(replayed))
    assert len(replayed) > 40
    assert not viewer.session.replays


def test_a_packet_may_ask_for_several() -> None:
    node = Node()
    publisher = filled(node, 2)
    publish_all(publisher, [b"x"], topic="office")
    viewer = node.connect("v")
    properties: Properties = (
        (Property.USER_PROPERTY, ("other", "thing")),
        (Property.USER_PROPERTY, ("replay", "last=1")),
    )
    viewer.send(Subscribe(1, (Subscription("plant/+", 1), Subscription("office", 0)), properties))
    node.commit()
    (suback,) = viewer.take(Suback)
    assert suback.reasons == (1, 0)
    assert sorted(payloads(viewer)) == [b"1", b"x"]
    assert viewer.session.subscriptions == 2


def test_it_survives_that_the_client_is_taken_over() -> None:
    node = Node()
    filled(node, 3)
    viewer = node.connect("v")
    viewer.subscribe("$replay/all;speed=1/#", 1)
    other = node.open()
    other.send(Connect("v", 5, False, 0, None, None, None, ((Property.SESSION_EXPIRY_INTERVAL, FOREVER),)))
    node.commit()
    assert not viewer.open
    assert not node.hub.replays.all
    node.tick(60)
    assert payloads(other) == []

"""Topic aliases towards clients: who gets one, and that a client can always tell which topic is meant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.aliases import Aliases
from broker.listener import Limits, Listener
from broker.mqtt.codec import encode
from broker.mqtt.packets import Connack, Publish, Pubrel
from broker.mqtt.properties import Properties, Property, first
from tests.broker.helpers import Client, Node

MANY = 65535


def taking(most: int, *more: tuple[Property, int]) -> Properties:
    """What a client that takes so many aliases says in its CONNECT."""
    return ((Property.TOPIC_ALIAS_MAXIMUM, most), *more)


def subscriber(node: Node, most: int, *more: tuple[Property, int], qos: int = 2) -> Client:
    client = node.connect("s", properties=taking(most, *more))
    client.subscribe("#", qos)
    client.take(Connack)
    return client


def alias_of(message: Publish) -> int | None:
    value = first(message.properties, Property.TOPIC_ALIAS)
    assert value is None or isinstance(value, int)
    return value


def heads(client: Client) -> list[tuple[str, int | None]]:
    """Topic and alias of each message that has come."""
    return [(message.topic, alias_of(message)) for message in client.acknowledge()]


class Reader:
    """A client's side of aliases."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._topics: dict[int, str] = {}

    def topic(self, message: Publish) -> str:
        """The topic that is meant."""
        alias = alias_of(message)
        if alias is None:
            assert message.topic
            return message.topic
        assert 1 <= alias <= self._most
        if message.topic:
            self._topics[alias] = message.topic
        return self._topics[alias]


# -- which topic gets one


def test_a_topic_has_one_from_its_first_message_on_while_some_are_free() -> None:
    """[MQTT-3.1.2-26]"""
    node = Node()
    client, publisher = subscriber(node, 2), node.connect("p")
    for topic in ("one/a", "one/a", "two/b", "one/a", "two/b"):
        publisher.publish(topic)
    assert heads(client) == [("one/a", 1), ("", 1), ("two/b", 2), ("", 1), ("", 2)]


def test_a_topic_that_comes_again_takes_the_alias_that_was_not_used_for_longest() -> None:
    node = Node()
    client, publisher = subscriber(node, 2), node.connect("p")
    for topic in ("one/a", "two/b", "one/a", "three", "three", "three", "two/b"):
        publisher.publish(topic)
    assert heads(client) == [
        ("one/a", 1),
        ("two/b", 2),
        ("", 1),
        ("three", None),
        ("three", 2),
        ("", 2),
        ("two/b", None),
    ]


def test_topics_that_come_once_each_drive_none_out() -> None:
    node = Node()
    client, publisher = subscriber(node, 2), node.connect("p")
    for topic in ("often", "often", *(f"once/{n}" for n in range(50)), "often"):
        publisher.publish(topic)
    assert heads(client)[-1] == ("", 1)


@pytest.mark.parametrize("topic", ["abc", "a" * 1025])
def test_a_topic_that_is_as_short_as_an_alias_or_very_long_has_none(topic: str) -> None:
    node = Node()
    client, publisher = subscriber(node, 5), node.connect("p")
    publisher.publish(topic)
    publisher.publish(topic)
    assert heads(client) == [(topic, None)] * 2


@pytest.mark.parametrize(("asked", "allowed"), [(None, 16), (0, 16), (5, 0)])
def test_without_a_maximum_of_the_client_or_of_the_server_there_are_none(asked: int | None, allowed: int) -> None:
    """[MQTT-3.1.2-27]"""
    node = Node(Limits(max_topic_aliases=allowed))
    client = node.connect("s", properties=() if asked is None else taking(asked))
    client.subscribe("#")
    client.publish("topic/1")
    client.publish("topic/1")
    assert heads(client) == [("topic/1", None)] * 2
    assert not client.connection.shaped


def test_the_server_sets_no_more_than_it_is_to() -> None:
    node = Node(Limits(max_topic_aliases=2))
    client, publisher = subscriber(node, MANY), node.connect("p")
    for n in range(4):
        publisher.publish(f"topic/{n}")
    assert heads(client) == [("topic/0", 1), ("topic/1", 2), ("topic/2", None), ("topic/3", None)]


def test_before_mqtt_5_there_are_none() -> None:
    node = Node()
    client, publisher = node.subscriber(version=4), node.connect("p")
    publisher.publish("topic/1")
    publisher.publish("topic/1")
    assert [message.topic for message in client.acknowledge()] == ["topic/1"] * 2


# -- that the client can tell


TOPICS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), max_size=150)


@given(TOPICS, st.integers(1, 8), st.booleans(), st.sampled_from([0, 26, 30]))
def test_a_client_always_knows_the_topic_that_is_meant(
    published: list[tuple[int, int]], most: int, lasting: bool, largest: int
) -> None:
    """[MQTT-3.3.2-11]; whatever the QoS, whether its session is to last, and where some messages are too large."""
    node = Node()
    more = [(Property.SESSION_EXPIRY_INTERVAL, 100)] if lasting else []
    more += [(Property.MAXIMUM_PACKET_SIZE, largest)] if largest else []
    client = subscriber(node, most, *more)
    publisher = node.connect("p")
    for index, (n, qos) in enumerate(published):
        topic = f"topic/{'x' * n}{n}"
        publisher.publish(topic, topic.encode(), qos, index + 1 if qos else 0)
        if index % 7 == 0:
            node.commit()
        if index % 20 == 0:
            publisher.send(*(Pubrel(id + 1) for id in range(index + 1)))
    reader = Reader(most)
    came = client.acknowledge()
    for message in came:
        assert reader.topic(message) == message.payload.decode()
        assert not largest or len(encode(message, 5)) <= largest
    if not largest:
        assert len(came) == len(published)


def test_a_qos_2_message_that_waits_for_its_commit_neither_sets_nor_has_an_alias() -> None:
    node = Node()
    client = subscriber(node, 5, (Property.SESSION_EXPIRY_INTERVAL, 100))
    publisher = node.connect("p")
    publisher.publish("topic/1", b"1", 2)
    node.commit_one()  # its PUBLISH is on its way, and waits for the row that says so
    publisher.publish("topic/1", b"2", 0)
    assert [(message.topic, message.payload, alias_of(message)) for message in client.take(Publish)] == [
        ("topic/1", b"2", 1)
    ]
    node.commit()
    (late,) = client.take(Publish)
    assert (late.topic, late.payload, alias_of(late)) == ("topic/1", b"1", None)


def test_a_qos_2_message_of_a_session_that_is_not_to_last_has_one() -> None:
    node = Node()
    client, publisher = subscriber(node, 5), node.connect("p")
    for qos in (0, 1, 2):
        publisher.publish("topic/1", b"x", qos)
        node.commit()
    assert heads(client) == [("topic/1", 1), ("", 1), ("", 1)]


def test_a_message_for_whose_alias_there_is_no_room_is_sent_without() -> None:
    """[MQTT-3.1.2-24] [MQTT-3.1.2-25]"""
    node = Node()
    plain = encode(Publish("topic/1", b"x" * 20), 5)
    client = subscriber(node, 5, (Property.MAXIMUM_PACKET_SIZE, len(plain)))
    publisher = node.connect("p")
    publisher.publish("topic/1", b"x" * 20)
    publisher.publish("topic/1", b"x" * 17)
    publisher.publish("topic/1", b"x" * 21)
    publisher.publish("topic/1", b"x" * 30)
    assert [(m.topic, len(m.payload), alias_of(m)) for m in client.take(Publish)] == [
        ("topic/1", 20, None),
        ("topic/1", 17, 1),
        ("", 21, 1),
    ]
    assert node.hub.dropped_oversized == 1


def test_a_new_connection_has_aliases_of_its_own() -> None:
    """[MQTT-3.3.2-7]"""
    node = Node()
    client = node.resume("s", properties=taking(5))
    client.subscribe("#", 1)
    publisher = node.connect("p")
    publisher.publish("topic/1", b"1", 1)
    node.commit()
    assert [(m.topic, alias_of(m)) for m in client.take(Publish)] == [("topic/1", 1)]
    client.lose()
    client = node.resume("s", properties=taking(5))
    (again,) = client.take(Publish)
    assert (again.topic, again.dup, alias_of(again)) == ("topic/1", True, None)
    publisher.publish("topic/1", b"2", 1)
    node.commit()
    assert [(m.topic, alias_of(m)) for m in client.take(Publish)] == [("topic/1", 1)]


def test_what_a_subscriber_reads_from_the_log_has_aliases_as_well() -> None:
    node = Node()
    client, publisher = subscriber(node, 5), node.connect("p")
    client.jam()
    for n in range(1, 6):
        publisher.publish("topic/1", str(n).encode(), 1, n)
    node.commit()
    client.unjam()
    assert heads(client) == [("topic/1", 1)] + [("", 1)] * 4


def test_below_a_mount_point_an_alias_stands_for_the_topic_that_the_client_sees() -> None:
    node = Node()
    node.listener = Listener("site", Limits(), "site/")
    client = subscriber(node, 5)
    publisher = node.connect("p")
    publisher.publish("topic/1")
    publisher.publish("topic/1")
    assert heads(client) == [("topic/1", 1), ("", 1)]


def test_a_retained_message_and_its_topic_s_next_share_an_alias() -> None:
    node = Node()
    publisher = node.connect("p")
    publisher.publish("topic/1", b"1", retain=True)
    node.commit()
    client = subscriber(node, 5)
    node.commit()
    publisher.publish("topic/1", b"2")
    assert heads(client) == [("topic/1", 1), ("", 1)]


def test_clients_without_aliases_get_the_frames_that_all_get() -> None:
    node = Node()
    aliased = subscriber(node, 5)
    plain = node.subscriber(client_id="plain")
    publisher = node.connect("p")
    publisher.publish("topic/1")
    publisher.publish("topic/1")
    assert heads(aliased) == [("topic/1", 1), ("", 1)]
    assert heads(plain) == [("topic/1", None)] * 2


# -- the table alone


@given(st.integers(1, 6), st.lists(st.tuples(st.integers(0, 15), st.booleans()), max_size=200))
def test_an_alias_belongs_to_one_topic_and_nothing_grows(most: int, steps: list[tuple[int, bool]]) -> None:
    aliases = Aliases(most)
    known: dict[int, str] = {}
    for n, goes_out in steps:
        topic = f"topic/{n}"
        alias = aliases.find(topic)
        if alias:
            assert known[alias] == topic
            continue
        assert topic not in known.values()
        alias = aliases.offer(topic)
        assert 0 <= alias <= most
        if alias and goes_out:
            aliases.set(topic, alias)
            known[alias] = topic
        assert len(aliases._aliases) <= most
        assert len(aliases._met) <= most

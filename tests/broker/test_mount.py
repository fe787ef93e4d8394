"""Mount points: what clients of a listener name is below its prefix, and what they receive is without it."""

from __future__ import annotations

import pytest

from broker.listener import Limits, Listener
from broker.mount import MountedDecoder
from broker.mqtt.codec import encode
from broker.mqtt.packets import (
    Connack,
    Connect,
    Disconnect,
    Puback,
    Publish,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
    Will,
)
from broker.mqtt.properties import Property
from broker.mqtt.reason import Reason
from tests.broker.helpers import Client, Node

HERE = Listener("site-7", Limits(), "site-7/")


@pytest.fixture
def node() -> Node:
    return Node()


def mounted(node: Node, client_id: str = "m", version: int = 5, *, will: Will | None = None) -> Client:
    """A client of the listener with the mount point."""
    node.listener = HERE
    client = node.connect(client_id, version, will=will)
    node.listener = None
    client.take(Connack)
    return client


def topics(node: Node, client: Client) -> list[str]:
    """Of the messages that have come."""
    return [message.topic for message in client.acknowledge()]


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("version", [3, 4, 5])
def test_messages_get_the_prefix_on_their_way_in_and_lose_it_on_their_way_out(
    qos: int, version: int, node: Node
) -> None:
    outside, inside, other = node.subscriber("site-7/#"), mounted(node, "i", version), mounted(node, "p", version)
    inside.subscribe("a/+", qos)
    other.publish("a/b", b"x", qos)
    assert topics(node, outside) == ["site-7/a/b"]
    assert topics(node, inside) == ["a/b"]


def test_a_client_of_another_listener_reaches_them_by_the_full_topic(node: Node) -> None:
    inside, outside = mounted(node), node.connect("o")
    inside.subscribe("#")
    outside.publish("site-7/a")
    outside.publish("site-8/a")
    outside.publish("site-7")
    outside.publish("a")
    assert topics(node, inside) == ["a"]


def test_retained_messages_are_below_the_prefix(node: Node) -> None:
    inside = mounted(node)
    inside.publish("a", b"kept", 1, retain=True)
    node.connect("o").publish("b", b"elsewhere", 1, retain=True)
    node.commit()
    later = mounted(node, "later")
    later.subscribe("#", 1)
    assert [(m.topic, m.payload, m.retain) for m in later.acknowledge()] == [("a", b"kept", True)]
    assert topics(node, node.subscriber("#")) == ["site-7/a", "b"]


def test_a_will_is_below_the_prefix(node: Node) -> None:
    outside = node.subscriber("#")
    mounted(node, will=Will("gone", b"x", 1, False)).lose()
    assert topics(node, outside) == ["site-7/gone"]


def test_a_will_on_disk_is_below_the_prefix(node: Node) -> None:
    mounted(node, will=Will("gone", b"x", 1, True))
    node.commit()
    node.crash()
    node.tick()
    assert topics(node, node.subscriber("#")) == ["site-7/gone"]


def test_unsubscribing_ends_the_subscription_by_its_short_name(node: Node) -> None:
    inside = mounted(node)
    inside.subscribe("a")
    inside.send(Unsubscribe(2, ("a", "site-7/a")))
    node.commit()
    assert inside.take(Unsuback)[0].reasons == (Reason.SUCCESS, Reason.NO_SUBSCRIPTION_EXISTED)
    node.connect("o").publish("site-7/a")
    assert topics(node, inside) == []


def test_an_alias_stands_for_the_full_topic(node: Node) -> None:
    outside, inside = node.subscriber("#"), mounted(node)
    inside.publish("a", properties=((Property.TOPIC_ALIAS, 1),))
    inside.publish("", properties=((Property.TOPIC_ALIAS, 1),))
    assert topics(node, outside) == ["site-7/a", "site-7/a"]


def test_a_response_topic_is_translated_in_both_directions(node: Node) -> None:
    outside, inside, other = node.subscriber("#"), mounted(node, "i"), mounted(node, "p")
    inside.subscribe("request", 0)
    user = (Property.USER_PROPERTY, ("k", "v"))
    other.publish("request", properties=((Property.RESPONSE_TOPIC, "answers/p"), user))
    (seen,), (given,) = outside.acknowledge(), inside.acknowledge()
    assert seen.properties == ((Property.RESPONSE_TOPIC, "site-7/answers/p"), user)
    assert given.properties == ((Property.RESPONSE_TOPIC, "answers/p"), user)


def test_a_response_topic_elsewhere_is_left_as_it_is(node: Node) -> None:
    inside = mounted(node)
    inside.subscribe("request", 0)
    node.connect("o").publish("site-7/request", properties=((Property.RESPONSE_TOPIC, "elsewhere"),))
    assert inside.acknowledge()[0].properties == ((Property.RESPONSE_TOPIC, "elsewhere"),)


@pytest.mark.parametrize("topic", ["$SYS/broker/uptime", "$share/g/t", "$other", "$SYS/broker/connection/b/state"])
def test_what_begins_with_a_dollar_is_the_servers(topic: str, node: Node) -> None:
    outside, inside = node.subscriber("$other"), mounted(node)
    inside.publish(topic, b"x", 1)
    node.commit()
    assert inside.take(Puback) == [Puback(1, Reason.NOT_AUTHORIZED)]
    assert node.log.last == 0
    assert topics(node, outside) == []


def test_a_will_for_the_server_is_refused(node: Node) -> None:
    node.listener = HERE
    client = node.open()
    client.send(Connect("c", 5, True, 0, Will("$other", b"x", 1, False), None, None))
    assert client.take(Connack)[0].reason == Reason.NOT_AUTHORIZED
    assert not client.open


def test_a_subscription_to_the_servers_topics_matches_nothing(node: Node) -> None:
    inside = mounted(node)
    inside.subscribe("$SYS/#")
    node.hub.emit("berm", [("$SYS/broker/uptime", b"1", 0, False)])
    node.commit()
    assert topics(node, inside) == []


def test_a_topic_that_the_prefix_makes_too_long_ends_the_connection(node: Node) -> None:
    inside = mounted(node)
    inside.publish("x" * (65535 - len("site-7/")), b"fits")
    assert inside.open
    inside.publish("é" * 32767, b"does not")
    assert inside.take(Disconnect) == [Disconnect(Reason.TOPIC_NAME_INVALID)]
    assert node.hub.traffic.received == 1


def test_a_session_of_another_listener_gives_nothing_that_is_not_below_the_prefix(node: Node) -> None:
    keeper = node.keeper("#")
    outside = node.connect("o")
    outside.publish("site-7/sent", b"x", 1)
    outside.publish("secret/sent", b"x", 2, 2)
    node.commit()
    assert [message.topic for message in keeper.take(Publish)] == ["site-7/sent", "secret/sent"]
    keeper.lose()
    outside.publish("site-7/away", b"x", 1, 3)
    outside.publish("secret/away", b"x", 1, 4)
    node.listener = HERE
    back = node.resume("k")
    node.listener = None
    outside.publish("site-7/live", b"x", 1, 5)
    outside.publish("secret/live", b"x", 1, 6)
    assert topics(node, back) == ["sent", "away", "live"]
    assert back.session.slots == back.session.window


def test_a_session_that_catches_up_reads_short_topics(node: Node) -> None:
    node.listener = HERE
    keeper = node.keeper("a/#")
    keeper.lose()
    mounted(node, "p").publish("a/b", b"missed", 1)
    node.commit()
    node.listener = HERE
    back = node.resume("k")
    assert topics(node, back) == ["a/b"]


def test_a_message_that_is_sent_again_has_its_short_topic(node: Node) -> None:
    node.listener = HERE
    keeper = node.keeper("a/#")
    node.listener = None
    node.connect("o").publish("site-7/a/b", b"x", 1)
    node.commit()
    assert [message.topic for message in keeper.take(Publish)] == ["a/b"]
    keeper.lose()
    node.listener = HERE
    back = node.resume("k")
    assert [(m.topic, m.dup) for m in back.acknowledge()] == [("a/b", True)]


def test_the_prefix_goes_behind_the_name_of_a_share() -> None:
    decoder = MountedDecoder("site-7/", 5, 1 << 20)
    asked = Subscribe(1, (Subscription("$share/g/a/#", 1, no_local=False), Subscription("b", 0)))
    (packet,) = decoder.feed(encode(asked, 5))
    assert isinstance(packet, Subscribe)
    assert [each.filter for each in packet.subscriptions] == ["$share/g/site-7/a/#", "site-7/b"]
    (undone,) = decoder.feed(encode(Unsubscribe(2, ("$share/g/a/#",)), 5))
    assert undone == Unsubscribe(2, ("$share/g/site-7/a/#",))


def test_packets_before_one_that_can_not_be_translated_count(node: Node) -> None:
    inside = mounted(node)
    inside.send(Publish("a", b"x", 1, packet_id=1), Publish("x" * 65535, b"x"), Publish("b", b"x"))
    assert not inside.open
    assert node.hub.traffic.received == 1

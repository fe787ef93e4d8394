"""What the broker forgets of a client or a topic that is erased, so that nothing writes it again."""

from __future__ import annotations

from broker.erasure import forget
from broker.mqtt.packets import Will
from broker.mqtt.topic import compile_filters
from storage.interface import RETAINED, SESSIONS, SUBSCRIPTIONS, WILLS
from tests.broker.helpers import FOREVER, Node


def test_a_client_is_disconnected_and_nothing_is_left_of_it() -> None:
    node = Node()
    watcher = node.subscriber("#")
    client = node.connect("erased", 5, expiry=FOREVER, will=Will("will", b"gone", 1, False, ()))
    client.subscribe("home/#")
    client.publish("home/state", b"on", 1, retain=True)
    other = node.connect("other", 5, expiry=FOREVER, will=Will("will", b"gone", 1, False, ()))
    other.publish("home/other", b"on", 1, retain=True)
    watcher.acknowledge()
    node.commit()
    forget(node.hub, {"erased"}, lambda topic: False)
    node.commit()
    assert not client.open
    assert other.open
    assert watcher.acknowledge() == [], "nothing is published of its will"
    assert [row[0] for row in node.engine.rows(RETAINED)] == ["home/other"]
    assert [event.topic for event in node.hub.retained.match("#")] == ["home/other"]
    assert "erased" not in {row[0] for table in (SESSIONS, SUBSCRIPTIONS, WILLS) for row in node.engine.rows(table)}
    assert "other" in {row[0] for row in node.engine.rows(WILLS)}
    again = node.connect("erased", 5, expiry=FOREVER)
    assert again.open


def test_wills_and_retained_messages_of_a_topic_go() -> None:
    node = Node()
    client = node.connect("c", 5, expiry=FOREVER, will=Will("home/a", b"gone", 1, False, ()))
    client.publish("home/a", b"on", 1, retain=True)
    client.publish("home/b", b"on", 1, retain=True)
    node.commit()
    forget(node.hub, set(), compile_filters(("home/a",)))
    node.commit()
    assert client.open
    assert node.engine.rows(WILLS) == []
    assert [row[0] for row in node.engine.rows(RETAINED)] == ["home/b"]
    watcher = node.subscriber("home/a")
    client.lose()
    assert watcher.acknowledge() == []

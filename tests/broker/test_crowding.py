"""Messages that are kept in memory only, and readers that are slower than their publishers."""

from __future__ import annotations

from broker.listener import Limits
from broker.mqtt.packets import Puback, Publish
from storage.interface import MEMORY
from tests.broker.helpers import Client, Node

EVENTS = 200
ROOM = 20_000
"""Bytes of the ring: some fifty small events."""


def crowd() -> tuple[Node, Client, Client]:
    """A node whose messages are all kept in memory only, a publisher, and a subscriber with a small window."""
    node = Node(Limits(max_inflight=5), lambda _: MEMORY, memory_bytes=ROOM)
    subscriber = node.subscriber("load/#", 1)
    return node, node.connect("p", 4), subscriber


def publish_while_read(node: Node, publisher: Client, first: int) -> int:
    """Publish until the publisher is no longer read from, or all is published; the number of the next message."""
    at = first
    while at < EVENTS and publisher.wire.reading:
        publisher.send(Publish("load/1", b"%d" % at, 1, packet_id=at + 1))
        node.commit()
        at += 1
    return at


def test_a_publisher_waits_for_a_subscriber_that_is_getting_on_and_nothing_that_was_acknowledged_is_lost() -> None:
    node, publisher, subscriber = crowd()
    received: list[bytes] = []
    at = waits = 0
    while at < EVENTS:
        at = publish_while_read(node, publisher, at)
        waits += not publisher.wire.reading
        came = subscriber.take(Publish)
        received += [packet.payload for packet in came]
        subscriber.send(*(Puback(packet.packet_id) for packet in came))
        node.commit()
    received += [packet.payload for packet in subscriber.acknowledge()]
    assert waits > 1
    assert len(publisher.take(Puback)) == EVENTS
    assert received == [b"%d" % number for number in range(EVENTS)]
    assert publisher.wire.reading


def test_nobody_waits_longer_than_a_second_or_two_for_a_subscriber_that_takes_nothing() -> None:
    node, publisher, _ = crowd()
    at = publish_while_read(node, publisher, 0)
    assert not publisher.wire.reading
    assert at < EVENTS
    node.tick(1)
    node.tick(1)
    assert publisher.wire.reading
    assert publish_while_read(node, publisher, at) == EVENTS
    assert node.log.evicted > 0


def test_a_publisher_does_not_wait_for_a_subscriber_that_is_away() -> None:
    node, publisher, subscriber = crowd()
    keeper = node.keeper("load/#", 1)
    keeper.lose()
    subscriber.lose()
    assert publish_while_read(node, publisher, 0) == EVENTS


def test_a_subscriber_that_has_missed_events_in_memory_goes_on_without_asking_the_engine() -> None:
    node, publisher, subscriber = crowd()
    at = publish_while_read(node, publisher, 0)
    node.tick(1)
    node.tick(1)
    publish_while_read(node, publisher, at)
    asked: list[int] = []
    read = node.engine.read
    node.engine.read = lambda *query: asked.append(query[0]) or read(*query)  # type: ignore[method-assign, func-returns-value]
    received = [packet.payload for packet in subscriber.acknowledge()]
    assert received[-1] == b"%d" % (EVENTS - 1)
    assert not asked

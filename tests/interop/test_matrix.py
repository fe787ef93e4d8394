"""Every client sends to every client, at every QoS both ways."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.interop.clients import KINDS, Kind, Message, Subscriber
from tests.node import Node

QOS = (0, 1, 2)
MESSAGES = 5

Received = dict[tuple[str, int], list[Message]]
"""By subscriber and the QoS of its subscription."""


def _topic(publisher: str, qos: int) -> str:
    return f"matrix/{publisher}/{qos}"


def _payloads(publisher: str, qos: int) -> list[bytes]:
    return [f"{publisher} {qos} {number}".encode() for number in range(MESSAGES)]


@pytest.fixture(scope="module")
def received(node: Node) -> Iterator[Received]:
    """What every subscriber got of what every publisher sent."""
    kinds = [kind for kind in KINDS.values() if not kind.missing]
    subscribers: dict[tuple[str, int], Subscriber] = {}
    try:
        for kind in kinds:
            for qos in QOS:
                subscribers[kind.name, qos] = kind.subscribe(node.port, f"{kind.name}-{qos}", "matrix/#", qos)

        def publish(kind: Kind) -> None:
            for qos in QOS:
                kind.publish(node.port, _topic(kind.name, qos), _payloads(kind.name, qos), qos)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(publish, kinds))
        expected = len(kinds) * len(QOS) * MESSAGES
        yield {key: subscriber.receive(expected) for key, subscriber in subscribers.items()}
    finally:
        for subscriber in subscribers.values():
            subscriber.close()


@pytest.mark.parametrize("subscriber", KINDS)
@pytest.mark.parametrize("publisher", KINDS)
def test_what_one_client_sends_reaches_another_whole_in_order_and_at_the_lower_qos(
    publisher: str, subscriber: str, received: Received
) -> None:
    for name in (publisher, subscriber):
        if KINDS[name].missing:
            pytest.skip(KINDS[name].missing)
    for sent_at in QOS:
        topic = _topic(publisher, sent_at)
        for granted in QOS:
            got = [message for message in received[subscriber, granted] if message.topic == topic]
            qos = min(sent_at, granted)
            assert got == [Message(topic, payload, qos) for payload in _payloads(publisher, sent_at)]

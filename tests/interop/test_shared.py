"""Shared subscriptions by real clients: many workers divide one stream, and none of it is lost when one dies."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.interop.clients import KINDS, NEVER, Message, Paho, Subscriber
from tests.node import PATIENCE, Node, wait_until

PAYLOADS = [b"%d" % number for number in range(300)]


def _receive(workers: list[Paho], number: int) -> list[Message]:
    """Wait until so many messages have come to any of them."""
    wait_until("messages for workers", lambda: sum(worker.waiting for worker in workers) >= number)
    return [message for worker in workers for message in worker.receive(worker.waiting)]


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_clients_of_every_kind_and_version_divide_what_is_published(node: Node, name: str, qos: int) -> None:
    kinds = [kind for kind in KINDS.values() if not kind.missing]
    filter = f"$share/{name}/{name}/#"
    workers: list[Subscriber] = [
        kind.subscribe(node.port, f"{name}{number}", filter, qos) for number, kind in enumerate(kinds)
    ]
    turns = 10
    with Paho(node.port, name) as publisher:
        for turn in range(turns):  # each waits for its acknowledgement: so that all workers are idle
            for number in range(len(workers)):
                publisher.publish(f"{name}/x", b"%d %d" % (turn, number), qos=max(1, qos))
    came = [worker.receive(1) for worker in workers]
    for worker, messages in zip(workers, came, strict=True):
        messages += worker.receive(turns - 1)
        worker.close()
    payloads = Counter(message.payload for messages in came for message in messages)
    assert payloads == Counter(b"%d %d" % (turn, number) for turn in range(turns) for number in range(len(workers)))
    assert {message.qos for messages in came for message in messages} == {qos}


@pytest.mark.parametrize("version", [4, 5])
def test_what_a_worker_leaves_unacknowledged_goes_to_another(node: Node, name: str, version: int) -> None:
    filter = f"$share/{name}/{name}"
    idle = Paho(node.port, f"{name}i", version, manual_ack=True, receive_maximum=20)
    idle.subscribe(filter, qos=1)
    with Paho(node.port, f"{name}b", version) as busy, Paho(node.port, name) as publisher:
        busy.subscribe(filter, qos=1)
        publisher.publish(name, *PAYLOADS)
        idle.receive(1)
        idle.vanish()
        assert {message.payload for message in busy.receive(len(PAYLOADS))} == set(PAYLOADS)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=("SIGTERM", "SIGKILL"))
@pytest.mark.parametrize("qos", [1, 2])
def test_messages_wait_for_workers_across_the_end_of_the_node(tmp_path: Path, qos: int, end: signal.Signals) -> None:
    filter = "$share/workers/jobs"
    with Node(tmp_path) as node:
        for number in range(2):
            with Paho(node.port, f"w{number}", clean=False, expiry=NEVER) as worker:
                worker.subscribe(filter, qos=qos)
        with Paho(node.port, "publisher") as publisher:
            publisher.publish("jobs", *PAYLOADS, qos=qos)
            node.stop(end)
        node.start()
        with (
            Paho(node.port, "w0", clean=False, expiry=NEVER, receive_maximum=5) as one,
            Paho(node.port, "w1", clean=False, expiry=NEVER, receive_maximum=5) as other,
        ):
            came = _receive([one, other], len(PAYLOADS))
            assert sorted(int(message.payload) for message in came) == sorted(int(payload) for payload in PAYLOADS)
            with Paho(node.port, "publisher") as publisher:
                publisher.publish("jobs", b"last", qos=qos)
            assert [message.payload for message in _receive([one, other], 1)] == [b"last"]


def test_a_worker_killed_again_and_again_with_the_node_loses_nothing(tmp_path: Path) -> None:
    filter = "$share/workers/jobs/#"
    done: Counter[bytes] = Counter()
    with Node(tmp_path) as node:
        for number in range(3):
            with Paho(node.port, f"w{number}", clean=False, expiry=NEVER) as worker:
                worker.subscribe(filter, qos=1)
        for round_ in range(4):
            workers = [Paho(node.port, f"w{n}", clean=False, expiry=NEVER, manual_ack=True) for n in range(3)]
            clean = Paho(node.port, "clean", manual_ack=True)
            clean.subscribe(filter, qos=1)
            with Paho(node.port, "publisher") as publisher:
                publisher.publish("jobs/1", *(b"%d %d" % (round_, n) for n in range(100)))
            for worker in workers:
                for _ in range(min(10, worker.unacknowledged.qsize())):
                    message = worker.unacknowledged.get(timeout=PATIENCE)
                    done[bytes(message.payload)] += 1
                    worker.acknowledge(message)
            if round_ % 2:
                workers[0].vanish()
            node.stop(signal.SIGKILL)
            for worker in [*workers, clean]:
                assert worker.ended.wait(PATIENCE)
                worker.close()
            node.start()
        expected = {b"%d %d" % (round_, n) for round_ in range(4) for n in range(100)}
        with Paho(node.port, "w1", clean=False, expiry=NEVER) as worker:
            while not expected <= done.keys():
                done.update(message.payload for message in worker.receive(1))
        assert done.keys() == expected

"""Real clients of every version have history replayed to them, and go on into what comes."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from tests.interop.clients import KINDS, NEVER, MosquittoSub, Paho
from tests.node import Node

PAYLOADS = [b"%d" % number for number in range(300)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_of_any_kind_and_version_has_it_replayed(node: Node, name: str, kind: str) -> None:
    if KINDS[kind].missing:
        pytest.skip(KINDS[kind].missing)
    with Paho(node.port, name) as publisher:
        publisher.publish(f"{name}/x", *PAYLOADS)
        viewer = KINDS[kind].subscribe(node.port, f"{name}v", f"$replay/ago=1h/{name}/#", 1)
        came = viewer.receive(len(PAYLOADS))
        publisher.publish(f"{name}/y", b"live")
        came += viewer.receive(1)
        viewer.close()
    assert [message.payload for message in came] == [*PAYLOADS, b"live"]
    assert [message.topic for message in came[-2:]] == [f"$replay/ago=1h/{name}/{level}" for level in "xy"]
    assert not any(message.retain for message in came)


@pytest.mark.parametrize("version", [4, 5])
def test_nothing_is_missing_and_nothing_comes_twice_while_it_is_published(node: Node, name: str, version: int) -> None:
    total = 3000
    with Paho(node.port, name, 4) as publisher, Paho(node.port, f"{name}v", version) as viewer:

        def publish() -> None:
            for start in range(0, total, 100):
                publisher.publish(name, *(b"%d" % number for number in range(start, start + 100)))

        thread = threading.Thread(target=publish)
        thread.start()
        assert viewer.subscribe(f"$replay/all/{name}", qos=1)[0] == 1
        came = [int(message.payload) for message in viewer.receive(total)]
        thread.join()
        assert came == list(range(total))


def test_a_plain_filter_is_replayed_first_and_each_message_says_which_it_is(node: Node, name: str) -> None:
    with Paho(node.port, name) as publisher, Paho(node.port, f"{name}v") as viewer:
        publisher.publish(name, *PAYLOADS)
        viewer.subscribe(name, qos=1, user_properties=[("replay", "last=3")])
        came = viewer.receive(3)
        assert [message.payload for message in came] == PAYLOADS[-3:]
        assert {message.topic for message in came} == {name}
        seqs = [int(dict(message.user_properties)["seq"]) for message in came]
        assert seqs == list(range(seqs[0], seqs[0] + 3))
        publisher.publish(name, b"live", qos=2)
        (live,) = viewer.receive(1)
        assert (live.payload, live.user_properties) == (b"live", ())


def test_mosquitto_sub_asks_for_it_by_a_user_property(node: Node, name: str) -> None:
    with Paho(node.port, name) as publisher:
        publisher.publish(name, *PAYLOADS)
        more = ("-D", "subscribe", "user-property", "replay", "all")
        with MosquittoSub(node.port, f"{name}m", 5, name, 1, *more) as viewer:
            assert [message.payload for message in viewer.receive(len(PAYLOADS))] == PAYLOADS
            publisher.publish(name, b"live")
            assert [message.payload for message in viewer.receive(1)] == [b"live"]


@pytest.mark.parametrize("version", [4, 5])
def test_what_can_not_be_replayed_is_refused_and_the_connection_goes_on(node: Node, name: str, version: int) -> None:
    with Paho(node.port, name, version) as viewer:
        refused = 0x8F if version == 5 else 0x80
        for words in ("sometimes", "time=2099-01-01T00:00:00Z", "seq=999999999999"):
            assert viewer.subscribe(f"$replay/{words}/#", qos=1) == [refused]
        assert viewer.subscribe(name, qos=1)[0] == 1


def test_history_is_there_after_the_node_was_killed(tmp_path: Path) -> None:
    with Node(tmp_path) as node:
        with Paho(node.port, "publisher") as publisher:
            publisher.publish("t", *PAYLOADS)
        with Paho(node.port, "v", clean=False, expiry=NEVER) as viewer:
            viewer.subscribe("t", qos=1, user_properties=[("replay", "all")])
            viewer.receive(len(PAYLOADS))
            node.stop(signal.SIGKILL)
        node.start()
        with Paho(node.port, "publisher") as publisher, Paho(node.port, "v", clean=False, expiry=NEVER) as viewer:
            assert viewer.session_present
            publisher.publish("t", b"new")
            assert [message.payload for message in viewer.receive(1)] == [b"new"]
            viewer.subscribe("$replay/all;until=now/t", qos=1)
            assert [message.payload for message in viewer.receive(len(PAYLOADS) + 1)] == [*PAYLOADS, b"new"]

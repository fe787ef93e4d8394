"""What outlives a connection: sessions, wills, and what was sent to those who were away; also past the node's death."""

from __future__ import annotations

import signal
import sqlite3
from pathlib import Path

import pytest

from tests.interop.clients import KINDS, NEVER, VERSIONS, Amqtt, Message, MosquittoSub, Paho, Will
from tests.node import Node, wait_until

every_version = pytest.mark.parametrize("version", VERSIONS, ids=VERSIONS.values())
either_end = pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=("SIGTERM", "SIGKILL"))

TAKEN_OVER = 0x8E
PAYLOADS = [b"%d" % number for number in range(200)]


def _restart(node: Node, end: signal.Signals) -> None:
    assert node.stop(end) == (0 if end == signal.SIGTERM else -signal.SIGKILL)
    node.start()


@every_version
@either_end
def test_an_absent_session_gets_across_a_restart_all_that_it_missed(
    tmp_path: Path, version: int, end: signal.Signals
) -> None:
    with Node(tmp_path) as node:
        with Paho(node.port, "subscriber", version, clean=False, expiry=NEVER) as subscriber:
            subscriber.subscribe("a/#")
        with Paho(node.port, "publisher", version) as publisher:
            publisher.publish("a/1", *PAYLOADS, qos=1)
            publisher.publish("a/2", *PAYLOADS, qos=2)
        _restart(node, end)
        with Paho(node.port, "publisher", version) as publisher:
            publisher.publish("a/1", b"later", qos=1)
            with Paho(node.port, "subscriber", version, clean=False, expiry=NEVER) as subscriber:
                assert subscriber.session_present == (version > 3)  # 3.1 can't say so
                publisher.publish("a/2", b"live", qos=2)
                got = subscriber.receive(2 * len(PAYLOADS) + 2)
        assert [m for m in got if m.topic == "a/1"] == [Message("a/1", each, 1) for each in [*PAYLOADS, b"later"]]
        assert [m for m in got if m.topic == "a/2"] == [Message("a/2", each, 2) for each in [*PAYLOADS, b"live"]]


@every_version
@either_end
def test_a_session_that_was_connected_goes_on_where_it_was(tmp_path: Path, version: int, end: signal.Signals) -> None:
    with Node(tmp_path) as node:
        subscriber = Paho(node.port, "subscriber", version, clean=False, expiry=NEVER)
        subscriber.subscribe("a")
        with Paho(node.port, "publisher", version) as publisher:
            publisher.publish("a", *PAYLOADS, qos=2)
            got = subscriber.receive(len(PAYLOADS))
            _restart(node, end)
        assert subscriber.ended.wait(30)
        subscriber.close()
        with (
            Paho(node.port, "publisher", version) as publisher,
            Paho(node.port, "subscriber", version, clean=False, expiry=NEVER) as subscriber,
        ):
            assert subscriber.session_present == (version > 3)
            publisher.publish("a", *PAYLOADS, b"end", qos=2)
            got += [message for message in subscriber.until(b"end") if message.qos == 2]
        # This receiver forgets its packet identifiers with its object, so it may see again what was under way.
        assert [message.payload for message in got][: len(PAYLOADS)] == PAYLOADS
        assert [message.payload for message in got][-len(PAYLOADS) :] == PAYLOADS


@either_end
def test_sessions_of_mosquitto_and_of_amqtt_outlive_a_restart(tmp_path: Path, end: signal.Signals) -> None:
    if missing := KINDS["mosquitto-5"].missing:
        pytest.skip(missing)
    with Node(tmp_path) as node:
        with MosquittoSub(node.port, "mosquitto", 5, "a", 2, "-c"), Amqtt(node.port, "amqtt", clean=False) as amqtt:
            amqtt.subscribe("a")
        with Paho(node.port, "publisher") as publisher:
            publisher.publish("a", *PAYLOADS, qos=1)
            publisher.publish("a", b"two", qos=2)
        _restart(node, end)
        expected = [*(Message("a", each, 1) for each in PAYLOADS), Message("a", b"two", 2)]
        with MosquittoSub(node.port, "mosquitto", 5, "a", 2, "-c") as mosquitto:
            assert mosquitto.receive(len(expected)) == expected
        with Amqtt(node.port, "amqtt", clean=False) as amqtt:
            assert amqtt.receive(len(expected)) == expected


@either_end
def test_a_retained_message_outlives_a_restart_with_its_properties(tmp_path: Path, end: signal.Signals) -> None:
    with Node(tmp_path) as node:
        with Paho(node.port, "publisher") as publisher:
            publisher.publish("a/kept", b"old", b"kept", retain=True, user_properties=[("unit", "°C")])
            publisher.publish("a/zero", b"also", qos=0, retain=True)
            publisher.publish("a/cleared", b"x", retain=True)
            publisher.publish("a/cleared", b"", retain=True)
            publisher.publish("b", b"a commit after it", qos=1)
        _restart(node, end)
        with Paho(node.port, "subscriber") as subscriber:
            subscriber.subscribe("a/#")
            assert set(subscriber.receive(2)) == {
                Message("a/kept", b"kept", 1, True, (("unit", "°C"),)),
                Message("a/zero", b"also", 0, True),
            }
            subscriber.publish("a/end", b"end")
            assert subscriber.until(b"end") == []


@every_version
def test_a_clean_start_discards_what_there_was(node: Node, name: str, version: int) -> None:
    with Paho(node.port, f"{name}s", version, clean=False, expiry=NEVER) as subscriber:
        assert not subscriber.session_present
        subscriber.subscribe(f"{name}/old", f"{name}/end")
    with Paho(node.port, f"{name}p", version) as publisher:
        publisher.publish(f"{name}/old", b"missed")
        with Paho(node.port, f"{name}s", version, clean=True, expiry=NEVER) as subscriber:
            assert not subscriber.session_present
            subscriber.subscribe(f"{name}/end")
            publisher.publish(f"{name}/old", b"unheard")
            publisher.publish(f"{name}/end", b"end")
            assert subscriber.until(b"end") == []


@pytest.mark.parametrize(("expiry", "kept"), [(0, False), (60, True), (NEVER, True)])
def test_a_session_is_kept_for_as_long_as_its_expiry_interval_says(
    node: Node, name: str, expiry: int, kept: bool
) -> None:
    Paho(node.port, name, clean=False, expiry=expiry).close()
    with Paho(node.port, name, clean=False) as client:
        assert client.session_present == kept


def test_a_session_whose_time_is_over_is_gone_from_the_disk_too(tmp_path: Path) -> None:
    with Node(tmp_path) as node:
        with Paho(node.port, "short", clean=False, expiry=1) as client:
            client.subscribe("a")
        with sqlite3.connect(f"file:{node.data / 'berm.db'}?mode=ro", uri=True) as database:
            wait_until("the session is deleted", lambda: not database.execute("SELECT * FROM sessions").fetchall())
            assert database.execute("SELECT * FROM subscriptions").fetchall() == []
        database.close()
        with Paho(node.port, "short", clean=False) as client:
            assert not client.session_present


@every_version
def test_a_second_connection_takes_the_session_over(node: Node, name: str, version: int) -> None:
    with Paho(node.port, f"{name}p", version) as publisher:
        first = Paho(node.port, f"{name}s", version, clean=False, expiry=NEVER)
        first.subscribe(name)
        publisher.publish(name, b"to the first", qos=2)
        assert first.receive(1) == [Message(name, b"to the first", 2)]
        with Paho(node.port, f"{name}s", version, clean=False, expiry=NEVER) as second:
            assert second.session_present == (version > 3)
            assert first.ended.wait(30)
            if version == 5:
                assert first.end_reason == TAKEN_OVER  # [MQTT-3.1.4-3]
            publisher.publish(name, b"to the second", qos=2)
            assert second.receive(1)[-1].payload == b"to the second"
        first.close()


@every_version
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_will_is_published_when_the_client_vanishes(node: Node, name: str, version: int, qos: int) -> None:
    with Paho(node.port, f"{name}s", version) as subscriber:
        subscriber.subscribe(f"{name}/#")
        device = Paho(node.port, f"{name}d", version, will=Will(f"{name}/will", b"lost", qos, retain=True))
        device.vanish()
        assert subscriber.receive(1) == [Message(f"{name}/will", b"lost", qos)]
        with Paho(node.port, f"{name}l", version) as late:
            late.subscribe(f"{name}/will")
            assert late.receive(1) == [Message(f"{name}/will", b"lost", qos, retain=True)]


@every_version
def test_a_will_is_dropped_when_the_client_says_goodbye(node: Node, name: str, version: int) -> None:
    with Paho(node.port, f"{name}s", version) as subscriber:
        subscriber.subscribe(f"{name}/#")
        Paho(node.port, f"{name}d", version, will=Will(f"{name}/will", b"lost")).close()
        subscriber.publish(f"{name}/end", b"end")
        assert subscriber.until(b"end") == []


def test_a_will_waits_for_its_delay_and_is_withdrawn_when_the_client_is_back(node: Node, name: str) -> None:
    def device(number: int, delay: int) -> Paho:
        will = Will(f"{name}/{number}", b"lost", delay=delay)
        return Paho(node.port, f"{name}d{number}", clean=False, expiry=NEVER, will=will)

    with Paho(node.port, f"{name}s") as subscriber:
        subscriber.subscribe(f"{name}/#")
        device(1, 2).vanish()
        device(2, 1).vanish()
        device(1, 2).close()
        assert subscriber.receive(1)[0].topic == f"{name}/2"
        device(3, 2).vanish()
        assert subscriber.receive(1)[0].topic == f"{name}/3"  # by now that of device 1 would have come


@either_end
def test_the_will_of_a_client_that_never_comes_back_outlives_a_restart(tmp_path: Path, end: signal.Signals) -> None:
    with Node(tmp_path) as node:
        with Paho(node.port, "subscriber", clean=False, expiry=NEVER) as subscriber:
            subscriber.subscribe("will")
        device = Paho(node.port, "device", will=Will("will", b"lost", 2))
        with Paho(node.port, "publisher") as publisher:
            publisher.publish("a", b"a commit after it")
        _restart(node, end)
        assert device.ended.wait(30)
        device.close()
        with Paho(node.port, "subscriber", clean=False, expiry=NEVER) as subscriber:
            assert subscriber.receive(1) == [Message("will", b"lost", 2)]


@pytest.mark.parametrize("qos", [1, 2])
def test_no_more_than_receive_maximum_is_under_way_to_a_client(node: Node, name: str, qos: int) -> None:
    with (
        Paho(node.port, f"{name}s", receive_maximum=3, manual_ack=True) as subscriber,
        Paho(node.port, f"{name}p") as publisher,
    ):
        subscriber.subscribe(name)
        publisher.publish(name, *PAYLOADS[:10], qos=qos)
        seen: list[bytes] = []
        for number in range(3, 11):
            seen += [message.payload for message in subscriber.receive(3 if number == 3 else 1)]
            subscriber.subscribe(f"{name}/{number}")  # whatever was sent before the SUBACK has arrived by now
            assert seen == PAYLOADS[:number]
            assert subscriber.waiting == 0
            subscriber.acknowledge(subscriber.unacknowledged.get(timeout=30))


def test_what_was_not_acknowledged_comes_again_after_a_reconnect(node: Node, name: str) -> None:
    client = Paho(node.port, f"{name}s", clean=False, expiry=NEVER, manual_ack=True)
    client.subscribe(name)
    with Paho(node.port, f"{name}p") as publisher:
        publisher.publish(name, b"1", b"2", b"3", qos=1)
    client.receive(3)
    client.acknowledge(client.unacknowledged.get(timeout=30))
    client.subscribe(f"{name}/x")  # the broker has the acknowledgement by now
    client.vanish()
    with Paho(node.port, f"{name}s", clean=False, expiry=NEVER) as client:
        assert [message.payload for message in client.receive(2)] == [b"2", b"3"]

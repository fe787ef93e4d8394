"""Wills: published when a connection ends otherwise than by a DISCONNECT, no earlier than asked, and never twice."""

from __future__ import annotations

import pytest

from broker.listener import Limits
from broker.mqtt.packets import Connack, Connect, Pingreq, Pingresp, Publish, Will
from broker.mqtt.properties import Properties, Property
from broker.mqtt.reason import Reason
from storage.interface import WILLS
from tests.broker.helpers import FOREVER, Client, Node

VERSIONS = pytest.mark.parametrize("version", [3, 4, 5])


def will(qos: int = 1, retain: bool = False, delay: int = 0, *properties: tuple[int, int | tuple[str, str]]) -> Will:
    delayed: Properties = ((Property.WILL_DELAY_INTERVAL, delay),) if delay else ()
    return Will("will", b"gone", qos, retain, (*delayed, *properties))


def wills(watcher: Client) -> int:
    return len(watcher.acknowledge())


@VERSIONS
def test_a_lost_connection_leaves_its_will(version: int) -> None:
    """[MQTT-3.1.2-7] [MQTT-3.1.2-8]"""
    node = Node()
    watcher = node.subscriber("will")
    client = node.connect("c", version, will=will())
    client.lose()
    assert watcher.take(Publish) == []
    assert [(m.topic, m.payload, m.qos) for m in watcher.acknowledge()] == [("will", b"gone", 1)]
    assert node.engine.rows(WILLS) == []


@VERSIONS
def test_a_normal_disconnect_takes_the_will_away(version: int) -> None:
    """[MQTT-3.14.4-3] [MQTT-3.1.2-10]"""
    node = Node()
    watcher = node.subscriber("will")
    client = node.connect("c", version, will=will())
    node.commit()
    assert len(node.engine.rows(WILLS)) == 1
    client.disconnect()
    assert wills(watcher) == 0
    assert node.engine.rows(WILLS) == []
    node.crash()
    node.tick()
    assert wills(node.subscriber("will")) == 0


@pytest.mark.parametrize("reason", [Reason.DISCONNECT_WITH_WILL_MESSAGE, Reason.UNSPECIFIED_ERROR])
def test_a_disconnect_for_another_reason_leaves_the_will(reason: Reason) -> None:
    node = Node()
    watcher = node.subscriber("will")
    node.connect("c", will=will()).disconnect(reason)
    assert wills(watcher) == 1


@VERSIONS
def test_a_client_that_falls_silent_leaves_its_will(version: int) -> None:
    """[MQTT-3.1.2-22]"""
    node = Node()
    watcher = node.subscriber("will")
    node.connect("c", version, keep_alive=2, will=will())
    node.tick(4)
    assert wills(watcher) == 1


def test_a_client_that_breaks_the_protocol_leaves_its_will() -> None:
    node = Node()
    watcher = node.subscriber("will")
    node.connect("c", will=will()).send_bytes(b"\x00\x00")
    assert wills(watcher) == 1


def test_a_connect_that_is_refused_leaves_no_will() -> None:
    node = Node(Limits(max_connections=1))
    watcher = node.subscriber("will")
    client = node.open()
    client.send(Connect("c", 5, True, 0, will(), None, None))
    assert not client.open
    assert wills(watcher) == 0


@pytest.mark.parametrize("keep", [True, False])
def test_a_takeover_publishes_a_will_without_delay_once(keep: bool) -> None:
    """[MQTT-3.1.4-3]"""
    node = Node()
    watcher = node.subscriber("will")
    node.connect("c", clean=False, expiry=FOREVER if keep else 0, will=will())
    node.connect("c", clean=False, expiry=FOREVER)
    assert wills(watcher) == 1


def test_a_takeover_that_goes_on_with_the_session_withdraws_a_delayed_will() -> None:
    """[MQTT-3.1.3-9]"""
    node = Node()
    watcher = node.subscriber("will")
    node.connect("c", expiry=FOREVER, will=will(1, False, 10))
    node.connect("c", clean=False, expiry=FOREVER)
    node.tick(100)
    assert wills(watcher) == 0
    assert node.engine.rows(WILLS) == []


def test_a_takeover_that_ends_the_session_publishes_a_delayed_will_at_once() -> None:
    """[MQTT-3.1.2-8]"""
    node = Node()
    watcher = node.subscriber("will")
    node.connect("c", expiry=FOREVER, will=will(1, False, 10))
    node.connect("c", clean=True, expiry=FOREVER)
    assert wills(watcher) == 1
    node.tick(100)
    assert wills(watcher) == 0


def test_a_delayed_will_waits_and_a_client_that_returns_in_time_withdraws_it() -> None:
    """[MQTT-3.1.3-9]"""
    node = Node()
    watcher = node.subscriber("will")
    client = node.connect("c", expiry=FOREVER, will=will(1, False, 10))
    client.lose()
    node.tick(9)
    assert wills(watcher) == 0
    client = node.connect("c", clean=False, expiry=FOREVER, will=will(1, False, 10))
    node.tick(100)
    assert wills(watcher) == 0
    client.lose()
    node.tick(9)
    assert wills(watcher) == 0
    node.tick(1)
    assert wills(watcher) == 1
    node.tick(100)
    assert wills(watcher) == 0


def test_a_delayed_will_does_not_wait_longer_than_the_session_lasts() -> None:
    """[MQTT-3.1.2-8]"""
    node = Node()
    watcher = node.subscriber("will")
    node.connect("a", expiry=5, will=will(1, False, 1000)).lose()
    node.connect("b", will=will(1, False, 1000)).lose()
    assert wills(watcher) == 1
    node.tick(6)
    assert wills(watcher) == 1


def test_the_will_of_a_session_that_a_disconnect_ends_does_not_wait() -> None:
    node = Node()
    watcher = node.subscriber("will")
    client = node.connect("c", expiry=FOREVER, will=will(1, False, 1000))
    client.disconnect(Reason.DISCONNECT_WITH_WILL_MESSAGE, ((Property.SESSION_EXPIRY_INTERVAL, 0),))
    assert wills(watcher) == 1


def test_a_delayed_will_survives_a_restart_and_keeps_its_time() -> None:
    node = Node()
    node.connect("c", expiry=FOREVER, will=will(1, False, 10, (Property.USER_PROPERTY, ("k", "v")))).lose()
    node.tick(4)
    node.commit()
    node.crash()
    watcher = node.subscriber("will")
    node.tick(5)
    assert wills(watcher) == 0
    node.tick(1)
    (message,) = watcher.acknowledge()
    assert (message.payload, message.properties) == (b"gone", ((Property.USER_PROPERTY, ("k", "v")),))
    node.crash()
    watcher = node.subscriber("will")
    node.tick(100)
    assert wills(watcher) == 0


@pytest.mark.parametrize("delay", [0, 10])
def test_a_client_that_was_connected_when_the_node_crashed_leaves_its_will(delay: int) -> None:
    node = Node()
    watcher = node.keeper("will")
    node.connect("c", expiry=FOREVER, will=will(1, False, delay))
    node.commit()
    watcher.lose()
    node.crash()
    watcher = node.resume("k")
    node.tick(delay)
    assert wills(watcher) == 1


def test_a_node_that_stops_publishes_the_wills_of_its_clients() -> None:
    node = Node()
    node.keeper("will").lose()
    node.connect("c", will=will())
    node.restart()
    assert wills(node.resume("k")) == 1


def test_a_will_can_be_retained() -> None:
    """[MQTT-3.1.2-14] [MQTT-3.1.2-15]"""
    node = Node()
    node.connect("a", will=will(1, True)).lose()
    node.commit()
    node.crash()
    (message,) = node.subscriber("will").acknowledge()
    assert (message.payload, message.retain) == (b"gone", True)
    node = Node()
    node.connect("a", will=will(1, False)).lose()
    node.commit()
    assert node.subscriber("will").acknowledge() == []


def test_a_will_expires_from_when_it_is_published() -> None:
    node = Node()
    watcher = node.keeper("will")
    watcher.lose()
    node.connect("c", expiry=FOREVER, will=will(1, False, 10, (Property.MESSAGE_EXPIRY_INTERVAL, 60))).lose()
    node.tick(10)
    node.commit()
    node.tick(20)
    (message,) = node.resume("k").acknowledge()
    assert message.properties == ((Property.MESSAGE_EXPIRY_INTERVAL, 40),)


def test_a_will_whose_expiry_interval_is_0_expires_at_once() -> None:
    node = Node()
    watcher = node.keeper("will")
    watcher.lose()
    node.connect("c", will=will(1, False, 0, (Property.MESSAGE_EXPIRY_INTERVAL, 0))).lose()
    node.commit()
    assert node.resume("k").acknowledge() == []
    assert node.hub.dropped_expired == 1


def test_the_will_is_that_of_the_last_connect() -> None:
    node = Node()
    watcher = node.subscriber("will")
    node.connect("c", will=will()).disconnect()
    node.connect("c").lose()
    assert wills(watcher) == 0


def test_a_will_of_qos_0_goes_at_once() -> None:
    node = Node()
    watcher = node.subscriber("will")
    node.connect("c", will=will(0)).lose()
    assert len(watcher.take(Publish)) == 1


def test_the_will_of_a_session_that_ended_with_its_node_does_not_wait_for_its_delay() -> None:
    """[MQTT-3.1.2-8]"""
    node = Node()
    node.keeper("will", client_id="w").lose()
    node.connect("ended", will=will(1, False, 60))
    node.connect("kept", expiry=FOREVER, will=will(1, False, 60))
    node.tick()
    node.commit()
    node.crash()
    assert [message.payload for message in node.resume("w").acknowledge()] == [b"gone"]
    assert node.engine.keys(WILLS) == ["kept"]


@VERSIONS
def test_a_client_is_told_that_it_is_connected_once_its_will_is_stored(version: int) -> None:
    """[MQTT-3.1.2-7]"""
    node = Node()
    client = node.connect("c", version, will=will())
    client.send(Pingreq())
    assert client.take_all() == []
    node.commit()
    assert [type(packet) for packet in client.take_all()] == [Connack, Pingresp]
    assert len(node.engine.rows(WILLS)) == 1

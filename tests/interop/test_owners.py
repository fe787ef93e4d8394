"""A session belongs to the user that made it, whatever others know of it. With paho-mqtt and a password file."""

from __future__ import annotations

import threading
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from berm.passwd import set_password
from broker.mqtt.reason import Reason
from tests.clients import end
from tests.interop.clients import NEVER, VERSIONS, Paho, Will
from tests.node import HOST, PATIENCE, Node

CONFIG = """
[mqtt.access]
password_file = "passwords"
anonymous = true
"""
ALICE = ("alice", "wonderland")
BOB = ("bob", "builder")

every_version = pytest.mark.parametrize("version", VERSIONS, ids=VERSIONS.values())


def _guarded(directory: Path) -> Node:
    for username, password in (ALICE, BOB):
        set_password(directory / "passwords", username, password, scram=False)
    return Node(directory, CONFIG)


def _refusal(port: int, version: int, login: tuple[str, str] | None, clean: bool) -> int:
    """The reason code of the CONNACK that refuses this client."""
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        "press-7",
        clean_session=None if version == 5 else clean,
        protocol=MQTTProtocolVersion(version),
        reconnect_on_failure=False,
    )
    if login is not None:
        client.username_pw_set(*login)
    codes: list[int] = []
    answered = threading.Event()

    def on_connect(client: paho.Client, data: object, flags: object, reason: ReasonCode, more: object) -> None:
        codes.append(reason.value)
        answered.set()

    client.on_connect = on_connect
    if version == 5:
        asked = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho types all but its constructor
        asked.SessionExpiryInterval = NEVER
        client.connect(HOST, port, clean_start=clean, properties=asked)
    else:
        client.connect(HOST, port)
    client.loop_start()
    assert answered.wait(PATIENCE)
    client.disconnect()
    end(client)
    return codes[0]


@every_version
def test_nobody_but_its_user_gets_a_session_or_ends_it_before_and_after_a_restart(tmp_path: Path, version: int) -> None:
    with _guarded(tmp_path) as node:
        others = [(login, clean) for login in (BOB, None) for clean in (True, False)]
        alice = Paho(node.port, "press-7", version, clean=False, expiry=NEVER, login=ALICE)
        alice.subscribe("orders")
        for login, clean in others:
            assert _refusal(node.port, version, login, clean) == Reason.NOT_AUTHORIZED
        assert not alice.ended.is_set()
        with Paho(node.port, "planner", version) as planner:
            planner.publish("orders", b"live")
            assert [message.payload for message in alice.receive(1)] == [b"live"]
            alice.close()
            planner.publish("orders", b"missed")
        for _ in range(2):
            for login, clean in others:
                assert _refusal(node.port, version, login, clean) == Reason.NOT_AUTHORIZED
            node.kill()
            node.start()
        with Paho(node.port, "press-7", version, clean=False, expiry=NEVER, login=ALICE) as alice:
            assert [message.payload for message in alice.receive(1)] == [b"missed"]
        assert node.stderr.count("the session of client 'press-7' is user 'alice''s; this is user 'bob'") == 6
        assert node.stderr.count("the session of client 'press-7' is user 'alice''s; this is nobody in particular") == 6


def test_nobody_but_its_user_withdraws_a_will(tmp_path: Path) -> None:
    with _guarded(tmp_path) as node, Paho(node.port, "watcher") as watcher:
        watcher.subscribe("state")
        will = Will("state", b"gone", delay=1)
        Paho(node.port, "press-7", clean=False, expiry=NEVER, will=will, login=ALICE).vanish()
        assert _refusal(node.port, 5, BOB, True) == Reason.NOT_AUTHORIZED
        assert [message.payload for message in watcher.receive(1)] == [b"gone"]


@pytest.mark.parametrize(("version", "reason"), [(5, Reason.QUOTA_EXCEEDED), (4, Reason.SERVER_UNAVAILABLE)])
def test_one_session_too_many_is_refused_and_those_that_are_there_go_on(
    tmp_path: Path, version: int, reason: Reason
) -> None:
    with Node(tmp_path, "[mqtt]\nmax_sessions = 1") as node:
        with Paho(node.port, "first", version, clean=False, expiry=NEVER) as first:
            first.subscribe("orders")
        assert _refusal(node.port, version, None, clean=False) == reason
        with Paho(node.port, "planner", version) as planner:
            planner.publish("orders", b"missed")
        with Paho(node.port, "first", version, clean=False, expiry=NEVER) as first:
            assert [message.payload for message in first.receive(1)] == [b"missed"]

"""A node goes on with the data of an earlier Berm, and what only reads it needs no node for that."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from broker.mqtt.packets import Connack, Connect, Pubcomp, Publish, Pubrec, Pubrel
from broker.mqtt.properties import Property
from storage.schema import VERSION
from tests.berm.helpers import berm
from tests.berm.test_access import Client
from tests.interop.clients import NEVER, Message, Paho
from tests.node import Node
from tests.storage.versions import put


def _node(directory: Path) -> Node:
    node = Node(directory, f"[mqtt]\nmax_session_expiry = {NEVER}\n")
    node.data.mkdir()
    put(node.data, 1)
    return node


def test_clients_of_an_earlier_berm_get_what_they_are_owed(tmp_path: Path) -> None:
    with _node(tmp_path) as node:
        assert f"brought data/berm.db from schema 1 to {VERSION}" in node.stderr
        with Paho(node.port, "panel", 4, clean=False) as panel:
            assert panel.session_present
            got = panel.receive(9)
        assert [(each.topic, each.qos) for each in got] == [
            *[("plant/oven/temperature", 1)] * 3,
            *[("plant/press/order", 1)] * 3,
            ("plant/press/plan", 1),
            *[("alarm/oven", 2)] * 2,
        ]
        with Paho(node.port, "new") as new:
            new.subscribe("plant/+/state", "plant/press/plan")
            assert sorted(new.receive(2), key=lambda each: each.topic) == [
                Message("plant/oven/state", b"hot", 0, True),
                Message("plant/press/plan", b'{"parts": 12}', 1, True),
            ]


def test_messages_on_their_way_go_on_where_they_were(tmp_path: Path) -> None:
    with _node(tmp_path) as node:
        press = Client(node.port)
        expiry = ((Property.SESSION_EXPIRY_INTERVAL, NEVER),)
        connack = press.ask(Connect("press-7", 5, False, 0, None, None, None, expiry))
        assert isinstance(connack, Connack)
        assert connack.session_present
        came = [press.next() for _ in range(6)]
        assert [packet for packet in came if isinstance(packet, Pubrel)] == [Pubrel(4)]
        messages = sorted((each for each in came if isinstance(each, Publish)), key=lambda each: each.packet_id)
        assert [(each.packet_id, each.qos, each.dup, each.payload) for each in messages] == [
            (2, 1, True, b"22"),
            (3, 1, True, b"23"),
            (5, 2, True, b"\x00order 5\xff"),
            (6, 2, True, b"\x00order 6\xff"),
            (7, 1, True, b'{"parts": 12}'),
        ]
        press.send(Pubcomp(4))
        press.close()
        gauge = Client(node.port)
        gauge.ask(Connect("gauge", 5, False, 0, None, None, None, expiry))
        again = Publish("alarm/oven", b"it's fine again; \xe2\x9c\x93", 2, False, True, 9)
        assert gauge.ask(again) == Pubrec(9)
        assert gauge.ask(Pubrel(9)) == Pubcomp(9)
        gauge.close()
        assert node.stop() == 0
    lines = berm("replay", "--data", "data", "--topic", "alarm/oven", cwd=tmp_path).stdout.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [9, 10], "a duplicate is no new event"


def test_what_only_reads_an_earlier_version_works_and_leaves_it_as_it_is(tmp_path: Path) -> None:
    path = put(tmp_path, 1)
    replayed = berm("replay", "--data", ".", "--topic", "plant/oven/#", cwd=tmp_path)
    assert replayed.returncode == 0, replayed.stderr
    assert [json.loads(line)["payload"] for line in replayed.stdout.splitlines()] == ["21", "22", "23", "hot"]
    told = berm("status", "--data", ".", "--json", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    status = json.loads(told.stdout)
    assert (status["sessions"], status["last_seq"], status["node"]) == (4, 10, "edge")
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as tool:
        assert tool.execute("PRAGMA user_version").fetchone() == (1,)
        assert len(tool.execute("SELECT * FROM sessions").fetchone()) == 8

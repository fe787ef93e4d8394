"""A node that encrypts: nothing of a payload is anywhere on the disk, and everything is there for who has the key."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import orjson
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions
from zstandard import ZstdDecompressor, ZstdError

from berm.keys import make_key_file
from storage.keysource import COPY, KEYS
from tests.berm.helpers import Client, berm
from tests.clients import end
from tests.node import PATIENCE, Node, wait_until

CONFIG: Final = """
[storage]
segment_bytes = 30_000
[[processors]]
file = "plant.py"
"""
KEY: Final = '[encryption]\nkey = "file:key"\n'
PLANT: Final = """
from processors import Event, Message, Processors
from processors import aggregates as agg

plant = Processors()

@plant.tumbling("state/#", agg.last, seconds=86400, to="stats/{key}")
def last(event: Event) -> str:
    return event.payload.decode()

@plant.map("derive/#")
def derived(event: Event) -> Message:
    return Message("derived", b"derived-" + event.payload)

@plant.map("fail/#")
def failing(event: Event) -> Message:
    raise ValueError("it can't be used: " + event.payload.decode())
"""

ZSTANDARD: Final = b"\x28\xb5\x2f\xfd"
KINDS: Final = (
    "qos0",
    "qos1",
    "qos2",
    "sealed",
    "retained",
    "retained-property",
    "user-property",
    "correlation",
    "response",
    "in-flight",
    "unreleased",
    "state",
    "derived-from",
    "dead",
    "will",
    "will-property",
    "delayed-will",
)
"""What is somewhere in the data directory of a node after `play`."""


def secret(kind: str) -> str:
    return f"<{kind}>7b1fd0c3"


def told(data: Path) -> dict[str, set[str]]:
    """Of which secrets something can be read in a directory, and in which files."""
    found: dict[str, set[str]] = {}
    for path in data.rglob("*"):
        try:
            content = path.read_bytes() if path.is_file() else b""
        except FileNotFoundError:
            continue  # it was there a moment ago
        content = b"".join((content, *_decompressed(content)))
        for kind in KINDS:
            for form in ("utf-8", "utf-16-le", "utf-16-be"):
                if secret(kind).encode(form) in content:
                    found.setdefault(kind, set()).add(path.name)
    return found


def _decompressed(content: bytes) -> Iterator[bytes]:
    """Whatever is in a file that Zstandard has compressed."""
    at = content.find(ZSTANDARD)
    while at >= 0:
        with suppress(ZstdError):
            yield ZstdDecompressor().decompressobj().decompress(content[at : at + (1 << 20)])
        at = content.find(ZSTANDARD, at + 1)


def properties(packet: int, **values: object) -> Properties:
    made = Properties(packet)  # type: ignore[no-untyped-call]  # paho leaves it untyped
    for name, value in values.items():
        setattr(made, name, value)
    return made


@contextmanager
def device(
    node: Node, client_id: str, *, delay: int = 0, will: bool = True, manual_ack: bool = False
) -> Iterator[paho.Client]:
    """A client of a persistent session with a will; its connection ends without a DISCONNECT."""
    client = paho.Client(
        CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv5, manual_ack=manual_ack
    )
    if will:
        client.will_set(
            f"wills/{client_id}",
            secret(client_id),
            1,
            properties=properties(
                PacketTypes.WILLMESSAGE, WillDelayInterval=delay, UserProperty=("why", secret("will-property"))
            ),
        )
    connected = threading.Event()
    client.on_connect = lambda *_: connected.set()
    client.connect(
        "127.0.0.1",
        node.port,
        clean_start=False,
        properties=properties(PacketTypes.CONNECT, SessionExpiryInterval=3600),
    )
    client.loop_start()
    try:
        assert connected.wait(PATIENCE)
        yield client
    finally:
        sock = client.socket()
        client.loop_stop()
        if isinstance(sock, socket.socket):
            sock.close()
        end(client)


def publish(client: paho.Client, topic: str, kind: str, qos: int = 1, *, retain: bool = False, **more: object) -> None:
    sent = client.publish(topic, secret(kind), qos, retain, properties(PacketTypes.PUBLISH, **more))
    sent.wait_for_publish(PATIENCE)
    assert sent.is_published()


@contextmanager
def play(node: Node) -> Iterator[None]:
    """Have a node keep everything that there is to be kept, and go on with clients that are connected."""
    with ExitStack() as clients:
        slow = clients.enter_context(device(node, "slow", will=False, manual_ack=True))
        subscribed = threading.Event()
        came = threading.Event()
        slow.on_subscribe = lambda *_: subscribed.set()
        slow.on_message = lambda *_: came.set()
        slow.subscribe([("in-flight", SubscribeOptions(1))])
        assert subscribed.wait(PATIENCE)
        with device(node, "delayed-will", delay=3600) as gone:
            publish(gone, "plant/0", "qos0", 0)
        client = clients.enter_context(device(node, "will"))
        for _ in range(400):
            client.publish("plant/1", f"{secret('sealed')} {os.urandom(40).hex()}", 1)
        publish(client, "plant/2", "qos1")
        publish(client, "plant/3", "qos2", 2)
        publish(client, "kept", "retained", retain=True, UserProperty=("why", secret("retained-property")))
        publish(client, "plant/4", "qos1", UserProperty=("why", secret("user-property")))
        publish(client, "plant/5", "qos1", CorrelationData=secret("correlation").encode())
        publish(client, "plant/6", "qos1", ResponseTopic=secret("response"))
        publish(client, "in-flight", "in-flight")
        assert came.wait(PATIENCE)
        publish(client, "state/1", "state")
        publish(client, "derive/1", "derived-from")
        publish(client, "fail/1", "dead")
        with unreleased(node):
            wait_until("the oldest part is sealed", lambda: any(node.data.glob("segments/*.segment")))
            with Client(node.port, "watch") as watch:
                watch.subscribe("derived")
                watch.subscribe("$dead/#")
                publish(client, "derive/2", "derived-from")
                publish(client, "fail/2", "dead")
                watch.wait_for({f"derived-{secret('derived-from')}".encode()})
                wait_until("what fails has its place", lambda: len(set(watch.payloads)) > 1)
            yield


@contextmanager
def unreleased(node: Node) -> Iterator[None]:
    """A QoS 2 message of which the PUBREL never comes."""
    text = secret("unreleased").encode()
    with socket.create_connection(("127.0.0.1", node.port), PATIENCE) as connection:
        connection.sendall(b"\x10\x0f\x00\x04MQTT\x04\x00\x00\x3c\x00\x03two")
        assert connection.recv(4) == b"\x20\x02\x00\x00"
        body = b"\x00\x07plant/7\x00\x01" + text
        connection.sendall(bytes([0x34, len(body)]) + body)
        assert connection.recv(4) == b"\x50\x02\x00\x01"
        yield


@pytest.fixture
def place(tmp_path: Path) -> Path:
    make_key_file(tmp_path / "key")
    (tmp_path / "plant.py").write_text(PLANT)
    return tmp_path


def history(place: Path, *arguments: str) -> list[bytes]:
    """The payloads of the log, as `berm replay` prints them."""
    done = berm("replay", *arguments, cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    return [str(orjson.loads(line)["payload"]).encode() for line in done.stdout.splitlines()]


def test_no_plaintext_of_a_payload_or_a_property_is_anywhere_in_the_data_directory(place: Path) -> None:
    with Node(place, CONFIG + KEY) as node:
        with play(node):
            assert told(node.data) == {}, "while it runs"
            node.stop(signal.SIGKILL)
        assert told(node.data) == {}, "after a kill"
        assert (node.data / "berm.db-wal").stat().st_size > 0
        texts = history(place)
        assert {secret(kind).encode() for kind in ("qos0", "qos1", "qos2", "retained", "dead", "unreleased")} <= {
            *texts
        }
        node.start()
        with Client(node.port, "later") as later:
            later.subscribe("kept")
            later.wait_for({secret("retained").encode()})
        assert told(node.data) == {}, "once it has taken up its state"
        assert node.stop() == 0
        assert told(node.data) == {}, "after a stop"
        assert {*texts, secret("will").encode()} <= {*history(place)}
        assert "lost" not in node.stderr


def test_the_search_finds_everything_where_nothing_is_encrypted(place: Path) -> None:
    with Node(place, CONFIG) as node:
        with play(node):
            node.stop(signal.SIGKILL)
        found = told(node.data)
        assert {*found} == {*KINDS}
        assert any(name.endswith(".segment") for name in found["sealed"])


def test_new_keys_are_taken_up_beside_a_running_node_and_everything_stays_readable(place: Path) -> None:
    with Node(place, CONFIG + KEY) as node, Client(node.port, "device") as client:
        client.publish("plant/1", b"before", qos=1, retain=True)
        assert berm("keys", "rotate", cwd=place).returncode == 0
        wait_until("the node has the new data key", lambda: "data key 2 encrypts from now on" in node.stderr)
        client.publish("plant/2", *(os.urandom(60).hex().encode() for _ in range(400)))
        wait_until("something is sealed", lambda: any(node.data.glob("segments/*.segment")))
        (place / "key").rename(place / "key.old")
        make_key_file(place / "key")
        rewrapped = berm("keys", "rewrap", "--from", "file:key.old", cwd=place)
        assert rewrapped.returncode == 0, rewrapped.stderr
        node.process.send_signal(signal.SIGHUP)
        client.publish("plant/3", b"after")
        texts = history(place)
        assert (texts[0], texts[-1], len(texts)) == (b"before", b"after", 402)
        assert node.stop() == 0
        (place / "key.old").unlink()
        node.start()
        with Client(node.port, "later") as later:
            later.subscribe("plant/1")
            later.wait_for({b"before"})
        node.stop(signal.SIGKILL)
        assert history(place)[:402] == texts
        assert "ERROR" not in node.stderr


def test_keys_that_can_not_be_read_are_told_once_and_the_node_goes_on(place: Path) -> None:
    with Node(place, KEY) as node, Client(node.port, "device") as client:
        for name in (KEYS, COPY):
            (node.data / name).rename(place / name)
        wait_until("it says so", lambda: "the keys that the node has go on" in node.stderr)
        client.publish("plant/1", b"x")
        for name in (KEYS, COPY):
            (place / name).rename(node.data / name)
        assert berm("keys", "rotate", cwd=place).returncode == 0
        wait_until("the node has the new data key", lambda: "data key 2 encrypts from now on" in node.stderr)
        assert node.stderr.count("the keys that the node has go on") == 1
        assert node.stop() == 0


def test_a_wrong_key_or_none_is_one_line_and_changes_nothing(place: Path) -> None:
    with Node(place, KEY) as node:
        with Client(node.port, "device") as client:
            client.publish("plant/1", b"x")
        assert node.stop() == 0
        make_key_file(place / "other")
        before = contents(node.data)
        for setting, problem in (
            ("encryption.key='file:other'", "is encrypted with the operator's key"),
            ("encryption.key='env:NOT_SET'", "the environment variable NOT_SET is not set"),
            ("encryption.key='command:false'", "the command false ended with 1"),
        ):
            for command in (("run", "--set", "mqtt.port=0"), ("status",), ("replay",), ("query", "SELECT 1")):
                refused(place, problem, *command, "--set", setting)
        (place / "berm.toml").write_text("")
        for command in (("run", "--set", "mqtt.port=0"), ("status",), ("export", "out.ndjson")):
            refused(place, "is encrypted, and the settings name no key", *command)
        refused(place, "is encrypted, and the settings name no key", "replay", "--data", "data")
        assert contents(node.data) == before
        named = ("--data", "data", "--set", "encryption.key='file:key'")
        assert history(place, *named) == [b"x"]


def test_a_node_that_has_lost_both_files_of_keys_makes_no_new_ones(place: Path) -> None:
    with Node(place, KEY) as node:
        assert node.stop() == 0
        for name in (KEYS, COPY):
            (node.data / name).unlink()
        before = contents(node.data)
        refused(place, "its keys (berm.keys, and berm.keys.copy) are gone; nothing was changed", "run")
        assert contents(node.data) == before


def test_a_node_that_was_not_encrypted_encrypts_what_it_has_of_state_at_once(place: Path) -> None:
    with Node(place, CONFIG) as node:
        with play(node):
            node.stop(signal.SIGKILL)
        assert "retained" in told(node.data)
        (place / "berm.toml").write_text(CONFIG + KEY)
        node.start()
        assert "encryption of data begins with data key 1" in node.stderr
        with Client(node.port, "later") as later:
            later.subscribe("kept")
            later.wait_for({secret("retained").encode()})
        assert node.stop() == 0
        assert {kind: files for kind, files in told(node.data).items() if kind in ("delayed-will", "state")} == {
            "state": {"berm.db"}  # the event itself, until it is sealed
        }


def contents(data: Path) -> dict[str, bytes]:
    """Every file that isn't made anew by whoever looks, without what SQLite counts in a header."""
    files = ((data / name, start) for name, start in (("berm.db", 100), (KEYS, 0), (COPY, 0)))
    return {path.name: path.read_bytes()[start:] for path, start in files if path.exists()}


def refused(place: Path, problem: str, *command: str) -> None:
    done = berm(*command, cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert problem in line

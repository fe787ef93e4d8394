"""Clients of many makers over every transport: each talks with a client over plain TCP, at every QoS both ways."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any, Final

import aiomqtt
import gmqtt
import paho.mqtt.client as paho
import pytest
from amqtt.client import MQTTClient
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests.broker.net.certificates import Authority
from tests.clients import end
from tests.interop.clients import PUB, SUB, Inbox, Message, Paho
from tests.node import HOST, PATIENCE, Node

SIZE: Final = 256 << 10
ANSWERS: Final = 3
"""Messages that the client over TCP sends, one at each QoS."""
MQTTJS: Final = "mqtt@5.10.4"
SCRIPT: Final = Path(__file__).with_name("mqttjs.js")


@dataclass(frozen=True, slots=True)
class Place:
    """A node with a listener of every kind."""

    node: Node
    authority: Authority
    socket: Path

    def port(self, transport: str) -> int:
        return self.node.ports[transport]

    def context(self) -> ssl.SSLContext:
        return self.authority.trusting()


@dataclass(frozen=True, slots=True)
class Task:
    """What a client does: subscribe to `filter` at QoS 2, publish `size` bytes to `up`/QoS at each, take ANSWERS."""

    name: str
    size: int = SIZE
    shared: bool = False
    """Its subscription is a shared one."""

    @property
    def up(self) -> str:
        return f"{self.name}/up"

    @property
    def down(self) -> str:
        return f"{self.name}/down"

    @property
    def filter(self) -> str:
        return f"$share/{self.name}/{self.down}" if self.shared else self.down

    def payload(self, qos: int) -> bytes:
        return bytes((qos,)) * self.size


Talk = Callable[[Place, Task], list[Message]]

CONFIG: Final = """
[mqtt]
max_packet_size = 11_000_000

[[listeners]]
name = "tcp"
port = 0

[[listeners]]
name = "tls"
port = 0
[listeners.tls]
certificate = "server.pem"
key = "server.key"

[[listeners]]
name = "ws"
type = "websocket"
port = 0

[[listeners]]
name = "wss"
type = "websocket"
port = 0
[listeners.tls]
certificate = "server.pem"
key = "server.key"

[[listeners]]
name = "unix"
type = "unix"
path = "mqtt.sock"
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("place")
    authority = Authority(directory)
    authority.server()
    with Node(directory, CONFIG) as node:
        yield Place(node, authority, directory / "mqtt.sock")
        assert node.stop() == 0
        assert "Traceback" not in node.stderr
        assert "WARNING" not in node.stderr


# -- paho-mqtt


def _paho(transport: str, version: int) -> Talk:
    def talk(place: Place, task: Task) -> list[Message]:
        inbox = Inbox()
        granted: Queue[object] = Queue()
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            task.name,
            clean_session=None if version == 5 else True,
            protocol=MQTTProtocolVersion(version),
            transport={"tls": "tcp", "ws": "websockets", "wss": "websockets", "unix": "unix"}[transport],  # type: ignore[arg-type] # one of its words
        )
        if transport in ("tls", "wss"):
            client.tls_set_context(place.context())
        client.on_message = lambda client, data, message: inbox.put(
            Message(message.topic, bytes(message.payload), message.qos)
        )
        client.on_connect = lambda client, *_: client.subscribe(task.filter, 2)
        client.on_subscribe = lambda *_: granted.put(None)
        if transport == "unix":
            client.connect(str(place.socket))
        else:
            client.connect(HOST, place.port(transport))
        client.loop_start()
        try:
            granted.get(timeout=PATIENCE)
            for qos in (0, 1, 2):
                sent = client.publish(f"{task.up}/{qos}", task.payload(qos), qos)
                sent.wait_for_publish(PATIENCE)
                assert sent.is_published()
            return inbox.receive(ANSWERS)
        finally:
            client.disconnect()
            end(client)

    return talk


# -- mosquitto_pub and mosquitto_sub


def _mosquitto(transport: str, version: str) -> Talk:
    def talk(place: Place, task: Task) -> list[Message]:
        assert PUB is not None
        assert SUB is not None
        if transport == "unix":
            where = ["--unix", str(place.socket)]
        else:
            where = ["-h", "localhost", "-p", str(place.port(transport)), "--cafile", str(place.authority.file)]
        where += ["-V", version]
        command = [
            SUB,
            *where,
            "-i",
            task.name,
            "-t",
            task.filter,
            "-q",
            "2",
            "-C",
            str(ANSWERS),
            "-F",
            "%q %t %x",
            "-E",
        ]
        # -E ends it once it has subscribed: its session is there, and keeps what comes until it comes back.
        subprocess.run([*command, "-c"], check=True, timeout=PATIENCE)
        for qos in (0, 1, 2):
            subprocess.run(
                [PUB, *where, "-q", str(qos), "-t", f"{task.up}/{qos}", "-s"],
                input=task.payload(qos),
                check=True,
                timeout=PATIENCE,
            )
        done = subprocess.run([*command[:-1], "-c"], check=True, timeout=PATIENCE, capture_output=True, text=True)
        lines = [line.split(" ") for line in done.stdout.splitlines()]
        return [Message(topic, bytes.fromhex(payload), int(qos)) for qos, topic, payload in lines]

    return talk


# -- asyncio clients


def _run(talk: Callable[[Place, Task], Any]) -> Talk:
    def run(place: Place, task: Task) -> list[Message]:
        async def bounded() -> list[Message]:
            async with asyncio.timeout(PATIENCE):
                found: list[Message] = await talk(place, task)
                return found

        return asyncio.run(bounded())

    return run


def _aiomqtt(transport: str) -> Talk:
    async def talk(place: Place, task: Task) -> list[Message]:
        client = aiomqtt.Client(
            HOST,
            place.port(transport),
            identifier=task.name,
            protocol=aiomqtt.ProtocolVersion.V5,
            transport="websockets" if transport.startswith("ws") else "tcp",
            tls_context=place.context() if transport in ("tls", "wss") else None,
        )
        found: list[Message] = []
        async with client:
            await client.subscribe(task.filter, 2)
            for qos in (0, 1, 2):
                await client.publish(f"{task.up}/{qos}", task.payload(qos), qos)
            async for message in client.messages:
                assert isinstance(message.payload, bytes)
                found.append(Message(str(message.topic), message.payload, message.qos))
                if len(found) == ANSWERS:
                    break
        return found

    return _run(talk)


def _gmqtt(transport: str, version: int) -> Talk:
    async def talk(place: Place, task: Task) -> list[Message]:
        client = gmqtt.Client(task.name)
        found: list[Message] = []
        subscribed, complete = asyncio.Event(), asyncio.Event()

        def on_message(client: object, topic: str, payload: bytes, qos: int, properties: object) -> int:
            found.append(Message(topic, bytes(payload), qos))
            if len(found) == ANSWERS:
                complete.set()
            return 0

        client.on_message = on_message
        client.on_subscribe = lambda *_: subscribed.set()
        await client.connect(
            "localhost", place.port(transport), ssl=place.context() if transport == "tls" else False, version=version
        )
        client.subscribe(task.filter, qos=2)
        await subscribed.wait()
        for qos in (0, 1, 2):
            client.publish(f"{task.up}/{qos}", task.payload(qos), qos=qos)
        await complete.wait()
        with suppress(ssl.SSLError):  # what the node still sends, such as PUBREL, after asyncio has said goodbye
            await client.disconnect()
        return found

    return _run(talk)


def _amqtt(transport: str) -> Talk:
    async def talk(place: Place, task: Task) -> list[Message]:
        client = MQTTClient(task.name, {"auto_reconnect": False})
        path = "/mqtt" if transport.startswith("ws") else ""
        scheme = {"tls": "mqtts"}.get(transport, transport)
        await client.connect(
            f"{scheme}://localhost:{place.port(transport)}{path}", cafile=str(place.authority.file), cleansession=True
        )
        await client.subscribe([(task.filter, 2)])
        for qos in (0, 1, 2):
            await client.publish(f"{task.up}/{qos}", task.payload(qos), qos)
        found: list[Message] = []
        while len(found) < ANSWERS:
            message = await client.deliver_message()
            assert message is not None
            found.append(Message(message.topic, bytes(message.data), message.publish_packet.qos))
        await client.disconnect()
        return found

    return _run(talk)


# -- mqtt.js


@pytest.fixture(scope="session")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Node finds mqtt.js."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed (apt-get install nodejs npm)")
    directory = tmp_path_factory.mktemp("npm")
    command = [npm, "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(directory), MQTTJS]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm could not install {MQTTJS} within two minutes")
    if done.returncode:
        pytest.skip(f"npm could not install {MQTTJS}: {done.stderr.strip()[-200:]}")
    return directory / "node_modules"


def _mqttjs(place: Place, task: Task, transport: str, version: int, modules: Path) -> list[Message]:
    scheme, path = {
        "tcp": ("mqtt", ""),
        "tls": ("mqtts", ""),
        "ws": ("ws", "/mqtt"),
        "wss": ("wss", "/mqtt"),
    }[transport]
    url = f"{scheme}://localhost:{place.port(transport)}{path}"
    ca = str(place.authority.file)
    node = shutil.which("node")
    assert node is not None
    done = subprocess.run(
        [node, str(SCRIPT), url, str(version), task.name, task.filter, task.up, str(task.size), str(ANSWERS), ca],
        env={**os.environ, "NODE_PATH": str(modules)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [Message(each["topic"], bytes.fromhex(each["payload"]), each["qos"]) for each in lines]


# -- the tests

TALKS: Final[dict[str, Talk]] = {
    **{
        f"paho {version} over {transport}": _paho(transport, number)
        for transport in ("tls", "ws", "wss", "unix")
        for version, number in (("3.1", 3), ("3.1.1", 4), ("5", 5))
    },
    **{f"aiomqtt over {transport}": _aiomqtt(transport) for transport in ("tcp", "tls", "ws", "wss")},
    **{
        f"gmqtt {version} over {transport}": _gmqtt(transport, number)
        for transport in ("tcp", "tls")
        for version, number in (("3.1.1", 4), ("5", 5))
    },
    **{f"amqtt over {transport}": _amqtt(transport) for transport in ("tls", "ws", "wss")},
}
MOSQUITTO: Final[dict[str, Talk]] = {
    f"mosquitto {version} over {transport}": _mosquitto(transport, name)
    for transport in ("tls", "unix")
    for version, name in (("3.1", "mqttv31"), ("3.1.1", "mqttv311"), ("5", "mqttv5"))
}


def _converse(
    place: Place, name: str, talk: Callable[[Task], list[Message]], size: int = SIZE, *, shared: bool = False
) -> None:
    """Let a client do its task, with one over TCP as its partner, and see that each had all of the other's words."""
    task = Task(name, size, shared)
    found: Queue[Sequence[Message] | BaseException] = Queue()

    def run() -> None:
        try:
            found.put(talk(task))
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            found.put(error)

    with Paho(place.port("tcp"), f"{name}-partner") as partner:
        partner.subscribe(f"{task.up}/#", qos=2)
        thread = Thread(target=run)
        thread.start()
        try:
            assert partner.receive(3) == [Message(f"{task.up}/{qos}", task.payload(qos), qos) for qos in (0, 1, 2)]
            for qos in (0, 1, 2):
                partner.publish(task.down, bytes((0x40 + qos,)) * 1000, qos=qos)
        finally:
            thread.join(2 * PATIENCE)
        answer = found.get_nowait()
        if isinstance(answer, BaseException):
            raise answer
    # Which of what was sent without waiting comes first is not promised across QoS.
    expected = [Message(task.down, bytes((0x40 + qos,)) * 1000, qos) for qos in (0, 1, 2)]
    assert sorted(answer, key=lambda message: message.qos) == expected


@pytest.mark.parametrize("talk", TALKS.values(), ids=TALKS.keys())
def test_a_client_talks_with_one_over_tcp(talk: Talk, place: Place, name: str) -> None:
    _converse(place, name, lambda task: talk(place, task))


@pytest.mark.parametrize("kind", ["aiomqtt over tcp", "gmqtt 3.1.1 over tcp", "gmqtt 5 over tcp", "amqtt over ws"])
def test_a_client_has_a_shared_subscription(kind: str, place: Place, name: str) -> None:
    _converse(place, name, lambda task: TALKS[kind](place, task), shared=True)


@pytest.mark.skipif(
    PUB is None or SUB is None, reason="mosquitto_pub is not installed (apt-get install mosquitto-clients)"
)
@pytest.mark.parametrize("talk", MOSQUITTO.values(), ids=MOSQUITTO.keys())
def test_mosquittos_clients_talk_with_one_over_tcp(talk: Talk, place: Place, name: str) -> None:
    _converse(place, name, lambda task: talk(place, task))


@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize("transport", ["tcp", "tls", "ws", "wss"])
def test_mqttjs_talks_with_one_over_tcp(transport: str, version: int, place: Place, name: str, modules: Path) -> None:
    _converse(place, name, lambda task: _mqttjs(place, task, transport, version, modules))


@pytest.mark.parametrize("version", [4, 5])
def test_mqttjs_has_a_shared_subscription(version: int, place: Place, name: str, modules: Path) -> None:
    _converse(place, name, lambda task: _mqttjs(place, task, "ws", version, modules), shared=True)


@pytest.mark.parametrize("transport", ["tls", "unix"])
def test_ten_megabytes_go_through_sockets(transport: str, place: Place, name: str) -> None:
    talk = _paho(transport, 5)
    _converse(place, name, lambda task: talk(place, task), 10_000_000)


@pytest.mark.parametrize("transport", ["ws", "wss"])
def test_ten_megabytes_go_through_websocket(transport: str, place: Place, name: str, modules: Path) -> None:
    # paho-mqtt loses a packet that its WebSocket could not send in one piece.
    _converse(place, name, lambda task: _mqttjs(place, task, transport, 5, modules), 10_000_000)

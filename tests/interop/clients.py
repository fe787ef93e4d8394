"""Three independent MQTT clients behind one face: paho-mqtt, mosquitto's command line, and amqtt.

A client is connected once it is constructed. What it is sent gathers in a queue; `receive` waits for it. Everything
that waits gives up after PATIENCE.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader
from queue import Empty, Queue
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

import paho.mqtt.client as paho
from amqtt.client import MQTTClient
from amqtt.errors import ClientError
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.clients import end
from tests.node import HOST, PATIENCE

T = TypeVar("T")

VERSIONS: Final = {3: "3.1", 4: "3.1.1", 5: "5"}
NEVER: Final = 0xFFFFFFFF
"""A session expiry interval that never ends."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a subscriber was given."""

    topic: str
    payload: bytes
    qos: int
    retain: bool = False
    user_properties: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker is to publish when the client vanishes."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    delay: int = 0


class Subscriber(Protocol):
    """A client that has subscribed."""

    def receive(self, number: int) -> list[Message]:
        """Wait for so many messages."""

    def close(self) -> None:
        """Say goodbye."""


class Inbox:
    """Messages that arrive on another thread."""

    def __init__(self) -> None:
        self._queue: Queue[Message] = Queue()

    def put(self, message: Message) -> None:
        """One has arrived."""
        self._queue.put(message)

    def receive(self, number: int) -> list[Message]:
        """Wait for so many messages."""
        found: list[Message] = []
        try:
            while len(found) < number:
                found.append(self._queue.get(timeout=PATIENCE))
        except Empty:
            raise AssertionError(f"{len(found)} of {number} messages arrived: {found[-3:]}") from None
        return found

    @property
    def waiting(self) -> int:
        """Messages that have arrived and were not asked for yet."""
        return self._queue.qsize()

    def until(self, payload: bytes) -> list[Message]:
        """What arrives before the message with this payload."""
        found: list[Message] = []
        while not found or found[-1].payload != payload:
            found += self.receive(1)
        return found[:-1]


def _properties(packet: int) -> Properties:
    return Properties(packet)  # type: ignore[no-untyped-call]  # paho types all but its constructor


class Paho(Inbox):
    """paho-mqtt, in any version, on its own thread."""

    def __init__(
        self,
        port: int,
        client_id: str,
        version: int = 5,
        *,
        clean: bool = True,
        expiry: int = 0,
        will: Will | None = None,
        receive_maximum: int = 0,
        manual_ack: bool = False,
        keep_alive: int = 60,
        login: tuple[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.ended = threading.Event()
        """The connection is gone."""
        self.end_reason = -1
        """The reason code of the server's DISCONNECT, where there was one."""
        self.session_present = False
        self.connack: Properties | None = None
        self.unacknowledged: Queue[paho.MQTTMessage] = Queue()
        """With `manual_ack`: what has arrived and waits for `acknowledge`."""
        self._accepted = threading.Event()
        self._granted: Queue[list[int]] = Queue()
        self._client = client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id,
            clean_session=None if version == 5 else clean,
            protocol=MQTTProtocolVersion(version),
            reconnect_on_failure=False,
            manual_ack=manual_ack,
        )
        client.max_inflight_messages_set(100)
        if login is not None:
            client.username_pw_set(*login)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = lambda client, data, mid, reasons, properties: self._granted.put(
            [reason.value for reason in reasons]
        )
        client.on_unsubscribe = lambda client, data, mid, reasons, properties: self._granted.put(
            [reason.value for reason in reasons]
        )
        client.on_message = self._on_message
        self._manual_ack = manual_ack
        if will is not None:
            properties = None
            if will.delay:
                properties = _properties(PacketTypes.WILLMESSAGE)
                properties.WillDelayInterval = will.delay
            client.will_set(will.topic, will.payload, will.qos, will.retain, properties)
        if version == 5:
            asked = _properties(PacketTypes.CONNECT)
            asked.SessionExpiryInterval = expiry
            if receive_maximum:
                asked.ReceiveMaximum = receive_maximum
            client.connect(HOST, port, keep_alive, clean_start=clean, properties=asked)
        else:
            client.connect(HOST, port, keep_alive)
        client.loop_start()
        assert self._accepted.wait(PATIENCE), f"{client_id} was not accepted"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def subscribe(
        self,
        *filters: str,
        qos: int = 2,
        options: SubscribeOptions | None = None,
        user_properties: Sequence[tuple[str, str]] = (),
    ) -> list[int]:
        """Subscribe and wait for the SUBACK; what was granted. User properties are for MQTT 5."""
        if user_properties:
            properties = _properties(PacketTypes.SUBSCRIBE)
            properties.UserProperty = list(user_properties)
            options = options or SubscribeOptions(qos)
            self._client.subscribe([(filter, options) for filter in filters], properties=properties)
        elif options is None:
            self._client.subscribe([(filter, qos) for filter in filters])
        else:
            self._client.subscribe([(filter, options) for filter in filters])
        return self._granted.get(timeout=PATIENCE)

    def unsubscribe(self, filter: str) -> list[int]:
        """Unsubscribe and wait for the UNSUBACK; the reason codes, where the version has them."""
        self._client.unsubscribe(filter)
        return self._granted.get(timeout=PATIENCE)

    def publish(
        self,
        topic: str,
        *payloads: bytes,
        qos: int = 1,
        retain: bool = False,
        user_properties: Sequence[tuple[str, str]] = (),
        expiry: int = 0,
    ) -> None:
        """Publish, and wait until everything is acknowledged."""
        properties = None
        if user_properties or expiry:
            properties = _properties(PacketTypes.PUBLISH)
            if user_properties:
                properties.UserProperty = list(user_properties)
            if expiry:
                properties.MessageExpiryInterval = expiry
        sent = [self._client.publish(topic, payload, qos, retain, properties) for payload in payloads]
        for each in sent:
            assert each.rc == MQTTErrorCode.MQTT_ERR_SUCCESS, each.rc
            each.wait_for_publish(PATIENCE)
            assert each.is_published(), "no acknowledgement"

    def acknowledge(self, message: paho.MQTTMessage) -> None:
        """With `manual_ack`: tell the broker that this one has been dealt with."""
        self._client.ack(message.mid, message.qos)

    def vanish(self) -> None:
        """End the connection without a word, as a device that loses its link."""
        link = self._client.socket()
        assert isinstance(link, socket.socket)
        link.shutdown(socket.SHUT_RDWR)
        assert self.ended.wait(PATIENCE)
        end(self._client)

    def close(self) -> None:
        """Say goodbye."""
        self._client.disconnect()
        end(self._client)

    def _on_connect(self, client: object, data: object, flags: Any, reason: Any, properties: Properties | None) -> None:
        if not reason.is_failure:
            self.session_present = flags.session_present
            self.connack = properties
            self._accepted.set()

    def _on_disconnect(self, client: object, data: object, flags: object, reason: Any, properties: object) -> None:
        self.end_reason = reason.value
        self.ended.set()

    def _on_message(self, client: object, data: object, message: paho.MQTTMessage) -> None:
        if self._manual_ack:
            self.unacknowledged.put(message)
        pairs = getattr(message.properties, "UserProperty", ()) if message.properties else ()
        self.put(Message(message.topic, bytes(message.payload), message.qos, message.retain, tuple(pairs)))


class Amqtt(Inbox):
    """amqtt's client, which speaks 3.1.1, on a loop and a thread of its own."""

    def __init__(self, port: int, client_id: str, *, clean: bool = True) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._loop = self._runner.get_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._reader: asyncio.Task[None] | None = None
        self._run(self._connect(port, client_id, clean))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def subscribe(self, *filters: str, qos: int = 2) -> list[int]:
        """Subscribe and wait for the SUBACK; what was granted."""
        return self._run(self._client.subscribe([(filter, qos) for filter in filters]))

    def publish(self, topic: str, *payloads: bytes, qos: int = 1, retain: bool = False) -> None:
        """Publish, and wait until everything is acknowledged."""
        for payload in payloads:
            self._run(self._client.publish(topic, payload, qos, retain))

    def close(self) -> None:
        """Say goodbye."""
        self._run(self._disconnect())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._runner.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    async def _connect(self, port: int, client_id: str, clean: bool) -> None:
        self._client = MQTTClient(client_id, {"auto_reconnect": False})
        await self._client.connect(f"mqtt://{HOST}:{port}", cleansession=clean)
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with suppress(ClientError):
            while (message := await self._client.deliver_message()) is not None:
                packet = message.publish_packet
                self.put(Message(message.topic, bytes(message.data), packet.qos, bool(packet.retain_flag)))

    async def _disconnect(self) -> None:
        assert self._reader is not None
        self._reader.cancel()
        with suppress(asyncio.CancelledError):
            await self._reader
        await self._client.disconnect()


PUB: Final = shutil.which("mosquitto_pub")
SUB: Final = shutil.which("mosquitto_sub")
_MOSQUITTO_NAMES: Final = {3: "mqttv31", 4: "mqttv311", 5: "mqttv5"}
_FORMAT: Final = "M %q %r %t %x"


def mosquitto_pub(port: int, version: int, topic: str, *payloads: bytes, qos: int = 1, retain: bool = False) -> None:
    """Publish with `mosquitto_pub`, which waits for every acknowledgement. A payload is one line."""
    assert PUB is not None
    command = [PUB, "-h", HOST, "-p", str(port), "-V", _MOSQUITTO_NAMES[version], "-q", str(qos), "-t", topic, "-l"]
    subprocess.run(
        command + ["-r"] * retain, input=b"".join(payload + b"\n" for payload in payloads), check=True, timeout=PATIENCE
    )


class MosquittoSub(Inbox):
    """`mosquitto_sub`, one filter, in any version."""

    def __init__(self, port: int, client_id: str, version: int, filter: str, qos: int = 2, *more: str) -> None:
        super().__init__()
        assert SUB is not None
        command = [SUB, "-h", HOST, "-p", str(port), "-V", _MOSQUITTO_NAMES[version], "-i", client_id, "-d"]
        command += ["-q", str(qos), "-t", filter, "-F", _FORMAT, *more]
        self._subscribed = threading.Event()
        ours, its = os.openpty()  # on a terminal it writes line by line; into a pipe it keeps its SUBACK to itself
        self._output = open(ours, "rb", buffering=0)  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=its)
        os.close(its)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        if not self._subscribed.wait(PATIENCE):
            self.close()
            raise AssertionError(f"mosquitto_sub {client_id} did not subscribe")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Say goodbye: it disconnects on SIGTERM."""
        self._process.terminate()
        self._process.wait(PATIENCE)
        self._thread.join(PATIENCE)
        self._output.close()

    def _read(self) -> None:
        with suppress(OSError), BufferedReader(self._output) as lines:  # EIO is how a terminal ends
            for line in lines:
                if line.startswith(b"Subscribed "):
                    self._subscribed.set()
                elif line.startswith(b"M "):
                    _, qos, retain, topic, payload = line.decode().rstrip("\r\n").split(" ", 4)
                    self.put(Message(topic, bytes.fromhex(payload), int(qos), retain == "1"))


Publish = Callable[[int, str, Sequence[bytes], int], None]
"""Publish payloads to a topic, at a port and a QoS, and wait until all are acknowledged."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A client of the matrix: how it publishes, how it subscribes, and whether it is there."""

    name: str
    publish: Publish
    subscribe: Callable[[int, str, str, int], Subscriber]
    """At a port, with a client identifier, a filter and a QoS."""
    missing: str = ""


def _paho(version: int) -> Kind:
    def publish(port: int, topic: str, payloads: Sequence[bytes], qos: int) -> None:
        with Paho(port, f"pub{version}-{qos}", version) as client:
            client.publish(topic, *payloads, qos=qos)

    def subscribe(port: int, client_id: str, filter: str, qos: int) -> Subscriber:
        client = Paho(port, client_id, version)
        client.subscribe(filter, qos=qos)
        return client

    return Kind(f"paho-{VERSIONS[version]}", publish, subscribe)


def _mosquitto(version: int) -> Kind:
    def publish(port: int, topic: str, payloads: Sequence[bytes], qos: int) -> None:
        mosquitto_pub(port, version, topic, *payloads, qos=qos)

    def subscribe(port: int, client_id: str, filter: str, qos: int) -> Subscriber:
        return MosquittoSub(port, client_id, version, filter, qos)

    missing = (
        "" if PUB and SUB else "mosquitto_pub and mosquitto_sub are not installed (apt-get install mosquitto-clients)"
    )
    return Kind(f"mosquitto-{VERSIONS[version]}", publish, subscribe, missing)


def _amqtt() -> Kind:
    def publish(port: int, topic: str, payloads: Sequence[bytes], qos: int) -> None:
        with Amqtt(port, f"amqtt-pub-{qos}") as client:
            client.publish(topic, *payloads, qos=qos)

    def subscribe(port: int, client_id: str, filter: str, qos: int) -> Subscriber:
        client = Amqtt(port, client_id)
        client.subscribe(filter, qos=qos)
        return client

    return Kind("amqtt-3.1.1", publish, subscribe)


KINDS: Final = {kind.name: kind for kind in (*map(_paho, VERSIONS), *map(_mosquitto, VERSIONS), _amqtt())}
"""Every client and version of the matrix, by name."""

"""Real processes and real clients: a node, a mosquitto, and paho-mqtt at both ends. Everything listens on 127.0.0.1."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.clients import end
from tests.node import BERM, MOSQUITTO, PATIENCE, answers, free_port, wait_until


def berm(*arguments: str, cwd: Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [*BERM, *arguments], cwd=cwd, input=stdin, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed (apt-get install mosquitto)")


@contextmanager
def mosquitto(directory: Path, *lines: str, port: int = 0) -> Iterator[int]:
    """A mosquitto with these lines in its configuration; the port that it listens on."""
    assert MOSQUITTO is not None
    port = port or free_port()
    config = directory / f"mosquitto-{port}.conf"
    # As root it would become a user who may not read what is in a test's directory, and by default it forgets what a
    # consumer is slow to take.
    own = (f"listener {port} 127.0.0.1", "user root", "max_queued_messages 0")
    config.write_text("\n".join((*own, *(lines or ("allow_anonymous true",)))) + "\n")
    with (directory / f"mosquitto-{port}.log").open("a") as log:
        process = subprocess.Popen([MOSQUITTO, "-c", str(config)], stdout=log, stderr=log)
        try:
            wait_until("mosquitto listens", lambda: answers(port) or process.poll() is not None)
            assert process.poll() is None, Path(log.name).read_text()
            yield port
        finally:
            process.terminate()
            process.wait(PATIENCE)


class Client:
    """A paho-mqtt client. What it is sent gathers in `messages`, in the order of arrival."""

    def __init__(self, port: int, client_id: str, version: int = 5, expiry: int = 0) -> None:
        self.messages: list[paho.MQTTMessage] = []
        self._changed = threading.Condition()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id,
            protocol=MQTTProtocolVersion(version),
            clean_session=None if version == 5 else True,
        )
        self._client.max_inflight_messages_set(200)
        self._client.on_message = self._on_message
        self._client.on_subscribe = self._on_subscribe
        self._subscribed = threading.Event()
        properties: Properties | None = None
        if version == 5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves it untyped
            properties.SessionExpiryInterval = expiry
        connected = threading.Event()
        self._client.on_connect = lambda *_: connected.set()
        self._client.connect("127.0.0.1", port, 60, clean_start=not expiry, properties=properties)
        self._client.loop_start()
        assert connected.wait(PATIENCE), f"{client_id} could not connect to port {port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._client.disconnect()
        end(self._client)

    def subscribe(self, topic: str, qos: int = 1) -> None:
        """Subscribe, and wait for the SUBACK."""
        self._subscribed.clear()
        self._client.subscribe(topic, qos)
        assert self._subscribed.wait(PATIENCE)

    def publish(self, topic: str, *payloads: bytes, qos: int = 1, retain: bool = False) -> None:
        """Publish, and wait until everything is acknowledged."""
        for sent in [self._client.publish(topic, payload, qos, retain) for payload in payloads]:
            sent.wait_for_publish(PATIENCE)
            assert sent.is_published()

    def wait_for(self, payloads: set[bytes]) -> None:
        """Wait until each of these has arrived at least once."""

        def complete() -> bool:
            return payloads <= set(self.payloads)

        with self._changed:
            arrived = self._changed.wait_for(complete, PATIENCE)
        missing = payloads - set(self.payloads)
        assert arrived, f"{len(missing)} of {len(payloads)} never arrived, such as {sorted(missing)[:3]}"

    @property
    def payloads(self) -> list[bytes]:
        """What has arrived, in order, copies too."""
        return [bytes(message.payload) for message in self.messages]

    def _on_message(self, client: object, data: object, message: paho.MQTTMessage) -> None:
        with self._changed:
            self.messages.append(message)
            self._changed.notify_all()

    def _on_subscribe(self, *_: object) -> None:
        self._subscribed.set()

"""Real processes and real clients: a node, a mosquitto, and paho-mqtt at both ends. Everything listens on 127.0.0.1."""

from __future__ import annotations

import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

PATIENCE = 30.0
"""Seconds after which something that should have happened won't."""


def wait_until(what: str, holds: Callable[[], bool]) -> None:
    """Look again and again until `holds`; fail with `what` and not with a hang."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"still waiting after {PATIENCE:g} s: {what}"
        time.sleep(0.01)


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def berm(*arguments: str, cwd: Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [*BERM, *arguments], cwd=cwd, input=stdin, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


BERM: Sequence[str] = (sys.executable, "-m", "berm")


class Node:
    """`berm run` in a process of its own, in `directory`, on a port that the system chooses."""

    def __init__(
        self,
        directory: Path,
        config: str = "",
        arguments: Sequence[str] = (),
        name: str = "edge",
        command: Sequence[str] = BERM,
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.data = directory / "data"
        (directory / "berm.toml").write_text(config)
        self._errors = (directory / "stderr").open("a+")
        own = ("run", "--set", "mqtt.port=0", "--set", f"node.name={name}")
        self.process = subprocess.Popen(
            [*command, *own, *arguments],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            bufsize=1,
        )
        first = self._read_line()
        found = re.search(r"listens on mqtt://.*:(\d+)$", first)
        if not found:
            self.__exit__(None, None, None)
            raise AssertionError(f"it did not start: {first!r} {self.stderr}")
        self.port = int(found[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._errors.close()

    @property
    def stderr(self) -> str:
        """Everything that was logged so far, by earlier runs in this directory too."""
        return (self.directory / "stderr").read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def rest_of_stdout(self) -> str:
        """What it has printed after its first line, once it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.read()

    def _read_line(self) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        return self.process.stdout.readline().rstrip("\n") if ready else "nothing"


MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")

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
            wait_until("mosquitto listens", lambda: _answers(port) or process.poll() is not None)
            assert process.poll() is None, Path(log.name).read_text()
            yield port
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


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
        self._client.loop_stop()

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

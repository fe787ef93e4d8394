"""What a peer does wrong costs that peer its connection, and nobody else anything.

While the node is mistreated, a pair of well-behaved clients keeps exchanging messages. They must notice nothing, and
what they were acknowledged must be in the log in the end.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from random import Random
from types import TracebackType
from typing import Final, Self

import pytest

from berm.replay import Query, select
from broker.mqtt.codec import Decoder, encode
from broker.mqtt.packets import Connack, Connect, Disconnect, Packet, Puback, Publish, Subscribe, Subscription
from broker.mqtt.reason import Reason
from storage.sqlite import SQLiteEngine
from tests.interop.clients import NEVER, Paho
from tests.node import HOST, PATIENCE, Node, wait_until

MAX_CONNECTIONS: Final = 200
LARGEST: Final = 64 << 10
"""Bytes of the largest packet that the node takes."""
MIB: Final = 1 << 20
SOME_MIB: Final = 20 * MIB
"""What the node may grow by, whatever is done to it."""

CONFIG: Final = f"""\
[storage]
memory_bytes = {MIB}
[mqtt]
max_connections = {MAX_CONNECTIONS}
max_packet_size = {LARGEST}
connect_timeout = 1
write_buffer = {64 << 10}
"""


@dataclass(slots=True)
class Mistreated:
    """The node, and what the pair was acknowledged so far."""

    node: Node
    acknowledged: list[bytes] = field(default_factory=list)

    def lines(self, text: str) -> list[str]:
        """The lines of the log with this in them."""
        return [line for line in self.node.stderr.splitlines() if text in line]


@pytest.fixture(scope="module")
def mistreated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mistreated]:
    """One node for all of it. In the end it must still be the same process, and have kept all it promised."""
    with Node(tmp_path_factory.mktemp("mistreated"), CONFIG) as node:
        mistreated = Mistreated(node)
        yield mistreated
        assert node.running
        assert node.stop() == 0
        assert "Traceback" not in node.stderr
        engine = SQLiteEngine(node.data, readonly=True)
        kept = [event.payload for event in select(engine, Query(topics=("pair/#",)))]
        engine.close()
        assert kept == mistreated.acknowledged
        assert len(kept) > 100


class Pair:
    """Two clients that talk to each other for as long as the `with` lasts: each message, then the answer to it."""

    def __init__(self, mistreated: Mistreated, name: str) -> None:
        self._mistreated = mistreated
        self._name = name
        self._stop = threading.Event()
        self._results: Queue[Exception | None] = Queue()
        self._thread = threading.Thread(target=self._talk)
        self.exchanged = 0

    def __enter__(self) -> Self:
        port = self._mistreated.node.port
        self._one = Paho(port, f"{self._name}-one", 5, clean=False, expiry=NEVER)
        self._two = Paho(port, f"{self._name}-two", 4)
        self._one.subscribe(f"pair/{self._name}/two")
        self._two.subscribe(f"pair/{self._name}/one")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        before = self.exchanged
        if kind is None:  # a whole exchange must still be possible, begun after everything else
            wait_until("the pair goes on", lambda: self.exchanged > before + 2 or not self._thread.is_alive())
        self._stop.set()
        self._thread.join(PATIENCE)
        ended = self._one.ended.is_set() or self._two.ended.is_set()
        self._one.close()
        self._two.close()
        failure = self._results.get_nowait()
        if failure is not None and kind is None:
            raise failure
        assert not ended, "the pair was disconnected"

    def _talk(self) -> None:
        try:
            while not self._stop.is_set():
                for speaker, listener, who in ((self._one, self._two, "one"), (self._two, self._one, "two")):
                    payload = f"{self._name} {who} {self.exchanged}".encode()
                    speaker.publish(f"pair/{self._name}/{who}", payload, qos=1 + self.exchanged % 2)
                    self._mistreated.acknowledged.append(payload)
                    assert [message.payload for message in listener.receive(1)] == [payload]
                self.exchanged += 1
        except Exception as failure:  # noqa: BLE001 - it belongs to the test's own thread
            self._results.put(failure)
        else:
            self._results.put(None)


def _connect(version: int, client_id: str, clean: bool = True) -> bytes:
    return encode(Connect(client_id, version, clean, 60, None, None, None), version)


def _open(port: int) -> socket.socket:
    return socket.create_connection((HOST, port), PATIENCE)


def _vanish(link: socket.socket) -> None:
    """Close with a RST, as a peer whose process is gone."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.close()


def _until_closed(link: socket.socket, version: int) -> list[Packet]:
    """All that comes until the node closes the connection."""
    decoder = Decoder(version)
    packets: list[Packet] = []
    with suppress(ConnectionResetError):
        while data := link.recv(65536):
            packets += decoder.feed(data)
    assert decoder.error is None
    # Why it is closed is told in words, too: what words, other tests ask.
    return [Disconnect(packet.reason) if isinstance(packet, Disconnect) else packet for packet in packets]


BAD: Final = {
    "a topic that is not UTF-8": (b"\x30\x05\x00\x02\xc3\x28\x00", Reason.MALFORMED_PACKET, "UTF-8"),
    "a topic with U+0000": (b"\x30\x05\x00\x02a\x00\x00", Reason.MALFORMED_PACKET, "U+0000"),
    "a topic with a surrogate": (b"\x30\x06\x00\x03\xed\xa0\x80\x00", Reason.MALFORMED_PACKET, "UTF-8"),
    "a wildcard in a topic": (b"\x30\x06\x00\x03a/#\x00", Reason.TOPIC_NAME_INVALID, "wildcard"),
    "QoS 3": (b"\x36\x06\x00\x01a\x00\x01\x00", Reason.MALFORMED_PACKET, "QoS"),
    "a packet identifier of 0": (b"\x32\x06\x00\x01a\x00\x00\x00", Reason.PROTOCOL_ERROR, "identifier"),
    "a length of five bytes": (b"\x30\xff\xff\xff\xff\x01", Reason.MALFORMED_PACKET, "length"),
    "a string longer than its packet": (b"\x30\x04\x00\x09ab", Reason.MALFORMED_PACKET, ""),
    "a packet that is too large": (b"\x30\x80\x80\x80\x01", Reason.PACKET_TOO_LARGE, str(LARGEST)),
    "reserved flags": (b"\x60\x02\x00\x01", Reason.MALFORMED_PACKET, "flags"),
    "packet type 0": (b"\x00\x00", Reason.MALFORMED_PACKET, ""),
    "SUBSCRIBE without a filter": (b"\x82\x03\x00\x01\x00", Reason.PROTOCOL_ERROR, ""),
    "a second CONNECT": (_connect(5, "again"), Reason.PROTOCOL_ERROR, "CONNECT"),
    "what only servers send": (b"\xd0\x00", Reason.PROTOCOL_ERROR, "PINGRESP"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_packet_ends_its_connection_with_the_reason_and_one_line_in_the_log(
    mistreated: Mistreated, name: str, what: str
) -> None:
    data, reason, words = BAD[what]
    with _open(mistreated.node.port) as link:
        link.sendall(_connect(5, name) + data)
        connack, *rest = _until_closed(link, 5)
        assert isinstance(connack, Connack)
        assert rest == [Disconnect(reason)]
    (line,) = mistreated.lines(f"'{name}'")
    assert re.search(
        rf"WARNING .*client '{name}' from 127\.0\.0\.1:\d+ at mqtt: .+ \(reason 0x{reason:02x}\); connection", line
    )
    assert words in line


def test_random_bytes_end_their_connections_and_nothing_else(mistreated: Mistreated, name: str) -> None:
    random = Random(1)
    with Pair(mistreated, name):
        for number in range(300):
            with _open(mistreated.node.port) as link:
                greeting = (b"", _connect(4, f"{name}-{number}"), _connect(5, f"{name}-{number}"))[number % 3]
                noise = random.randbytes(random.choice((1, 2, 10, 1000, 20_000)))
                with suppress(ConnectionError):  # it may be closed before all is sent
                    link.sendall(greeting + noise)
                    link.shutdown(socket.SHUT_WR)
                    _until_closed(link, 5 if number % 3 == 2 else 4)


def test_a_packet_that_is_cut_off_anywhere_is_dropped_with_its_connection(mistreated: Mistreated, name: str) -> None:
    topic = f"cut/{name}"
    with Pair(mistreated, name), Paho(mistreated.node.port, f"{name}s") as subscriber:
        subscriber.subscribe(topic)
        for version in (4, 5):
            whole = _connect(version, f"{name}-{version}") + encode(Publish(topic, b"x", 2, packet_id=1), version)
            for end in range(len(whole)):
                with _open(mistreated.node.port) as link:
                    link.sendall(whole[:end])
                    if end % 2:
                        _vanish(link)
        subscriber.publish(topic, b"end")
        assert subscriber.until(b"end") == []


def test_packets_that_are_announced_as_huge_take_no_memory(mistreated: Mistreated, name: str) -> None:
    before = mistreated.node.rss
    with Pair(mistreated, name), ExitStack() as stack:
        for number in range(100):
            link = stack.enter_context(_open(mistreated.node.port))
            link.sendall(
                b"\x10\xff\xff\xff\x7f" if number % 2 else _connect(4, f"{name}-{number}") + b"\x30\xff\xff\xff\x7f"
            )
            with suppress(ConnectionError):
                link.sendall(bytes(LARGEST))
            _until_closed(link, 4)
    assert mistreated.node.rss < before + SOME_MIB


@pytest.mark.parametrize("clean", [True, False], ids=["clean", "persistent"])
def test_a_flood_of_connects_that_vanish_leaves_nothing_behind(mistreated: Mistreated, name: str, clean: bool) -> None:
    before = mistreated.node.rss
    with Pair(mistreated, name) as pair:
        for number in range(3000):
            link = _open(mistreated.node.port)
            link.sendall(_connect(4, f"{name}-{number % (3000 if clean else 100)}", clean))
            _vanish(link)
        assert pair.exchanged
    wait_until("every connection is let go of", lambda: _established(mistreated.node) == 0)
    assert mistreated.node.rss < before + SOME_MIB


def _established(node: Node) -> int:
    """Sockets that the node holds, beside the one that listens."""
    held: set[str] = set()
    for link in Path(f"/proc/{node.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since it was listed
            held.add(link.readlink().name)
    port = f":{node.port:04X}"
    found = 0
    for line in Path(f"/proc/{node.process.pid}/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *rest = line.split()
        found += local.endswith(port) and state != "0A" and f"socket:[{rest[5]}]" in held
    return found


@pytest.mark.parametrize(("version", "reason"), [(4, Reason.SERVER_UNAVAILABLE), (5, Reason.SERVER_BUSY)])
def test_more_clients_than_max_connections_are_told_that_the_server_is_busy(
    mistreated: Mistreated, name: str, version: int, reason: Reason
) -> None:
    with Pair(mistreated, name):
        with ExitStack() as stack:
            answers: list[int] = []
            for number in range(MAX_CONNECTIONS + 50):
                link = stack.enter_context(_open(mistreated.node.port))
                link.sendall(_connect(version, f"{name}-{number}"))
                (connack,) = Decoder(version).feed(link.recv(4096))
                assert isinstance(connack, Connack)
                answers.append(connack.reason)
            assert answers == [0] * (MAX_CONNECTIONS - 2) + [reason] * 52  # the pair has two
        wait_until("they are gone", lambda: _established(mistreated.node) == 2)
        Paho(mistreated.node.port, f"{name}-again").close()


def test_connections_that_never_say_connect_are_closed_in_time(mistreated: Mistreated, name: str) -> None:
    with Pair(mistreated, name), ExitStack() as stack:
        links = [stack.enter_context(_open(mistreated.node.port)) for _ in range(150)]
        for number, link in enumerate(links):
            link.sendall(_connect(4, f"{name}-{number}")[: number % 10])
        for link in links:
            assert _until_closed(link, 4) == []
    assert 1 <= len(mistreated.lines("no CONNECT within 1 s")) <= 60


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_client_that_never_reads_costs_no_memory_and_slows_nobody(
    mistreated: Mistreated, name: str, qos: int
) -> None:
    topic, payload = f"flood/{name}", bytes(4096)
    messages = 15_000  # 60 MB
    with Pair(mistreated, name), _open(mistreated.node.port) as deaf, _open(mistreated.node.port) as publisher:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(_connect(5, f"{name}-deaf") + encode(Subscribe(1, (Subscription(topic, qos),)), 5))
        publisher.sendall(_connect(4, f"{name}-publisher"))
        decoder = Decoder(4)
        owed = 0
        before = 0
        for number in range(messages):
            publisher.sendall(encode(Publish(topic, payload, 1, packet_id=number % 60_000 + 1), 4))
            owed += 1
            while owed >= 200:
                owed -= sum(isinstance(packet, Puback) for packet in decoder.feed(publisher.recv(4096)))
            if number == 1000:
                before = mistreated.node.rss
        while owed:
            owed -= sum(isinstance(packet, Puback) for packet in decoder.feed(publisher.recv(4096)))
        assert mistreated.node.rss < before + SOME_MIB

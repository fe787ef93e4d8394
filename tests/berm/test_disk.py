"""A node on a disk that fills, and that is emptied: a real file system, processes and sockets."""

from __future__ import annotations

import errno
import os
import select
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

from broker.mqtt.codec import Decoder, encode
from broker.mqtt.packets import (
    Connack,
    Connect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Publish,
    Suback,
    Subscribe,
    Subscription,
)
from broker.mqtt.reason import Reason
from tests.disks import ext4, fill, remount, tmpfs
from tests.node import HOST, PATIENCE, Node, wait_until

MIB: Final = 1 << 20
CONFIG: Final = f"""
[mqtt]
sys_interval = 1
[storage]
low_space = {12 * MIB}
min_space = {6 * MIB}
reserve_bytes = {MIB}
"""


class Wire:
    """A client that says what it is told to, and nothing else."""

    def __init__(self, port: int, client_id: str, version: int = 5) -> None:
        self.version = version
        self._socket = socket.create_connection((HOST, port), PATIENCE)
        self._decoder = Decoder(version)
        self._came: list[Packet] = []
        assert isinstance(self.ask(Connect(client_id, version, True, 0, None, None, None)), Connack)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()

    def send(self, *packets: Packet) -> None:
        self._socket.sendall(b"".join(encode(packet, self.version) for packet in packets))

    def receive(self) -> Packet:
        while not self._came:
            data = self._socket.recv(65536)
            assert data, "the node has closed the connection"
            self._came += self._decoder.feed(data)
        return self._came.pop(0)

    def ask(self, packet: Packet) -> Packet:
        self.send(packet)
        return self.receive()

    @property
    def quiet(self) -> bool:
        """Whether nothing has come."""
        return not self._came and not select.select([self._socket], [], [], 0)[0]

    def publish(self, payload: bytes, packet_id: int) -> int:
        """Publish at QoS 1; the reason code of the answer."""
        answer = self.ask(Publish("t", payload, 1, packet_id=packet_id))
        assert isinstance(answer, Puback)
        assert answer.packet_id == packet_id
        return answer.reason


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """64 MB."""
    with tmpfs(tmp_path / "disk", 64 * MIB) as disk:
        yield disk


def node_on(disk: Path) -> Node:
    return Node(disk.parent / "node", CONFIG, ["--set", f"storage.path={disk / 'data'}"])


def stored(disk: Path) -> list[bytes]:
    with closing(sqlite3.connect(f"file:{disk}/data/berm.db?mode=ro", uri=True)) as database:
        return [payload for (payload,) in database.execute("SELECT payload FROM events ORDER BY seq")]


def said(node: Node, words: str, times: int = 1) -> None:
    wait_until(f"the node says {words!r}", lambda: node.stderr.count(words) >= times)


def test_as_the_disk_fills_less_and_less_is_stored_and_as_it_empties_all_of_it_again(disk: Path) -> None:
    with node_on(disk) as node:
        with Wire(node.port, "new") as new, Wire(node.port, "old", 4) as old, Wire(node.port, "watch") as watch:
            assert watch.ask(Subscribe(1, (Subscription("t", 0),))) == Suback(1, (0,))
            assert new.publish(b"1", 1) == Reason.SUCCESS
            fill(disk, 9 * MIB)
            said(node, "QoS 0 messages are delivered but not stored")
            new.send(Publish("t", b"2", 0))
            assert new.publish(b"3", 3) == Reason.SUCCESS

            ballast = fill(disk, 4 * MIB)
            said(node, "QoS 1 and 2 are refused until there are 6.8 MiB")
            assert new.publish(b"4", 4) == Reason.QUOTA_EXCEEDED
            new.send(Publish("t", b"5", 0))
            assert old.publish(b"6", 6) == Reason.SUCCESS, "it had been read"
            old.send(Publish("t", b"7", 1, packet_id=7))
            assert new.ask(Subscribe(2, (Subscription("t", 0),))) == Suback(2, (0,))
            assert watch.ask(Pingreq()) != Pingresp(), "what was delivered comes first"
            assert old.quiet
            assert not node.stderr.count("stored again")

            ballast.unlink()
            said(node, "everything is stored again")
            assert old.receive() == Puback(7)
            assert new.receive() == Publish("t", b"7", 0)
            assert new.publish(b"8", 8) == Reason.SUCCESS
            payloads = [b"1"]
            while payloads[-1] != b"8":
                packet = watch.receive()
                if isinstance(packet, Publish):
                    payloads.append(packet.payload)
            assert payloads == [b"1", b"2", b"3", b"5", b"6", b"7", b"8"]
        assert node.stop() == 0
    assert stored(disk) == [b"1", b"3", b"6", b"7", b"8"]


def test_a_node_that_was_stopped_starts_on_a_full_disk_refuses_and_recovers_by_itself(disk: Path) -> None:
    with node_on(disk) as node:
        with Wire(node.port, "new") as new:
            assert new.publish(b"1", 1) == Reason.SUCCESS
        assert node.stop() == 0
        assert (disk / "data" / "reserve").stat().st_blocks * 512 >= MIB
        ballast = fill(disk)
        node.start()
        said(node, "gave back the room that")
        said(node, "QoS 1 and 2 are refused")
        with Wire(node.port, "new") as new:
            assert new.publish(b"2", 1) == Reason.QUOTA_EXCEEDED
        assert node.stop() == 0
        node.start()
        with Wire(node.port, "new") as new:
            assert new.publish(b"3", 1) == Reason.QUOTA_EXCEEDED
            ballast.unlink()
            said(node, "everything is stored again")
            assert new.publish(b"4", 2) == Reason.SUCCESS
            wait_until("the reserve is there again", (disk / "data" / "reserve").exists)
        assert node.stop() == 0
    assert stored(disk) == [b"1", b"4"]


def test_a_disk_that_somebody_fills_at_a_stroke_costs_nothing_that_was_acknowledged(disk: Path) -> None:
    with node_on(disk) as node:
        kept: list[bytes] = []
        with Wire(node.port, "new") as new:
            fill(disk)
            for number in range(100):  # without waiting for the guard to look
                payload = b"%d" % number + bytes(50_000)
                if new.publish(payload, 1) == Reason.SUCCESS:
                    kept.append(payload)
            said(node, "QoS 1 and 2 are refused")
            assert new.publish(b"no", 1) == Reason.QUOTA_EXCEEDED
        assert node.stop() == 0
        node.start()
        assert node.stop() == 0
    assert stored(disk) == kept
    assert len(kept) < 100


def test_a_file_system_that_becomes_read_only_ends_the_node_with_one_line_and_exit_code_1(tmp_path: Path) -> None:
    with ext4(tmp_path / "disk", 64 * MIB) as disk, node_on(disk) as node:
        with Wire(node.port, "new") as new:
            assert new.publish(b"1", 1) == Reason.SUCCESS
            remount(disk, "abort")
            new.send(Publish("t", b"2", 1, packet_id=2))
            assert node.process.wait(PATIENCE) == 1
        assert node.stderr.count("\n") == 2, "why it ends, and that it has"
        assert f"disk I/O error ({os.strerror(errno.EROFS)}); see whether the disk is sound" in node.stderr
        assert "the node stops, since nothing more would be kept" in node.stderr
        assert "Traceback" not in node.stderr

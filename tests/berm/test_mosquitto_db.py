"""Mosquitto's persistence file: as a real mosquitto has written it, and damaged."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from berm.mosquitto_db import FormatError, RetainedMessage, read_retained
from broker.mqtt.properties import Property, encode_properties
from tests.berm.helpers import Client, berm, mosquitto, needs_mosquitto
from tests.berm.logs import contents, retained
from tests.node import PATIENCE, Node, wait_until

SAMPLE = bytes.fromhex(
    "00b5006d6f7371756974746f2064620000000000000006000000010000001037000000000000000108000000000000000000020000002d3700"
    "000000000000000000000000000000000006000100040000000349f3010064657633712f7871756575656400000002000000503600000000000"
    "000fbc1056b000000000000000700010004000000"
    + "0749f3020164657632706c616e742f627b2276223a317d1d0300106170706c69636174"
    "696f6e2f6a736f6e260004756e697400014b00000002000000303500000000000000000000000000000000000005000100040000000749f301"
    "0164657631706c616e742f6168656c6c6f000000060000001a0000000000000000ffffffff0001000249f300000000000073310000000300000"
    "012370000000000000000010002010b0001733100000005000000110000000000020003010000007331712f2300000004000000083500000000"
    "00000000000004000000083600000000000000"
)
"""Written by Mosquitto 2.0.11: a message that waits for a client, two retained ones, a session, a subscription."""
A = RetainedMessage("plant/a", b"hello", 1, "dev1", b"", 0)
B = RetainedMessage(
    "plant/b",
    b'{"v":1}',
    2,
    "dev2",
    encode_properties(((Property.CONTENT_TYPE, "application/json"), (Property.USER_PROPERTY, ("unit", "K")))),
    0x6B05C1FB * 1_000_000,
)


def read(directory: Path, content: bytes) -> list[RetainedMessage]:
    path = directory / "mosquitto.db"
    path.write_bytes(content)
    with path.open("rb") as file:
        return list(read_retained(file))


def test_the_retained_messages_are_found_and_nothing_else(tmp_path: Path) -> None:
    assert read(tmp_path, SAMPLE) == [B, A]


def test_version_5_is_read_alike_and_others_are_not(tmp_path: Path) -> None:
    sessions = SAMPLE.index(bytes.fromhex("000000060000001a"))
    version5 = SAMPLE[:22] + b"\5" + SAMPLE[23:sessions] + SAMPLE[-32:]
    assert read(tmp_path, version5) == [B, A]
    for version in (4, 7):
        with pytest.raises(FormatError, match=f"is version {version} of Mosquitto's persistence file"):
            read(tmp_path, SAMPLE[:22] + bytes([version]) + SAMPLE[23:])


def test_wherever_a_file_is_cut_it_is_refused_or_has_fewer_messages_and_none_is_wrong(tmp_path: Path) -> None:
    refused = 0
    for length in range(len(SAMPLE)):
        try:
            found = read(tmp_path, SAMPLE[:length])
        except FormatError:
            refused += 1
        else:
            assert found in ([], [A])
    assert refused > len(SAMPLE) - 10


def test_no_flipped_byte_does_more_than_be_refused_or_change_what_it_is_in(tmp_path: Path) -> None:
    for at in range(len(SAMPLE)):
        content = bytearray(SAMPLE)
        content[at] ^= 0xFF
        with suppress(FormatError):
            assert len(read(tmp_path, bytes(content))) <= 2


def test_a_retained_message_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="has no message 80, which it says is retained"):
        read(tmp_path, SAMPLE[:-8] + b"\x50" + bytes(7))


@needs_mosquitto
def test_what_a_mosquitto_has_retained_a_node_retains(tmp_path: Path) -> None:
    lines = ("allow_anonymous true", "persistence true", f"persistence_location {tmp_path}/")
    with mosquitto(tmp_path, *lines) as port:
        publish = ["mosquitto_pub", "-p", str(port), "-r", "-q", "1"]
        for arguments in (
            ["-t", "plant/a", "-m", "first"],
            ["-t", "plant/a", "-m", "second", "-i", "oven"],
            ["-t", "plant/gone", "-m", "x"],
            ["-t", "plant/gone", "-n"],
            ["-V", "5", "-t", "plant/b", "-m", "{}", "-D", "publish", "content-type", "application/json"],
        ):
            subprocess.run([*publish, *arguments], check=True, timeout=PATIENCE)
    # It writes the file as it ends, too.
    wait_until("the file is there", (tmp_path / "mosquitto.db").exists)
    done = berm("import", "mosquitto.db", "--data", "data", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "data: imported 2 events, set 2 retained messages\n")
    assert retained(tmp_path / "data") == {"plant/a": b"second", "plant/b": b"{}"}
    a, b = sorted(contents(tmp_path / "data"), key=lambda event: event.topic)
    assert (a.client, a.qos, a.retain) == ("oven", 1, True)
    assert b.properties == encode_properties(((Property.CONTENT_TYPE, "application/json"),))
    with Node(tmp_path) as node, Client(node.port, "display") as display:
        display.subscribe("plant/#")
        display.wait_for({b"second", b"{}"})
        assert sorted(message.topic for message in display.messages) == ["plant/a", "plant/b"]
        assert all(message.retain for message in display.messages)

"""WebSocket in front of the hub: handshakes, frames of every shape, and clients that break the rules."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import time_ns

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Close, Frame, Opcode
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from broker.listener import Limits, Listener
from broker.mqtt.codec import encode
from broker.mqtt.packets import Connack, Connect, Disconnect, Pingreq, Pingresp, Puback, Publish, Will
from broker.mqtt.reason import Reason
from broker.net.connection import LayeredConnection
from broker.net.listener import Endpoint, TCPAddress
from broker.net.tls import Certificates, TLSFiles
from broker.net.websocket import SLACK, WebSocketLayer, WebSocketOptions
from tests.broker.net.certificates import Authority
from tests.broker.net.helpers import Running, on_both_loops, running, until
from tests.broker.net.peers import Peer, WebSocketPeer

SECOND = 1_000_000
CONNECT = encode(Connect("c", 5, True, 0, None, None, None), 5)


def web(options: WebSocketOptions | None = None) -> Callable[[Listener], Endpoint]:
    """A listener for WebSocket on a port that the system chooses."""
    return lambda listener: Endpoint(
        listener, TCPAddress("127.0.0.1", 0), websocket=options or WebSocketOptions("/mqtt", ())
    )


@asynccontextmanager
async def connected(
    limits: Limits | None = None, will: Will | None = None
) -> AsyncIterator[tuple[Running, WebSocketPeer]]:
    """A node, and a client that it has accepted."""
    async with running(limits, web()) as node, await WebSocketPeer.open(node.server.port) as peer:
        await peer.connect(will=will)
        yield node, peer


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["mqtt"], "mqtt"), (["mqttv3.1"], "mqttv3.1"), (["mqttv3.1", "mqtt"], "mqtt"), (["x", "mqtt"], "mqtt")],
)
@on_both_loops
async def test_the_subprotocol_is_mqtt(offered: list[str], chosen: str) -> None:
    """[MQTT-6.0.0-3]"""
    async with running(None, web()) as node, await WebSocketPeer.open(node.server.port) as peer:
        response = await peer.shake_hands(subprotocols=offered)
        assert response.status_code == 101
        assert response.headers["Sec-WebSocket-Protocol"] == chosen
        assert "Sec-WebSocket-Extensions" not in response.headers
        await peer.connect()


@pytest.mark.parametrize(
    ("path", "offered", "status", "line"),
    [
        ("/mqtt", (), 400, "no WebSocket handshake: missing subprotocol"),
        ("/mqtt", ("chat",), 400, "no WebSocket handshake: invalid subprotocol; expected one of mqtt, mqttv3.1"),
        ("/", ("mqtt",), 404, "an HTTP request for '/', not for '/mqtt'"),
        ("/mqtt/more", ("mqtt",), 404, "an HTTP request for '/mqtt/more', not for '/mqtt'"),
    ],
)
@on_both_loops
async def test_a_client_that_asks_for_something_else_gets_a_status_and_a_line(
    path: str, offered: tuple[str, ...], status: int, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(None, web()) as node, await WebSocketPeer.open(node.server.port) as peer:
        assert (await peer.shake_hands(path, offered)).status_code == status
        await peer.ended()
        (record,) = caplog.records
        assert record.message.endswith(f": {line}; connection closed")
        assert not node.hub.clients.connections


@on_both_loops
async def test_a_query_behind_the_path_is_no_other_path() -> None:
    async with running(None, web()) as node, await WebSocketPeer.open(node.server.port) as peer:
        assert (await peer.shake_hands("/mqtt?token=1")).status_code == 101


@pytest.mark.parametrize(
    ("origin", "status"), [("https://plant.example", 101), ("https://evil.example", 403), (None, 101)]
)
@on_both_loops
async def test_pages_of_other_origins_are_refused(origin: str | None, status: int) -> None:
    options = WebSocketOptions("/mqtt", ("https://plant.example",))
    async with running(None, web(options)) as node, await WebSocketPeer.open(node.server.port) as peer:
        assert (await peer.shake_hands(origin=origin)).status_code == status


@pytest.mark.parametrize("request_", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", CONNECT + b"\r\n\r\n", b"\x16\x03\x01\n"])
@on_both_loops
async def test_what_is_no_handshake_is_one_line(request_: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with running(None, web(WebSocketOptions("/", ()))) as node, await Peer.open(node.server.port) as peer:
        await peer.send_raw(request_)
        while await peer.reader.read(1000):
            pass
        (record,) = caplog.records
        assert ": no WebSocket handshake: " in record.message
        assert "\n" not in record.message
        assert record.name == "berm.broker"


@on_both_loops
async def test_one_byte_in_each_frame_makes_the_same_packets() -> None:
    async with connected() as (_, peer):
        packets = (Publish("t", b"x", 1, packet_id=9), Pingreq())
        data = b"".join(encode(packet, 5) for packet in packets)
        for byte in data:
            await peer.send_frames(Frame(Opcode.BINARY, bytes((byte,))))
        assert {type(await peer.receive(object)) for _ in range(2)} == {Puback, Pingresp}


@on_both_loops
async def test_a_frame_may_hold_many_packets_and_half_of_another() -> None:
    """[MQTT-6.0.0-2]"""
    async with connected() as (_, peer):
        data = encode(Pingreq(), 5) * 100
        await peer.send_frames(Frame(Opcode.BINARY, data + data[:1]), Frame(Opcode.BINARY, data[1:2]))
        for _ in range(101):
            await peer.receive(Pingresp)


@on_both_loops
async def test_a_message_may_come_in_fragments_with_pings_between() -> None:
    async with connected() as (_, peer):
        data = encode(Publish("t", bytes(1000), 1, packet_id=9), 5)
        await peer.send_frames(
            Frame(Opcode.BINARY, data[:1], fin=False),
            Frame(Opcode.PING, b"one"),
            Frame(Opcode.CONT, data[1:500], fin=False),
            Frame(Opcode.PING, b"two"),
            Frame(Opcode.CONT, b"", fin=False),
            Frame(Opcode.CONT, data[500:], fin=True),
            Frame(Opcode.PONG, b"nobody asked"),
        )
        assert await peer.receive(Puback) == Puback(9)
        assert [(frame.opcode, frame.data) for frame in peer.frames] == [(Opcode.PONG, b"one"), (Opcode.PONG, b"two")]


def _huge(size: int) -> bytes:
    """The beginning of a frame of this size."""
    return b"\x82\xff" + size.to_bytes(8) + bytes(4)


MASKED = Frame(Opcode.BINARY, b"\xc0\x00").serialize(mask=True)
WRONG = {
    "text": (Frame(Opcode.TEXT, b"hello").serialize(mask=True), 1003, "a WebSocket text frame"),
    "text in fragments": (Frame(Opcode.TEXT, b"h", fin=False).serialize(mask=True), 1003, "a WebSocket text frame"),
    "too large": (_huge((1 << 20) + SLACK + 1), 1009, "bad WebSocket frames: frame with 1114113 bytes exceeds limit"),
    "as large as can be said": (
        _huge((1 << 63) - 1),
        1009,
        "bad WebSocket frames: frame with 9223372036854775807 bytes exceeds",
    ),
    "too large in fragments": (
        Frame(Opcode.BINARY, b"\xc0\x00" * (1 << 19), fin=False).serialize(mask=True)
        + Frame(Opcode.CONT, b"\xc0\x00" * SLACK, fin=False).serialize(mask=True),
        1009,
        "bad WebSocket frames: frame with 131072 bytes after reading 1048576 bytes exceeds limit",
    ),
    "no mask": (
        Frame(Opcode.BINARY, b"\xc0\x00").serialize(mask=False),
        1002,
        "bad WebSocket frames: incorrect masking",
    ),
    "no such opcode": (b"\x83\x80" + bytes(4), 1002, "bad WebSocket frames: invalid opcode"),
    "a reserved bit": (bytes((MASKED[0] | 0x40,)) + MASKED[1:], 1002, "bad WebSocket frames: reserved bits"),
    "a continuation of nothing": (
        Frame(Opcode.CONT, b"x").serialize(mask=True),
        1002,
        "bad WebSocket frames: unexpected continuation frame",
    ),
    "a message within another": (
        Frame(Opcode.BINARY, b"\xc0", fin=False).serialize(mask=True) + MASKED,
        1002,
        "bad WebSocket frames: expected a continuation frame",
    ),
    "a ping that is too long": (
        b"\x89\xfe" + (126).to_bytes(2) + bytes(4) + bytes(126),
        1002,
        "bad WebSocket frames: control frame too long",
    ),
}


@pytest.mark.parametrize(("data", "code", "line"), WRONG.values(), ids=WRONG.keys())
@on_both_loops
async def test_a_client_that_breaks_the_rules_is_told_how_and_its_will_is_left(
    data: bytes, code: int, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    """[MQTT-6.0.0-1]"""
    async with running(None, web()) as node:
        async with await WebSocketPeer.open(node.server.port) as watcher:
            await watcher.connect("w")
            await watcher.subscribe("will")
            async with await WebSocketPeer.open(node.server.port) as peer:
                await peer.connect("evil", will=Will("will", b"gone", 1, False))
                await peer.send_raw(data)
                assert await peer.closed_with() == code
            assert (await watcher.receive(Publish)).payload == b"gone"
        (record,) = caplog.records
        assert record.message.startswith("client 'evil' from 127.0.0.1:")
        assert f": {line}" in record.message


@on_both_loops
async def test_what_came_before_a_violation_counts() -> None:
    async with connected() as (node, peer):
        before = encode(Publish("t", b"kept", 1, packet_id=9), 5)
        await peer.send_frames(Frame(Opcode.BINARY, before), Frame(Opcode.TEXT, b"hello"), Frame(Opcode.BINARY, before))
        assert await peer.closed_with() == 1003
        assert node.hub.traffic.received == 1


@on_both_loops
async def test_a_closing_frame_is_answered_and_leaves_the_will() -> None:
    async with connected(will=Will("will", b"gone", 1, False)) as (node, peer):
        await peer.send_frames(Frame(Opcode.CLOSE, Close(1001, "going").serialize()))
        assert await peer.closed_with() == 1001
        await until(lambda: not node.hub.clients.connections)
        assert node.log.last == 1


@on_both_loops
async def test_a_client_that_says_goodbye_in_both_protocols_leaves_no_will(caplog: pytest.LogCaptureFixture) -> None:
    async with connected(will=Will("will", b"gone", 1, False)) as (node, peer):
        await peer.send_frames(
            Frame(Opcode.BINARY, encode(Disconnect(), 5)), Frame(Opcode.CLOSE, Close(1000, "").serialize())
        )
        assert await peer.closed_with() == 1000
        await until(lambda: not node.hub.clients.connections)
        assert node.log.last == 0
        assert not caplog.records


@on_both_loops
async def test_what_was_said_before_the_end_arrives_before_the_closing_frame() -> None:
    async with connected() as (_, peer):
        await peer.subscribe("t", 0)
        await peer.send(*(Publish("t", bytes(1000)) for _ in range(30)), Disconnect())
        for _ in range(30):
            await peer.receive(Publish)
        assert await peer.closed_with() == 1000


@on_both_loops
async def test_a_server_that_stops_says_so_in_both_protocols() -> None:
    async with connected() as (node, peer):
        await node.server.stop()
        assert (await peer.receive(Disconnect)).reason == Reason.SERVER_SHUTTING_DOWN
        assert await peer.closed_with() == 1000


@pytest.mark.parametrize("said", [b"", b"GET /mqtt HTTP/1.1\r\nHost"], ids=["nothing", "half a request"])
@on_both_loops
async def test_a_handshake_that_is_never_finished_ends_with_the_time_for_connect(said: bytes) -> None:
    async with (
        running(Limits(connect_timeout=10), web()) as node,
        await Peer.open(node.server.port) as peer,
    ):
        await peer.send_raw(said)
        await until(lambda: len(node.hub.clients.connections) == 1)
        node.hub.tick(time_ns() // 1000 + 12 * SECOND)
        await peer.ended()


@on_both_loops
async def test_frames_before_the_answer_to_the_handshake_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    async with running(None, web()) as node, await Peer.open(node.server.port) as peer:
        await peer.send_raw(_request() + Frame(Opcode.PING, b"early").serialize(mask=True))
        assert not await peer.reader.read(1000)
        (record,) = caplog.records
        assert "WebSocket frames before the handshake was answered" in record.message


def _request() -> bytes:
    client = ClientProtocol(parse_uri("ws://localhost/mqtt"), subprotocols=[Subprotocol("mqtt")])
    client.send_request(client.connect())
    return b"".join(client.data_to_send())


@on_both_loops
async def test_a_subscriber_that_never_reads_costs_its_buffer_and_gets_everything_later() -> None:
    async with (
        running(Limits(write_buffer=16 << 10), web()) as node,
        await WebSocketPeer.open(node.server.port) as subscriber,
        await WebSocketPeer.open(node.server.port) as publisher,
    ):
        await subscriber.connect("s")
        await subscriber.subscribe("t", 0)
        await publisher.connect("p")
        connection = next(c for c in node.hub.clients.connections if c.session and c.session.client_id == "s")
        count = 0
        while not connection.blocked or count % 500:
            await publisher.send(Publish("t", b"%8d" % count + bytes(5000), 1, packet_id=1))
            await publisher.receive(Puback)
            count += 1
            assert count < 5000
        transport = connection.wire._transport  # type: ignore[attr-defined] # to measure what it holds
        assert transport.get_write_buffer_size() < 64 << 10
        for n in range(count):
            assert (await subscriber.receive(Publish)).payload[:8] == b"%8d" % n


@pytest.mark.parametrize("accepted", [True, False], ids=["client", "stranger"])
@on_both_loops
async def test_a_client_that_sends_pings_for_ever_and_never_reads_is_bounded(accepted: bool) -> None:
    limits = Limits(write_buffer=16 << 10)
    async with running(limits, web()) as node, await WebSocketPeer.open(node.server.port) as peer:
        await peer.shake_hands()
        if accepted:
            await peer.connect()
        (connection,) = node.hub.clients.connections
        transport = connection.wire._transport  # type: ignore[attr-defined] # to measure what it holds
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        data = Frame(Opcode.PING, bytes(125)).serialize(mask=True) * 1000
        for _ in range(1000):
            sending = asyncio.ensure_future(peer.send_raw(data))
            await until(partial(_stopped, sending, node))
            if not sending.done():
                break
        assert connection.held
        assert connection.blocked
        assert transport.get_write_buffer_size() < 4 * limits.write_buffer + (256 << 10)
        sending.cancel()


@pytest.mark.parametrize("goodbye", [True, False])
@on_both_loops
async def test_many_small_frames_are_taken_apart_in_turns_and_count_when_the_socket_has_broken(goodbye: bool) -> None:
    async with connected(will=Will("will", b"left", 0, False)) as (node, _peer):
        (connection,) = node.hub.clients.connections
        wire = connection.wire
        assert isinstance(wire, LayeredConnection)
        packets = encode(Publish("t", b"x"), 5) * 1000 + encode(Disconnect(), 5) * goodbye
        frames = b"".join(Frame(Opcode.BINARY, bytes((byte,))).serialize(mask=True) for byte in packets)
        wire.data_received(frames)
        assert 0 < node.hub.traffic.received < 500
        wire.abort()
        await until(lambda: connection.closed)
        assert node.hub.traffic.received == 1000
        await until(wire.ended.done)
        await until(lambda: node.hub.log.last == node.hub.log.committed)
        topics = [event.topic for event in node.log.engine.read(0, node.hub.log.last, 10_000, None)[0]]
        assert topics == ["t"] * 1000 + ["will"] * (not goodbye)


@on_both_loops
async def test_no_frame_is_taken_apart_of_a_client_that_is_not_read_from() -> None:
    async with connected() as (node, _peer):
        (connection,) = node.hub.clients.connections
        wire = connection.wire
        assert isinstance(wire, LayeredConnection)
        before = node.hub.traffic.packets_received
        wire.data_received(Frame(Opcode.BINARY, encode(Pingreq(), 5)).serialize(mask=True) * 2000)
        wire.pause_reading()
        handled = node.hub.traffic.packets_received - before
        assert 0 < handled < 2000
        for _ in range(20):
            await asyncio.sleep(0)
        assert node.hub.traffic.packets_received - before == handled
        wire.resume_reading()
        await until(lambda: node.hub.traffic.packets_received - before == 2000)


@on_both_loops
async def test_nothing_is_taken_apart_of_what_a_closed_connection_has_sent() -> None:
    async with connected() as (node, _peer):
        (connection,) = node.hub.clients.connections
        wire = connection.wire
        assert isinstance(wire, LayeredConnection)
        frame = Frame(Opcode.BINARY, encode(Pingreq(), 5)).serialize(mask=True)
        wire.data_received(frame * 2000)
        assert wire.ended.done() is False
        node.hub.clients.close_all()
        handled = node.hub.traffic.packets_received
        await until(wire.ended.done)
        assert node.hub.traffic.packets_received == handled < 2000


@on_both_loops
async def test_a_part_of_a_frame_is_one_of_a_packet_that_is_waited_for() -> None:
    async with connected() as (node, peer):
        (connection,) = node.hub.clients.connections
        await peer.send_raw(Frame(Opcode.BINARY, bytes(100_000)).serialize(mask=True)[:50_000])
        await until(lambda: connection.wire.unfinished > 40_000)
        assert not connection.dawdles()
        assert connection.dawdles()


def _stopped(sending: asyncio.Future[None], node: Running) -> bool:
    """Whether everything was sent, or can't be for as long as the client reads nothing."""
    return sending.done() or any(connection.held and connection.blocked for connection in node.hub.clients.connections)


@on_both_loops
async def test_frames_go_through_tls_as_well(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificates = Certificates(TLSFiles(*authority.server()))

    def make(listener: Listener) -> Endpoint:
        return Endpoint(listener, TCPAddress("127.0.0.1", 0), certificates, WebSocketOptions("/mqtt", ()))

    async with running(None, make) as node, await WebSocketPeer.open(node.server.port, authority.trusting()) as peer:
        await peer.connect()
        await peer.subscribe("t")
        await peer.send(Publish("t", bytes(100_000), 1, packet_id=9))
        received = [await peer.receive(Puback | Publish) for _ in range(2)]  # type: ignore[arg-type] # either
        assert {type(packet) for packet in received} == {Puback, Publish}
        await peer.send(Disconnect())
        assert await peer.closed_with() == 1000


@given(st.lists(st.binary(max_size=300), max_size=8), st.booleans())
def test_whatever_comes_ends_in_an_error_and_never_in_an_exception(pieces: list[bytes], greeted: bool) -> None:
    layer = WebSocketLayer(WebSocketOptions("/mqtt", ()), 1024)
    if greeted:
        assert layer.receive(_request()) == b""
        assert layer.take().startswith(b"HTTP/1.1 101 ")
    for piece in pieces:
        layer.receive(piece)
        layer.take()
    layer.send(b"x")
    layer.close()


@given(st.lists(st.binary(max_size=300), max_size=8), st.data())
def test_binary_frames_carry_a_stream_however_they_are_cut(payloads: list[bytes], data: st.DataObject) -> None:
    layer = WebSocketLayer(WebSocketOptions("/mqtt", ()), 1024)
    sent = _request() + b"".join(Frame(Opcode.BINARY, payload).serialize(mask=True) for payload in payloads)
    first = len(_request())
    cuts = sorted(data.draw(st.sets(st.integers(first, len(sent)), max_size=10)) | {first})
    bounds = [0, *cuts, len(sent)]
    received = b""
    for start, end in pairwise(bounds):
        received += layer.receive(sent[start:end])
        layer.take()
    assert received == b"".join(payloads)
    assert not layer.error


def test_the_answer_to_connect_is_one_binary_frame() -> None:
    layer = WebSocketLayer(WebSocketOptions("/mqtt", ()), 1024)
    layer.receive(_request())
    layer.take()
    answer = encode(Connack(False, 0), 5)
    assert layer.send(answer) == Frame(Opcode.BINARY, answer).serialize(mask=False)

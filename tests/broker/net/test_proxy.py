"""The PROXY protocol: headers of both versions, of every kind, in any pieces; and what the node makes of them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from time import time_ns

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.listener import Limits, Listener
from broker.mqtt.packets import Pingreq, Pingresp
from broker.net.listener import Endpoint, TCPAddress
from broker.net.proxy import LONGEST, SIGNATURE, Origin, ProxyError, ProxyLayer, ProxyOptions, contains, parse
from broker.net.tls import Certificates, TLSFiles
from broker.net.websocket import WebSocketOptions
from tests.broker.net.certificates import Authority
from tests.broker.net.helpers import on_both_loops, running, until
from tests.broker.net.peers import Peer, WebSocketPeer

SECOND = 1_000_000
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"
IPV4 = socket.inet_aton("192.0.2.7") + socket.inet_aton("198.51.100.1") + (56324).to_bytes(2) + (443).to_bytes(2)
IPV6 = (
    socket.inet_pton(socket.AF_INET6, "2001:db8::7")
    + socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    + (56324).to_bytes(2)
    + (443).to_bytes(2)
)
UNIX = b"/run/client.sock".ljust(108, b"\0") + b"/run/server.sock".ljust(108, b"\0")


def v2(family: int, body: bytes, command: int = 0x21) -> bytes:
    """A header of version 2."""
    return SIGNATURE + bytes((command, family)) + len(body).to_bytes(2) + body


def tlv(kind: int, value: bytes) -> bytes:
    return bytes((kind,)) + len(value).to_bytes(2) + value


def tls(client: int, verify: int, name: bytes) -> bytes:
    """What a proxy says of the client's TLS: its version, and the common name of its certificate."""
    return tlv(0x20, bytes((client,)) + verify.to_bytes(4) + tlv(0x21, b"TLSv1.3") + tlv(0x22, name))


def crc32c(data: bytes) -> int:
    """By table, as others write it: the one under test goes bit by bit."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def summed(family: int, body: bytes, wrong: int = 0) -> bytes:
    """A header of version 2 with its sum in it."""
    sum_ = crc32c(v2(family, body + tlv(0x03, bytes(4)))) ^ wrong
    return v2(family, body + tlv(0x03, sum_.to_bytes(4)))


ORIGIN = Origin("192.0.2.7", 56324)
GOOD = {
    "TCP4": (V1, Origin("192.0.2.7", 56324)),
    "TCP6": (b"PROXY TCP6 2001:db8::7 2001:db8::1 56324 443\r\n", Origin("2001:db8::7", 56324)),
    "UNKNOWN": (b"PROXY UNKNOWN\r\n", Origin()),
    "UNKNOWN with addresses": (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", Origin()),
    "the longest line": (
        b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535".ljust(105, b"x") + b"\r\n",
        Origin(),
    ),
    "IPv4": (v2(0x11, IPV4), Origin("192.0.2.7", 56324)),
    "IPv6": (v2(0x21, IPV6), Origin("2001:db8::7", 56324)),
    "unix": (v2(0x31, UNIX), Origin("/run/client.sock")),
    "unix without a path": (v2(0x31, bytes(216)), Origin("unix")),
    "LOCAL": (v2(0x00, b"", 0x20), Origin()),
    "LOCAL with an address": (v2(0x11, IPV4, 0x20), Origin()),
    "unspecified": (v2(0x00, b"whatever"), Origin()),
    "more values": (v2(0x11, IPV4 + tlv(0x01, b"mqtt") + tlv(0x04, bytes(9)) + tlv(0xEE, b"")), ORIGIN),
    "a good sum": (summed(0x11, IPV4 + tlv(0x02, b"plant.example")), ORIGIN),
    "a certificate": (v2(0x11, IPV4 + tls(0x03, 0, b"sensor-7")), Origin("192.0.2.7", 56324, "sensor-7")),
    "a certificate of the session": (v2(0x11, IPV4 + tls(0x05, 0, b"\xc3\xa9")), Origin("192.0.2.7", 56324, "é")),
    "a certificate that is not good": (v2(0x11, IPV4 + tls(0x03, 1, b"sensor-7")), ORIGIN),
    "no certificate": (v2(0x11, IPV4 + tls(0x01, 0, b"sensor-7")), ORIGIN),
}

BAD = {
    "MQTT": b"\x10\x0d\x00\x04MQTT\x05\x02",
    "TLS": b"\x16\x03\x01",
    "HTTP": b"GET /mqtt HTTP/1.1\r\n",
    "lower case": b"proxy TCP4",
    "a line without an end": b"PROXY UNKNOWN ".ljust(107, b"x"),
    "a line that is too long": b"PROXY UNKNOWN ".ljust(106, b"x") + b"\r\n",
    "a family that is none": b"PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n",
    "no family": b"PROXY \r\n",
    "too few words": b"PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n",
    "too many spaces": b"PROXY TCP4  192.0.2.7 198.51.100.1 1 2\r\n",
    "an address that is none": b"PROXY TCP4 192.0.2.256 198.51.100.1 1 2\r\n",
    "an address of another family": b"PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n",
    "an address that is no text": b"PROXY TCP4 \xff 198.51.100.1 1 2\r\n",
    "a port that is none": b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 2\r\n",
    "a port with a sign": b"PROXY TCP4 192.0.2.7 198.51.100.1 +1 2\r\n",
    "another's port that is none": b"PROXY TCP4 192.0.2.7 198.51.100.1 1 x\r\n",
    "version 3": v2(0x11, IPV4, 0x31),
    "a command that is none": v2(0x11, IPV4, 0x22),
    "UDP": v2(0x12, IPV4),
    "a binary family that is none": v2(0x41, IPV4),
    "no room for addresses": v2(0x21, IPV4),
    "too long": SIGNATURE + b"\x21\x11" + (LONGEST - 15).to_bytes(2),
    "a value that is cut off": v2(0x11, IPV4 + b"\x01\x00\x05mqtt"),
    "a value without a length": v2(0x11, IPV4 + b"\x01\x00"),
    "a wrong sum": summed(0x11, IPV4, wrong=1),
    "a sum of three bytes": v2(0x11, IPV4 + tlv(0x03, bytes(3))),
    "TLS that is too short": v2(0x11, IPV4 + tlv(0x20, b"\x03\0\0")),
    "TLS that is cut off": v2(0x11, IPV4 + tlv(0x20, b"\x03\0\0\0\0\x22\x00\x09x")),
    "a name that is no text": v2(0x11, IPV4 + tls(0x03, 0, b"\xff")),
}


@pytest.mark.parametrize(("header", "origin"), GOOD.values(), ids=GOOD.keys())
def test_a_header_says_who_is_behind_the_proxy(header: bytes, origin: Origin) -> None:
    assert parse(header) == (origin, len(header))
    assert parse(header + b"\x10\x0d") == (origin, len(header))


@pytest.mark.parametrize("header", [header for header, _ in GOOD.values()], ids=GOOD.keys())
def test_a_header_that_is_not_complete_is_waited_for(header: bytes) -> None:
    assert all(parse(header[:end]) is None for end in range(len(header)))


@pytest.mark.parametrize("header", BAD.values(), ids=BAD.keys())
def test_what_is_no_header_is_refused(header: bytes) -> None:
    with pytest.raises(ProxyError):
        parse(header)


def test_what_can_not_become_a_header_any_more_is_refused_at_once() -> None:
    for begin in (b"\x10", b"PROXX", SIGNATURE[:5] + b"x"):
        with pytest.raises(ProxyError, match="no PROXY protocol header"):
            parse(begin)


@given(st.sampled_from([*GOOD.values()]), st.binary(max_size=100), st.data())
def test_what_follows_the_header_comes_through_however_it_is_cut(
    case: tuple[bytes, Origin], rest: bytes, data: st.DataObject
) -> None:
    header, origin = case
    sent = header + rest
    cuts = sorted(data.draw(st.sets(st.integers(0, len(sent)), max_size=8)))
    layer = ProxyLayer(ProxyOptions(identity=True))
    received = b""
    for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        received += layer.receive(sent[start:end])
    assert (layer.origin, received, layer.error) == (origin, rest, "")


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(lambda body: v2(0x11, IPV4 + body))))
def test_whatever_comes_is_a_header_or_an_error_and_never_an_exception(data: bytes) -> None:
    layer = ProxyLayer(ProxyOptions())
    rest = layer.receive(data)
    assert not (layer.error and (layer.origin or rest))


@given(st.ip_addresses(), st.integers(0, 65535))
def test_every_address_goes_through_both_versions(address: object, port: int) -> None:
    text = str(address)
    family, number = (socket.AF_INET6, 0x21) if ":" in text else (socket.AF_INET, 0x11)
    packed = socket.inet_pton(family, text)
    one = f"PROXY TCP{6 if ':' in text else 4} {text} {text} {port} {port}\r\n".encode()
    two = v2(number, packed + packed + port.to_bytes(2) * 2)
    assert parse(one) == (Origin(text, port), len(one))
    assert parse(two) == (Origin(text, port), len(two))


def test_the_sum_is_castagnolis() -> None:
    # RFC 3720, B.4
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_the_name_in_a_certificate_counts_only_where_that_is_wanted() -> None:
    layer = ProxyLayer(ProxyOptions())
    layer.receive(v2(0x11, IPV4 + tls(0x03, 0, b"sensor-7")))
    assert layer.origin == Origin("192.0.2.7", 56324)


def test_networks_contain_addresses_of_their_own_family() -> None:
    networks = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    inside = ("10.1.2.3", "::ffff:10.1.2.3", "fd00::1", "fd00::1%eth0")
    assert all(contains(networks, host) for host in inside)
    assert not any(contains(networks, host) for host in ("192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "", "x"))


def behind(options: ProxyOptions) -> Callable[[Listener], Endpoint]:
    """A listener behind a proxy, on a port that the system chooses."""
    return lambda listener: Endpoint(listener, TCPAddress("127.0.0.1", 0), proxy=options)


@pytest.mark.parametrize("header", [V1, v2(0x11, IPV4)], ids=["version 1", "version 2"])
@on_both_loops
async def test_a_connection_has_the_address_of_who_is_behind_the_proxy(
    header: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(None, behind(ProxyOptions())) as node, await Peer.open(node.server.port) as peer:
        await peer.send_raw(header)
        await peer.connect()
        (connection,) = node.hub.clients.connections
        assert connection.wire.host == "192.0.2.7"
        assert connection.wire.peer.startswith("192.0.2.7:56324 through 127.0.0.1:")
        await peer.send(Pingreq())
        assert await peer.receive(Pingresp) == Pingresp()
        await peer.send_raw(b"\x00\x00")
        await until(lambda: bool(caplog.records))
        assert caplog.records[0].message.startswith("client 'c' from 192.0.2.7:56324 through 127.0.0.1:")


@on_both_loops
async def test_a_proxy_that_speaks_for_itself_has_its_own_address() -> None:
    async with running(None, behind(ProxyOptions())) as node, await Peer.open(node.server.port) as peer:
        await peer.send_raw(v2(0x00, b"", 0x20))
        await peer.connect()
        (connection,) = node.hub.clients.connections
        assert connection.wire.host == "127.0.0.1"
        assert connection.wire.peer.startswith("127.0.0.1:")


@on_both_loops
async def test_the_certificate_that_the_proxy_has_seen_says_who_the_client_is() -> None:
    options = ProxyOptions(identity=True)
    async with running(None, behind(options)) as node, await Peer.open(node.server.port) as peer:
        await peer.send_raw(v2(0x11, IPV4 + tls(0x03, 0, b"sensor-7")))
        await peer.connect()
        (connection,) = node.hub.clients.connections
        assert connection.wire.identity == "sensor-7"


@on_both_loops
async def test_a_connection_without_the_header_is_closed_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async with running(None, behind(ProxyOptions())) as node, await Peer.open(node.server.port) as peer:
        await peer.send_raw(b"\x10\x0d\x00\x04MQTT")
        await peer.ended()
        (record,) = caplog.records
        assert record.message.startswith("connection from 127.0.0.1:")
        assert record.message.endswith(": no PROXY protocol header; connection closed")


@on_both_loops
async def test_a_header_from_anywhere_else_is_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    elsewhere = ProxyOptions((ip_network("10.0.0.0/8"),))
    here = ProxyOptions((ip_network("10.0.0.0/8"), ip_network("127.0.0.0/8")))
    async with running(None, behind(elsewhere), behind(here)) as node:
        async with await Peer.open(node.server.port) as peer:
            await peer.ended()
        (record,) = caplog.records
        assert record.message.endswith(": no PROXY protocol header is taken from there; connection closed")
        assert not node.hub.clients.connections
        async with await Peer.open(node.server.acceptors[1].port) as peer:
            await peer.send_raw(V1)
            await peer.connect()


@on_both_loops
async def test_half_a_header_ends_with_the_time_for_connect() -> None:
    async with (
        running(Limits(connect_timeout=10), behind(ProxyOptions())) as node,
        await Peer.open(node.server.port) as peer,
    ):
        await peer.send_raw(V1[:-1])
        await until(lambda: len(node.hub.clients.connections) == 1)
        node.hub.tick(time_ns() // 1000 + 12 * SECOND)
        await peer.ended()


@on_both_loops
async def test_the_header_comes_before_tls_and_websocket(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificates = Certificates(TLSFiles(*authority.server()))

    def make(listener: Listener) -> Endpoint:
        at = TCPAddress("127.0.0.1", 0)
        return Endpoint(listener, at, certificates, WebSocketOptions("/mqtt", ()), ProxyOptions())

    async with running(None, make) as node, await WebSocketPeer.open(node.server.port) as peer:
        await peer.send_raw(v2(0x11, IPV4))
        await peer.writer.start_tls(authority.trusting(), server_hostname="localhost")
        await peer.connect()
        (connection,) = node.hub.clients.connections
        assert connection.wire.host == "192.0.2.7"
        await peer.send(Pingreq())
        assert await peer.receive(Pingresp) == Pingresp()

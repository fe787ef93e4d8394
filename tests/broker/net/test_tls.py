"""TLS in front of the hub, with real certificates: versions, clients' certificates, reloads, and peers that err."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import time_ns

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from broker.listener import Limits, Listener
from broker.mqtt.codec import encode
from broker.mqtt.packets import Connect, Disconnect, Pingreq, Pingresp, Puback, Publish
from broker.mqtt.reason import Reason
from broker.net import server as shell
from broker.net import tls
from broker.net.listener import Endpoint, TCPAddress
from broker.net.tls import Certificates, TLSError, TLSFiles, TLSLayer, load
from tests.broker.net.certificates import Authority, serial, serial_of, write_key
from tests.broker.net.helpers import Running, on_both_loops, running, until
from tests.broker.net.peers import Peer

SECOND = 1_000_000


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def secure(files: TLSFiles) -> Callable[[Listener], Endpoint]:
    """A listener with TLS on a port that the system chooses."""
    return lambda listener: Endpoint(listener, TCPAddress("127.0.0.1", 0), tls=Certificates(files))


def files_of(authority: Authority) -> TLSFiles:
    return TLSFiles(*authority.server())


def sent_serial(peer: Peer) -> int:
    """Which certificate the server has shown."""
    der = peer.writer.get_extra_info("ssl_object").getpeercert(True)
    assert isinstance(der, bytes)
    return serial_of(der)


def identities(node: Running) -> list[str]:
    return [connection.wire.identity for connection in node.hub.clients.connections]


async def refused(node: Running, context: ssl.SSLContext) -> None:
    """Wait until a client with this context has been refused. TLS 1.3 does that when the client is content already."""
    with suppress(ssl.SSLError, ConnectionError):
        async with await Peer.open(node.server.port, context) as peer:
            await peer.send(Connect("c", 5, True, 0, None, None, None))
            assert not await peer.read()
    await until(lambda: not node.hub.clients.connections)
    assert not node.hub.sessions.all


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
@on_both_loops
async def test_a_message_goes_through_tls_and_is_acknowledged(version: str, authority: Authority) -> None:
    context = authority.trusting()
    number = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}[version]
    context.minimum_version = context.maximum_version = number
    async with (
        running(None, secure(files_of(authority))) as node,
        await Peer.open(node.server.port, context) as subscriber,
        await Peer.open(node.server.port, context) as publisher,
    ):
        assert subscriber.writer.get_extra_info("ssl_object").version() == version
        await subscriber.connect("s")
        await subscriber.subscribe("t")
        await publisher.connect("p")
        payload = bytes(100_000)
        await publisher.send(Publish("t", payload, 1, packet_id=9))
        assert await publisher.receive(Puback) == Puback(9)
        assert await subscriber.receive(Publish) == Publish("t", payload, 1, packet_id=1)


@on_both_loops
async def test_an_old_version_is_refused_in_one_line(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    old = authority.trusting()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    async with running(None, secure(replace(files_of(authority), minimum_version="1.3"))) as node:
        await refused(node, old)
        (record,) = caplog.records
        assert record.message.endswith(": TLS: unsupported protocol; connection closed")
        assert record.message.startswith("connection from 127.0.0.1:")


@on_both_loops
async def test_a_client_that_speaks_no_tls_is_closed_in_one_line(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(None, secure(files_of(authority))) as node, await Peer.open(node.server.port) as peer:
        await peer.send(Connect("c", 5, True, 0, None, None, None))
        while await peer.reader.read(100):  # an alert
            pass
        (record,) = caplog.records
        assert record.message.endswith(": TLS: wrong version number; connection closed")


@on_both_loops
async def test_a_required_certificate_says_who_the_client_is(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    files = replace(files_of(authority), client_ca=authority.file, require_client_certificate=True, identity="cn")
    good = authority.trusting(authority.client("sensor-7"))
    async with running(None, secure(files)) as node:
        await refused(node, authority.trusting())
        (record,) = caplog.records
        assert "TLS: peer did not return a certificate" in record.message
        async with await Peer.open(node.server.port, good) as peer:
            await peer.connect()
            assert identities(node) == ["sensor-7"]


@on_both_loops
async def test_a_certificate_of_a_stranger_is_refused_even_where_none_is_required(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other", "other")
    files = replace(files_of(authority), client_ca=authority.file, identity="cn")
    async with running(None, secure(files)) as node:
        await refused(node, authority.trusting(stranger.client("sensor-7")))
        (record,) = caplog.records
        assert "TLS: the client's certificate is not good: unable to get local issuer certificate" in record.message
        async with await Peer.open(node.server.port, authority.trusting()) as peer:
            await peer.connect()
            assert identities(node) == [""]


@pytest.mark.parametrize(
    ("alternatives", "identity"),
    [
        ([x509.DNSName("seven.plant")], "seven.plant"),
        ([x509.UniformResourceIdentifier("urn:sensor:7")], "urn:sensor:7"),
        ([x509.RFC822Name("seven@plant.example"), x509.DNSName("seven.plant")], "seven@plant.example"),
        ([], ""),
    ],
)
@on_both_loops
async def test_the_identity_can_be_an_alternative_name(
    alternatives: list[x509.GeneralName], identity: str, authority: Authority
) -> None:
    files = replace(files_of(authority), client_ca=authority.file, identity="san")
    context = authority.trusting(authority.client("sensor-7", *alternatives))
    async with running(None, secure(files)) as node, await Peer.open(node.server.port, context) as peer:
        await peer.connect()
        assert identities(node) == [identity]


@on_both_loops
async def test_a_revoked_certificate_is_refused_and_no_other(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    lost, kept = authority.client("lost"), authority.client("kept")
    files = replace(files_of(authority), client_ca=authority.file, crl=authority.revocation_list(lost[0]))
    async with running(None, secure(files)) as node:
        await refused(node, authority.trusting(lost))
        (record,) = caplog.records
        assert "the client's certificate is not good: certificate revoked" in record.message
        async with await Peer.open(node.server.port, authority.trusting(kept)) as peer:
            await peer.connect()


@pytest.mark.parametrize("way", ["asked for", "by the files"])
@on_both_loops
async def test_a_new_certificate_is_for_new_connections_and_ends_none(
    way: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "by the files":
        monkeypatch.setattr(shell, "WATCH", 0.01)
    files = files_of(authority)
    old = serial(files.certificate)
    context = authority.trusting()
    async with (
        running(None, secure(files)) as node,
        await Peer.open(node.server.port, context) as before,
    ):
        assert sent_serial(before) == old
        await before.connect("before")
        new = serial(authority.server()[0])
        if way == "asked for":
            node.server.reload()
        (certificates,) = [acceptor.endpoint.tls for acceptor in node.server.acceptors]
        assert certificates is not None
        first = certificates.context
        await until(lambda: certificates.context is not first)
        async with await Peer.open(node.server.port, context) as after:
            assert sent_serial(after) == new != old
        await before.send(Pingreq())
        assert await before.receive(Pingresp) == Pingresp()


@on_both_loops
async def test_a_certificate_that_does_not_load_leaves_the_old_one_and_an_error(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    files = files_of(authority)
    old = serial(files.certificate)
    async with running(None, secure(files)) as node:
        files.key.write_text("nothing that could be a key\n")
        node.server.reload()
        await until(lambda: bool(caplog.records))
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert f"{files.key}: it is not a PEM file of a private key that can be used" in record.message
        assert record.message.endswith("; it goes on with the old certificate")
        async with await Peer.open(node.server.port, authority.trusting()) as peer:
            assert sent_serial(peer) == old
            await peer.connect()


def test_files_that_change_are_loaded_once_they_have_stopped_changing(authority: Authority) -> None:
    certificates = Certificates(files_of(authority))
    assert not certificates.changed()
    authority.server()
    assert not certificates.changed()
    authority.server()
    assert not certificates.changed()
    assert certificates.changed()
    assert not certificates.changed()
    certificates.files.key.unlink()
    assert not certificates.changed()
    assert certificates.changed()
    assert not certificates.changed()


def _bad(authority: Authority, what: str) -> tuple[TLSFiles, str]:
    """Files that can't be used, and how the error begins."""
    files = files_of(authority)
    scrap = authority.directory / "scrap.pem"
    scrap.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    missing = authority.directory / "missing.pem"
    key = ec.generate_private_key(ec.SECP256R1())
    match what:
        case "no certificate":
            return replace(files, certificate=missing), f"{missing}: cannot be read: No such file or directory"
        case "no key":
            return replace(files, key=missing), f"{missing}: cannot be read: No such file or directory"
        case "a directory":
            here = authority.directory
            return replace(files, key=here), f"{here}: cannot be read: Is a directory"
        case "a certificate that is none":
            return replace(files, certificate=scrap), f"{scrap}: it is not a PEM file of a certificate"
        case "a key that is none":
            return replace(files, key=scrap), f"{scrap}: it is not a PEM file of a private key"
        case "another's key":
            other = write_key(key, authority.directory / "other.key")
            return replace(files, key=other), f"{other}: it is not the key of the certificate in {files.certificate}"
        case "an encrypted key":
            locked = write_key(key, authority.directory / "locked.key", b"secret")
            return replace(files, key=locked), f"{locked}: it is encrypted"
        case "authorities that are none":
            return replace(files, client_ca=scrap), f"{scrap}: it is not a PEM file of certificates"
        case "a revocation list that is none":
            return replace(files, client_ca=authority.file, crl=authority.file), f"{authority.file}: there is no "
    raise AssertionError(what)


@pytest.mark.parametrize(
    "what",
    [
        "no certificate",
        "no key",
        "a directory",
        "a certificate that is none",
        "a key that is none",
        "another's key",
        "an encrypted key",
        "authorities that are none",
        "a revocation list that is none",
    ],
)
def test_a_file_that_can_not_be_used_is_named_and_the_reason_told(what: str, authority: Authority) -> None:
    files, expected = _bad(authority, what)
    with pytest.raises(TLSError) as caught:
        load(files)
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


@on_both_loops
async def test_a_handshake_that_is_never_finished_ends_with_the_time_for_connect(authority: Authority) -> None:
    async with (
        running(Limits(connect_timeout=10), secure(files_of(authority))) as node,
        await Peer.open(node.server.port) as peer,
    ):
        await peer.send_raw(b"\x16\x03\x01")
        await until(lambda: len(node.hub.clients.connections) == 1)
        node.hub.tick(time_ns() // 1000 + 12 * SECOND)
        await peer.ended()


@on_both_loops
async def test_what_was_said_before_the_end_arrives_before_it_and_the_end_is_said_too(authority: Authority) -> None:
    async with (
        running(None, secure(files_of(authority))) as node,
        await Peer.open(node.server.port, authority.trusting()) as peer,
    ):
        await peer.connect()
        (connection,) = node.hub.clients.connections
        connection.close(Reason.ADMINISTRATIVE_ACTION)
        assert await peer.receive(Disconnect) == Disconnect(Reason.ADMINISTRATIVE_ACTION)
        await peer.ended()  # a stream that is cut off instead would be an SSLError


@on_both_loops
async def test_a_subscriber_that_never_reads_costs_its_buffer_and_gets_everything_later(authority: Authority) -> None:
    async with (
        running(Limits(write_buffer=16 << 10), secure(files_of(authority))) as node,
        await Peer.open(node.server.port, authority.trusting()) as subscriber,
        await Peer.open(node.server.port, authority.trusting()) as publisher,
    ):
        await subscriber.connect("s")
        await subscriber.subscribe("t", 0)
        await publisher.connect("p")
        subscriber.writer.transport.pause_reading()  # type: ignore[attr-defined] # StreamReader does the same
        connection = next(c for c in node.hub.clients.connections if c.session and c.session.client_id == "s")
        count = 0
        while not connection.blocked or count % 500:
            await publisher.send(Publish("t", b"%8d" % count + bytes(5000), 1, packet_id=1))
            await publisher.receive(Puback)
            count += 1
            assert count < 5000
        transport = connection.wire._transport  # type: ignore[attr-defined] # to measure what it holds
        assert transport.get_write_buffer_size() < 64 << 10
        subscriber.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for n in range(count):
            assert (await subscriber.receive(Publish)).payload[:8] == b"%8d" % n


class _MemoryClient:
    """A TLS client without a socket."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.done = False

    def step(self) -> None:
        try:
            self.tls.do_handshake()
            self.done = True
        except ssl.SSLWantReadError:
            pass


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_records_may_come_in_any_pieces(size: int, authority: Authority) -> None:
    layer = TLSLayer(Certificates(files_of(authority)))
    client = _MemoryClient(authority.trusting())
    received = b""
    data = b""
    while not received:
        client.step()
        if client.done:
            client.tls.write(encode(Connect("c", 5, True, 0, None, None, None), 5))
        data = client.outgoing.read()
        for at in range(0, len(data), size):
            received += layer.receive(data[at : at + size])
            client.incoming.write(layer.take())
    assert received == encode(Connect("c", 5, True, 0, None, None, None), 5)
    client.incoming.write(layer.send(bytes(100_000)))
    read = b""
    while len(read) < 100_000:
        read += client.tls.read(1 << 20)
    client.incoming.write(layer.close())
    assert client.tls.read(1) == b""
    assert (layer.error, layer.ended) == ("", False)


def test_what_comes_before_the_end_counts(authority: Authority) -> None:
    layer = TLSLayer(Certificates(files_of(authority)))
    client = _MemoryClient(authority.trusting())
    while not client.done:
        client.step()
        layer.receive(client.outgoing.read())
        client.incoming.write(layer.take())
    client.tls.write(b"last words")
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.unwrap()
    assert layer.receive(client.outgoing.read()) == b"last words"
    assert layer.ended
    assert not layer.error


def test_a_client_that_does_not_trust_the_server_says_why(authority: Authority) -> None:
    layer = TLSLayer(Certificates(files_of(authority)))
    client = _MemoryClient(ssl.create_default_context())
    client.step()
    layer.receive(client.outgoing.read())
    client.incoming.write(layer.take())
    with pytest.raises(ssl.SSLCertVerificationError):
        client.step()
    assert layer.receive(client.outgoing.read()) == b""
    assert layer.error == "TLS: tlsv1 alert unknown ca"
    assert layer.send(b"x") == layer.close() == layer.receive(b"x") == b""


@on_both_loops
async def test_a_reload_that_is_asked_for_during_another_is_done_after_it(authority: Authority) -> None:
    async with running(None, secure(files_of(authority))) as node:
        server = node.server
        server.reload()
        new = serial(authority.server()[0])
        server.reload()
        await until(lambda: server._reloading is None)
        async with await Peer.open(server.port, authority.trusting()) as peer:
            assert sent_serial(peer) == new


def test_a_file_that_goes_while_it_is_loaded_is_an_error_like_one_that_was_never_there(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "_check_readable", lambda path: None)
    good, gone = files_of(authority), authority.directory / "gone.pem"
    for files in (replace(good, certificate=gone), replace(good, client_ca=gone)):
        with pytest.raises(TLSError, match="cannot be read: No such file or directory"):
            load(files)

"""The shell around an uplink, with real sockets and an uplink that says what a test wants it to say."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import pytest

from broker.net.dialer import Dialer
from tests.node import PATIENCE, free_port


class Script:
    """An uplink that remembers what it was told, and writes `out`."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake = wake
        self.up = False
        self.want_close = ""
        self.last_error = ""
        self.out: list[bytes] = []
        self.told: list[object] = []
        self.fails = False
        self.retry_after = 0
        self.changed = asyncio.Event()

    def opened(self, now: int) -> None:
        self._tell("opened")
        self.out.append(b"hello")

    def receive(self, data: bytes, now: int) -> None:
        if self.fails:
            raise RuntimeError("ours")
        self.up = True
        self._tell(data)

    def take(self) -> bytes:
        return self.out.pop(0) if self.out else b""

    def paused(self, paused: bool) -> None:
        self._tell(("paused", paused))

    def closed(self, now: int, error: str = "") -> None:
        self.last_error = self.want_close or error or "the peer closed the connection"
        self.up = False
        self.want_close = ""
        self._tell("closed")

    def tick(self, now: int) -> None:
        pass

    def stop(self, now: int) -> None:
        self.out.append(b"bye")
        self.want_close = "the node stops"

    def retry_at(self, now: int, random: float) -> int:
        return now + self.retry_after

    def _tell(self, what: object) -> None:
        self.told.append(what)
        self.changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not holds():
                self.changed.clear()
                await self.changed.wait()


class Peer:
    """A listener that keeps what it is sent, and answers with `yes`."""

    def __init__(self, answers: bool = True) -> None:
        self.connections: list[asyncio.StreamWriter] = []
        self.received = b""
        self.ended = asyncio.Event()
        self._answers = answers

    async def listen(self, port: int = 0) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(writer)
        while data := await reader.read(1 << 16):
            self.received += data
            if self._answers:
                writer.write(b"yes")
        self.ended.set()
        writer.close()

    async def close(self) -> None:
        self._server.close()
        for writer in self.connections:
            writer.close()
        await asyncio.sleep(0)


class Rig:
    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.dialer = Dialer("cloud", host, port, self._make)

    def _make(self, wake: Callable[[], None]) -> Script:
        self.uplink = Script(wake)
        return self.uplink


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    peer = Peer()
    yield peer
    await peer.close()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "berm.bridge"]


async def test_it_dials_writes_hears_and_says_goodbye(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    port = await peer.listen()
    rig = Rig(port)
    rig.dialer.start()
    await rig.uplink.until(lambda: b"yes" in rig.uplink.told)
    rig.dialer.stop()
    async with asyncio.timeout(PATIENCE):
        await peer.ended.wait()
    assert peer.received == b"hellobye"
    assert rig.uplink.told == ["opened", b"yes", "closed"]
    assert lines(caplog) == [f"bridge cloud: connected to 127.0.0.1:{port}"]


async def test_waking_writes_in_a_later_turn(peer: Peer) -> None:
    rig = Rig(await peer.listen())
    rig.dialer.start()
    await rig.uplink.until(lambda: b"yes" in rig.uplink.told)
    rig.uplink.out.append(b"more")
    rig.uplink.wake()
    assert rig.uplink.out == [b"more"]
    await rig.uplink.until(lambda: rig.uplink.told.count(b"yes") == 2)
    assert peer.received == b"hellomore"
    rig.dialer.stop()


async def test_a_long_answer_leaves_the_loop_to_others(peer: Peer) -> None:
    rig = Rig(await peer.listen())
    rig.dialer.start()
    await rig.uplink.until(lambda: b"yes" in rig.uplink.told)
    rig.uplink.out += [b"%d" % number for number in range(100)]
    rig.uplink.wake()
    left = []
    while rig.uplink.out:
        await asyncio.sleep(0)
        left.append(len(rig.uplink.out))
    assert len(left) > 10
    rig.dialer.stop()


async def test_an_outage_is_one_line_and_its_end_another(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    port = free_port()
    rig = Rig(port)
    rig.dialer.start()
    await rig.uplink.until(lambda: rig.uplink.told.count("closed") >= 3)
    assert lines(caplog) == [
        f"bridge cloud: no connection to 127.0.0.1:{port}: connection refused; "
        "what it forwards waits in the log, and it tries again"
    ]
    await peer.listen(port)
    await rig.uplink.until(lambda: rig.uplink.up)
    (_, back) = lines(caplog)
    assert back.startswith(f"bridge cloud: connected to 127.0.0.1:{port} again, after ")
    rig.dialer.stop()


async def test_a_peer_that_hangs_up_is_dialled_again(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(await peer.listen())
    rig.dialer.start()
    await rig.uplink.until(lambda: rig.uplink.up)
    peer.connections[0].close()
    await rig.uplink.until(lambda: rig.uplink.told.count(b"yes") == 2)
    assert rig.uplink.told == ["opened", b"yes", "closed", "opened", b"yes"]
    assert [line.split(": ")[2].split(";")[0] for line in lines(caplog)] == ["the peer closed the connection"]
    rig.dialer.stop()


async def test_what_the_uplink_wants_closed_is_closed_after_its_last_words(peer: Peer) -> None:
    rig = Rig(await peer.listen())
    rig.uplink.retry_after = 3_600_000_000
    rig.dialer.start()
    await rig.uplink.until(lambda: rig.uplink.up)
    rig.uplink.out.append(b"last")
    rig.uplink.want_close = "enough"
    rig.uplink.wake()
    async with asyncio.timeout(PATIENCE):
        await peer.ended.wait()
    assert peer.received == b"hellolast"
    assert rig.uplink.last_error == "enough"
    rig.dialer.stop()


async def test_a_peer_that_takes_nothing_any_more_does_not_hold_up_the_next_connection() -> None:
    """What is unsent can't leave: the connection is let go of at once, and another one dialled."""
    accepted: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: accepted.append(writer), "127.0.0.1", 0, limit=1)
    rig = Rig(server.sockets[0].getsockname()[1])
    rig.dialer.start()
    await rig.uplink.until(lambda: "opened" in rig.uplink.told)
    rig.uplink.out.append(b"x" * (64 << 20))
    rig.uplink.wake()
    await rig.uplink.until(lambda: ("paused", True) in rig.uplink.told)
    rig.uplink.want_close = "no answer to PINGREQ"
    rig.uplink.wake()
    await rig.uplink.until(lambda: rig.uplink.told.count("opened") == 2)
    rig.dialer.stop()
    server.close()
    for writer in accepted:
        writer.transport.abort()
    await asyncio.sleep(0.01)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "..", "a" * 64 + ".example"])
async def test_a_name_that_leads_nowhere_is_an_outage_like_any_other(
    host: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(1883, host)
    rig.dialer.start()
    await rig.uplink.until(lambda: rig.uplink.told.count("closed") >= 2)
    (line,) = lines(caplog)
    assert line.startswith(f"bridge cloud: no connection to {host}:1883: ")
    assert line.split(": ")[2].split(";")[0]
    rig.dialer.stop()


async def test_a_peer_that_never_answers_is_given_up(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.net.dialer.CONNECT_TIMEOUT", 0.05)

    async def never(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
    rig = Rig(1883, "slow.example")
    rig.dialer.start()
    await rig.uplink.until(lambda: "closed" in rig.uplink.told)
    (line,) = lines(caplog)
    assert "slow.example:1883: no answer within 0.05 s; what it forwards waits in the log" in line
    rig.dialer.stop()


async def test_an_error_of_ours_ends_the_connection_and_not_the_bridge(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(await peer.listen())
    rig.uplink.fails = True
    rig.dialer.start()
    await rig.uplink.until(lambda: "closed" in rig.uplink.told)
    rig.uplink.fails = False
    await rig.uplink.until(lambda: rig.uplink.up)
    assert rig.dialer.crashed == 1
    assert any(record.exc_info for record in caplog.records)
    rig.dialer.stop()


async def test_stopping_while_it_dials_is_no_outage(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialling = asyncio.Event()

    async def never(*_: object, **__: object) -> None:
        dialling.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
    rig = Rig(1883, "slow.example")
    rig.dialer.start()
    await dialling.wait()
    rig.dialer.stop()
    await asyncio.sleep(0)
    assert lines(caplog) == []

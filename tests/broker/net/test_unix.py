"""Unix sockets: their files come and go, with mode and group, and nobody's file is taken away."""

from __future__ import annotations

import grp
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.listener import Listener
from broker.mqtt.packets import Puback, Publish
from broker.net.errors import ListenError
from broker.net.listener import Endpoint, UnixAddress, try_to_bind
from tests.broker.net.helpers import on_both_loops, running
from tests.broker.net.peers import Peer


@pytest.fixture
def precious(path: Path) -> str:
    """A file that is in the way; its content."""
    path.write_text("precious")
    return "precious"


def local(path: Path, mode: int = 0o660, group: str = "") -> Callable[[Listener], Endpoint]:
    return lambda listener: Endpoint(listener, UnixAddress(path, mode, group))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mqtt.sock"


def names(directory: Path) -> list[str]:
    """What is there."""
    return [each.name for each in directory.iterdir()]


def leave_behind(path: Path) -> int:
    """A socket on which nobody listens any more; its inode."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    return path.lstat().st_ino


@on_both_loops
async def test_a_message_goes_through_a_file_and_is_acknowledged(path: Path) -> None:
    async with running(None, local(path)) as node, await Peer.open_unix(path) as peer:
        await peer.connect()
        await peer.subscribe("t")
        await peer.send(Publish("t", b"x", 1, packet_id=9))
        assert {type(await peer.receive(object)) for _ in range(2)} == {Puback, Publish}
        (connection,) = node.hub.clients.connections
        assert (connection.wire.peer, connection.wire.host) == ("a local socket", "")
    assert not names(path.parent)


@on_both_loops
async def test_the_file_has_its_mode_and_group(path: Path) -> None:
    group = grp.getgrgid(os.getgroups()[0] if os.getgroups() else os.getgid())
    async with running(None, local(path, 0o602, group.gr_name)):
        found = os.stat(path)
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o602, group.gr_gid)


@on_both_loops
async def test_what_a_killed_node_has_left_is_replaced(path: Path) -> None:
    leave_behind(path)
    async with running(None, local(path)), await Peer.open_unix(path) as peer:
        await peer.connect()


@on_both_loops
async def test_a_socket_that_somebody_listens_on_is_left_alone(path: Path) -> None:
    async with running(None, local(path)):
        with pytest.raises(ListenError, match=rf"cannot listen on {path}: address already in use"):
            async with running(None, local(path)):
                pass
        async with await Peer.open_unix(path) as peer:
            await peer.connect()


@on_both_loops
async def test_a_file_that_is_no_socket_is_left_alone(path: Path, precious: str) -> None:
    with pytest.raises(ListenError, match="something that is no socket is there"):
        async with running(None, local(path)):
            pass
    with open(path) as file:  # noqa: ASYNC230 - nothing else runs
        assert file.read() == precious


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda here: UnixAddress(here / "no" / "mqtt.sock"), "no such file or directory"),
        (lambda here: UnixAddress(here / ("x" * 108)), "af_unix path too long"),
        (
            lambda here: UnixAddress(here / "mqtt.sock", group="nobody-has-such-a-group"),
            "there is no group nobody-has-such",
        ),
    ],
    ids=["no directory", "too long", "no group"],
)
@on_both_loops
async def test_a_place_that_can_not_be_used_is_told_with_its_reason(
    make: Callable[[Path], UnixAddress], error: str, tmp_path: Path
) -> None:
    at = make(tmp_path)
    with pytest.raises(ListenError, match=error):
        async with running(None, lambda listener: Endpoint(listener, at)):
            pass
    with pytest.raises(OSError):
        try_to_bind(at)
    assert not names(tmp_path)


@on_both_loops
async def test_a_file_that_another_has_put_in_its_place_stays(path: Path) -> None:
    async with running(None, local(path)):
        os.unlink(path)
        inode = leave_behind(path)
    assert os.lstat(path).st_ino == inode


def test_to_try_a_place_leaves_nothing_there(path: Path) -> None:
    try_to_bind(UnixAddress(path))
    assert not path.exists()

"""One node for all scripts, whose clock they move, and names that no two runs share."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from broker.passwords import lines
from tests.conformance.clock import COMMAND, VARIABLE, Clock
from tests.node import Node

USER = "me"
PASSWORD = "secret"
RULES = """\
deny all +/denied/#
allow all #
"""
CONFIG = """\
[mqtt]
receive_maximum = 10
topic_alias_maximum = 5
max_packet_size = 100_000
max_keep_alive = 600

[[listeners]]
name = "tcp"
port = 0

[[listeners]]
name = "ws"
type = "websocket"
port = 0
"""
"""Bounds that a script can reach: they are written in scripts as numbers."""
GUARDED = """
[[listeners]]
name = "{transport}-{name}"
type = "{type}"
port = 0

[listeners.access]
password_file = "passwords"
acl_file = "acl"
client_ids = "{client_ids}"
"""
"""The listeners that a script asks for by `at secured`, and by `at bound`: there client identifiers begin with me-."""
LIMITED = """
[[listeners]]
name = "{transport}-limited"
type = "{type}"
port = 0
max_qos = 1
topic_alias_maximum = 0
retain_available = false
wildcard_subscription_available = false
subscription_identifier_available = false
shared_subscription_available = false
"""
"""The listener that a script asks for by `at limited`."""


def config() -> str:
    """Each listener for each transport."""
    transports = (("tcp", "tcp"), ("ws", "websocket"))
    guarded = [
        GUARDED.format(transport=transport, type=type, name=name, client_ids=client_ids)
        for transport, type in transports
        for name, client_ids in (("secured", ""), ("bound", "%u-*"))
    ]
    limited = [LIMITED.format(transport=transport, type=type) for transport, type in transports]
    return "".join((CONFIG, *guarded, *limited))


_numbers = count(1)


@pytest.fixture(scope="session")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clock]:
    """The clock of the node."""
    file = tmp_path_factory.mktemp("clock") / "ahead"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(file))
        yield Clock(file)


@pytest.fixture(scope="package")
def node(tmp_path_factory: pytest.TempPathFactory, clock: Clock) -> Iterator[Node]:
    """A node that goes on through all scripts, unless one restarts it."""
    directory = tmp_path_factory.mktemp("node")
    (directory / "passwords").write_text("\n".join(lines(USER, PASSWORD, scram=True)) + "\n")
    (directory / "passwords").chmod(0o600)
    (directory / "acl").write_text(RULES)
    with Node(directory, config(), command=COMMAND) as node:
        yield node
        assert node.stop() == 0
        assert "Traceback" not in node.stderr


@pytest.fixture
def unique() -> str:
    """What begins the client identifiers and topics of one run."""
    return f"c{next(_numbers)}"

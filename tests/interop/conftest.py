"""One node for all tests that don't stop it, and names that no two tests share."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from tests.node import Node

_numbers = count(1)


@pytest.fixture(scope="package")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node that goes on through all tests of the folder."""
    with Node(tmp_path_factory.mktemp("node")) as node:
        yield node
        assert node.stop() == 0
        assert "Traceback" not in node.stderr


@pytest.fixture
def name() -> str:
    """For client identifiers and topics of one test; short enough for MQTT 3.1."""
    return f"t{next(_numbers)}"

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.interface import Engine
from tests.storage.contract import STORES, Rig, Store


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    made: Store = request.param(tmp_path / "data")
    return made


@pytest.fixture
def engine(store: Store) -> Iterator[Engine]:
    opened = store.open()
    yield opened
    opened.close()


@pytest.fixture
def rig(store: Store) -> Iterator[Rig]:
    made = Rig(store)
    yield made
    made.engine.close()

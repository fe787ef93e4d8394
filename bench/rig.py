"""A node to be measured, in an empty directory, and how much of everything is done to it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.brokers import HOST, Broker, BrokerError, Kind, berm_command
from berm.passwd import set_password

USER: Final = "device"
PASSWORD: Final = "correct horse battery staple"

_CONFIG: Final = """\
[node]
name = "bench"
[storage]
path = "data"
[mqtt]
host = "{host}"
port = {port}
max_connections = {most}
[log]
level = "error"
"""

_ACCESS: Final = """\
[mqtt.access]
password_file = "passwords"
anonymous = true
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything. Times in s."""

    clients: int = 10_000
    rounds: int = 3
    idle: float = 40
    """How long clients do nothing but ping, with nobody else there; then a pair talks for half as long."""
    nuisances: int = 1000
    disturbed: float = 11
    """How long a disturbance lasts: longer than a connection may take to say CONNECT."""
    paced: float = 4
    """How long clients connect at a fixed rate."""
    flat_out: float = 3
    """How long clients connect as often as it goes."""


QUICK: Final = Plan(clients=60, rounds=1, idle=0.4, nuisances=20, disturbed=0.5, paced=0.5, flat_out=0.3)


@dataclass(frozen=True, slots=True)
class Rig:
    """Where measurements are made, and how much is measured."""

    plan: Plan
    directory: Path

    @contextmanager
    def node(self, passwords: bool = False) -> Iterator[Broker]:
        """A new node, ended at the end; with `passwords` it checks those of clients that have one.

        Raises:
            BrokerError: it doesn't start, or has logged an error.
        """

        def prepare(directory: Path, port: int) -> list[str]:
            config = directory / "berm.toml"
            text = _CONFIG.format(host=HOST, port=port, most=self.plan.clients + self.plan.nuisances)
            config.write_text(text + (_ACCESS if passwords else ""))
            if passwords:
                set_password(directory / "passwords", USER, PASSWORD, scram=False)
            return berm_command(config)

        with tempfile.TemporaryDirectory(prefix="node-", dir=self.directory) as place:
            broker = Kind("the node", "", prepare, lambda: "").start(Path(place).resolve())
            try:
                yield broker
            finally:
                broker.stop()
            errors = [line for line in broker.output.read_text(errors="replace").splitlines() if "ERROR" in line]
            if errors:
                raise BrokerError(f"the node had an error: {errors[0]}")

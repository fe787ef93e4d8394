"""What the hub knows of a listener: the bounds that its clients meet, and where their topics are in the tree of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.hub import Limits


@dataclass(slots=True, eq=False)
class Listener:
    """One place where clients connect. The node's own bounds on connections hold beside those of `limits`."""

    name: str
    limits: Limits
    mount_point: str = ""
    """What is put before each topic that its clients name, and taken off those that they receive."""
    clients: int = 0
    """Connections to it whose CONNECT was accepted."""

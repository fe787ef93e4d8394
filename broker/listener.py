"""What the hub knows of a listener: the bounds that its clients meet, and where their topics are in the tree of all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.auth import Access
    from broker.hub import Limits
    from broker.quotas import Meter


@dataclass(slots=True, eq=False)
class Listener:
    """One place where clients connect. The node's own bounds on connections hold beside those of `limits`."""

    name: str
    limits: Limits
    mount_point: str = ""
    """What is put before each topic that its clients name, and taken off those that they receive."""
    clients: int = 0
    """Connections to it whose CONNECT was accepted."""
    access: Access | None = None
    """Who may connect, and do what; None: everyone, as nobody in particular, and everything."""
    meter: Meter | None = None
    """Its quotas, and what has been used of them; None: none."""
    topics: set[str] = field(default_factory=set)
    """Topics that any client to which no rules apply may publish to: those found so lately."""

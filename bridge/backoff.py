"""How long to wait before dialling again: exponential, full jitter, and never below a floor.

Full jitter spreads a fleet of edges evenly when their cloud comes back; the floor keeps a lucky draw from hammering it.
"""

from __future__ import annotations

from typing import Final

MOST_DOUBLINGS: Final = 32
"""Beyond this many attempts the ceiling has long been reached, and doubling on would only grow the number."""


def delay(attempt: int, minimum: float, maximum: float, random: float) -> float:
    """Seconds to wait before attempt number `attempt` (1: the first one after a failure); `random` is in [0, 1)."""
    ceiling = min(maximum, minimum * 2.0 ** min(attempt, MOST_DOUBLINGS))
    return minimum + random * (ceiling - minimum)

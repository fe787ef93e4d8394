"""A publisher and a subscriber that go on while something else happens to the broker: what others notice of it.

They send at a fixed rate, however long an answer takes. So where the broker stands still, each message that was due
meanwhile counts with its whole wait.
"""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import orjson

from bench.load import LoadError, build

RATE: Final = 200
"""Messages a second."""
_WINDOW: Final = 10_000
"""Messages that may be unacknowledged: more than are due in the longest standstill that is borne."""
_LONGEST: Final = 3600
_BEGIN_SECONDS: Final = 0.3
"""s from the start of the program to its first message, and some more."""
_END_SECONDS: Final = 30


@dataclass(frozen=True, slots=True)
class Delay:
    """From publish to delivery at QoS 1, in ms."""

    p50: float
    p99: float
    max: float
    messages: int


class Pair:
    """A pair that talks for as long as the `with` lasts; then `delay` says what it noticed.

    Raises:
        LoadError: the program can't be compiled, or a message was lost, or came twice.
    """

    delay: Delay

    def __init__(self, port: int) -> None:
        options = {
            "port": port, "qos": 1, "pubs": 1, "subs": 1, "rate": RATE, "window": _WINDOW, "seconds": _LONGEST,
        }  # fmt: skip
        command = [str(build()), *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )

    def __enter__(self) -> Self:
        time.sleep(_BEGIN_SECONDS)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self._process.kill()
        self._process.terminate()
        try:
            told, said = self._process.communicate(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            told, said = self._process.communicate()
        if kind is None:
            self.delay = _read(self._process.returncode, told, said)


def _read(code: int, told: bytes, said: bytes) -> Delay:
    if code or not told:
        raise LoadError(f"the pair: {said.decode(errors='replace').strip() or f'ended with code {code}'}")
    raw = orjson.loads(told)
    if raw["closed"] or not raw["sent"] == raw["acked"] == raw["received"]:
        raise LoadError(
            f"the pair: of {raw['sent']} messages {raw['acked']} were acknowledged and {raw['received']} delivered, "
            f"and {raw['closed']} of its connections ended"
        )
    latency = raw["latency_ms"]
    return Delay(latency["p50"], latency["p99"], latency["max"], raw["sent"])

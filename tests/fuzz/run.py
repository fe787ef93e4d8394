"""Fuzzers of the decoder, of the whole broker, and of a live node: `python -m tests.fuzz.run --minutes 5`.

Each is for a third of the time, unless one is chosen by `--target`:

- `decoder`: damaged packets in pieces (`decoder.py`);
- `broker`: sequences of packets and mishaps of several clients, on nodes in miniature whose time and disk are the
  fuzzer's (`broker.py`);
- `node`: the bytes of the same sequences, on a real node over real sockets (`live.py`).

A promise that is broken ends it with status 1, and with what broke it: for `broker` a sequence that was made as short
as it gets, as lines of text (`steps.py`) that `--replay FILE` plays again. The same `--seed` tries the same again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from tests.fuzz.broker import BrokerTarget, failure_of
from tests.fuzz.decoder import DecoderTarget
from tests.fuzz.live import NodeTarget
from tests.fuzz.steps import parse

_TOLD: Final = 10.0
"""Seconds between two lines about how far it is."""


class Target(Protocol):
    """What is fuzzed. `str` of it tells how far it is."""

    def go_on(self) -> str | None:
        """Try some more; what was found, or None."""

    def close(self) -> str | None:
        """End everything; what was found in the end, or None."""


TARGETS: Final[dict[str, Callable[[int], Target]]] = {
    "decoder": DecoderTarget,
    "broker": BrokerTarget,
    "node": NodeTarget,
}


def fuzz(name: str, seed: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> bool:
    """Fuzz one target for so long; whether no promise was broken."""
    target = TARGETS[name](seed)
    began = told = clock()
    problem: str | None = None
    while problem is None and (now := clock()) - began < seconds:
        if now - told >= _TOLD:
            told = now
            print(f"{name}: {now - began:.0f} s, {target}", flush=True)
        problem = target.go_on()
    summary = str(target)
    in_the_end = target.close()
    if problem is not None or in_the_end is not None:
        print(f"{name}, seed {seed}: {problem or in_the_end}", flush=True)
        return False
    print(f"{name}: {summary}, no promise broken", flush=True)
    return True


def replay(text: str) -> bool:
    """Play a sequence again; whether no promise is broken."""
    failure = failure_of(parse(text))
    print("no promise broken" if failure is None else failure, flush=True)
    return failure is None


def main() -> int:
    """Fuzz for some minutes; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="tests.fuzz.run", description="Mistreat the decoder, the broker, and a node.")
    parser.add_argument("--target", choices=(*TARGETS, "all"), default="all", help="what (default: each in turn)")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long in all (default 5)")
    parser.add_argument("--seed", type=int, default=None, help="to try the same again (default: another each time)")
    parser.add_argument("--replay", metavar="FILE", help="play the sequence in a file again, and nothing else")
    options = parser.parse_args()
    if options.replay is not None:
        return 0 if replay(Path(options.replay).read_text()) else 1
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    names = list(TARGETS) if options.target == "all" else [options.target]
    print(f"seed {seed}", flush=True)
    seconds = options.minutes * 60 / len(names)
    return 0 if all(fuzz(name, seed, seconds) for name in names) else 1


if __name__ == "__main__":
    sys.exit(main())

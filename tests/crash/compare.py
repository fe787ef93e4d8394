"""What brokers lose of what they have acknowledged, when they are killed and when the power fails.

    python -m tests.crash.compare --rounds 50 --power 50 --peers berm,mosquitto,amqtt

Each gets the same load from the same clients (see `rounds.py`), first with SIGKILL, then with power cuts (see `disk.py`
and docs/crash.md). Exit code 1 where Berm has lost anything, given anything twice at QoS 2, or did not start.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from bench.brokers import BrokerError, Kind
from tests.crash import power
from tests.crash.disk import StrangeError
from tests.crash.peers import DATA, KINDS, version
from tests.crash.power import Power
from tests.crash.rounds import ACTIVITIES, Bench, Options, Result

BERM: Final = "berm"
_COLUMNS: Final = (
    "broker",
    "what",
    "rounds",
    "kills",
    "acknowledged",
    "lost",
    "of the present one's",
    "of the absent one's",
    "QoS 2 twice",
    "sessions lost",
    "did not start",
    "ended by itself",
)
_SHOWN: Final = 12
"""Notes that are printed of one broker."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How many rounds of each kind."""

    stops: int
    """Clean ends: what is lost then is not the fault of a crash."""
    kills: int
    cuts: int


def stops(kind: Kind, directory: Path, options: Options, rounds: int) -> Result:
    """So many rounds with a clean end, in a new directory."""
    directory.mkdir(parents=True)
    return asyncio.run(Bench(kind, directory.resolve(), options, politely=True).run(rounds))


def kills(kind: Kind, directory: Path, options: Options, rounds: int) -> Result:
    """So many rounds with SIGKILL, in a new directory."""
    directory.mkdir(parents=True)
    return asyncio.run(Bench(kind, directory.resolve(), options).run(rounds))


def cuts(kind: Kind, directory: Path, options: Options, rounds: int, library: Path, **disk: bool) -> Result:
    """So many rounds with power cuts, in a new directory; `disk` is as for `Power`."""
    return asyncio.run(_bench(kind, directory, options, library, **disk).run(rounds))


def unseen(kind: Kind, directory: Path, options: Options, library: Path) -> list[str]:
    """Files that the layer does not see as they are, after some load and a clean end, in a new directory.

    Raises:
        StrangeError: the broker writes in a way that can't be followed.
    """
    return asyncio.run(_bench(kind, directory, options, library).end())


def _bench(kind: Kind, directory: Path, options: Options, library: Path, **disk: bool) -> Bench:
    directory.mkdir(parents=True)
    directory = directory.resolve()
    return Bench(
        kind, directory, options, Power(library, directory / DATA, directory / "base", directory / "journal", **disk)
    )


def table(results: Sequence[Result]) -> str:
    """The figures, in Markdown."""
    rows = [_COLUMNS, ("---",) * len(_COLUMNS)]
    rows += [
        (
            each.name,
            each.what,
            *(
                f"{number:,}"
                for number in (
                    each.rounds,
                    each.kills,
                    each.acknowledged,
                    each.lost,
                    each.lost_present,
                    each.lost_absent,
                    each.twice,
                    each.sessions,
                    each.unstarted,
                    each.ended,
                )
            ),
        )
        for each in results
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def run(kinds: Sequence[Kind], directory: Path, options: Options, plan: Plan) -> list[Result]:
    """All of it; says how it gets on."""
    results: list[Result] = []
    reason = power.missing() if plan.cuts else ""
    if reason:
        _say(f"no power cuts: {reason}")
    library = power.build(directory) if plan.cuts and not reason else None
    for kind in kinds:
        if lacking := kind.missing():
            _say(f"{kind.name} is left out: {lacking}")
            continue
        _say(f"{kind.name} {version(kind)}: {kind.settings}")
        try:
            for result in _results(kind, directory / kind.name, options, plan, library):
                _report(result)
                results.append(result)
        except (BrokerError, StrangeError) as error:
            _say(f"{kind.name}: {error}")
    return results


def _results(kind: Kind, directory: Path, options: Options, plan: Plan, library: Path | None) -> Iterator[Result]:
    if plan.stops:
        yield stops(kind, directory / "stops", options, plan.stops)
    if plan.kills:
        yield kills(kind, directory / "kills", options, plan.kills)
    if library is not None and _is_seen(kind, directory / "seen", options, library):
        yield cuts(kind, directory / "cuts", options, plan.cuts, library)
        if kind.name == BERM:
            result = cuts(kind, directory / "strict", options, plan.cuts, library, ordered_names=False)
            result.what += ", strict"
            yield result


def _is_seen(kind: Kind, directory: Path, options: Options, library: Path) -> bool:
    """Whether the layer sees all that this broker writes; says so."""
    missed = unseen(kind, directory, options, library)
    if missed:
        _say(f"{kind.name}: no power cuts, since the layer does not see all that is written to {', '.join(missed)}")
    else:
        _say(f"{kind.name}: the journal of the layer, applied in full, gives its directory byte for byte")
    return not missed


def _report(result: Result) -> None:
    _say(str(result))
    for note in result.notes[:_SHOWN]:
        _say(f"    {note}")
    if len(result.notes) > _SHOWN:
        _say(f"    and {len(result.notes) - _SHOWN} more")


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    """The command line; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.compare", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=30, help="rounds with SIGKILL for each broker (default: 30)")
    parser.add_argument("--stops", type=int, default=3, help="rounds with a clean end, to compare with (default: 3)")
    parser.add_argument("--power", type=int, default=30, help="rounds with power cuts for each broker (default: 30)")
    parser.add_argument("--peers", default=",".join(KINDS), help=f"which brokers (default: {','.join(KINDS)})")
    parser.add_argument("--seed", type=int, default=None, help="of what is random here; a machine's timing is not")
    parser.add_argument("--seconds", type=float, default=1.0, help="longest time from a start to the kill (default: 1)")
    parser.add_argument("--rate", type=float, default=600.0, help="messages a second (default: 600)")
    parser.add_argument("--beside", default="", metavar="WHAT", help=f"beside the load: {','.join(ACTIVITIES)}")
    parser.add_argument("--keep", type=Path, help="where to keep disks and journals of power cuts that cost something")
    arguments = parser.parse_args()
    names, beside = arguments.peers.split(","), [name for name in arguments.beside.split(",") if name]
    for name, known in [(name, KINDS) for name in names] + [(name, ACTIVITIES) for name in beside]:
        if name not in known:
            parser.error(f"{name!r} is not one of {', '.join(known)}")
    seed = arguments.seed if arguments.seed is not None else Random().randrange(1 << 32)
    activities = [ACTIVITIES[name] for name in beside]
    options = Options(seed, arguments.seconds, arguments.rate, activities=activities, keep=arguments.keep)
    _say(f"{arguments.rounds} rounds with SIGKILL, {arguments.power} with power cuts, --seed {seed}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # then too the brokers are ended
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="berm-crash-") as directory:
        kinds = [KINDS[name] for name in names]
        plan = Plan(arguments.stops, arguments.rounds, arguments.power)
        results = run(kinds, Path(directory), options, plan)
    print(table(results))
    _say(f"{time.monotonic() - begun:.0f} s")
    return int(any(not each.sound for each in results if each.name == BERM))


if __name__ == "__main__":
    sys.exit(main())

"""Clients that do nothing right: what others notice of those that drip, never speak, never read, or never stop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Final

from bench.crowd import Crowd, Manner
from bench.findings import Row, Section, middle
from bench.floods import KINDS, flood
from bench.many import DELAY
from bench.pair import RATE, Delay, Pair
from bench.rig import Plan, Rig

_FEED_RATE: Final = 10
"""Messages a second to clients that read none."""
_FEED_BYTES: Final = 4000


@dataclass(frozen=True, slots=True)
class Disturber:
    """What is done to a node. `words` may name the number of nuisances as `{n}`."""

    words: str
    disturb: Callable[[ExitStack, int, Plan], None]


def _nothing(stack: ExitStack, port: int, plan: Plan) -> None:
    _stay(stack, Crowd(port, Manner(prefix="calm")), 1, plan)


def _drip(stack: ExitStack, port: int, plan: Plan) -> None:
    connect = stack.enter_context(Crowd(port, Manner("drip-connect", prefix="drip-c")))
    connect.connect(1)
    _stay(stack, Crowd(port, Manner("drip-publish", prefix="drip-p")), 1, plan)


def _silent(stack: ExitStack, port: int, plan: Plan) -> None:
    _stay(stack, Crowd(port, Manner("silent")), plan.nuisances, plan)


def _half(stack: ExitStack, port: int, plan: Plan) -> None:
    _stay(stack, Crowd(port, Manner("half")), plan.nuisances, plan)


def _deaf(stack: ExitStack, port: int, plan: Plan) -> None:
    crowd = stack.enter_context(Crowd(port, Manner(prefix="deaf")))
    crowd.connect(plan.nuisances)
    crowd.subscribe()
    crowd.deafen()
    crowd.feed(plan.disturbed, _FEED_RATE, _FEED_BYTES)


def _flood(kind: str) -> Callable[[ExitStack, int, Plan], None]:
    def disturb(stack: ExitStack, port: int, plan: Plan) -> None:
        stack.enter_context(flood(kind, port, plan.disturbed))

    return disturb


def _stay(stack: ExitStack, crowd: Crowd, clients: int, plan: Plan) -> None:
    stack.enter_context(crowd)
    crowd.connect(clients)
    crowd.stay(plan.disturbed)


DISTURBERS: Final = (
    Disturber("nothing", _nothing),
    Disturber("one client drips a CONNECT, another a PUBLISH: a byte a second", _drip),
    Disturber("{n} connections that say nothing", _silent),
    Disturber("{n} connections that say half a CONNECT", _half),
    Disturber(f"{{n}} subscribers that read nothing, of {_FEED_RATE} messages/s of {_FEED_BYTES} bytes", _deaf),
    *(Disturber(f"one client sends {kind} as fast as it can", _flood(kind)) for kind in KINDS),
)


def nuisance(rig: Rig) -> Section:
    """Each disturbance in each round, with a node of its own."""
    delays: dict[str, list[Delay]] = {each.words: [] for each in DISTURBERS}
    memory: dict[str, list[float]] = {each.words: [] for each in DISTURBERS}
    for _ in range(rig.plan.rounds):
        for each in DISTURBERS:
            with rig.node() as node:
                before = node.rss()
                with Pair(node.port) as pair, ExitStack() as stack:
                    each.disturb(stack, node.port, rig.plan)
                delays[each.words].append(pair.delay)
                memory[each.words].append((node.peak_rss() - before) / 1e6)
    calm = delays[DISTURBERS[0].words]
    rows = [_row(each, rig.plan, delays[each.words], calm, memory[each.words]) for each in DISTURBERS]
    words = f"what a pair notices that sends {RATE} messages/s, in {rig.plan.disturbed:g} s; MB: what the node grew by"
    return Section("nuisance", words, rows)


def _row(each: Disturber, plan: Plan, delays: list[Delay], calm: list[Delay], memory: list[float]) -> Row:
    added = median(delay.p99 - base.p99 for delay, base in zip(delays, calm, strict=True))
    p99 = [delay.p99 for delay in delays]
    found = (
        f"p50 {median(delay.p50 for delay in delays):.1f}, p99 {middle(p99)}, at most "
        f"{max(delay.max for delay in delays):.1f} ms; {median(memory):.0f} MB"
    )
    figures = {"pair_p99_ms": median(p99), "added_p99_ms": added, "grown_mb": median(memory)}
    what = each.words.format(n=f"{plan.nuisances:,}")
    if delays is calm:
        return Row(what, found, figures=figures)
    return Row(what, found, f"p99 +{DELAY:g} ms", added <= DELAY, figures)

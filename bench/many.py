"""Many clients that do little: what one costs, how soon all have a message, what it takes when all return at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Final

from bench.brokers import Broker
from bench.crowd import Answer, Crowd, Manner
from bench.findings import Row, Section, middle
from bench.load import LoadError
from bench.pair import RATE, Delay, Pair
from bench.rig import Plan, Rig
from berm.status import gather
from storage.sqlite import SQLiteEngine

DELAY: Final = 50.0
"""ms that others may notice of what some do, at the 99th percentile."""
EXPIRY: Final = 5
"""s for which the sessions last whose clients are killed."""
_WIDTH: Final = 200
"""Clients on their way to a CONNACK at a time, at first."""
_FANS: Final = 5
"""Messages to all, in each round."""
_SLACK: Final = 4_000_000
"""Bytes that memory may differ by for no reason."""
_PATIENCE: Final = 60.0
_LOOK_SECONDS: Final = 0.2
_PAIR: Final = 2
"""Connections of a pair."""


def many(rig: Rig) -> Section:
    """All connected, subscribed and pinging; beside a pair; a message to all; and all of them at once again."""
    plan = rig.plan
    manner = Manner(width=_WIDTH)
    with rig.node() as node, Crowd(node.port, manner) as crowd:
        rows = [*_arrive(node, crowd, plan), *_rest(node, crowd, plan)]
        rows += [_message_to_all(crowd, plan), _all_return(node, crowd, plan)]
        still = node.connections()
        rows.insert(0, Row("connected to the end", f"{still:,}", f"{plan.clients:,}", still == plan.clients))
    words = (
        f"{plan.clients:,} clients, MQTT 3.1.1, clean sessions, keep alive {manner.keep_alive} s, "
        f"a PINGREQ every {manner.ping:g} s"
    )
    return Section("many", words, rows)


def _arrive(node: Broker, crowd: Crowd, plan: Plan) -> list[Row]:
    empty = node.rss()
    connected = crowd.connect(plan.clients)
    _check(connected.ready, plan.clients)
    full = node.rss()
    crowd.subscribe()
    subscribed = node.rss()
    each, subscription = (full - empty) / plan.clients, (subscribed - full) / plan.clients
    rate = plan.clients / connected.seconds
    return [
        Row(
            f"connecting, {_WIDTH} at a time",
            f"{rate:,.0f}/s, {connected.seconds:.2f} s in all; CONNACK after p99 {connected.p99:,.0f} ms",
            figures={"connects_per_s": rate, "connack_p99_ms": connected.p99},
        ),
        Row(
            "memory of the node",
            f"{empty / 1e6:.0f} MB, then {full / 1e6:.0f} MB, subscribed {subscribed / 1e6:.0f} MB",
            figures={"rss_empty": empty, "rss_connected": full, "rss_subscribed": subscribed},
        ),
        Row(
            "memory of a connection",
            f"{each:,.0f} bytes, and {subscription:,.0f} with a subscription",
            "8,000 bytes",
            each < 8000,
            {"bytes_each": each, "bytes_subscription": subscription},
        ),
    ]


def _rest(node: Broker, crowd: Crowd, plan: Plan) -> list[Row]:
    before = node.cpu_seconds()
    alone = crowd.stay(plan.idle)
    cores = (node.cpu_seconds() - before) / plan.idle
    _check(alone.ready, plan.clients)
    with Pair(node.port) as pair:
        crowd.stay(plan.idle / 2)
    return [
        Row(
            f"pinging for {plan.idle:g} s",
            f"{cores:.1%} of a core for {alone.pings / plan.idle:,.0f} pings/s; "
            f"PINGRESP after p50 {alone.p50:.1f}, p99 {alone.p99:.1f}, at most {alone.max:.1f} ms",
            figures={"cores": cores, "pingresp_p50_ms": alone.p50, "pingresp_p99_ms": alone.p99},
        ),
        _notice(f"a pair beside them, {RATE} messages/s", pair.delay, DELAY),
    ]


def _message_to_all(crowd: Crowd, plan: Plan) -> Row:
    fans = [crowd.fan() for _ in range(_FANS * plan.rounds)]
    return Row(
        "one QoS 1 message to all",
        f"half have it after {middle([fan.p50 for fan in fans], digits=0)}, "
        f"all after {middle([fan.max for fan in fans], digits=0)}",
        figures={"fan_p50_ms": median(fan.p50 for fan in fans), "fan_all_ms": median(fan.max for fan in fans)},
    )


def _all_return(node: Broker, crowd: Crowd, plan: Plan) -> Row:
    storms = []
    for _ in range(plan.rounds):
        storms.append(crowd.storm())
        _check(storms[-1].ready, plan.clients)
        crowd.subscribe()
    seconds = [storm.seconds for storm in storms]
    rss = node.rss()
    return Row(
        "all gone, and back at once",
        f"all are back after {middle(seconds, 's', 2)}; memory then {rss / 1e6:.0f} MB",
        figures={"storm_s": median(seconds), "rss_after_storms": rss},
    )


def kill(rig: Rig) -> Section:
    """Clients with sessions that last a while are killed, all at once: everything of them must go."""
    plan = rig.plan
    with rig.node() as node:
        empty = node.rss()
        with Crowd(node.port, Manner(expiry=EXPIRY)) as crowd:
            with Pair(node.port) as arriving:
                connected, subscribed = _settle(crowd, plan)
            full, sessions = node.rss(), _sessions(node)
            with Pair(node.port) as leaving:
                began = time.monotonic()
                crowd.kill()
                gone = _wait(lambda: node.connections() <= _PAIR) - began
                ended = _wait(lambda: _sessions(node) == 0) - began
        freed = node.rss()
        with Crowd(node.port, Manner(expiry=EXPIRY)) as crowd:
            _settle(crowd, plan)
            again = node.rss()
    rows = [
        Row("sessions in the log's file", f"{sessions:,}", f"{plan.clients:,}", sessions == plan.clients),
        Row(
            "connecting, then subscribing",
            f"{plan.clients / connected.seconds:,.0f}/s, then {plan.clients / subscribed.seconds:,.0f}/s",
        ),
        _notice("a pair beside that", arriving.delay),
        Row("after the kill", f"no connection after {gone:.2f} s, no session after {ended:.2f} s", "none", True),
        _notice("a pair beside that", leaving.delay),
        Row(
            "memory of the node",
            f"{empty / 1e6:.0f} MB, full {full / 1e6:.0f} MB, freed {freed / 1e6:.0f} MB, "
            f"full again {again / 1e6:.0f} MB",
            "as before",
            again < full + max(_SLACK, (full - empty) // 4),
            {"rss_empty": empty, "rss_full": full, "rss_freed": freed, "rss_full_again": again},
        ),
    ]
    words = f"{plan.clients:,} clients, MQTT 5, sessions that last {EXPIRY} s longer, ended with SIGKILL"
    return Section("kill", words, rows)


def _settle(crowd: Crowd, plan: Plan) -> tuple[Answer, Answer]:
    """Have all connected and subscribed, and their rows written, which takes a second."""
    connected, subscribed = crowd.connect(plan.clients), crowd.subscribe()
    _check(crowd.stay(1.5).ready, plan.clients)
    return connected, subscribed


def _notice(what: str, delay: Delay, asked: float = 0) -> Row:
    """What a pair has noticed; `asked`: the most that its 99th percentile may be, 0: nothing is asked."""
    found = f"p50 {delay.p50:.1f}, p99 {delay.p99:.1f}, at most {delay.max:.1f} ms"
    figures = {"pair_p50_ms": delay.p50, "pair_p99_ms": delay.p99, "pair_max_ms": delay.max}
    if not asked:
        return Row(what, found, figures=figures)
    return Row(what, found, f"p99 {asked:g} ms", delay.p99 <= asked, figures)


def _sessions(node: Broker) -> int:
    data = node.output.parent / "data"
    engine = SQLiteEngine(data, readonly=True)
    try:
        return gather(engine, data).sessions
    finally:
        engine.close()


def _wait(met: Callable[[], bool]) -> float:
    """When it was met, looked at now and then."""
    deadline = time.monotonic() + _PATIENCE
    while not met():
        if time.monotonic() > deadline:
            raise LoadError(f"after {_PATIENCE:g} s the node still has something of clients that were killed")
        time.sleep(_LOOK_SECONDS)
    return time.monotonic()


def _check(ready: int, clients: int) -> None:
    if ready != clients:
        raise LoadError(f"{ready} of {clients} clients are connected")

"""Clients that come and go: how many a node takes in a second, with and without a password to check."""

from __future__ import annotations

from statistics import median
from typing import Final

from bench.crowd import Answer, Crowd, Manner
from bench.findings import Row, Section, middle
from bench.load import LoadError
from bench.pair import RATE, Delay, Pair
from bench.rig import PASSWORD, USER, Rig

ASKED: Final = {"no check": 500.0, "argon2": 50.0}
"""CONNECTs a second that a node has to take."""
_ENOUGH: Final = 0.95
"""How much of a rate is the rate: the last clients to come are still on their way when the time is over."""
_WIDTH: Final = 64
"""CONNECTs that wait for their CONNACK at a time, where it goes as fast as it can."""


def rate(rig: Rig) -> Section:
    """At the rate that is asked for, beside a pair; then as often as it goes."""
    rows: list[Row] = []
    for check, asked in ASKED.items():
        paced: list[Answer] = []
        fastest: list[Answer] = []
        used: list[float] = []
        delays: list[Delay] = []
        for _ in range(rig.plan.rounds):
            with rig.node(check == "argon2") as node, Crowd(node.port, _manner(check)) as crowd:
                with Pair(node.port) as pair:
                    paced.append(crowd.churn(rig.plan.paced, asked))
                delays.append(pair.delay)
                before = node.cpu_seconds()
                fastest.append(crowd.churn(rig.plan.flat_out, 0))
                used.append((node.cpu_seconds() - before) * 1000 / fastest[-1].connects)
        rows += [_at_a_rate(check, asked, paced, delays), _flat_out(check, asked, fastest, used)]
    words = f"CONNECT, CONNACK, DISCONNECT, again and again; MQTT 3.1.1; a pair beside them, {RATE} messages/s"
    return Section("rate", words, rows)


def _manner(check: str) -> Manner:
    if check == "argon2":
        return Manner(width=_WIDTH, prefix="churn", user=USER, password=PASSWORD)
    return Manner(width=_WIDTH, prefix="churn")


def _at_a_rate(check: str, asked: float, answers: list[Answer], delays: list[Delay]) -> Row:
    rates = _rates(check, answers)
    p99 = [each.p99 for each in answers]
    pair = [delay.p99 for delay in delays]
    return Row(
        f"{check}: {asked:.0f} a second",
        f"{middle(rates, '/s', 0)}; CONNACK after p99 {middle(p99)}; the pair's p99 {middle(pair)}",
        f"{asked:.0f}/s",
        median(rates) >= _ENOUGH * asked,
        {"connects_per_s": median(rates), "connack_p99_ms": median(p99), "pair_p99_ms": median(pair)},
    )


def _flat_out(check: str, asked: float, answers: list[Answer], used: list[float]) -> Row:
    rates = _rates(check, answers)
    return Row(
        f"{check}: {_WIDTH} at a time, as often as it goes",
        f"{middle(rates, '/s', 0)}, {middle(used, 'ms', 2)} of the node's processor time each",
        f"{asked:.0f}/s",
        median(rates) >= asked,
        {"connects_per_s": median(rates), "cpu_ms_each": median(used)},
    )


def _rates(check: str, answers: list[Answer]) -> list[float]:
    refused, closed = sum(each.refused for each in answers), sum(each.closed for each in answers)
    if refused or closed:
        raise LoadError(f"{check}: {refused} clients were refused, and {closed} connections ended too soon")
    return [each.connects / each.seconds for each in answers]

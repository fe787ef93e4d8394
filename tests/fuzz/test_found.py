"""Sequences that once broke a promise. Each was found by the fuzzer, and made as short as it got."""

from __future__ import annotations

import pytest

from tests.conformance.packets import Value, encode
from tests.fuzz.broker import failure_of
from tests.fuzz.mutate import Named
from tests.fuzz.steps import SENDS, Sequence, Step

COMMITS = Step("node", "commits")


def sends(client: str, *packets: Named, version: int = 5) -> Step:
    """A client sends these packets at once."""
    return Step(client, SENDS, (b"".join(encode(kind, fields, version) for kind, fields in packets),))


def connect(**more: Value) -> Named:
    """A CONNECT; properties by their names, with _ for -."""
    return "CONNECT", (("client", "xa"), *((name.replace("_", "-"), value) for name, value in more.items()))


def publish(topic: str, qos: int = 0, id: int = 0, payload: str = "1", retain: int = 0) -> Named:
    """A message."""
    fields: tuple[tuple[str, Value], ...] = (("topic", topic), ("qos", qos), ("payload", payload), ("retain", retain))
    return "PUBLISH", (*fields, ("id", id)) if qos else fields


FILTERS: tuple[tuple[str, Value], ...] = tuple(("filter", f"x/{number}") for number in range(30))
FULL = (Step("node", "full"), sends("b", ("CONNECT", (("client", "xb"),)), publish("x", 1, 1)), COMMITS)
"""The disk is full, and the node has noticed."""
DROPS = Step("a", "drops")

FOUND = {
    "a retained message of QoS 0 overtakes one of QoS 1 before it commits": (
        sends("a", connect(), publish("x/x", 1, 1, retain=1), publish("x/x", payload="2", retain=1), version=4),
    ),
    "a retained message of QoS 1 is removed at QoS 0 before it commits": (
        sends("a", connect(), publish("x/x", 1, 1, retain=1), publish("x/x", payload="", retain=1), version=4),
    ),
    "a retained message follows at QoS 0 on its removal at QoS 1": (
        sends("a", connect(), publish("x/x", 1, 1, "", retain=1), publish("x/x", payload="2", retain=1), version=4),
    ),
    "PUBRECs are in order where one is for a message that is repeated": (
        sends("a", connect(), publish("x", 2, 1)),
        COMMITS,
        sends("a", publish("x", 2, 1), publish("x", 2, 2)),
        COMMITS,
    ),
    "PUBRECs are in order where one is for a message that is repeated and refused, and the disk is full": (
        sends("a", connect()),
        Step("node", "full"),
        sends("a", publish("x", 2, 2), publish("x", 2, 2)),
        COMMITS,
        sends("a", publish("x", 2, 3)),
    ),
    "PUBACKs are in order where one is for a topic that is forbidden and the disk is full": (
        *FULL,
        sends("a", connect()),
        sends("a", publish("$SYS/x", 1, 1), publish("x", 1, 2)),
    ),
    "PUBRECs are in order where one is for a topic that is forbidden and the disk is full": (
        *FULL,
        sends("a", connect()),
        sends("a", publish("$SYS/x", 2, 1), publish("x", 2, 2)),
    ),
    "a SUBACK is not larger than its client takes": (
        sends("a", connect(maximum_packet_size=30), ("SUBSCRIBE", (("id", 1), *FILTERS))),
        COMMITS,
    ),
    "an UNSUBACK is not larger than its client takes": (
        sends("a", connect(maximum_packet_size=30), ("UNSUBSCRIBE", (("id", 1), *FILTERS))),
        COMMITS,
    ),
    "a CONNACK that refuses is not larger than its client takes": (sends("a", connect(maximum_packet_size=3)),),
    "a challenge is not larger than its client takes": (
        sends("e", connect(maximum_packet_size=5, authentication_method="slow")),
    ),
    "PUBRELs for nothing let nobody have more under way than the Receive Maximum": (
        sends("a", connect()),
        *(sends("a", publish("x", 2, number), ("PUBREL", (("id", 60_000),))) for number in range(1, 20)),
    ),
    "wills that gather while the disk is full have a bound": (
        *FULL,
        *(sends("a", connect(will_topic="x/a", will_payload="w" * 100, will_qos=1), version=4), DROPS) * 100,
    ),
    "connections that end while the disk is full are not kept": (
        *FULL,
        *(sends("a", connect(clean=0), ("SUBSCRIBE", (("id", 1), *FILTERS[:1])), version=4), DROPS) * 100,
    ),
}


@pytest.mark.parametrize("setup", [0, 1, 2])
@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_once_is_no_more(name: str, setup: int) -> None:
    failure = failure_of(Sequence(setup, FOUND[name]))
    assert failure is None, str(failure)[:5000]

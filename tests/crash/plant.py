"""The processors of the node that is killed: a filter, and an aggregate over windows of a second."""

from __future__ import annotations

from processors import Event, Processors, aggregates

plant = Processors()


@plant.filter("load/+", to="hot/{topic}", qos=2, start="beginning")
def even(event: Event) -> bool:
    """Every second message."""
    return event.number("n") % 2 == 0


@plant.tumbling(
    "load/+",
    aggregates.count,
    aggregates.sum,
    aggregates.last,
    seconds=1.0,
    to="stats/{key}",
    qos=1,
    start="beginning",
    key=lambda event: event.levels[1],
)
def numbers(event: Event) -> float:
    """How many there were of each publisher, and what they add up to."""
    return event.number("n")

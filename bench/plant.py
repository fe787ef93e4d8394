"""The processor of the demonstration: each device's temperature, second by second."""

from processors import Event, Processors
from processors.aggregates import count, max, mean, min

plant = Processors()


def device(event: Event) -> str:
    """`plant/device-007/telemetry` is of `device-007`."""
    return event.levels[1]


@plant.tumbling(
    "plant/+/telemetry", count, mean, min, max, seconds=1, key=device, to="plant/{key}/windows", start="beginning"
)
def temperatures(event: Event) -> float:
    """What is aggregated of a reading."""
    return event.number("temperature")

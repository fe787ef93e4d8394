"""Three processors for a plant: one filters, one maps, one aggregates. Copy it and make it yours.

    [[processors]]
    file = "examples/plant.py"

Sensors publish `{"value": 21.5}` to `plant/<machine>/temperature`.
"""

from processors import Event, Message, Processors
from processors import aggregates as agg

plant = Processors()


@plant.filter("plant/+/temperature", to="alarm/{topic}")
def hot(event: Event) -> bool:
    """What is above 80 °C goes to `alarm/plant/<machine>/temperature` as it is."""
    return event.number("value") > 80


@plant.map("plant/+/temperature")
def fahrenheit(event: Event) -> Message:
    """Each reading again in °F, on a topic of its own."""
    return Message(f"{event.topic}/fahrenheit", {"value": event.number("value") * 9 / 5 + 32})


@plant.tumbling("plant/+/temperature", agg.count, agg.mean, agg.max, seconds=60, to="stats/{key}")
def per_minute(event: Event) -> float:
    """Count, mean and maximum of each minute, to `stats/plant/<machine>/temperature` when the minute is over."""
    return event.number("value")

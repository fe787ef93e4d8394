"""What the settings mean to each part of a node: functions from settings to the parts' own values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from berm.settings import BridgeSection, Settings
from bridge import BridgeSettings, RouteSettings
from broker.hub import Limits
from broker.mqtt.topic import matches
from processors import Definition, LoadError
from processors.loading import load_file
from storage.interface import DURABILITY


def limits(settings: Settings) -> Limits:
    """The bounds that clients meet."""
    mqtt = settings.mqtt
    return Limits(
        max_connections=mqtt.max_connections,
        max_packet_size=mqtt.max_packet_size,
        receive_maximum=mqtt.receive_maximum,
        max_inflight=mqtt.max_inflight,
        max_keep_alive=mqtt.max_keep_alive,
        topic_alias_maximum=mqtt.topic_alias_maximum,
        max_session_expiry=mqtt.max_session_expiry,
        max_subscriptions=mqtt.max_subscriptions,
        connect_timeout=mqtt.connect_timeout,
        write_buffer=mqtt.write_buffer,
        group_bytes=settings.storage.group_bytes,
        queue_qos0=mqtt.queue_qos0,
    )


def durability(settings: Settings) -> Callable[[str], int | None] | None:
    """What the first rule that matches a topic says, or None; None altogether where there are no rules."""
    rules = [(rule.topic, DURABILITY[rule.durability]) for rule in settings.storage.rules]
    if not rules:
        return None
    return lambda topic: next((durability for filter, durability in rules if matches(filter, topic)), None)


def bridge(section: BridgeSection) -> BridgeSettings:
    """One bridge; `section` is complete, as `load` returns it."""
    return BridgeSettings(
        name=section.name,
        host=section.host,
        port=section.port,
        client_id=section.client_id,
        routes=tuple(
            RouteSettings(route.name, filter=route.topic, qos=route.qos, prefix=route.prefix, start=route.start)
            for route in section.routes
        ),
        username=section.username,
        password=None if section.password is None else section.password.encode(),
        version=5 if section.version == "5" else 4,
        keep_alive=section.keep_alive,
        window=section.window,
        window_bytes=section.window_bytes,
        backoff_min=section.backoff_min,
        backoff_max=section.backoff_max,
        max_packet_size=section.max_packet_size,
    )


def load_processors(settings: Settings) -> Iterator[tuple[Path, Sequence[Definition] | LoadError]]:
    """What each processor file defines, or why it can't be used. A name that an earlier file has taken is an error."""
    taken: dict[str, Path] = {}
    for section in settings.processors:
        file = section.file
        try:
            found = load_file(file)
            for definition in found:
                other = taken.setdefault(definition.name, file)
                if other != file:
                    raise LoadError(
                        f"{file}: a processor in {other} is named {definition.name!r} too; "
                        "its state is kept by that name, so give one of them another"
                    )
        except LoadError as error:
            yield file, error
        else:
            yield file, found


def definitions(settings: Settings) -> list[Definition]:
    """What all processor files define, in their order.

    Raises:
        LoadError: a file can't be used.
    """
    found: list[Definition] = []
    for _, loaded in load_processors(settings):
        if isinstance(loaded, LoadError):
            raise loaded
        found += loaded
    return found

"""What the settings mean to each part of a node: functions from settings to the parts' own values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Final

from berm.settings import BoundsSection, BridgeSection, ListenerSection, Settings, TLSSection, WebSocketSection
from bridge import BridgeSettings, RouteSettings
from bridge.route import row_name
from broker.listener import Limits, Listener
from broker.mqtt.reason import Reason
from broker.mqtt.topic import compile_filters, matches
from broker.net.listener import Endpoint, TCPAddress, UnixAddress
from processors import Definition, LoadError
from processors.loading import load_file
from storage.guard import Levels
from storage.interface import DURABILITY
from storage.retention import Retention, Rule
from storage.sealer import SECOND, Policy

if TYPE_CHECKING:
    from broker.net.tls import Certificates


_AGES: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}
"""Seconds."""


class FileError(Exception):
    """A file that a setting names can't be used; the message says which setting, which file and why."""


def limits(settings: Settings) -> Limits:
    """The bounds of the node, and of listeners that have none of their own."""
    mqtt = settings.mqtt
    node = Limits(
        group_bytes=settings.storage.group_bytes,
        queue_qos0=mqtt.queue_qos0,
        max_sessions=mqtt.max_sessions,
        max_retained=mqtt.max_retained,
        retained_memory=mqtt.retained_memory,
    )
    return _bounded(node, mqtt)


def levels(settings: Settings) -> Levels:
    """What is given up as the disk fills."""
    storage = settings.storage
    return Levels(storage.low_space, storage.min_space, storage.reserve_bytes)


def sealing(settings: Settings) -> Policy:
    """When the oldest part of the log is sealed."""
    return Policy(settings.storage.segment_bytes, settings.storage.segment_age * SECOND)


def retention(settings: Settings, definitions: Sequence[Definition] = ()) -> Retention:
    """What is kept of the log, and who reads it: bridges by their settings, and processors by their definitions."""
    section = settings.storage.retention
    least = settings.storage.low_space
    cursors = {
        row_name(each.name, route.name): compile_filters((route.topic,))
        for each in settings.bridges
        for route in each.routes
    }
    cursors.update((f"processor/{each.name}", compile_filters((each.filter,))) for each in definitions)
    return Retention(
        age=age(section.age),
        bytes=section.bytes,
        free=max(section.min_free, least + least // 8) if section.min_free else 0,
        rules=tuple(Rule(compile_filters((rule.filter,)), age(rule.age)) for rule in section.rules),
        cursors=cursors,
        compile=compile_filters,
    )


def age(text: str) -> int:
    """An age of the settings, in µs; 0: for ever."""
    return int(text[:-1]) * _AGES[text[-1]] * SECOND if text not in ("", "0") else 0


def _bounded(node: Limits, bounds: BoundsSection) -> Limits:
    return replace(
        node,
        max_connections=bounds.max_connections,
        max_packet_size=bounds.max_packet_size,
        receive_maximum=bounds.receive_maximum,
        max_inflight=bounds.max_inflight,
        max_keep_alive=bounds.max_keep_alive,
        topic_alias_maximum=bounds.topic_alias_maximum,
        max_topic_aliases=bounds.max_topic_aliases,
        max_session_expiry=bounds.max_session_expiry,
        max_subscriptions=bounds.max_subscriptions,
        connect_timeout=bounds.connect_timeout,
        write_buffer=bounds.write_buffer,
        max_qos=bounds.max_qos,
        retain_available=bounds.retain_available,
        wildcard_subscription_available=bounds.wildcard_subscription_available,
        subscription_identifier_available=bounds.subscription_identifier_available,
        shared_subscription_available=bounds.shared_subscription_available,
        replay=bounds.replay,
        max_replays=bounds.max_replays,
        check_payload_format=bounds.check_payload_format,
        reason_strings=bounds.reason_strings,
        response_topic_prefix=bounds.response_topic_prefix,
        redirect=None if bounds.redirect is None else Reason[bounds.redirect.upper()],
        server_reference=bounds.server_reference,
    )


def endpoints(settings: Settings) -> list[Endpoint]:
    """Where to listen, and who is met there; `settings` are complete, as `load` returns them. Reads certificates.

    Raises:
        FileError: a certificate, or what belongs to it, can't be used.
    """
    node = limits(settings)
    return [endpoint(section, node) for section in listeners(settings)]


def listeners(settings: Settings) -> tuple[ListenerSection, ...]:
    """Those of the settings, or the one that `[mqtt]` means where there are none."""
    mqtt = settings.mqtt
    bounds = {name: getattr(mqtt, name) for name in BoundsSection.model_fields}
    return settings.listeners or (
        ListenerSection(name="mqtt", host=mqtt.host, port=mqtt.port, access=mqtt.access, quotas=mqtt.quotas, **bounds),
    )


def listener(section: ListenerSection, node: Limits) -> Listener:
    """What holds for the clients of one listener, before it is guarded."""
    return Listener(section.name, _bounded(node, section), section.mount_point)


def endpoint(section: ListenerSection, node: Limits) -> Endpoint:
    """One listener. What only some need is imported by those.

    Raises:
        FileError: a certificate, or what belongs to it, can't be used.
    """
    found = Endpoint(listener(section, node), address(section))
    if section.tls is not None:
        found = replace(found, tls=_certificates(section.name, section.tls))
    if section.type == "websocket":
        from broker.net.websocket import WebSocketOptions

        asked = section.websocket or WebSocketSection()
        found = replace(found, websocket=WebSocketOptions(asked.path, asked.origins))
    if section.proxy_protocol is not None:
        from broker.net.proxy import ProxyOptions

        sources = tuple(ip_network(each) for each in section.proxy_protocol.sources)
        found = replace(found, proxy=ProxyOptions(sources, section.proxy_protocol.identity))
    return found


def address(section: ListenerSection) -> TCPAddress | UnixAddress:
    """Where a listener listens."""
    if section.path is not None:
        return UnixAddress(section.path, int(section.mode, 8), section.group)
    assert section.port is not None
    return TCPAddress(section.host, section.port)


def advice(settings: Settings, listener: str) -> str:
    """What to do where a listener can't listen."""
    found = next((each for each in settings.listeners if each.name == listener), None)
    if found is None:
        return "stop what uses it, or set mqtt.host and mqtt.port"
    if found.path is not None:
        return f"set path, mode and group of listener {listener} to what can be used"
    return f"stop what uses it, or set host and port of listener {listener}"


def _certificates(listener: str, section: TLSSection) -> Certificates:
    from broker.net.tls import Certificates, TLSError, TLSFiles

    files = TLSFiles(
        certificate=section.certificate,
        key=section.key,
        client_ca=section.client_ca,
        require_client_certificate=section.require_client_certificate,
        crl=section.crl,
        minimum_version=section.minimum_version,
        identity=section.identity or "",
    )
    try:
        return Certificates(files)
    except TLSError as error:
        raise FileError(f"listener {listener}: {error}") from None


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

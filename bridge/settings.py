"""What an operator says about a bridge. Values only: nothing here connects to anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from broker.mqtt.codec import MAX_PACKET_SIZE
from broker.mqtt.errors import ProtocolError
from broker.mqtt.topic import validate_filter


@dataclass(frozen=True, slots=True)
class RouteSettings:
    """Which topics go to the peer, and how.

    `filter` is an MQTT topic filter, `prefix` is put before each topic that is sent, `qos` (0 or 1) is a ceiling: an
    event goes at the lower of it and its own. `start` says what a route that has never run sends first: `"end"`, what
    is accepted from now on; `"beginning"`, all that the log still keeps.

    Raises:
        ValueError: a value can't be used; the message names the route, the value and what is allowed.
    """

    name: str
    filter: str
    qos: int = 1
    prefix: str = ""
    start: Literal["end", "beginning"] = "end"

    def __post_init__(self) -> None:
        where = f"route {self.name!r}"
        _check_name(where, self.name)
        try:
            validate_filter(self.filter)
        except ProtocolError as error:
            raise ValueError(f"{where}: topic {self.filter!r} is no topic filter: {error}") from None
        if self.filter.startswith("$share/"):
            raise ValueError(f"{where}: topic {self.filter!r} is a shared subscription; give the filter behind it")
        if self.qos not in (0, 1):
            raise ValueError(f"{where}: qos is {self.qos}; 0 and 1 are allowed")
        if any(character in self.prefix for character in "+#\0"):
            raise ValueError(f"{where}: prefix {self.prefix!r} has a wildcard or NUL in it")
        if self.start not in ("end", "beginning"):
            raise ValueError(f"{where}: start is {self.start!r}; 'end' and 'beginning' are allowed")


@dataclass(frozen=True, slots=True)
class BridgeSettings:
    """One connection to one peer, and the routes that share it.

    `version` is 4 (MQTT 3.1.1) or 5. `keep_alive` is in s, 0 for none. `window` and `window_bytes` bound what is sent
    and not yet acknowledged, over all routes; a v5 peer's Receive Maximum lowers the former. `backoff_min` and
    `backoff_max` are in s. `max_packet_size` is the largest packet, in bytes, that the peer takes: a v5 peer says so
    itself, of a 3.1.1 peer the operator must know it.

    Raises:
        ValueError: a value can't be used; the message names the bridge, the value and what is allowed.
    """

    name: str
    host: str
    port: int
    client_id: str
    routes: tuple[RouteSettings, ...]
    username: str | None = None
    password: bytes | None = None
    version: int = 5
    keep_alive: int = 30
    window: int = 1000
    window_bytes: int = 16 << 20
    backoff_min: float = 0.5
    backoff_max: float = 60.0
    max_packet_size: int = MAX_PACKET_SIZE

    def __post_init__(self) -> None:
        where = f"bridge {self.name!r}"
        _check_name(where, self.name)
        if self.version not in (4, 5):
            raise ValueError(f"{where}: version is {self.version}; 4 (MQTT 3.1.1) and 5 are allowed")
        if not self.client_id:
            raise ValueError(f"{where}: client_id is empty; the peer must know the bridge again")
        if self.version == 4 and self.password is not None and self.username is None:
            raise ValueError(f"{where}: MQTT 3.1.1 takes no password without a username")
        for key, value, low, high in (
            ("port", self.port, 1, 65535),
            ("keep_alive", self.keep_alive, 0, 65535),
            ("window", self.window, 1, 65535),
            ("window_bytes", self.window_bytes, 1, 1 << 40),
            ("max_packet_size", self.max_packet_size, 64, MAX_PACKET_SIZE),
        ):
            if not low <= value <= high:
                raise ValueError(f"{where}: {key} is {value}; {low} to {high} is allowed")
        if not 0 < self.backoff_min <= self.backoff_max:
            raise ValueError(f"{where}: backoff_min is {self.backoff_min} s; above 0 and up to backoff_max is allowed")
        if not self.routes:
            raise ValueError(f"{where}: it has no routes, so it would forward nothing")
        names = [route.name for route in self.routes]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{where}: two routes are named {name!r}, and a route's name is where its position is")


def _check_name(where: str, name: str) -> None:
    if not name or "/" in name or "\0" in name or len(name.encode()) > 255:
        raise ValueError(f"{where}: a name has 1 to 255 bytes and no '/'")

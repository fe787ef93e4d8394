from __future__ import annotations

from dataclasses import replace

import pytest

from bridge.settings import BridgeSettings, RouteSettings
from tests.bridge.helpers import settings


def test_a_route_is_complete_with_a_name_and_a_filter() -> None:
    route = RouteSettings("all", "#")
    assert (route.qos, route.prefix, route.start) == (1, "", "end")


@pytest.mark.parametrize(
    ("name", "filter", "qos", "prefix", "complaint"),
    [
        ("", "#", 1, "", "name"),
        ("a/b", "#", 1, "", "name"),
        ("r", "a/#/b", 1, "", "no topic filter"),
        ("r", "", 1, "", "no topic filter"),
        ("r", "$share/g/a", 1, "", "shared"),
        ("r", "#", 2, "", "qos is 2"),
        ("r", "#", 1, "plant/+/", "prefix"),
        ("r", "#", 1, "a\0", "prefix"),
    ],
)
def test_a_route_that_cannot_work_says_why(name: str, filter: str, qos: int, prefix: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        RouteSettings(name, filter, qos, prefix)


def _bridge(**changes: object) -> BridgeSettings:
    return replace(settings(), **changes)  # type: ignore[arg-type]  # each case changes one field


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"name": "a/b"}, "name"),
        ({"version": 3}, "version is 3"),
        ({"client_id": ""}, "client_id"),
        ({"version": 4, "password": b"x"}, "password without a username"),
        ({"port": 0}, "port is 0"),
        ({"keep_alive": 70_000}, "keep_alive is 70000"),
        ({"window": 0}, "window is 0"),
        ({"window": 65_536}, "window is 65536"),
        ({"window_bytes": 0}, "window_bytes is 0"),
        ({"max_packet_size": 10}, "max_packet_size is 10"),
        ({"backoff_min": 0.0}, "backoff_min"),
        ({"backoff_min": 61.0}, "backoff_min"),
        ({"routes": ()}, "no routes"),
        ({"routes": (RouteSettings("a", "x"), RouteSettings("a", "y"))}, "two routes are named 'a'"),
    ],
)
def test_a_bridge_that_cannot_work_says_why(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        _bridge(**changes)

"""Forwards selected topics to another broker: a cursor per route, so an outage costs lag and never a message."""

from bridge.ledger import Ledger
from bridge.route import RouteStatus
from bridge.settings import BridgeSettings, RouteSettings
from bridge.stamp import Stamp, read_stamp
from bridge.uplink import State, Uplink, UplinkStatus

__all__ = [
    "BridgeSettings",
    "Ledger",
    "RouteSettings",
    "RouteStatus",
    "Stamp",
    "State",
    "Uplink",
    "UplinkStatus",
    "read_stamp",
]

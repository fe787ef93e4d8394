"""The peer erred: `ProtocolError`. Local misuse of this package is a `ValueError` instead."""

from __future__ import annotations

from broker.mqtt.reason import Reason


class ProtocolError(Exception):
    """The peer broke the protocol; `reason` is what to tell it in a CONNACK or DISCONNECT."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason

"""The peer erred: `ProtocolError`. Local misuse of this package is a `ValueError` instead."""

from __future__ import annotations

from broker.mqtt.reason import Reason


class ProtocolError(Exception):
    """The peer broke the protocol; `reason` is what to tell it in a CONNACK or DISCONNECT.

    `clause` is what it broke: a statement of MQTT 5, `MQTT-3.1.0-2`, or a section that has none; empty: nothing in
    particular. A `private` message is for the log, and not for the peer.
    """

    def __init__(self, reason: Reason, message: str, clause: str = "", *, private: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.clause = clause
        self.private = private

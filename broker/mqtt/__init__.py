"""The protocol without a connection: packets, their bytes, their reasons, and the rules of topics."""

from __future__ import annotations

from broker.mqtt.codec import Decoder, encode
from broker.mqtt.errors import ProtocolError
from broker.mqtt.reason import Reason

__all__ = ["Decoder", "ProtocolError", "Reason", "encode"]

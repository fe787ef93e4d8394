"""What is done with a packet that a client has sent, by its type."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from broker.connecting import on_auth, on_connect, on_disconnect, on_pingreq
from broker.mqtt.errors import ProtocolError
from broker.mqtt.packets import Packet
from broker.mqtt.reason import Reason
from broker.publishing import on_puback, on_pubcomp, on_publish, on_pubrec, on_pubrel
from broker.subscribing import on_subscribe, on_unsubscribe

if TYPE_CHECKING:
    from broker.connection import Connection


def _on_unexpected(connection: Connection, packet: Packet) -> None:
    raise ProtocolError(
        Reason.PROTOCOL_ERROR, f"{type(packet).__name__.upper()} is for servers to send", "section 2.1.2"
    )


HANDLERS: Final[tuple[Callable[[Connection, Any], None], ...]] = (
    _on_unexpected,
    on_connect,
    _on_unexpected,
    on_publish,
    on_puback,
    on_pubrec,
    on_pubrel,
    on_pubcomp,
    on_subscribe,
    _on_unexpected,
    on_unsubscribe,
    _on_unexpected,
    on_pingreq,
    _on_unexpected,
    on_disconnect,
    on_auth,
)

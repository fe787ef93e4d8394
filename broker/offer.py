"""What a listener need not offer of MQTT, and what becomes of clients that ask for it nevertheless.

Its CONNACK tells an MQTT 5 client what there is not; asking for that is an error that ends the connection, with the
reason code for it (MQTT 5, section 3.2.2.3). Before MQTT 5 nobody has told the client: a SUBACK can refuse what it asks
for, but a PUBLISH can only be answered by closing the connection.
"""

from __future__ import annotations

from broker.listener import Limits
from broker.mqtt.errors import ProtocolError
from broker.mqtt.packets import Publish, Subscribe, Will
from broker.mqtt.properties import Properties, Property, first
from broker.mqtt.reason import Reason
from broker.mqtt.topic import SHARE
from broker.names import shown


def check_publish(limits: Limits, packet: Publish) -> None:
    """Check that a message is one that clients may publish here.

    Raises:
        ProtocolError: it is not.
    """
    _check_flags(limits, "a PUBLISH", packet.qos, packet.retain, ("MQTT-3.2.2-11", "MQTT-3.2.2-14"))


def check_will(limits: Limits, will: Will) -> None:
    """Check that a will may be left.

    Raises:
        ProtocolError: it is not one that can be published here.
    """
    _check_flags(limits, "a will", will.qos, will.retain, ("MQTT-3.2.2-12", "MQTT-3.2.2-13"))
    if limits.check_payload_format and breaks_format(will.properties, will.payload):
        raise ProtocolError(
            Reason.PAYLOAD_FORMAT_INVALID,
            "a will whose payload is not the UTF-8 that it says it is",
            "section 3.1.3.2.3",
        )


def _check_flags(limits: Limits, what: str, qos: int, retain: bool, clauses: tuple[str, str]) -> None:
    """Check QoS and RETAIN; the clauses are those of one and of the other."""
    if qos > limits.max_qos:
        raise ProtocolError(
            Reason.QOS_NOT_SUPPORTED, f"{what} with QoS {qos}, above the maximum of {limits.max_qos}", clauses[0]
        )
    if retain and not limits.retain_available:
        raise ProtocolError(
            Reason.RETAIN_NOT_SUPPORTED, f"{what} with RETAIN, where no messages are retained", clauses[1]
        )


def check_subscribe(limits: Limits, packet: Subscribe) -> None:
    """Check that an MQTT 5 client asks for nothing that it was told there is not.

    Raises:
        ProtocolError: it does.
    """
    identified = first(packet.properties, Property.SUBSCRIPTION_IDENTIFIER) is not None
    if identified and not limits.subscription_identifier_available:
        raise ProtocolError(
            Reason.SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED,
            "a SUBSCRIBE with a subscription identifier, which is not available",
            "section 3.2.2.3.12",
        )
    for asked in packet.subscriptions:
        reason = unavailable(limits, asked.filter)
        if reason is not None:
            shared = reason == Reason.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED
            raise ProtocolError(
                reason,
                f"a SUBSCRIBE to {shown(asked.filter)}: {reason_in_words(reason)}",
                "section 3.2.2.3.13" if shared else "section 3.2.2.3.11",
            )


def unavailable(limits: Limits, filter: str) -> Reason | None:
    """Why nobody can subscribe by a valid filter."""
    if not limits.shared_subscription_available and filter.startswith(SHARE):
        return Reason.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED
    if not limits.wildcard_subscription_available and ("#" in filter or "+" in filter):
        return Reason.WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED
    return None


def reason_in_words(reason: Reason) -> str:
    """What `unavailable` answers."""
    shared = reason == Reason.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED
    return f"{'shared subscriptions' if shared else 'wildcards'} are not available"


def breaks_format(properties: Properties, payload: bytes) -> bool:
    """Whether a payload is said to be UTF-8, and is not."""
    if first(properties, Property.PAYLOAD_FORMAT_INDICATOR) != 1:
        return False
    try:
        payload.decode()
    except UnicodeDecodeError:
        return True
    return False

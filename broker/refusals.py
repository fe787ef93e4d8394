"""What becomes of messages that are not taken on: those that may not be published, and those that nobody can keep.

MQTT 5 publishers are told so by a reason code, and their messages are taken out. Older clients have no such answer, so
what the log can't keep of theirs stays, to be tried again, and they are not read from until it is kept.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from broker.answers import encode_answer
from broker.mqtt.packets import Puback, Pubrec
from broker.mqtt.reason import Reason
from broker.names import shown
from broker.promises import EARLIER, Promises
from storage.interface import MEMORY, Group, StorageError, StorageFailed

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.hub import Hub

_logger = logging.getLogger("berm.broker")


class Refusals:
    """Those of one hub."""

    __slots__ = ("_hub", "_told", "_waiting")

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._waiting: set[str] = set()
        """Clients that have sent what nobody can keep now, and that is not refused: it will be tried again."""
        self._told = ""
        """Why the group before was refused, as it was told: retries that fail alike are not told again."""

    def cannot_keep(self, connection: Connection, qos: int, packet_id: int) -> bool:
        """What becomes of a message while nothing can be stored; whether that settles it."""
        hub = self._hub
        if qos == 0:
            hub.dropped_full += 1
            return True
        if connection.version == 5:
            self._refuse(connection, qos, packet_id)
            return True
        hub.pressure.hold(connection)
        if hub.log.open.weight <= hub.limits.group_bytes:
            self._waiting.add(connection.who.client_id)
            return False
        # What waits is as much as may wait. Nothing was acknowledged: the client will send it again.
        _take_back(connection, qos, packet_id)
        hub.complain(f"{connection.name}: nothing can be stored, and no more can wait; connection closed")
        connection.close(Reason.QUOTA_EXCEEDED)
        return True

    def turn_away(self, connection: Connection, qos: int, packet_id: int) -> bool:
        """What becomes of a message while the disk is short of room; whether that settles it."""
        if connection.version == 5:
            self._hub.refused_messages += 1
            self._answer_in_turn(connection, qos, packet_id, Reason.QUOTA_EXCEEDED, "the disk is nearly full")
            return True
        # What has been handled of it already is stored; nobody could be told otherwise.
        connection.scarce = True
        self._hub.pressure.hold(connection)
        return False

    def no_room_to_retain(self, connection: Connection, topic: str, qos: int, packet_id: int) -> bool:
        """What becomes of a message that can't be retained beside the others; whether that settles it."""
        hub = self._hub
        hub.unretained += 1
        why = f"no room for one more retained message, of {shown(topic)}"
        if qos and connection.version == 5:
            self.reject(connection, qos, packet_id, Reason.QUOTA_EXCEEDED, why)
            return True
        hub.complain(f"{connection.name}: {why}; it is passed on, and not retained")
        return False

    def reject(
        self, connection: Connection, qos: int, packet_id: int, reason: Reason, why: str, clause: str = ""
    ) -> None:
        """Drop a message that may not be published, and answer in its turn. Before MQTT 5 an acknowledgement can't say
        so: as Mosquitto, acknowledge it nevertheless (MQTT 3.1.1 allows that, or to close, which a bridge would answer
        for ever)."""
        hub = self._hub
        broken = f" [{clause}]" if clause else ""
        hub.complain(f"{connection.name}: {why}{broken} (reason 0x{reason:02x}); message dropped")
        if not qos:
            return
        if connection.version == 5:
            self._answer_in_turn(connection, qos, packet_id, reason, why, clause)
            return
        answer = (b"\x40\x02" if qos == 1 else b"\x50\x02") + packet_id.to_bytes(2)
        hub.promises.acknowledgements.append((connection, answer, None))
        hub.wake()

    def acknowledge_again(self, connection: Connection, packet_id: int) -> None:
        """Answer a QoS 2 message that is repeated: in its turn [MQTT-4.6.0-3], once it is kept [MQTT-4.3.3-10]."""
        hub = self._hub
        answer = b"\x50\x02" + packet_id.to_bytes(2)
        if hub.log.failure is not None and connection.version == 5 and connection.who.client_id not in self._waiting:
            connection.send(answer)  # what is received, and neither refused nor waiting, is kept
            return
        connection.owed += 1
        hub.promises.acknowledgements.append((connection, answer, EARLIER))
        hub.wake()

    def on_kept(self, group: Group) -> None:
        """A group has committed: nothing waits."""
        self._waiting.clear()
        if group.durability > MEMORY:
            self._told = ""

    def on_refused(self, group: Group, promises: Promises, error: StorageError) -> None:
        """The log has refused a group, with these promises: answer MQTT 5 publishers, and let the others wait."""
        acknowledgements, promises.acknowledgements = promises.acknowledgements, []
        out: set[int] = set()
        waiting = {event.client for connection, _, event in acknowledgements if event and _may_wait(connection)}
        self._waiting = waiting
        for connection, ack, event in acknowledgements:
            if _may_wait(connection):
                promises.acknowledgements.append((connection, ack, event))
                self._hub.pressure.hold(connection)
            elif event is EARLIER and connection.who.client_id in waiting:  # what it repeats may be what waits
                promises.acknowledgements.append((connection, ack, event))
            elif event is EARLIER and not _is_received(connection, ack):  # it was refused a moment ago
                self._refuse(connection, 2, int.from_bytes(ack[2:4]))
            elif event is None or event is EARLIER or event.durability == MEMORY:  # only its turn was waited for
                connection.owed -= 1
                connection.send(ack)
            else:
                out.add(event.seq)
                self._refuse(connection, event.qos, int.from_bytes(ack[2:4]))
        kept = [event for event in group.events if event.seq not in out and event.qos]
        self._hub.dropped_full += sum(1 for event in group.events if event.qos == 0)
        group.events[:] = kept
        if not isinstance(error, StorageFailed) and str(error) != self._told:  # after a failure the node ends
            self._told = str(error)
            _logger.error("%s; publishers wait or are refused until it can be stored", error)

    def _answer_in_turn(
        self, connection: Connection, qos: int, packet_id: int, reason: Reason, why: str, clause: str = ""
    ) -> None:
        """Tell an MQTT 5 client that a message was not taken on, behind the answers to what came before."""
        hub = self._hub
        _take_back(connection, qos, packet_id)
        answer = _refusal(connection, qos, packet_id, reason, why, clause)
        if hub.log.failure is not None:  # whatever came before is refused at once, too
            connection.send(answer)
            return
        connection.owed += 1
        hub.promises.acknowledgements.append((connection, answer, None))
        hub.wake()

    def _refuse(self, connection: Connection, qos: int, packet_id: int) -> None:
        self._hub.refused_messages += 1
        _take_back(connection, qos, packet_id)
        why = "nothing can be stored now"
        connection.send(_refusal(connection, qos, packet_id, Reason.QUOTA_EXCEEDED, why))


def _take_back(connection: Connection, qos: int, packet_id: int) -> None:
    """Forget a message that was not taken on."""
    connection.owed -= 1
    if qos == 2 and connection.session is not None:
        connection.unreleased.discard(packet_id)
        connection.session.received.discard(packet_id)


def _may_wait(connection: Connection) -> bool:
    """Whether messages that came on this connection wait where they can't be kept, since nobody can be told so."""
    return connection.version < 5 or connection.closed


def _is_received(connection: Connection, ack: bytes) -> bool:
    return connection.session is not None and int.from_bytes(ack[2:4]) in connection.session.received


def _refusal(connection: Connection, qos: int, packet_id: int, reason: Reason, why: str, clause: str = "") -> bytes:
    """The answer to a message that is not taken on."""
    kind = Puback if qos == 1 else Pubrec
    return encode_answer(connection, kind(packet_id, reason), why, clause)

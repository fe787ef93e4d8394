"""What a client was sent and has not acknowledged yet, by packet identifier.

Outbound packet identifiers move unacked (QoS 1 PUBLISH sent), or unreceived (QoS 2 PUBLISH sent) then uncompleted
(PUBREL sent). They hold seqs only: a message that must be sent again is read back from the log, a few at a time. Each
takes one slot of the window while it is on its way: slots = window - (sent and unacknowledged) - uncompleted. Nothing
new is sent before everything old has been sent again, so an identifier is always free where there is a slot.

QoS 1 progress is written lazily; a QoS 2 step is committed before the packet that tells the client of it is sent.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from broker.answers import encode_answer
from broker.follower import Follower, Host
from broker.framing import fits, special_frame
from broker.mqtt.errors import ProtocolError
from broker.mqtt.packets import Pubrel
from broker.mqtt.reason import Reason
from broker.read_back import ReadBack
from storage.interface import Event

if TYPE_CHECKING:
    from broker.router import Delivery
    from broker.share import Share


class Window(Follower):
    """A follower whose messages have packet identifiers: the half of a session that is about acknowledgements."""

    __slots__ = (
        "_next_id",
        "_read_back",
        "_resend",
        "dirty",
        "expiry",
        "mount",
        "shared",
        "slots",
        "unacked",
        "uncompleted",
        "unreceived",
        "v5",
        "window",
    )

    def __init__(self, host: Host, expiry: int, position: int) -> None:
        super().__init__(host, position)
        self.v5 = False
        self.expiry = expiry
        """Session expiry interval in s; 0: it ends with its connection; NEVER."""
        self.mount = ""
        """What is taken off the topics that its client is given: the mount point of the listener."""
        self.window = 0
        self.slots = 0
        """How many more QoS 1 and 2 messages may be in flight."""
        self.unacked: dict[int, int] = {}
        self.unreceived: dict[int, int] = {}
        self.uncompleted: dict[int, int] = {}
        self.shared: dict[int, Share] = {}
        """What comes of a shared subscription: unacked or unreceived packet identifier to shared subscription."""
        self.dirty = False
        """Whether its row is to be written within about a second."""
        self._resend: dict[int, int] = {}
        """What this connection has not been sent again yet: packet identifier to seq, in the order of seqs."""
        self._read_back = ReadBack(host.log)
        """The next few of these messages."""
        self._next_id = 1

    def _changed(self) -> None:
        """Have its row written within about a second."""
        raise NotImplementedError

    def _checkpoint(self) -> None:
        """Have its row written with the open group."""
        raise NotImplementedError

    # -- connections come and go

    def _open(self, window: int) -> None:
        """A client is there that takes so many at a time: what is in flight is sent again before anything else."""
        self.window = window
        self.slots = window - len(self.uncompleted)
        sent = sorted((seq, packet_id) for w in (self.unacked, self.unreceived) for packet_id, seq in w.items())
        self._resend = {packet_id: seq for seq, packet_id in sent}  # [MQTT-4.4.0-1], [MQTT-4.6.0-1]
        for packet_id in self.uncompleted:
            self.answer(b"\x62\x02" + packet_id.to_bytes(2))

    def _close(self) -> None:
        """The connection is gone."""
        self._resend = {}
        self._read_back.stop()

    def release(self, share: Share) -> list[int]:
        """Give back what is of this shared subscription and was sent at QoS 1 without an answer: its seqs.

        What was sent at QoS 2 is this client's and nobody else's [MQTT-4.8.2-4] [MQTT-4.8.2-5].
        """
        ids = [packet_id for packet_id, its in self.shared.items() if its is share and packet_id in self.unacked]
        for packet_id in ids:
            del self.shared[packet_id]
        seqs = [self.unacked.pop(packet_id) for packet_id in ids]
        if ids and self.expiry:
            self._changed()
        return seqs

    # -- out

    def has_room(self, qos: int) -> bool:
        """Whether it can be given a message of a shared subscription at this QoS now."""
        connection = self.connection
        return (
            connection is not None
            and not connection.blocked
            and connection.pending < connection.limit
            and not (qos and (self.slots <= 0 or self._resend))
        )

    def _send_numbered(self, seq: int, qos: int, head: bytes, tail: bytes, share: Share | None = None) -> None:
        packet_id = self._next_id
        unacked = self.unacked
        while packet_id in unacked or packet_id in self.unreceived or packet_id in self.uncompleted:
            packet_id = packet_id % 65535 + 1  # [MQTT-2.2.1-4]
        self._next_id = packet_id % 65535 + 1
        self.slots -= 1
        if share is not None:
            self.shared[packet_id] = share
        connection = self.connection
        assert connection is not None
        if qos == 1:
            unacked[packet_id] = seq
            if self.expiry and not self.dirty:
                self._changed()
            connection.send_numbered(head, packet_id, tail)
        else:
            self.unreceived[packet_id] = seq
            self._host.traffic.publish_whole(len(tail))
            data = head + packet_id.to_bytes(2) + tail
            if self.expiry or (share is not None and share.stored):
                self._checkpoint()
                self._host.after_commit(connection, data)
            else:
                connection.send(data)

    def answer(self, data: bytes) -> None:
        """Send this once everything that was checkpointed is on disk; at once where the session is not to last."""
        connection = self.connection
        assert connection is not None
        if self.expiry:
            self._host.after_commit(connection, data)
        else:
            connection.send(data)

    def _send_again(self) -> bool:
        """Send the next message again, or have it read back; False: it is on its way."""
        packet_id, seq = next(iter(self._resend.items()))
        if seq not in self._read_back:
            return self._read_back.ask(islice(self._resend.values(), self.slots), self._hungry)
        event = self._read_back[seq]
        self._read_back.drop(seq)
        del self._resend[packet_id]
        if event is not None:
            self._repeat(packet_id, event)
        else:
            self._host.dropped_gone += 1
            self._give_up(packet_id)
        return True

    def _repeat(self, packet_id: int, event: Event) -> None:
        """Send a message again, under the identifier that it has [MQTT-3.3.1-1]."""
        host, connection = self._host, self.connection
        assert connection is not None
        if self.mount and not event.topic.startswith(self.mount):
            self._give_up(packet_id)
            return
        if self.denies(event.topic):
            host.dropped_denied += 1
            self._give_up(packet_id)
            return
        qos = 1 if packet_id in self.unacked else 2
        delivery = self._delivery_of(packet_id, event.topic)
        retain = event.retain
        identifiers: tuple[int, ...] = ()
        if delivery is not None:
            # What is older than the subscription was sent as a retained message.
            retain = event.retain and (delivery.retain_as_published or event.seq <= delivery.since)
            identifiers = delivery.identifiers
        head, tail = special_frame(host, connection, event, qos, retain, True, identifiers)
        if not fits(connection, head, tail, qos):
            host.dropped_oversized += 1
            self._give_up(packet_id)
            return
        self.slots -= 1
        if qos == 1:
            connection.send_numbered(head, packet_id, tail)
        else:
            host.traffic.publish_whole(len(tail))
            self.answer(head + packet_id.to_bytes(2) + tail)

    def _delivery_of(self, packet_id: int, topic: str) -> Delivery[Follower] | None:
        """How a message in flight is delivered."""
        raise NotImplementedError

    def _give_up(self, packet_id: int) -> None:
        """A message can't be sent again. At QoS 2 the client may hold its identifier, and must release it."""
        self.shared.pop(packet_id, None)
        if self.unacked.pop(packet_id, None) is None:
            self.uncompleted[packet_id] = self.unreceived.pop(packet_id)
            self.slots -= 1
            self._release(packet_id)

    # -- what the client acknowledges

    def on_puback(self, packet_id: int) -> None:
        """QoS 1: the client has it."""
        if self.unacked.pop(packet_id, None) is not None:
            if self.shared:
                self.shared.pop(packet_id, None)
            if self._resend:
                self._settle(packet_id)
                return
            self.slots += 1
            if self.expiry and not self.dirty:
                self._changed()
        elif packet_id in self.unreceived or packet_id in self.uncompleted:
            raise _out_of_place("a PUBACK for a QoS 2 message")

    def on_pubrec(self, packet_id: int, reason: int) -> None:
        """QoS 2: the client has it, or (reason of 0x80 and above) does not want it."""
        seq = self.unreceived.pop(packet_id, None)
        if seq is None and packet_id in self.unacked:
            raise _out_of_place("a PUBREC for a QoS 1 message")
        if seq is not None and self.shared:
            self.shared.pop(packet_id, None)  # also where it is refused: nobody else gets it [MQTT-4.8.2-6]
        if reason >= 0x80:
            if seq is not None:
                self._settle(packet_id)
            return
        if seq is not None:
            self.uncompleted[packet_id] = seq
            if self._resend.pop(packet_id, None) is not None:
                self.slots -= 1
        elif packet_id not in self.uncompleted:
            self._answer_unknown(packet_id)
            return
        self._release(packet_id)

    def _answer_unknown(self, packet_id: int) -> None:
        """Let the client be done with an identifier that is in no use here."""
        connection = self.connection
        assert connection is not None
        answer = b"\x62\x02" + packet_id.to_bytes(2)
        if self.v5:
            why = "no QoS 2 message has this packet identifier"
            answer = encode_answer(connection, Pubrel(packet_id, Reason.PACKET_IDENTIFIER_NOT_FOUND), why)
        self.answer(answer)

    def _release(self, packet_id: int) -> None:
        if self.expiry:
            self._checkpoint()
        self.answer(b"\x62\x02" + packet_id.to_bytes(2))  # [MQTT-4.3.3-4]

    def on_pubcomp(self, packet_id: int) -> None:
        """QoS 2: done; the identifier is free."""
        if self.uncompleted.pop(packet_id, None) is not None:
            self._settle(packet_id)
        elif packet_id in self.unacked or packet_id in self.unreceived:
            raise _out_of_place("a PUBCOMP for a message without a PUBREL")

    def _settle(self, packet_id: int) -> None:
        """A message is done: its slot is free, if it had one on this connection."""
        if not self._resend or self._resend.pop(packet_id, None) is None:
            self.slots += 1
        if self.expiry and not self.dirty:
            self._changed()


def _out_of_place(what: str) -> ProtocolError:
    return ProtocolError(Reason.PROTOCOL_ERROR, what)  # [MQTT-4.13.1-1]

"""One route: a cursor over the log, a lane of what it has sent, and the row where its position is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bridge.frames import publish
from bridge.peer import Peer
from bridge.settings import BridgeSettings, RouteSettings
from bridge.stamp import MARK, Stamper, Trail, read_trail
from bridge.window import Entry, Lane, Outcome
from broker.mqtt.codec import MAX_PACKET_SIZE
from broker.mqtt.properties import Property
from broker.mqtt.topic import compile_filters
from storage.interface import CURSORS, META, Event, Log

SECOND: Final = 1_000_000
"""µs"""
IDLE: Final = 60 * SECOND
"""µs between two writes of a position that has only passed over what does not match: so much is read again."""
LONGEST_EXPIRY: Final = 0xFFFFFFFF
"""Seconds that a message expiry interval can say."""
LONGEST_TOPIC: Final = 65535
"""Bytes of the longest string in MQTT."""
LARGEST_CONTENT: Final = MAX_PACKET_SIZE - 32
"""Bytes of topic, properties and payload that surely fit a packet of MQTT, with its headers around them."""


@dataclass(frozen=True, slots=True)
class RouteStatus:
    """What a route has done since the process started, in events, and where it is.

    Each event is counted in one of `acknowledged`, `written` (QoS 0), `refused`, `oversized`, `expired` and `looped`,
    once, when the position moves over it. `forwarded` counts events sent, `resent` how often one was sent again,
    `in_flight` those whose fate is open, and `pending` is how many seqs the position is behind the log.
    """

    name: str
    position: int
    pending: int
    in_flight: int
    forwarded: int
    resent: int
    acknowledged: int
    written: int
    refused: int
    oversized: int
    expired: int
    looped: int


class Route:
    """Reads its cursor, makes frames, and keeps its position.

    The position is the lane's floor, or the cursor's own where nothing is open. With it goes the seq of the last link
    below it, in META, so that the chain goes on unbroken after a restart. Both rows commit together.
    """

    __slots__ = (
        "_epoch",
        "_key",
        "_log",
        "_node",
        "_saved",
        "_saved_at",
        "_settled",
        "_stamper",
        "_topic",
        "cursor",
        "dry",
        "forwarded",
        "lane",
        "link",
        "name",
        "qos",
        "reached",
        "resent",
    )

    def __init__(
        self,
        settings: RouteSettings,
        bridge: BridgeSettings,
        log: Log,
        kept: tuple[int, str] | None,
        node: str,
        epoch: int,
        wake: Callable[[Route], None],
    ) -> None:
        """`kept` is the position and the link that an earlier run has left, None for a route that has never run."""
        self.name = settings.name
        self.qos = settings.qos
        self.forwarded = 0
        self.resent = 0
        self.reached = 0
        """The highest seq ever taken from the cursor: what is sent up to there is sent again."""
        self.dry = False
        """Whether the cursor has nothing at hand, and will wake the route."""
        self._log = log
        self._node = node
        self._topic = settings.prefix.encode()
        self._epoch = epoch
        self._key = (row_name(bridge.name, settings.name),)
        self._stamper = Stamper(node, epoch, f"{bridge.name}/{settings.name}") if bridge.version == 5 else None
        position, last = _start(settings, log, kept, epoch)
        self.lane = Lane(bridge.window, position, last)
        self.link = last
        """The seq of the last link sent: what the next event names as the one before it."""
        self.cursor = log.cursor(position, compile_filters((settings.filter,)), lambda: wake(self))
        self._saved = (-1, "")
        self._saved_at = 0
        self._settled = 0
        """How many events the position had moved over when it was written last."""

    def frame(self, event: Event, qos: int, packet_id: int, peer: Peer, now: int) -> bytes | Outcome:
        """The PUBLISH of one event, or why there is none."""
        properties = event.properties
        trail: Trail | None = None
        if MARK in properties:
            trail = read_trail(properties)
            properties = trail.rest
            if trail.looped(self._node):
                return Outcome.LOOPED
        if event.expires and event.expires <= now:
            return Outcome.EXPIRED  # [MQTT-3.3.2-5]
        topic = self._topic + event.topic.encode()
        if len(topic) > LONGEST_TOPIC:
            return Outcome.OVERSIZED
        if self._stamper is not None:
            properties += self._stamper.stamp(event.seq, self.link, trail)
            if event.expires:
                left = min(-((now - event.expires) // SECOND), LONGEST_EXPIRY)  # its clock may be a bit behind
                properties += b"%c%b" % (Property.MESSAGE_EXPIRY_INTERVAL, left.to_bytes(4, "big"))  # [MQTT-3.3.2-6]
        payload = event.payload
        if len(topic) + len(properties) + len(payload) > LARGEST_CONTENT:
            return Outcome.OVERSIZED
        retain = event.retain and peer.retain_available  # [MQTT-3.2.2-14]
        frame = publish(topic, payload, qos, retain, packet_id, None if self._stamper is None else properties)
        return frame if len(frame) <= peer.max_packet_size else Outcome.OVERSIZED  # [MQTT-3.2.2-15]

    def sent(self, seq: int, size: int, linked: bool) -> Entry:
        """The frame of this event is on its way; `size` is what it takes of the window."""
        if seq > self.reached:
            self.reached = seq
            self.forwarded += 1
        else:
            self.resent += 1
        if linked:
            self.link = seq
        return self.lane.add(seq, size, linked)

    def skipped(self, seq: int, outcome: Outcome, linked: bool) -> None:
        """This event is not sent; where it is `linked`, its absence will show as a gap."""
        if seq > self.reached:
            self.reached = seq
        if linked:
            self.link = seq
        self.lane.skip(seq, outcome, linked)

    def rewind(self) -> None:
        """The connection is gone: go on from the floor."""
        lane = self.lane
        position = self.position
        lane.clear()
        self.link = lane.last
        self.cursor.seek(position)
        self.dry = False

    @property
    def position(self) -> int:
        """The seq up to which the fate of every event is known."""
        self.lane.reach(self.cursor.position)
        return self.lane.floor

    def save(self, now: int, least: int) -> bool:
        """Put the position into the open group where it has moved, `least` µs or more after the last time.

        While it has only passed over what does not match, that is at least IDLE; with 0 it is at once all the same.
        """
        row = (self.position, f"{self._epoch} {self.lane.last}")
        settled = sum(self.lane.counts)
        if least and settled == self._settled:
            least = max(least, IDLE)
        if row == self._saved or now - self._saved_at < least:
            return False
        self._saved = row
        self._saved_at = now
        self._settled = settled
        self._log.open.put(CURSORS, self._key, row[:1])
        self._log.open.put(META, self._key, row[1:])
        return True

    def status(self) -> RouteStatus:
        """Counts and place, as of now."""
        counts = self.lane.counts
        position = self.position
        return RouteStatus(
            name=self.name,
            position=position,
            pending=max(0, self._log.committed - position),
            in_flight=len(self.lane),
            forwarded=self.forwarded,
            resent=self.resent,
            acknowledged=counts[Outcome.ACKNOWLEDGED],
            written=counts[Outcome.WRITTEN],
            refused=counts[Outcome.REFUSED],
            oversized=counts[Outcome.OVERSIZED],
            expired=counts[Outcome.EXPIRED],
            looped=counts[Outcome.LOOPED],
        )


def row_name(bridge: str, route: str) -> str:
    """The key of a route's rows in CURSORS and META."""
    return f"bridge/{bridge}/{route}"


def _start(settings: RouteSettings, log: Log, kept: tuple[int, str] | None, epoch: int) -> tuple[int, int]:
    """The position to go on from, and the seq of the last link below it."""
    if kept is None:
        return (0 if settings.start == "beginning" else log.committed), 0
    # A position beyond the log is from memory events that a crash took with it: their seqs are given out again.
    position = min(kept[0], log.committed)
    numbering, _, last = kept[1].partition(" ")
    return position, min(int(last), position) if numbering == str(epoch) else 0

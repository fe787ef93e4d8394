"""The client side of one bridge: several routes over one connection to one peer, without any input or output.

The rules:

1. A position moves over an event only when the peer has acknowledged it and all before it; see `bridge.window`.
2. Every connection starts clean. What was in flight when the last one ended is sent again from the floor, in log order,
   as new PUBLISH packets without DUP: a new session has nothing to repeat. At least once; a receiver drops copies by
   (edge, epoch, seq), see `bridge.stamp` and `bridge.ledger`.
3. An event goes at the lower of its own QoS and its route's. At QoS 0 it is done with once the transport has it.
4. What is in flight is bounded by count and bytes, what the transport is given in one go by TAKE_BYTES, and nothing is
   pulled from the log while the transport is paused. A backlog waits in the log, never here.
5. Routes with something to send take turns, BURST events at a time.
6. What can't be sent is counted and passed over where nobody can change it, and waited for where the peer can; the
   table is in `bridge.peer`.

The shell around it dials when `retry_at` says so, then calls `opened`, `receive`, `closed`, `paused` and `tick` (about
once a second) as things happen. After each of them, and some time after `wake`, it writes what `take` gives until that
is empty, and then, where `want_close` gives a reason, closes the transport and calls `closed`. `wake` comes from inside
the log and from inside `take`: it schedules, and never calls back at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from bridge import backoff
from bridge.peer import REFUSALS, Peer, connack_lasts, describe, disconnect_lasts, read_connack
from bridge.route import SECOND, Route, RouteStatus, row_name
from bridge.settings import BridgeSettings
from bridge.window import Entry, Outcome, Window
from broker.mqtt.codec import Decoder, encode
from broker.mqtt.packets import Connack, Connect, Disconnect, Packet, Pingreq, Pingresp, Puback
from broker.mqtt.properties import Property
from broker.mqtt.reason import Reason
from storage.interface import CURSORS, META, Event, Log

TAKE_BYTES: Final = 256 << 10
"""`take` stops pulling events once it has this many bytes."""
TAKE_EVENTS: Final = 4096
"""`take` looks at no more events than this, sent or not, so that it never holds up the loop for long."""
BURST: Final = 32
"""Events that one route sends before it is the next one's turn."""
SAVE_INTERVAL: Final = SECOND
"""µs between two writes of one route's position."""
ANSWER_TIMEOUT: Final = 10 * SECOND
"""µs that the peer has for its CONNACK."""
LARGEST_ANSWER: Final = 64 << 10
"""Bytes of the largest packet that the peer may send: it only ever answers."""
LONGEST_WAIT: Final = 32
"""The attempt whose wait is drawn from the whole range up to `backoff_max`."""


class State(Enum):
    """Where the connection is."""

    IDLE = "idle"
    """No transport."""
    CONNECTING = "connecting"
    """CONNECT is queued or sent, its CONNACK has not come."""
    UP = "up"


@dataclass(frozen=True, slots=True)
class UplinkStatus:
    """How a bridge is doing. `connected_since` is in µs since the epoch, 0 while not UP."""

    name: str
    state: State
    connected_since: int
    attempts: int
    """Connections lost or refused in a row."""
    last_error: str
    routes: tuple[RouteStatus, ...]


class Uplink:
    """Forwards a log's events to one peer, and knows which of them have arrived.

    `node` names this node and `epoch` the numbering of its log: it stays the same across restarts, and changes
    whenever seqs start over or are given out a second time. `wake` is called when the log has brought something to
    send; `report` with a line that an operator should read, at most once per route and cause.
    """

    def __init__(
        self,
        settings: BridgeSettings,
        log: Log,
        *,
        node: str,
        epoch: int,
        wake: Callable[[], None],
        report: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self.state = State.IDLE
        self.want_close = ""
        """Why the transport should be closed once all is written; empty while it should not."""
        self.last_error = ""
        self.wake = wake
        self._log = log
        self._report = report
        self._reported: set[tuple[str, int]] = set()
        positions = {name: position for name, position in log.rows(CURSORS) if isinstance(position, int)}
        links = {name: link for name, link in log.rows(META) if isinstance(link, str)}
        self.routes: list[Route] = []
        for route in settings.routes:
            key = row_name(settings.name, route.name)
            kept = (positions[key], links.get(key, "")) if key in positions else None
            self.routes.append(Route(route, settings, log, kept, node, epoch, self._woken))
        self._ring = deque(self.routes)
        self._window = Window(settings.window, settings.window_bytes)
        self._peer = Peer()
        self._decoder = Decoder()
        self._out: list[bytes] = []
        self._unwritten: list[Entry] = []
        self._paused = False
        self._stopped = False
        self._attempts = 0
        self._lasting = False
        self._now = 0
        self._since = 0
        self._sent_at = 0
        self._heard_at = 0
        self._pinged_at = 0
        self._keep_alive = 0
        # A new route's start is where it is now, not where it will be after a crash.
        self._save(0, 0)

    @property
    def up(self) -> bool:
        """Whether the peer has accepted the connection."""
        return self.state is State.UP

    def opened(self, now: int) -> None:
        """The transport is up: begin with CONNECT. [MQTT-3.1.0-1]"""
        settings = self.settings
        self._now = self._since = self._heard_at = self._sent_at = now
        self._pinged_at = 0
        self._lasting = False
        self.state = State.CONNECTING
        self._decoder = Decoder(version=settings.version, max_packet_size=LARGEST_ANSWER)
        self._send(
            Connect(
                client_id=settings.client_id,
                version=settings.version,
                clean_start=True,
                keep_alive=settings.keep_alive,
                will=None,
                username=settings.username,
                password=settings.password,
                properties=((Property.MAXIMUM_PACKET_SIZE, LARGEST_ANSWER),) if settings.version == 5 else (),
            )
        )

    def receive(self, data: bytes, now: int) -> None:
        """The peer sent these bytes."""
        self._now = self._heard_at = now
        self._pinged_at = 0
        decoder = self._decoder
        for packet in decoder.feed(data):
            if type(packet) is Puback and self.state is State.UP:
                self._answered(packet)
            elif not self.want_close:
                self._other(packet)
        if decoder.error is not None and not self.want_close:
            hint = "; does it speak MQTT 5?" if self.state is State.CONNECTING and self.settings.version == 5 else ""
            self._fail(f"the peer sent what is no MQTT: {decoder.error}{hint}", decoder.error.reason)

    def take(self) -> bytes:
        """What to write now; empty when there is nothing more until something happens."""
        if self.state is State.UP and not self._paused and not self.want_close:
            self._pump()
        if not self._out:
            return b""
        data = b"".join(self._out)
        self._out.clear()
        self._sent_at = self._now
        for entry in self._unwritten:
            entry.lane.settle(entry, Outcome.WRITTEN)
        self._unwritten.clear()
        return data

    def paused(self, paused: bool) -> None:
        """The transport has enough to write for now, or has room again."""
        self._paused = paused

    def closed(self, now: int, error: str = "") -> None:
        """The transport is gone, or could not be opened; `error` says why, where the shell knows better."""
        self._now = now
        if not self._stopped:
            self.last_error = self.want_close or error or "the peer closed the connection"
            self._attempts += 1
        self.state = State.IDLE
        self.want_close = ""
        self._paused = False
        self._since = 0
        self._out.clear()
        self._window = Window(self.settings.window, self.settings.window_bytes)
        for route in self.routes:
            route.rewind()
        self._save(now, 0)

    def tick(self, now: int) -> None:
        """Time has passed: keep alive, timeouts, positions."""
        self._now = now
        if self.state is State.CONNECTING and now - self._since >= ANSWER_TIMEOUT:
            self._fail(f"no CONNACK within {ANSWER_TIMEOUT // SECOND} s")
        elif self.state is State.UP and self._keep_alive:
            self._keep(now)
        self._save(now, SAVE_INTERVAL)

    def stop(self, now: int) -> None:
        """The node stops: keep the positions and say goodbye. The uplink does not open again."""
        self._stopped = True
        self._fail("the node stops", Reason.NORMAL_DISCONNECTION)
        self._save(now, 0)
        for route in self.routes:
            route.cursor.close()

    def retry_at(self, now: int, random: float) -> int:
        """When to dial next, in µs since the epoch; `random` is in [0, 1)."""
        if not self._attempts:
            return now
        attempt = LONGEST_WAIT if self._lasting else self._attempts
        wait = backoff.delay(attempt, self.settings.backoff_min, self.settings.backoff_max, random)
        return now + round(wait * SECOND)

    def status(self) -> UplinkStatus:
        """Counts and places of all routes, as of now."""
        return UplinkStatus(
            name=self.settings.name,
            state=self.state,
            connected_since=self._since if self.state is State.UP else 0,
            attempts=self._attempts,
            last_error=self.last_error,
            routes=tuple(route.status() for route in self.routes),
        )

    def _woken(self, route: Route) -> None:
        route.dry = False
        if self.state is State.UP and not self._paused and not self.want_close:
            self.wake()

    def _pump(self) -> None:
        ring = self._ring
        room, left, idle = TAKE_BYTES, TAKE_EVENTS, 0
        while idle < len(ring) and room > 0 and left > 0:
            route = ring[0]
            ring.rotate(-1)
            taken, size = self._burst(route, min(BURST, left), room)
            left -= taken
            room -= size
            idle = 0 if taken else idle + 1
        if left <= 0 and room == TAKE_BYTES:
            # Nothing but events to pass over: an empty answer ends the shell's loop, so ask for another turn.
            self.wake()

    def _burst(self, route: Route, limit: int, room: int) -> tuple[int, int]:
        """Let one route send; how many events it took from the log, and how many bytes came of them."""
        taken = size = 0
        if route.dry:
            return taken, size
        lane, window, following = route.lane, self._window, route.cursor.next
        while taken < limit and size < room and not lane.full and not (route.qos and window.full):
            event = following()
            if event is None:
                route.dry = True
                break
            taken += 1
            size += self._forward(route, event)
        return taken, size

    def _forward(self, route: Route, event: Event) -> int:
        window = self._window
        qos = 1 if route.qos and event.qos else 0
        linked = qos == route.qos
        seq = event.seq
        packet_id = window.next_id() if qos else 0
        frame = route.frame(event, qos, packet_id, self._peer, self._now)
        if not isinstance(frame, bytes):
            lost = frame is Outcome.OVERSIZED
            if lost:
                self._report_once(route, frame, f"seq {seq} on {event.topic!r} is too big for the peer")
            route.skipped(seq, frame, linked and lost)
            return 0
        size = len(frame)
        entry = route.sent(seq, size if qos else 0, linked)
        if qos:
            window.open(packet_id, entry)
        else:
            self._unwritten.append(entry)
        self._out.append(frame)
        return size

    def _answered(self, packet: Puback) -> None:
        if packet.reason >= Reason.UNSPECIFIED_ERROR and packet.reason not in REFUSALS:
            self._fail(f"the peer does not take a message now: {describe(packet.reason, packet.properties)}")
            return
        entry = self._window.close(packet.packet_id)
        if entry is None:
            return  # Nothing waits under this identifier: a second answer changes nothing.
        if packet.reason < Reason.UNSPECIFIED_ERROR:
            self._attempts = 0
            entry.lane.settle(entry, Outcome.ACKNOWLEDGED)
            return
        for route in self.routes:
            if route.lane is entry.lane:
                said = describe(packet.reason, packet.properties)
                self._report_once(route, packet.reason, f"the peer refuses seq {entry.seq}: {said}")
        entry.lane.settle(entry, Outcome.REFUSED)

    def _other(self, packet: Packet) -> None:
        match packet:
            case Connack() if self.state is State.CONNECTING:
                self._connected(packet)
            case Pingresp() if self.state is State.UP:
                self._attempts = 0
            case Disconnect():
                said = describe(packet.reason, packet.properties)
                self._fail(f"the peer disconnects: {said}", lasting=disconnect_lasts(packet.reason))
            case _:
                name = type(packet).__name__.upper()
                self._fail(f"the peer sent a {name}, which nobody asked for", Reason.PROTOCOL_ERROR)

    def _connected(self, packet: Connack) -> None:
        if packet.reason >= Reason.UNSPECIFIED_ERROR:
            said = describe(packet.reason, packet.properties)
            self._fail(f"the peer refuses the connection: {said}", lasting=connack_lasts(packet.reason))
            return
        if packet.session_present:  # [MQTT-3.2.2-4]
            self._fail("the peer says that it has a session, though a clean start was asked for")
            return
        settings = self.settings
        peer = read_connack(packet)
        if not peer.max_qos and any(route.qos for route in self.routes):  # [MQTT-3.2.2-11]
            self._fail("the peer takes QoS 0 only, and acknowledges nothing: give its routes qos = 0", lasting=True)
            return
        self._peer = replace(peer, max_packet_size=min(peer.max_packet_size, settings.max_packet_size))
        self._window = Window(min(settings.window, peer.receive_maximum), settings.window_bytes)  # [MQTT-3.3.4-7]
        self._keep_alive = settings.keep_alive if peer.keep_alive is None else peer.keep_alive  # [MQTT-3.2.2-21]
        self._since = self._now
        self.state = State.UP

    def _keep(self, now: int) -> None:
        interval = self._keep_alive * SECOND
        # Ticks are a second apart: rather ping one early than one late.
        due = max(interval - SECOND, interval // 2)
        if self._pinged_at:
            if now - self._pinged_at >= interval // 2:
                self._fail(f"no answer to PINGREQ within {self._keep_alive / 2:g} s")
        elif now - self._sent_at >= due or now - self._heard_at >= due:  # [MQTT-3.1.2-20]
            self._pinged_at = now
            self._send(Pingreq())

    def _fail(self, why: str, reason: Reason | None = None, *, lasting: bool = False) -> None:
        """Ask for the transport to be closed; with a reason, tell the peer of it first."""
        if self.state is State.UP and not self.want_close and reason is not None:
            if self.settings.version == 5:
                self._send(Disconnect(reason))
            elif reason is Reason.NORMAL_DISCONNECTION:
                self._send(Disconnect())
        self.want_close = self.want_close or why
        self._lasting = self._lasting or lasting

    def _send(self, packet: Packet) -> None:
        self._out.append(encode(packet, self.settings.version))

    def _save(self, now: int, least: int) -> None:
        moved = [route.save(now, least) for route in self.routes]
        if any(moved):
            self._log.flush()

    def _report_once(self, route: Route, cause: int, line: str) -> None:
        key = (route.name, cause)
        if key not in self._reported:
            self._reported.add(key)
            self._report(f"bridge {self.settings.name}, route {route.name}: {line}; further ones are only counted")

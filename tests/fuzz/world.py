"""A node in miniature, with connections that behave like sockets: what a peer sends waits while it is not read from.

Nothing here judges what the broker does but the ears of its clients, and the rules that `Broken` is raised by.
"""

from __future__ import annotations

import re
import traceback
from collections import deque
from typing import Final

from broker.connection import Connection
from broker.rights import LEVELS
from storage.interface import FSYNC, Event, StorageFull
from tests.broker.helpers import Node
from tests.fuzz.ear import Ear, Wrong
from tests.fuzz.setups import MEMORY_LEVEL, MOUNT, Doors, Setup, durability

_FULL: Final = StorageFull("writing the log: no space left on device")


class Broken(Exception):
    """A promise of the broker is broken. `kind` is the same for whatever breaks it in the same way."""

    def __init__(self, problem: str, detail: str = "") -> None:
        super().__init__(f"{problem}\n{detail}".rstrip())
        self.kind = re.sub(r"\d+", "N", problem)


def broken_by(error: BaseException) -> Broken:
    """An error of the broker's own, or of what it says."""
    if isinstance(error, Wrong):
        return Broken(str(error))
    at = traceback.extract_tb(error.__traceback__)[-1]
    place = "/".join(at.filename.split("/")[-2:])
    return Broken(f"{type(error).__name__} in {place}, {at.name}", "".join(traceback.format_exception(error)))


_REPLAYED: Final = re.compile(r"\$replay/[^/]*/")
"""What stands before the topic of a message that is replayed."""


class Wire:
    """The transport of one connection. While `jammed`, what is written gathers."""

    def __init__(self, peer: str, ear: Ear) -> None:
        self.peer = peer
        self.host = peer.partition(":")[0]
        self.identity = ""
        self.ear = ear
        self.unread = bytearray()
        self.unfinished = 0
        self.jammed = False
        self.reading = True
        self.open = True

    def write(self, data: bytes) -> None:
        """Hand it to the ear, unless its owner does not listen."""
        if not self.open:
            raise Wrong("something is written to a connection that is closed")
        self.unread += data
        if not self.jammed:
            self.flush()

    def flush(self) -> None:
        """Let the ear hear everything."""
        data = bytes(self.unread)
        self.unread.clear()
        if data:
            self.ear.hear(data)

    def close(self) -> None:
        """Nothing more is written."""
        self.open = False

    def abort(self) -> None:
        """It is gone, with what was not read yet."""
        self.unread.clear()
        self.open = False

    def pause_reading(self) -> None:
        """Let the peer wait."""
        self.reading = False

    def resume_reading(self) -> None:
        """Let the peer go on."""
        self.reading = True


class Link:
    """One connection, as its client holds it."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self._world = world
        node, listener = world.node, world.doors.of(name)
        mount = MOUNT if listener.mount_point else ""

        def kept(topic: str, payload: bytes) -> bool:
            # Before MQTT 5 a message that is not allowed is acknowledged, and dropped.
            topic = _REPLAYED.sub("", topic)
            topic, ruled = mount + topic, listener.access is not None
            forbidden = ruled or topic.removeprefix(mount).startswith("$") or topic.count("/") >= LEVELS
            return (forbidden and self.ear.version < 5) or world.keeps(topic, payload)

        self.ear = Ear(kept, listener.limits.max_inflight, listener.limits.max_packet_size)
        self.wire = Wire(f"192.0.2.1:{40000 + world.accepted}", self.ear)
        world.accepted += 1
        self.connection: Connection = node.hub.clients.accept(self.wire, node.now, listener)
        self._unsent: deque[bytes] = deque()
        self._lost = False

    def send(self, data: bytes) -> None:
        """Send it as soon as the broker reads."""
        self._unsent.append(data)

    def pump(self) -> bool:
        """Let the broker read one piece; whether there was one. A connection that it has closed is gone with this."""
        if not self.wire.open:
            self.lose()
            return False
        if not self._unsent or not self.wire.reading:
            return False
        data = self._unsent.popleft()
        largest = self._world.largest
        largest[self.name] = max(len(data), largest.get(self.name, 0))
        self.ear.said(data)
        self.connection.receive(data, self._world.node.now)
        return True

    def jam(self) -> None:
        """Read no more; the buffers between are full."""
        if self.wire.open and not self.wire.jammed:
            self.wire.jammed = True
            self.connection.on_blocked(True)

    def unjam(self) -> None:
        """Read on."""
        if self.wire.jammed:
            self.wire.jammed = False
            self.wire.flush()
            self.connection.on_blocked(False)

    def lose(self) -> None:
        """The connection is gone, whoever has ended it."""
        if not self._lost:
            self._lost = True
            if not self.wire.open and not self.wire.jammed:
                self.ear.ended()
            self.wire.open = False
            self.connection.lost(self._world.node.now)

    def answer(self) -> None:
        """Acknowledge everything that has been heard."""
        if self.ear.answers:
            self.send(b"".join(self.ear.answers))
            self.ear.answers.clear()


class World:
    """A node, and whoever is connected to it."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.node = Node(setup.limits, durability, setup.memory_bytes)
        self.doors = Doors(setup, self.node.now)
        self.accepted = 0
        self.links: dict[str, Link] = {}
        self.largest: dict[str, int] = {}
        """Bytes that each client has had read at once at most."""
        self.faulty = False
        """The disk was full at some time."""
        self.refusing = False
        """At some time it had no room for what publishers send."""
        self._room = "plenty"
        self._kept: set[tuple[str, bytes]] = set()
        self._seen = 0

    # -- connections

    def open(self, name: str) -> Link:
        """A new connection of a client; the one that it has is lost."""
        self.drop(name)
        self.links[name] = link = Link(self, name)
        return link

    def drop(self, name: str) -> None:
        """The connection of a client breaks."""
        if (link := self.links.pop(name, None)) is not None:
            link.lose()

    def settle(self) -> None:
        """Turn the loop, and let the broker read, until nothing more happens by itself."""
        self.node.turn()
        while self.pump():
            self.node.turn()

    def pump(self) -> bool:
        """Let the broker read once from everyone; whether there was anything."""
        return sum(link.pump() for link in list(self.links.values())) > 0

    # -- what happens to the node

    def fill(self) -> None:
        """The disk is full."""
        self.node.engine.fault = _FULL
        self.faulty = True

    def empty(self) -> None:
        """There is room again."""
        self.node.engine.fault = None

    def ration(self, room: str) -> None:
        """The disk has so much room; see `steps.ROOM`."""
        self._room = room
        self.refusing |= room == "scarce"
        self.node.hub.ration(qos0=room != "plenty", all_qos=room == "scarce")

    def change_rules(self) -> None:
        """Other rules hold for those who are asked who they are."""
        self.doors.other_rules()
        self.node.hub.clients.rules_changed(self.doors.asked)

    def expel(self) -> None:
        """A user is none any more."""
        self.node.hub.clients.expel(self.doors.asked, {"me"})

    def restart(self, crash: bool) -> None:
        """The node is started again; every connection is lost."""
        if crash:
            self.node.crash()
        else:
            self.node.restart()
        self.ration(self._room)
        self.links.clear()
        self.doors = Doors(self.setup, self.node.now)

    def keeps(self, topic: str, payload: bytes) -> bool:
        """Whether a message of QoS 1 or 2 is where it was promised to be."""
        commits = self.node.engine.commits
        for events, _, sync in commits[self._seen :]:
            self._kept.update((event.topic, event.payload) for event in events if _lasts(event, sync))
        self._seen = len(commits)
        return (topic, payload) in self._kept or MEMORY_LEVEL in topic.split("/")


def _lasts(event: Event, sync: bool) -> bool:
    return event.qos > 0 and event.durability == FSYNC and sync

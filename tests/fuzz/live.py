"""Plays the bytes of sequences on a real node, over real sockets, while pairs of paho's clients talk to each other.

What happens to nodes in sequences (a full disk, a crash, a clock that jumps) is left out here. The node must go on, the
pairs must notice nothing, whatever the node sends must be valid for whom it is sent to, its memory must stay where it
was, and in the end it must have kept what the pairs were acknowledged.
"""

from __future__ import annotations

import select
import socket
import threading
from collections import deque
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from berm.replay import Query
from berm.replay import select as replayed
from broker.passwords import lines
from storage.sqlite import SQLiteEngine
from tests.fuzz.broker import numbered
from tests.fuzz.ear import Ear, Wrong
from tests.fuzz.steps import Sequence, Step
from tests.interop.clients import Paho
from tests.node import HOST, PATIENCE, Node, wait_until

_LARGEST: Final = 10_000
"""Bytes of the largest packet that the node takes."""
_IN_FLIGHT: Final = 10
_GROWTH: Final = 64 << 20
"""Bytes that the node may grow by, whatever is done to it."""
_CONFIG: Final = f"""\
[storage]
memory_bytes = {1 << 20}

[mqtt]
max_packet_size = {_LARGEST}
max_inflight = {_IN_FLIGHT}
max_session_expiry = 5
max_subscriptions = 50
connect_timeout = 2
write_buffer = {64 << 10}

[[listeners]]
name = "plain"
port = 0

[[listeners]]
name = "mounted"
port = 0
mount_point = "m/"

[[listeners]]
name = "asked"
port = 0

[listeners.access]
password_file = "passwords"
acl_file = "acl"
"""
_RULES: Final = """\
deny publish x/a/b
deny receive x/b
deny subscribe $x/#
allow all #
"""
_LISTENERS: Final = {"d": "mounted", "e": "asked"}
"""Where clients of these names connect; the others come to the plain listener."""


class Talk:
    """A pair that talks for as long as the node is mistreated: each message, then the answer to it."""

    def __init__(self, port: int, name: str, versions: tuple[int, int]) -> None:
        self.said: list[bytes] = []
        """What was acknowledged."""
        self.exchanged = 0
        self.problem: str | None = None
        self._name = name
        self._stop = threading.Event()
        self._ends = tuple(
            Paho(port, f"bystander {name} {version}", version, clean=True, receive_maximum=20 if version == 5 else 0)
            for version in versions
        )
        for end, whom in zip(self._ends, reversed(versions), strict=True):
            end.subscribe(f"bystander/{name}/{whom}")
        self._versions = versions
        self._thread = threading.Thread(target=self._talk)
        self._thread.start()

    def stop(self) -> str | None:
        """End it, after one more exchange; what it has noticed."""
        before = self.exchanged
        with suppress(AssertionError):
            wait_until("the pair goes on", lambda: self.exchanged > before + 1 or not self._thread.is_alive())
        self._stop.set()
        self._thread.join(2 * PATIENCE)
        ended = any(end.ended.is_set() for end in self._ends)
        for end in self._ends:
            end.close()
        if self.problem is None and self.exchanged <= before + 1:
            return f"pair {self._name} is held up"
        return self.problem or (f"pair {self._name} was disconnected" if ended else None)

    def _talk(self) -> None:
        one, two = self._ends
        try:
            while not self._stop.is_set():
                for speaker, listener, version in ((one, two, self._versions[0]), (two, one, self._versions[1])):
                    payload = f"{self._name} {version} {self.exchanged}".encode()
                    speaker.publish(f"bystander/{self._name}/{version}", payload, qos=1 + self.exchanged % 2)
                    self.said.append(payload)
                    came = [message.payload for message in listener.receive(1)]
                    if came != [payload]:
                        self.problem = f"pair {self._name} gets {came}, not {payload!r}"
                        return
                self.exchanged += 1
        except Exception as error:  # noqa: BLE001 - told by `stop`, on the thread that can do something
            self.problem = f"pair {self._name}: {error!r}"


class Peer:
    """One client's socket."""

    def __init__(self, port: int) -> None:
        self.ear = Ear(lambda topic, payload: True, _IN_FLIGHT, _LARGEST)
        self.jammed = False
        self.socket = socket.create_connection((HOST, port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.unsent: deque[bytes] = deque()
        self.gone = False

    def say(self, data: bytes) -> None:
        """Send it as soon as there is room."""
        if not self.gone:
            self.ear.said(data)
            self.unsent.append(data)
            self.write()

    def write(self) -> None:
        """Send what there is room for."""
        try:
            while self.unsent:
                sent = self.socket.send(self.unsent[0])
                self.unsent[0] = self.unsent[0][sent:]
                if not self.unsent[0]:
                    self.unsent.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self.unsent.clear()

    def read(self) -> None:
        """Hear what has come.

        Raises:
            Wrong: it should not have.
        """
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if data:
            self.ear.hear(data)
        else:
            self.ear.ended()
            self.close()

    def close(self) -> None:
        """End the connection."""
        self.gone = True
        self.socket.close()


class NodeTarget:
    """A node in a process of its own, as `run.py` drives it."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._done = 0
        self._peers: dict[str, Peer] = {}
        with ExitStack() as stack:
            directory = Path(stack.enter_context(TemporaryDirectory(prefix="berm-fuzz-")))
            (directory / "passwords").write_text("\n".join(lines("me", "secret", scram=True)) + "\n")
            (directory / "passwords").chmod(0o600)
            (directory / "acl").write_text(_RULES)
            self.node = stack.enter_context(Node(directory, _CONFIG))
            port = self.node.ports["plain"]
            self._talks = [Talk(port, "one", (4, 5)), Talk(port, "two", (5, 3))]
            self._most = self.node.rss + _GROWTH
            self._closing = stack.pop_all()

    def go_on(self) -> str | None:
        """Play one more sequence; what was found."""
        sequence = numbered(self._seed, self._done)
        problem: str | None = None
        try:
            self._play(sequence)
        except ConnectionRefusedError:
            problem = "the node takes no connection"
        except Wrong as wrong:
            problem = str(wrong)
        problem = self._problem() or problem
        self._done += 1
        return None if problem is None else f"sequence {self._done - 1}: {problem}\n{sequence}"

    def __str__(self) -> str:
        exchanged = sum(talk.exchanged for talk in self._talks)
        return f"{self._done} sequences, {exchanged} exchanges between bystanders, {self.node.rss >> 20} MiB"

    def close(self) -> str | None:
        """End the pairs and the node; what was found in the end."""
        with self._closing:
            self._close_peers()
            problems = [talk.stop() for talk in self._talks] + [self._problem()]
            if self.node.running and (code := self.node.stop()):
                problems.append(f"the node ends with {code}")
            problems += [None if any(problems) else self._lost()]
        return next(filter(None, problems), None)

    def _problem(self) -> str | None:
        if not self.node.running:
            return f"the node has ended: {self.node.stderr[-3000:]}"
        if "Traceback" in self.node.stderr:
            return f"an error of the node's own: {self.node.stderr[-5000:]}"
        if (rss := self.node.rss) > self._most:
            return f"the node has grown to {rss >> 20} MiB"
        return next((talk.problem for talk in self._talks if talk.problem is not None), None)

    def _lost(self) -> str | None:
        """What was acknowledged to the pairs, and is not in the log."""
        engine = SQLiteEngine(self.node.data, readonly=True)
        kept = {event.payload for event in replayed(engine, Query(topics=("bystander/#",)))}
        engine.close()
        lost = [payload for talk in self._talks for payload in talk.said if payload not in kept]
        return f"acknowledged and not in the log: {lost[:5]}" if lost else None

    # -- a sequence

    def _play(self, sequence: Sequence) -> None:
        for step in sequence.steps:
            self._take(step)
            self._poll(0)
        self._poll(0.002)
        self._close_peers()

    def _close_peers(self) -> None:
        for peer in self._peers.values():
            peer.close()
        self._peers.clear()

    def _take(self, step: Step) -> None:
        peer = self._peers.get(step.subject)
        if step.reads:
            if peer is None or peer.gone:
                port = self.node.ports[_LISTENERS.get(step.subject, "plain")]
                self._peers[step.subject] = peer = Peer(port)
            for read in step.reads:
                peer.say(read)
        elif peer is None or peer.gone:
            pass
        elif step.verb == "drops":
            peer.close()
        elif step.verb in ("jams", "reads"):
            peer.jammed = step.verb == "jams"
        elif peer.ear.answers:
            data = b"".join(peer.ear.answers)
            peer.ear.answers.clear()
            peer.say(data)

    def _poll(self, seconds: float) -> None:
        """Read and write wherever it is possible."""
        listening = {peer.socket: peer for peer in self._peers.values() if not (peer.gone or peer.jammed)}
        speaking = {peer.socket: peer for peer in self._peers.values() if peer.unsent and not peer.gone}
        readable, writable, _ = select.select(listening, speaking, (), seconds)
        for each in writable:
            speaking[each].write()
        for each in readable:
            listening[each].read()
            listening[each].ear.inbox.clear()

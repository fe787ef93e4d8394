"""Sequences of steps, made up: scripts that are mixed, changed and interrupted, and packets that no script has."""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Final

from tests.conformance.packets import Fields, encode
from tests.fuzz.corpus import Move, Template, table, templates
from tests.fuzz.damage import cut, damaged
from tests.fuzz.mutate import Inventor, mutated
from tests.fuzz.setups import ASKED, SETUPS, SLOTS
from tests.fuzz.steps import SENDS, SENDS_EARLY, Sequence, Step

_MOST: Final = 70
"""Steps of a sequence, roughly."""
_EVENTS: Final = (
    ("node commits", 40),
    ("node commits-one", 8),
    ("answers", 30),
    ("jams", 5),
    ("reads", 6),
    ("drops", 4),
    ("clock 0.3", 4),
    ("clock 1.5", 5),
    ("clock 60", 1),
    ("clock 2000", 1),
    ("node admits", 6),
    ("node full", 1),
    ("node room", 3),
    ("node low", 1),
    ("node scarce", 1),
    ("node plenty", 2),
    ("node dies", 1),
    ("node restarts", 1),
    ("node rules", 2),
    ("node expels", 1),
)
"""What happens between packets, and how often."""


def sequence(rng: Random) -> Sequence:
    """One more sequence."""
    return _Maker(rng).make()


class _Maker:
    """Makes one sequence."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._steps: list[Step] = []
        self._inventor = Inventor(rng)
        self._versions: dict[str, int] = {}
        """Of the clients that are connected, as far as one can tell from what they send."""
        self._waiting: dict[str, list[bytes]] = {}
        """Packets that go out with the next ones."""
        self._faithful = rng.random() < 0.3
        """Packets are not damaged: what is reached is deeper."""

    def _storm(self) -> None:
        """A client comes and goes, many times."""
        rng, client = self._rng, self._rng.choice(SLOTS)
        version = rng.choice((3, 4, 5))
        self._flush(client)
        packets = [self._inventor.connect(f"x{client}")] + [self._inventor.packet() for _ in range(rng.randrange(3))]
        data = b"".join(_encoded(kind, fields, version) for kind, fields in packets)
        between = (Step(client, rng.choice(("drops", "answers", "drops"))), *self._pause())
        self._steps += [Step(client, SENDS, (data,)), *between] * rng.choice((30, 100, 150)) if data else []
        self._versions.pop(client, None)

    def _pause(self) -> tuple[Step, ...]:
        rng = self._rng
        return rng.choice(((), (), (Step("node", "commits"),), (Step("clock", seconds=0.3),)))

    def make(self) -> Sequence:
        """All of it."""
        rng = self._rng
        scripts = [self._cast(rng.choice(templates())) for _ in range(rng.choice((0, 1, 1, 2, 3)))]
        invented = rng.choice((0.1, 0.4, 0.4, 0.8)) if scripts else 1.0
        most = rng.randint(10, _MOST)
        stormy = rng.random() < 0.03
        while len(self._steps) < most and (scripts or invented == 1.0):
            if rng.random() < 0.4:
                self._event()
            if stormy and rng.random() < 0.04:
                self._storm()
            if rng.random() < invented:
                self._invent()
            else:
                moves, actors, version = rng.choice(scripts)
                self._move(moves.popleft(), actors, version)
                scripts = [script for script in scripts if script[0]]
        for client in list(self._waiting):
            self._flush(client)
        return Sequence(rng.randrange(len(SETUPS)), tuple(self._steps))

    def _cast(self, template: Template) -> tuple[deque[Move], dict[str, str], int]:
        """Who plays whom in a script, and in which version: mostly its own."""
        names = list(SLOTS)
        self._rng.shuffle(names)
        roles = sorted({move.client for move in template.moves} - {"node", "clock"})
        actors = {role: names[index % len(names)] for index, role in enumerate(roles)}
        version = template.version if self._rng.random() < 0.85 else self._rng.choice((3, 4, 5))
        return deque(template.moves), actors, version

    # -- steps

    def _event(self) -> None:
        rng = self._rng
        (event,) = rng.choices([event for event, _ in _EVENTS], [weight for _, weight in _EVENTS])
        subject, _, verb = event.partition(" ")
        if subject == "clock":
            self._steps.append(Step(subject, seconds=float(verb)))
        elif subject == "node":
            self._happen(verb)
        else:
            client = rng.choice(SLOTS)
            self._flush(client)
            self._steps.append(Step(client, subject))
            if subject == "drops":
                self._versions.pop(client, None)

    def _happen(self, verb: str) -> None:
        self._steps.append(Step("node", verb))
        if verb in ("dies", "restarts"):
            self._versions.clear()
            self._waiting.clear()

    def _move(self, move: Move, actors: dict[str, str], version: int) -> None:
        """One move of a script."""
        if move.client == "clock":
            self._steps.append(Step("clock", seconds=move.seconds))
        elif move.client == "node":
            self._happen(move.verb)
        elif move.verb in ("answers", "drops"):
            client = actors[move.client]
            self._flush(client)
            self._steps.append(Step(client, move.verb))
            if move.verb == "drops":
                self._versions.pop(client, None)
        elif move.data:
            self._send(actors[move.client], move.data)
        else:
            client = actors[move.client]
            if move.verb == "connects" and client in self._versions and self._rng.random() < 0.9:
                self._flush(client)
                self._steps.append(Step(client, "drops"))
            self._say(client, move.kind, move.fields, version)

    def _invent(self) -> None:
        """A packet that no script has, for a client that is connected, or has just begun to be."""
        rng = self._rng
        client = rng.choice(SLOTS)
        version = self._versions.get(client, 0)
        if not version:
            self._appear(client, rng.choice((3, 4, 4, 5, 5, 5, 5)))
        elif rng.random() < 0.07:
            self._send(client, rng.choice(table(version) or table(4)))
        elif client == ASKED and rng.random() < 0.2:
            self._say(client, *self._inventor.auth(), version)
        elif rng.random() < 0.04:
            packets = [_encoded(kind, fields, version) for kind, fields in self._inventor.burst()]
            self._send(client, b"".join(packets))
        else:
            self._say(client, *self._inventor.packet(), version)

    def _appear(self, client: str, version: int) -> None:
        """A client connects, and often asks for nearly everything at once."""
        rng = self._rng
        if rng.random() < 0.05:
            self._send(client, rng.choice(table(0)))
            return
        name = f"x{client}" if rng.random() < 0.6 else None
        self._say(client, *self._inventor.connect(name, 0.4 if client == ASKED else 0.03), version)
        if rng.random() < 0.4:
            self._say(client, *self._inventor.wide(), version)

    # -- packets

    def _say(self, client: str, kind: str, fields: Fields, version: int) -> None:
        """A packet, some time changed."""
        if kind == "CONNECT":
            self._versions[client] = version
        data = b""
        if self._rng.random() < (0.02 if self._faithful else 0.12):
            data = _encoded(kind, mutated(self._rng, kind, fields), version)
        self._send(client, data or _encoded(kind, fields, version))

    def _send(self, client: str, data: bytes) -> None:
        """Bytes, some time damaged, cut, or kept until more follow."""
        rng = self._rng
        if not self._faithful and rng.random() < 0.04:
            data = damaged(rng, data)
        if not data:
            return
        if rng.random() < 0.2:
            self._waiting.setdefault(client, []).append(data)
            return
        data = b"".join((*self._waiting.pop(client, ()), data))
        reads = cut(rng, data) if rng.random() < 0.12 else (data,)
        if len(reads) > 1 and rng.random() < 0.5:
            self._steps += [Step(client, SENDS, (read,)) for read in reads]
        else:
            self._steps.append(Step(client, SENDS_EARLY if rng.random() < 0.25 else SENDS, reads))

    def _flush(self, client: str) -> None:
        if held := self._waiting.pop(client, None):
            self._steps.append(Step(client, SENDS, (b"".join(held),)))


def _encoded(kind: str, fields: Fields, version: int) -> bytes:
    """The bytes of a packet; none where a field can't be written at all."""
    try:
        return encode(kind, fields, version)
    except (OverflowError, IndexError, AssertionError, ValueError):
        return b""

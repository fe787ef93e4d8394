"""Plays a sequence on a node in miniature, and judges it all the time.

Whatever peers send, however it is cut, and whatever happens to the node meanwhile:

1. Nothing but a protocol error comes of it, on the connection of whoever made it: no other error, nowhere.
2. Whoever does everything right notices nothing (`bystanders.py`).
3. What the broker sends is valid for whom it is sent to: in its version, within its Receive Maximum and its Maximum
   Packet Size, under identifiers that are not in use, in the order that the specification asks for (`ear.py`).
4. What was acknowledged, or seen at QoS 1 or 2, is in the log.
5. What the node holds is bounded, and nothing of it is left when its clients are gone (`leaks.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Final

from broker.mqtt.codec import encode
from broker.mqtt.packets import Connect, Disconnect
from storage.interface import SESSIONS
from tests.fuzz.bystanders import pairs
from tests.fuzz.ear import Wrong
from tests.fuzz.leaks import check_bounds, check_empty, check_gone, check_retained
from tests.fuzz.sequences import sequence as made_up
from tests.fuzz.setups import SETUPS
from tests.fuzz.shrink import shrink
from tests.fuzz.steps import SENDS_EARLY, Sequence, Step
from tests.fuzz.world import Broken, World, broken_by

_LOGGERS: Final = ("berm.broker", "berm.storage")
_BATCH: Final = 20
_OFTEN: Final = 3
"""Steps from one message of the bystanders to the next."""
_LONG_AFTER: Final = 150 * 366 * 86_400
"""Seconds after which every session has ended that ever will."""


class _Listening(logging.Handler):
    """Keeps the error that the broker has logged last."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.error: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it, and say nothing."""
        if record.exc_info is not None and record.exc_info[1] is not None:
            self.error = record.exc_info[1]


@contextmanager
def _listening() -> Iterator[_Listening]:
    """The broker's errors, in place of lines on a terminal."""
    handler = _Listening()
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield handler
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.propagate = propagate
            logger.removeHandler(handler)


class Player:
    """One sequence on one node."""

    def __init__(self, sequence: Sequence, listening: _Listening) -> None:
        self.world = World(SETUPS[sequence.setup])
        self._steps = sequence.steps
        self._listening = listening
        self._pairs = pairs(self.world)
        self._crashed = False

    def play(self) -> None:
        """Take all steps, and see that nothing is left in the end.

        Raises:
            Broken: a promise is.
        """
        for number, step in enumerate(self._steps):
            self._take(step)
            if step.verb != SENDS_EARLY:
                self._watch()
            if number % _OFTEN == 0:
                for pair in self._pairs:
                    pair.speak()
        self._finish()

    @property
    def exchanged(self) -> int:
        """Messages that the bystanders have got."""
        return sum(pair.exchanged for pair in self._pairs)

    def _take(self, step: Step) -> None:
        world, node = self.world, self.world.node
        if step.subject == "clock":
            node.tick(step.seconds)
        elif step.subject == "node":
            _NODE[step.verb](self)
        elif step.reads:
            link = world.links.get(step.subject)
            if link is None or not link.wire.open:
                link = world.open(step.subject)
            for read in step.reads:
                link.send(read)
            while step.verb == SENDS_EARLY and link.pump():
                pass
        elif step.verb == "drops":
            world.drop(step.subject)
        elif (link := world.links.get(step.subject)) is not None:
            if step.verb == "jams":
                link.jam()
            elif step.verb == "reads":
                link.unjam()
            else:
                link.answer()

    def _watch(self) -> None:
        """Let everything happen that happens by itself, and judge."""
        self._settle()
        check_bounds(self.world)

    def _settle(self) -> None:
        came = True
        while came:
            self.world.settle()
            if self.world.node.hub.crashed:
                error = self._listening.error
                raise Broken("an error of the broker's own") if error is None else broken_by(error)
            came = sum(pair.attend() for pair in self._pairs) > 0

    def _restart(self, crash: bool) -> None:
        self._crashed = True
        self.world.restart(crash)
        for pair in self._pairs:
            pair.reconnect()

    def _finish(self) -> None:
        world, node = self.world, self.world.node
        if world.node.log.failure is not None:
            check_gone(node)
        world.empty()
        world.ration("plenty")
        for link in list(world.links.values()):
            link.unjam()
        self._watch()
        for pair in self._pairs:
            pair.speak()
            pair.finish()
        if not world.faulty and not self._crashed:
            check_retained(node)
        for name in list(world.links):
            world.drop(name)
        self._forget_sessions()
        node.tick(_LONG_AFTER)
        node.tick(1.1)
        self._quiet()
        check_empty(node)

    def _forget_sessions(self) -> None:
        """A new client under each name: its session is no session that lasts."""
        self._quiet()
        for client_id, *_ in self.world.node.engine.rows(SESSIONS):
            assert isinstance(client_id, str)
            link = self.world.open("a")
            goodbye = encode(Connect(client_id, 5, True, 0, None, None, None), 5) + encode(Disconnect(), 5)
            link.send(goodbye)
            self.world.settle()
        self.world.drop("a")
        self._quiet()

    def _quiet(self) -> None:
        """Commit everything, what the clock brings included."""
        self.world.node.tick(1.1)
        self.world.node.commit()
        self._settle_links()

    def _settle_links(self) -> None:
        self.world.settle()
        self.world.node.commit()


_NODE: Final[dict[str, Callable[[Player], None]]] = {
    "commits": lambda player: player.world.node.commit(),
    "commits-one": lambda player: player.world.node.commit_one(),
    "full": lambda player: player.world.fill(),
    "room": lambda player: player.world.empty(),
    "plenty": lambda player: player.world.ration("plenty"),
    "low": lambda player: player.world.ration("low"),
    "scarce": lambda player: player.world.ration("scarce"),
    "admits": lambda player: player.world.doors.doorman.answer(),
    "rules": lambda player: player.world.change_rules(),
    "expels": lambda player: player.world.expel(),
    "dies": lambda player: player._restart(crash=True),
    "restarts": lambda player: player._restart(crash=False),
}


def play(sequence: Sequence) -> int:
    """Play a sequence; how many messages the bystanders have got meanwhile.

    Raises:
        Broken: a promise is.
    """
    with _listening() as listening:
        try:
            player = Player(sequence, listening)
            player.play()
        except Broken:
            raise
        except (Exception, Wrong) as error:
            raise broken_by(error) from error
        return player.exchanged


@dataclass(frozen=True, slots=True)
class Failure:
    """A sequence that breaks a promise, and which."""

    sequence: Sequence
    broken: Broken

    def __str__(self) -> str:
        return f"{self.broken}\n{self.sequence}"


def failure_of(sequence: Sequence) -> Failure | None:
    """What a sequence breaks."""
    try:
        play(sequence)
    except Broken as broken:
        return Failure(sequence, broken)
    return None


def shortened(failure: Failure) -> Failure:
    """The same failure by a shorter sequence, where one was found."""
    kind = failure.broken.kind

    def fails(candidate: Sequence) -> bool:
        found = failure_of(candidate)
        return found is not None and found.broken.kind == kind

    return failure_of(shrink(failure.sequence, fails)) or failure


def numbered(seed: int, number: int) -> Sequence:
    """One sequence of a run."""
    return made_up(Random(f"{seed}/{number}"))


class BrokerTarget:
    """Sequences on nodes in miniature, as `run.py` drives it."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._done = 0
        self._exchanged = 0

    def go_on(self) -> str | None:
        """Play some more sequences; what was found."""
        for _ in range(_BATCH):
            sequence = numbered(self._seed, self._done)
            try:
                self._exchanged += play(sequence)
            except Broken as broken:
                return f"sequence {self._done}: {shortened(Failure(sequence, broken))}"
            self._done += 1
        return None

    def __str__(self) -> str:
        return f"{self._done} sequences, {self._exchanged} messages between bystanders"

    def close(self) -> str | None:
        """Nothing is left to do, or to be found."""
        return None

"""The engine against a list, while retention and erasure take from it: commits, reads, crashes at any step between."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.mqtt.topic import compile_filters
from storage.erasure import Eraser, Request, ask
from storage.interface import Event
from storage.retention import SECOND, Keeper, Retention, Rule
from storage.sealer import Policy, Sealer
from storage.sqlite import SQLiteEngine
from tests.storage.contract import START, vault
from tests.storage.test_sealer import Clock, settle

AGES: Final = {"debug": 10 * SECOND, "plain": 60 * SECOND, "alarm": 0}
CLIENTS: Final = ("a", "b", "c")
POLICY: Final = Policy(bytes=1500, age=1 << 62)

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.integers(1, 12)),
        st.tuples(st.just("pass"), st.integers(1, 40)),
        st.tuples(st.just("work"), st.integers(1, 60)),
        st.tuples(st.just("read"), st.integers(0, 1000)),
        st.tuples(st.just("erase"), st.integers(0, 2)),
        st.tuples(st.just("crash"), st.just(0)),
        st.tuples(st.just("settle"), st.just(0)),
    ),
    max_size=40,
)


class World:
    """One data directory, and what must and may be in it."""

    def __init__(self, directory: Path, clock: Clock, encrypted: bool) -> None:
        self.directory = directory
        self.clock = clock
        self.encrypted = encrypted
        self.events: list[Event] = []
        self.erased: list[tuple[str, int]] = []
        """Clients, and how many events there were when that was asked for."""
        self.names = count(1)
        self.position = 0
        self.engine = self.opened()

    def opened(self) -> SQLiteEngine:
        rules = tuple(Rule(compile_filters((name,)), age) for name, age in AGES.items() if name != "plain")
        kept = Retention(age=AGES["plain"], rules=rules, compile=compile_filters)
        if self.encrypted:
            return SQLiteEngine(self.directory, policy=POLICY, retention=kept, unlock=lambda: vault(self.directory))
        return SQLiteEngine(self.directory, policy=POLICY, retention=kept)

    def commit(self, number: int) -> None:
        group = []
        for _ in range(number):
            seq = len(self.events) + 1
            topic, client = ("debug", "plain", "alarm")[seq * 7 % 3], CLIENTS[seq * 5 % 7 % 3]
            event = Event(seq, self.clock.now, topic, b"%d" % seq * (seq % 40), 1, False, client, b"", 0, 2)
            self.events.append(event)
            group.append(event)
        self.engine.commit([Event(*_fields(each)) for each in group], {}, True)

    def must_stay(self, event: Event) -> bool:
        if any(event.client == client for client, _ in self.erased):
            return False
        age = AGES[event.topic]
        return not age or event.ts >= self.clock.now - age

    def must_be_gone(self, event: Event) -> bool:
        return any(event.client == client and event.seq <= upto for client, upto in self.erased)

    def read(self, after: int) -> None:
        """Read a little from somewhere, or go on from where the last read has ended."""
        position = self.position if after % 2 else after % (len(self.events) + 1)
        events, reached = self.engine.read(position, max(position, len(self.events)), 1 + after % 9, None)
        assert [each.seq for each in events] == sorted({each.seq for each in events})
        assert all(position < each.seq <= reached and each == self.events[each.seq - 1] for each in events)
        found = {each.seq for each in events}
        assert not [each for each in self.events[position:reached] if self.must_stay(each) and each.seq not in found]
        self.position = reached

    def crash(self) -> None:
        self.engine.close()
        self.engine = self.opened()

    def erase(self, number: int) -> None:
        ask(self.directory, Request(f"{next(self.names):03}", (CLIENTS[number],)))
        self.erased.append((CLIENTS[number], len(self.events)))

    def settle(self) -> None:
        for _ in range(len(self.erased) + 2):
            self.clock.now += SECOND
            settle(self.engine)
        assert not [*self.directory.glob("erasures/*.request")]
        left, position = [], 0
        while position < len(self.events):
            events, position = self.engine.read(position, len(self.events), 100, None)
            left += events
        assert left == [self.events[each.seq - 1] for each in left]
        assert not [each for each in left if self.must_be_gone(each)]
        seqs = {each.seq for each in left}
        assert not [each for each in self.events if self.must_stay(each) and each.seq not in seqs]


def _fields(event: Event) -> tuple[int, int, str, bytes, int, bool, str, bytes, int, int]:
    return (
        event.seq,
        event.ts,
        event.topic,
        event.payload,
        event.qos,
        event.retain,
        event.client,
        event.properties,
        event.expires,
        event.durability,
    )


@settings(max_examples=40, deadline=None)
@given(OPERATIONS, st.booleans())
def test_whatever_happens_nothing_is_lost_that_must_stay_and_nothing_stays_that_must_go(
    operations: list[tuple[str, int]], encrypted: bool
) -> None:
    clock = Clock()
    clock.now = START
    kinds: tuple[type, ...] = (Sealer, Keeper, Eraser)
    before = [kind.__init__.__defaults__ for kind in kinds]  # type: ignore[misc]
    for kind in kinds:
        kind.__init__.__defaults__ = (clock,)  # type: ignore[misc]
    try:
        with TemporaryDirectory() as directory:
            world = World(Path(directory), clock, encrypted)
            with_time: dict[str, Callable[[int], object]] = {
                "commit": world.commit,
                "read": world.read,
                "erase": world.erase,
                "crash": lambda _: world.crash(),
                "settle": lambda _: world.settle(),
            }
            for name, number in operations:
                if name == "pass":
                    clock.now += number * SECOND
                elif name == "work":
                    for _ in range(number):
                        world.engine.upkeep()
                else:
                    with_time[name](number)
            world.settle()
            world.crash()
            world.settle()
            world.engine.close()
    finally:
        for kind, defaults in zip(kinds, before, strict=True):
            with suppress(AttributeError):
                kind.__init__.__defaults__ = defaults  # type: ignore[misc]

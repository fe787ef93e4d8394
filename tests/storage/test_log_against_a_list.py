"""The log and its cursors against a plain list: whatever is done in whatever order, each cursor reads the list.

A crash throws the log away and makes a new one over what the engine has kept; the list loses its memory events.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from storage.interface import DURABILITY, MEMORY, OS, Event, StorageError, StorageFull
from tests.storage.contract import (
    STORES,
    EncryptedStore,
    EncryptedTailStore,
    MemoryStore,
    Rig,
    SealingStore,
    SQLiteStore,
    Store,
)

RING_BYTES = 2500
"""Six events or so."""
CHUNKS = 2
"""Of a full ring: a chunk has some events, too."""
NUMBERS = st.integers(0, 20)


class Follower:
    """A cursor, and what is known of it from outside."""

    def __init__(self, rig: Rig, position: int, topics: str) -> None:
        self.accepts: Callable[[str], bool] | None = topics.__contains__ if topics else None
        self.asked = False
        """Whether it was told that nothing is at hand, so that it will be woken."""
        self.woken = 0
        self.closed = False
        self.cursor = rig.log.cursor(position, self.accepts, self._wake)

    def _wake(self) -> None:
        assert not self.closed, "a closed cursor was woken"
        assert self.asked, "a cursor was woken that had not asked"
        self.asked = False
        self.woken += 1


class LogMachine(RuleBasedStateMachine):
    """What may be done to a log."""

    make: Callable[[Path], Store]

    def __init__(self) -> None:
        super().__init__()
        self._directory = TemporaryDirectory()
        self._chunks = patch("storage.log.CHUNKS", CHUNKS)
        self._chunks.start()
        self.store = type(self).make(Path(self._directory.name))
        self.rig = Rig(self.store, RING_BYTES)
        self.rig.told.keeps = lambda event: event.qos > 0
        self.kept: list[Event] = []
        """Of the logs before this one: what their engine has kept."""
        self.floor = 0
        self.all: list[Follower] = []
        """The cursors that are open; the rules choose one by a number."""
        self.follow(0, "")

    def teardown(self) -> None:
        self._chunks.stop()
        self.rig.engine.commit_fails.clear()
        self.rig.engine.read_fails.clear()
        self._settle()
        for follower in self.all:
            self._read_to_the_end(follower)
        self.rig.engine.close()
        self._directory.cleanup()

    # -- the list

    def committed(self) -> list[Event]:
        return self.kept + self.rig.told.committed_events

    def expected(self, follower: Follower, after: int, upto: int) -> list[Event]:
        return [
            event
            for event in self.committed()
            if after < event.seq <= upto and (follower.accepts is None or follower.accepts(event.topic))
        ]

    def check(self, follower: Follower, before: int, found: list[Event]) -> None:
        """What was taken, and nothing else, lay between the places before and now; but for what left the ring."""
        expected = self.expected(follower, before, follower.cursor.position)
        missing = [event for event in expected if event not in found]
        assert [event for event in expected if event in found] == found
        for event in missing:
            assert event.durability == MEMORY
            assert event.seq <= self.rig.log._ring_base, "it was in the ring all the time"
        assert len(missing) <= self.rig.log.evicted

    # -- writing

    @rule(
        topic=st.sampled_from("abc"),
        durability=st.sampled_from(sorted(DURABILITY.values())),
        qos=st.integers(0, 2),
        size=st.sampled_from((0, 10, 700)),
        number=st.integers(1, 4),
    )
    def append(self, topic: str, durability: int, qos: int, size: int, number: int) -> None:
        for _ in range(number):
            self.rig.append(topic, b"x" * size, durability, qos)

    @rule()
    def flush(self) -> None:
        self.rig.log.flush()

    @rule()
    def write(self) -> None:
        self.rig.writer.turn()

    @rule(topic=st.sampled_from("abc"), sizes=st.lists(st.integers(0, 300), min_size=1, max_size=8))
    def commit(self, topic: str, sizes: list[int]) -> None:
        for size in sizes:
            self.rig.append(topic, b"x" * size, OS)
            self.rig.log.flush()
            self.rig.writer.run()

    @rule()
    def refuse_the_next_group(self) -> None:
        self.rig.engine.commit_fails.append(StorageFull("no room"))

    @rule()
    def retry(self) -> None:
        self.rig.log.retry()

    # -- reading

    @rule(share=st.floats(0, 1.2), topics=st.sampled_from(("", "a", "bc", "x")))
    def open_cursor(self, share: float, topics: str) -> None:
        self.follow(int(share * self.rig.log.committed), topics)

    def follow(self, position: int, topics: str) -> None:
        self.all.append(Follower(self.rig, position, topics))

    def one(self, number: int) -> Follower:
        return self.all[number % len(self.all)]

    @rule(number=NUMBERS)
    def next(self, number: int) -> None:
        follower = self.one(number)
        before = follower.cursor.position
        follower.asked = True  # before the call: the log may wake at any moment after it
        found = follower.cursor.next()
        if found is not None:
            follower.asked = follower.asked and self._waits(follower)
        self.check(follower, before, [] if found is None else [found])

    @rule(number=NUMBERS, limit=st.integers(1, 12))
    def batch(self, number: int, limit: int) -> None:
        follower = self.one(number)
        before = follower.cursor.position
        follower.asked = True
        found = follower.cursor.batch(limit)
        assert len(found) <= limit
        if len(found) == limit:
            follower.asked = follower.asked and self._waits(follower)
        self.check(follower, before, found)

    def _waits(self, follower: Follower) -> bool:
        """Whether an earlier call has asked, so that one wake may still come."""
        log = self.rig.log
        return follower.cursor in log._waiting or follower.cursor._loading

    @rule(number=NUMBERS, share=st.floats(0, 1))
    def seek(self, number: int, share: float) -> None:
        follower = self.one(number)
        follower.asked = False
        follower.cursor.seek(int(share * self.rig.log.committed))

    @rule(number=NUMBERS)
    def release(self, number: int) -> None:
        follower = self.one(number)
        follower.cursor.release()
        assert not follower.cursor._events

    @rule(number=NUMBERS)
    def close(self, number: int) -> None:
        follower = self.one(number)
        follower.cursor.close()
        follower.closed = True
        assert follower.cursor.next() is None
        self.all.remove(follower)
        if not self.all:
            self.follow(0, "")

    @rule()
    def read(self) -> None:
        self.rig.reader.turn()

    @rule()
    def fail_the_next_read(self) -> None:
        self.rig.engine.read_fails.append(StorageError("the disk hesitates"))

    @rule(number=NUMBERS)
    def read_to_the_end(self, number: int) -> None:
        follower = self.one(number)
        self._read_to_the_end(follower)

    def _read_to_the_end(self, follower: Follower) -> None:
        before = follower.cursor.position
        found: list[Event] = []
        for _ in range(1000):
            follower.asked = True
            event = follower.cursor.next()
            if event is not None:
                found.append(event)
            elif follower.cursor.caught_up:
                break
            else:
                self.rig.log.retry()  # a read of it may have failed
                self.rig.reader.run()
                assert not follower.asked or self.rig.engine.read_fails or follower.cursor._loading
        assert follower.cursor.caught_up
        self.check(follower, before, found)

    # -- the end of a log

    @rule(drained=st.booleans())
    def crash_and_start_again(self, drained: bool) -> None:
        given = self.rig.log.last
        if drained:
            self.rig.engine.commit_fails.clear()
            self._settle()
        self.kept = [event for event in self.committed() if event.durability]
        self.rig.engine.close()
        for follower in self.all:
            follower.closed = True  # its log is gone, and with it whoever could wake it
        self.all.clear()
        self.rig = Rig(self.store, RING_BYTES)
        self.rig.told.keeps = lambda event: event.qos > 0
        assert self.rig.log.last >= max((event.seq for event in self.kept), default=0)
        if drained:
            assert self.rig.log.last == given
        for position, topics in ((0, ""), (0, "b"), (given, "")):
            self.follow(position, topics)

    def _settle(self) -> None:
        log = self.rig.log
        for _ in range(20):
            log.retry()
            self.rig.writer.run()
        assert self.rig.drain()
        assert log.failure is None
        assert not log.open
        assert log.committed == max((event.seq for event in self.rig.told.committed_events), default=log.committed)

    # -- always

    @invariant()
    def the_order_is_that_of_the_seqs(self) -> None:
        seqs = [event.seq for event in self.committed()]
        assert seqs == sorted(set(seqs))

    @invariant()
    def the_ring_is_bounded(self) -> None:
        log = self.rig.log
        assert len(log._ring) <= 1 or log._ring_weight <= RING_BYTES
        assert log._ring_weight == sum(chunk.weight for chunk in log._ring)

    @invariant()
    def who_has_asked_and_can_be_served_was_woken(self) -> None:
        for follower in self.all:
            if follower.asked and not follower.cursor._loading:
                assert follower.cursor.position >= self.rig.log.committed


class OverMemory(LogMachine):
    make = MemoryStore


class OverSQLite(LogMachine):
    make = SQLiteStore


class OverSegments(LogMachine):
    make = SealingStore


class OverEncryption(LogMachine):
    make = EncryptedStore


class OverAnEncryptedTail(LogMachine):
    make = EncryptedTailStore


assert len(STORES) == len(LogMachine.__subclasses__()), "an engine has no machine of its own"

OverMemory.TestCase.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
OverSQLite.TestCase.settings = settings(max_examples=20, stateful_step_count=60, deadline=None)
OverSegments.TestCase.settings = settings(max_examples=12, stateful_step_count=60, deadline=None)
OverEncryption.TestCase.settings = settings(max_examples=3, stateful_step_count=60, deadline=None)
OverAnEncryptedTail.TestCase.settings = settings(max_examples=6, stateful_step_count=60, deadline=None)
TestOverMemory = OverMemory.TestCase
TestOverSQLite = OverSQLite.TestCase
TestOverSegments = OverSegments.TestCase
TestOverEncryption = OverEncryption.TestCase
TestOverAnEncryptedTail = OverAnEncryptedTail.TestCase

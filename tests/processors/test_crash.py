"""Whenever the node dies: each event counts once, each window is published once, each output is in the log once."""

from __future__ import annotations

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from processors import Definition, Event, Message, Processors
from processors import aggregates as agg
from tests.processors.helpers import SECOND, START, Rig, counting, results, value

SIZE = 10


def doubling() -> Definition:
    made = Processors()

    @made.map("t/#")
    def twice(event: Event) -> Message | None:
        number = event.number()
        if number == 13:
            raise ValueError("thirteen")
        return Message(f"twice/{event.topic}", number * 2) if number != 7 else None

    return made.definitions[0]


class Crashes(RuleBasedStateMachine):
    """One aggregate and one map over the same topics; every part of the node moves by itself, or dies."""

    def __init__(self) -> None:
        super().__init__()
        # So small a ring that cursors read from the engine as well.
        self.rig = Rig(counting(SIZE), doubling(), memory_bytes=2000)
        self.rig.settle()

    @rule(key=st.sampled_from("abc"), number=st.integers(0, 20), count=st.integers(1, 5))
    def publish(self, key: str, number: int, count: int) -> None:
        for _ in range(count):
            self.rig.publish(f"t/{key}", number)

    @rule(seconds=st.sampled_from((0.1, 1.0, 4.0, 11.0, 35.0)))
    def pass_time(self, seconds: float) -> None:
        self.rig.pass_time(seconds)

    @rule()
    def commit(self) -> None:
        self.rig.writer.run_one()

    @rule()
    def compute(self) -> None:
        self.rig.user_code.run_one()

    @rule()
    def turn(self) -> None:
        self.rig.turn()

    @rule()
    def settle(self) -> None:
        if not self.rig.disk.full:
            self.rig.settle()

    @rule(full=st.booleans())
    def fill_disk(self, full: bool) -> None:
        self.rig.disk.full = full

    @rule()
    def crash(self) -> None:
        self.rig.crash()

    @rule()
    def crash_once_it_is_on_the_disk(self) -> None:
        if not self.rig.disk.full:
            self.rig.writer.lose_one()
        self.rig.crash()

    @rule()
    def restart(self) -> None:
        self.rig.disk.full = False
        self.rig.tick(1)
        self.rig.stop()
        self.rig.start()

    def teardown(self) -> None:
        rig = self.rig
        rig.disk.full = False
        for _ in range(3):
            rig.tick(2 * SIZE)
        inputs = rig.events("t/")

        windows: dict[tuple[str, float], list[int]] = {}
        for event in inputs:
            start = (event.ts - START) // (SIZE * SECOND) * SIZE
            windows.setdefault((event.topic, start), []).append(int(event.payload))
        expected = [(key, start, len(found), sum(found)) for (key, start), found in windows.items()]
        assert sorted(results(rig.outputs("per_minute"))) == sorted(expected)
        assert rig.kept_state() == []

        numbers = [(event.topic, int(event.payload)) for event in inputs if event.payload != b"7"]
        doubled = [(f"twice/{topic}", number * 2) for topic, number in numbers if number != 13]
        outputs = rig.outputs("twice")
        assert [output for output in outputs if output[0] != "$dead/twice"] == doubled
        letters = [letter for topic, letter in outputs if topic == "$dead/twice"]
        assert [letter["seq"] for letter in letters if isinstance(letter, dict)] == [
            event.seq for event in inputs if event.payload == b"13"
        ]

        self.replay(results(rig.outputs("per_minute")))

    def replay(self, live: list[tuple[str, float, int, float]]) -> None:
        """Whoever reads the same log later, and without a crash, gets the same windows in the same order."""
        made = Processors()
        made.tumbling("t/#", agg.count, agg.sum, seconds=SIZE, to="again/{key}", name="again", start="beginning")(value)
        self.rig.start(made.definitions[0])
        self.rig.tick(2 * SIZE)
        self.rig.settle()
        assert results(self.rig.outputs("again")) == live


TestCrashes = Crashes.TestCase
TestCrashes.settings = hypothesis_settings(max_examples=150, stateful_step_count=60, deadline=None)

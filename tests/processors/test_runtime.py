"""A processor at work on a real log and hub, with a clock and threads that the test moves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from threading import Event as Flag

import pytest

from broker.mqtt.topic import compile_filters
from processors import Definition, Event, Message, Processors
from processors import aggregates as agg
from processors.definition import Start
from processors.message import Output
from processors.runtime import Runtime
from processors.step import Step
from storage.interface import MEMORY, OS, STATE, Row, Table
from storage.interface import Event as Stored
from storage.log import Log
from storage.memory import MemoryEngine
from storage.sqlite import SQLiteEngine
from storage.worker import ThreadWorker
from tests.processors.helpers import SECOND, START, Rig, counting, results


def mapping(
    function: Callable[[Event], Message | Sequence[Message] | None],
    filter: str = "t/#",
    start: Start = "end",
    name: str = "m",
) -> Definition:
    made = Processors()
    made.map(filter, name=name, start=start)(function)
    return made.definitions[0]


def forward(event: Event) -> Message:
    return Message(f"out/{event.topic}", event.payload)


def test_an_output_is_in_the_log_under_the_processors_name_and_reaches_the_next_processor() -> None:
    rig = Rig(mapping(forward, name="first"), mapping(forward, "out/#", name="second"))
    rig.publish("t/a", 1)
    rig.settle()
    assert [(event.topic, event.client) for event in rig.events("out")] == [
        ("out/t/a", "$processor/first"),
        ("out/out/t/a", "$processor/second"),
    ]


def test_a_processor_of_everything_does_not_feed_on_its_own_outputs_and_comes_to_rest() -> None:
    rig = Rig(mapping(forward, "#"), counting(1))
    rig.publish("t/a", 1)
    for _ in range(5):
        rig.tick(1)
    commits = rig.disk.commits
    assert len(rig.events("out/t/a")) == 1
    for _ in range(5):
        rig.tick(1)
    assert rig.disk.commits == commits


def test_a_new_processor_begins_at_the_end_of_the_log_or_at_its_beginning_and_a_crash_does_not_move_that() -> None:
    rig = Rig()
    rig.publish("t/a", 1)
    rig.settle()
    rig.start(mapping(forward, name="end"), mapping(forward, name="whole", start="beginning"))
    while rig.turn() or rig.writer.run_one():
        pass
    rig.crash()
    rig.publish("t/b", 2)
    rig.settle()
    assert [topic for topic, _ in rig.outputs("end")] == ["out/t/b"]
    assert [topic for topic, _ in rig.outputs("whole")] == ["out/t/a", "out/t/b"]


def test_state_without_outputs_is_kept_once_a_second_and_not_with_every_batch() -> None:
    rig = Rig(counting())
    rig.publish("t/a", 1)
    rig.settle()
    rig.tick(1)
    kept, before = rig.kept_state(), rig.disk.commits
    for _ in range(50):
        rig.publish("t/a", 1)
        rig.tick(0.01)
    assert rig.disk.commits - before == 50
    assert rig.kept_state() == kept
    rig.tick(1)
    (row,) = rig.kept_state()
    assert (row[0], row[2], row != kept[0]) == ("per_minute", "t/a", True)
    assert rig.kept_position("per_minute") == rig.events()[-1].seq


def test_traffic_that_leads_to_nothing_costs_one_commit_a_minute_and_a_stop_keeps_the_place() -> None:
    rig = Rig(mapping(forward), counting(), mapping(lambda event: None, "other", name="silent"))
    for _ in range(600):
        rig.publish("other", 1, MEMORY)
        rig.tick(1)
    assert len(rig.log.rows(STATE)) == 0
    assert 3 <= rig.disk.commits <= 12
    assert [rig.log.last - 60 <= (rig.kept_position(name) or 0) for name in ("m", "per_minute", "silent")] == [True] * 3
    rig.stop()
    assert [rig.kept_position(name) for name in ("m", "per_minute", "silent")] == [600] * 3


def test_after_a_crash_what_led_to_nothing_is_read_again_and_leads_to_nothing_again() -> None:
    rig = Rig(mapping(forward, start="beginning"))
    rig.publish("t/a", 1)
    for _ in range(30):
        rig.publish("other", 1)
        rig.tick(1)
    assert rig.kept_position("m") == 1
    rig.crash()
    rig.publish("t/a", 2)
    rig.tick(1)
    assert rig.outputs("m") == [("out/t/a", 1), ("out/t/a", 2)]


def test_many_changed_keys_do_not_wait_for_the_second() -> None:
    rig = Rig(counting())
    rig.tick(2)
    for number in range(1200):
        rig.publish(f"t/{number}", 1)
    rig.settle()
    assert len(rig.kept_state()) >= 1000


def test_a_stop_keeps_the_open_window_and_the_next_run_goes_on_in_it() -> None:
    rig = Rig(counting())
    for number in (1, 2):
        rig.publish("t/a", number)
        rig.tick(5)
    rig.publish("t/a", 4)
    rig.settle()
    rig.stop()
    position = rig.kept_position("per_minute")
    assert position == rig.events()[-1].seq
    rig.now += 20 * SECOND
    rig.start()
    rig.publish("t/a", 8)
    rig.tick(60)
    assert results(rig.outputs()) == [("t/a", 0, 4, 15)]


def test_state_and_position_come_back_from_the_engine_that_lasts(tmp_path: Path) -> None:
    for number in (1, 2, 4):
        rig = Rig(counting(), mapping(forward), engine=SQLiteEngine(tmp_path))
        rig.publish("t/a", number)
        rig.settle()
        rig.stop()
        rig.engine.close()
    rig = Rig(counting(), mapping(forward), engine=SQLiteEngine(tmp_path))
    rig.tick(60)
    assert results(rig.outputs("per_minute")) == [("t/a", 0, 3, 7)]
    assert rig.outputs("m") == [("out/t/a", 1), ("out/t/a", 2), ("out/t/a", 4)]
    assert rig.kept_state() == []
    rig.engine.close()


def test_a_window_whose_end_passes_while_the_node_is_down_is_published_at_the_next_start() -> None:
    rig = Rig(counting())
    rig.publish("t/a", 1)
    rig.settle()
    rig.stop()
    rig.now += 3600 * SECOND
    rig.start()
    assert rig.outputs() == []
    rig.tick()
    assert results(rig.outputs()) == [("t/a", 0, 1, 1)]
    rig.crash()
    rig.tick(3600)
    assert len(rig.outputs()) == 1


def test_a_checkpoint_says_nothing_of_the_step_that_is_still_being_computed() -> None:
    rig = Rig(counting())
    rig.publish("t/a", 1)
    rig.settle()
    rig.publish("t/a", 2)
    while rig.turn() or rig.writer.run_one():
        pass
    assert len(rig.user_code.queue) == 1
    rig.pass_time(5)
    while rig.turn() or rig.writer.run_one():
        pass
    assert len(rig.kept_state()) == 1
    rig.crash()
    rig.tick(60)
    assert results(rig.outputs()) == [("t/a", 0, 2, 3)]


def test_a_window_does_not_close_by_the_clock_before_its_last_event_has_committed() -> None:
    rig = Rig(counting())
    rig.publish("t/a", 1)
    rig.tick(59.9)
    rig.publish("t/a", 2)
    assert rig.log.busy
    rig.pass_time(30)
    while rig.turn() or rig.user_code.run_one():
        pass
    rig.writer.run_one()
    rig.tick()
    assert results(rig.outputs()) == [("t/a", 0, 2, 3)]


def test_a_window_does_not_close_by_the_clock_while_events_of_it_are_still_to_be_read() -> None:
    rig = Rig(counting(), memory_bytes=1)
    rig.stop()
    for _ in range(1300):
        rig.publish("t/a", 1)
        rig.settle()
    rig.now += 600 * SECOND
    rig.start()
    rig.pass_time(0)
    rig.settle()
    rig.tick()
    assert results(rig.outputs()) == [("t/a", 0, 1300, 1300)]


def test_no_event_gets_a_time_before_the_end_of_a_window_that_the_clock_has_closed() -> None:
    rig = Rig(counting())
    rig.publish("t/a", 1)
    rig.tick(60)
    assert len(rig.outputs()) == 1
    rig.now = START + 30 * SECOND  # the clock is set back
    rig.publish("t/a", 2)
    rig.settle()
    assert rig.events("t/")[-1].ts >= START + 60 * SECOND
    rig.crash()
    rig.publish("t/a", 4)
    rig.now = START + 120 * SECOND
    rig.tick()
    assert results(rig.outputs()) == [("t/a", 0, 1, 1), ("t/a", 60, 2, 6)]


def test_what_comes_with_an_older_time_than_the_clock_that_closed_a_window_is_held_at_it() -> None:
    rig = Rig(counting())
    rig.publish("t/a", 1)
    rig.settle()
    rig.runtimes[0].tick(START + 60 * SECOND)  # the hub has not looked at the clock yet
    rig.settle()
    rig.publish("t/a", 2)
    rig.settle()
    assert [event.ts for event in rig.events()] == [START, START + 60 * SECOND, START + 60 * SECOND]


def test_a_refused_group_keeps_outputs_state_and_position_together_until_it_is_stored() -> None:
    def both(event: Event) -> list[Message]:
        return [Message("out/kept", event.payload), Message("out/early", event.payload, qos=0)]

    rig = Rig(counting(10), mapping(both))
    rig.tick(2)
    rig.publish("t/a", 1)
    while rig.turn() or rig.writer.run_one():
        pass
    rig.disk.full = True
    rig.settle()
    assert rig.log.failure is not None
    for _ in range(3):
        rig.tick(1)
    assert rig.outputs() == []
    assert rig.kept_state() == []
    rig.disk.full = False
    rig.tick(30)
    rig.tick(2)
    assert rig.log.failure is None
    assert results(rig.outputs("per_minute")) == [("t/a", 0, 1, 1)]
    # QoS 0 is what a full disk may drop, and it is counted.
    assert rig.outputs("m") == [("out/kept", 1)]
    assert rig.hub.dropped_full == 1
    rig.crash()
    rig.tick(30)
    assert len(rig.outputs()) == 2


def test_no_step_is_begun_while_the_disk_is_full_and_all_are_made_up_for() -> None:
    rig = Rig(mapping(forward))
    rig.tick(2)
    for number in range(1700):
        rig.publish("t/a", number)
        while rig.turn() or rig.writer.run_one():
            pass
    rig.disk.full = True
    while rig.turn() or rig.writer.run_one() or (rig.log.failure is None and rig.user_code.run_one()):
        pass
    assert rig.log.failure is not None
    while rig.user_code.run_one():
        pass
    assert rig.runtimes[0].events < 1700
    rig.pass_time(1)
    assert not rig.user_code.queue
    rig.disk.full = False
    rig.tick(1)
    rig.tick(1)
    assert rig.outputs("m") == [("out/t/a", number) for number in range(1700)]


def test_at_most_one_step_of_a_processor_is_on_the_worker_and_it_takes_at_most_500_events() -> None:
    taken: list[int] = []

    def note(event: Event) -> None:
        taken[-1] += 1

    rig = Rig(mapping(note))
    for _ in range(1234):
        rig.publish("t/a", 1)
        while rig.turn() or rig.writer.run_one():
            pass
    steps = 0
    while rig.user_code.queue:
        assert len(rig.user_code.queue) == 1
        taken.append(0)
        rig.user_code.run_one()
        steps += 1
    assert sum(taken) == 1234
    assert max(taken) == 500
    assert rig.runtimes[0].events == 1234


def test_failing_events_are_dead_letters_that_a_plain_subscription_gets_and_others_go_on() -> None:
    def careful(event: Event) -> Message:
        return Message("out", event.number() * 2)

    rig = Rig(mapping(careful))
    for payload in (1, "text", 3):
        rig.publish("t/a", payload)
    rig.settle()
    (one, two), (dead, letter), (three, six) = rig.outputs("m")
    assert ((one, two), (three, six)) == (("out", 2), ("out", 6))
    assert dead == "$dead/m"
    assert isinstance(letter, dict)
    assert letter["seq"] == rig.events("t/")[1].seq
    assert letter["payload"] == '"text"'
    assert str(letter["error"]).startswith("TypeError: the payload is a JSON str, not a number (")
    assert rig.runtimes[0].dead == 1


def test_a_processor_of_everything_does_not_see_the_dead_letters_of_another() -> None:
    def fail(event: Event) -> Message:
        raise ValueError("no")

    rig = Rig(mapping(fail, "#", name="one"), mapping(fail, "#", name="two"))
    rig.publish("t/a", 1)
    for _ in range(5):
        rig.tick(1)
    assert sorted(topic for topic, _ in rig.outputs()) == ["$dead/one", "$dead/two"]


def test_failures_are_told_in_the_log_at_once_and_then_every_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    def fail(event: Event) -> Message:
        raise ValueError("no")

    rig = Rig(mapping(fail))
    rig.tick(1)
    for _ in range(30):
        rig.publish("t/a", 1)
        rig.tick(0.1)
    (record,) = caplog.records
    assert record.getMessage().startswith("processor m: 1 events or results failed")
    rig.tick(10)
    assert caplog.records[-1].getMessage().startswith("processor m: 29 events or results failed and")


def test_events_of_durability_memory_count_and_a_crash_forgets_them_together_with_the_log() -> None:
    rig = Rig(counting())
    rig.publish("t/a", 1, MEMORY)
    rig.publish("t/a", 2, OS)
    rig.settle()
    rig.tick(2)
    rig.publish("t/a", 4, MEMORY)
    rig.settle()
    rig.crash()
    rig.publish("t/a", 8)
    rig.tick(60)
    assert results(rig.outputs()) == [("t/a", 0, 3, 11)]


def test_state_that_does_not_fit_stops_that_processor_alone_and_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(counting(60), mapping(forward))
    rig.publish("t/a", 1)
    rig.tick(2)
    rig.stop()
    rig.start(counting(61), mapping(forward))
    rig.publish("t/a", 2)
    rig.tick(1)
    assert "open window of 60 s" in rig.runtimes[0].failure
    assert "processor per_minute does not run, and loses nothing meanwhile: " in caplog.text
    assert rig.outputs("m") == [("out/t/a", 1), ("out/t/a", 2)]
    rig.stop()
    rig.start(counting(60), mapping(forward))
    rig.tick(60)
    assert results(rig.outputs("per_minute")) == [("t/a", 0, 2, 3)]


class Broken:
    """An operator with a fault in it."""

    def __init__(self) -> None:
        self.due = 1 << 63

    def restore(self, rows: list[Row]) -> None:
        pass

    def forget(self, accepts: Callable[[str], bool]) -> list[Row]:
        return []

    def step(self, events: list[Stored], horizon: int) -> Step:
        raise AssertionError("a fault")


def test_an_operator_that_fails_itself_stops_its_processor_where_it_was_kept(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(Definition("broken", "#", "end", "break", 0, Broken), mapping(forward))
    rig.settle()
    position = rig.kept_position("broken")
    rig.publish("t/a", 1)
    rig.tick(1)
    rig.tick(1)
    assert "its operator failed: AssertionError('a fault')" in rig.runtimes[0].failure
    assert caplog.records[0].exc_info is not None
    assert rig.kept_position("broken") == position
    assert rig.outputs("m") == [("out/t/a", 1)]


def test_a_function_that_never_returns_is_told_once_and_does_not_stop_the_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Rig(mapping(forward))
    rig.publish("t/a", 1)
    while rig.turn() or rig.writer.run_one():
        pass
    for _ in range(30):  # the worker does nothing: it is as if the function did not return
        rig.pass_time(1)
        rig.publish("t/b", 2)
        while rig.turn() or rig.writer.run_one():
            pass
    assert len(rig.events("t/b")) == 30
    (record,) = caplog.records
    assert record.getMessage().startswith("processor m: nothing has come of the events after seq ")
    assert caplog.text.count("does not return") == 1
    rig.settle()
    assert len(rig.outputs("m")) == 31


def test_the_loop_goes_on_while_a_function_runs_in_the_real_worker() -> None:
    entered, release = Flag(), Flag()

    def wait(event: Event) -> Message:
        entered.set()
        release.wait()
        return forward(event)

    rig = Rig(mapping(wait))
    posted: list[Callable[[], object]] = []
    posting = Flag()

    def post(call: Callable[[], object]) -> None:
        posted.append(call)
        posting.set()

    worker = ThreadWorker("test", post)
    rig.user_code.submit = worker.submit  # type: ignore[method-assign]  # the same rig, with a thread in it
    rig.publish("t/a", 1)
    rig.settle()
    assert entered.wait(10)
    rig.publish("t/b", 2)
    rig.tick(5)
    assert len(rig.events("t/")) == 2
    assert rig.outputs("m") == []
    release.set()
    assert posting.wait(10)
    worker.close()
    posted[0]()
    rig.settle()
    assert rig.outputs("m")[0] == ("out/t/a", 1)


def test_a_step_that_comes_back_after_the_stop_changes_nothing_and_is_computed_again() -> None:
    rig = Rig(mapping(forward))
    rig.publish("t/a", 1)
    while rig.turn() or rig.writer.run_one():
        pass
    rig.runtimes[0].stop()
    rig.settle()
    assert rig.outputs() == []
    rig.start()
    rig.settle()
    assert rig.outputs() == [("out/t/a", 1)]


def test_a_burst_of_outputs_is_emitted_in_steps_of_500() -> None:
    sizes: list[int] = []

    class Counting:
        def emit(
            self, client: str, messages: Iterable[Output], rows: Iterable[tuple[Table, Row, Row | None]] = ()
        ) -> None:
            sizes.append(len(list(messages)))

    made = Processors()
    made.tumbling("t/#", agg.count, seconds=1, to="out/{key}", name="w")(lambda event: True)
    rig = Rig()
    log = Log(MemoryEngine(), rig.writer, rig.writer)
    runtime = Runtime(made.definitions[0], log, rig.user_code, Counting(), compile_filters)
    runtime.start()
    for number in range(1200):
        log.append(START, f"t/{number}", b"1", 1, False, "dev", b"", 0, OS)
    log.flush()
    rig.settle()
    runtime.tick(START + 2 * SECOND)
    rig.settle()
    assert [size for size in sizes if size] == [500, 500, 200]

"""The log and its cursors, over every engine: groups, the ring, waking, and what happens when something fails."""

from __future__ import annotations

import pytest

from storage.interface import CURSORS, FSYNC, MEMORY, META, OS, Event, StorageError, StorageFailed, StorageFull
from storage.log import EVENT_BYTES, READ_LIMIT, Log
from tests.storage.contract import START, Reader, Rig, Store, Turns, Unreliable, read_all

FULL = StorageFull("no room")
FAILED = StorageFailed("the disk is gone")
BUSY = StorageError("another program holds it")


def seqs(events: list[Event]) -> list[int]:
    return [event.seq for event in events]


def behind_the_ring(rig: Rig) -> list[Event]:
    """Commit ten events of which the ring holds the last alone."""
    rig.log._memory_bytes = EVENT_BYTES
    return [event for _ in range(10) for event in rig.commit(FSYNC)]


# -- groups


def test_an_event_gets_the_next_seq_when_it_is_appended(rig: Rig) -> None:
    assert seqs([rig.append(), rig.append(), rig.append()]) == [1, 2, 3]
    assert (rig.log.last, rig.log.committed) == (3, 0)


def test_a_time_that_runs_backwards_is_held_at_the_last_one(rig: Rig) -> None:
    log = rig.log
    times = [log.append(ts, "t", b"", 1, False, "c", b"", 0, FSYNC).ts for ts in (START, START - 5, START + 1, START)]
    assert times == [START, START, START + 1, START + 1]
    assert log.last_ts == START + 1


def test_events_that_arrive_while_a_group_is_on_its_way_make_the_next_one(rig: Rig) -> None:
    rig.append()
    rig.log.flush()
    assert rig.log.busy
    rig.append()
    rig.log.flush()
    rig.append()
    rig.log.flush()
    assert seqs(list(rig.log.uncommitted())) == [1, 2, 3]
    assert len(rig.writer) == 1
    rig.writer.turn()
    assert rig.log.committed == 1
    assert len(rig.writer) == 1
    rig.writer.turn()
    assert rig.log.committed == 3
    assert not rig.log.busy
    assert [seqs(group.events) for group in rig.told.committed_groups] == [[1], [2, 3]]
    assert rig.engine.commits == 2


def test_nothing_is_handed_over_where_nothing_is_open(rig: Rig) -> None:
    rig.log.flush()
    assert len(rig.writer) == 0
    rig.log.open.put(META, ("a",), ("1",))
    rig.log.flush()
    rig.writer.run()
    assert ("a", "1") in rig.log.rows(META)
    assert rig.log.committed == 0


@pytest.mark.parametrize(
    ("durabilities", "sync"), [((OS,), False), ((OS, FSYNC), True), ((MEMORY, OS, MEMORY), False), ((MEMORY,), None)]
)
def test_a_group_is_kept_as_the_most_demanding_of_its_events_asks(
    rig: Rig, durabilities: tuple[int, ...], sync: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.commit(FSYNC)  # brings the first reservation of seqs along
    asked: list[bool] = []
    monkeypatch.setattr(rig.engine, "commit", lambda events, state, sync: asked.append(sync))
    rig.commit(*durabilities)
    assert asked == ([] if sync is None else [sync])
    assert rig.log.committed == 1 + len(durabilities)


def test_memory_events_alone_commit_without_the_engine_in_their_turn(rig: Rig) -> None:
    rig.commit(FSYNC)
    commits = rig.engine.commits
    rig.append()
    rig.log.flush()
    rig.append(durability=MEMORY)
    rig.log.flush()
    assert rig.log.committed == 1
    rig.writer.run()
    assert rig.log.committed == 3
    assert rig.engine.commits == commits + 1
    assert Reader(rig).read() == [1, 2, 3]


def test_rows_that_the_listener_adds_go_with_the_group_that_is_sealed(rig: Rig) -> None:
    rig.told.adds.append((CURSORS, ("route",), (1,)))
    rig.append()
    rig.log.flush()
    rig.append()
    rig.engine.commit_fails.append(FULL)
    rig.writer.turn()
    assert rig.log.rows(CURSORS) == []
    rig.log.retry()
    rig.writer.run()
    assert rig.log.rows(CURSORS) == [("route", 1)]


def test_upkeep_follows_each_commit(rig: Rig) -> None:
    rig.commit(FSYNC)
    rig.commit(OS)
    before = rig.engine.upkeeps
    rig.commit(FSYNC)
    assert rig.engine.upkeeps > before
    before = rig.engine.upkeeps
    rig.commit(MEMORY)
    assert rig.engine.upkeeps == before


def test_where_no_group_brings_it_upkeep_goes_on_with_every_retry(rig: Rig) -> None:
    rig.commit(FSYNC)
    before = rig.engine.upkeeps
    for expected in (0, 1, 2):
        rig.log.retry()
        rig.writer.run()
        assert rig.engine.upkeeps == before + expected
    rig.commit(FSYNC)
    before = rig.engine.upkeeps
    rig.log.retry()
    rig.writer.run()
    assert rig.engine.upkeeps == before, "the group has brought it"


# -- refusal


def test_a_refused_group_is_tried_again_with_what_has_arrived_since(rig: Rig) -> None:
    rig.append()
    rig.log.open.put(META, ("a",), ("old",))
    rig.log.flush()
    rig.append()
    rig.log.open.put(META, ("a",), ("new",))
    rig.engine.commit_fails.append(FULL)
    rig.writer.run()
    assert rig.log.failure is FULL
    assert rig.told.errors == [FULL]
    rig.append(durability=OS)
    rig.log.flush()
    assert len(rig.writer) == 0, "nothing is handed over before it is asked for"
    rig.log.retry()
    rig.writer.run()
    assert rig.log.failure is None
    assert [seqs(group.events) for group in rig.told.committed_groups] == [[1, 2, 3]]
    assert seqs(read_all(rig.engine)) == [1, 2, 3]
    assert ("a", "new") in rig.log.rows(META)


def test_a_refused_group_still_asks_for_an_fsync_when_it_is_tried_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.commit(FSYNC)
    rig.append(durability=FSYNC)
    rig.log.flush()
    rig.append(durability=OS)
    rig.engine.commit_fails.append(FULL)
    rig.writer.run()
    asked: list[bool] = []
    monkeypatch.setattr(rig.engine, "commit", lambda events, state, sync: asked.append(sync))
    rig.log.retry()
    rig.writer.run()
    assert asked == [True]


def test_what_the_listener_takes_out_of_a_refused_group_leaves_a_gap(rig: Rig) -> None:
    reader = Reader(rig)
    rig.told.keeps = lambda event: event.qos > 0
    rig.append()
    rig.append(qos=0)
    rig.append()
    rig.log.flush()
    rig.engine.commit_fails += [FULL, BUSY]
    rig.writer.run()
    rig.append(qos=0)
    rig.log.retry()
    rig.writer.run()
    assert rig.told.errors == [FULL, BUSY]
    assert seqs(rig.told.taken_out) == [2, 4]
    rig.log.retry()
    rig.writer.run()
    rig.commit(FSYNC)
    assert reader.read() == [1, 3, 5]
    assert seqs(read_all(rig.engine)) == [1, 3, 5]


def test_a_group_of_which_nothing_is_left_ends_the_failure_when_it_commits(rig: Rig) -> None:
    rig.told.keeps = lambda event: False
    rig.append()
    rig.log.flush()
    rig.engine.commit_fails.append(FULL)
    rig.writer.run()
    rig.log.retry()
    rig.writer.run()
    assert rig.log.failure is None
    assert rig.commit(FSYNC)[0].seq == 2
    assert Reader(rig).read() == [2]


def test_retry_does_nothing_while_a_group_is_on_its_way_or_all_is_well(rig: Rig) -> None:
    rig.log.retry()
    rig.append()
    assert len(rig.writer) == 0
    rig.log.flush()
    rig.log.retry()
    assert len(rig.writer) == 1


def test_a_failed_engine_is_given_nothing_more(rig: Rig) -> None:
    rig.append()
    rig.log.flush()
    rig.engine.commit_fails.append(FAILED)
    rig.writer.run()
    rig.append()
    rig.log.flush()
    rig.log.retry()
    rig.writer.run()
    assert (rig.log.failure, rig.engine.commits, rig.log.committed) == (FAILED, 1, 0)
    assert rig.drain(), "what can't be kept must not keep a node from ending"


def test_an_error_that_nobody_has_thought_of_loses_no_group_and_fails_the_log(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.append()
    rig.log.flush()
    rig.engine.commit_fails.append(MemoryError("too much"))
    rig.writer.run()
    assert isinstance(rig.log.failure, StorageFailed)
    assert "too much" in str(rig.log.failure)
    assert seqs(list(rig.log.uncommitted())) == [1]
    assert caplog.records[0].exc_info is not None


# -- the end


def test_a_drained_log_has_committed_everything(rig: Rig) -> None:
    rig.append()
    rig.log.flush()
    rig.append()
    done: list[int] = []
    rig.log.drain(lambda: done.append(rig.log.committed))
    assert done == []
    rig.writer.run()
    assert done == [2]
    assert seqs(read_all(rig.engine)) == [1, 2]
    assert rig.drain(), "a second time, too"


def test_a_log_that_can_not_commit_is_drained_when_it_knows(rig: Rig) -> None:
    rig.append()
    rig.log.flush()
    rig.engine.commit_fails.append(FULL)
    assert rig.drain()
    assert rig.log.failure is FULL


# -- time


def test_the_horizon_is_the_time_of_the_first_event_that_has_not_committed(rig: Rig) -> None:
    first = rig.append()
    rig.append()
    assert rig.log.horizon(START + 1000) == first.ts
    rig.log.flush()
    assert rig.log.horizon(START + 1000) == first.ts
    rig.writer.run()
    assert rig.log.horizon(START + 1000) == START + 1000
    assert rig.log.horizon(START + 900) == START + 1000


def test_no_event_is_older_than_a_horizon_that_was_told(rig: Rig) -> None:
    horizon = rig.log.horizon(START + 1000)
    assert rig.append().ts >= horizon


# -- reading single events


def test_get_finds_events_in_memory_at_once(rig: Rig) -> None:
    rig.commit(FSYNC, MEMORY, OS)
    rig.append()
    found: list[list[int]] = []
    rig.log.get([3, 1, 2, 4, 99], lambda events: found.append(seqs(events)))
    assert found == [[1, 2, 3]]
    assert rig.engine.reads == 0


def test_get_reads_what_memory_has_no_more_from_the_engine(rig: Rig) -> None:
    behind_the_ring(rig)
    found: list[list[int]] = []
    rig.log.get([10, 2, 9, 7, 99], lambda events: found.append(seqs(events)))
    assert found == []
    rig.reader.run()
    assert found == [[2, 7, 9, 10]]


def test_get_gives_no_event_that_was_taken_out_of_a_group(rig: Rig) -> None:
    rig.told.keeps = lambda event: event.seq != 2
    rig.append()
    rig.append()
    rig.append()
    rig.log.flush()
    rig.engine.commit_fails.append(FULL)
    rig.writer.run()
    rig.log.retry()
    rig.writer.run()
    found: list[list[int]] = []
    rig.log.get([1, 2, 3], lambda events: found.append(seqs(events)))
    assert found == [[1, 3]]


def test_a_get_that_fails_is_tried_again_and_never_says_that_an_event_is_gone(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    behind_the_ring(rig)
    found: list[list[int]] = []
    rig.engine.read_fails += [BUSY, BUSY]
    rig.log.get([2, 10], lambda events: found.append(seqs(events)))
    rig.reader.run()
    rig.log.retry()
    rig.reader.run()
    assert found == []
    rig.log.retry()
    rig.reader.run()
    assert found == [[2, 10]]
    assert caplog.messages == ["another program holds it; trying again"] * 2


# -- the ring


def test_the_ring_holds_no_more_than_its_bytes(store: Store) -> None:
    rig = Rig(store, memory_bytes=20_000)
    for size in (0, 100, 3000, 0, 9000, 50) * 20:
        rig.append(payload=b"x" * size)
        rig.log.flush()
        rig.writer.run()
        assert sum(EVENT_BYTES + len(event.payload) for chunk in rig.log._ring for event in chunk.events) <= 20_000
    assert Reader(rig).read() == list(range(1, 121))
    rig.engine.close()


def test_a_group_on_its_way_takes_room_from_the_ring(store: Store) -> None:
    rig = Rig(store, memory_bytes=10_000)
    for _ in range(10):
        rig.commit(FSYNC)
    rig.append(payload=b"x" * 9600)
    rig.log.flush()
    assert len(rig.log._ring) == 1
    rig.writer.run()
    rig.engine.close()


@pytest.mark.parametrize("what", ["topic", "client", "properties", "payload"])
def test_whatever_a_client_can_make_long_counts_against_the_bound(store: Store, what: str) -> None:
    rig = Rig(store, memory_bytes=200_000)
    long = 60_000
    for seq in range(1, 31):
        rig.log.append(
            rig.now + seq,
            f"{seq:0{long}}" if what == "topic" else "t",
            b"x" * long if what == "payload" else b"",
            1,
            False,
            f"{seq:0{long}}" if what == "client" else "c",
            b"x" * long if what == "properties" else b"",
            0,
            FSYNC,
        )
        assert rig.log.open.weight > long
        rig.log.flush()
        rig.writer.run()
    assert len(rig.log._ring) <= 3
    rig.engine.close()


def test_memory_events_that_leave_the_ring_are_counted_and_passed_over(rig: Rig) -> None:
    rig.commit(MEMORY, FSYNC, MEMORY)
    rig.commit(MEMORY, FSYNC)
    rig.log._memory_bytes = EVENT_BYTES
    assert rig.log.evicted == 0
    rig.commit(FSYNC)
    assert rig.log.evicted == 3
    assert Reader(rig).read() == [2, 5, 6]


def test_events_in_the_ring_are_shared_by_reference(rig: Rig) -> None:
    (event,) = rig.commit(FSYNC)
    one, other = (rig.log.cursor(0, None, lambda: None).next() for _ in range(2))
    assert one is other is event


# -- cursors


def test_a_cursor_reads_history_and_then_live_without_a_seam(rig: Rig) -> None:
    behind_the_ring(rig)
    reader = Reader(rig)
    assert reader.read() == list(range(1, 11))
    assert rig.engine.reads > 0
    reads = rig.engine.reads
    rig.commit(FSYNC, MEMORY)
    assert reader.woken >= 1
    assert reader.read() == [11, 12]
    assert rig.engine.reads == reads


def test_a_cursor_gives_what_its_filter_accepts_and_passes_over_the_rest(rig: Rig) -> None:
    rig.commit(FSYNC, FSYNC, topic="a")
    rig.commit(FSYNC, topic="b")
    rig.commit(FSYNC, topic="c")
    reader = Reader(rig, 0, "b".__eq__)
    assert reader.read() == [3]
    assert reader.cursor.position == 4
    assert reader.cursor.caught_up


def test_a_filter_that_matches_nothing_in_a_long_history_reaches_its_end(rig: Rig) -> None:
    for _ in range(12):
        rig.commit(*[OS] * 1000, topic="noise")
    rig.log._memory_bytes = EVENT_BYTES
    rig.commit(FSYNC, topic="noise")
    rig.commit(FSYNC, topic="signal")
    assert Reader(rig, 0, "signal".__eq__).read() == [12_002]


def test_a_reader_that_has_passed_over_a_group_gets_what_comes_after_it(rig: Rig) -> None:
    reader = Reader(rig, 0, "b".__eq__)
    for seq in (2, 4, 6):
        rig.commit(FSYNC, topic="a")
        assert reader.read() == []
        rig.commit(FSYNC, topic="b")
        assert reader.read() == [seq]


def test_many_groups_without_anything_for_a_reader_are_passed_over_in_few_steps(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [event for _ in range(600) for event in rig.commit(FSYNC)]
    steps = 0
    find = Log._find

    def counting(log: Log, position: int) -> object:
        nonlocal steps
        steps += 1
        return find(log, position)

    monkeypatch.setattr(Log, "_find", counting)
    assert rig.log.cursor(0, lambda topic: topic == "elsewhere", lambda: None).next() is None
    assert steps < len(events) / 20
    assert Reader(rig).read() == seqs(events)


def test_a_cursor_may_begin_anywhere_also_beyond_the_end(rig: Rig) -> None:
    rig.commit(FSYNC, FSYNC, FSYNC)
    assert Reader(rig, 2).read() == [3]
    assert Reader(rig, 3).read() == []
    ahead = Reader(rig, 4)
    assert ahead.read() == []
    rig.commit(FSYNC, FSYNC)
    assert ahead.read() == [5]


def test_nothing_is_read_before_it_has_committed(rig: Rig) -> None:
    reader = Reader(rig)
    rig.append(durability=MEMORY)
    rig.append()
    assert reader.read() == []
    rig.log.flush()
    assert reader.read() == []
    rig.writer.run()
    assert reader.read() == [1, 2]


def test_batches_are_no_longer_than_asked_for(rig: Rig) -> None:
    rig.commit(*[FSYNC] * 5)
    cursor = rig.log.cursor(0, None, lambda: None)
    assert seqs(cursor.batch(2)) == [1, 2]
    assert cursor.position == 2
    assert seqs(cursor.batch(9)) == [3, 4, 5]
    assert cursor.batch(9) == []


def test_one_read_of_the_engine_brings_a_bounded_number(rig: Rig) -> None:
    rig.commit(*[OS] * (2 * READ_LIMIT))
    rig.log._memory_bytes = 0
    rig.commit(FSYNC)
    cursor = rig.log.cursor(0, None, lambda: None)
    assert cursor.batch(5000) == []
    rig.reader.run()
    assert len(cursor.batch(5000)) == READ_LIMIT


def test_wake_comes_once_when_there_may_be_something_and_not_before(rig: Rig) -> None:
    reader = Reader(rig)
    rig.commit(FSYNC)
    assert reader.woken == 0, "nobody has asked yet"
    assert reader.read() == [1]
    rig.append()
    rig.log.flush()
    assert reader.woken == 0
    rig.writer.run()
    assert reader.woken == 1
    rig.commit(FSYNC)
    assert reader.woken == 1, "nobody has asked since"
    assert reader.read() == [2, 3]


def test_rows_alone_wake_nobody(rig: Rig) -> None:
    reader = Reader(rig)
    reader.read()
    rig.log.open.put(META, ("a",), ("1",))
    rig.log.flush()
    rig.writer.run()
    assert reader.woken == 0


def test_a_batch_that_is_shorter_than_asked_for_asks_to_be_woken(rig: Rig) -> None:
    reader = Reader(rig)
    rig.commit(FSYNC, FSYNC)
    assert seqs(reader.cursor.batch(2)) == [1, 2]
    rig.commit(FSYNC)
    assert reader.woken == 0
    assert seqs(reader.cursor.batch(2)) == [3]
    rig.commit(FSYNC)
    assert reader.woken == 1


def test_a_read_of_the_engine_wakes_when_it_is_back(rig: Rig) -> None:
    behind_the_ring(rig)
    reader = Reader(rig)
    assert reader.cursor.next() is None
    assert reader.cursor.next() is None
    assert len(rig.reader) == 1, "one read at a time"
    assert not reader.cursor.caught_up
    rig.reader.run()
    assert reader.woken == 1


def test_a_cursor_that_is_closed_is_never_woken(rig: Rig) -> None:
    waiting, reading = Reader(rig, 10), Reader(rig)
    waiting.cursor.next()
    behind_the_ring(rig)
    reading.cursor.next()
    waiting.woken = 0
    waiting.cursor.seek(10)
    waiting.cursor.next()
    waiting.cursor.close()
    reading.cursor.close()
    rig.reader.run()
    rig.commit(FSYNC)
    assert (waiting.woken, reading.woken) == (0, 0)
    assert waiting.cursor.next() is None
    rig.commit(FSYNC)
    assert waiting.woken == 0


def test_a_cursor_that_another_one_closes_when_it_wakes_is_not_woken_any_more(rig: Rig) -> None:
    woken: list[int] = []

    def wake(number: int) -> None:
        woken.append(number)
        cursors[1 - number].close()

    cursors = [rig.log.cursor(0, None, lambda number=number: wake(number)) for number in range(2)]  # type: ignore[misc]
    for cursor in cursors:
        cursor.next()
    rig.commit(FSYNC)
    assert len(woken) == 1


def test_seek_goes_on_after_any_seq_and_forgets_what_was_under_way(rig: Rig) -> None:
    behind_the_ring(rig)
    reader = Reader(rig)
    assert reader.cursor.next() is None
    reader.cursor.seek(8)
    rig.reader.run()
    assert reader.woken == 0, "the read that was under way is nobody's any more"
    assert reader.read() == [9, 10]
    reader.cursor.seek(3)
    assert reader.cursor.position == 3
    assert reader.read() == [4, 5, 6, 7, 8, 9, 10]
    rig.commit(FSYNC)
    reader.cursor.seek(0)
    assert reader.read() == list(range(1, 12))


def test_a_read_that_was_overtaken_by_another_changes_nothing(rig: Rig) -> None:
    behind_the_ring(rig)
    reader = Reader(rig)
    reader.cursor.next()
    reader.cursor.seek(5)
    reader.cursor.next()
    rig.reader.turn()
    assert reader.woken == 0
    rig.reader.turn()
    assert reader.woken == 1
    assert reader.read() == [6, 7, 8, 9, 10]


def test_a_released_cursor_holds_no_events_and_goes_on_where_it_was(rig: Rig) -> None:
    rig.commit(*[FSYNC] * 5)
    reader = Reader(rig)
    reader.cursor.batch(2)
    reader.cursor.release()
    assert not reader.cursor._events
    assert reader.read() == [3, 4, 5]


def test_a_cursor_that_is_released_while_it_reads_does_not_hold_what_comes(rig: Rig) -> None:
    behind_the_ring(rig)
    reader = Reader(rig)
    reader.cursor.next()
    reader.cursor.release()
    rig.reader.run()
    assert reader.woken == 1
    assert not reader.cursor._events
    assert reader.read() == list(range(1, 11))


def test_a_read_that_fails_is_tried_again_without_a_new_event(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    behind_the_ring(rig)
    readers = [Reader(rig), Reader(rig, 4), Reader(rig, 5)]
    rig.engine.read_fails += [BUSY, BUSY, BUSY]
    for reader in readers:
        reader.cursor.next()
    rig.reader.run()
    assert [reader.woken for reader in readers] == [0, 0, 0]
    assert caplog.messages == ["another program holds it; trying again"], "one line, however many are hit"
    readers[2].cursor.close()
    rig.log.retry()
    assert len(rig.reader) == 2, "nothing is read for one that was closed"
    rig.reader.run()
    assert [reader.woken for reader in readers] == [1, 1, 0]
    assert readers[0].read() == list(range(1, 11))
    assert readers[1].read() == list(range(5, 11))


def test_reads_go_on_while_nothing_can_be_stored(rig: Rig) -> None:
    behind_the_ring(rig)
    rig.append()
    rig.log.flush()
    rig.engine.commit_fails.append(FULL)
    rig.writer.run()
    assert Reader(rig).read() == list(range(1, 11))


def test_a_log_without_a_listener_tries_all_of_a_refused_group_again(store: Store) -> None:
    engine = Unreliable(store.open())
    writer = Turns()
    log = Log(engine, writer, Turns())
    log.append(START, "t", b"", 0, False, "c", b"", 0, OS)
    log.flush()
    engine.commit_fails.append(FULL)
    writer.run()
    log.retry()
    writer.run()
    assert seqs(read_all(engine)) == [1]
    engine.close()


# -- forgetting


def test_what_is_forgotten_is_read_from_the_engine_by_whoever_comes_later(rig: Rig) -> None:
    for _ in range(3):
        rig.commit(FSYNC, FSYNC)
    rig.log.forget(lambda event: event.seq in (1, 2, 4))
    assert seqs([event for chunk in rig.log._ring for event in chunk.events]) == [3, 5, 6]
    assert seqs(rig.log.cursor(0, None, lambda: None).batch(10)) == [3, 5, 6]
    rig.commit(FSYNC)
    reader = rig.log.cursor(2, None, lambda: None)
    assert seqs(reader.batch(10)) == [3, 5, 6, 7]


def test_with_nothing_left_in_memory_everything_goes_on(rig: Rig) -> None:
    rig.commit(FSYNC, FSYNC)
    rig.log.forget(lambda event: True)
    assert rig.log.remembered == 2
    reader = rig.log.cursor(2, None, lambda: None)
    assert reader.next() is None
    rig.commit(FSYNC)
    assert seqs(reader.batch(10)) == [3]

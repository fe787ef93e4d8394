from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridge.window import LAST_PACKET_ID, Lane, Outcome, Window


def test_the_floor_waits_for_the_leftmost_entry() -> None:
    lane = Lane(10, 0, 0)
    first, second, third = (lane.add(seq, 1, True) for seq in (3, 5, 9))
    lane.settle(third, Outcome.ACKNOWLEDGED)
    lane.settle(second, Outcome.ACKNOWLEDGED)
    assert (lane.floor, lane.last, lane.counts[Outcome.ACKNOWLEDGED]) == (0, 0, 0)
    lane.settle(first, Outcome.ACKNOWLEDGED)
    assert (lane.floor, lane.last, lane.counts[Outcome.ACKNOWLEDGED]) == (9, 9, 3)


@given(st.permutations(range(1, 13)))
def test_in_whatever_order_answers_come_the_floor_is_below_the_first_open_entry(order: list[int]) -> None:
    lane = Lane(100, 0, 0)
    entries = {seq: lane.add(seq, 1, True) for seq in range(1, 13)}
    open_seqs = set(entries)
    for seq in order:
        lane.settle(entries[seq], Outcome.ACKNOWLEDGED)
        open_seqs.remove(seq)
        assert lane.floor == min(open_seqs, default=13) - 1


def test_what_is_skipped_moves_the_floor_only_in_its_turn() -> None:
    lane = Lane(10, 0, 0)
    first = lane.add(1, 1, True)
    lane.skip(2, Outcome.EXPIRED, False)
    assert lane.floor == 0
    lane.settle(first, Outcome.ACKNOWLEDGED)
    assert (lane.floor, lane.last) == (2, 1)
    assert lane.counts[Outcome.EXPIRED] == 1


def test_the_cursor_position_counts_only_where_nothing_is_open() -> None:
    lane = Lane(10, 0, 0)
    entry = lane.add(4, 1, True)
    lane.reach(20)
    assert lane.floor == 0
    lane.settle(entry, Outcome.ACKNOWLEDGED)
    lane.reach(20)
    assert (lane.floor, lane.last) == (20, 4)
    lane.reach(7)
    assert lane.floor == 20


def test_a_lane_is_full_at_its_limit_even_of_settled_entries() -> None:
    lane = Lane(2, 0, 0)
    first = lane.add(1, 1, True)
    lane.skip(2, Outcome.LOOPED, False)
    assert lane.full
    lane.settle(first, Outcome.ACKNOWLEDGED)
    assert not lane.full


def test_a_window_is_bounded_by_count() -> None:
    window, lane = Window(2, 1000), Lane(10, 0, 0)
    window.open(window.next_id(), lane.add(1, 1, True))
    assert not window.full
    window.open(window.next_id(), lane.add(2, 1, True))
    assert window.full
    assert window.close(1) is not None
    assert not window.full


def test_a_window_is_bounded_by_bytes_and_lets_one_large_packet_through_alone() -> None:
    window, lane = Window(10, 100), Lane(10, 0, 0)
    window.open(window.next_id(), lane.add(1, 5000, True))
    assert window.full
    window.close(1)
    assert (window.full, window.size, len(window)) == (False, 0, 0)


def test_packet_identifiers_wrap_without_zero_and_skip_those_in_use() -> None:
    window, lane = Window(LAST_PACKET_ID, 1 << 40), Lane(LAST_PACKET_ID, 0, 0)
    for seq in range(1, LAST_PACKET_ID + 1):
        window.open(window.next_id(), lane.add(seq, 1, True))
    assert window.full
    window.close(7)
    assert window.next_id() == 7


def test_an_answer_to_nothing_is_none() -> None:
    assert Window(1, 1).close(9) is None

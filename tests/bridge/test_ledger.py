from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridge.ledger import Ledger


def test_a_whole_chain_has_no_gap() -> None:
    ledger = Ledger()
    assert all(ledger.feed("e", 1, seq, seq - 1) for seq in range(1, 100))
    assert (ledger.received, ledger.duplicates, ledger.gaps) == (99, 0, 0)


def test_seqs_may_jump_as_long_as_the_chain_holds() -> None:
    ledger = Ledger()
    ledger.feed("e", 1, 10, 0)
    ledger.feed("e", 1, 500, 10)
    assert ledger.gaps == 0


def test_a_missing_message_is_a_gap_until_it_arrives() -> None:
    ledger = Ledger()
    ledger.feed("e", 1, 1, 0)
    ledger.feed("e", 1, 3, 2)
    assert ledger.gaps == 1
    assert ledger.feed("e", 1, 2, 1)
    assert (ledger.received, ledger.duplicates, ledger.gaps) == (3, 0, 0)


def test_the_first_message_may_be_the_missing_one() -> None:
    whole, late = Ledger(), Ledger(whole=False)
    for ledger in (whole, late):
        ledger.feed("e", 1, 3, 2)
        ledger.feed("e", 1, 4, 3)
    assert (whole.gaps, late.gaps) == (1, 0)


def test_a_copy_is_told_from_what_is_new() -> None:
    ledger = Ledger()
    for seq in (1, 2, 3, 2, 3, 4):
        ledger.feed("e", 1, seq, seq - 1)
    assert (ledger.received, ledger.duplicates, ledger.gaps) == (4, 2, 0)
    assert not ledger.feed("e", 1, 4, 3)


def test_edges_epochs_and_routes_have_chains_of_their_own() -> None:
    ledger = Ledger()
    for edge, epoch, route in (("e", 1, "r"), ("f", 1, "r"), ("e", 2, "r"), ("e", 1, "s")):
        assert ledger.feed(edge, epoch, 1, 0, route)
    assert ledger.received == 4
    assert len(list(ledger.chains())) == 4


CHAINS = st.lists(st.integers(1, 5), min_size=1, max_size=30).map(
    lambda steps: [sum(steps[: index + 1]) for index in range(len(steps))]
)


@given(CHAINS, st.data())
def test_gaps_are_open_exactly_while_something_is_missing(seqs: list[int], data: st.DataObject) -> None:
    links = list(zip(seqs, [0, *seqs], strict=False))
    lost = data.draw(st.sets(st.sampled_from(seqs)))
    order = data.draw(st.permutations([link for link in links if link[0] not in lost] * 2))
    ledger = Ledger()
    arrived: set[int] = set()
    for seq, prev in order:
        assert ledger.feed("e", 1, seq, prev) is (seq not in arrived)
        arrived.add(seq)
    assert ledger.received == len(arrived)
    assert ledger.duplicates == len(order) - len(arrived)
    head = max(arrived, default=0)
    missing = {seq for seq in lost if seq < head}
    assert bool(ledger.gaps) is bool(missing)
    open_gaps = [gap for _, chain in ledger.chains() for gap in chain.gaps]
    assert all(any(after < seq <= upto for after, upto in open_gaps) for seq in missing)
    assert all(upto in missing for _, upto in open_gaps)

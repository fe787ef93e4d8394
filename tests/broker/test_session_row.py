"""The row of a session: what is read again is what was written."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.session import Session
from broker.session_row import restore_session, restore_shared, save_session
from storage.interface import SESSIONS, Group
from tests.broker.helpers import FOREVER, START, Node

IDS = st.integers(1, 65535)
SEQS = st.integers(1, 2**63 - 1)
FILTERS = ("$share/one/#", "$share/two/ä/+")


def copy_of(session: Session, node: Node) -> tuple[Session, bytes]:
    group = Group()
    save_session(session, group)
    ((key, values),) = group.state[SESSIONS].items()
    assert values is not None
    return restore_session(node.hub, (*key, *values))


@given(
    inflight=st.dictionaries(IDS, st.tuples(st.integers(0, 2), SEQS), max_size=20),
    received=st.sets(IDS, max_size=20),
    client_id=st.text(max_size=20),
    username=st.text(max_size=20),
    expiry=st.integers(1, FOREVER),
    ended=st.integers(0, START),
    position=SEQS,
)
def test_a_session_is_what_it_was(
    inflight: dict[int, tuple[int, int]],
    received: set[int],
    client_id: str,
    username: str,
    expiry: int,
    ended: int,
    position: int,
) -> None:
    node = Node()
    session = Session(node.hub, client_id, 5, expiry, position)
    windows = (session.unacked, session.unreceived, session.uncompleted)
    for packet_id, (stage, seq) in inflight.items():
        windows[stage][packet_id] = seq
    session.received, session.username, session.ended = received, username, ended
    copy, shared = copy_of(session, node)
    assert (copy.unacked, copy.unreceived, copy.uncompleted) == windows
    assert copy.received == received
    assert (copy.client_id, copy.username, copy.version, copy.v5) == (client_id, username, 5, True)
    assert (copy.expiry, copy.ended, copy.position) == (expiry, ended, position)
    assert copy.stored
    assert not copy.dirty
    assert shared == b""


@given(shared=st.dictionaries(IDS, st.sampled_from(FILTERS), max_size=20))
def test_a_message_on_its_way_stays_that_of_its_shared_subscription(shared: dict[int, str]) -> None:
    node = Node()
    client = node.resume("k")
    for filter in FILTERS:
        client.subscribe(filter, 1)
    session = client.session
    for packet_id, filter in shared.items():
        session.unacked[packet_id] = packet_id
        session.shared[packet_id] = session.shares[filter]
    copy, packed = copy_of(session, node)
    copy.shares = session.shares
    restore_shared(copy, packed)
    assert {packet_id: share.filter for packet_id, share in copy.shared.items()} == shared


def test_what_is_on_its_way_of_a_shared_subscription_that_is_no_more_is_the_sessions_own() -> None:
    node = Node()
    client = node.resume("k")
    client.subscribe(FILTERS[0], 1)
    client.session.unacked[7] = 7
    client.session.shared[7] = client.session.shares[FILTERS[0]]
    copy, packed = copy_of(client.session, node)
    restore_shared(copy, packed)
    assert copy.shared == {}
    assert copy.unacked == {7: 7}


def test_what_a_connected_session_may_have_been_sent_carries_dup_after_a_crash() -> None:
    node = Node()
    client = node.keeper("t", 1)
    node.connect("p").publish("t", qos=1)
    node.commit()
    assert copy_of(client.session, node)[0].dup_upto == node.log.last
    client.lose()
    session = node.hub.sessions.all["k"]
    assert copy_of(session, node)[0].dup_upto == 0

"""A short run of sequences on nodes in miniature; and that brokers which break a promise are found out."""

from __future__ import annotations

from collections.abc import Sequence as Many

import pytest

from broker.connection import Connection
from broker.durability import Durability
from broker.hub import Hub
from broker.mqtt.errors import ProtocolError
from broker.mqtt.reason import Reason
from broker.router import Router
from broker.session import Session
from storage.interface import MEMORY, Event, Group, Row, Table
from storage.memory import MemoryEngine
from tests.broker.helpers import Engine
from tests.fuzz.broker import Failure, failure_of, numbered, play, shortened
from tests.fuzz.corpus import table, templates
from tests.fuzz.steps import Sequence, parse

SEED = 20260102
SEQUENCES = 200


def test_whatever_clients_send_and_whatever_befalls_the_node_no_promise_is_broken() -> None:
    steps = 0
    for number in range(SEQUENCES):
        sequence = numbered(SEED, number)
        failure = failure_of(sequence)
        assert failure is None, f"sequence {number}: {failure}"
        steps += len(sequence.steps)
    assert steps > 20 * SEQUENCES, "the sequences are too short"


def test_the_bystanders_exchange_messages_all_the_time() -> None:
    assert sum(play(numbered(SEED, number)) for number in range(20)) > 100


def test_the_corpus_has_all_kinds_of_packets_of_all_versions() -> None:
    for version in (3, 4, 5):
        kinds = {move.kind for template in templates() if template.version == version for move in template.moves}
        assert kinds >= {"CONNECT", "PUBLISH", "PUBREL", "SUBSCRIBE", "UNSUBSCRIBE", "PINGREQ", "DISCONNECT"}
    assert min(len(table(version)) for version in (0, 3, 4, 5)) > 0


def test_a_seed_makes_the_same_sequences_again_and_their_lines_can_be_played() -> None:
    for number in range(100):
        sequence = numbered(SEED, number)
        assert sequence == numbered(SEED, number)
        assert parse(str(sequence)) == sequence


# -- brokers that break a promise

MOST = 300


def found(*kinds: str) -> Failure:
    """The first failure of a run, which must be one of these kinds."""
    for number in range(MOST):
        failure = failure_of(numbered(SEED, number))
        if failure is not None:
            assert any(kind in failure.broken.kind for kind in kinds), failure
            return failure
    raise AssertionError(f"{MOST} sequences did not find it")


def test_an_error_of_the_brokers_own_is_found_and_the_sequence_is_made_short(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsubscribe(self: Session, filter: str) -> bool:
        del self.grants[filter]
        return True

    monkeypatch.setattr(Session, "unsubscribe", unsubscribe)
    failure = shortened(found("KeyError in fuzz/test_broker.py, unsubscribe"))
    assert str(failure).count(" > ") + str(failure).count(" >> ") <= 3, failure
    assert "UNSUBSCRIBE" in str(failure.sequence)
    assert "del self.grants[filter]" in str(failure)


def test_an_error_while_the_loop_turns_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def repeat(self: Session, packet_id: int, event: Event) -> None:
        raise RuntimeError("sending it again")

    monkeypatch.setattr(Session, "_repeat", repeat)
    found("RuntimeError in fuzz/test_broker.py, repeat")


def test_a_subscription_that_outlives_its_client_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Router, "remove", lambda self, session, filter: None)
    found("something is left of clients that are gone: hub.router", "AssertionError in broker/session.py")


def test_rows_that_outlive_their_session_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "forget", lambda self, group: None)
    found("are left of clients that are gone")


def test_an_identifier_that_is_used_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Session._send_numbered

    def send_numbered(self: Session, seq: int, qos: int, head: bytes, tail: bytes) -> None:
        unacked = dict(self.unacked)
        self.unacked.clear()
        self._next_id = 1
        original(self, seq, qos, head, tail)
        self.unacked.update(unacked)

    monkeypatch.setattr(Session, "_send_numbered", send_numbered)
    found("a packet identifier is in use twice")


def test_an_acknowledgement_for_what_is_not_in_the_log_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def commit(self: Engine, events: Many[Event], state: dict[Table, dict[Row, Row | None]], sync: bool) -> None:
        self.commits.append((list(events[1:]), state, sync))
        MemoryEngine.commit(self, events[1:], state, sync)

    monkeypatch.setattr(Engine, "commit", commit)
    found("for a message that is not in the log", "a message is seen at QoS N or N that a crash can take back")


def test_a_message_that_is_not_stored_for_want_of_room_and_acknowledged_all_the_same_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = Durability.of

    def of(self: Durability, topic: str, qos: int) -> int:
        return MEMORY if self.sparing else original(self, topic, qos)

    monkeypatch.setattr(Durability, "of", of)
    found("for a message that is not in the log", "a message is seen at QoS N or N that a crash can take back")


def test_acknowledgements_of_clients_that_get_lost_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "on_pubcomp", lambda self, packet_id: None)
    found("a bystander's message is lost", "a bystander's message is never acknowledged")


def test_messages_out_of_order_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Hub.committed

    def committed(self: Hub, group: Group) -> None:
        group.events.reverse()
        original(self, group)
        group.events.reverse()

    monkeypatch.setattr(Hub, "committed", committed)
    found("out of order", "retained messages on disk are not those in memory")


def test_more_messages_in_flight_than_a_client_takes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Session.attach
    monkeypatch.setattr(Session, "attach", lambda self, connection, window: original(self, connection, window + 3))
    found("more messages in flight than N", "messages in flight are beyond their bound")


def test_a_packet_that_is_too_large_for_its_client_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("framing", "session", "window"):
        monkeypatch.setattr(f"broker.{module}.fits", lambda connection, head, tail, qos: True)
    found("PUBLISH of more bytes than the client takes")


def test_an_error_of_a_client_that_ends_others_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Connection.fail

    def fail(self: Connection, error: ProtocolError) -> None:
        original(self, error)
        for connection in list(self.hub.clients.connections):
            connection.close(Reason.UNSPECIFIED_ERROR)

    monkeypatch.setattr(Connection, "fail", fail)
    found("a bystander is disconnected")


def test_a_connection_whose_output_has_no_bound_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "congested", property(lambda self: False))
    sequence = Sequence(0, parse(FLOOD).steps)
    failure = failure_of(sequence)
    assert failure is not None
    assert "beyond its bound" in failure.broken.kind


FLOOD = "\n".join(
    [
        "a > 10 0e 00 04 4d 51 54 54 04 02 00 00 00 02 78 61",
        "a jams",
        *["a > " + "c0 00 " * 200] * 100,
    ]
)
"""A client that wants to know many times whether the broker is there, and reads none of the answers."""

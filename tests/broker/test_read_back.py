"""Messages that are read back from the log: a few at a time, for a reader that may be gone before they are there."""

from __future__ import annotations

import pytest

from broker.read_back import ReadBack
from storage.interface import MEMORY
from tests.broker.helpers import Node


class Reader:
    """Somebody who waits for messages of a log that keeps few in memory, so that they come from the engine."""

    def __init__(self) -> None:
        self.node = Node(memory_bytes=1, rules=lambda topic: MEMORY if topic == "memory" else None)
        publisher = self.node.connect("p")
        for n in range(1, 101):
            publisher.publish("memory" if n == 3 else "t", b"%d" % n, 1, n)
            self.node.commit()
        self.read_back = ReadBack(self.node.log)
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1

    def ask(self, *seqs: int) -> bool:
        return self.read_back.ask(seqs, self.wake)


@pytest.fixture
def reader() -> Reader:
    return Reader()


def test_messages_are_there_once_they_have_been_read(reader: Reader) -> None:
    assert not reader.ask(1, 2)
    assert 1 not in reader.read_back
    reader.node.turn()
    assert reader.woken == 1
    assert [event and event.payload for event in map(reader.read_back.__getitem__, (1, 2))] == [b"1", b"2"]
    reader.read_back.drop(1)
    assert 1 not in reader.read_back
    assert 2 in reader.read_back


def test_messages_that_are_in_memory_are_there_at_once(reader: Reader) -> None:
    node = Node()
    node.connect("p").publish("t", b"x", 1)
    node.commit()
    read_back = ReadBack(node.log)
    assert read_back.ask((node.log.last,), reader.wake)
    event = read_back[node.log.last]
    assert event is not None
    assert event.payload == b"x"


def test_a_message_that_is_no_longer_in_the_log_is_known_to_be_gone(reader: Reader) -> None:
    reader.ask(3, 4)
    reader.node.turn()
    assert 3 in reader.read_back
    assert reader.read_back[3] is None
    assert reader.read_back[4] is not None


def test_no_more_than_a_few_are_read_however_many_are_asked_for(reader: Reader) -> None:
    reader.ask(*range(1, 101))
    reader.node.turn()
    assert len(reader.read_back) == 32
    assert all(seq in reader.read_back for seq in range(1, 33))


def test_one_piece_is_read_at_a_time(reader: Reader) -> None:
    assert not reader.ask(1)
    assert not reader.ask(2)
    reader.node.turn()
    assert reader.woken == 1
    assert 1 in reader.read_back
    assert 2 not in reader.read_back


def test_what_arrives_for_a_reader_that_is_gone_is_let_go(reader: Reader) -> None:
    reader.ask(1)
    reader.read_back.stop()
    reader.ask(2)
    reader.node.turn()
    assert reader.woken == 1
    assert 1 not in reader.read_back
    assert 2 in reader.read_back


def test_a_reader_that_can_take_no_more_holds_nothing_and_is_given_what_is_on_its_way(reader: Reader) -> None:
    reader.ask(1)
    reader.read_back.clear()
    reader.node.turn()
    assert 1 in reader.read_back
    reader.read_back.clear()
    assert len(reader.read_back) == 0

"""The promises of replays under every order of events that hypothesis can think of.

A log is filled while replays of it begin at random places, with clients that read and acknowledge slowly, at a node
whose commits come late. Whatever happens:

1. A replay gives every event from its place on, each once, in the order of the log, up to where it was to end.
2. One by a plain filter goes on as a subscription, and nothing is given twice or left out where it does.
3. A client that is replayed to is still given what it has subscribed to beside it.
4. No client has more on its way than it takes.

A longer run: `BERM_MODEL_EXAMPLES=20000 python -m pytest tests/broker/test_replay_model.py`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from broker.listener import Limits
from broker.mqtt.codec import encode
from broker.mqtt.packets import Puback, Publish, Pubrel, Subscribe, Subscription
from broker.mqtt.properties import Properties, Property
from broker.mqtt.topic import matches
from tests.broker.helpers import Client, Node

EXAMPLES = int(os.environ.get("BERM_MODEL_EXAMPLES", "300"))
LIMITS = Limits(write_buffer=600, group_bytes=4000, turn=16, max_replays=1000)
FILTERS = ("#", "a", "+", "b")


@dataclass(slots=True)
class Stream:
    """What one replay has to give."""

    client: Client
    filter: str
    first: int
    """The number of the first event that may come."""
    end: int | None
    """The number of events that there were where it was to end."""
    last: int = 0
    """The last so many of each topic; 0: all."""
    before: int = 0
    """How many events there were, of which it is the last."""
    plain: bool = False
    """A subscription follows, which gives messages at QoS 0 before they commit."""
    came: list[int] = field(default_factory=list)

    def expected(self, events: list[str]) -> list[int]:
        """The numbers of all events that it has to give."""
        found = [
            number
            for number, topic in enumerate(events[: self.end])
            if number >= self.first and matches(self.filter, topic)
        ]
        if not self.last:
            return found
        old = [number for number in found if number < self.before]
        kept = {number for topic in "ab" for number in [n for n in old if events[n] == topic][-self.last :]}
        return [number for number in found if number >= self.before or number in kept]


class Model(RuleBasedStateMachine):
    """The node, and what each replay has given."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        """Their topics, in the order of the log; the payload of each is its number."""
        self.early: list[bool] = []
        """Whether they go out before they commit."""
        self.streams: dict[str, Stream] = {}
        """By client."""
        self.beside: list[tuple[Client, int, list[int]]] = []
        """Clients of one subscription: its first event, and what came."""
        self.unanswered: dict[Client, list[Publish]] = {}
        self.number = 0

    @initialize(memory_bytes=st.sampled_from([1, 1500, 1 << 20]))
    def start(self, memory_bytes: int) -> None:
        self.node = Node(LIMITS, memory_bytes=memory_bytes)
        self.publisher = self.node.connect("p")

    def _client(self, window: int) -> Client:
        self.number += 1
        client = self.node.connect(f"c{self.number}", properties=((Property.RECEIVE_MAXIMUM, window),))
        client.take_all()
        self.unanswered[client] = []
        return client

    def _subscribe(self, client: Client, wanted: tuple[Subscription, ...], properties: Properties = ()) -> None:
        """Without a further turn of the loop."""
        client.connection.receive(encode(Subscribe(1, wanted, properties), 5), self.node.now)

    # -- what happens

    @rule(topics=st.text("ab", min_size=1, max_size=6), qos=st.integers(0, 2))
    def publish(self, topics: str, qos: int) -> None:
        for topic in topics:
            packet_id = len(self.events) % 65535 + 1 if qos else 0
            self.publisher.publish(topic, b"%d" % len(self.events), qos, packet_id)
            if qos == 2:
                self.publisher.send(Pubrel(packet_id))
            self.events.append(topic)
            self.early.append(qos == 0)

    @rule()
    def commit(self) -> None:
        self.node.commit()
        self.publisher.take_all()

    @rule()
    def commit_one(self) -> None:
        self.node.commit_one()

    @rule()
    def turn(self) -> None:
        self.node.turn_once()

    @rule()
    def read(self) -> None:
        self.node.reader.step()

    @rule(seconds=st.integers(0, 3))
    def tick(self, seconds: int) -> None:
        self.node.tick(seconds)

    @rule(
        words=st.sampled_from(["all", "seq", "last", "time"]),
        option=st.sampled_from(["", ";until=now", ";speed=2"]),
        filter=st.sampled_from(FILTERS),
        window=st.integers(1, 5),
        qos=st.integers(0, 1),
        data=st.data(),
    )
    def replay(self, words: str, option: str, filter: str, window: int, qos: int, data: st.DataObject) -> None:
        before = self.node.log.committed  # no seq is ever left out here: the first event has number 0
        first, last = 0, 0
        if words == "seq":
            seq = data.draw(st.integers(1, self.node.log.last + 1))
            first, words = seq - 1, f"seq={seq}"
        elif words == "last":
            last = data.draw(st.integers(1, 3))
            words = f"last={last}"
        elif words == "time":
            ts = data.draw(st.sampled_from([self.node.now, *(e.ts for e in self.node.engine._events)]))
            first = sum(event.ts < ts for event in self.node.engine._events)
            if first == len(self.node.engine._events):
                first = min(
                    (number for number in range(len(self.events)) if self._ts(number) >= ts), default=len(self.events)
                )
            words = f"time={ts // 1_000_000}.{ts % 1_000_000:06}"
        client = self._client(window)
        plain = not option.startswith(";until") and data.draw(st.booleans())
        prefix = f"$replay/{words}{option}/"
        stream = Stream(client, filter, first, before if "until" in option else None, last, before)
        self.streams[client.session.client_id] = stream
        if plain:
            stream.plain = True
            self._subscribe(
                client, (Subscription(filter, qos),), ((Property.USER_PROPERTY, ("replay", f"{words}{option}")),)
            )
        else:
            wanted = [Subscription(prefix + filter, qos)]
            if data.draw(st.booleans()):
                self.beside.append((client, len(self.events), []))
                wanted.append(Subscription("#", 1))
            self._subscribe(client, tuple(wanted))

    def _ts(self, number: int) -> int:
        stored = self.node.engine._events
        if number < len(stored):
            return stored[number].ts
        return next(event.ts for event in self.node.log.uncommitted() if event.seq == number + 1)

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        """A client answers some of what it was sent."""
        waiting = [client for client, messages in self.unanswered.items() if messages]
        if waiting:
            client = data.draw(st.sampled_from(waiting))
            messages = self.unanswered[client]
            some = data.draw(st.integers(1, len(messages)))
            self._answer(client, some)

    def _answer(self, client: Client, some: int) -> None:
        messages = self.unanswered[client]
        answered, self.unanswered[client] = messages[:some], messages[some:]
        data = b"".join(encode(Puback(message.packet_id), 5) for message in answered)
        client.connection.receive(data, self.node.now)

    @rule(data=st.data())
    def jam(self, data: st.DataObject) -> None:
        """A client stops reading, or goes on."""
        if self.unanswered:
            client = data.draw(st.sampled_from(list(self.unanswered)))
            if client.wire.jammed:
                client.unjam()
            else:
                client.jam()

    # -- what must hold

    def _collect(self) -> None:
        for client, messages in self.unanswered.items():
            if client.wire.jammed:
                continue
            for message in client.take(Publish):
                if message.qos:
                    messages.append(message)
                self._sort(client, message)

    def _sort(self, client: Client, message: Publish) -> None:
        number = int(message.payload)
        stream = self.streams[client.session.client_id]
        beside = [came for other, _, came in self.beside if other is client]
        if beside and not message.topic.startswith("$replay/"):
            beside[0].append(number)
        else:
            stream.came.append(number)

    @invariant()
    def each_comes_once_in_the_order_of_the_log(self) -> None:
        if not hasattr(self, "node"):
            return
        self._collect()
        for stream in self.streams.values():
            expected = stream.expected(self.events)
            if not stream.plain:
                assert stream.came == expected[: len(stream.came)], (stream, expected)
                continue
            assert len(stream.came) == len(set(stream.came))
            assert set(stream.came) <= set(expected)
            for early in (False, True):
                of_kind = [number for number in stream.came if self.early[number] == early]
                assert of_kind == sorted(of_kind)

    @invariant()
    def nobody_has_more_on_its_way_than_it_takes(self) -> None:
        for client in self.unanswered:
            session = client.session
            assert len(session.unacked) <= session.window
            assert client.connection.pending <= LIMITS.write_buffer + 200

    def teardown(self) -> None:
        if not hasattr(self, "node"):
            return
        for client in self.unanswered:
            if client.wire.jammed:
                client.unjam()
        for _ in range(10_000):
            self.node.commit()
            self._collect()
            if not any(self.unanswered.values()):
                if not any(replay.due for replay in self.node.hub.replays.all):
                    break
                self.node.tick(5)
            for client, messages in self.unanswered.items():
                self._answer(client, len(messages))
        for stream in self.streams.values():
            assert sorted(stream.came) == stream.expected(self.events)
        for _, first, came in self.beside:  # what was published before may have committed later
            assert len(came) == len(set(came))
            assert set(came) >= set(range(first, len(self.events)))


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)

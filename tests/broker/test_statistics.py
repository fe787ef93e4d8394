"""What the broker tells of itself is true, reaches whom it concerns, and costs neither the disk nor the log."""

from __future__ import annotations

from dataclasses import replace
from math import exp

import pytest

import broker.survey
from broker.acl import Policy, parse
from broker.auth import Access, Check, Verdict
from broker.listener import Limits, Listener
from broker.mqtt.codec import encode
from broker.mqtt.packets import Connect, Packet, Puback, Publish, Pubrec, Pubrel, Unsubscribe
from broker.mqtt.reason import Reason
from broker.statistics import MINUTE, PREFIX, SECOND, Load, Statistics
from storage.interface import StorageFull
from tests.broker.helpers import FOREVER, Client, Node, answer_to

INTERVAL = 10


class Told:
    """A node whose statistics are told when a test says so."""

    def __init__(self, node: Node, interval: int = INTERVAL, listeners: tuple[Listener, ...] = ()) -> None:
        self.node = node
        self.now = 0
        self.more: list[tuple[str, int | str]] = []
        self.statistics = Statistics(node.hub, "1.2.3", interval, self.now, listeners, [lambda: self.more])
        self.tick()

    def tick(self, seconds: float = 0) -> None:
        """Time passes."""
        self.now += round(seconds * SECOND)
        self.statistics.tick(self.now)
        self.node.turn()

    def values(self) -> dict[str, str]:
        """What holds after another interval, by topic below $SYS/broker/."""
        self.tick(INTERVAL)
        return self.retained()

    def retained(self) -> dict[str, str]:
        """What a new subscriber would be given."""
        found = self.node.hub.retained.match(PREFIX + "#")
        return {event.topic.removeprefix(PREFIX): event.payload.decode() for event in found}

    def numbers(self, *names: str) -> list[int]:
        """Some of the values."""
        values = self.values()
        return [int(values[name]) for name in names]


@pytest.fixture
def node() -> Node:
    return Node()


def told(client: Client) -> dict[str, str]:
    """What a client was sent of it, by topic below $SYS/broker/; nothing else has come."""
    messages = client.take(Publish)
    assert all(message.topic.startswith(PREFIX) and message.qos == 0 for message in messages)
    assert len({message.topic for message in messages}) == len(messages)
    return {message.topic.removeprefix(PREFIX): message.payload.decode() for message in messages}


# -- who is told what, and when


def test_a_new_subscriber_is_given_all_that_holds_as_retained_messages(node: Node) -> None:
    statistics = Told(node)
    client = node.subscriber("$SYS/#")
    messages = client.take(Publish)
    assert all(message.retain for message in messages)
    assert {message.topic.removeprefix(PREFIX): message.payload.decode() for message in messages} == (
        statistics.retained()
    )
    assert statistics.retained()["version"] == "berm version 1.2.3"


def test_a_subscriber_is_told_what_has_changed_and_nothing_else(node: Node) -> None:
    statistics = Told(node)
    client = node.subscriber("$SYS/#")
    client.take(Publish)
    before = statistics.retained()
    statistics.tick(INTERVAL)
    after = statistics.retained()
    changed = told(client)
    assert changed == {name: text for name, text in after.items() if before[name] != text}
    assert changed["uptime"] == "10 seconds"
    assert changed["clients/connected"] == "1"
    assert "version" not in changed


def test_nothing_is_told_before_the_interval_is_over(node: Node) -> None:
    statistics = Told(node)
    client = node.subscriber("$SYS/#")
    client.take(Publish)
    statistics.tick(INTERVAL - 0.1)
    assert told(client) == {}
    statistics.tick(0.1)
    assert told(client)["uptime"] == "10 seconds"


def test_with_an_interval_of_zero_nothing_is_ever_told(node: Node) -> None:
    statistics = Told(node, interval=0)
    statistics.tick(86400)
    assert statistics.retained() == {}


@pytest.mark.parametrize("filter", ["#", "+/#", "+/broker/uptime"])
def test_a_wildcard_at_the_first_level_does_not_ask_for_it(filter: str, node: Node) -> None:
    statistics = Told(node)
    client = node.subscriber(filter)
    statistics.tick(INTERVAL)
    assert told(client) == {}  # [MQTT-4.7.2-1]


def test_what_other_parts_tell_is_told_with_it(node: Node) -> None:
    statistics = Told(node)
    client = node.subscriber("$SYS/broker/berm/processors/#")
    statistics.more = [("berm/processors/hot/behind", 7)]
    statistics.tick(INTERVAL)
    assert told(client) == {"berm/processors/hot/behind": "7"}


def test_neither_the_log_nor_the_disk_takes_notice(node: Node) -> None:
    keeper = node.keeper("$SYS/#", client_id="k")
    node.commit()
    statistics = Told(node)
    commits, last, position = len(node.engine.commits), node.log.last, keeper.session.position
    for _ in range(10):
        statistics.tick(INTERVAL)
        node.commit()
    uptimes = [message.payload for message in keeper.take(Publish) if message.topic == PREFIX + "uptime"]
    assert uptimes == [b"%d seconds" % (10 * n) for n in range(11)]
    assert (len(node.engine.commits), node.log.last, keeper.session.position) == (commits, last, position)
    assert not node.hub.behind


@pytest.mark.parametrize("end", [Node.crash, Node.restart])
def test_nothing_of_it_outlives_the_process(end: object, node: Node) -> None:
    statistics = Told(node)
    assert "uptime" in statistics.retained()
    assert callable(end)
    end(node)
    assert list(node.hub.retained.match("$SYS/#")) == []


def test_who_was_away_is_not_told_what_was(node: Node) -> None:
    node.keeper("$SYS/#", client_id="k").lose()
    statistics = Told(node)
    statistics.tick(INTERVAL)
    client = node.resume("k")
    assert told(client) == {}
    assert node.hub.dropped_away == 0
    statistics.tick(INTERVAL)
    assert told(client)["uptime"] == "20 seconds"


def test_who_has_no_room_is_told_what_holds_once_there_is_room(node: Node) -> None:
    statistics = Told(node)
    client = node.subscriber("$SYS/#")
    client.take(Publish)
    client.jam()
    for _ in range(5):
        statistics.tick(INTERVAL)
    assert not client.wire.unread
    client.unjam()
    node.commit()
    assert told(client) == statistics.retained()
    statistics.tick(INTERVAL)
    assert told(client)["uptime"] == "60 seconds"


def test_who_reads_the_log_is_told_at_once_and_loses_its_place_no_more_than_without(node: Node) -> None:
    statistics = Told(node)
    client = node.connect("c", properties=((0x21, 1),))  # Receive Maximum 1
    client.subscribe("t", 1)
    client.subscribe("$SYS/broker/uptime", 1)
    publisher = node.connect("p")
    for n in range(3):
        publisher.publish("t", b"%d" % n, 1, n + 1)
    node.commit()
    assert not client.session.live
    client.take(Publish)
    statistics.tick(INTERVAL)
    assert told(client) == {"uptime": "10 seconds"}
    client.send(Puback(1))
    assert [message.payload for message in client.acknowledge()] == [b"1", b"2"]


def test_one_member_of_a_shared_subscription_is_told(node: Node) -> None:
    statistics = Told(node)
    members = [node.subscriber("$share/g/$SYS/broker/uptime", client_id=f"m{n}") for n in range(3)]
    statistics.tick(INTERVAL)
    assert [text for member in members for text in told(member).values()] == ["10 seconds"]
    for member in members:
        member.jam()
    statistics.tick(INTERVAL)
    assert node.hub.dropped_full == 1


def test_below_a_mount_point_there_is_none_of_it(node: Node) -> None:
    statistics = Told(node)
    node.listener = Listener("site-7", Limits(), "site-7/")
    client = node.subscriber("$SYS/#", client_id="m")
    client.subscribe("#")
    statistics.tick(INTERVAL)
    assert told(client) == {}


class _Believes:
    def authenticate(self, check: Check) -> None:
        check.answer(Verdict(Reason.SUCCESS, check.applicant.username or ""))


def guarded(node: Node, *rules: str) -> None:
    """From now on clients meet these rules, and a default of deny."""
    policy = Policy(parse("\n".join(rules), "acl"), False)
    node.listener = Listener("front", node.limits, access=Access(_Believes(), authorizer=policy))


def test_rules_decide_who_may_ask_for_it_and_one_for_everything_is_not_one_for_it(node: Node) -> None:
    statistics = Told(node)
    guarded(node, "allow read $SYS/# client=monitor", "allow all #")
    stranger = node.connect("stranger")
    assert stranger.subscribe("#") == 2
    assert stranger.subscribe("$SYS/#") == Reason.NOT_AUTHORIZED
    monitor = node.subscriber("$SYS/#", client_id="monitor")
    told(monitor)
    statistics.tick(INTERVAL)
    assert told(stranger) == {}
    assert told(monitor)["clients/connected"] == "2"


def test_rules_decide_what_of_it_is_received(node: Node) -> None:
    statistics = Told(node)
    guarded(node, "deny receive $SYS/broker/berm/#", "allow read $SYS/#")
    client = node.subscriber("$SYS/#")
    statistics.tick(INTERVAL)
    names = {message.topic.removeprefix(PREFIX) for message in client.take(Publish)}
    assert "uptime" in names
    assert not [name for name in names if name.startswith("berm/")]


def test_it_is_told_while_nothing_can_be_stored(node: Node) -> None:
    statistics = Told(node)
    client = node.subscriber("$SYS/broker/berm/#")
    client.take(Publish)
    node.engine.fault = StorageFull("no room")
    node.connect("p").publish("t", b"x", 1)
    node.commit()
    for _ in range(3):
        statistics.tick(INTERVAL)
        node.tick()
        node.commit()
    changed = {message.topic: message.payload for message in client.take(Publish)}
    assert changed[PREFIX + "berm/log/writable"] == b"0"
    assert changed[PREFIX + "berm/refused/messages"] == b"1"
    assert node.hub.dropped_full == 0


# -- loads


def test_a_load_is_the_rate_per_minute_averaged_with_an_exponential_decay() -> None:
    load = Load()
    load.add(100, 10 * SECOND)  # 600 a minute
    assert load.averages == pytest.approx(
        {"1min": 600 * (1 - exp(-1 / 6)), "5min": 600 * (1 - exp(-1 / 30)), "15min": 600 * (1 - exp(-1 / 90))}
    )
    before = dict(load.averages)
    load.add(100, 30 * SECOND)  # nothing more
    assert load.averages == pytest.approx(
        {
            "1min": before["1min"] * exp(-1 / 2),
            "5min": before["5min"] * exp(-1 / 10),
            "15min": before["15min"] * exp(-1 / 30),
        }
    )


def test_a_load_does_not_depend_on_the_interval_while_the_rate_stays() -> None:
    often, seldom = Load(), Load()
    for n in range(1, 31):
        often.add(5 * n, SECOND)
    seldom.add(150, 30 * SECOND)
    assert often.averages == pytest.approx(seldom.averages)
    for n in range(2, 100):
        seldom.add(150 * n, MINUTE // 2)
    assert seldom.averages == pytest.approx({"1min": 300, "5min": 300, "15min": 300}, rel=0.05)


def test_loads_are_told_of_what_came_since_and_fade(node: Node) -> None:
    statistics = Told(node)
    publisher = node.connect("p")
    publisher.send(*[Publish("t", b"x", 0, False, False, 0)] * 600)
    values = statistics.values()
    assert values["load/publish/received/1min"] == f"{3600 * (1 - exp(-1 / 6)):.2f}"
    assert values["load/messages/received/1min"] == f"{3606 * (1 - exp(-1 / 6)):.2f}"
    assert values["load/sockets/1min"] == values["load/connections/1min"] == f"{6 * (1 - exp(-1 / 6)):.2f}"
    assert values["load/publish/dropped/15min"] == "0.00"
    assert statistics.values()["load/publish/received/1min"] == f"{3600 * (1 - exp(-1 / 6)) * exp(-1 / 6):.2f}"


# -- traffic


def _wire(client: Client, packets: list[Packet]) -> int:
    return sum(len(encode(packet, client.version)) for packet in packets)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("kept", [False, True])
def test_packets_and_bytes_are_those_that_pass_the_wires(version: int, kept: bool, node: Node) -> None:
    statistics = Told(node)
    clients: dict[str, Client] = {}
    sent: dict[str, list[Packet]] = {"p": [], "s": []}
    came: dict[str, list[Packet]] = {"p": [], "s": []}
    for client_id in ("p", "s"):
        client = clients[client_id] = node.open(version)
        expiry = ((0x11, FOREVER),) if kept and version == 5 else ()
        connect = Connect(client_id, version, not kept, 0, None, None, None, expiry)
        client.send(connect)
        sent[client_id].append(connect)
    publisher, subscriber = clients["p"], clients["s"]
    subscriber.subscribe("t/#", 2)
    statistics_before = statistics.numbers("messages/received", "messages/sent")
    assert statistics_before == [3, 3]
    came["s"] += subscriber.take_all()
    came["p"] += publisher.take_all()
    before = statistics.numbers("bytes/received", "bytes/sent")
    sent["p"].clear()
    sent["s"].clear()
    came["p"].clear()
    came["s"].clear()
    for qos in (0, 1, 2):
        packet = Publish("t/a", b"payload", qos, False, False, qos)
        publisher.send(packet)
        sent["p"].append(packet)
    for _ in range(6):
        node.commit()
        for client_id, client in clients.items():
            packets = client.take_all()
            came[client_id] += packets
            answers = [answer for each in packets if (answer := _answer(each)) is not None]
            if answers:
                client.send(*answers)
                sent[client_id] += answers
    received = sum(map(len, sent.values()))
    delivered = sum(map(len, came.values()))
    assert statistics.numbers("messages/received", "messages/sent") == [3 + received, 3 + delivered]
    assert statistics.numbers("bytes/received", "bytes/sent") == [
        before[0] + sum(_wire(clients[each], packets) for each, packets in sent.items()),
        before[1] + sum(_wire(clients[each], packets) for each, packets in came.items()),
    ]
    assert statistics.numbers("publish/messages/received", "publish/messages/sent") == [3, 3]
    properties = 3 if version == 5 else 0  # the length of none, of each
    assert statistics.numbers("publish/bytes/received", "publish/bytes/sent") == [21, 21 + properties]


def _answer(packet: Packet) -> Packet | None:
    return Pubrel(packet.packet_id) if isinstance(packet, Pubrec) else answer_to(packet)


def test_what_a_connection_says_last_counts_too(node: Node) -> None:
    statistics = Told(node)
    client = node.connect("c")
    messages, size = statistics.numbers("messages/sent", "bytes/sent")
    client.wire.jammed = True
    client.send_bytes(b"\xf1\x00")
    assert not client.open
    said = len(client.wire.unread)
    assert said
    assert statistics.numbers("messages/sent", "bytes/sent") == [messages + 1, size + said]


# -- clients, sessions and subscriptions


def test_clients_are_counted_as_they_come_go_and_expire(node: Node) -> None:
    statistics = Told(node)
    names = ["total", "connected", "active", "disconnected", "inactive", "maximum", "expired"]
    topics = [f"clients/{name}" for name in names]
    short = node.connect("a", expiry=60)
    node.connect("b")
    kept = node.connect("c", expiry=FOREVER)
    assert statistics.numbers(*topics) == [3, 3, 3, 0, 0, 3, 0]
    short.lose()
    kept.lose()
    assert statistics.numbers(*topics) == [3, 1, 1, 2, 2, 3, 0]
    node.tick(61)
    assert statistics.numbers(*topics) == [2, 1, 1, 1, 1, 3, 1]
    node.restart()
    assert Told(node).numbers(*topics) == [1, 0, 0, 1, 1, 0, 0]


def test_subscriptions_are_counted_while_their_sessions_last(node: Node) -> None:
    statistics = Told(node)
    topics = ["subscriptions/count", "shared_subscriptions/count"]
    client = node.connect("a")
    for filter in ("x", "x", "y/#", "$share/g/x", "$share/g/x", "$share/h/x"):
        client.subscribe(filter)
    node.keeper("z", client_id="k").subscribe("$share/g/z")
    assert statistics.numbers(*topics) == [3, 3]
    client.send(Unsubscribe(1, ("x", "$share/h/x", "nothing")))
    assert statistics.numbers(*topics) == [2, 2]
    client.lose()
    assert statistics.numbers(*topics) == [1, 1]
    node.commit()
    node.restart()
    assert Told(node).numbers(*topics) == [1, 1]


def test_retained_messages_are_counted_with_their_bytes_and_these_topics_among_them(node: Node) -> None:
    statistics = Told(node)
    names = ["retained messages/count", "store/messages/count", "messages/stored", "store/messages/bytes"]
    own = len(statistics.retained())
    assert statistics.numbers(*names)[:3] == [own, own, own]
    publisher = node.connect("p")
    publisher.publish("a", b"12345", retain=True)
    publisher.publish("b", b"123", retain=True)
    publisher.publish("a", b"1", retain=True)
    assert statistics.numbers(*names)[:3] == [own + 2, own + 2, own + 2]
    payloads = [event.payload for event in [*node.hub.retained.match("#"), *node.hub.retained.match("$SYS/#")]]
    assert len(payloads) == own + 2
    assert node.hub.retained.size == sum(map(len, payloads))
    publisher.publish("b", b"", retain=True)
    assert node.hub.retained.size == sum(map(len, payloads)) - 3


def test_what_waits_in_the_log_for_the_session_most_behind_is_stored_for_it(node: Node) -> None:
    statistics = Told(node)
    names = ["berm/log/backlog", "store/messages/count", "retained messages/count"]
    node.keeper("t", client_id="absent").lose()
    node.connect("idle", expiry=FOREVER).lose()  # without a subscription nothing waits for it
    publisher = node.connect("p")
    for n in range(5):
        publisher.publish("t", qos=1, packet_id=n + 1)
    node.commit()
    backlog, stored, retained = statistics.numbers(*names)
    assert (backlog, stored - retained) == (5, 5)
    node.resume("absent").acknowledge()
    assert statistics.numbers(*names)[0] == 0


def test_sessions_behind_are_counted_with_their_lag_and_what_is_under_way_to_them(node: Node) -> None:
    statistics = Told(node)
    names = [f"berm/sessions/{name}" for name in ("behind", "stalled", "lag", "inflight")]
    client = node.connect("c", properties=((0x21, 2),))  # Receive Maximum 2
    client.subscribe("t", 1)
    assert statistics.numbers(*names) == [0, 0, 0, 0]
    publisher = node.connect("p")
    for n in range(5):
        publisher.publish("t", qos=1, packet_id=n + 1)
    node.commit()
    assert statistics.numbers(*names) == [1, 0, 3, 2]
    node.tick()
    node.tick()
    assert statistics.numbers(*names) == [1, 1, 3, 2]
    client.acknowledge()
    assert statistics.numbers(*names) == [0, 0, 0, 0]


def test_the_lag_of_shared_subscriptions_is_told(node: Node) -> None:
    statistics = Told(node)
    client = node.keeper("$share/g/t", 1)
    client.lose()
    publisher = node.connect("p")
    for n in range(4):
        publisher.publish("t", qos=1, packet_id=n + 1)
    node.commit()
    assert statistics.numbers("berm/shares/count", "berm/shares/lag", "berm/log/backlog") == [1, 4, 4]


def test_many_sessions_are_looked_at_some_at_a_time(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker.survey, "SLICE", 10)
    for n in range(35):
        node.keeper("t", client_id=f"k{n}").lose()
    node.connect("p").publish("t", qos=1)
    node.commit()
    statistics = Told(node)
    assert statistics.numbers("berm/log/backlog") == [0]  # not known yet: two of four steps are done
    statistics.tick(0.2)
    statistics.tick(0.2)
    assert statistics.numbers("berm/log/backlog") == [1]


# -- what is lost, refused and forbidden


def test_what_is_dropped_is_told_by_reason_and_what_is_lost_to_bounds_as_mosquitto_does(node: Node) -> None:
    statistics = Told(node)
    hub = node.hub
    for number, name in enumerate(("full", "expired", "oversized", "away", "gone", "denied"), 1):
        setattr(hub, f"dropped_{name}", number)
    values = statistics.values()
    assert {
        name: values[f"berm/dropped/{name}"] for name in ("full", "expired", "oversized", "away", "gone", "denied")
    } == {
        "full": "1",
        "expired": "2",
        "oversized": "3",
        "away": "4",
        "gone": "5",
        "denied": "6",
    }
    assert values["publish/messages/dropped"] == str(1 + 3 + 5)


def test_what_is_forbidden_and_refused_is_told(node: Node) -> None:
    statistics = Told(node)
    guarded(node, "allow publish open/#")
    client = node.connect("c")
    client.publish("closed")
    client.publish("open/x")
    client.subscribe("closed")
    names = [
        "forbidden/messages",
        "forbidden/subscriptions",
        "refused/logins",
        "refused/messages",
        "throttled",
        "crashed",
    ]
    assert statistics.numbers(*[f"berm/{name}" for name in names]) == [1, 1, 0, 0, 0, 0]


def test_the_clients_of_each_listener_are_told(node: Node) -> None:
    listeners = (Listener("devices", Limits()), Listener("browsers", replace(Limits(), max_connections=5)))
    statistics = Told(node, listeners=listeners)
    node.listener = listeners[0]
    node.connect("a")
    gone = node.connect("b")
    node.listener = listeners[1]
    node.connect("c")
    names = [f"berm/listeners/{name}/clients" for name in ("devices", "browsers")]
    assert statistics.numbers(*names) == [2, 1]
    gone.lose()
    assert statistics.numbers(*names) == [1, 1]


def test_commits_and_the_last_seq_are_told(node: Node) -> None:
    statistics = Told(node)
    names = ["berm/log/seq", "berm/log/committed", "berm/log/commits"]
    seq, committed, commits = statistics.numbers(*names)
    node.connect("p").publish("t", qos=1)
    assert statistics.numbers(*names) == [seq + 1, committed, commits]
    node.commit()
    assert statistics.numbers(*names)[:2] == [seq + 1, seq + 1]
    assert statistics.numbers(*names)[2] > commits

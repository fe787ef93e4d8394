from __future__ import annotations

from dataclasses import replace

import pytest

from bridge.ledger import Ledger
from bridge.settings import RouteSettings
from bridge.stamp import MAX_HOPS
from bridge.uplink import BURST, TAKE_BYTES, TAKE_EVENTS, State
from broker.mqtt.packets import Connack, Disconnect, Pingreq, Puback, Publish, Suback
from broker.mqtt.properties import Properties, Property, encode_properties, first
from broker.mqtt.reason import Reason
from storage.interface import CURSORS, MEMORY
from tests.bridge.helpers import SECOND, START, Rig, settings, stamp_of


def _rig(*routes: RouteSettings, version: int = 5, window: int = 1000, connack: Properties = ()) -> Rig:
    rig = Rig(settings(*routes, version=version, window=window))
    rig.peer.connack = Connack(False, 0, connack)
    return rig


def _ledger(rig: Rig) -> Ledger:
    ledger = Ledger()
    for packet in rig.peer.published:
        stamp = stamp_of(packet)
        ledger.feed(stamp.edge, stamp.epoch, stamp.seq, stamp.prev, stamp.route)
    return ledger


# what is sent


@pytest.mark.parametrize("version", [4, 5])
def test_matching_events_arrive_in_order_under_the_prefix(version: int) -> None:
    rig = _rig(RouteSettings("all", "plant/+", prefix="site7/"), version=version)
    rig.connect()
    rig.publish("plant/a", b"1", retain=True)
    rig.publish("office/a")
    rig.publish("plant/b", b"2")
    rig.drain()
    assert [(packet.topic, packet.payload, packet.qos, packet.retain) for packet in rig.peer.published] == [
        ("site7/plant/a", b"1", 1, True),
        ("site7/plant/b", b"2", 1, False),
    ]


def test_connect_asks_for_a_clean_start_with_the_credentials() -> None:
    rig = Rig(replace(settings(version=4), username="u", password=b"p"))
    rig.connect()
    connect = rig.peer.connect
    assert (connect.version, connect.client_id, connect.clean_start, connect.keep_alive) == (4, "edge-1", True, 30)
    assert (connect.username, connect.password, connect.will) == ("u", b"p", None)


def test_nothing_is_sent_before_the_connack() -> None:
    rig = _rig()
    rig.publish()
    rig.worker.run()
    rig.uplink.opened(rig.now)
    rig.peer.feed(rig.uplink.take())
    assert rig.uplink.take() == b""
    assert rig.uplink.state is State.CONNECTING
    assert len(rig.peer.packets) == 1


@pytest.mark.parametrize(("route", "event", "sent"), [(0, 0, 0), (0, 1, 0), (0, 2, 0), (1, 0, 0), (1, 1, 1), (1, 2, 1)])
def test_an_event_goes_at_the_lower_of_its_qos_and_the_routes(route: int, event: int, sent: int) -> None:
    rig = _rig(RouteSettings("all", "#", qos=route))
    rig.connect()
    rig.publish(qos=event)
    rig.turn()
    assert rig.peer.published[0].qos == sent


def test_the_events_own_properties_travel_along() -> None:
    own: Properties = ((Property.CONTENT_TYPE, "text/plain"), (Property.USER_PROPERTY, ("unit", "K")))
    rig = _rig()
    rig.connect()
    rig.publish(properties=encode_properties(own))
    rig.turn()
    assert rig.peer.published[0].properties[:2] == own


def test_message_expiry_counts_down_by_the_time_the_event_waited() -> None:
    """[MQTT-3.3.2-6]"""
    rig = _rig()
    rig.publish(expires=START + 60 * SECOND)
    rig.now += 20 * SECOND
    rig.connect()
    assert first(rig.peer.published[0].properties, Property.MESSAGE_EXPIRY_INTERVAL) == 40


def test_the_longest_message_expiry_stays_what_it_is_where_the_clock_is_a_little_behind() -> None:
    rig = _rig()
    rig.publish(expires=START + 0xFFFFFFFF * SECOND + 1)
    rig.connect()
    assert first(rig.peer.published[0].properties, Property.MESSAGE_EXPIRY_INTERVAL) == 0xFFFFFFFF


def test_an_expired_event_is_passed_over_and_leaves_no_gap() -> None:
    """[MQTT-3.3.2-5]"""
    rig = _rig()
    rig.publish("a")
    rig.publish("late", expires=START + 10 * SECOND)
    rig.publish("b")
    rig.now += 10 * SECOND
    rig.connect()
    rig.drain()
    assert rig.peer.topics == ["a", "b"]
    assert _ledger(rig).gaps == 0
    (route,) = rig.uplink.status().routes
    assert (route.expired, route.acknowledged, route.pending) == (1, 2, 0)


def test_retain_is_taken_off_where_the_peer_has_no_retained_messages() -> None:
    """[MQTT-3.2.2-14]"""
    rig = _rig(connack=((Property.RETAIN_AVAILABLE, 0),))
    rig.connect()
    rig.publish(retain=True)
    rig.turn()
    assert not rig.peer.published[0].retain


def test_a_new_route_starts_now_or_at_the_beginning() -> None:
    rig = Rig(settings(RouteSettings("now", "a"), RouteSettings("history", "b", start="beginning")))
    rig.settings = settings(RouteSettings("late", "a"), RouteSettings("history", "b", start="beginning"))
    rig.publish_many(["a", "b", "a", "b"])
    rig.worker.run()
    rig.start()
    rig.publish_many(["a", "b"])
    rig.worker.run()
    rig.connect()
    rig.drain()
    assert sorted(rig.peer.topics) == ["a", "b", "b", "b"]


def test_a_new_routes_start_outlives_a_crash_before_its_first_acknowledgement() -> None:
    rig = _rig()
    rig.publish("a")
    rig.worker.run()
    rig.crash()
    rig.connect()
    assert rig.peer.topics == ["a"]


# outage and catch-up


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("memory_bytes", [1, 1 << 24])
def test_an_outage_in_the_middle_of_a_window_loses_nothing_and_keeps_the_order(version: int, memory_bytes: int) -> None:
    rig = Rig(settings(version=version, window=8), memory_bytes=memory_bytes)
    rig.connect()
    rig.publish_many(f"t/{number}" for number in range(20))
    rig.turn()
    rig.acknowledge(*rig.peer.unanswered[:3])
    before = len(rig.peer.published)
    assert before == 11
    rig.drop()
    rig.publish_many(f"t/{number}" for number in range(20, 40))
    rig.worker.run()
    rig.connect()
    rig.drain()
    assert rig.peer.topics[before:] == [f"t/{number}" for number in range(3, 40)]
    assert not any(packet.dup for packet in rig.peer.published)
    (route,) = rig.uplink.status().routes
    assert (route.forwarded, route.resent, route.acknowledged, route.pending) == (40, 8, 40, 0)
    if version == 5:
        ledger = _ledger(rig)
        assert (ledger.received, ledger.duplicates, ledger.gaps) == (40, 8, 0)


def test_a_backlog_of_a_long_outage_drains_through_a_small_window() -> None:
    rig = Rig(settings(window=50), memory_bytes=1)
    rig.publish_many(f"t/{number}" for number in range(3000))
    rig.worker.run()
    rig.connect()
    rig.drain()
    assert rig.peer.topics == [f"t/{number}" for number in range(3000)]


def test_acknowledgements_out_of_order_move_the_position_only_over_what_is_whole() -> None:
    rig = _rig()
    rig.connect()
    events = [rig.publish(f"t/{number}") for number in range(4)]
    rig.turn()
    first_id, second_id, third_id, last_id = rig.peer.unanswered
    rig.acknowledge(last_id, second_id)
    assert rig.uplink.routes[0].position == events[0].seq - 1
    rig.acknowledge(first_id)
    assert rig.uplink.routes[0].position == events[1].seq
    rig.drop()
    rig.connect()
    assert rig.peer.topics[4:] == ["t/2", "t/3"]
    rig.drain()
    assert third_id
    assert rig.uplink.routes[0].position == events[3].seq


def test_the_position_moves_on_acknowledgement_only() -> None:
    rig = _rig()
    rig.connect()
    event = rig.publish()
    rig.tick(5)
    assert rig.kept() == event.seq - 1
    rig.acknowledge()
    rig.tick(5)
    assert rig.kept() == event.seq


def test_the_position_is_kept_once_a_second_at_most() -> None:
    rig = _rig()
    rig.connect()
    for _ in range(2):
        rig.publish()
        rig.turn()
    rig.acknowledge(rig.peer.unanswered[0])
    rig.tick(1)
    kept = rig.kept()
    rig.acknowledge()
    rig.tick(0.5)
    assert rig.kept() == kept
    rig.tick(0.5)
    assert rig.kept() == kept + 1


def test_where_nothing_is_open_the_position_passes_over_what_does_not_match() -> None:
    rig = _rig(RouteSettings("all", "wanted"))
    rig.connect()
    rig.publish("wanted")
    rig.publish_many(["other"] * 5)
    rig.turn()
    rig.tick(2)
    assert rig.kept() == 0
    rig.acknowledge()
    rig.tick(2)
    assert rig.kept() == 6


def test_traffic_of_others_costs_a_route_one_commit_a_minute_and_a_stop_keeps_its_place() -> None:
    rig = _rig(RouteSettings("all", "wanted"))
    rig.connect()
    rig.publish("wanted")
    rig.drain()
    rig.tick(1)
    commits = len(rig.engine.groups)
    for _ in range(600):
        rig.publish("other", durability=MEMORY)
        rig.tick(1)
    assert 9 <= len(rig.engine.groups) - commits <= 11
    assert rig.log.last - 60 <= rig.kept() < rig.log.last
    rig.publish("wanted")
    rig.drain()
    rig.tick(1)
    assert rig.kept() == rig.log.last, "what it has forwarded is kept within the second"
    rig.publish_many(["other"] * 3)
    rig.turn()
    rig.uplink.stop(rig.now)
    rig.turn()
    assert rig.kept() == rig.log.last


def test_a_restart_goes_on_from_the_kept_position_and_keeps_the_chain() -> None:
    rig = _rig(RouteSettings("all", "a/#"))
    rig.connect()
    rig.publish_many(["a/0", "x", "a/1", "x", "x"])
    rig.drain()
    rig.tick(2)
    assert rig.kept() == 5
    rig.publish_many(["a/2", "a/3"])
    rig.turn()
    rig.acknowledge(rig.peer.unanswered[0])
    rig.crash()
    rig.connect()
    rig.drain()
    assert rig.peer.topics == ["a/0", "a/1", "a/2", "a/3", "a/2", "a/3"]
    assert [stamp_of(packet).prev for packet in rig.peer.published] == [0, 1, 3, 6, 3, 6]
    ledger = _ledger(rig)
    assert (ledger.received, ledger.duplicates, ledger.gaps) == (4, 2, 0)


def test_a_lost_message_shows_in_the_chain() -> None:
    rig = _rig()
    rig.connect()
    rig.publish_many(["a", "b", "c"])
    rig.drain()
    assert _ledger(rig).gaps == 0
    del rig.peer.published[1]
    assert _ledger(rig).gaps == 1


def test_what_was_lost_on_the_wire_leaves_the_chain_whole() -> None:
    rig = _rig(window=4)
    rig.connect()
    rig.publish_many(["a"] * 10)
    rig.turn()
    rig.acknowledge(rig.peer.unanswered[0])
    del rig.peer.published[2:]
    rig.drop()
    rig.connect()
    rig.drain()
    ledger = _ledger(rig)
    assert (ledger.received, ledger.duplicates, ledger.gaps) == (10, 1, 0)


def test_a_position_set_back_by_hand_sends_history_again_as_copies() -> None:
    rig = _rig()
    rig.connect()
    rig.publish_many(["a", "b", "c"])
    rig.drain()
    rig.tick(2)
    rig.log.open.put(CURSORS, ("bridge/cloud/all",), (1,))
    rig.log.flush()
    rig.worker.run()
    rig.crash()
    rig.connect()
    rig.drain()
    assert rig.peer.topics == ["a", "b", "c", "b", "c"]
    assert all(stamp_of(packet).prev < stamp_of(packet).seq for packet in rig.peer.published)
    ledger = _ledger(rig)
    assert (ledger.received, ledger.duplicates, ledger.gaps) == (3, 2, 0)


def test_a_new_numbering_begins_a_new_chain() -> None:
    rig = _rig()
    rig.connect()
    rig.publish()
    rig.drain()
    rig.tick(2)
    rig.epoch = 2
    rig.crash()
    rig.publish()
    rig.connect()
    stamp = stamp_of(rig.peer.published[-1])
    assert (stamp.epoch, stamp.prev) == (2, 0)


def test_a_position_beyond_the_log_comes_back_to_its_end() -> None:
    rig = _rig()
    rig.connect()
    rig.publish("kept")
    rig.publish("memory", durability=MEMORY)
    rig.drain()
    rig.tick(2)
    assert rig.kept() == 2
    rig.crash()
    rig.publish("takes the same seq")
    rig.worker.run()
    rig.connect()
    assert rig.peer.topics[-1] == "takes the same seq"


def test_stopping_keeps_the_position_and_says_goodbye() -> None:
    rig = _rig()
    rig.connect()
    rig.publish()
    rig.drain()
    rig.uplink.stop(rig.now)
    rig.turn()
    assert rig.peer.goodbye.reason == Reason.NORMAL_DISCONNECTION
    assert rig.uplink.want_close == "the node stops"
    assert rig.kept() == 1
    rig.drop()
    assert rig.uplink.last_error == ""


# several routes


def test_routes_take_turns_and_each_keeps_its_own_place() -> None:
    rig = _rig(RouteSettings("a", "a"), RouteSettings("b", "b", prefix="x/"))
    rig.publish_many(["a"] * 200 + ["b"] * 200)
    rig.worker.run()
    rig.connect()
    rig.drain()
    topics = rig.peer.topics
    assert topics[:BURST] == ["a"] * BURST
    assert topics[BURST : 2 * BURST] == ["x/b"] * BURST
    rig.tick(2)
    assert (rig.kept("a"), rig.kept("b")) == (400, 400)


def test_a_busy_route_does_not_starve_a_quiet_one() -> None:
    rig = _rig(RouteSettings("busy", "a"), RouteSettings("quiet", "b"), window=4)
    rig.publish_many(["a"] * 50 + ["b"])
    rig.worker.run()
    rig.connect()
    rig.acknowledge()
    assert "b" in rig.peer.topics


def test_a_full_window_does_not_hold_up_a_qos_0_route() -> None:
    rig = _rig(RouteSettings("sure", "a"), RouteSettings("quick", "b", qos=0), window=1)
    rig.connect()
    rig.publish_many(["a", "a", "b", "b"])
    rig.turn()
    assert sorted(rig.peer.topics) == ["a", "b", "b"]


def test_an_event_on_two_routes_is_in_both_chains() -> None:
    rig = _rig(RouteSettings("a", "a"), RouteSettings("all", "#", prefix="copy/"))
    rig.connect()
    rig.publish_many(["b", "a"])
    rig.drain()
    ledger = _ledger(rig)
    assert (ledger.received, ledger.duplicates, ledger.gaps) == (3, 0, 0)


# bounds


def test_no_more_is_in_flight_than_the_window_allows() -> None:
    rig = _rig(window=5)
    rig.connect()
    rig.publish_many(["a"] * 20)
    rig.turn()
    assert len(rig.peer.unanswered) == 5


def test_no_more_is_in_flight_than_receive_maximum_allows() -> None:
    """[MQTT-3.3.4-7]"""
    rig = _rig(connack=((Property.RECEIVE_MAXIMUM, 1),))
    rig.connect()
    rig.publish_many(["a", "b", "c"])
    rig.turn()
    for count in (1, 2, 3):
        assert len(rig.peer.unanswered) == 1
        assert len(rig.peer.published) == count
        rig.acknowledge()
    assert rig.peer.topics == ["a", "b", "c"]


def test_what_is_in_flight_is_bounded_by_bytes() -> None:
    rig = Rig(settings(window_bytes=1000))
    rig.connect()
    for _ in range(5):
        rig.publish(payload=bytes(600))
    rig.turn()
    assert len(rig.peer.unanswered) == 2
    rig.drain()
    assert len(rig.peer.published) == 5


def test_nothing_is_pulled_while_the_transport_is_paused() -> None:
    rig = _rig()
    rig.connect()
    rig.uplink.paused(True)
    rig.publish_many(["a", "b"])
    rig.turn()
    assert rig.peer.published == []
    rig.uplink.paused(False)
    rig.turn()
    assert rig.peer.topics == ["a", "b"]


def test_one_take_is_bounded_in_bytes() -> None:
    rig = _rig()
    rig.connect()
    for _ in range(20):
        rig.publish(payload=bytes(100_000))
    rig.worker.run()
    assert len(rig.uplink.take()) < TAKE_BYTES + 101_000


def test_a_long_stretch_to_pass_over_gives_the_loop_its_turns() -> None:
    rig = _rig()
    expired = START - SECOND
    for _ in range(TAKE_EVENTS + 10):
        rig.publish("late", expires=expired)
    rig.publish("a")
    rig.worker.run()
    rig.uplink.opened(rig.now)
    rig.peer.feed(rig.uplink.take())
    rig.uplink.receive(rig.peer.take(), rig.now)
    assert rig.uplink.take() == b""
    assert rig.wakes == 1
    rig.turn()
    assert rig.peer.topics == ["a"]


def test_the_log_wakes_the_shell_only_when_there_is_something_to_do() -> None:
    rig = _rig(RouteSettings("all", "a"))
    rig.publish("a")
    rig.turn()
    assert rig.wakes == 0
    rig.connect()
    rig.publish("a")
    rig.worker.run()
    assert rig.wakes == 1
    rig.turn()
    assert len(rig.peer.published) == 2


@pytest.mark.parametrize("own_limit", [False, True])
def test_an_event_too_big_for_the_peer_is_counted_and_passed_over(own_limit: bool) -> None:
    """[MQTT-3.2.2-15]"""
    bridge = settings(version=4 if own_limit else 5)
    rig = Rig(replace(bridge, max_packet_size=300) if own_limit else bridge)
    rig.peer.connack = Connack(False, 0, () if own_limit else ((Property.MAXIMUM_PACKET_SIZE, 300),))
    rig.connect()
    for topic, size in (("a", 1), ("big", 400), ("b", 1), ("big", 500)):
        rig.publish(topic, bytes(size))
    rig.drain()
    assert rig.peer.topics == ["a", "b"]
    (route,) = rig.uplink.status().routes
    assert (route.oversized, route.acknowledged, route.pending) == (2, 2, 0)
    assert len(rig.reports) == 1
    assert "too big" in rig.reports[0]
    if not own_limit:
        assert _ledger(rig).gaps == 1


def test_a_packet_of_exactly_the_maximum_size_is_sent() -> None:
    def sent(limit: int) -> int:
        rig = _rig(connack=((Property.MAXIMUM_PACKET_SIZE, limit),))
        rig.connect()
        rig.publish("a", bytes(100))
        rig.turn()
        return len(rig.peer.published)

    fits = next(limit for limit in range(200, 300) if sent(limit))
    rig = _rig()
    rig.connect()
    rig.publish("a", bytes(100))
    rig.worker.run()
    assert len(rig.uplink.take()) == fits


def test_a_topic_too_long_with_its_prefix_is_counted_and_passed_over() -> None:
    rig = _rig(RouteSettings("all", "#", prefix="p/"))
    rig.connect()
    rig.publish("t" * 65_534)
    rig.publish("t" * 65_533)
    rig.drain()
    assert len(rig.peer.published) == 1
    assert rig.uplink.status().routes[0].oversized == 1


# QoS 0


def test_a_qos_0_routes_position_moves_once_its_events_are_handed_over() -> None:
    rig = _rig(RouteSettings("all", "#", qos=0))
    rig.connect()
    rig.publish_many(["a", "b"])
    rig.worker.run()
    assert rig.uplink.routes[0].position == 0
    assert rig.uplink.take()
    assert rig.uplink.routes[0].position == 2
    assert rig.uplink.status().routes[0].written == 2


def test_a_qos_0_event_does_not_move_the_position_over_an_open_one() -> None:
    rig = _rig()
    rig.connect()
    rig.publish("a")
    rig.publish("b", qos=0)
    rig.turn()
    assert rig.uplink.routes[0].position == 0
    rig.acknowledge()
    assert rig.uplink.routes[0].position == 2


def test_qos_0_events_behind_an_open_one_are_bounded_too() -> None:
    rig = _rig(window=5)
    rig.connect()
    rig.publish("a")
    for _ in range(20):
        rig.publish("b", qos=0)
    rig.turn()
    assert len(rig.peer.published) == 5
    rig.drain()
    assert len(rig.peer.published) == 21


def test_a_lost_qos_0_event_is_no_gap_in_a_qos_1_routes_chain() -> None:
    rig = _rig()
    rig.connect()
    rig.publish("a")
    rig.publish("b", qos=0)
    rig.publish("c")
    rig.drain()
    assert _ledger(rig).gaps == 0
    del rig.peer.published[1]
    assert _ledger(rig).gaps == 0


# loops


def test_an_event_that_has_been_here_is_not_sent_round_again() -> None:
    rig = _rig()
    rig.connect()
    for edges in (("edge",), ("edge", "hub"), ("hub",)):
        pairs = tuple((int(Property.USER_PROPERTY), ("berm-edge", edge)) for edge in edges)
        rig.publish(edges[-1], properties=encode_properties(pairs))
    rig.publish("far", properties=encode_properties(((Property.USER_PROPERTY, ("berm-hops", str(MAX_HOPS))),)))
    rig.drain()
    assert rig.peer.topics == ["hub"]
    assert rig.uplink.status().routes[0].looped == 3
    assert stamp_of(rig.peer.published[0]).hops == 2


@pytest.mark.parametrize("version", [4, 5])
def test_the_loop_guard_works_towards_an_older_peer_too(version: int) -> None:
    rig = _rig(version=version)
    rig.connect()
    rig.publish(properties=encode_properties(((Property.USER_PROPERTY, ("berm-edge", "edge")),)))
    rig.turn()
    assert rig.peer.published == []


# what the peer answers


REFUSED = [Reason.NOT_AUTHORIZED, Reason.TOPIC_NAME_INVALID, Reason.PAYLOAD_FORMAT_INVALID]
NOT_NOW = [
    Reason.UNSPECIFIED_ERROR,
    Reason.IMPLEMENTATION_SPECIFIC_ERROR,
    Reason.PACKET_IDENTIFIER_IN_USE,
    Reason.QUOTA_EXCEEDED,
]


@pytest.mark.parametrize("reason", REFUSED)
def test_a_message_refused_for_good_is_counted_told_once_and_passed_over(reason: Reason) -> None:
    rig = _rig()
    rig.connect()
    rig.publish_many(["a", "b", "c"])
    rig.turn()
    first_id, second_id, third_id = rig.peer.unanswered
    rig.acknowledge(first_id, second_id, reason=reason)
    rig.acknowledge(third_id)
    (route,) = rig.uplink.status().routes
    assert (route.refused, route.acknowledged, route.position) == (2, 1, 3)
    assert rig.uplink.want_close == ""
    assert len(rig.reports) == 1
    assert f"0x{reason:02X}" in rig.reports[0]


@pytest.mark.parametrize("reason", NOT_NOW)
def test_a_message_not_taken_now_is_sent_again_after_a_wait(reason: Reason) -> None:
    rig = _rig()
    rig.connect()
    rig.publish_many(["a", "b"])
    rig.turn()
    rig.acknowledge(rig.peer.unanswered[0], reason=reason)
    assert f"0x{reason:02X}" in rig.uplink.want_close
    rig.drop()
    assert rig.uplink.retry_at(rig.now, 0.0) >= rig.now + SECOND
    rig.connect()
    rig.drain()
    assert rig.peer.topics == ["a", "b", "a", "b"]
    (route,) = rig.uplink.status().routes
    assert (route.refused, route.acknowledged) == (0, 2)


def test_no_matching_subscribers_is_an_acknowledgement() -> None:
    rig = _rig()
    rig.connect()
    rig.publish()
    rig.turn()
    rig.acknowledge(reason=Reason.NO_MATCHING_SUBSCRIBERS)
    assert rig.uplink.status().routes[0].acknowledged == 1


def test_acknowledgements_behind_a_failed_one_still_count() -> None:
    rig = _rig()
    rig.connect()
    rig.publish_many(["a", "b"])
    rig.turn()
    first_id, second_id = rig.peer.unanswered
    rig.peer.acknowledge(second_id, reason=Reason.QUOTA_EXCEEDED)
    rig.peer.acknowledge(first_id)
    rig.turn()
    assert rig.uplink.routes[0].position == 1


def test_a_second_acknowledgement_changes_nothing() -> None:
    rig = _rig()
    rig.connect()
    rig.publish()
    rig.drain()
    rig.peer.answer(Puback(1))
    rig.turn()
    assert rig.uplink.want_close == ""
    assert rig.uplink.status().routes[0].acknowledged == 1


@pytest.mark.parametrize(
    ("reason", "longest"),
    [
        (Reason.NOT_AUTHORIZED, 60),
        (Reason.BAD_USER_NAME_OR_PASSWORD, 60),
        (Reason.BANNED, 60),
        (Reason.SERVER_BUSY, 2),
        (Reason.SERVER_UNAVAILABLE, 2),
    ],
)
def test_a_refused_connection_says_why_and_waits_as_long_as_that_deserves(reason: Reason, longest: int) -> None:
    rig = _rig()
    rig.peer.connack = Connack(False, reason, ((Property.REASON_STRING, "ask Bob"),))
    rig.open()
    assert f"0x{reason:02X} {reason.name.lower().replace('_', ' ')}" in rig.uplink.want_close
    assert "ask Bob" in rig.uplink.want_close
    rig.drop()
    assert rig.uplink.retry_at(rig.now, 0.999999) == pytest.approx(rig.now + longest * SECOND, abs=1000)


def test_an_older_peers_refusal_says_why() -> None:
    rig = _rig(version=4)
    rig.peer.connack = Connack(False, Reason.BAD_USER_NAME_OR_PASSWORD)
    rig.open()
    assert "bad user name or password" in rig.uplink.want_close


def test_a_peer_that_acknowledges_nothing_gets_nothing_of_a_qos_1_route() -> None:
    """[MQTT-3.2.2-11]"""
    rig = _rig(connack=((Property.MAXIMUM_QOS, 0),))
    rig.publish()
    rig.open()
    assert "qos = 0" in rig.uplink.want_close
    assert rig.peer.published == []


def test_a_peer_that_acknowledges_nothing_is_fine_for_qos_0_routes() -> None:
    rig = _rig(RouteSettings("all", "#", qos=0), connack=((Property.MAXIMUM_QOS, 0),))
    rig.connect()
    rig.publish()
    rig.turn()
    assert len(rig.peer.published) == 1


def test_a_session_that_should_not_be_there_ends_the_connection() -> None:
    """[MQTT-3.2.2-4]"""
    rig = _rig()
    rig.peer.connack = Connack(True, 0)
    rig.open()
    assert "session" in rig.uplink.want_close


def test_a_peers_disconnect_is_the_reason_for_closing() -> None:
    rig = _rig()
    rig.connect()
    rig.peer.answer(Disconnect(Reason.SESSION_TAKEN_OVER))
    rig.turn()
    assert "session taken over" in rig.uplink.want_close
    rig.drop()
    assert "session taken over" in rig.uplink.last_error
    assert rig.uplink.retry_at(rig.now, 0.999999) == pytest.approx(rig.now + 60 * SECOND, abs=1000)


@pytest.mark.parametrize("packet", [Publish("a", b""), Suback(1, (0,)), Connack(False, 0)])
def test_what_nobody_asked_for_ends_the_connection(packet: Publish | Suback | Connack) -> None:
    rig = _rig()
    rig.connect()
    rig.peer.answer(packet)
    rig.turn()
    assert type(packet).__name__.upper() in rig.uplink.want_close
    assert rig.peer.goodbye.reason == Reason.PROTOCOL_ERROR


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("data", [b"\xff\xff", b"\x40\x02\x00\x00", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 50])
def test_malformed_bytes_end_the_connection_with_a_clear_line(version: int, data: bytes) -> None:
    rig = _rig(version=version)
    rig.connect()
    rig.publish()
    rig.turn()
    rig.uplink.receive(data, rig.now)
    assert "no MQTT" in rig.uplink.want_close
    rig.turn()
    assert rig.uplink.take() == b""
    rig.drop()
    rig.connect()
    rig.drain()
    assert rig.peer.topics == ["a", "a"]


def test_a_peer_that_answers_in_an_older_version_is_hinted_at() -> None:
    rig = _rig()
    rig.uplink.opened(rig.now)
    rig.uplink.receive(b"\x20\x02\x00\x01", rig.now)
    assert "does it speak MQTT 5?" in rig.uplink.want_close


# time


def test_a_quiet_connection_is_kept_alive() -> None:
    """[MQTT-3.1.2-20]"""
    rig = _rig()
    rig.connect()
    for _ in range(120):
        rig.tick(1)
    assert sum(isinstance(packet, Pingreq) for packet in rig.peer.packets) in (4, 5)
    assert rig.uplink.want_close == ""


def test_server_keep_alive_overrides_ours() -> None:
    """[MQTT-3.2.2-21]"""
    rig = _rig(connack=((Property.SERVER_KEEP_ALIVE, 10),))
    rig.connect()
    rig.tick(9)
    assert isinstance(rig.peer.packets[-1], Pingreq)


def test_a_peer_that_falls_silent_is_given_up() -> None:
    rig = _rig()
    rig.connect()
    rig.tick(29)
    rig.uplink.receive(b"", rig.now)
    rig.now += 29 * SECOND
    rig.uplink.tick(rig.now)
    assert rig.uplink.take() == b"\xc0\x00"
    rig.now += 15 * SECOND
    rig.uplink.tick(rig.now)
    assert rig.uplink.want_close == "no answer to PINGREQ within 15 s"


def test_a_peer_that_takes_everything_and_says_nothing_is_given_up() -> None:
    rig = _rig(RouteSettings("all", "#", qos=0))
    rig.connect()
    for _ in range(60):
        rig.publish()
        rig.now += SECOND
        rig.worker.run()
        rig.uplink.tick(rig.now)
        rig.uplink.take()
    assert "PINGREQ" in rig.uplink.want_close


def test_keep_alive_zero_never_pings() -> None:
    rig = Rig(settings(keep_alive=0))
    rig.connect()
    rig.tick(100_000)
    assert len(rig.peer.packets) == 1


def test_a_connack_that_never_comes_is_given_up() -> None:
    rig = _rig()
    rig.uplink.opened(rig.now)
    rig.uplink.tick(rig.now + 9 * SECOND)
    assert rig.uplink.want_close == ""
    rig.uplink.tick(rig.now + 10 * SECOND)
    assert "CONNACK" in rig.uplink.want_close


def test_the_wait_grows_until_the_peer_has_proved_that_it_works() -> None:
    rig = _rig()

    def longest() -> float:
        return (rig.uplink.retry_at(rig.now, 0.999999) - rig.now) / SECOND

    assert longest() == 0
    for wait in (2, 4, 8):
        rig.drop("connection refused")
        assert longest() == pytest.approx(wait, abs=0.01)
    assert rig.uplink.last_error == "connection refused"
    rig.connect()
    rig.drop()
    assert longest() == pytest.approx(16, abs=0.01)
    rig.connect()
    rig.publish()
    rig.drain()
    rig.drop()
    assert longest() == pytest.approx(2, abs=0.01)


def test_status_says_since_when_it_is_up() -> None:
    rig = _rig()
    assert (rig.uplink.status().state, rig.uplink.status().connected_since) == (State.IDLE, 0)
    rig.now += SECOND
    rig.connect()
    assert (rig.uplink.status().state, rig.uplink.status().connected_since) == (State.UP, rig.now)
    rig.drop()
    assert rig.uplink.status().connected_since == 0
    assert rig.uplink.status().last_error == "the peer closed the connection"


def test_nothing_of_a_lost_connection_is_left_over_for_the_next_one() -> None:
    rig = _rig()
    rig.connect()
    rig.tick(29)
    rig.uplink.receive(b"\x20", rig.now)
    rig.publish()
    rig.worker.run()
    rig.drop()
    rig.connect()
    assert [type(packet).__name__ for packet in rig.peer.packets] == ["Connect", "Publish"]

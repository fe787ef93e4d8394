from __future__ import annotations

from bridge.stamp import MAX_HOPS, Stamp, Stamper, read_stamp, read_trail
from broker.mqtt.packets import Publish
from broker.mqtt.properties import Property, decode_properties, encode_properties
from tests.bridge.helpers import user_properties

CONTENT = encode_properties(((Property.CONTENT_TYPE, "text/plain"), (Property.USER_PROPERTY, ("unit", "K"))))


def _pairs(properties: bytes) -> list[tuple[str, str]]:
    return user_properties(decode_properties(properties, Publish.TYPE))


def test_what_is_stamped_is_read_back() -> None:
    stamp = Stamper("edge", 3, "cloud/all").stamp(1234, 0, None)
    assert read_stamp(_pairs(stamp)) == Stamp("edge", "cloud/all", 3, 1234, 0, 1)


def test_a_second_hop_keeps_where_the_message_has_been_and_replaces_the_rest() -> None:
    first = CONTENT + Stamper("edge", 3, "up/all").stamp(10, 9, None)
    trail = read_trail(first)
    assert trail.rest == CONTENT
    second = trail.rest + Stamper("hub", 7, "cloud/all").stamp(500, 400, trail)
    pairs = _pairs(second)
    assert [value for key, value in pairs if key == "berm-edge"] == ["edge", "hub"]
    assert read_stamp(pairs) == Stamp("hub", "cloud/all", 7, 500, 400, 2)
    assert [key for key, _ in pairs].count("berm-seq") == 1


def test_a_message_that_has_been_here_has_looped() -> None:
    trail = read_trail(Stamper("edge", 3, "up/all").stamp(10, 9, None))
    assert trail.looped("edge")
    assert not trail.looped("hub")


def test_a_message_that_has_been_over_too_many_bridges_goes_no_further() -> None:
    def hops(text: str) -> bool:
        return read_trail(encode_properties(((Property.USER_PROPERTY, ("berm-hops", text)),))).looped("x")

    assert hops(str(MAX_HOPS))
    assert not hops(str(MAX_HOPS - 1))
    assert not hops("many")


def test_edges_count_as_hops_where_the_number_is_missing_or_too_small() -> None:
    edges = tuple((int(Property.USER_PROPERTY), ("berm-edge", f"n{number}")) for number in range(MAX_HOPS))
    assert read_trail(encode_properties(edges)).looped("x")


def test_half_a_stamp_is_none() -> None:
    whole = _pairs(Stamper("edge", 3, "up/all").stamp(10, 9, None))
    for index in range(len(whole)):
        assert read_stamp(whole[:index] + whole[index + 1 :]) is None
    assert read_stamp([*whole, ("berm-seq", "-1")]) is None
    assert read_stamp([]) is None

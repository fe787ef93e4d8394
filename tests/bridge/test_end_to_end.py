"""A real edge, a real cloud and a link between them that breaks: nothing is missing on the other side.

The edge is `berm run`; the cloud is a mosquitto or a second Berm; devices and the cloud's consumer are paho-mqtt.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import orjson
import pytest

from bridge.ledger import Ledger
from bridge.stamp import read_stamp
from tests.berm.helpers import Client, berm, mosquitto, needs_mosquitto
from tests.bridge.proxy import Proxy
from tests.node import MOSQUITTO, Node, free_port, wait_until


def config(port: int, version: str = "5", more: str = "") -> str:
    """An edge with one bridge that forwards `plant/#`."""
    return f"""
[[bridges]]
name = "cloud"
host = "127.0.0.1"
port = {port}
version = "{version}"
keep_alive = 1
backoff_min = 0.05
backoff_max = 0.2
{more}
[[bridges.routes]]
name = "telemetry"
topic = "plant/#"
prefix = "edge/"
"""


def numbered(first: int, last: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, last)]


class Cloud:
    """A broker that is not the edge's, and a consumer on it that counts in a ledger."""

    def __init__(self, port: int, version: int = 5) -> None:
        self.port = port
        self.consumer = Client(port, "consumer", version, expiry=3600 if version == 5 else 0)
        self.consumer.subscribe("edge/#")

    def ledger(self) -> Ledger:
        """What the stamps of everything that has arrived prove."""
        ledger = Ledger()
        for message in self.consumer.messages:
            stamp = read_stamp(message.properties.UserProperty)  # type: ignore[union-attr]
            assert stamp is not None
            ledger.feed(stamp.edge, stamp.epoch, stamp.seq, stamp.prev, stamp.route)
        return ledger

    def first_copies(self) -> list[bytes]:
        """What has arrived, in order, each once."""
        return list(dict.fromkeys(self.consumer.payloads))


@pytest.fixture(params=["mosquitto", "berm"])
def cloud(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cloud]:
    with ExitStack() as stack:
        if request.param == "berm":
            port = stack.enter_context(Node(tmp_path / "cloud", name="cloud")).port
        elif MOSQUITTO is None:
            pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
        else:
            port = stack.enter_context(mosquitto(tmp_path))
        cloud = Cloud(port)
        with cloud.consumer:
            yield cloud


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_what_is_published_at_the_edge_arrives_in_the_cloud_in_order(
    tmp_path: Path, cloud: Cloud, version: str
) -> None:
    with Node(tmp_path / "edge", config(cloud.port, version)) as edge, Client(edge.port, "device") as device:
        wait_until("the bridge is up", lambda: "bridge cloud: connected to" in edge.stderr)
        device.publish("other/a", b"not forwarded")
        device.publish("plant/a", *numbered(0, 500))
        cloud.consumer.wait_for(set(numbered(0, 500)))
        assert cloud.consumer.payloads == numbered(0, 500)
        assert {message.topic for message in cloud.consumer.messages} == {"edge/plant/a"}
        if version == "5":
            assert (cloud.ledger().received, cloud.ledger().gaps) == (500, 0)
        wait_until("the place is kept", lambda: _behind(edge) == {"bridge/cloud/telemetry": 0})
        assert edge.stop() == 0


def _behind(node: Node) -> dict[str, int]:
    """How far behind each route is."""
    status = orjson.loads(berm("status", "--json", cwd=node.directory).stdout)
    return {cursor["name"]: cursor["behind"] for cursor in status["cursors"]}


def test_nothing_is_missing_after_an_outage_and_a_sigkill_of_the_edge(tmp_path: Path, cloud: Cloud) -> None:
    with Proxy(cloud.port) as link:
        with Node(tmp_path / "edge", config(link.port)) as edge, Client(edge.port, "device") as device:
            device.publish("plant/a", *numbered(0, 300))
            cloud.consumer.wait_for(set(numbered(0, 300)))
            link.cut()
            device.publish("plant/a", *numbered(300, 600))
            wait_until("the edge notices", lambda: "no connection to" in edge.stderr)
            device.publish("plant/b", *numbered(600, 900))
            edge.stop(signal.SIGKILL)
        with Node(tmp_path / "edge", config(link.port)) as edge, Client(edge.port, "device") as device:
            device.publish("plant/a", *numbered(900, 1000))
            link.restore()
            cloud.consumer.wait_for(set(numbered(0, 1000)))
            assert edge.stop() == 0
    assert cloud.first_copies() == numbered(0, 1000)
    ledger = cloud.ledger()
    assert (ledger.received, ledger.gaps) == (1000, 0)


def test_nothing_is_missing_where_the_edge_dies_in_the_middle_of_forwarding(tmp_path: Path, cloud: Cloud) -> None:
    with Proxy(cloud.port) as link:
        for round in range(5):
            first = round * 400
            with (
                Node(tmp_path / "edge", config(link.port, more="window = 20")) as edge,
                Client(edge.port, "device") as device,
            ):
                device.publish("plant/a", *numbered(first, first + 400))
                arrived = len(cloud.consumer.messages)
                wait_until("some arrive", lambda arrived=arrived: len(cloud.consumer.messages) > arrived)  # type: ignore[misc]
                edge.stop(signal.SIGKILL)
        with Node(tmp_path / "edge", config(link.port)):
            cloud.consumer.wait_for(set(numbered(0, 2000)))
    assert cloud.first_copies() == numbered(0, 2000)
    ledger = cloud.ledger()
    assert (ledger.received, ledger.gaps) == (2000, 0)


def test_what_was_sent_and_not_acknowledged_is_sent_again_by_the_next_process(tmp_path: Path, cloud: Cloud) -> None:
    marks = '[[bridges.routes]]\nname = "marks"\ntopic = "mark"\nqos = 0\n'
    text = config(0) + marks

    def place(route: str) -> int:
        cursors = orjson.loads(berm("status", "--json", cwd=tmp_path / "edge").stdout)["cursors"]
        (position,) = (each["position"] for each in cursors if each["name"] == f"bridge/cloud/{route}")
        assert isinstance(position, int)
        return position

    with Proxy(cloud.port) as link:
        text = text.replace("port = 0", f"port = {link.port}").replace("keep_alive = 1", "keep_alive = 600")
        with Node(tmp_path / "edge", text) as edge, Client(edge.port, "device") as device:
            device.publish("plant/a", *numbered(0, 100))
            cloud.consumer.wait_for(set(numbered(0, 100)))
            link.blackhole()
            device.publish("plant/a", *numbered(100, 200))
            # A QoS 0 route is done with a message once it is written, and its place is kept about a second later: by
            # then everything that would be kept of the other route is kept too.
            for _ in range(2):
                before = place("marks")
                device.publish("mark", b"x")
                wait_until("its place is kept", lambda before=before: place("marks") > before)  # type: ignore[misc]
            edge.stop(signal.SIGKILL)
        link.restore()
        with Node(tmp_path / "edge", text):
            cloud.consumer.wait_for(set(numbered(0, 200)))
    assert [payload for payload in cloud.first_copies() if payload != b"x"] == numbered(0, 200)


def test_a_link_that_swallows_everything_is_noticed_by_its_silence(tmp_path: Path, cloud: Cloud) -> None:
    with (
        Proxy(cloud.port) as link,
        Node(tmp_path / "edge", config(link.port)) as edge,
        Client(edge.port, "device") as device,
    ):
        device.publish("plant/a", *numbered(0, 100))
        cloud.consumer.wait_for(set(numbered(0, 100)))
        link.blackhole()
        device.publish("plant/a", *numbered(100, 200))
        wait_until("the edge notices", lambda: "no answer to PINGREQ" in edge.stderr)
        link.restore()
        cloud.consumer.wait_for(set(numbered(0, 200)))
        assert "again, after" in edge.stderr
        assert edge.stderr.count("no answer to PINGREQ") == 1
    assert cloud.first_copies() == numbered(0, 200)
    assert cloud.ledger().gaps == 0


@needs_mosquitto
@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_a_backlog_drains_when_the_cloud_comes_back_without_any_new_message(tmp_path: Path, version: str) -> None:
    port = free_port()
    with Node(tmp_path / "edge", config(port, version)) as edge:
        with Client(edge.port, "device") as device:
            device.publish("plant/a", *numbered(0, 3000))
        wait_until("the edge notices", lambda: "connection refused" in edge.stderr)
        with mosquitto(tmp_path, "allow_anonymous true", "persistence false", port=port):
            cloud = Cloud(port)
            with cloud.consumer:
                cloud.consumer.wait_for({b"2999"})
        # The consumer subscribes while the backlog is on its way, so it may miss the beginning, but never the middle.
        first = int(cloud.consumer.payloads[0])
        assert cloud.first_copies() == numbered(first, 3000)


def test_a_backlog_drains_through_a_new_connection_without_any_new_message(tmp_path: Path, cloud: Cloud) -> None:
    with Proxy(cloud.port) as link:
        link.cut()
        with Node(tmp_path / "edge", config(link.port)) as edge:
            with Client(edge.port, "device") as device:
                device.publish("plant/a", *numbered(0, 3000))
            wait_until("the edge notices", lambda: "no connection to" in edge.stderr)
            link.restore()
            cloud.consumer.wait_for(set(numbered(0, 3000)))
    assert cloud.first_copies() == numbered(0, 3000)


@pytest.mark.parametrize("kind", ["berm", "mosquitto"])
def test_the_peers_limits_are_kept(tmp_path: Path, kind: str) -> None:
    """Receive Maximum and Maximum Packet Size: what is too big is told of, and everything else arrives."""
    with ExitStack() as stack:
        if kind == "berm":
            limits = "[mqtt]\nreceive_maximum = 3\nmax_packet_size = 1024\n"
            peer = stack.enter_context(Node(tmp_path / "cloud", limits, name="cloud"))
            port = peer.port
        elif MOSQUITTO is None:
            pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
        else:
            lines = ("allow_anonymous true", "max_inflight_messages 3", "max_packet_size 1024")
            port = stack.enter_context(mosquitto(tmp_path, *lines))
        cloud = Cloud(port)
        stack.enter_context(cloud.consumer)
        edge = stack.enter_context(Node(tmp_path / "edge", config(port)))
        device = stack.enter_context(Client(edge.port, "device"))
        wait_until("the bridge is up", lambda: "bridge cloud: connected to" in edge.stderr)
        device.publish("plant/a", *numbered(0, 200))
        device.publish("plant/big", b"x" * 2000)
        device.publish("plant/a", *numbered(200, 400))
        cloud.consumer.wait_for(set(numbered(0, 400)))
        assert cloud.consumer.payloads == numbered(0, 400)
        assert "is too big for the peer" in edge.stderr
        assert "no connection to" not in edge.stderr
        # What can't be sent is a link that is missing: the cloud sees it.
        assert cloud.ledger().gaps == 1
        if kind == "berm":
            assert "WARNING" not in peer.stderr


@needs_mosquitto
@pytest.mark.parametrize(("version", "words"), [("5", "0x87 not authorized"), ("3.1.1", "0x87 not authorized")])
def test_a_cloud_that_refuses_the_edge_is_one_line_that_says_why(tmp_path: Path, version: str, words: str) -> None:
    lines = ("allow_anonymous false", f"password_file {tmp_path / 'passwords'}")
    (tmp_path / "passwords").write_text("")
    with (
        mosquitto(tmp_path, *lines) as port,
        Proxy(port) as link,
        Node(tmp_path / "edge", config(link.port, version)) as edge,
    ):
        wait_until("it tries again", lambda: link.accepted > 3)
        assert edge.stop() == 0
        (line,) = [line for line in edge.stderr.splitlines() if " bridge: " in line]
        assert words in line
        assert f"bridge cloud: no connection to 127.0.0.1:{link.port}: " in line


def test_what_two_bridges_send_each_other_comes_back_once_and_goes_no_further(tmp_path: Path) -> None:
    back = free_port()
    east_config = config(back).replace('prefix = "edge/"', "")
    with Node(tmp_path / "east", east_config, name="east") as east:
        west_config = config(east.port).replace('prefix = "edge/"', "")
        with (
            Node(tmp_path / "west", west_config, ["--set", f"mqtt.port={back}"], name="west") as west,
            Client(east.port, "e") as in_the_east,
            Client(west.port, "w") as in_the_west,
        ):
            wait_until("the bridge is up", lambda: "bridge cloud: connected to" in east.stderr)
            in_the_east.subscribe("plant/#")
            in_the_west.subscribe("plant/#")
            in_the_east.publish("plant/east", *numbered(0, 50))
            in_the_west.wait_for(set(numbered(0, 50)))
            # A message that had gone round would have to be here before those that follow it.
            for last in (b"first", b"second", b"third"):
                in_the_east.publish("plant/east", last)
                in_the_west.wait_for({last})
            assert in_the_west.payloads == [*numbered(0, 50), b"first", b"second", b"third"]
            assert all(in_the_east.payloads.count(payload) <= 2 for payload in in_the_east.payloads)

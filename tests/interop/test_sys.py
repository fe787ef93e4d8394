"""What exporters and dashboards read of Mosquitto, they read of a node: the same topics, forms and meanings."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.interop.clients import PUB, SUB, MosquittoSub, Paho
from tests.node import HOST, MOSQUITTO, PATIENCE, Node, mosquitto

pytestmark = pytest.mark.skipif(PUB is None or SUB is None, reason="mosquitto's clients are not installed")
beside_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")

PREFIX: Final = "$SYS/broker/"
DOCS: Final = Path(__file__).parents[2] / "docs" / "sys.md"
EVERY_SECOND: Final = "[mqtt]\nsys_interval = 1\n"

LEFT_OUT: Final = {
    "timestamp": "when Mosquitto was built; up to 1.6",
    "changeset": "the revision that it was built from; up to 1.6",
    "messages/inflight": "up to 1.6; ours is berm/sessions/inflight",
    "packet/out/count": "from 2.1: the length of queues that we do not have",
    "packet/out/bytes": "from 2.1: the same in bytes",
    "connections/socket/count": "from 2.1: load/sockets tells how many come",
}
"""Topics of Mosquitto that a node does not have, and why."""

FORMS: Final = (r"\d+", r"\d+\.\d\d", r"\d+ seconds", r"\w+ version \d+\.\d+\.\d+")


def read(port: int, filter: str = PREFIX + "#") -> dict[str, str]:
    """What a new subscriber is given, by topic below $SYS/broker/: it ends with the first message that is news."""
    assert SUB is not None
    command = [SUB, "-h", HOST, "-p", str(port), "-t", filter, "--retained-only", "-F", "%t\t%p"]
    done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=PATIENCE)
    return dict(line.removeprefix(PREFIX).split("\t") for line in done.stdout.splitlines())


@contextmanager
def both(directory: Path) -> Iterator[tuple[int, int]]:
    """The ports of a node and of a mosquitto that tell of themselves every second."""
    with Node(directory / "node", EVERY_SECOND) as node, mosquitto(directory, "sys_interval 1\n") as port:
        yield node.port, port


@beside_mosquitto
def test_every_topic_of_mosquitto_is_there_in_its_form_and_only_ours_are_added(tmp_path: Path) -> None:
    with both(tmp_path) as (port, other):
        with MosquittoSub(other, "watch", 4, PREFIX + "uptime", 0) as watch:
            watch.receive(3)  # some topics are there only since somebody has connected
        ours, theirs = read(port), read(other)
    assert theirs.keys() - ours.keys() <= LEFT_OUT.keys()
    assert {name for name in ours.keys() - theirs.keys() if not name.startswith("berm/")} == set()
    for name, text in theirs.items():
        if name in ours:
            (form,) = [form for form in FORMS if re.fullmatch(form, text)]
            assert re.fullmatch(form, ours[name]), (name, text, ours[name])


@beside_mosquitto
def test_the_same_traffic_counts_the_same(tmp_path: Path) -> None:
    with both(tmp_path) as ports:
        ours, theirs = (_counted(port) for port in ports)
    assert ours["publish/messages/received"] == "180"
    # Mosquitto 2.0 does not count those at QoS 2 here, and does count their bytes.
    assert theirs.pop("publish/messages/received") in ("120", ours.pop("publish/messages/received"))
    assert ours == theirs


def _counted(port: int) -> dict[str, str]:
    """What some clients have led to."""
    assert PUB is not None
    with MosquittoSub(port, "watch", 4, PREFIX + "uptime", 0) as watch, MosquittoSub(port, "s", 5, "plant/#", 2) as sub:
        for version in ("mqttv31", "mqttv311", "mqttv5"):
            for qos in (0, 1, 2):
                command = [PUB, "-h", HOST, "-p", str(port), "-V", version, "-i", "pub", "-q", str(qos)]
                lines = "".join(f"{number}\n" for number in range(20))
                subprocess.run(
                    [*command, "-t", "plant/oven", "-l"], input=lines, check=True, text=True, timeout=PATIENCE
                )
        sub.receive(180)
        watch.receive(watch.waiting + 2)
        values = read(port)
    names = [
        "messages/received",
        "bytes/received",
        "publish/messages/received",
        "publish/bytes/received",
        "publish/messages/dropped",
        "subscriptions/count",
        "shared_subscriptions/count",
        "clients/total",
        "clients/connected",
        "clients/disconnected",
        "clients/expired",
    ]
    return {name: values[name] for name in names}


def test_loads_and_memory_are_told(tmp_path: Path) -> None:
    with Node(tmp_path, EVERY_SECOND) as node:
        with Paho(node.port, "publisher") as publisher:
            publisher.publish("t", *[b"x"] * 100, qos=1)
        with MosquittoSub(node.port, "watch", 5, PREFIX + "load/publish/received/1min", 0) as watch:
            while not any(float(message.payload) > 10 for message in watch.receive(1)):
                pass
        values = read(node.port)
        assert float(values["load/bytes/received/15min"]) > 0
        assert 0 < int(values["heap/current"]) <= int(values["heap/maximum"])


FILES: Final = """\
[mqtt]
sys_interval = 1

[[processors]]
file = "hot.py"

[[bridges]]
name = "cloud"
host = "127.0.0.1"
port = 9

[[bridges.routes]]
name = "telemetry"
topic = "plant/#"
"""
HOT: Final = """\
from processors import Event, Processors

plant = Processors()


@plant.filter("plant/#", to="hot/{topic}")
def hot(event: Event) -> bool:
    return event.number("value") > 80
"""


def test_every_reader_of_the_log_tells_how_far_behind_it_is(tmp_path: Path) -> None:
    (tmp_path / "hot.py").write_text(HOT)
    with Node(tmp_path, FILES) as node:
        with Paho(node.port, "publisher") as publisher:
            publisher.publish("plant/oven", b'{"value": 90}', b'{"value": 70}', b"nonsense", qos=1)
        with MosquittoSub(node.port, "watch", 5, PREFIX + "berm/processors/hot/outputs", 0) as watch:
            while watch.receive(1)[0].payload != b"2":  # one alarm, and one dead letter
                pass
        values = read(node.port)
        assert values["berm/processors/hot/running"] == "1"
        assert values["berm/processors/hot/behind"] == "0"
        assert values["berm/processors/hot/events"] == "3"
        assert values["berm/processors/hot/dead"] == "1"
        assert values["berm/bridges/cloud/connected"] == values["connection/edge-cloud/state"] == "0"
        assert values["berm/bridges/cloud/routes/telemetry/behind"] == values["berm/log/committed"] == "5"
        assert values["berm/listeners/mqtt/clients"] == "1"
        seldom = {name for name in _documented() if name.startswith("berm/dropped/retention/")}
        assert {_general(name) for name in values} == {*_documented()} - seldom
        assert read(node.port)["berm/log/seq"] == values["berm/log/seq"]  # telling of itself moves nothing


def _general(name: str) -> str:
    """A topic as docs/sys.md names it."""
    name = re.sub(r"/\d+min$", "/+", name)
    name = re.sub(r"^(berm/(?:processors|listeners|bridges))/\w+/", r"\1/<name>/", name)
    return name.replace("/routes/telemetry/", "/routes/<route>/").replace("edge-cloud", "<node>-<bridge>")


def _documented() -> list[str]:
    """The topics in the tables of docs/sys.md."""
    rows = re.findall(r"^\| (`.*?) \|", DOCS.read_text(), re.MULTILINE)
    return [name for row in rows for name in re.findall("`([^`]+)`", row)]


def test_a_bridge_that_is_connected_says_so(tmp_path: Path) -> None:
    config = f'{EVERY_SECOND}\n[[bridges]]\nname = "cloud"\nhost = "127.0.0.1"\nport = %d\n'
    route = '[[bridges.routes]]\nname = "all"\ntopic = "t"\n'
    with Node(tmp_path / "cloud") as cloud, Node(tmp_path / "edge", config % cloud.port + route) as edge:
        with Paho(edge.port, "publisher") as publisher:
            publisher.publish("t", b"x", b"y", qos=1)
        filter = PREFIX + "berm/bridges/cloud/routes/all/acknowledged"
        with MosquittoSub(edge.port, "watch", 5, filter, 0) as watch:
            while watch.receive(1)[0].payload != b"2":
                pass
        values = read(edge.port)
        assert values["berm/bridges/cloud/connected"] == values["connection/edge-cloud/state"] == "1"
        assert values["berm/bridges/cloud/routes/all/behind"] == "0"


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=("SIGTERM", "SIGKILL"))
def test_a_node_that_is_started_again_begins_to_count_anew(tmp_path: Path, end: signal.Signals) -> None:
    with Node(tmp_path, EVERY_SECOND) as node:
        with Paho(node.port, "publisher") as publisher:
            publisher.publish("t", *[b"x"] * 7, qos=1, retain=True)
        with MosquittoSub(node.port, "watch", 5, PREFIX + "publish/messages/received", 0) as watch:
            while watch.receive(1)[0].payload != b"7":
                pass
        node.stop(end)
        node.start()
        values = read(node.port)
        assert values["publish/messages/received"] == "0"
        assert int(values["berm/log/seq"]) >= 7


def test_a_node_that_is_told_so_says_nothing_of_itself(tmp_path: Path) -> None:
    with Node(tmp_path, "[mqtt]\nsys_interval = 0\n") as node, Paho(node.port, "c") as client:
        client.subscribe("$SYS/#", "end")
        client.publish("end", b"end")
        assert client.until(b"end") == []

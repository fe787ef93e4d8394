"""Samples into figures, figures into pages."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import orjson
from rich.console import Console

from bench.load import Amount, Load, Shape
from bench.machine import Machine, file_system
from bench.report import Report, Sample, figures, remarks, render, to_json, to_markdown

MACHINE = Machine(2, "a processor", "Linux", "CPython 3.11", "/data", "ext4", 0.2, 0.1)
LOAD = Load(
    sent=1000, acked=1000, refused=0, expected=1000, received=1000, duplicates=0, closed=0, seconds=2.0,
    received_per_s=500.0, p50=1.0, p99=2.0, cpu_seconds=0.5,
)  # fmt: skip


def sample(broker: str, round: int, rate: float, load: Load = LOAD) -> Sample:
    return Sample(broker, "qos1", round, replace(load, received_per_s=rate), 1.0, 50_000_000, 0.05)


def report(*samples: Sample) -> Report:
    brokers = dict.fromkeys(each.broker for each in samples)
    shape = Shape("qos1", "QoS 1", 1)
    return Report(MACHINE, [shape], dict.fromkeys(brokers, "as it is"), 3, Amount(2), samples, [], {})


def test_a_ratio_is_the_median_of_the_ratios_within_each_round() -> None:
    rates = {"berm": (100, 600, 400), "mosquitto": (100, 200, 400)}
    of_berm, of_mosquitto = figures(
        report(*(sample(name, round, rate) for name in rates for round, rate in enumerate(rates[name])))
    )
    assert (of_berm.rate, of_berm.least, of_berm.most) == (400, 100, 600)
    assert of_berm.ratio == 1  # not 400 / 200: of 1, 3 and 1 the median
    assert of_mosquitto.ratio == 1


def test_a_round_without_the_base_has_no_ratio() -> None:
    found = figures(report(sample("berm", 0, 100), sample("berm", 1, 300), sample("mosquitto", 1, 100)))
    assert next(found).ratio == 3
    assert next(figures(report(sample("berm", 0, 100)))).ratio is None


def test_processor_time_is_told_per_second_of_the_load() -> None:
    figure = next(figures(report(sample("berm", 0, 500))))
    assert figure.cores == 0.5
    assert figure.generator == 0.25


def test_messages_that_did_not_arrive_are_told() -> None:
    lossy = report(sample("berm", 0, 500), sample("berm", 1, 500, replace(LOAD, received=900)))
    assert next(figures(lossy)).arrived == 0.9
    assert any("berm lost messages at qos1: 90.00%" in line for line in remarks(lossy))
    assert not list(remarks(report(sample("berm", 0, 500))))


def test_a_log_in_memory_and_a_busy_generator_are_told() -> None:
    busy = report(sample("berm", 0, 500, replace(LOAD, cpu_seconds=1.95)))
    lines = list(remarks(replace(busy, machine=replace(MACHINE, file_system="tmpfs"))))
    assert any("tmpfs is memory: durable figures mean nothing" in line for line in lines)
    assert any("load generator used a core" in line for line in lines)


def test_a_machine_that_had_other_things_to_do_is_told() -> None:
    samples = [replace(sample("berm", round, 500), others=others) for round, others in enumerate((0.0, 0.8, 0.9))]
    assert list(remarks(report(*samples))) == [
        "other programs used 0.80 cores meanwhile: on a quiet machine the figures are others"
    ]


def test_failures_and_absent_brokers_are_told() -> None:
    broken = replace(report(sample("berm", 0, 1)), failures=["amqtt, round 1: it ended"], absent={"amqtt": "not here"})
    assert list(remarks(broken)) == ["amqtt is left out: not here", "failed: amqtt, round 1: it ended"]


def test_screen_markdown_and_json_have_the_same_figures() -> None:
    both = report(sample("berm", 0, 1234), sample("mosquitto", 0, 617))
    screen = StringIO()
    render(both, Console(file=screen, width=80))
    markdown = to_markdown(both)
    for text in (screen.getvalue(), markdown):
        assert "1,234" in text
        assert "2.00" in text
        assert "(ext4)" in text
    assert "| berm | 1,234 | 0% | 2.00 |" in markdown
    assert "- berm: as it is" in markdown
    figure = orjson.loads(to_json(both))["figures"][0]
    assert (figure["broker"], figure["rate"], figure["ratio"]) == ("berm", 1234, 2)


def test_the_file_system_is_that_of_the_nearest_mount_point() -> None:
    mounts = "/dev/a / ext4 rw 0 0\ntmpfs /run tmpfs rw 0 0\n/dev/b /run/media/disk xfs rw 0 0\n"
    assert file_system(Path("/run/media/disk/data"), mounts) == "xfs"
    assert file_system(Path("/run/lock"), mounts) == "tmpfs"
    assert file_system(Path("/running"), mounts) == "ext4"

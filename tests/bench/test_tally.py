"""What must be equal in the end: every count that is off fails a check."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from bench.devices import FILTER, Fleet
from bench.observers import Cloud, Results, Stored
from bench.tally import Tally, count, page

READINGS = [("device-000", 1), ("device-000", 2), ("device-001", 1)]
EPOCH = 5


def fleet() -> Fleet:
    devices = Fleet(2, 1, 1.0)
    for device, published in zip(devices.devices, (2, 1), strict=True):
        device.published = published
        device.acknowledged = set(range(1, published + 1))
    return devices


def observed() -> tuple[Stored, Results, Cloud]:
    """All three readings, as events 2, 3 and 5 of the log."""
    stored = Stored(Path("nowhere"), FILTER, dict(zip((2, 3, 5), READINGS, strict=True)))
    results = Results({("device-000", "10:00:00"): 2, ("device-001", "10:00:00"): 1})
    cloud = Cloud()
    for seq, prev, reading in zip((2, 3, 5), (0, 2, 3), READINGS, strict=True):
        cloud.received += 1
        cloud.proof.feed("edge", EPOCH, seq, prev)
        cloud.readings["edge", EPOCH, seq] = reading
    return stored, results, cloud


def whole() -> Tally:
    return count(fleet(), *observed(), 0)


def failing(tally: Tally) -> list[str]:
    return [check.words for check in tally.checks() if not check.holds]


def test_when_all_counts_agree_every_check_holds() -> None:
    tally = whole()
    assert failing(tally) == []
    assert tally.holds
    assert {name: number for name, number, _ in tally.lines()} == {
        "published": 3, "acknowledged": 3, "stored": 3, "aggregated": 3, "forwarded": 3, "duplicates": 0, "lost": 0,
    }  # fmt: skip


def test_a_copy_at_the_cloud_is_a_duplicate_and_fails_nothing() -> None:
    stored, results, cloud = observed()
    cloud.received += 1
    cloud.proof.feed("edge", EPOCH, 3, 2)
    tally = count(fleet(), stored, results, cloud, 0)
    assert tally.duplicates == 1
    assert tally.holds


def test_a_reading_that_is_stored_twice_must_be_aggregated_and_forwarded_twice() -> None:
    stored, results, cloud = observed()
    stored.readings[6] = READINGS[2]
    tally = count(fleet(), stored, results, cloud, 0)
    assert failing(tally) == [
        "each stored event is in one window, once",
        "each stored event is at the cloud, nothing else is",
        "the chain proves as many events as are stored",
    ]
    results.windows["device-001", "10:00:01"] = 1
    cloud.received += 1
    cloud.proof.feed("edge", EPOCH, 6, 5)
    cloud.readings["edge", EPOCH, 6] = READINGS[2]
    assert count(fleet(), stored, results, cloud, 0).holds


def test_a_reading_that_is_acknowledged_and_not_at_the_cloud_is_lost() -> None:
    stored, results, cloud = observed()
    del cloud.readings["edge", EPOCH, 3]
    tally = count(fleet(), stored, results, cloud, 0)
    assert tally.lost == 1
    assert "nothing acknowledged was lost" in failing(tally)
    assert "each stored event is at the cloud, nothing else is" in failing(tally)


def test_an_acknowledged_reading_that_is_not_in_the_log_is_found() -> None:
    stored, results, cloud = observed()
    del stored.readings[3]
    assert "the log has every acknowledged reading" in failing(count(fleet(), stored, results, cloud, 0))


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"acknowledged": 2}, "every reading was acknowledged, none refused"),
        ({"aggregated": 4}, "each stored event is in one window, once"),
        ({"conflicts": 1}, "each stored event is in one window, once"),
        ({"foreign": 1}, "each stored event is at the cloud, nothing else is"),
        ({"gaps": 1}, "the chain of stamps has no gap"),
        ({"unstamped": 1}, "the chain of stamps has no gap"),
        ({"proven": 2}, "the chain proves as many events as are stored"),
        ({"exit_code": 1}, "the node ended with exit code 0 when it was asked to"),
    ],
)
def test_each_count_that_is_off_fails_its_check(change: dict[str, int], check: str) -> None:
    tally = replace(whole(), **change)
    assert failing(tally) == [check]
    assert not tally.holds
    text = StringIO()
    Console(file=text, width=100).print(page(tally))
    assert f"FAILS  {check}" in text.getvalue()


def test_a_demonstration_in_which_nothing_happened_shows_nothing() -> None:
    empty = count(Fleet(0, 1, 1.0), Stored(Path("nowhere"), FILTER), Results(), Cloud(), 0)
    assert failing(empty) == ["nothing acknowledged was lost"]

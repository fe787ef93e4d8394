"""What the settings of retention mean, and how a node and its status tell of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from berm.parts import age, retention
from berm.settings import SettingsError, load
from berm.status import gather, to_text
from storage.interface import CURSORS, FSYNC, Event
from storage.losses import Losses
from storage.retention import SECOND, Record, Retention
from storage.sealer import Policy
from storage.sqlite import SQLiteEngine
from tests.storage.test_sealer import settle

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("", 0), ("0", 0), ("90s", 90), ("5m", 300), ("2h", 7200), ("1d", 86_400), ("2w", 1_209_600), ("1y", 31_536_000)],
)
def test_an_age_has_a_unit(text: str, seconds: int) -> None:
    assert age(text) == seconds * SECOND


@pytest.mark.parametrize("wrong", ['"1"', '"0d"', '"-1d"', '"1.5d"', '"1 d"', "1"])
def test_what_is_no_age_is_refused(wrong: str) -> None:
    with pytest.raises(SettingsError, match=r"storage\.retention\.age"):
        load(None, [f"storage.retention.age={wrong}"])


def test_without_settings_everything_is_kept() -> None:
    assert not retention(load(None, []))


def test_rules_and_readers_are_what_the_settings_say(tmp_path: Path) -> None:
    config = tmp_path / "berm.toml"
    config.write_text(
        """
        [storage.retention]
        age = "1y"
        bytes = 1000
        [[storage.retention.rules]]
        filter = "plant/+/debug"
        age = "1d"
        [[storage.retention.rules]]
        filter = "plant/#"
        age = "0"
        [[bridges]]
        name = "cloud"
        host = "127.0.0.1"
        [[bridges.routes]]
        name = "alarms"
        topic = "alarm/#"
        """
    )
    found = retention(load(config, []))
    assert (found.age, found.bytes, found.free) == (365 * 86_400 * SECOND, 1000, 0)
    ages = [found.age_of(topic) // SECOND for topic in ("plant/a/debug", "plant/a/debug/b", "other")]
    assert ages == [86_400, 0, 365 * 86_400]
    assert [found.cursors["bridge/cloud/alarms"](topic) for topic in ("alarm/1", "plant")] == [True, False]


@pytest.mark.parametrize(("asked", "meant"), [(0, 0), (1, 288 * MIB), (1 << 30, 1 << 30)])
def test_history_goes_before_anything_is_given_up(asked: int, meant: int) -> None:
    assert retention(load(None, [f"storage.retention.min_free={asked}"])).free == meant


def test_the_status_tells_what_was_taken_and_who_had_not_read_it(tmp_path: Path) -> None:
    cursors = {"bridge/cloud/all": lambda topic: True}
    engine = SQLiteEngine(tmp_path, policy=Policy(bytes=500), retention=Retention(age=1, cursors=cursors))
    for seq in range(1, 30):
        event = Event(seq, seq * SECOND, "t", b"x", 1, False, "c", b"", 0, FSYNC)
        engine.commit([event], {CURSORS: {("bridge/cloud/all",): (0,)}}, True)
    settle(engine)
    engine._keeper._next_look = 0
    settle(engine)
    taken = engine.retention
    assert taken.events > 9
    assert taken == Record(taken.segments, taken.events, taken.bytes, Losses({"bridge/cloud/all": taken.events}))
    status = gather(engine, tmp_path)
    assert status.retention == taken
    text = to_text(status)
    assert f"has taken {taken.events} events" in text
    assert f"unread by  bridge/cloud/all {taken.events} of them" in text
    engine.close()

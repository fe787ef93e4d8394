"""SIGKILL at random moments while segments are written anew, removed and erased: nothing else is lost or is twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from random import Random
from threading import Timer

import orjson
import pytest

from broker.mqtt.topic import compile_filters
from storage.erasure import ERASURES, Request, ask
from storage.interface import Event
from storage.retention import Retention, Rule
from storage.sealer import SECOND, Policy
from storage.sqlite import SQLiteEngine
from tests.node import PATIENCE
from tests.storage.contract import read_all
from tests.storage.test_erasure import bytes_of
from tests.storage.test_sealer import settle

POLICY = Policy(bytes=40_000, age=1 << 62)
KILLS = 20
LONG_AGO = 1_700_000_000_000_000
FORGOTTEN = "a-client-that-is-to-be-forgotten"


def made(seq: int) -> Event:
    """The event with this seq, whoever makes it."""
    random = Random(seq)
    client = random.choice(("another", "a third", FORGOTTEN if seq < 3000 else "a fourth"))
    topic = random.choice(("debug", "keep/a", "keep/b"))
    payload = client.encode() + random.randbytes(random.choice((10, 200)))
    return Event(seq, LONG_AGO + seq, topic, payload, 1, False, client, b"", 0, 2)


def kept() -> Retention:
    return Retention(rules=(Rule(lambda topic: topic == "debug", SECOND),), compile=compile_filters)


def work(directory: str) -> None:
    """Commit until the end of the process, and say up to where."""
    engine = SQLiteEngine(Path(directory), policy=POLICY, retention=kept())
    seq = int(sys.argv[2])
    while True:
        engine.commit([made(each) for each in range(seq, seq + 20)], {}, True)
        seq += 20
        print(seq - 1, flush=True)
        for _ in range(5):
            engine.upkeep()
            if engine.eraser is not None:
                engine.eraser._next_look = engine._keeper._next_look = 0


@pytest.mark.parametrize("seed", [1])
def test_whenever_it_is_killed_only_what_was_to_go_is_gone(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    last, asked = 0, None
    for number in range(KILLS):
        if last > 3000 and asked is None:
            asked = ask(tmp_path, Request("1", (FORGOTTEN,)))
        acknowledged = _killed(tmp_path, last + 1, 0.15 + random.random() * 0.5)
        engine = SQLiteEngine(tmp_path, policy=Policy(bytes=0))
        events = read_all(engine)
        seqs = [each.seq for each in events]
        engine.close()
        assert seqs == sorted({*seqs}), f"kill {number}: one is there twice"
        assert all(each == made(each.seq) for each in events)
        last = max(last, acknowledged, *seqs)
        missing = {*range(1, acknowledged + 1)} - {*seqs}
        for each in map(made, missing):
            assert each.topic == "debug" or (asked is not None and each.client == FORGOTTEN), f"kill {number}: {each}"
    assert asked is not None
    engine = SQLiteEngine(tmp_path, policy=POLICY, retention=kept())
    settle(engine)
    report = orjson.loads((tmp_path / ERASURES / "1.json").read_bytes())
    assert report["up_to_seq"] >= 3000
    sealed = engine._history.chain.last
    events = read_all(engine)
    engine.close()
    expected = [each for each in map(made, range(1, last + 1)) if each.client != FORGOTTEN]
    assert [each for each in events if each.topic != "debug"] == [each for each in expected if each.topic != "debug"]
    assert all(each.seq > sealed for each in events if each.topic == "debug")
    assert FORGOTTEN.encode() not in bytes_of(tmp_path)
    assert not [*tmp_path.glob("segments/*.partial")]


def _killed(directory: Path, seq: int, seconds: float) -> int:
    """Let a process work for so long; the last seq that it has said to be committed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.crash.test_retention", str(directory), str(seq)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    timer = Timer(seconds, process.kill)
    timer.start()
    said = [first, *process.stdout]
    process.wait(PATIENCE)
    process.stdout.close()
    timer.join()
    return int([line for line in said if line.endswith("\n")][-1])


if __name__ == "__main__":
    work(sys.argv[1])

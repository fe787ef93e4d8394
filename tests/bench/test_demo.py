"""The demonstration, as a user runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = 100
LINE = re.compile(r"^ *(published|acknowledged|stored|aggregated|forwarded|duplicates|lost) +([\d,]+) ", re.MULTILINE)


def start(directory: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "bench.demo", "--short"]
    environment = {**os.environ, "TMPDIR": str(directory)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def nodes(text: str) -> list[int]:
    return [int(pid) for pid in re.findall(r"the edge node runs \(pid (\d+)\)", text)]


def runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_over_an_outage_and_a_kill_nothing_is_lost_and_all_counts_agree(tmp_path: Path) -> None:
    with start(tmp_path) as demo:
        text, _ = demo.communicate(timeout=PATIENCE)
    assert demo.returncode == 0, text
    counts = {name: int(number.replace(",", "")) for name, number in LINE.findall(text)}
    assert counts["lost"] == 0
    assert counts["published"] == counts["acknowledged"] > 100
    assert counts["stored"] == counts["aggregated"] == counts["forwarded"] >= counts["acknowledged"]
    assert text.count("  holds  ") == 8
    assert "kill -9" in text
    assert len(nodes(text)) == 2
    assert not any(runs(pid) for pid in nodes(text))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_half_way_it_leaves_no_process_and_no_file(number: signal.Signals, tmp_path: Path) -> None:
    with start(tmp_path) as demo:
        assert demo.stdout is not None
        said = ""
        while "devices publish" not in said:
            said += demo.stdout.readline()
        demo.send_signal(number)
        rest, _ = demo.communicate(timeout=PATIENCE)
    assert demo.returncode == 130
    assert "everything that was started has ended" in rest
    assert len(nodes(said)) == 1
    assert not runs(nodes(said)[0])
    assert list(tmp_path.iterdir()) == []

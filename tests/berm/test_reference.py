from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from berm.reference import main, markdown, toml
from berm.settings import Settings

ROOT = Path(__file__).parents[2]


def test_the_files_in_the_repository_are_up_to_date() -> None:
    command = [sys.executable, "-m", "berm.reference", "--check", "config/berm.toml", "docs/settings.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_stale_file_is_told_and_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "berm.toml"
    path.write_text("# old\n")
    assert main(["--check", str(path)]) == 1
    assert path.read_text() == "# old\n"
    assert "is stale; run: python -m berm.reference" in capsys.readouterr().err
    assert main(["--check", str(tmp_path / "missing.md")]) == 1


def test_what_is_written_is_not_stale(tmp_path: Path) -> None:
    files = [str(tmp_path / "a.toml"), str(tmp_path / "b.md")]
    assert main(files) == 0
    assert main(["--check", *files]) == 0


def test_a_file_of_another_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "berm.txt")])
    assert caught.value.code == 2
    assert "ends neither in .toml nor in .md" in capsys.readouterr().err


def test_the_file_is_toml_and_so_is_each_of_its_examples() -> None:
    lines = toml().splitlines()
    tomllib.loads("\n".join(lines))
    uncommented = [line[1:] if line.startswith("#") and not line.startswith("# ") else line for line in lines]
    raw = tomllib.loads("\n".join(uncommented))
    for key in ("host", "port"):  # what is not allowed beside [[listeners]]
        del raw["mqtt"][key]
    (listener,) = raw["listeners"]
    raw["listeners"] = [
        {key: value for key, value in listener.items() if key not in ("path", "websocket")},
        {"name": "browsers", "type": "websocket", "port": 8083, "websocket": listener["websocket"]},
        {"name": "local", "type": "unix", "path": listener["path"]},
    ]
    settings = Settings.model_validate(raw)
    assert settings.bridges[0].routes[0].topic == "plant/#"
    assert settings.storage.rules[0].durability == "memory"


def test_every_setting_is_on_the_page_with_a_line_of_help() -> None:
    page = markdown()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 30
    assert all(len(row) == 4 and all(cell.strip("| ") for cell in row) for row in rows)

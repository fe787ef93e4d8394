from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path

import orjson

from berm.logs import JournalFormatter, JsonFormatter, TextFormatter, in_journal


def record(level: int = logging.WARNING, failed: bool = False) -> logging.LogRecord:
    """`bridge cloud: no connection`, at a known time, with or without a stack."""
    error = None
    if failed:
        try:
            raise ValueError("first\nsecond")
        except ValueError:
            error = sys.exc_info()
    found = logging.LogRecord("berm.bridge", level, __file__, 1, "bridge %s: no connection", ("cloud",), error)
    found.created = 1.25
    return found


def test_people_get_the_time_in_utc_the_level_and_the_part() -> None:
    assert TextFormatter().format(record()) == "1970-01-01T00:00:01.250Z WARNING bridge: bridge cloud: no connection"


def test_the_journal_gets_a_priority_on_each_line() -> None:
    assert JournalFormatter().format(record(logging.ERROR)) == "<3>bridge: bridge cloud: no connection"
    lines = JournalFormatter().format(record(failed=True)).splitlines()
    assert len(lines) > 3
    assert all(line.startswith("<4>") for line in lines)


def test_programs_get_one_object_on_one_line_stack_included() -> None:
    line = JsonFormatter().format(record(failed=True))
    assert "\n" not in line
    found = orjson.loads(line)
    assert re.search(r"ValueError: first\nsecond$", found.pop("stack"))
    assert found == {
        "time": "1970-01-01T00:00:01.250000Z",
        "level": "warning",
        "logger": "bridge",
        "message": "bridge cloud: no connection",
    }
    assert "stack" not in orjson.loads(JsonFormatter().format(record()))


def test_stderr_is_the_journal_only_where_systemd_names_this_very_file(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("w") as file:
        found = os.fstat(file.fileno())
        assert in_journal(file.fileno(), {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
        assert not in_journal(file.fileno(), {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"})
        assert not in_journal(file.fileno(), {})
    assert not in_journal(10**6, {"JOURNAL_STREAM": "1:2"})

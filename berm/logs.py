"""How log lines look: for people, for the systemd journal, or as JSON for programs. All go to stderr.

| where | a line |
| --- | --- |
| a terminal or a file | `2026-03-01T10:00:00.123Z WARNING bridge: bridge cloud: no connection to ...` |
| the journal, which keeps time and level itself | `<4>bridge: bridge cloud: no connection to ...` |
| `log.format = "json"` | `{"time":"2026-03-01T10:00:00.123456Z","level":"warning","logger":"bridge","message":"..."}` |
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import Final

import orjson

from berm.times import format_time

PREFIX: Final = "berm."
_PRIORITIES: Final = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}
"""syslog's, which the journal reads at the beginning of a line."""


class TextFormatter(logging.Formatter):
    """A line for people; stacks follow on lines of their own."""

    def __init__(self) -> None:
        super().__init__("%(time)s %(levelname)s %(part)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        record.time = f"{format_time(round(record.created * 1e6))[:23]}Z"
        record.part = record.name.removeprefix(PREFIX)
        return super().format(record)


class JournalFormatter(logging.Formatter):
    """A line for the systemd journal; every line of a stack has the record's priority."""

    def __init__(self) -> None:
        super().__init__("%(part)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        record.part = record.name.removeprefix(PREFIX)
        mark = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(mark + line for line in super().format(record).splitlines())


class JsonFormatter(logging.Formatter):
    """One JSON object a line, stacks included."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        line = {
            "time": format_time(round(record.created * 1e6)),
            "level": record.levelname.lower(),
            "logger": record.name.removeprefix(PREFIX),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["stack"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


def in_journal(descriptor: int, environment: Mapping[str, str]) -> bool:
    """Whether systemd has connected this descriptor to its journal; children inherit the variable, not always that."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def configure(level: str, format: str) -> None:
    """Write everything from `level` on to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    if format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(JournalFormatter() if in_journal(2, os.environ) else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())

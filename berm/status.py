"""What a data directory tells about its node, running or stopped: the log, its readers, and how far behind each is."""

from __future__ import annotations

import fcntl
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import orjson

from berm.times import format_time
from storage.interface import CURSORS, META, SESSIONS, Engine, Event
from storage.retention import ROW, Record, summed

LOCK: Final = "berm.lock"
"""The file in the data directory that a running node holds locked, with its process id in it."""
DATABASE: Final = "berm.db"
SHOWN: Final = 5
"""Sessions that are listed, those most behind first."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A place in the log. `behind` is how many sequence numbers are after it: at most that many events wait."""

    name: str
    position: int
    behind: int


@dataclass(frozen=True, slots=True)
class SessionReader:
    """A client's session and its place in the log."""

    client_id: str
    connected: bool
    position: int
    behind: int


@dataclass(frozen=True, slots=True)
class Status:
    """A node, as its data directory shows it. Times are ISO 8601 in UTC, sizes in bytes.

    `pid` is the process that holds the directory, None while none does. `most_behind` are the sessions that are most
    behind, `cursors` the places of processors and bridge routes, and `retention` what was taken from history.
    """

    data: str
    running: bool
    pid: int | None
    node: str | None
    epoch: str | None
    first_seq: int
    last_seq: int
    first_time: str | None
    last_time: str | None
    files: dict[str, int]
    sessions: int
    connected: int
    most_behind: tuple[SessionReader, ...]
    cursors: tuple[Reader, ...]
    retention: Record


def lock_holder(data: Path) -> int | None:
    """The process that holds a data directory: its id, 0 where it hasn't said so, None where none holds it.

    Raises:
        OSError: the lock file can't be opened.
    """
    try:
        file = (data / LOCK).open("rb")
    except FileNotFoundError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = file.read(32).split()
            return int(text[0]) if text and text[0].isdigit() else 0
    return None


def gather(engine: Engine, data: Path) -> Status:
    """Read a node's status out of its data directory.

    Raises:
        StorageError: the log can't be read.
        OSError: the directory can't be read.
    """
    pid = lock_holder(data)
    last = engine.last()
    meta = {str(name): str(value) for name, value in engine.rows(META)}
    first = _first(engine, last)
    sessions = sorted(
        _sessions(engine, last, pid is not None), key=lambda session: (-session.behind, session.client_id)
    )
    return Status(
        data=str(data),
        running=pid is not None,
        pid=pid,
        node=meta.get("node"),
        epoch=meta.get("epoch"),
        first_seq=first.seq if first else 0,
        last_seq=last,
        first_time=format_time(first.ts) if first else None,
        last_time=format_time(engine.last_ts()) if last else None,
        files={file.name: file.stat().st_size for file in sorted(data.glob(f"{DATABASE}*")) if file.is_file()},
        sessions=len(sessions),
        connected=sum(session.connected for session in sessions),
        most_behind=tuple(sessions[:SHOWN]),
        cursors=tuple(
            Reader(str(name), position, max(0, last - position))
            for name, position in engine.rows(CURSORS)
            if isinstance(position, int)
        ),
        retention=summed(meta[ROW[0]]) if ROW[0] in meta else Record(),
    )


def to_json(status: Status) -> bytes:
    """One JSON object, indented."""
    return orjson.dumps(asdict(status), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def to_text(status: Status) -> str:
    """Some aligned lines for people."""
    running = f"running, pid {status.pid}" if status.pid else "running" if status.running else "stopped"
    files = ", ".join(f"{name} {_size(size)}" for name, size in status.files.items())
    if status.last_seq:
        events = f"{status.first_seq:,} to {status.last_seq:,}, {status.first_time} to {status.last_time}"
    else:
        events = "none yet"
    facts = [
        ("node", f"{status.node or 'never started'} ({running})"),
        ("data", status.data),
        ("files", files),
        ("log", events),
        ("sessions", f"{status.sessions:,}, {status.connected:,} connected"),
    ]
    taken = status.retention
    if taken.events:
        facts.append(("retention", f"has taken {taken.events:,} events, {taken.bytes:,} bytes"))
    if taken.losses.events:
        losses = [f"{name} {events:,}" for name, events in taken.losses.cursors.items()]
        if taken.losses.messages:
            losses.append(f"sessions and shared subscriptions {taken.losses.messages:,} at most")
        facts.append(("unread by", f"{', '.join(losses)} of them"))
    parts = [_columns(facts)]
    if status.most_behind:
        header = ("session", "connected", "position", "behind")
        rows = [
            (_plain(each.client_id), "yes" if each.connected else "no", f"{each.position:,}", f"{each.behind:,}")
            for each in status.most_behind
        ]
        parts.append(_columns([header, *rows], numbers=2))
    if status.cursors:
        rows_of_cursors = [(each.name, f"{each.position:,}", f"{each.behind:,}") for each in status.cursors]
        parts.append(_columns([("processor or route", "position", "behind"), *rows_of_cursors], numbers=2))
    return "\n".join(parts)


def _first(engine: Engine, last: int) -> Event | None:
    position = 0
    while position < last:
        events, position = engine.read(position, last, 1, None)
        if events:
            return events[0]
    return None


def _sessions(engine: Engine, last: int, running: bool) -> Iterable[SessionReader]:
    columns = [column.partition(" ")[0] for column in SESSIONS.key + SESSIONS.values]
    client_id, connected, position = (columns.index(name) for name in ("client_id", "connected", "position"))
    for row in engine.rows(SESSIONS):
        place = row[position]
        assert isinstance(place, int)
        # A row says connected for as long as no one has written that the connection ended, so for ever after a crash.
        yield SessionReader(str(row[client_id]), running and bool(row[connected]), place, max(0, last - place))


def _columns(rows: Sequence[tuple[str, ...]], numbers: int = 0) -> str:
    """Rows as aligned lines; the last `numbers` columns are aligned on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = len(widths) - numbers
    return "".join(
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        + "\n"
        for row in rows
    )


def _plain(text: str) -> str:
    """Text that a client has chosen, without what would change the terminal."""
    return "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in text)


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"

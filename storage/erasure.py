"""Erasure: takes what clients have published, or what topics have, out of everything that a data directory holds.

The rules:

1. What is to be erased is asked for by a file in `erasures/`, which lasts until all is done: it is carried out by the
   node that holds the directory, beside its work, and gone on with after a crash. Each step may be done again.
2. All up to one seq is erased: the last that there was when it began. What comes later is not what was meant.
3. A node forgets first what it has of it in memory, and puts a mark into the group in which it does. Once that has
   committed, nothing writes any of it again.
4. In the database rows are deleted, and what is left is written anew, since SQLite leaves copies of rows in the gaps of
   pages when it moves them; free pages are overwritten; then the WAL is copied and cut to nothing. Segments are written
   anew, see rewrite.py, before which all deletions have been fsynced.
5. The report says how much was erased where. Of what was asked for it has hashes only.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Final, Protocol

import orjson

from storage.background import Whole, beside
from storage.catalog import DAMAGED, Stretch
from storage.database import make_directory
from storage.files import sync_directory
from storage.history import History
from storage.interface import (
    META,
    RETAINED,
    SESSIONS,
    STATE,
    SUBSCRIPTIONS,
    WILLS,
    Accepts,
    Event,
    Row,
    StorageError,
    StorageFailed,
    Table,
)
from storage.losses import Compile
from storage.rewrite import Rewriting, Rewritten
from storage.segment_file import SegmentDamaged, SegmentLocked
from storage.tail import Tail
from storage.topics import Topics

if TYPE_CHECKING:
    from storage.segment import Segment
    from storage.values import Opener

ERASURES: Final = "erasures"
"""The directory of requests and reports, in the data directory."""
REQUEST: Final = ".request"
REPORT: Final = ".json"
DEAD: Final = "$dead/"
"""What topics of dead letters begin with. These are JSON, and carry an event of another topic and client."""
MARK: Final = ("erasing",)
"""The row of META that says which request a node has forgotten its memory of, and up to which seq."""
PROGRESS: Final = ("erasure",)
"""The row of META that says how far it has come."""
FREE: Final = "erasing_free_pages"
"""A table that takes all free pages for a moment."""
MOVED: Final = "erasing_moved"
"""The table that is to be the tail."""
LEFT: Final = "erasing_left"
"""The table that was."""
SECOND: Final = 1_000_000
"""µs."""
LOOK: Final = SECOND
"""µs between two looks for requests."""
PAUSE: Final = 60 * SECOND
"""µs to wait after something went wrong."""

_ROWS: Final = 4096
"""Rows of the tail that one step looks at."""
_MOVED_ROWS: Final = 1024
_MOVED_BYTES: Final = 1 << 20
"""Of the tail, that one step moves."""
_TAKEN: Final = 256
"""Events whose payloads one step looks at."""
_PAGES: Final = 256
"""Free pages that one step overwrites."""
_PAGE_HEAD: Final = 4
"""Bytes of a page that are not a value's, where a value fills it."""
_FIRST_PART: Final = 1500
"""Bytes of a value that stand before its full pages: whatever it is, it fits its row's page."""

_PUT: Final = f"INSERT OR REPLACE INTO {META.name} VALUES (?, ?)"
_GET: Final = f"SELECT value FROM {META.name} WHERE name = ?"
_FORGET: Final = f"DELETE FROM {META.name} WHERE name IN (?, ?)"
_NAMES: Final = """SELECT seq, name, client FROM tail JOIN topics ON topics.id = tail.topic
    WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?"""
_SIZES: Final = "SELECT seq, length(payload) + length(properties) FROM {} WHERE seq > ? ORDER BY seq LIMIT ?"
_LAYOUT: Final = "SELECT sql FROM sqlite_schema WHERE name = 'tail'"
_DELETE: Final = "DELETE FROM tail WHERE seq IN (SELECT value FROM json_each(?))"

_SECURE: Final = ("OFF", "ON", "FAST")
"""What SQLite calls the values of its pragma `secure_delete`."""

Steps = Generator[bool, None, None]
"""Each says whether it had to wait for something."""
Share = Callable[[], float]

_logger = logging.getLogger("berm.storage")


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be erased: all of these clients, and all of topics that match these filters."""

    id: str
    """When it was asked for; the name of its file."""
    clients: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()
    reference: str = ""
    """What the operator knows it by; it is in the report."""


class Matcher:
    """Tells what is to be erased. Any thread may ask."""

    __slots__ = ("_accepts", "_judged", "clients")

    _REMEMBERED: Final = 10_000

    def __init__(self, request: Request, compile: Compile) -> None:
        self.clients = frozenset(request.clients)
        self._accepts: Accepts = compile(request.topics) if request.topics else _nothing
        self._judged: dict[str, bool] = {}

    def topic(self, topic: str) -> bool:
        """Whether all of a topic is."""
        found = self._judged.get(topic)
        if found is None:
            if len(self._judged) >= self._REMEMBERED:
                self._judged.clear()
            found = self._judged[topic] = self._accepts(topic)
        return found

    def key(self, key: str) -> bool:
        """Whether a processor's state of this key is: those of clients and topics are."""
        return key in self.clients or self.topic(key)

    def event(self, event: Event) -> bool:
        """Whether an event is: dead letters are where the event is that they carry."""
        if event.client in self.clients or self.topic(event.topic):
            return True
        return event.topic.startswith(DEAD) and self._letter(event.payload)

    def segment(self, segment: Segment) -> bool:
        """Whether anything in a segment may be."""
        if not self.clients.isdisjoint(segment.clients) or sum(segment.topics.values()) < segment.info.header.events:
            return True  # what can't be read may be anybody's
        return any(topic.startswith(DEAD) or self.topic(topic) for topic in segment.topics)

    def row(self, table: Table, row: Row) -> bool:
        """Whether a row of state is, by what it begins with."""
        if table is STATE:
            return self.key(str(row[2]))
        if row[0] in self.clients and table is not RETAINED:
            return True
        if table is RETAINED:
            return row[5] in self.clients or self.topic(str(row[0]))
        return table is WILLS and self.topic(str(row[3]))

    def _letter(self, payload: bytes) -> bool:
        try:
            letter = orjson.loads(payload)
        except ValueError:
            return False
        if not isinstance(letter, dict):
            return False
        client, topic, key = (letter.get(name) for name in ("client", "topic", "key"))
        return (
            client in self.clients
            or (isinstance(topic, str) and self.topic(topic))
            or (isinstance(key, str) and self.key(key))
        )


STATES: Final = (RETAINED, SESSIONS, SUBSCRIPTIONS, WILLS, STATE)
"""Tables in which something may be."""


@dataclass(slots=True)
class Progress:
    """How far an erasure has come."""

    id: str
    upto: int = 0
    """The seq up to which everything is erased."""
    began: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    """Rows and events that were erased, by where they were."""
    rewritten: dict[str, int] = field(default_factory=dict)
    """Events that were taken out of segments, by their names."""
    unread: int = 0
    """Events that could not be read, and are gone with their segments."""
    closed: dict[str, int] = field(default_factory=dict)
    """Segments that can't be opened, and the events in them."""
    replacing: tuple[str, str, int, int] | None = None
    """The segment that is about to be replaced, its id, and the events that go with it."""

    def add(self, place: str, number: int) -> None:
        """So much more was erased there."""
        if number:
            self.counts[place] = self.counts.get(place, 0) + number


class Database(Protocol):
    """What is to be around whatever is done with the connection that commits."""

    def reading(self) -> AbstractContextManager[object]:
        """Errors are explained."""

    def changing(self, size: int, *, sync: bool = False) -> AbstractContextManager[object]:
        """One transaction, of so many bytes; with `sync`, it is fsynced."""

    def cut(self) -> bool:
        """Copy all of the WAL into the database, and cut it to nothing; whether nobody was in the way."""


class Eraser:
    """Carries out what is asked for in one data directory.

    `connection` is the one that commits, `reader` one that nobody uses at the same time. `prepare` is what a node does
    beforehand: it is called with a request and its matcher, and has to commit the mark; None: there is no node.
    """

    def __init__(
        self,
        directory: Path,
        database: Database,
        connection: sqlite3.Connection,
        reader: sqlite3.Connection,
        opener: Opener | None,
        topics: Topics,
        history: History,
        compile: Compile,
        clock: Callable[[], int] = lambda: time_ns() // 1000,
    ) -> None:
        self.prepare: Callable[[Request, Matcher], object] | None = None
        self._directory = directory / ERASURES
        self._database = database
        self._connection = connection
        self._tail = Tail(reader, opener)
        self._reader = reader
        self._topics = topics
        self._history = history
        self._compile = compile
        self._clock = clock
        self._next_look = 0

    def work(self, share: Share) -> Steps | None:
        """What is to be done now, in steps, by the thread that commits. No row that is sealed may be in the tail."""
        now = self._clock()
        if now < self._next_look:
            return None
        self._next_look = now + LOOK
        found = requests(self._directory)
        return self._careful(found[0], share) if found else None

    def _careful(self, path: Path, share: Share) -> Steps:
        try:
            yield from self._erase(path, share)
        except (StorageError, OSError, ValueError) as error:
            self._next_look = self._clock() + PAUSE
            if not isinstance(error, StorageFailed):
                _logger.error("erasure %s: %s; it is gone on with in a minute", path.stem, error)
        else:
            self._next_look = 0

    def _erase(self, path: Path, share: Share) -> Steps:
        request = read_request(path)
        matcher = Matcher(request, self._compile)
        progress = yield from self._begin(request, matcher)
        secure = self._connection.execute("PRAGMA secure_delete").fetchone()[0]
        self._connection.execute("PRAGMA secure_delete=ON")
        try:
            yield from self._erase_rows(matcher, progress)
            yield from self._move_tail()
            yield from self._erase_state(matcher)
            for stretch in self._history.files:
                yield from self._erase_segment(stretch, matcher, progress, share)
            yield from self._overwrite_free_pages()
            yield from self._cut()
        finally:
            self._connection.execute(f"PRAGMA secure_delete={_SECURE[secure]}")
        report = self._report(request, progress)
        yield from beside(Whole(lambda: write(path.with_suffix(REPORT), report)), share)
        with self._database.changing(0, sync=True):
            self._connection.execute(_FORGET, (*MARK, *PROGRESS))
        yield from beside(Whole(lambda: remove(path)), share)
        total = sum(progress.counts.values()) + sum(progress.rewritten.values())
        _logger.info("erasure %s is done: %d events and rows; see %s", request.id, total, path.with_suffix(REPORT))

    # -- the beginning, and how far it has come

    def _begin(self, request: Request, matcher: Matcher) -> Generator[bool, None, Progress]:
        """Where an earlier run was, or a beginning."""
        progress = self._recall(request)
        if progress is None:
            progress = Progress(request.id, began=moment(self._clock()))
            for table in STATES:
                for row in self._rows(table):
                    progress.add(table.name, matcher.row(table, row))
            with self._database.changing(0):
                self._save(progress)
            if self.prepare is not None:
                self.prepare(request, matcher)
        while (upto := self._marked(request)) is None:
            if self.prepare is None:
                with self._database.reading():
                    last = max(Tail(self._connection).last(), self._history.chain.last)
                with self._database.changing(0):
                    self._connection.execute(_PUT, (*MARK, mark(request, last)))
            yield True
        progress.upto = upto
        return progress

    def _recall(self, request: Request) -> Progress | None:
        value = self._meta(PROGRESS)
        if value is None or (found := orjson.loads(value))["id"] != request.id or self._marked(request) is None:
            return None
        progress = Progress(**found)
        if progress.replacing is not None:
            name, id, removed, unread = progress.replacing
            if not any(file.path.name == name and file.id.hex() == id for file in self._history.files):
                progress.rewritten[name] = progress.rewritten.get(name, 0) + removed
                progress.unread += unread
            progress.replacing = None
        return progress

    def _marked(self, request: Request) -> int | None:
        """Up to which seq a node has forgotten what it had in memory; None: not yet."""
        id, _, upto = (self._meta(MARK) or "").partition(" ")
        return int(upto) if id == request.id else None

    def _meta(self, key: tuple[str]) -> str | None:
        with self._database.reading():
            row = self._connection.execute(_GET, key).fetchone()
        return None if row is None else str(row[0])

    def _save(self, progress: Progress) -> None:
        self._connection.execute(_PUT, (*PROGRESS, orjson.dumps(asdict(progress)).decode()))

    # -- the database

    def _erase_rows(self, matcher: Matcher, progress: Progress) -> Steps:
        """Of the tail."""
        after = 0
        while True:
            with self._database.reading():
                rows = self._connection.execute(_NAMES, (after, progress.upto, _ROWS)).fetchall()
            if not rows:
                break
            after = rows[-1][0]
            gone = [seq for seq, topic, client in rows if client in matcher.clients or matcher.topic(topic)]
            letters = [seq for seq, topic, _ in rows if topic.startswith(DEAD)]
            for at in range(0, len(letters), _TAKEN):
                with self._database.reading():
                    events = self._tail.get(letters[at : at + _TAKEN])
                gone += [event.seq for event in events if matcher.event(event)]
                yield False
            for seqs in _parts(sorted({*gone}), _TAKEN):
                progress.add("tail", len(seqs))
                with self._database.changing(len(seqs) * 4096):
                    self._connection.execute(_DELETE, (json.dumps(seqs),))
                    self._save(progress)
                yield False
            yield False
        for _ in self._topics.sweep(self._database.reading, lambda: self._database.changing(0)):
            yield False

    def _move_tail(self) -> Steps:
        """Move all rows to another table, which then takes the tail's name."""
        connection = self._connection
        connection.execute("PRAGMA secure_delete=FAST")  # what is set free is overwritten in the end
        yield from self._drop(MOVED)  # of an earlier run
        yield from self._drop(LEFT)
        with self._database.reading():
            layout: str = connection.execute(_LAYOUT).fetchone()[0]
        with self._database.changing(0):
            connection.execute(f"CREATE TABLE {MOVED} {layout[layout.index('(') :]}")
        after = 0
        while True:
            upto, size, last = self._stretch("tail", after)
            with self._database.changing(size):
                connection.execute(f"INSERT INTO {MOVED} SELECT * FROM tail WHERE seq > ? AND seq <= ?", (after, upto))
                if last:
                    connection.execute("PRAGMA legacy_alter_table=ON")  # the view is of what is called so
                    connection.execute(f"ALTER TABLE tail RENAME TO {LEFT}")
                    connection.execute(f"ALTER TABLE {MOVED} RENAME TO tail")
                    connection.execute("PRAGMA legacy_alter_table=OFF")
            if last:
                break
            after = upto
            yield False
        yield from self._drop(LEFT)
        connection.execute("PRAGMA secure_delete=ON")

    def _stretch(self, table: str, after: int) -> tuple[int, int, bool]:
        """The next rows of a table of events: the last of their seqs, their bytes, and whether they are all."""
        with self._database.reading():
            rows = self._connection.execute(_SIZES.format(table), (after, _MOVED_ROWS)).fetchall()
        size = 0
        for seq, length in rows:
            after = seq
            size += length
            if size >= _MOVED_BYTES:
                break
        return after, size, len(rows) < _MOVED_ROWS and (not rows or after == rows[-1][0])

    def _drop(self, table: str) -> Steps:
        """Drop a table of events, row by row, where there is one."""
        with self._database.reading():
            found = self._connection.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
        last = found is None
        while not last:
            upto, size, last = self._stretch(table, 0)
            with self._database.changing(size):
                self._connection.execute(f"DELETE FROM {table} WHERE seq <= ?", (upto,))
                if last:
                    self._connection.execute(f"DROP TABLE {table}")
            yield False

    def _erase_state(self, matcher: Matcher) -> Steps:
        """Write the tables anew: what SQLite has moved within a page may be there twice."""
        for table in STATES:
            rows = [row for row in self._rows(table) if not matcher.row(table, row)]
            self._rewrite(table.name, rows)
            yield False
        with self._database.reading():
            names = self._connection.execute("SELECT id, name FROM topics").fetchall()
        self._rewrite("topics", names)
        yield False

    def _rows(self, table: Table) -> list[Row]:
        with self._database.reading():
            return self._connection.execute(f"SELECT * FROM {table.name}").fetchall()

    def _rewrite(self, name: str, rows: list[Row]) -> None:
        with self._database.changing(2 * sum(map(_size, rows))):
            self._connection.execute(f"DELETE FROM {name}")
            if rows:
                places = ", ".join("?" * len(rows[0]))
                self._connection.executemany(f"INSERT INTO {name} VALUES ({places})", rows)

    def _overwrite_free_pages(self) -> Steps:
        """Have a table take all of them, and set them free again."""
        page: int = self._connection.execute("PRAGMA page_size").fetchone()[0]
        with self._database.changing(0):
            self._connection.execute(f"CREATE TABLE IF NOT EXISTS {FREE} (content BLOB)")
        while True:
            with self._database.reading():
                free: int = self._connection.execute("PRAGMA freelist_count").fetchone()[0]
            if not free:
                break
            pages = min(free, _PAGES)
            with self._database.changing(pages * page):
                size = pages * (page - _PAGE_HEAD) + _FIRST_PART
                self._connection.execute(f"INSERT INTO {FREE} VALUES (zeroblob(?))", (size,))
            yield False
        self._connection.execute("PRAGMA secure_delete=FAST")  # they are overwritten already
        while True:
            with self._database.changing(_PAGES * 64):
                row = self._connection.execute(f"SELECT min(rowid) FROM {FREE}").fetchone()
                if row[0] is None:
                    self._connection.execute(f"DROP TABLE {FREE}")
                    return
                self._connection.execute(f"DELETE FROM {FREE} WHERE rowid = ?", row)
            yield False

    def _cut(self) -> Steps:
        """Leave nothing in the WAL. As long as another program reads from it, that has to wait."""
        again = 0
        while (now := self._clock()) < again or not self._database.cut():
            again = max(again, now + SECOND)
            yield True

    # -- segments

    def _erase_segment(self, stretch: Stretch, matcher: Matcher, progress: Progress, share: Share) -> Steps:
        try:
            concerned = yield from beside(Whole(lambda: self._concerned(stretch, matcher)), share)
        except (SegmentLocked, SegmentDamaged):
            progress.closed[stretch.path.name] = stretch.events
            return
        if not concerned:
            return
        upto = progress.upto
        rewriting = Rewriting(
            self._history, stretch, lambda event: event.seq <= upto and matcher.event(event), self._history.data_key
        )
        rewritten = yield from beside(rewriting, share)
        if not rewritten.removed and not rewritten.unread:
            return  # the next one takes its place, or the next start removes it
        yield from self._replace(rewritten, progress, share)

    def _concerned(self, stretch: Stretch, matcher: Matcher) -> bool:
        with self._history.examine(stretch) as segment:
            return matcher.segment(segment)

    def _replace(self, rewritten: Rewritten, progress: Progress, share: Share) -> Steps:
        stretch = rewritten.stretch
        name = stretch.path.name
        progress.replacing = (name, stretch.id.hex(), rewritten.removed, rewritten.unread)
        with self._database.changing(0, sync=True):
            self._save(progress)
        yield from rewritten.replace(self._history, share)
        progress.replacing = None
        progress.rewritten[name] = progress.rewritten.get(name, 0) + rewritten.removed
        progress.unread += rewritten.unread
        with self._database.changing(0):
            self._save(progress)

    # -- the end

    def _report(self, request: Request, progress: Progress) -> bytes:
        data = self._directory.parent
        aside = sorted(
            str(path.relative_to(data)) for path in (*data.glob("*.damaged-*"), *data.glob(f"*/*{DAMAGED}*"))
        )
        return orjson.dumps(
            {
                "id": request.id,
                "reference": request.reference,
                "clients_sha256": hashes(request.clients),
                "topics_sha256": hashes(request.topics),
                "began": progress.began,
                "done": moment(self._clock()),
                "up_to_seq": progress.upto,
                "rows": dict(sorted(progress.counts.items())),
                "events_in_segments": sum(progress.rewritten.values()),
                "segments": dict(sorted(progress.rewritten.items())),
                "unreadable_events_dropped": progress.unread,
                "not_looked_into": [*progress.closed, *aside],
            },
            option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
        )


# -- requests and reports


def ask(data: Path, request: Request) -> Path:
    """Ask for an erasure in a data directory, and make that last; the file of the request.

    Raises:
        OSError: it can't be written.
    """
    path = data / ERASURES / f"{request.id}{REQUEST}"
    make_directory(path.parent)
    write(path, orjson.dumps(asdict(request)))
    return path


def requests(directory: Path) -> list[Path]:
    """Those that are not done, in their order."""
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    return [directory / name for name in sorted(names) if name.endswith(REQUEST)]


def read_request(path: Path) -> Request:
    """What is asked for.

    Raises:
        OSError: it can't be read.
        ValueError: it is no request.
    """
    found = orjson.loads(path.read_bytes())
    try:
        return Request(path.stem, tuple(found["clients"]), tuple(found["topics"]), str(found["reference"]))
    except (KeyError, TypeError):
        raise ValueError(f"{path} is no request; remove it") from None


def mark(request: Request, upto: int) -> str:
    """The value of the row MARK."""
    return f"{request.id} {upto}"


def moment(ts: int) -> str:
    """µs since the epoch, as text."""
    return datetime.fromtimestamp(ts / SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def hashes(texts: Iterable[str]) -> list[str]:
    """SHA-256 of each, in hexadecimal."""
    return [sha256(text.encode()).hexdigest() for text in texts]


def write(path: Path, content: bytes) -> bool:
    """Write a file that is there whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    partial.rename(path)
    sync_directory(path.parent)
    return True


def remove(path: Path) -> bool:
    """Remove a request, overwritten, and what is left of its writing."""
    for each in (path, path.with_name(f"{path.name}.partial")):
        with suppress(FileNotFoundError):
            each.unlink()
    sync_directory(path.parent)
    return True


def count(rows: Callable[[Table], list[Row]], events: Iterable[Event], matcher: Matcher) -> Counter[str]:
    """How much there is to erase, by where it is."""
    found: Counter[str] = Counter()
    for table in STATES:
        found[table.name] += sum(matcher.row(table, row) for row in rows(table))
    found["events"] = sum(map(matcher.event, events))
    return +found


def _parts(seqs: list[int], size: int) -> Iterable[list[int]]:
    return (seqs[at : at + size] for at in range(0, len(seqs), size))


def _size(row: Row) -> int:
    return sum(len(value) if isinstance(value, str | bytes) else 8 for value in row)


def _nothing(topic: str) -> bool:
    return False

"""The data directory and the database file in it: held by one node, opened, brought up to date, and never in the way.

The rules:

1. A node holds its directory by a lock on `berm.lock`; the system gives it back however the process ends.
2. Whether a database is damaged is found out by reading it only. What can be read of a damaged one is put into a new
   one (see salvage.py), and then it is set aside whole, with its WAL: not a byte of it is changed.
3. A start looks at the ends of the database, which takes no longer for a longer log, and at the rest for as long as it
   may. Every page is examined, however long that takes, only after SQLite has reported damage; `berm.db.suspect` stands
   there from then until that has been done.
4. A database of an earlier Berm is brought up to date once it has been found sound, and in one transaction. One of a
   newer Berm is not touched.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from time import monotonic, sleep, time
from typing import Final

from storage import schema
from storage.files import sync_directory
from storage.interface import StorageError
from storage.keysource import is_encrypted
from storage.pages import WAL_HEADER, WAL_MAGIC, summed

DATABASE: Final = "berm.db"
LOCK: Final = "berm.lock"
"""Held locked by the node that runs on the directory, with its process id in it."""
LOCK_ATTEMPTS: Final = 10
LOCK_PAUSE: Final = 0.02
"""Seconds between two attempts."""
SUSPECT: Final = "berm.db.suspect"
"""Stands there after SQLite has reported damage: the next start examines every page."""

PAGE_BYTES: Final = 4096
SALVAGED: Final = "berm.db.salvaged"
"""A complete database, made of a damaged one, that has yet to take its place."""
CHECK_SECONDS: Final = 1.0
"""How long a start may look for damage."""

WAL_BYTES: Final = 32 << 20
"""What the WAL file is cut back to, where a burst has made it longer."""
BUSY_SECONDS: Final = 5.0
"""How long to wait where another program holds the database."""

_STATEMENTS_KEPT: Final = 256
"""Prepared statements that a connection keeps: more than there are."""
MOST_FLAGS: Final = {False: 31, True: 63}
"""The highest flags that a row of the tail can have, by whether it may be encrypted."""
_LOOK_ROWS: Final = 4096
_LOOK: Final = """SELECT count(*),
        count(name) - total(flags & 3 = 3 OR flags >> 3 & 3 NOT IN (1, 2) OR flags NOT BETWEEN 0 AND ?),
        max(seq), sum(length(payload || properties || client || ts))
    FROM (SELECT * FROM tail WHERE seq > ? ORDER BY seq LIMIT ?) LEFT JOIN topics ON topics.id = topic"""
"""Reads each byte of so many rows, and counts those that an event can have."""

_logger = logging.getLogger("berm.storage")

_DAMAGE: Final = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR))
"""Errors that a sound file doesn't give; the last means that a table or a column isn't there."""


def hold(directory: Path) -> int:
    """Make the directory where there is none, and hold it for this process; the descriptor that does.

    Raises:
        OSError: it can't be made or written.
        StorageError: another process holds it.
    """
    make_directory(directory)
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        held = _lock(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    if not held:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise StorageError(
            f"the data directory {directory} is in use by the node with process id {holder or 'unknown'}; "
            "stop that one, or set storage.path to another directory"
        )
    with suppress(OSError):  # a full disk: the lock holds all the same
        os.ftruncate(descriptor, os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0))
    return descriptor


def _lock(descriptor: int) -> bool:
    """Take the lock; False: another process keeps it. One that only asks who holds it has it for a moment."""
    for _ in range(LOCK_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sleep(LOCK_PAUSE)
        else:
            return True
    return False


def open_writer(directory: Path, check_seconds: float = CHECK_SECONDS) -> tuple[sqlite3.Connection, Path | None]:
    """A connection to a sound database, and where a damaged one has been set aside (None: there was none).

    Raises:
        OSError: a file can't be renamed or removed, or there is no room for what can be read of a damaged one.
        sqlite3.Error: the database can't be opened, though it isn't damaged.
        StorageError: it is a newer Berm's, can't be brought up to date, or can't be used on this file system.
    """
    path = directory / DATABASE
    suspect = directory / SUSPECT
    moved = finish_replacing(path)
    if not _sound(path, every_page=suspect.exists(), seconds=check_seconds):
        moved = _replace(path)
    suspect.unlink(missing_ok=True)
    try:
        return _open_current(path), moved
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
    moved = _replace(path)
    return _open_current(path), moved


def replace(path: Path) -> tuple[Path, list[str], list[tuple[int, int]]]:
    """Put what can be read of a damaged database in its place.

    Where that one is now, what is to be told, and which seqs are lost.

    Raises:
        OSError, sqlite3.Error: there is no room, or a file can't be renamed.
    """
    from storage.salvage import describe, salvage  # few starts need it

    salvaged = salvaged_of(path)
    partial = salvaged.with_name(f"{salvaged.name}.partial")
    lines: list[str] = []
    lost: list[tuple[int, int]] = []
    try:
        found = salvage(path, partial)
        lines, lost = describe(found), found.lost
    except (OSError, sqlite3.OperationalError):
        raise  # there is no room, or the disk fails: what can be read must not be left behind for that
    except Exception:  # whatever stands there, the node starts
        _logger.exception("nothing could be read of %s, in a way that nobody has thought of", path)
    else:
        partial.rename(salvaged)
        sync_directory(path.parent)
    return _replace_now(path), lines, lost


def _replace(path: Path) -> Path:
    """The same at a start."""
    _logger.error("%s is damaged; reading from it what can be read", path)
    moved, lines, _ = replace(path)
    for line in lines:
        _logger.error("%s: %s", moved, line)
    return moved


def _replace_now(path: Path) -> Path:
    """Rename the damaged database, and then the new one: killed between, the next start does the rest."""
    moved = _set_aside(path)
    if salvaged_of(path).exists():
        salvaged_of(path).rename(path)
        sync_directory(path.parent)
    return moved


def finish_replacing(path: Path) -> Path | None:
    """Do what is left to be done of a replacement that was cut short; where the damaged database is now."""
    return _replace_now(path) if salvaged_of(path).exists() and not path.exists() else None


def salvaged_of(path: Path) -> Path:
    """What has yet to take a database's place."""
    return path.with_name(SALVAGED)


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection that can't change anything, nor checkpoint. An earlier version looks to it like this one.

    Raises:
        sqlite3.Error: the database can't be opened.
        StorageError: there is no log in it, or that of a newer Berm.
    """
    connection = _open(path, "ro")
    try:
        version = _version(connection, path)
        if version == 0:
            raise StorageError(f"{path} holds no log yet; start the node on it first")
        schema.show(connection, version)
        connection.execute("PRAGMA query_only=ON")
    except BaseException:
        connection.close()
        raise
    return connection


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error means that the file doesn't hold what was written to it."""
    # Text that isn't UTF-8 is found by the interpreter's module, which gives no code.
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    return code & 0xFF in _DAMAGE


def _wal_of(path: Path) -> Path:
    """The write-ahead log that belongs to a database."""
    return Path(f"{path}-wal")


def _open(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=_STATEMENTS_KEPT,
    )


def _open_current(path: Path) -> sqlite3.Connection:
    """A writing connection, with the schema made where there is none, and brought up to date where it is older."""
    new = not path.exists() or not path.stat().st_size
    connection = _open(path, "rwc")
    try:
        if new:  # it can't be changed later, and asking for it takes room
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise StorageError(
                f"{path} is on a file system that can't share memory between processes, which SQLite's WAL needs; "
                "set storage.path to a directory on a local disk"
            )
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute(f"PRAGMA journal_size_limit={WAL_BYTES}")
        # Some builds overwrite each page that deleting rows sets free: that would write the whole log twice.
        connection.execute("PRAGMA secure_delete=FAST")
        version = _version(connection, path)
        if version == 0:
            schema.create(connection)
        elif version < schema.VERSION:
            _migrate(connection, path, version)
    except BaseException:
        connection.close()
        raise
    return connection


def _version(connection: sqlite3.Connection, path: Path) -> int:
    """The version of a database's schema; 0 for a database with nothing in it.

    Raises:
        sqlite3.Error: it can't be read, or is none.
        StorageError: it is newer than this Berm.
    """
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version < 0:
        raise sqlite3.DatabaseError(f"there is no schema {version}")
    if version > schema.VERSION:
        raise StorageError(
            f"{path} was written by a newer Berm (schema {version}, this one knows {schema.VERSION}); "
            "install that version, or set storage.path to another directory"
        )
    return version


def _migrate(connection: sqlite3.Connection, path: Path, version: int) -> None:
    """Bring a sound database up to date.

    Raises:
        sqlite3.Error: it can't be read or written.
        StorageError: there is something in it that is in the way.
    """
    try:
        schema.migrate(connection, version)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise
        raise StorageError(
            f"bringing {path} from schema {version} to {schema.VERSION}: {error}; nothing was changed; take out of it "
            "what Berm did not make, or set storage.path to another directory"
        ) from error
    _logger.info("brought %s from schema %d to %d", path, version, schema.VERSION)


def is_sound(path: Path) -> bool:
    """Whether every page of a database, and its WAL, is as it must be; one that is not there is.

    Raises:
        StorageError: it is newer than this Berm.
    """
    return _sound(path, every_page=True, seconds=0)


def _sound(path: Path, *, every_page: bool, seconds: float) -> bool:
    """Whether a database can be opened and be read: the ends of its log, and the rest as far as that takes no longer.

    With `every_page`, all of it is examined.

    Raises:
        StorageError: it is newer than this Berm.
    """
    wal = _wal_of(path)
    if not path.exists() or path.stat().st_size == 0:
        # SQLite removes the WAL of an empty database, and whatever was acknowledged with it.
        return not wal.exists() or wal.stat().st_size == 0
    if not _sound_wal(wal):
        return False
    try:
        with closing(_open(path, "ro")) as connection:
            version = _version(connection, path)
            if version == 0:
                return connection.execute("SELECT * FROM sqlite_schema").fetchone() is None
            _read_ends(connection, schema.LAYOUTS[version])
            if every_page:
                return examine(connection, schema.LAYOUTS[version])
            return look_through(connection, schema.LAYOUTS[version], seconds, is_encrypted(path.parent)) is not False
    except sqlite3.DatabaseError as error:
        return not is_damage(error)


def _sound_wal(wal: Path) -> bool:
    """Whether a WAL that holds anything begins as one: its header is fsynced before anything is written behind it."""
    if not wal.exists() or wal.stat().st_size <= WAL_HEADER.size:
        return True
    with wal.open("rb") as file:
        header = file.read(WAL_HEADER.size)
    magic, *_, first, second = WAL_HEADER.unpack(header)
    return magic in WAL_MAGIC and summed(header[:24], (0, 0), WAL_MAGIC[magic]) == (first, second)


def _read_ends(connection: sqlite3.Connection, layout: schema.Layout) -> None:
    for order in ("ASC", "DESC"):
        connection.execute(f"SELECT * FROM events ORDER BY seq {order} LIMIT 100").fetchall()
    for name, columns in layout.items():
        if name not in ("tail", "topics"):  # `events` shows them
            connection.execute(f"SELECT {_names(columns)} FROM {name} LIMIT 100").fetchall()


def look_through(connection: sqlite3.Connection, layout: schema.Layout, seconds: float, encrypted: bool) -> bool | None:
    """Read state, then the rows of the tail; whether they are as they must be, None where there was no time for all.

    Raises:
        sqlite3.Error: they can't be read.
    """
    until = monotonic() + seconds
    # A check of one table can't be broken off.
    for name in sorted(layout.keys() - {"tail"}):
        if monotonic() >= until:
            return None
        if connection.execute(f"PRAGMA integrity_check({name})").fetchone() != ("ok",):
            return False
    began, after, rows = monotonic(), 0, _LOOK_ROWS
    while rows == _LOOK_ROWS:
        if monotonic() >= until:
            return None
        rows, sound, last, _ = connection.execute(_LOOK, (MOST_FLAGS[encrypted], after, _LOOK_ROWS)).fetchone()
        if sound != rows:
            return False
        after = last
    now = monotonic()
    if now + 2 * (now - began) >= until:
        return None
    found: bool = connection.execute("PRAGMA quick_check(tail)").fetchone() == ("ok",)
    return found


def examine(connection: sqlite3.Connection, layout: schema.Layout) -> bool:
    """Whether every page, every name of a topic and all text is as it must be."""
    if connection.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
        return False
    if connection.execute("SELECT count(*) FROM tail WHERE topic NOT IN (SELECT id FROM topics)").fetchone() != (0,):
        return False
    for name, columns in layout.items():
        wrong = " OR ".join(
            f"typeof({column}) NOT IN ('{kind.lower()}', 'null')" for column, kind in map(str.split, columns)
        )
        if connection.execute(f"SELECT count(*) FROM {name} WHERE {wrong}").fetchone() != (0,):
            return False
    texts = ["SELECT DISTINCT client FROM tail"]
    texts += [f"SELECT {_names(columns)} FROM {name}" for name, columns in layout.items() if name != "tail"]
    for query in texts:
        for _ in connection.execute(query):
            pass  # its text could be decoded
    return True


def _names(columns: tuple[str, ...]) -> str:
    return ", ".join(column.partition(" ")[0] for column in columns)


def _set_aside(path: Path) -> Path:
    """Rename a database, with what belongs to it, to a name that nothing has; the new one."""
    stamp = int(time())
    while (moved := Path(f"{path}.damaged-{stamp}")).exists() or _wal_of(moved).exists():
        stamp += 1
    for suffix in ("", "-wal", "-journal"):
        part = Path(f"{path}{suffix}")
        if part.exists():
            part.rename(f"{moved}{suffix}")
    Path(f"{path}-shm").unlink(missing_ok=True)  # an index of the WAL that SQLite makes anew
    sync_directory(path.parent)
    return moved


def make_directory(directory: Path) -> None:
    """Make it, readable for its user and group, and make that last."""
    if directory.is_dir():
        return
    if not directory.parent.is_dir():
        make_directory(directory.parent)
    try:
        directory.mkdir(0o750)
    except FileExistsError:
        if not directory.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory)) from None
    sync_directory(directory.parent)

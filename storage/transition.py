"""From a database that is not encrypted to one that is; and what tells that it is, where its keys are gone.

The rules:

1. A row of `meta` says that a database is encrypted. It is written together with all rows of state, encrypted; until
   then nothing was, and the next start begins anew.
2. Rows of the tail are left as they are: sealing takes them away. Up to which seq there may be any is in another row of
   `meta`; while it is there, what is deleted is overwritten, too.
3. What the database has set free before is overwritten before anything else is done, and the WAL is cut to nothing
   after it. So no page holds what it once held, but for rows that are still there.
4. Where there are no keys, and something is encrypted, no new keys are made: it would seem as if all was well.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from storage.database import DATABASE, open_reader
from storage.interface import META, TABLES, Row, StorageError, Table
from storage.keysource import COPY, KEYS, KeysError
from storage.segment_format import HEADER_BYTES, Damaged, Header

if TYPE_CHECKING:
    from storage.values import Cipher, Opener

ENCRYPTED: Final = "encrypted"
"""The row of META that says that a database is encrypted, and by which it is known with which keys."""
LOST: Final = "lost"
"""What that row says where what it said was on a page that was damaged."""
PLAIN: Final = "plain"
"""The row of META that says up to which seq there may be rows of the tail that aren't."""
OWN: Final = frozenset((ENCRYPTED, PLAIN))
"""Rows of META that are nobody else's."""
OVERWRITING: Final = "overwriting"
"""A table that takes all free pages for a moment."""
OVERWRITTEN_PAGES: Final = 1024
"""Free pages that one transaction overwrites."""

_HEAD: Final = 8
"""Bytes of a page that are not a value's, where a value fills it; and a few more."""
_ROW: Final = 300
"""What the first page of a value must have beside it."""

_logger = logging.getLogger("berm.storage")


def need_no_keys(directory: Path) -> None:
    """Make sure that a directory without keys needs none.

    Raises:
        KeysError: something in it is encrypted.
    """
    if _database_is(directory) or _a_segment_is(directory):
        raise KeysError(
            f"{directory} is encrypted, and its keys ({KEYS}, and {COPY}) are gone; nothing was changed; restore one "
            "of these files from a backup: without it nothing can be decrypted"
        )


def check(connection: sqlite3.Connection, opener: Opener | None, directory: Path) -> bool:
    """See whether a database is encrypted, and whether these keys are its own.

    Raises:
        KeysError: it is, and there are no keys, or those of another one.
    """
    check = _meta(connection, ENCRYPTED)
    if check is None:
        return False
    if opener is None:
        raise KeysError(f"{directory} is encrypted; nothing was changed; say in encryption.key where the key is")
    opener.verify(check)
    plain = _meta(connection, PLAIN)
    opener.plain_upto = int(plain) if plain is not None and plain.isdecimal() else 0
    return True


def encrypt(connection: sqlite3.Connection, cipher: Cipher, directory: Path) -> None:
    """Make sure that a database is encrypted, but for rows of the tail that sealing will take away.

    The connection is the only one that writes, and nobody reads.

    Raises:
        KeysError: the database is encrypted with keys of another one.
    """
    if not check(connection, cipher, directory):
        _begin(connection, cipher, directory)
    elif not cipher.is_current(_meta(connection, ENCRYPTED)):
        _put(connection, ENCRYPTED, cipher.check())
    if _meta(connection, PLAIN) is not None:
        connection.execute("PRAGMA secure_delete=ON")
        _end(connection, cipher)


def _begin(connection: sqlite3.Connection, cipher: Cipher, directory: Path) -> None:
    last: int = connection.execute("SELECT ifnull(max(seq), 0) FROM tail").fetchone()[0]
    connection.execute("PRAGMA secure_delete=ON")
    _overwrite_free_pages(connection)
    connection.execute("BEGIN IMMEDIATE")
    for table in TABLES:
        _rewrite(connection, cipher, table)
    _put(connection, ENCRYPTED, cipher.check())
    _put(connection, PLAIN, str(last))
    connection.execute("COMMIT")
    cipher.plain_upto = last
    _logger.info(
        "encryption of %s begins with data key %d%s",
        directory,
        cipher.data_key.number,
        "; what is older than this is readable without a key until it is sealed or dropped" if last else "",
    )


def _end(connection: sqlite3.Connection, cipher: Cipher) -> None:
    """Leave nothing of before in the WAL; once no row of before is left, nothing more is to be overwritten."""
    blocked = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    left = connection.execute("SELECT 1 FROM tail WHERE seq <= ? LIMIT 1", (cipher.plain_upto,)).fetchone()
    if not blocked and left is None:
        connection.execute(f"DELETE FROM {META.name} WHERE name = ?", (PLAIN,))
        connection.execute("PRAGMA secure_delete=FAST")
        cipher.plain_upto = 0


def _rewrite(connection: sqlite3.Connection, cipher: Cipher, table: Table) -> None:
    """Write every row of a table of state anew, encrypted; all pages that it has had are overwritten.

    One that is encrypted already, since the row of META that says so has been lost, stays as it is.
    """
    rows: list[Row] = connection.execute(f"SELECT * FROM {table.name}").fetchall()
    keys = len(table.key)
    kept = {row[:keys]: row[keys:] for row in rows if cipher.is_sealed(table, row)}
    plain: dict[Row, Row | None] = {row[:keys]: row[keys:] for row in rows if row[:keys] not in kept}
    sealed = cipher.seal_rows(table, plain)
    if sealed is plain or not plain:
        return
    sealed = {**kept, **sealed}
    connection.execute(f"DELETE FROM {table.name}")
    places = ", ".join("?" * len(rows[0]))
    connection.executemany(
        f"INSERT INTO {table.name} VALUES ({places})",
        [key + values for key, values in sealed.items() if values is not None],
    )


def _overwrite_free_pages(connection: sqlite3.Connection) -> None:
    """Have a table take all of them, and set them free again."""
    connection.execute(f"DROP TABLE IF EXISTS {OVERWRITING}")
    if not _number(connection, "freelist_count"):
        return
    page = _number(connection, "page_size")
    connection.execute(f"CREATE TABLE {OVERWRITING} (content BLOB)")
    while free := _number(connection, "freelist_count"):
        size = min(free, OVERWRITTEN_PAGES) * (page - _HEAD) - _ROW
        connection.execute(f"INSERT INTO {OVERWRITING} VALUES (zeroblob(?))", (size,))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute("PRAGMA secure_delete=FAST")  # they are overwritten already
    connection.execute(f"DROP TABLE {OVERWRITING}")
    connection.execute("PRAGMA secure_delete=ON")


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    number: int = connection.execute(f"PRAGMA {pragma}").fetchone()[0]
    return number


def _meta(connection: sqlite3.Connection, name: str) -> str | None:
    row = connection.execute(f"SELECT value FROM {META.name} WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def _put(connection: sqlite3.Connection, name: str, value: str) -> None:
    connection.execute(f"INSERT OR REPLACE INTO {META.name} VALUES (?, ?)", (name, value))


def _database_is(directory: Path) -> bool:
    with suppress(sqlite3.Error, StorageError), closing(open_reader(directory / DATABASE)) as connection:
        return _meta(connection, ENCRYPTED) is not None
    return False


def _a_segment_is(directory: Path) -> bool:
    for path in directory.rglob("*.segment"):
        with suppress(OSError, Damaged), path.open("rb") as file:
            if Header.unpack(file.read(HEADER_BYTES)).key:
                return True
    return False

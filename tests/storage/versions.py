"""Databases of earlier versions, as nodes of their time have left them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from storage.database import DATABASE

DUMPS: Final = {1: Path(__file__).with_name("version1.sql")}
"""What their databases held, in SQL, by version."""


def put(directory: Path, version: int, *more: str, killed: bool = True) -> Path:
    """A data directory with a database of that version in it, after `more` statements; the database's path.

    With `killed` all is in the WAL, otherwise in the database.
    """
    made = directory / "made" / DATABASE
    made.parent.mkdir(parents=True)
    path = directory / DATABASE
    wal = Path(f"{path}-wal")
    with closing(sqlite3.connect(made)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA wal_autocheckpoint=0")
        database.executescript(DUMPS[version].read_text(encoding="utf-8"))
        for statement in more:
            database.execute(statement)
        database.commit()
        if killed:
            path.write_bytes(made.read_bytes())
            wal.write_bytes(Path(f"{made}-wal").read_bytes())
    if not killed:
        path.write_bytes(made.read_bytes())
    made.unlink()
    made.parent.rmdir()
    return path

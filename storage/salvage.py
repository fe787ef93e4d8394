"""Makes a sound database of a damaged one: all rows that can be read, page by page, whatever is wrong with the others.

The rules:

1. The damaged database is read only. The new one is made beside it, and fsynced, before either is renamed.
2. Trees are followed from their roots. What lies below a page that is damaged is found among all pages, by the shape of
   its rows: the columns of every table are known, and no two have the same.
3. Of two rows with the same key the one that was reached in its tree, and lies within the bounds that the page above it
   says, counts first. So what is wrong on one page is not put in the place of what is right on another.
4. Pages that are not in use may hold rows that were deleted. They are looked at only where it can't be told that they
   are not in use.
5. Where seqs may have been given out that no row tells of any more, the log goes on far above.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from storage import schema
from storage.catalog import DIRECTORY, seqs_in
from storage.database import MOST_FLAGS
from storage.files import sync_file
from storage.interface import CURSORS, META, RETAINED, SESSIONS, SHARES, TABLES, Row
from storage.keysource import is_encrypted
from storage.pages import INTERIOR, LEAF, Cell, Pages, Unreadable
from storage.segment_rebuild import Range, missing
from storage.snapshot import new_database
from storage.transition import ENCRYPTED, LOST

_BATCH: Final = 1024
_SHOWN: Final = 8
"""Ranges that a line names."""
_AHEAD: Final = 1 << 20
"""Seqs that are left out where it isn't known how many were given out."""
_LARGEST: Final = (1 << 63) - 1
_KEYS: Final = {table.name: len(table.key) for table in TABLES}
_POSITIONS: Final = ((SESSIONS, "position"), (SHARES, "position"), (CURSORS, "position"), (RETAINED, "seq"))


@dataclass(slots=True)
class Salvaged:
    """What came of it."""

    rows: dict[str, int] = field(default_factory=dict)
    """How many were read, by table."""
    pages: int = 0
    """Pages that are damaged."""
    bad: dict[str, int] = field(default_factory=dict)
    """By table, places where rows are lost that stood on a damaged page."""
    lost: list[Range] = field(default_factory=list)
    """Seqs that may be lost. There may be others among them that never were an event's, or that are sealed."""
    unnamed: int = 0
    """Events whose topic has no name any more."""


def describe(report: Salvaged) -> list[str]:
    """What came of it, in lines."""
    tail = report.rows.get("tail", 0)
    rest = sum(report.rows.values()) - tail
    lines = [
        f"{tail} events that are not sealed and {rest} rows of state could be read, and the node goes on with them"
    ]
    if report.lost:
        shown = ", ".join(f"{first} to {last}" for first, last in report.lost[:_SHOWN])
        more = f" and {len(report.lost) - _SHOWN} more ranges" if len(report.lost) > _SHOWN else ""
        lines.append(f"events are lost, as far as there were any, with seqs in {shown}{more}")
    if report.unnamed:
        lines.append(f"{report.unnamed} events are lost, since the name of their topic is")
    return lines + [
        f"rows of {name} are lost, as far as there were any on {report.bad[name]} damaged pages"
        for name in sorted(report.bad.keys() - {"tail", "topics"})
    ]


@dataclass(frozen=True, slots=True)
class _Bounds:
    """Rowids that a page may have."""

    low: int = -_LARGEST
    high: int = _LARGEST


def salvage(path: Path, new: Path) -> Salvaged:
    """Make a new database of what can be read of a damaged one.

    Raises:
        OSError, sqlite3.Error: the new one can't be written, or the damaged one can't be read at all.
    """
    pages = Pages(path)
    try:
        with closing(new_database(new)) as connection:
            connection.execute("BEGIN")
            report = _Salvage(pages, connection, _sealed(path.parent), is_encrypted(path.parent)).run()
            connection.execute("COMMIT")
    finally:
        pages.close()
    sync_file(new)
    return report


def _sealed(directory: Path) -> int:
    """Up to which seq there are segments."""
    with suppress(OSError):
        return max([seqs[1] for name in os.listdir(directory / DIRECTORY) if (seqs := seqs_in(name))], default=0)
    return 0


class _Salvage:
    def __init__(self, pages: Pages, connection: sqlite3.Connection, sealed: int, encrypted: bool) -> None:
        self._pages = pages
        self._connection = connection
        self._report = Salvaged()
        version = pages.version
        known = [version] if version in schema.LAYOUTS else sorted(schema.LAYOUTS, reverse=True)
        self._layouts = [schema.LAYOUTS[each] for each in known]
        self._now = schema.LAYOUTS[schema.VERSION]
        self._shapes: dict[tuple[str, tuple[type, ...]], tuple[str, ...] | None] = {}
        """The columns of rows with values of these types; None: they are not this table's."""
        self._reached: set[int] = set()
        self._broken: set[str] = set()
        """Tables of which a part could not be followed."""
        self._holes: list[tuple[str, _Bounds]] = []
        """What could not be followed."""
        self._doubtful: list[tuple[str, Cell]] = []
        self._reserved = _LARGEST
        self._sealed = sealed
        self._encrypted = encrypted

    def run(self) -> Salvaged:
        roots = self._roots()
        tables = self._layouts[0].keys()
        # Positions and the reservation tell how far seqs can go, so the tail comes last.
        for name in sorted(tables, key=lambda name: (name == "tail", name)):
            if name == "tail":
                self._reserved = self._given_out() or _LARGEST
            root = roots.get(name)
            if root is None:
                self._broken.add(name)  # its leaves are found all the same
            else:
                self._put(name, self._tree(name, root))
        if index := roots.get("sqlite_autoindex_topics_1"):
            self._names(index)
        if self._broken:
            self._put_strays()
        for name, cell in self._doubtful:
            self._insert(name, [cell])
        self._finish()
        return self._report

    # -- trees

    def _roots(self) -> dict[str, int]:
        """The first page of each table and index, by its name."""
        found: dict[str, int] = {}
        for cell in self._follow("sqlite_schema", 1, _Bounds()):
            if len(cell.row) == 5:
                kind, name, _, root, _ = cell.row
                if kind in ("table", "index") and isinstance(name, str) and isinstance(root, int):
                    found[name] = root
        self._broken.discard("sqlite_schema")
        return found

    def _tree(self, name: str, root: int) -> Iterator[Cell]:
        yield from self._follow(name, root, _Bounds())

    def _follow(self, name: str, root: int, bounds: _Bounds) -> Iterator[Cell]:
        """The rows of a tree, in order."""
        stack = [(root, bounds)]
        while stack:
            number, bounds = stack.pop()
            kind = 0 if number in self._reached else self._pages.kind(number)
            try:
                if kind == INTERIOR:
                    below = self._below(number, bounds)
                    self._reached.add(number)
                    stack += reversed(below)
                elif kind == LEAF:
                    yield from self._leaf(name, number, bounds)
                else:
                    raise Unreadable("it is no page of a table")
            except Unreadable:
                self._hole(name, bounds)

    def _below(self, number: int, bounds: _Bounds) -> list[tuple[int, _Bounds]]:
        found: list[tuple[int, _Bounds]] = []
        low = bounds.low
        for child, high in self._pages.children(number):
            upto = bounds.high if high is None else min(high, bounds.high)
            found.append((child, _Bounds(low, upto)))
            low = max(low, upto)
        return found

    def _leaf(self, name: str, number: int, bounds: _Bounds) -> Iterator[Cell]:
        """The rows on a leaf; those that are out of order, or bounds, are put off.

        Raises:
            Unreadable: it is none of this table.
        """
        cells, bad = self._pages.cells(number)
        if name == "sqlite_schema":
            yield from cells
            return
        if cells and not any(self._shaped(name, cell) is not None for cell in cells):
            raise Unreadable("it is a page of another table")
        self._reached.add(number)
        last = bounds.low
        for at, cell in enumerate(cells):
            following = cells[at + 1].rowid if at + 1 < len(cells) else _LARGEST
            if last < cell.rowid <= bounds.high and cell.rowid < following:
                last = cell.rowid
                yield cell
            else:
                bad += 1
                self._doubtful.append((name, cell))
        if bad:
            self._report.pages += 1
            self._lose(name, bounds)

    def _hole(self, name: str, bounds: _Bounds) -> None:
        self._report.pages += 1
        self._broken.add(name)
        if name != "sqlite_schema":
            self._lose(name, bounds)

    def _lose(self, name: str, bounds: _Bounds) -> None:
        self._report.bad[name] = self._report.bad.get(name, 0) + 1
        self._holes.append((name, bounds))

    # -- rows

    def _shaped(self, name: str, cell: Cell) -> Row | None:
        """The row as this version's table has it; None where it is no row of the table."""
        row = cell.row
        shape = name, tuple(map(type, row))
        if shape not in self._shapes:
            self._shapes[shape] = self._columns(name, row)
        columns = self._shapes[shape]
        if columns is None:
            return None
        row = row if row[0] is not None else (cell.rowid, *row[1:])
        return row if columns is self._now[name] else _current(columns, self._now[name], row)

    def _columns(self, name: str, row: Row) -> tuple[str, ...] | None:
        """The columns that a row has, if it is one of this table."""
        for layout in self._layouts:
            columns = layout.get(name, ())
            if len(columns) == len(row) and all(map(_is, columns, row, _required(name, len(columns)))):
                return self._now[name] if columns == self._now[name] else columns
        return None

    def _put(self, name: str, cells: Iterable[Cell]) -> None:
        batch: list[Cell] = []
        for cell in cells:
            batch.append(cell)
            if len(batch) == _BATCH:
                self._insert(name, batch)
                batch = []
        self._insert(name, batch)

    def _insert(self, name: str, cells: Sequence[Cell]) -> None:
        rows = [row for cell in cells if (row := self._shaped(name, cell)) is not None]
        if name == "tail":
            rows = [row for row in rows if self._can_be(row)]
        if len(rows) < len(cells):
            self._report.bad.setdefault(name, 1)
        if rows:
            places = ", ".join("?" * len(rows[0]))
            found = self._connection.executemany(f"INSERT OR IGNORE INTO {name} VALUES ({places})", rows)
            self._report.rows[name] = self._report.rows.get(name, 0) + found.rowcount

    def _can_be(self, row: Row) -> bool:
        """Whether a row of the tail can be an event's."""
        seq, _, _, flags, *_ = row
        return (
            isinstance(seq, int)
            and isinstance(flags, int)
            and 0 < seq <= self._reserved
            and 0 <= flags <= MOST_FLAGS[self._encrypted]
            and flags & 3 != 3
            and flags >> 3 & 3 in (1, 2)
        )

    def _names(self, index: int) -> None:
        """Names of topics, from their index: where a page of the table is damaged, it has them still."""
        stack, seen = [index], set[int]()
        while stack:
            number = stack.pop()
            if number in seen or number in self._reached:
                continue
            seen.add(number)
            try:
                rows, below = self._pages.keys(number)
            except Unreadable:
                continue
            stack += below
            named = [(row[1], row[0]) for row in rows if len(row) == 2 and type(row[0]) is str and type(row[1]) is int]
            self._connection.executemany("INSERT OR IGNORE INTO topics VALUES (?, ?)", named)

    def _put_strays(self) -> None:
        """Rows on pages that no tree has led to: those of tables of which a part could not be followed."""
        unused = self._pages.free() | set(self._pages.maps()) | self._reached
        children: set[int] = set()
        leaves: list[int] = []
        for number in range(1, self._pages.count + 1):
            kind = 0 if number in unused else self._pages.kind(number)
            if kind == INTERIOR:
                try:
                    children.update(child for child, _ in self._pages.children(number))
                except Unreadable:
                    continue
            elif kind == LEAF:
                leaves.append(number)
        for number in sorted(leaves, key=lambda number: number not in children):
            cells, _ = self._pages.cells(number)
            for name in self._broken:
                if any(self._shaped(name, cell) is not None for cell in cells):
                    self._insert(name, [cell for cell in cells if self._shaped(name, cell) is not None])

    # -- the end

    def _given_out(self) -> int:
        """Up to which seq they were given out at most; 0: nothing tells."""
        row = self._connection.execute(f"SELECT value FROM {META.name} WHERE name = 'reserved'").fetchone()
        return int(row[0]) if row and str(row[0]).isascii() and str(row[0]).isdigit() else 0

    def _finish(self) -> None:
        connection = self._connection
        gone = connection.execute("DELETE FROM tail WHERE topic NOT IN (SELECT id FROM topics)")
        self._report.unnamed = gone.rowcount
        highest = max(
            connection.execute(f"SELECT coalesce(max({column}), 0) FROM {table}").fetchone()[0]
            for table, column in (("tail", "seq"), *((table.name, column) for table, column in _POSITIONS))
        )
        reserved = self._given_out()
        put = f"INSERT OR REPLACE INTO {META.name} VALUES (?, ?)"
        if not reserved or META.name in self._broken:
            connection.execute(put, ("reserved", str(max(reserved, highest, self._sealed) + _AHEAD)))
        mark = connection.execute(f"SELECT 1 FROM {META.name} WHERE name = ?", (ENCRYPTED,)).fetchone()
        if self._encrypted and mark is None and META.name in self._broken:
            connection.execute(put, (ENCRYPTED, LOST))
        self._report.lost = self._gaps(reserved or highest)

    def _gaps(self, last: int) -> list[Range]:
        """Seqs within what could not be read of the tail of which there is no row."""
        found: set[Range] = set()
        for name, bounds in self._holes:
            if name == "tail":
                low, high = max(bounds.low, self._sealed) + 1, min(bounds.high, last)
                seqs = self._connection.execute("SELECT seq FROM tail WHERE seq BETWEEN ? AND ?", (low, high))
                found.update(missing((seq for (seq,) in seqs), low, high))
        return sorted(found)


def _is(column: str, value: object, required: bool) -> bool:
    kind = schema.KINDS[column.partition(" ")[2]]
    return type(value) is kind or (value is None and not required)


def _required(name: str, columns: int) -> list[bool]:
    """Which columns have a value in every row. The rowid stands beside its row, not in it."""
    if name == "tail":
        return [False] + [True] * (columns - 1)
    if name == "topics":
        return [False, True]
    return [number < _KEYS[name] for number in range(columns)]


def _current(had: tuple[str, ...], now: tuple[str, ...], row: Row) -> Row:
    """A row of an earlier version as this one has it."""
    values = dict(zip(had, row, strict=True))
    return tuple(values.get(column, schema.KINDS[column.partition(" ")[2]]()) for column in now)

"""What of the database is encrypted, what each value is bound to, and what becomes of one that doesn't open.

The rules:

1. Of a row of the tail, properties and payload are one sealed value, in the payload's column; a flag says so. It is
   bound to the event's seq. Rows without that flag are read as they are, if they are from before encryption began.
2. Of a row of state, all BLOBs are one sealed value, in the column of the first of them. It is bound to the table and
   the row's key. In a database all rows of state are encrypted or none is; one row of `meta` says so.
3. That row tells keys of another directory from damage: its CRC-32 is right and it doesn't open. Nothing else is
   looked at then, since everything would seem to be damaged.
4. A value that isn't what was sealed is lost; that is told once, and the rest is served. One whose data key isn't at
   hand is an error instead: it can be read once the key is back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, Final
from zlib import crc32

from storage.interface import Event, Row, Table, Value
from storage.keysource import KEYS, KeysError
from storage.vault import OVERHEAD, Reader, ValueDamaged, ValueLocked, Vault

if TYPE_CHECKING:
    from storage.datakey import DataKey

LARGEST: Final = (1 << 63) - 1
"""The highest seq that there can be."""
TOLD: Final = 1000
"""Damaged values that are remembered as told."""

_SIZE: Final = Struct("<I")
_NO_PROPERTIES: Final = _SIZE.pack(0)
_OF_TAIL: Final = Struct("<cQ")
_NUMBER_ENDS: Final = 5
"""Where in a sealed value the number of its data key ends."""
_CHECK: Final = b"m"
_CHECKED: Final = b"berm"

_logger = logging.getLogger("berm.storage")


class Opener:
    """Opens what the database in a directory has of encrypted values. Any thread may."""

    __slots__ = ("_directory", "_reader", "_told", "plain_upto")

    def __init__(self, reader: Reader, directory: Path) -> None:
        self.plain_upto: int = LARGEST
        """The seq up to which there may be rows of the tail that are not encrypted."""
        self._reader = reader
        self._directory = directory
        self._told: set[str] = set()

    def key(self, number: int) -> DataKey | None:
        """The data key with this number, for segments."""
        return self._reader.key(number)

    def verify(self, check: str) -> None:
        """See by the row of `meta` whether these are the keys that the database is encrypted with.

        Raises:
            KeysError: they aren't, or the one that is needed is missing.
        """
        sealed = b""
        with suppress(ValueError):
            sealed = bytes.fromhex(check)
        if len(sealed) < OVERHEAD or crc32(sealed[: -_SIZE.size]) != _SIZE.unpack(sealed[-_SIZE.size :])[0]:
            return  # the row is damaged, which tells nothing of the keys
        try:
            self._reader.open(sealed[: -_SIZE.size], _CHECK)
        except ValueDamaged:
            raise KeysError(
                f"{self._directory / KEYS} has not the keys that {self._directory} is encrypted with, but those of "
                "another data directory; restore its own from a backup"
            ) from None

    def events(self, sealed: Sequence[Event]) -> set[int]:
        """Give these events the properties and payloads that were sealed; the seqs of those that are lost.

        Raises:
            ValueLocked: the data key of one isn't at hand.
        """
        lost: set[int] = set()
        contexts = [_OF_TAIL.pack(b"t", event.seq) for event in sealed]
        plains: Iterable[bytes | None]
        try:
            plains = self._reader.open_many([event.payload for event in sealed], contexts)
        except ValueDamaged:
            plains = [
                self._opened(event.payload, context, _event(event))
                for event, context in zip(sealed, contexts, strict=True)
            ]
        for event, plain in zip(sealed, plains, strict=True):
            if plain is None:
                lost.add(event.seq)
            elif plain.startswith(_NO_PROPERTIES):
                event.payload = plain[_SIZE.size :]
            else:
                end = _SIZE.size + _SIZE.unpack_from(plain)[0]
                event.properties, event.payload = plain[_SIZE.size : end], plain[end:]
        return lost

    def plain(self, events: Sequence[Event]) -> set[int]:
        """Of events that are not encrypted, the seqs of those that must be, and so are lost."""
        lost = [event for event in events if event.seq > self.plain_upto]
        for event in lost:
            self._tell(_event(event), "it is not encrypted, as all are that were written since encryption has begun")
        return {event.seq for event in lost}

    def rows(self, table: Table, rows: list[Row]) -> list[Row]:
        """Rows of state as they were before they were sealed, without those that are lost.

        Raises:
            ValueLocked: the data key of one isn't at hand.
        """
        places = _blobs(table)
        if not places:
            return rows
        opened = (self._row(table, places, row) for row in rows)
        return [row for row in opened if row is not None]

    def _row(self, table: Table, places: Sequence[int], row: Row) -> Row | None:
        sealed = row[places[0]]
        what = f"the row {row[0]!r} of {table.name}"
        plain = self._opened(sealed if isinstance(sealed, bytes) else b"", _bound(table, row), what)
        if plain is None:
            return None
        values = list(row)
        sizes = Struct(f"<{len(places)}i")
        at = sizes.size
        for place, size in zip(places, sizes.unpack_from(plain), strict=True):
            values[place] = None if size < 0 else plain[at : at + size]
            at += max(0, size)
        return tuple(values)

    def _opened(self, sealed: bytes, context: bytes, what: str) -> bytes | None:
        """The value, or None where it is lost, which is told."""
        try:
            return self._reader.open(sealed, context)
        except ValueDamaged as error:
            self._tell(what, error)
            return None

    def _tell(self, what: str, why: object) -> None:
        if what not in self._told and len(self._told) < TOLD:
            self._told.add(what)
            _logger.error("%s in %s is lost: %s; the rest is served", what, self._directory, why)


class Cipher(Opener):
    """Encrypts what a node writes into its database, too."""

    __slots__ = ("_vault",)

    def __init__(self, vault: Vault, directory: Path) -> None:
        super().__init__(vault, directory)
        self._vault = vault

    @property
    def data_key(self) -> DataKey:
        """The data key to encrypt segments with at present."""
        return self._vault.data_key

    def is_current(self, check: str | None) -> bool:
        """Whether the row of `meta` was written with the data key that encrypts at present."""
        return check is not None and check.startswith(self._vault.seal(b"", b"")[:_NUMBER_ENDS].hex())

    def check(self) -> str:
        """What the row of `meta` is to say."""
        sealed = self._vault.seal(_CHECKED, _CHECK)
        return (sealed + _SIZE.pack(crc32(sealed))).hex()

    def seal_events(self, events: Sequence[Event]) -> list[bytes]:
        """What stands for properties and payloads of these events."""
        size, bound = _SIZE.pack, _OF_TAIL.pack
        return self._vault.seal_many(
            [
                size(len(properties)) + properties + event.payload
                if (properties := event.properties)
                else _NO_PROPERTIES + event.payload
                for event in events
            ],
            [bound(b"t", event.seq) for event in events],
        )

    def seal_rows(self, table: Table, rows: Mapping[Row, Row | None]) -> Mapping[Row, Row | None]:
        """What stands for these changes of state."""
        places = _blobs(table)
        if not places:
            return rows
        return {
            key: None if values is None else self._sealed(table, places, key, values) for key, values in rows.items()
        }

    def is_sealed(self, table: Table, row: Row) -> bool:
        """Whether a row of state is encrypted already."""
        places = _blobs(table)
        sealed = row[places[0]] if places else None
        try:
            return isinstance(sealed, bytes) and bool(self._vault.open(sealed, _bound(table, row)))
        except (ValueDamaged, ValueLocked):
            return False

    def _sealed(self, table: Table, places: Sequence[int], key: Row, values: Row) -> Row:
        row: list[Value] = [*key, *values]
        blobs = [value if isinstance(value := row[place], bytes) else None for place in places]
        sizes = [-1 if blob is None else len(blob) for blob in blobs]
        plain = Struct(f"<{len(places)}i").pack(*sizes) + b"".join(filter(None, blobs))
        for place in places:
            row[place] = b""
        row[places[0]] = self._vault.seal(plain, _bound(table, row))
        return tuple(row[len(key) :])


def _event(event: Event) -> str:
    return f"the event {event.seq}, of topic {event.topic},"


Unlock = Callable[[], Reader | None]
"""Gives what opens a data directory that is held, and seals in it where it is to be written; None: nothing does."""


@cache
def _blobs(table: Table) -> tuple[int, ...]:
    """Which columns of its rows are encrypted."""
    columns = table.key + table.values
    return tuple(place for place, column in enumerate(columns) if column.endswith(" BLOB"))


def _bound(table: Table, row: Sequence[Value]) -> bytes:
    """What a row's value is bound to: no two rows have the same."""
    key = [str(each) for each in row[: len(table.key)]]
    return "".join(["s", table.name, *(f" {len(each)}:{each}" for each in key)]).encode(errors="surrogatepass")

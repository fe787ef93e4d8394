"""Events as an Apache Parquet file, where pyarrow is installed: `pip install 'berm[parquet]'`.

The fields are those of the other formats (see formats.py); times are timestamps. Events gather until a row group is
full, so memory is bounded however many there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO, Final

from berm.formats import FIELDS, encode_payload, properties_as_json
from storage.interface import Event

try:
    import pyarrow as arrow
    from pyarrow.parquet import ParquetWriter as ArrowWriter
except ImportError as error:
    raise ImportError("Parquet needs pyarrow; install it with: pip install 'berm[parquet]'") from error

GROUP_EVENTS: Final = 65536
"""Events in a row group at most,"""
GROUP_BYTES: Final = 32 << 20
"""and bytes of payloads, about."""

_TYPES: Final = {
    "seq": arrow.int64(),
    "time": arrow.timestamp("us", "UTC"),
    "topic": arrow.string(),
    "qos": arrow.int8(),
    "retain": arrow.bool_(),
    "client": arrow.string(),
    "payload": arrow.string(),
    "encoding": arrow.string(),
    "expires": arrow.timestamp("us", "UTC"),
    "properties": arrow.string(),
}
SCHEMA: Final = arrow.schema([(name, _TYPES[name]) for name in FIELDS])


class ParquetWriter:
    """Takes events one batch after another."""

    def __init__(self, out: BinaryIO) -> None:
        self._writer = ArrowWriter(arrow.PythonFile(_Counted(out), "w"), SCHEMA, compression="zstd")
        self._rows: list[tuple[object, ...]] = []
        self._size = 0

    def write(self, events: Iterable[Event]) -> None:
        """Take some events."""
        for event in events:
            self._rows.append(_row(event))
            self._size += len(event.payload)
            if len(self._rows) >= GROUP_EVENTS or self._size >= GROUP_BYTES:
                self._flush()

    def close(self) -> None:
        """Write what has gathered, and the end of the file. The file stays open."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            columns = [
                arrow.array(column, field.type)
                for column, field in zip(zip(*self._rows, strict=True), SCHEMA, strict=True)
            ]
            self._writer.write_table(arrow.Table.from_arrays(columns, schema=SCHEMA))
        self._rows.clear()
        self._size = 0


def _row(event: Event) -> tuple[object, ...]:
    text, encoding = encode_payload(event.payload)
    return (
        event.seq,
        event.ts,
        event.topic,
        event.qos,
        event.retain,
        event.client,
        text,
        encoding or None,
        event.expires or None,
        properties_as_json(event.properties),
    )


class _Counted:
    """A file that is only written to, and can say how far: a pipe can't."""

    closed = False

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._at = 0

    def write(self, data: bytes) -> int:
        self._at += len(data)
        return self._out.write(data)

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        self._out.flush()

    def close(self) -> None:
        """The file is not ours to close."""

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

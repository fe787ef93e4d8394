"""What came of some events, and what becomes of those on which a user's function fails.

A failing event goes to `$dead/<processor>`, with the error and its place in the log. That topic begins with `$`, so a
subscription to `#` is not flooded, a bridge of `#` does not forward it, and two processors of `#` that both fail can't
feed on each other's failures; who wants dead letters subscribes to `$dead/#`.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from datetime import datetime, timedelta
from traceback import extract_tb
from typing import Final, Protocol

import orjson

from processors.event import EPOCH
from processors.message import Output
from storage.interface import Event as Stored
from storage.interface import Row

NEVER: Final = 1 << 63
"""Later than every time, in µs since the epoch."""
DEAD: Final = "$dead/"
USER_ERRORS: Final = (Exception, SystemExit)
"""What a user's function may end with: no more than its own event must suffer from it."""

_MOST: Final = 500
_MOST_BYTES: Final = 1 << 20
_LONGEST_ERROR: Final = 1000
_LONGEST_PAYLOAD: Final = 64 << 10


class Step:
    """The outputs and changed rows of state that some events led to."""

    __slots__ = ("_weight", "dead", "error", "messages", "rows", "taken")

    def __init__(self) -> None:
        self.messages: list[Output] = []
        self.rows: dict[Row, Row | None] = {}
        """Of the table STATE; None: the row goes."""
        self.taken = 0
        """How many of the events are done with."""
        self.dead = 0
        self.error = ""
        """The last error of a user's function."""
        self._weight = 0

    @property
    def full(self) -> bool:
        """Whether it holds as much as should go to the log at a time."""
        return len(self.messages) >= _MOST or self._weight >= _MOST_BYTES

    def send(self, *outputs: Output) -> None:
        """Publish these."""
        self.messages += outputs
        for output in outputs:
            self._weight += len(output[1])

    def mark(self) -> tuple[int, int, int, int]:
        """A place to `rewind` to."""
        return self.taken, len(self.messages), self._weight, self.dead

    def rewind(self, mark: tuple[int, int, int, int]) -> None:
        """Forget what was taken, and sent, since then."""
        self.taken, sent, self._weight, self.dead = mark
        del self.messages[sent:]

    def fail(self, processor: str, error: BaseException, stored: Stored) -> None:
        """Send an event to the dead letters."""
        self._bury(
            processor,
            error,
            {
                "seq": stored.seq,
                "time": moment(stored.ts),
                "topic": stored.topic,
                "client": stored.client,
                "qos": stored.qos,
                "retain": stored.retain,
                **_payload(stored.payload),
            },
        )

    def fail_window(self, processor: str, error: BaseException, key: str, start: int, end: int) -> None:
        """Send a dead letter in place of a window's result."""
        self._bury(processor, error, {"key": key[:_LONGEST_ERROR], "start": moment(start), "end": moment(end)})

    def _bury(self, processor: str, error: BaseException, original: dict[str, object]) -> None:
        self.dead += 1
        self.error = describe(error)
        letter = {"processor": processor, "error": self.error, **original}
        self.send((DEAD + processor, orjson.dumps(letter, option=orjson.OPT_UTC_Z), 1, False))


class Operator(Protocol):
    """The pure part of a processor: events in, a step out. It is called in one thread at a time."""

    due: int
    """When the operator has something to do even if no event comes, µs since the epoch; NEVER."""

    def restore(self, rows: list[Row]) -> None:
        """Take up the rows of STATE that an earlier run left.

        Raises:
            StateError: they don't fit this definition.
        """

    def forget(self, accepts: Callable[[str], bool]) -> list[Row]:
        """Have no state of the keys that are accepted; the keys of their rows. No step is being computed."""

    def step(self, events: list[Stored], horizon: int) -> Step:
        """Take events, from the first on, until all are taken or the step is full.

        No event will ever come that is earlier than `horizon` or than one that has come; µs since the epoch.
        """


def moment(ts: int) -> datetime:
    """µs since the epoch as a time that JSON writes in ISO 8601."""
    return EPOCH + timedelta(microseconds=ts)


def describe(error: BaseException) -> str:
    """An error in one line: what, and in which line of the user's code it came up."""
    text = f"{type(error).__name__}: {_text(error)}"
    frames = [frame for frame in extract_tb(error.__traceback__) if not _own(frame.filename)]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    line = " ".join(text.split())
    return line[: _LONGEST_ERROR - len(place)].encode(errors="replace").decode() + place


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a user's exception may fail at saying what it is
        return "(its text can't be had)"


def _own(filename: str) -> bool:
    return filename.startswith(_HERE)


_HERE: Final = __file__.rpartition("/")[0] + "/"


def _payload(payload: bytes) -> dict[str, object]:
    """The payload as text where it is text; the rest of a long one is in the log, at the event's seq."""
    fields: dict[str, object] = {}
    if len(payload) > _LONGEST_PAYLOAD:
        fields["payload_bytes"] = len(payload)
        payload = payload[:_LONGEST_PAYLOAD]
    try:
        fields["payload"] = payload.decode()
    except UnicodeDecodeError:
        fields["payload_base64"] = b64encode(payload).decode()
    return fields

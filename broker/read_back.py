"""Messages that have to be sent again, read back from the log a few at a time.

Who waits for acknowledgements holds seqs, not messages. When some have to be sent again, it asks for the next few, and
goes on once they are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

from storage.interface import Event, Log

_SLICE: Final = 32
"""Messages that are read at a time."""


class ReadBack:
    """The next few messages of one reader, by seq."""

    __slots__ = ("_asked", "_events", "_log")

    def __init__(self, log: Log) -> None:
        self._log = log
        self._events: dict[int, Event | None] = {}
        """None: it is no longer in the log."""
        self._asked: list[int] | None = None
        """What is being read."""

    def __len__(self) -> int:
        return len(self._events)

    def __contains__(self, seq: int) -> bool:
        """Whether it is known what has become of this message."""
        return seq in self._events

    def __getitem__(self, seq: int) -> Event | None:
        """The message; None where the log no longer has it."""
        return self._events[seq]

    def ask(self, seqs: Iterable[int], wake: Callable[[], None]) -> bool:
        """Have the first few of these read, unless some are being read; whether they are there now.

        `wake` is called once they are.
        """
        if self._asked is not None:
            return False
        self._asked = asked = list(islice(seqs, _SLICE))

        def read(events: list[Event]) -> None:
            if self._asked is asked:
                self._asked = None
                self._events = {**dict.fromkeys(asked), **{event.seq: event for event in events}}
                wake()

        self._log.get(asked, read)
        return self._asked is None

    def drop(self, seq: int) -> None:
        """This message is done with."""
        del self._events[seq]

    def clear(self) -> None:
        """Hold none in memory: its reader can take no more for now."""
        self._events = {}

    def stop(self) -> None:
        """Its reader is gone: what is being read is for nobody."""
        self._events = {}
        self._asked = None

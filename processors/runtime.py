"""Feeds a processor from its cursor, and commits what comes of it.

The rules:

1. At most BATCH events are read at a time, and one step is computed at a time, on the worker. Users' code never runs on
   the loop: a function that never returns stops processors, not the broker.
2. What a step leads to is kept as one: its outputs, the rows of state that it changed, and the position in the log up
   to which both include every event. One call of `emit` puts them into one commit group, so they commit in one
   transaction or not at all. After a crash the events behind the committed position are read again, and meet the state
   that goes with that position: each event affects the state once, each output is in the log once.
3. A step with outputs is emitted at once. Rows and position without outputs wait for the next outputs, for ROWS rows or
   for CHECKPOINT: an aggregate over a thousand events a second writes each key's row once a second. A position alone
   waits for IDLE: events that led to nothing lead to nothing again, so that traffic which is none of a processor's
   business costs it no commits.
4. The next step may be computed while the last one is on its way to the disk, since whatever the crash takes back of
   the log it takes back from its end. A group that the disk refuses keeps rows, position and outputs together until a
   retry succeeds. Only outputs at QoS 0 are dropped from it, as every message at QoS 0 is, and counted by the hub.
5. Nothing is read while the log takes nothing or the open group is large: then the backlog waits in the log.
6. Windows are closed by the clock only when the cursor has reached the end of the log and nothing is being computed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from processors.definition import Definition
from processors.errors import StateError
from processors.message import Output
from processors.step import DEAD, NEVER, Step
from storage.interface import CURSORS, STATE, Accepts, Log, Row, Table, Worker
from storage.interface import Event as Stored

BATCH: Final = 500
"""Events that one step takes at most."""
ROWS: Final = 500
"""Changed rows that wait for a checkpoint at most, but for those of one step."""
CHECKPOINT: Final = 1_000_000
"""µs between two commits of state without outputs."""
IDLE: Final = 60_000_000
"""µs between two commits of a position alone: so much is read again after a crash."""
OPEN_BYTES: Final = 8 << 20
"""Weight of the open group above which no more is read: publishers are stopped before."""
STUCK: Final = 10_000_000
"""µs after which a step that is not back is worth a line in the log."""
QUIET: Final = 10_000_000
"""µs between two lines about failing events of one processor."""

_logger = logging.getLogger("berm.processors")


class Emitter(Protocol):
    """Who appends what processors publish: the hub."""

    def emit(self, client: str, messages: Iterable[Output], rows: Iterable[tuple[Table, Row, Row | None]] = ()) -> None:
        """Append messages and rows of state to one commit group."""


class Runtime:
    """One processor at work. Every method is called on the loop; `worker` runs the users' code.

    `compile_filters` makes a predicate over topic names of topic filters.
    """

    def __init__(
        self,
        definition: Definition,
        log: Log,
        worker: Worker,
        hub: Emitter,
        compile_filters: Callable[[Iterable[str]], Accepts],
    ) -> None:
        self.definition = definition
        self.failure = ""
        """Why the processor has stopped for good; its place in the log stays. Empty while it works."""
        self.events = 0
        self.outputs = 0
        """Dead letters included."""
        self.dead = 0
        """Events, and results of windows, that went to the dead letters."""
        self.position = log.committed
        """Every event up to this seq is in the state and in the outputs emitted so far, or in what waits."""
        self._log = log
        self._worker = worker
        self._hub = hub
        self._operator = definition.operator()
        self._cursor = log.cursor(self.position, compile_filters([definition.filter]), self._pump)
        self._cursor_key: Row = (f"processor/{definition.name}",)
        self._events: list[Stored] = []
        """Read, and not yet taken by the operator."""
        self._end = 0
        """The position once all of `_events` are taken."""
        self._busy = False
        self._stopped = True
        self._rows: dict[Row, Row | None] = {}
        """Changed rows that wait to be emitted."""
        self._emitted = 0
        """The position that was emitted last."""
        self._emitted_at = 0
        self._busy_since = 0
        """When the tick first found the step that is being computed; 0: not yet."""
        self._stuck = False
        self._unreported = 0
        self._error = ""
        self._reported_at = -QUIET
        self._now = 0

    def start(self) -> None:
        """Take up state and position of the last run, and begin. Blocks on the log's rows."""
        log, name = self._log, self.definition.name
        kept = next((row[1] for row in log.rows(CURSORS) if row[:1] == self._cursor_key), None)
        if isinstance(kept, int):
            self.position = kept
        elif self.definition.start == "beginning":
            self.position = 0
        try:
            self._operator.restore([row for row in log.rows(STATE) if row[0] == name])
        except StateError as error:
            self.failure = str(error)
            _logger.error("processor %s does not run, and loses nothing meanwhile: %s", name, error)
            return
        self._cursor.seek(self.position)
        self._stopped = False
        # Where a new processor begins is decided now, not after the next crash.
        self._emit(())
        self._pump()

    def tick(self, now: int) -> None:
        """Time has passed; µs since the epoch. To be called a few times a second."""
        self._now = now
        self._pump()
        wait = CHECKPOINT if self._rows else IDLE
        if self._changed and now - self._emitted_at >= wait and not self._held and not self._stopped:
            self._emit(())
        if self._unreported and now - self._reported_at >= QUIET:
            self._report()
        if self._busy:
            self._watch(now)

    def forget(self, accepts: Accepts, done: Callable[[], None]) -> None:
        """Have no state of keys that are accepted; `done` is called once their rows go with the open group."""
        if self._stopped:
            done()
            return
        self._cursor.seek(self._cursor.position)  # what it has in hand may be what is to be forgotten

        def forgotten(result: object, error: BaseException | None) -> None:
            rows: list[Row] = result if isinstance(result, list) else []
            if not self._stopped:
                self._rows.update(dict.fromkeys((*rows, *(row for row in self._rows if accepts(str(row[2]))))))
                self._emit(())
            done()

        self._worker.submit(lambda: self._operator.forget(accepts), forgotten)
        self._pump()

    def stop(self) -> None:
        """Emit what waits, and take nothing more. What is being computed is computed again by the next run."""
        if not self._stopped:
            self._stopped = True
            if self._changed:
                self._emit(())
        self._cursor.close()

    @property
    def _changed(self) -> bool:
        return bool(self._rows) or self.position != self._emitted

    @property
    def _held(self) -> bool:
        """Whether the log can't take outputs at the moment."""
        return self._log.failure is not None or self._log.open.weight > OPEN_BYTES

    def _pump(self) -> None:
        """Compute the next step, if there is one and nothing stands in its way."""
        if self._busy or self._stopped or self._held:
            return
        if not self._events:
            self._events = self._cursor.batch(BATCH)
            self._end = self._cursor.position
        if self._events:
            self._submit(self._events, 0)
            return
        self.position = self._end
        if self._operator.due != NEVER and self._cursor.caught_up:
            horizon = self._log.horizon(self._now)
            if horizon >= self._operator.due:
                self._submit([], horizon)

    def _submit(self, events: list[Stored], horizon: int) -> None:
        self._busy = True
        self._busy_since = 0
        step = self._operator.step
        self._worker.submit(lambda: step(events, horizon), self._computed)

    def _computed(self, result: object, error: BaseException | None) -> None:
        """A step is back. The operator itself does not fail; where it does, its state can't be trusted any more."""
        self._busy = self._stuck = False
        if self._stopped:
            return
        if not isinstance(result, Step):
            self.failure = f"its operator failed: {error!r}"
            _logger.critical("processor %s stops: %s", self.definition.name, self.failure, exc_info=error)
            self._rows.clear()
            self.position = self._emitted
            self.stop()
            return
        if result.taken == len(self._events):
            self.position = self._end
        elif result.taken:
            self.position = self._events[result.taken - 1].seq
        del self._events[: result.taken]
        self.events += result.taken
        self._rows.update(result.rows)
        if result.dead:
            self.dead += result.dead
            self._unreported += result.dead
            self._error = result.error
            if self._now - self._reported_at >= QUIET:
                self._report()
        if result.messages or len(self._rows) >= ROWS:
            self._emit(result.messages)
        self._pump()

    def _emit(self, messages: Iterable[Output]) -> None:
        rows: list[tuple[Table, Row, Row | None]] = [(STATE, key, values) for key, values in self._rows.items()]
        rows.append((CURSORS, self._cursor_key, (self.position,)))
        self._rows.clear()
        self._emitted = self.position
        self._emitted_at = self._now
        messages = list(messages)
        self.outputs += len(messages)
        self._hub.emit(self.definition.client, messages, rows)

    def _watch(self, now: int) -> None:
        """Say so, once, where a step does not come back."""
        if not self._busy_since:
            self._busy_since = now
        elif now - self._busy_since >= STUCK and not self._stuck:
            self._stuck = True
            _logger.error(
                "processor %s: nothing has come of the events after seq %d for %d s: a function, here or in another "
                "processor, does not return; no processor goes on before it does",
                self.definition.name,
                self.position,
                STUCK // 1_000_000,
            )

    def _report(self) -> None:
        _logger.warning(
            "processor %s: %d events or results failed and are on topic %s; the last: %s",
            self.definition.name,
            self._unreported,
            DEAD + self.definition.name,
            self._error,
        )
        self._unreported = 0
        self._reported_at = self._now

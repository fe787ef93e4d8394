"""The log of a node, read by the program that the node is part of: `async for event in node.log.read(...)`.

A read is a cursor like every other reader of the log: it moves with whoever takes the events, holds a batch or two, and
is fed from memory where it has caught up. What only the engine has it takes from there, and goes on in memory without a
seam: both have the same events under the same seqs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from time import time_ns
from typing import Final, TypeVar

from berm.export import retained_messages
from berm.query import SQLRow, ask_async
from berm.replay import READ_LIMIT, Query, RangeError, check_range, locate
from berm.times import parse_time
from broker.mqtt.topic import validate_filter
from storage.interface import Accepts, Engine, Event, Worker
from storage.log import Log

BATCH: Final = 500
"""Events in a batch at most."""

Time = datetime | timedelta | str
"""A time; how long ago; or either of them as on a command line (see times.py). A datetime without a zone is local."""

_EPOCH: Final = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
_MICROSECOND: Final = timedelta(microseconds=1)
_Result = TypeVar("_Result")


class History:
    """The log of a running node, to be read on the node's loop. `engine` is only called by way of `reader`."""

    def __init__(self, log: Log, engine: Engine, reader: Worker) -> None:
        self._log = log
        self._engine = engine
        self._reader = reader

    @property
    def last_seq(self) -> int:
        """The seq of the last event that can be read."""
        return self._log.committed

    async def read(
        self,
        filter: str | Sequence[str] = (),
        *,
        since: Time | None = None,
        until: Time | None = None,
        from_seq: int | None = None,
        client: str | None = None,
        limit: int | None = None,
        live: bool = False,
    ) -> AsyncGenerator[Event, None]:
        """The events whose topic matches a filter (none: all), in order; treat them as frozen.

        It ends with the last event that was in the log at the begin. With `live` it goes on with those that come, and
        ends never, or after `limit` events.

        Raises:
            ProtocolError: a topic filter is none.
            RangeError: the range is not in the log any more, or in the future.
            StorageError: the log can't be read.
            ValueError: a time is none, or `until` comes with `live`.
        """
        batches = self.read_batches(
            filter, since=since, until=until, from_seq=from_seq, client=client, limit=limit, live=live
        )
        async with aclosing(batches):
            async for events in batches:
                for event in events:
                    yield event

    async def read_batches(
        self,
        filter: str | Sequence[str] = (),
        *,
        since: Time | None = None,
        until: Time | None = None,
        from_seq: int | None = None,
        client: str | None = None,
        limit: int | None = None,
        live: bool = False,
    ) -> AsyncGenerator[list[Event], None]:
        """What `read` gives, in lists of some hundred events: for those who take very many."""
        if live and until is not None:
            raise ValueError("what is live has no end: leave out `until`, and stop when it is enough")
        now = time_ns() // 1000
        query = _query(filter, since, until, from_seq, client, limit, now)
        position = await self._locate(query, now)
        async with aclosing(self._follow(query, position, None if live else self._log.committed)) as batches:
            async for events in batches:
                yield events

    async def query(
        self,
        sql: str,
        *,
        filter: str | Sequence[str] = (),
        since: Time | None = None,
        until: Time | None = None,
        from_seq: int | None = None,
    ) -> AsyncGenerator[SQLRow, None]:
        """The rows of one SELECT over the tables `events`, which has the range, and `retained`. See docs/history.md.

        Raises:
            QueryError: the statement is none, or would do more than read.
            ProtocolError, RangeError, StorageError, ValueError: as `read`.
        """
        now = time_ns() // 1000
        query = _query(filter, since, until, from_seq, None, None, now)
        position = await self._locate(query, now)
        retained = await self._submit(lambda: list(retained_messages(self._engine, query)))
        async with (
            aclosing(self._follow(query, position, self._log.committed)) as batches,
            aclosing(ask_async(batches, retained, sql)) as rows,
        ):
            async for row in rows:
                yield row

    async def _locate(self, query: Query, now: int) -> int:
        """The position after which a query begins, once it is clear that this range is there."""
        from_seq = query.from_seq
        if from_seq is not None and from_seq > self._log.committed + 1:
            raise RangeError(f"there is no seq {from_seq} yet: the log ends with {self._log.committed}")

        def find() -> int:
            # What is in memory only is not the engine's: that it lacks what comes last means nothing.
            known = from_seq is not None and from_seq <= self._engine.last()
            check_range(self._engine, query if known else replace(query, from_seq=None), now)
            return locate(self._engine, query)

        return await self._submit(find)

    async def _follow(self, query: Query, position: int, upto: int | None) -> AsyncGenerator[list[Event], None]:
        """What matches a query after a position: up to a seq, or for ever."""
        left = query.limit
        async with aclosing(self._batches(position, query.accepts(), upto)) as batches:
            async for events in batches:
                ended = _narrow(events, query, upto)
                if left is not None:
                    del events[left:]
                    left -= len(events)
                if events:
                    yield events
                if ended or left == 0:
                    return

    async def _batches(
        self, position: int, accepts: Accepts | None, upto: int | None
    ) -> AsyncGenerator[list[Event], None]:
        """What is accepted after a position, up to a seq and a little beyond, or for ever."""
        async with aclosing(self._stored(position, accepts, upto)) as stored:
            async for events, reached in stored:
                yield events
                position = reached
        woken = asyncio.Event()
        cursor = self._log.cursor(position, accepts, woken.set)
        try:
            while upto is None or cursor.position < upto:
                woken.clear()
                events = cursor.batch(BATCH)
                exhausted = len(events) < BATCH
                if events:
                    yield events
                if not exhausted:
                    await asyncio.sleep(0)  # others have their turn, however fast events are taken
                elif upto is None or cursor.position < upto:
                    await woken.wait()
        finally:
            cursor.close()

    async def _stored(
        self, position: int, accepts: Accepts | None, upto: int | None
    ) -> AsyncGenerator[tuple[list[Event], int], None]:
        """What only the engine has, and up to where each batch reaches. The next one is read meanwhile."""
        pending: asyncio.Future[tuple[list[Event], int]] | None = None
        try:
            while position < (end := self._log.remembered if upto is None else min(upto, self._log.remembered)):
                events, position = await (pending or self._submit(partial(self._read, position, end, accepts)))
                pending = None
                if position < end:
                    pending = self._submit(partial(self._read, position, end, accepts))
                yield events, position
        finally:
            if pending is not None and not pending.cancel():
                pending.exception()  # that the next read has failed concerns nobody any more

    def _read(self, position: int, end: int, accepts: Accepts | None) -> tuple[list[Event], int]:
        return self._engine.read(position, end, READ_LIMIT, accepts)

    def _submit(self, work: Callable[[], _Result]) -> asyncio.Future[_Result]:
        """What a blocking call will give."""
        done: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()

        def told(result: object, error: BaseException | None) -> None:
            if done.cancelled():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)  # type: ignore[arg-type]  # a worker hands on what the call has returned

        self._reader.submit(work, told)
        return done


def _query(
    filter: str | Sequence[str],
    since: Time | None,
    until: Time | None,
    from_seq: int | None,
    client: str | None,
    limit: int | None,
    now: int,
) -> Query:
    topics = (filter,) if isinstance(filter, str) else tuple(filter)
    for topic in topics:
        validate_filter(topic)
    start = None if since is None else _time(since, now)
    return Query(topics, start, None if until is None else _time(until, now, start), client, limit, from_seq)


def _time(time: Time, now: int, since: int | None = None) -> int:
    if isinstance(time, str):
        return parse_time(time, now, since)
    if isinstance(time, timedelta):
        return now - time // _MICROSECOND
    return (time.astimezone() - _EPOCH) // _MICROSECOND


def _narrow(events: list[Event], query: Query, upto: int | None) -> bool:
    """Take out of a batch what a cursor can't judge; whether nothing can come after it."""
    ended = False
    start, end, client = query.start, query.end, query.client
    if events and ((upto is not None and events[-1].seq > upto) or (end is not None and events[-1].ts >= end)):
        ended = True
        events[:] = [e for e in events if (upto is None or e.seq <= upto) and (end is None or e.ts < end)]
    if start is not None and events and events[0].ts < start:  # kept in memory only, where a time is not sought
        events[:] = [event for event in events if event.ts >= start]
    if client is not None:
        events[:] = [event for event in events if event.client == client]
    return ended

"""One thread that takes functions and gives back results on the loop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Final

Done = Callable[[object, BaseException | None], None]
After = Callable[[], object] | None
Post = Callable[[Callable[[], object]], object]

PAUSE: Final = 0.002
"""Seconds in which nothing must have come before what remains of `after` goes on: it would be in the way."""

_logger = logging.getLogger("berm.storage")


class ThreadWorker:
    """Runs what is submitted one after another in a thread of its own. Whatever fails in it, the thread goes on.

    `post` hands a call over to the loop's thread, and may be called from any thread.
    """

    def __init__(self, name: str, post: Post) -> None:
        self._post = post
        self._queue: SimpleQueue[tuple[Callable[[], object], Done, After] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], object], done: Done, after: After = None) -> None:
        """Run `work` in the thread, then `done(result, error)` on the loop, and beside that `after` in the thread.

        If `after` returns True, it is run again whenever nothing has come for a moment, until it doesn't.
        """
        self._queue.put((work, done, after))

    def close(self, timeout: float | None = None) -> bool:
        """Finish what was submitted, then end the thread. Blocks until then, or for `timeout` s: whether it ended."""
        self._queue.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        rest: After = None
        while True:
            try:
                item = self._queue.get(timeout=None if rest is None else PAUSE)
            except Empty:
                rest = self._go_on(rest)
                continue
            if item is None:
                return
            after = item[2]
            self._perform(*item[:2])
            del item  # and with it the events that it brought or took
            if after is not None:
                rest = self._go_on(after)

    def _perform(self, work: Callable[[], object], done: Done) -> None:
        try:
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - handed over, with its stack, to whoever asked
                self._post(partial(done, None, error))
            else:
                self._post(partial(done, result, None))
        except BaseException:  # noqa: BLE001 - the outermost frame: those who wait behind must not hang
            self._complain()

    def _go_on(self, after: After) -> After:
        """Run what comes after, and give it back where there is more of it."""
        try:
            return after if after is not None and after() is True else None
        except BaseException:  # noqa: BLE001 - as above
            self._complain()
            return None

    def _complain(self) -> None:
        _logger.exception("%s failed beside its work", self._thread.name)

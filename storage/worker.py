"""One thread that takes functions and gives back results on the loop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

Done = Callable[[object, BaseException | None], None]
After = Callable[[], None] | None
Post = Callable[[Callable[[], object]], object]

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
        """Run `work` in the thread, then `done(result, error)` on the loop, and beside that `after` in the thread."""
        self._queue.put((work, done, after))

    def close(self, timeout: float | None = None) -> bool:
        """Finish what was submitted, then end the thread. Blocks until then, or for `timeout` s: whether it ended."""
        self._queue.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self._perform(*item)
            except BaseException:  # the outermost frame of the thread: those who wait behind must not hang
                _logger.exception("%s failed beside its work", self._thread.name)
            del item  # and with it the events that it brought or took

    def _perform(self, work: Callable[[], object], done: Done, after: After) -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - handed over, with its stack, to whoever asked
            self._post(partial(done, None, error))
        else:
            self._post(partial(done, result, None))
        if after is not None:
            after()

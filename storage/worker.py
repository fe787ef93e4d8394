"""One thread that takes functions and gives back results on the loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

Done = Callable[[object, BaseException | None], None]
After = Callable[[], None] | None
Post = Callable[[Callable[[], object]], object]


class ThreadWorker:
    """Runs what is submitted one after another in a thread of its own.

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

    def close(self) -> None:
        """Finish what was submitted, then end the thread. Blocks until then."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            work, done, after = item
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 - handed over, with its stack, to whoever asked
                self._post(partial(done, None, error))
            else:
                self._post(partial(done, result, None))
            if after is not None:
                after()

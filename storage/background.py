"""Works on segments in a thread of its own, so that no group waits for compression or an fsync.

The theory: what a segment takes of the interpreter's lock and of the processor's cores is taken from everyone. So after
each step the thread sleeps for as long as makes the processor time that it has had its share of all time; where nothing
is going on, it doesn't.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from threading import Thread
from time import perf_counter, sleep, thread_time
from typing import Final, Generic, Protocol, TypeVar

from storage.interface import StorageError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

LEAST_SLEEP: Final = 0.001
"""Seconds that come together before the thread sleeps: shorter ones would cost more than they give."""


class Task(Protocol[T_co]):
    """Something that is done in small steps."""

    def step(self) -> T_co | None:
        """Go on a little; what has come of it, once all is done."""

    def abandon(self) -> None:
        """Leave nothing half done. No further step follows."""


class Whole(Generic[T]):
    """A task of one step, which may wait for the disk."""

    __slots__ = ("_work",)

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work

    def step(self) -> T:
        """All of it."""
        return self._work()

    def abandon(self) -> None:
        """Nothing is half done."""


def beside(task: Task[T], share: Callable[[], float]) -> Generator[bool, None, T]:
    """Have a task done, waiting for it step by step."""
    thread = SegmentThread(task, share)
    try:
        while thread.is_alive():
            yield True
    finally:
        thread.stop()
    return thread.result()


class SegmentThread(Thread, Generic[T]):
    """Starts at once. `share` says what part of the time it may take at the moment, up to 1; from this thread."""

    def __init__(self, task: Task[T], share: Callable[[], float]) -> None:
        super().__init__(name="berm-sealer", daemon=True)
        self._task = task
        self._share = share
        self._stopping = False
        self._result: T | None = None
        self._error: BaseException | None = None
        self.start()

    def result(self) -> T:
        """What has come of it, once the thread has ended. Raises what a step has raised."""
        if self._error is not None:
            raise self._error
        if self._result is None:
            raise StorageError("work on a segment was stopped before its end")
        return self._result

    def stop(self) -> None:
        """End it. What was not complete is gone."""
        self._stopping = True
        self.join()

    def run(self) -> None:
        """Step by step."""
        owed = 0.0
        try:
            while not self._stopping:
                began, worked = perf_counter(), thread_time()
                self._result = self._task.step()
                if self._result is not None:
                    break
                owed += (thread_time() - worked) / self._share() - (perf_counter() - began)
                if owed >= LEAST_SLEEP:
                    sleep(owed)
                    owed = 0.0
                elif owed < 0:
                    owed = 0.0
        except BaseException as error:  # noqa: BLE001 - handed over to whoever asks for the result
            self._error = error
        finally:
            self._task.abandon()

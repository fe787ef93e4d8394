from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from traceback import extract_tb
from weakref import finalize

import pytest

from storage.worker import ThreadWorker

PATIENCE = 30.0


class Loop:
    """The other side: takes calls from any thread, makes them when it is told to, and writes down what came."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self.results: list[object] = []
        self.errors: list[BaseException] = []

    def post(self, call: Callable[[], object]) -> None:
        self._calls.put(call)

    def done(self, result: object, error: BaseException | None) -> None:
        if error is None:
            self.results.append(result)
        else:
            self.errors.append(error)

    def run(self, calls: int) -> None:
        for _ in range(calls):
            self._calls.get(timeout=PATIENCE)()

    @property
    def idle(self) -> bool:
        return self._calls.empty()


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def worker(loop: Loop) -> Iterator[ThreadWorker]:
    made = ThreadWorker("worker", loop.post)
    yield made
    made.close()


def test_work_is_done_in_the_order_in_which_it_was_submitted(loop: Loop, worker: ThreadWorker) -> None:
    for number in range(500):
        worker.submit(lambda number=number: number, loop.done)  # type: ignore[misc]  # mypy infers no lambda's default
    loop.run(500)
    assert loop.results == list(range(500))


def test_work_is_done_in_the_thread_and_its_result_is_taken_on_the_loop(loop: Loop, worker: ThreadWorker) -> None:
    taken: list[object] = []
    worker.submit(threading.current_thread, lambda result, error: taken.append((result, threading.current_thread())))
    loop.run(1)
    assert taken == [(worker._thread, threading.current_thread())]


def test_an_error_is_handed_over_with_its_stack_and_the_next_work_is_done(loop: Loop, worker: ThreadWorker) -> None:
    def fails() -> None:
        raise ValueError("no")

    worker.submit(fails, loop.done)
    worker.submit(lambda: 1, loop.done)
    loop.run(2)
    (error,) = loop.errors
    assert str(error) == "no"
    assert extract_tb(error.__traceback__)[-1].name == "fails"
    assert loop.results == [1]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_no_error_ends_the_thread(loop: Loop, worker: ThreadWorker, error: BaseException) -> None:
    def fails() -> None:
        raise error

    worker.submit(fails, loop.done)
    worker.submit(lambda: 1, loop.done)
    loop.run(2)
    assert loop.errors == [error]
    assert loop.results == [1]


def test_what_comes_after_is_done_in_the_thread_once_the_result_is_on_its_way(loop: Loop, worker: ThreadWorker) -> None:
    entered, go_on = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def after() -> None:
        threads.append(threading.current_thread())
        entered.set()
        assert go_on.wait(PATIENCE)

    worker.submit(lambda: 1, loop.done, after)
    worker.submit(lambda: 2, loop.done)
    loop.run(1)
    assert entered.wait(PATIENCE)
    assert loop.results == [1], "the loop does not wait for it"
    assert loop.idle, "the next work does"
    go_on.set()
    loop.run(1)
    assert loop.results == [1, 2]
    assert threads == [worker._thread]


def test_what_comes_after_is_done_also_where_the_work_failed(loop: Loop, worker: ThreadWorker) -> None:
    ran = threading.Event()
    worker.submit(lambda: [][0], loop.done, ran.set)
    assert ran.wait(PATIENCE)


def test_what_comes_after_goes_on_as_long_as_it_says_so_and_lets_other_work_go_first(
    loop: Loop, worker: ThreadWorker
) -> None:
    done: list[str] = []
    went_on = threading.Event()

    def after() -> bool:
        done.append("after")
        if done.count("after") == 1:
            for _ in range(3):
                worker.submit(lambda: done.append("work"), loop.done)
        if done.count("after") == 4:
            went_on.set()
        return done.count("after") < 4

    worker.submit(lambda: None, loop.done, after)
    assert went_on.wait(PATIENCE)
    loop.run(4)
    worker.close()
    assert done == ["after", "work", "work", "work", "after", "after", "after"]


def test_what_fails_when_it_goes_on_is_logged_and_not_run_again(
    loop: Loop, worker: ThreadWorker, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[int] = []
    failed = threading.Event()

    def after() -> bool:
        runs.append(1)
        if len(runs) == 2:
            failed.set()
            raise OSError("the disk is gone")
        return True

    worker.submit(lambda: 1, loop.done, after)
    assert failed.wait(PATIENCE)
    worker.submit(lambda: 2, loop.done)
    loop.run(2)
    worker.close()
    assert len(runs) == 2
    assert [record.getMessage() for record in caplog.records] == ["worker failed beside its work"]


def test_what_fails_after_the_work_is_logged_and_ends_nothing(
    loop: Loop, worker: ThreadWorker, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> None:
        raise OSError("the disk is gone")

    worker.submit(lambda: 1, loop.done, fails)
    worker.submit(lambda: 2, loop.done)
    loop.run(2)
    assert loop.results == [1, 2]
    (record,) = caplog.records
    assert record.getMessage() == "worker failed beside its work"
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "the disk is gone"


def test_a_loop_that_takes_nothing_more_ends_nothing(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    def closed(call: Callable[[], object]) -> None:
        raise RuntimeError("Event loop is closed")

    worker = ThreadWorker("worker", closed)
    ran: list[int] = []
    worker.submit(lambda: ran.append(1), loop.done)
    worker.submit(lambda: ran.append(2), loop.done)
    worker.close()
    assert ran == [1, 2]
    assert len(caplog.records) == 2


def test_close_returns_when_all_that_was_submitted_is_done(loop: Loop) -> None:
    worker = ThreadWorker("worker", loop.post)
    go_on = threading.Event()
    worker.submit(lambda: go_on.wait(PATIENCE), loop.done)
    for number in range(100):
        worker.submit(lambda number=number: number, loop.done)  # type: ignore[misc]  # mypy infers no lambda's default
    go_on.set()
    worker.close()
    assert not worker._thread.is_alive()
    loop.run(101)
    assert loop.results == [True, *range(100)]


def test_an_idle_worker_keeps_nothing_of_its_last_work(loop: Loop, worker: ThreadWorker) -> None:
    class Big:
        pass

    big = Big()
    gone = threading.Event()
    finalize(big, gone.set)
    worker.submit(lambda held=big: held and None, loop.done)  # type: ignore[misc]  # mypy infers no lambda's default
    del big
    loop.run(1)
    assert gone.wait(PATIENCE)

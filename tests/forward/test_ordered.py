"""Work on threads: results in the items' order, errors and interruptions that stop it, bounded waiting."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from quantkit.forward.ordered import PARKED_PER_THREAD, run_ordered


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    # A thread whose join was interrupted may still be on its way out.
    until = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() <= before


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_results_come_in_the_order_of_the_items(threads: int, count: int) -> None:
    moments = random.Random(count)
    waits = [moments.uniform(0, 0.002) for _ in range(count)]
    items = [f"item {number}" for number in range(count)]
    seen: list[tuple[str, int]] = []

    def work(item: str) -> int:
        time.sleep(waits[int(item.split()[1])])
        return len(item)

    run_ordered(items, work, lambda item, result: seen.append((item, result)), threads)
    assert seen == [(item, len(item)) for item in items]


def test_items_are_worked_on_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=10)
    run_ordered(range(3), lambda item: together.wait(), lambda item, result: None, 3)


def test_one_commit_at_a_time() -> None:
    inside = threading.Lock()

    def commit(item: int, result: int) -> None:
        assert inside.acquire(blocking=False)
        time.sleep(0.001)
        inside.release()

    run_ordered(range(30), lambda item: item, commit, 5)


@pytest.mark.parametrize("threads", [2, 3, 6])
def test_a_slow_item_lets_few_results_wait(threads: int) -> None:
    """Results wait in their places, and each thread may bring one more; whatever the first item takes."""
    release = threading.Event()
    lock = threading.Lock()
    done: list[int] = []
    most = 0
    committed = 0

    def work(item: int) -> int:
        nonlocal most
        if item == 0:
            quiet(done, lock)
            release.set()
            return item
        with lock:
            done.append(item)
            most = max(most, len(done))
        return item

    def commit(item: int, result: int) -> None:
        nonlocal committed
        with lock:
            committed += 1

    run_ordered(range(100), work, commit, threads)
    assert release.is_set()
    assert committed == 100
    waiting = held_back(done)
    assert threads <= waiting <= threads * (PARKED_PER_THREAD + 1)


def quiet(done: list[int], lock: threading.Lock) -> None:
    """Wait until the others have done all that they may; remember how much that was."""
    before = -1
    while True:
        time.sleep(0.1)
        with lock:
            if len(done) == before:
                done.append(-1)
                return
            before = len(done)


def held_back(done: list[int]) -> int:
    """How many items were done when the first one was released."""
    return done.index(-1)


def test_results_are_let_go_once_committed() -> None:
    """A result is a tensor of tens of MB: nothing may keep it."""
    alive = 0
    most = 0
    lock = threading.Lock()

    class Result:
        def __init__(self) -> None:
            nonlocal alive, most
            with lock:
                alive += 1
                most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            with lock:
                alive -= 1

    run_ordered(range(200), lambda item: Result(), lambda item, result: None, 2)
    assert alive == 0
    assert most <= 2 * (PARKED_PER_THREAD + 2)


@pytest.mark.parametrize("where", ["work", "commit"])
@pytest.mark.parametrize("threads", [1, 4])
def test_the_first_error_ends_it(where: str, threads: int) -> None:
    started: list[int] = []
    committed: list[int] = []

    def fail(item: int, place: str) -> int:
        if item == 10 and where == place:
            raise ValueError(f"item {item}")
        return item

    def work(item: int) -> int:
        started.append(item)
        time.sleep(0.001)
        return fail(item, "work")

    def commit(item: int, result: int) -> None:
        fail(item, "commit")
        committed.append(item)

    with pytest.raises(ValueError, match="item 10"):
        run_ordered(range(1000), work, commit, threads)
    if where == "commit":
        assert committed[:10] == list(range(10))
    else:
        assert committed == list(range(len(committed)))
        assert len(committed) <= 10
    assert len(started) < 100


def test_all_items_fail_at_once() -> None:
    together = threading.Barrier(4, timeout=10)

    def work(item: int) -> None:
        together.wait()
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item"):
        run_ordered(range(4), work, lambda item, result: None, 4)


def test_an_error_while_others_wait_for_their_turn() -> None:
    """The first item fails after the others filled all places."""

    def work(item: int) -> int:
        if item == 0:
            time.sleep(0.2)
            raise ValueError("item 0")
        return item

    committed: list[int] = []
    with pytest.raises(ValueError, match="item 0"):
        run_ordered(range(100), work, lambda item, result: committed.append(item), 3)
    assert committed == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_whatever_a_worker_raises_comes_out(error: type[BaseException]) -> None:
    def work(item: int) -> None:
        raise error

    with pytest.raises(error):
        run_ordered(range(9), work, lambda item, result: None, 2)


def test_an_interruption_of_the_caller_stops_the_workers() -> None:
    main = threading.main_thread().ident
    assert main is not None
    started: list[int] = []

    def work(item: int) -> int:
        started.append(item)
        if item == 5:
            signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.02)
        return item

    with pytest.raises(KeyboardInterrupt):
        run_ordered(range(1000), work, lambda item, result: None, 2)
    assert len(started) < 100

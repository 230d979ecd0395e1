"""Work on several threads whose results are taken in the order of the items: same sums whatever the threads do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

# Enough for a thread to go on while another one is at an item several times as large.
PARKED_PER_THREAD = 4

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_ordered(
    items: Sequence[Item],
    work: Callable[[Item], Result],
    commit: Callable[[Item, Result], None],
    threads: int,
) -> None:
    """Call `work` on every item, on `threads` threads, and `commit` with each result, one at a time, in item order.

    Finished results wait for their turn, at most `PARKED_PER_THREAD` per thread, so that memory is bounded. The first
    exception stops the others after their present item and is raised here; so is KeyboardInterrupt.
    """
    queue = _Queue(items, commit, threads * PARKED_PER_THREAD)

    def worker() -> None:
        try:
            while (number := queue.take()) is not None:
                queue.finished(number, work(items[number]))
        except BaseException as error:
            queue.stop(error)

    pool = [threading.Thread(target=worker, daemon=True) for _ in range(min(threads, len(items)))]
    for thread in pool:
        thread.start()
    try:
        for thread in pool:
            thread.join()
    except BaseException as error:
        queue.stop(error)
        for thread in pool:
            thread.join()
    if queue.errors:
        raise queue.errors[0]


class _Queue(Generic[Item, Result]):
    """Hands out the items in order and takes the results back into that order."""

    def __init__(self, items: Sequence[Item], commit: Callable[[Item, Result], None], parking: int) -> None:
        self.items = items
        self.errors: list[BaseException] = []
        self._commit = commit
        self._parking = parking
        self._gate = threading.Condition()
        self._parked: dict[int, Result] = {}
        self._taken = 0
        self._turn = 0
        self._committing = False

    def take(self) -> int | None:
        """The next item's number; None when there is none, or when another thread failed."""
        with self._gate:
            while len(self._parked) > self._parking and not self.errors:
                self._gate.wait()
            if self.errors or self._taken == len(self.items):
                return None
            self._taken += 1
            return self._taken - 1

    def finished(self, number: int, result: Result) -> None:
        """Commit `result` and what waited for it; or leave it parked, for whoever does its predecessor."""
        with self._gate:
            self._parked[number] = result
        del result
        while (turn := self._next_turn()) is not None:
            try:
                self._commit(self.items[turn], self._parked.pop(turn))
            finally:
                with self._gate:
                    self._committing = False
                    self._turn += 1
                    self._gate.notify_all()

    def stop(self, error: BaseException) -> None:
        """Let all threads end after their present item."""
        with self._gate:
            self.errors.append(error)
            self._gate.notify_all()

    def _next_turn(self) -> int | None:
        with self._gate:
            if self._committing or self._turn not in self._parked or self.errors:
                return None
            self._committing = True
            return self._turn

"""Work on several threads whose results are taken in the order of the items: same sums whatever the threads do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_ordered(
    items: Sequence[Item],
    work: Callable[[Item], Result],
    commit: Callable[[Item, Result], None],
    threads: int,
) -> None:
    """Call `work` on every item, on `threads` threads, and `commit` with each result, one at a time, in item order.

    At most `threads` finished results wait for their turn, so memory is bounded. The first exception stops the
    others after their present item and is raised here; so is KeyboardInterrupt.
    """
    gate = threading.Condition()
    parked: dict[int, Result] = {}
    errors: list[BaseException] = []
    taken = 0
    turn = 0
    committing = False

    def take() -> int | None:
        nonlocal taken
        with gate:
            while len(parked) > threads and not errors:
                gate.wait()
            if errors or taken == len(items):
                return None
            taken += 1
            return taken - 1

    def drain() -> None:
        nonlocal turn, committing
        while True:
            with gate:
                if committing or turn not in parked or errors:
                    return
                committing = True
                number, result = turn, parked.pop(turn)
            try:
                commit(items[number], result)
            finally:
                with gate:
                    committing = False
                    turn += 1
                    gate.notify_all()

    def worker() -> None:
        try:
            while (number := take()) is not None:
                result = work(items[number])
                with gate:
                    parked[number] = result
                del result
                drain()
        except BaseException as error:
            with gate:
                errors.append(error)
                gate.notify_all()

    pool = [threading.Thread(target=worker, daemon=True) for _ in range(min(threads, len(items)))]
    for thread in pool:
        thread.start()
    try:
        for thread in pool:
            thread.join()
    except BaseException as error:
        with gate:
            errors.append(error)
            gate.notify_all()
        for thread in pool:
            thread.join()
    if errors:
        raise errors[0]

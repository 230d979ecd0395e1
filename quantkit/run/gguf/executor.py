"""Work items on a pool of threads, admitted within a memory budget."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from quantkit.errors import BadInput
from quantkit.run.gguf.items import Item
from quantkit.run.sizes import format_size, resident

# Items per thread that are announced but not begun.
AHEAD = 2


def check_budget(items: Sequence[Item], budget: int) -> None:
    """Raise BadInput when one item does not fit into `budget` bytes, the program not counted."""
    largest = max((item.memory for item in items), default=0)
    if largest > budget:
        raise BadInput(
            f"--memory: one work item needs {format_size(largest)} beside the program's {format_size(resident())}; "
            f"give at least --memory {-(-(resident() + largest) // 10**6)}M"
        )


def run_items(
    items: Sequence[Item],
    work: Callable[[Item], None],
    threads: int,
    budget: int,
    announce: Callable[[Item], None] = lambda item: None,
) -> None:
    """Call `work` on every item, on `threads` threads, holding at most `budget` bytes of items at once.

    Before a thread begins an item it calls `announce` on one that is due some items later, so that disks are busy
    while processors are.

    Every item must fit into `budget`, see `check_budget`. The first exception stops the others after their present
    item and is raised here; so is KeyboardInterrupt.
    """
    waiting = deque(items)
    errors: list[BaseException] = []
    free = budget
    ahead = AHEAD * threads
    gate = threading.Condition()

    def take() -> tuple[Item, Item | None] | None:
        """The next item, and the one that is due later."""
        nonlocal free
        with gate:
            while waiting and not errors:
                if waiting[0].memory <= free:
                    item = waiting.popleft()
                    free -= item.memory
                    return item, waiting[ahead - 1] if len(waiting) >= ahead else None
                gate.wait()
            return None

    def give_back(item: Item) -> None:
        nonlocal free
        with gate:
            free += item.memory
            gate.notify_all()

    def worker() -> None:
        while (taken := take()) is not None:
            item, later = taken
            try:
                if later is not None:
                    announce(later)
                work(item)
            except BaseException as error:
                with gate:
                    errors.append(error)
            finally:
                give_back(item)

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

"""The order in which items are announced and worked on."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from quantkit.run.gguf.executor import AHEAD, run_items


@dataclass(frozen=True)
class Piece:
    """As much of an item as the executor looks at."""

    number: int
    memory: int = 1


@pytest.mark.parametrize("count", [1, 3, 20])
def test_items_are_announced_before_they_are_due(count: int) -> None:
    pieces, seen = [Piece(number) for number in range(count)], []
    run_items(
        pieces,  # type: ignore[arg-type]
        lambda item: seen.append(("work", item.number)),
        1,
        10,
        lambda item: seen.append(("announce", item.number)),
    )
    expected = []
    for number in range(count):
        if number + AHEAD < count:
            expected.append(("announce", number + AHEAD))
        expected.append(("work", number))
    assert seen == expected


def test_each_is_announced_once_and_worked_on_once_by_many_threads() -> None:
    announced, done = [], []
    run_items(
        [Piece(number) for number in range(200)],  # type: ignore[arg-type]
        lambda item: done.append(item.number),
        4,
        3,
        lambda item: announced.append(item.number),
    )
    assert sorted(done) == list(range(200))
    assert sorted(announced) == list(range(4 * AHEAD, 200))


def test_an_error_while_announcing_ends_the_run() -> None:
    def fail(item: object) -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        run_items([Piece(number) for number in range(9)], lambda item: None, 2, 10, fail)  # type: ignore[arg-type]

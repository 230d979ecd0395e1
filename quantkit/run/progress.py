"""One progress line on stderr with rate and time left; silent when stderr is not a terminal."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class _Rates(ProgressColumn):
    """Bytes of source and millions of weights per second."""

    def render(self, task: Task) -> Text:
        seconds = (task.finished_time if task.finished else task.elapsed) or 0.0
        fresh = task.completed - task.fields["resumed"]
        if not seconds or not fresh:
            return Text("")
        source_rate = task.fields["source_bytes"] / seconds / 1e9
        rate = f"{source_rate:.2f} GB/s" if source_rate >= 1 else f"{source_rate * 1e3:.0f} MB/s"
        return Text(f"{rate} {fresh / seconds / 1e6:.0f} Mweights/s", no_wrap=True)


class _Line:
    """A line with a label, a bar, `columns` and the time left, on a terminal alone."""

    def __init__(self, label: str, total: int, columns: list[ProgressColumn], *, quiet: bool, **fields: Any) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            *columns,
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=quiet or not console.is_terminal,
            speed_estimate_period=120,
        )
        self._task = self._progress.add_task(label, total=total, **fields)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class WeightProgress(_Line):
    """Progress in weights. `resumed` weights were done by an earlier run and do not count towards the rate."""

    def __init__(self, label: str, total: int, resumed: int, *, quiet: bool = False) -> None:
        columns = [TextColumn("{task.percentage:.1f} %"), _Rates()]
        super().__init__(label, total, columns, quiet=quiet, completed=resumed, resumed=resumed, source_bytes=0)
        self._lock = threading.Lock()
        self._source_bytes = 0

    def advance(self, weights: int, source_bytes: int) -> None:
        """Count `weights` as done and `source_bytes` as read. Thread-safe."""
        with self._lock:
            self._source_bytes += source_bytes
            self._progress.update(self._task, advance=weights, source_bytes=self._source_bytes)


class CountProgress(_Line):
    """Progress in whatever is counted. Thread-safe."""

    def __init__(self, label: str, total: int, unit: str, *, quiet: bool = False) -> None:
        super().__init__(label, total, [TextColumn("{task.completed:.0f}/{task.total:.0f} " + unit)], quiet=quiet)

    def advance(self, count: int) -> None:
        """Count so many more as done."""
        self._progress.advance(self._task, count)

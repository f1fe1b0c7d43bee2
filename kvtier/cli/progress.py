"""A progress bar for what takes long, and lines that do not tear it."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kvtier.clock import Clock, WallClock

PATIENCE_NS: Final = 2_000_000_000
"""How long nobody asks how far it is."""
REFRESH_NS: Final = 200_000_000


class LateProgress:
    """A bar on the standard error, from two seconds on, and never where that is no terminal.

    It is drawn by whoever reports progress: no thread of its own would disturb what is measured.

    Args:
        label: what is being done.
        clock: measures the two seconds.
        console: where to draw; the standard error by default.
    """

    def __init__(
        self, label: str, clock: Clock | None = None, console: Console | None = None
    ) -> None:
        self._label = label
        self._clock = clock or WallClock()
        self._console = console or Console(stderr=True)
        self._next_ns = self._clock.now_ns() + PATIENCE_NS
        self._bar: Progress | None = None

    def __enter__(self) -> LateProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int | None) -> None:
        """``done`` of ``total`` are finished; ``total`` is None where nobody knows."""
        now_ns = self._clock.now_ns()
        if now_ns < self._next_ns or not self._console.is_terminal:
            return
        self._next_ns = now_ns + REFRESH_NS
        if self._bar is None:
            self._bar = _start_bar(self._label, self._console)
        self._bar.update(self._bar.task_ids[0], completed=done, total=total, refresh=True)

    def notify(self, text: str) -> None:
        """One line above the bar, or on the standard error."""
        line = " ".join(text.split())
        if self._bar is None:
            sys.stderr.write(f"kvtier: {line}\n")
            sys.stderr.flush()
        else:
            self._console.print(f"kvtier: {line}", markup=False, highlight=False, soft_wrap=True)


def _start_bar(label: str, console: Console) -> Progress:
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        auto_refresh=False,
        transient=True,
    )
    bar.add_task(label, total=None)
    bar.start()
    return bar

"""Show how far a program is and when it will be done; without a terminal, one line for each part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True)


class Teller:
    """Count steps of known number, and say what is under way."""

    def __init__(self, progress: Progress, total: float) -> None:
        self._progress = progress
        self._bar = progress.add_task("starting", total=total)

    def at(self, title: str) -> None:
        """Name what begins now."""
        self._progress.update(self._bar, description=title)
        if not console.is_terminal:
            console.print(title)

    def step(self, count: float = 1) -> None:
        """Count what is done."""
        self._progress.advance(self._bar, count)

    def expect(self, more: float) -> None:
        """Add steps that were not known before."""
        total = self._progress.tasks[self._bar].total or 0
        self._progress.update(self._bar, total=total + more)


@contextmanager
def told(total: float) -> Iterator[Teller]:
    """Show a bar of ``total`` steps with the time left while the block runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield Teller(progress, total)

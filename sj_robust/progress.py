"""Progress bars on stderr: images per second and time left; none where stderr is not a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(
            "" if not task.speed else f"{task.speed:.0f} {task.fields['unit']}/s", style="cyan"
        )


class Bar:
    """One running bar: `advance` it by units done, `note` a short text behind it."""

    def __init__(self, progress: Progress | None = None, task: int = 0) -> None:
        self._progress, self._task = progress, task

    def advance(self, units: float) -> None:
        if self._progress:
            self._progress.advance(self._task, units)  # type: ignore[arg-type]

    def note(self, text: str) -> None:
        if self._progress:
            self._progress.update(self._task, note=text)  # type: ignore[arg-type]


@contextmanager
def bar(
    description: str,
    total: float,
    *,
    unit: str = "images",
    done: float = 0,
    show: bool | None = None,
) -> Iterator[Bar]:
    """Show a bar while the block runs. `show=None` shows it only on a terminal."""
    if not (sys.stderr.isatty() if show is None else show):
        yield Bar()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total, completed=int(done), unit=unit, note="")
        yield Bar(progress, task)

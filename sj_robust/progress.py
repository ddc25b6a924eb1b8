"""Progress on stderr: a bar on a terminal, and elsewhere, such as in a log, a line a minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from sj_robust.text import visible

LINE_SECONDS = 60.0  # between two lines of a log


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(
            "" if not task.speed else f"{task.speed:.0f} {task.fields['unit']}/s", style="cyan"
        )


class Bar:
    """What shows nothing: `advance` it by units done, `skip` those that were done before, which
    count for no rate, say how many are `left` at most, and `note` a short text behind it."""

    def advance(self, units: float) -> None: ...

    def skip(self, units: float) -> None: ...

    def left(self, units: float) -> None: ...

    def note(self, text: str) -> None: ...


class _Drawn(Bar):
    def __init__(
        self, progress: Progress, description: str, total: float, unit: str, done: float
    ) -> None:
        self._progress = progress
        self._task = progress.add_task(
            description, total=total, completed=int(done), unit=unit, note=""
        )

    def advance(self, units: float) -> None:
        self._progress.advance(self._task, units)

    def skip(self, units: float) -> None:
        # by its methods it would count as just done
        self._shown().completed += units

    def left(self, units: float) -> None:
        self._progress.update(self._task, total=self._shown().completed + units)

    def note(self, text: str) -> None:
        self._progress.update(self._task, note=text)

    def _shown(self) -> Task:
        return next(task for task in self._progress.tasks if task.id == self._task)


class _Lines(Bar):
    def __init__(self, description: str, total: float, unit: str, done: float) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._before, self._done, self._note, self._bound = done, 0.0, "", ""
        self._started = self._said = time.monotonic()

    def advance(self, units: float) -> None:
        self._done += units
        now = time.monotonic()
        if now - self._said >= LINE_SECONDS and self._done:
            self._said = now
            rate = self._done / (now - self._started)
            so_far = self._before + self._done
            left = timedelta(seconds=round(max(0.0, self._total - so_far) / rate))
            share = 100 * so_far / max(self._total, so_far)
            text = (
                f"{self._description} {share:.0f} %, {rate:.3g} {self._unit}/s,"
                f" {self._bound}{left} left"
            )
            if self._note:
                text += f"; {self._note}"
            print(visible(text), file=sys.stderr, flush=True)

    def skip(self, units: float) -> None:
        self._before += units

    def left(self, units: float) -> None:
        self._total, self._bound = self._before + self._done + units, "at most "

    def note(self, text: str) -> None:
        self._note = text


@contextmanager
def bar(
    description: str,
    total: float,
    *,
    unit: str = "images",
    done: float = 0,
    show: bool | None = None,
) -> Iterator[Bar]:
    """Show how far the block is. `show=None` draws a bar on a terminal alone and writes a line a
    minute elsewhere, True draws one anywhere, False shows nothing. `done` of the total were done
    before."""
    if show is False:
        yield Bar()
    elif show or sys.stderr.isatty():
        # a note is cut where the terminal ends, rather than begun on a line of its own
        rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        columns = (
            TextColumn("{task.description}"),
            BarColumn(20),
            TextColumn("{task.percentage:>3.0f} %"),
            _Rate(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", table_column=rest),
        )
        with Progress(*columns, console=Console(stderr=True), expand=True) as progress:
            yield _Drawn(progress, description, total, unit, done)
    else:
        yield _Lines(description, total, unit, done)

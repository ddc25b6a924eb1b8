"""What a run leaves to read: log.jsonl, one JSON object per line, and curves.png drawn from it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sj_robust.files import atomic_path

LOG_FILE, CURVES_FILE = "log.jsonl", "curves.png"


class Log:
    """Append-only JSON lines in `folder`. `start` (bytes, from the saved state) cuts off what a
    killed run wrote after its last saved state, so that the resumed run writes those lines once."""

    def __init__(self, folder: Path, start: int) -> None:
        self._path = folder / LOG_FILE
        self._file = open(self._path, "ab")  # noqa: SIM115 (closed by __exit__)
        self._file.truncate(min(start, os.path.getsize(self._path)))

    def write(self, **facts: Any) -> None:
        self._file.write((json.dumps(facts) + "\n").encode())
        self._file.flush()  # for whoever follows the log

    def sync(self) -> int:
        """Bring the lines to disk; the length of the log in bytes, which belongs in the state saved
        next."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class NoLog(Log):
    """The log of a process that leaves writing to another one."""

    def __init__(self) -> None:
        pass

    def write(self, **facts: Any) -> None:
        pass

    def sync(self) -> int:
        return 0

    def __exit__(self, *_: object) -> None:
        pass


def read_log(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All lines of `folder`/log.jsonl, in order; each has "event": "train" or "validation"."""
    return [
        json.loads(line)
        for line in (Path(folder) / LOG_FILE).read_text(encoding="utf-8").splitlines()
    ]


def draw_curves(folder: Path) -> None:
    """Draw loss and learning rate, and accuracies in training and validation, over epochs, into
    `folder`/curves.png."""
    # imported here: slow, and needed once per validation
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = read_log(folder)
    figure = Figure(figsize=(11, 4))
    FigureCanvasAgg(figure)
    left, right = figure.subplots(
        1, 2, gridspec_kw={"left": 0.06, "right": 0.98, "bottom": 0.13, "top": 0.96, "wspace": 0.3}
    )
    rate = left.twinx()

    def plot(axes: Any, event: str, key: str, label: str, style: str) -> None:
        points = [
            (line["epoch"], line[key])
            for line in lines
            if line["event"] == event and line.get(key) is not None
        ]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1, markersize=4)

    for key, style in (("loss", "C0-"), ("ce", "C1-"), ("kl", "C2-")):
        plot(left, "train", key, key, style)
    plot(rate, "train", "lr", "lr", "k:")
    for key, colour in (("clean", "C0"), ("robust", "C3")):
        plot(right, "train", key, f"{key}, training batches", f"{colour}-")
        plot(right, "validation", key, f"{key}, held-out images", f"{colour}o--")
    left.set(xlabel="epoch", ylabel="loss")
    rate.set_ylabel("learning rate")
    right.set(xlabel="epoch", ylabel="accuracy", ylim=(0, 1))
    for axes in (left, right):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    with atomic_path(folder / CURVES_FILE) as temporary:
        figure.savefig(temporary, format="png", dpi=100)

"""Figures of a report, readable in a paper: one PNG and one PDF each, colours that differ in grey
too."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sj_robust.evaluation.report import Report, attempt_view
from sj_robust.files import atomic_path

_WIDTH, _HEIGHT = 4.5, 3.2  # inches: a column of a two-column paper and a half


def draw_figures(report: Report, folder: str | os.PathLike[str]) -> list[Path]:
    """Draw what the report has: accuracy against eps after each attack, what each step of attacks
    cost and broke, the views' contributions, spike rates by layer. Returns the files, PNG then PDF
    of each."""
    drawings: list[tuple[str, Callable[[Any, Report], None]]] = []
    if report.joint:
        drawings += [("accuracy", _accuracy), ("attacks", _attacks), ("views", _views)]
    if report.activity:
        drawings.append(("spikes", _spikes))
    files = []
    for name, draw in drawings:
        figure, axes = _figure()
        draw(axes, report)
        for kind in ("png", "pdf"):
            path = Path(folder) / f"{name}.{kind}"
            with atomic_path(path) as temporary:
                figure.savefig(temporary, format=kind, dpi=200, bbox_inches="tight")
            files.append(path)
    return files


def _figure() -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported here: slow
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, _HEIGHT))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    return figure, axes


def _accuracy(axes: Any, report: Report) -> None:
    """Accuracy over eps after each attack in turn, with the interval of the last."""
    levels = [0.0, *(joint.eps * 255 for joint in report.joint)]
    marks = "osD^vP*Xh"
    for number, attack in enumerate(report.settings.attacks):
        results = [result.joint for result in report.robust if result.attack == attack]
        values = [report.clean.value, *(result.value for result in results)]
        axes.plot(
            levels,
            [100 * value for value in values],
            marker=marks[number % len(marks)],
            markersize=4,
            linewidth=1,
            label=f"after {attack}" if report.settings.survivors_only else attack,
        )
    joint = [report.clean, *(joint.accuracy for joint in report.joint)]
    axes.fill_between(
        levels,
        [100 * found.low for found in joint],
        [100 * found.high for found in joint],
        alpha=0.2,
        linewidth=0,
        color="k",
        label="95 % interval",
    )
    title = report.settings.protocol or "joint"
    axes.set(
        xlabel=f"eps × 255 ({report.settings.norm})",
        ylabel="accuracy / %",
        ylim=(0, 100),
        title=title,
    )
    axes.set_xticks(levels)
    axes.legend(fontsize=6, frameon=False)


def _attacks(axes: Any, report: Report) -> None:
    """The steps curve: accuracy left over the model passes spent, at each eps."""
    for joint in report.joint:
        results = [result for result in report.robust if result.eps == joint.eps]
        before = (report.clean.correct - joint.carried) / report.clean.total
        spent, left = [0.0], [100 * before]
        for result in results:
            spent.append(
                spent[-1]
                + ((result.forward_images or 0) + (result.backward_images or 0))
                / report.dataset.evaluated
            )
            left.append(100 * result.joint.value)
        axes.plot(
            spent, left, marker="o", markersize=3, linewidth=1, label=f"{joint.eps * 255:g}/255"
        )
        for result, x, y in zip(results, spent[1:], left[1:], strict=True):
            axes.annotate(
                result.attack, (x, y), fontsize=5, xytext=(2, 3), textcoords="offset points"
            )
    axes.set(
        xlabel="passes per image, forward and backward",
        ylabel="accuracy left / %",
        ylim=(0, None),
        xscale="symlog",
    )
    axes.legend(fontsize=6, frameon=False, title="eps", title_fontsize=6)


def _views(axes: Any, report: Report) -> None:
    """The images that each view was the first to break, by eps."""
    counts = [
        Counter(attempt_view(by) for by in broken if by) for broken in report.per_image.broken_by
    ]
    views = list(
        dict.fromkeys(view for count in reversed(counts) for view, _ in count.most_common())
    )
    height = 0.8 / max(1, len(counts))
    for number, (joint, count) in enumerate(zip(report.joint, counts, strict=True)):
        places = [place + (number - (len(counts) - 1) / 2) * height for place in range(len(views))]
        axes.barh(
            places,
            [100 * count[view] / report.dataset.evaluated for view in views],
            height=height,
            label=f"{joint.eps * 255:g}/255",
        )
    axes.set_yticks(range(len(views)), views, fontsize=6)
    axes.invert_yaxis()
    axes.set(xlabel="images first broken through this view / %")
    axes.grid(axis="y", visible=False)
    if views:
        axes.legend(fontsize=6, frameon=False, title="eps", title_fontsize=6)


def _spikes(axes: Any, report: Report) -> None:
    assert report.activity is not None
    layers = report.activity.layers
    axes.bar(range(len(layers)), [layer.rate for layer in layers.values()], width=0.8)
    axes.set_xticks(range(len(layers)), list(layers), rotation=90, fontsize=5)
    axes.set(ylabel="spikes per neuron and step", ylim=(0, None))

"""The plot of a card: accuracy against eps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sj_robust.checkpoint.results import Results
from sj_robust.files import atomic_path


def plot_accuracy(curves: Mapping[str, Results], path: Path) -> None:
    """Write a PNG with one line per labelled result: clean accuracy at eps 0, joint robust accuracy
    behind it, Wilson 95 % bars."""
    # without pyplot: no global state, no display needed
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for index, (label, result) in enumerate(curves.items()):
        points = sorted([result.clean, *result.robust], key=lambda point: point.eps)
        values = [100 * point.value for point in points]
        below = [100 * max(0.0, point.value - point.low) for point in points]
        above = [100 * max(0.0, point.high - point.value) for point in points]
        axes.errorbar(
            [255 * point.eps for point in points],
            values,
            yerr=[below, above],
            label=label,
            marker="os^D"[index % 4],
            capsize=3,
            linestyle="-" if index == 0 else "--",
        )
    axes.set(xlabel="eps × 255 (l∞)", ylabel="accuracy, %", ylim=(0, 100))
    axes.set_xlim(left=-0.3)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary), metadata={"Software": None})

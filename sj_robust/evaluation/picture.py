"""The picture of one attacked image: how it looks, and how it spikes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sj_robust.evaluation.words import eps_name
from sj_robust.text import visible

if TYPE_CHECKING:
    from sj_robust.evaluation.shown import Shown

Numbers = npt.NDArray[Any]

_WIDTH = 8.0  # inches: 800 pixels of a screen
_IMAGES, _SPIKES = 2.5, 4.6  # inches high: the row of images, the rows of spikes
_TITLE, _LABEL, _TICK = 9, 8, 7  # points
_BEFORE, _AFTER = "C0", "C1"  # of the image and the adversarial one, wherever both stand
_BOTH, _SILENT = "0.25", "0.94"
_MOST_CLASSES, _MOST_NAMES = 10, 40
_NAME = 18  # characters of a class or the end of a layer's name


def draw(shown: Shown, title: str, neurons: int) -> Any:
    """The matplotlib Figure: images, difference and logits, and below them, of a spiking network,
    the spikes of so many neurons of each layer for both images, over one axis with the rates."""
    # imported here: slow; without pyplot: no global state, no display needed
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = _IMAGES + (_SPIKES if shown.spikes else 0)
    figure: Any = Figure(figsize=(_WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(visible(title, 110), fontsize=_TITLE, parse_math=False)
    if shown.spikes:
        above, below = figure.subfigures(2, 1, height_ratios=(_IMAGES, _SPIKES))
        _draw_images(above, shown)
        _draw_spikes(below, shown, neurons)
    else:
        _draw_images(figure, shown)
    return figure


def encode(figure: Any, dpi: int) -> bytes:
    """A PNG of the figure."""
    file = io.BytesIO()
    with warnings.catch_warnings():  # names may have signs that the font lacks
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    return file.getvalue()


def _draw_images(figure: Any, shown: Shown) -> None:
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.25))
    eps = eps_name(shown.eps)
    attack = f"{shown.attack}, {eps}" if shown.right else "not attacked"
    before, after = (
        (_name(shown, label), f"margin {_signed(margin)}")
        for label, margin in zip(shown.predictions, shown.margins, strict=True)
    )
    change = (shown.adversarial - shown.image) / (2 * shown.eps) + 0.5
    for place, pixels, lines in (
        (axes[0], shown.image, ("image", *before)),
        (axes[1], shown.adversarial, (attack, *after)),
        (axes[2], change, ("difference", "black to white is", f"−{eps} to +{eps}")),
    ):
        place.imshow(
            pixels.clamp(0, 1).movedim(0, 2).expand(-1, -1, 3).numpy(), interpolation="nearest"
        )
        place.set_title("\n".join(lines), fontsize=_TITLE, parse_math=False)
        place.set(xticks=[], yticks=[])
    _draw_logits(axes[3], shown)


def _draw_logits(axes: Any, shown: Shown) -> None:
    """Of all classes, or of the highest ones."""
    highest = shown.logits.amax(0)
    highest[[shown.label, *shown.predictions]] = torch.inf
    classes = sorted(highest.argsort(descending=True, stable=True)[:_MOST_CLASSES].tolist())
    _bars(axes.barh, shown.logits[:, classes], np.arange(len(classes)), 0.8)
    axes.set_yticks(
        range(len(classes)),
        [_name(shown, label) for label in classes],
        fontsize=_TICK,
        parse_math=False,
    )
    axes.axvline(0, color="k", linewidth=0.6)
    axes.get_yticklabels()[classes.index(shown.label)].set_fontweight("bold")
    axes.invert_yaxis()
    axes.legend(
        title="logits",
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        ncols=2,
        columnspacing=1,
        handlelength=1,
        fontsize=_LABEL,
        title_fontsize=_TITLE,
        frameon=False,
    )
    _plain(axes, "x")


def _draw_spikes(figure: Any, shown: Shown, neurons: int) -> None:
    """Layers stand side by side, time runs from left to right within each; the rates stand below,
    at the same places."""
    trains = [_some(train, neurons) for train in shown.spikes.values()]
    steps = np.array([train.shape[1] for train in trains])
    gap = min(max(1, round(steps[0] / 4)), -(-steps.sum() // 40))
    starts = np.cumsum(steps + gap) - steps - gap
    middles = starts + (steps - 1) / 2
    axes = figure.subplots(3, 1, sharex=True, height_ratios=(1.25, 1.25, 1))
    number = f"{'up to ' * any(train.shape[2] < neurons for train in trains)}{neurons}"
    what = f"spikes of {number} neurons of each layer, {_counted(steps[0])} from left to right"
    for which, (place, colour, title) in enumerate(
        (
            (axes[0], _BEFORE, f"image: {what}"),
            (
                axes[1],
                _AFTER,
                "adversarial image: the same neurons; in colour what the other lacks",
            ),
        )
    ):
        place.imshow(
            _raster(trains, starts, neurons, which, colour),
            aspect="auto",
            interpolation="nearest",
            extent=(-0.5, starts[-1] + steps[-1] - 0.5, neurons - 0.5, -0.5),
        )
        place.set_title(title, fontsize=_TITLE, loc="left")
        place.set_ylabel("neuron", fontsize=_LABEL)
        place.set_yticks([])
        place.tick_params(bottom=False)
        place.spines[:].set_visible(False)
    rates = torch.tensor(list(shown.rates().values())).T
    _bars(axes[2].bar, rates, middles, 0.8 * steps)
    axes[2].set_title(
        "firing rate: spikes per neuron and step, all neurons", fontsize=_TITLE, loc="left"
    )
    every = -(-len(middles) // _MOST_NAMES)
    axes[2].set_xticks(
        middles[::every],
        [_end(visible(name)) for name in list(shown.spikes)[::every]],
        rotation=90,
        fontsize=_TICK,
        parse_math=False,
    )
    _plain(axes[2], "y")


def _raster(
    trains: Sequence[Tensor], starts: Numbers, neurons: int, which: int, colour: str
) -> Any:
    """RGB [neurons, columns, 3]: a block of columns for each layer, white between them."""
    from matplotlib.colors import to_rgb

    pixels = np.ones((neurons, starts[-1] + trains[-1].shape[1], 3))
    for train, start in zip(trains, starts, strict=True):
        here, there = train[which].T.numpy(), train[1 - which].T.numpy()
        block = pixels[: len(here), start : start + here.shape[1]]
        block[:] = to_rgb(_SILENT)
        block[here & there] = to_rgb(_BOTH)
        block[here & ~there] = to_rgb(colour)
    return pixels


def _some(train: Tensor, neurons: int) -> Tensor:
    """[2, T, `neurons`] of [2, T, n]: always the same, drawn at random as a regular choice would
    meet the same few columns of every channel."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(train.shape[2], generator=generator)[:neurons].sort().values
    return train[:, :, chosen]


def _bars(bar: Any, pair: Tensor, places: Numbers, widths: Numbers | float) -> None:
    """Two bars side by side at each place, that of the image first."""
    for values, label, colour, side in zip(
        pair.tolist(), ("image", "adversarial"), (_BEFORE, _AFTER), (-1, 1), strict=True
    ):
        bar(places + side * widths / 4, values, widths / 2, color=colour, label=label)


def _counted(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _plain(axes: Any, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_TICK)
    axes.grid(axis=grid, linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)


def _name(shown: Shown, label: int) -> str:
    return visible(shown.classes[label], _NAME)


def _end(name: str) -> str:
    return name if len(name) <= _NAME else f"…{name[1 - _NAME :]}"

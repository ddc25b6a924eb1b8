"""An attacker who has to write a file: adversarial images on the grid of 256 values that 8 bits
hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sj_robust.budget import radii
from sj_robust.errors import SJRobustError
from sj_robust.model.hooks import hooked

Grid = Literal["8bit"]
LIMIT = (
    "Adversarial images have 256 values in each channel, as a file holds them: "
    "an attacker with finer ones may break more."
)


def to_grid(x: Tensor) -> Tensor:
    """The nearest multiples of 1/255, in the very floats that a data set of 8 bits makes of
    them."""
    # by a tensor: a division by a number becomes a product with its inverse on some devices
    return (x * 255).round() / torch.full((), 255.0, dtype=x.dtype, device=x.device)


def grid_radii(grid: str, eps: Any, norm: str) -> list[float]:
    """The radii, ascending, lowered to whole numbers of 1/255: a ball around an image of 8 bits
    holds the same images of 8 bits then.

    Raises SJRobustError for another grid, for l2, in which rounding to the nearest value may leave
    the ball, and for a radius between 0 and 1/255.
    """
    if grid != "8bit":
        raise SJRobustError(f"grid is {grid!r}: expected 8bit, or none")
    if norm != "linf":
        raise SJRobustError(
            f"a grid of 8 bits is for linf, not {norm}, whose ball rounding would leave: "
            "leave grid out"
        )
    lowered = set()
    for value in radii(eps, norm):
        levels = math.floor(value * 255 + 1e-6)
        if value > 0 and not levels:
            raise SJRobustError(
                f"eps is {value:g}: on the grid of 8 bits no other image is so near, "
                "expected at least 1/255"
            )
        lowered.add(levels / 255)
    return sorted(lowered)


@contextmanager
def on_grid(models: Iterable[nn.Module]) -> Iterator[None]:
    """The models see their images rounded to the grid while the block runs, and hand gradients on
    as if they did not, so that any attack searches among, and is judged on, what a file can
    hold."""

    def rounded(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x = inputs[0]
        found = to_grid(x.detach())
        return (found + (x - x.detach()) if x.requires_grad else found, *inputs[1:])

    with hooked([model.register_forward_pre_hook(rounded) for model in models]):
        yield

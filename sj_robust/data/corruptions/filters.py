"""Filters and resampling for a batch, float64 [N, C, H, W].

Sums go tap by tap over whole tensors, never through a convolution or matrix product: those may add
up in another order for another batch size, and then round to another level.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Border = Literal["nearest", "reflect", "mirror"]


def inside(index: Tensor, size: int, border: Border) -> Tensor:
    """Where an index outside 0 … size−1 reads: the last pixel, or mirrored with (abc|cba) or
    without (abc|ba) the last pixel."""
    if border == "nearest":
        return index.clamp(0, size - 1)
    if border == "reflect":
        index = index.remainder(2 * size)
        return torch.minimum(index, 2 * size - 1 - index)
    index = index.remainder(2 * size - 2)
    return torch.minimum(index, 2 * size - 2 - index)


def shifted(x: Tensor, offset: int, axis: int, border: Border) -> Tensor:
    """`x` with pixel i + offset at i, along one axis."""
    size = x.shape[axis]
    return (
        x
        if offset == 0
        else x.index_select(axis, inside(torch.arange(size) + offset, size, border))
    )


def gaussian(
    x: Tensor, sigma: float, *, truncate: float = 4.0, border: Border = "nearest"
) -> Tensor:
    """Gaussian blur along the last two axes, the kernel cut at `truncate` standard deviations."""
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return x
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-radius, radius + 1)]
    for axis in (-1, -2):
        x = _sum(
            [
                shifted(x, i - radius, axis, border) * (weight / sum(weights))
                for i, weight in enumerate(weights)
            ]
        )
    return x


def correlate(x: Tensor, kernel: Tensor) -> Tensor:
    """`kernel` [2r+1, 2r+1] centred on every pixel; the border is mirrored without its pixel."""
    radius = len(kernel) // 2
    taps = [(int(row), int(column)) for row, column in kernel.nonzero()]
    return _sum(
        [
            shifted(shifted(x, row - radius, -2, "mirror"), column - radius, -1, "mirror")
            * float(kernel[row, column])
            for row, column in taps
        ]
    )


def pick(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pixels of each image at `rows` and `columns`, int64 [N, H', W'] → [N, C, H', W']."""
    count, channels = x.shape[:2]
    flat = (rows * x.shape[3] + columns).reshape(count, 1, -1).expand(-1, channels, -1)
    return x.flatten(2).gather(2, flat).reshape(count, channels, *rows.shape[1:])


def bilinear(x: Tensor, rows: Tensor, columns: Tensor, border: Border) -> Tensor:
    """The same at positions between pixels, float64 [N, H', W']."""
    top, left = rows.floor(), columns.floor()
    down, right = (rows - top)[:, None], (columns - left)[:, None]

    def corner(dy: int, dx: int) -> Tensor:
        return pick(
            x,
            inside(top.long() + dy, x.shape[2], border),
            inside(left.long() + dx, x.shape[3], border),
        )

    above = corner(0, 0) * (1 - right) + corner(0, 1) * right
    below = corner(1, 0) * (1 - right) + corner(1, 1) * right
    return above * (1 - down) + below * down


def motion(x: Tensor, radius: int, sigma: float, degrees: Tensor) -> Tensor:
    """Blur along a line that starts at each pixel, half a Gaussian long, at `degrees` [N] clockwise
    from the right.

    As ImageMagick's MotionBlurImage: 2·radius + 1 taps at the nearest pixels, the border repeated.
    """
    height, width = x.shape[2:]
    length = 2 * radius + 1
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(length)]
    angle = torch.deg2rad(degrees)

    def tap(i: int) -> Tensor:
        down = (i * angle.sin() - 0.5).ceil().long()[:, None, None]
        right = (i * angle.cos() - 0.5).ceil().long()[:, None, None]
        rows = inside(torch.arange(height)[:, None] + down, height, "nearest").expand(-1, -1, width)
        columns = inside(torch.arange(width) + right, width, "nearest").expand(-1, height, -1)
        return pick(x, rows, columns)

    return _sum([tap(i) * (weights[i] / sum(weights)) for i in range(length)])


def zoomed(x: Tensor, factor: float) -> Tensor:
    """The centre enlarged by `factor` ≥ 1 (bilinear, corner pixels on corner pixels), at the size
    of `x`."""
    for axis in (-1, -2):
        size = x.shape[axis]
        kept = math.ceil(size / factor)
        start, grown = (size - kept) // 2, round(kept * factor)
        at = (torch.arange(size) + (grown - size) // 2).double() * (kept - 1) / (grown - 1)
        low = at.floor().long().clamp(max=kept - 2)
        share = at - low
        share = share if axis == -1 else share[:, None]
        x = (
            x.index_select(axis, start + low) * (1 - share)
            + x.index_select(axis, start + low + 1) * share
        )
    return x


def plasma(noise: Tensor, decay: float) -> Tensor:
    """Clouds in [0, 1] by diamond and square steps on a torus, from `noise` uniform in [−1, 1), [N,
    S, S], S a power of two.

    Each halving of the step divides the amplitude of the noise by decay².
    """
    field = torch.zeros_like(noise)
    step, amplitude = noise.shape[-1], 1.0
    while step >= 2:
        half = step // 2
        corners = field[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        centres = (pairs + pairs.roll(-1, 2)) / 4 + amplitude * noise[:, half::step, half::step]
        field[:, half::step, half::step] = centres
        beside = (corners + corners.roll(-1, 2) + centres + centres.roll(1, 1)) / 4
        under = (corners + corners.roll(-1, 1) + centres + centres.roll(1, 2)) / 4
        field[:, ::step, half::step] = beside + amplitude * noise[:, ::step, half::step]
        field[:, half::step, ::step] = under + amplitude * noise[:, half::step, ::step]
        step, amplitude = half, amplitude / decay**2
    field = field - field.amin((1, 2), keepdim=True)
    return field / field.amax((1, 2), keepdim=True)


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total

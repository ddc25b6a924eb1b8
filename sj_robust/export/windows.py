"""Windows that NIR has no word for, in those it has: square kernels, padded alike on both sides,
with the same weights everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]


def fitted(
    weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, size: Pair, result: Pair
) -> tuple[Tensor, Pair] | None:
    """The kernel [O,I,K,K] and padding that say a convolution of `size` [H,W] pixels to `result`;
    None where there are none.

    `padding` is that above and to the left, below 0 where pixels are cut off; the other sides'
    follows from `result`. The kernel grows by zeros: those before its weights come with padding,
    those behind take some away. Square, because nir (1.0.8) takes a kernel's height for its width.
    """
    longest = max(weight.shape[-2:])
    for side in range(longest, longest + max(*size, *result) + 1):
        before: list[int] = []
        for kernel, step, pad, spread, pixels, wanted in zip(
            weight.shape[-2:], stride, padding, dilation, size, result, strict=True
        ):
            padded = {
                zeros: pad + spread * zeros
                for zeros in range(side - kernel + 1)
                if pad + spread * zeros >= 0
            }
            counts = {
                zeros: (pixels + 2 * around - spread * (side - 1) - 1) // step + 1
                for zeros, around in padded.items()
            }
            before += [zeros for zeros, count in counts.items() if count == wanted][:1]
        if len(before) == 2:
            rows, columns = (side - kernel for kernel in weight.shape[-2:])
            grown = F.pad(weight, (before[1], columns - before[1], before[0], rows - before[0]))
            return grown, (
                padding[0] + dilation[0] * before[0],
                padding[1] + dilation[1] * before[1],
            )
    return None


def window_factors(
    pixels: int, kernel: int, stride: int, padding: int, ceil_mode: bool, count_include_pad: bool
) -> Tensor:
    """By what the average of each window [M] along one axis is above the window's sum, divided by
    `kernel`: 1 but at the borders."""
    averages = F.avg_pool1d(
        torch.ones(1, pixels, dtype=torch.float64),
        kernel,
        stride,
        padding,
        ceil_mode,
        count_include_pad,
    )[0]
    first = torch.arange(len(averages)) * stride - padding
    inside = (first + kernel).clamp(max=pixels) - first.clamp(min=0)
    return averages * kernel / inside


def border_kernels(channels: int, axis: int, first: float, last: float) -> tuple[Tensor, Tensor]:
    """Two kernels [C,C,3,3], one after the other: the first row (axis 0) or column (1) times
    `first`, the last times `last`, all else 0.

    With a dilation (and padding) of one less than the M rows there are, a kernel's upper weight
    reaches but the first row, from the last one, and its lower weight the last row, from the first
    one. So two of them lead a border row back to where it was.
    """
    taps = torch.zeros(2, 3, 3, dtype=torch.float64)
    taps[0, 0, 1] = taps[0, 2, 1] = 1
    taps[1, 0, 1], taps[1, 2, 1] = last, first
    taps = taps if axis == 0 else taps.mT
    there, back = (torch.eye(channels, dtype=torch.float64)[:, :, None, None] * tap for tap in taps)
    return there, back


def ungrouped(weight: Tensor, groups: int) -> Tensor:
    """The weights of a grouped convolution as those of a full one, with zeros between the groups:
    few importers know groups."""
    if groups == 1:
        return weight
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    full = weight.new_zeros(weight.shape[0], inputs * groups, *weight.shape[2:])
    for group in range(groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        full[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return full


def pair(value: int | Sequence[int]) -> Pair:
    """One number for both axes, or one of each."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return (int(values[0]), int(values[-1]))

"""What NIR says of average pooling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import fx

from sj_robust.errors import SJRobustError
from sj_robust.export.nir_graph import Graph, place_of, shape_of
from sj_robust.export.windows import Pair, border_kernels, pair, window_factors


def average(graph: Graph, operation: fx.Node) -> tuple[str, ...]:
    """Average pooling: of windows, to a size that divides the input's, or the mean over all
    pixels."""
    given, (before, sources) = graph.arguments(operation), graph.input(operation)
    size, result = shape_of(before), shape_of(operation)
    if len(size) != 3:
        raise SJRobustError(
            f"NIR cannot say this average ({place_of(operation)}): only over height and width"
        )
    if "kernel_size" in given:
        window, stride = (
            pair(given["kernel_size"]),
            pair(given["stride"] or given["kernel_size"]),
        )
        whole = [
            (pixels - side) // step + 1
            for pixels, side, step in zip(size[1:], window, stride, strict=True)
        ]
        if (
            any(pair(given["padding"]))
            or given["divisor_override"] is not None
            or [size[0], *whole] != list(result)
        ):
            return _padded_average(graph, operation, given, window, stride)
    else:
        over_pixels = "output_size" in given or sorted(axis % 4 for axis in given["dim"]) == [
            2,
            3,
        ]
        rows, columns = result[1:] if len(result) == 3 else (1, 1)
        if not over_pixels or size[1] % rows or size[2] % columns:
            raise SJRobustError(
                f"NIR cannot say this average ({place_of(operation)}): only windows of one size"
            )
        window = stride = (size[1] // rows, size[2] // columns)
        whole = [rows, columns]
    node = graph.nir.AvgPool2d(
        kernel_size=np.array(window), stride=np.array(stride), padding=np.array((0, 0))
    )
    pooled = (size[0], *whole)
    node.input_type, node.output_type = {"input": np.array(size)}, {"output": np.array(pooled)}
    name = graph.add(place_of(operation), node, sources)
    return name if len(result) == 3 else graph.flatten(operation, name, pooled)


def _padded_average(
    graph: Graph, operation: fx.Node, given: dict[str, Any], window: Pair, stride: Pair
) -> tuple[str, ...]:
    """As convolutions: NIR does not say what a pool's padding counts for, and importers differ.

    The windows' sums divided by one number, and where those at the borders are divided by
    another, what is missing there.
    """
    before, sources = graph.input(operation)
    size, result, place, padding = (
        shape_of(before),
        shape_of(operation),
        place_of(operation),
        pair(given["padding"]),
    )
    factors = [
        window_factors(*axis, given["ceil_mode"], given["count_include_pad"])
        for axis in zip(size[1:], window, stride, padding, strict=True)
    ]
    usual = [factor[len(factor) // 2] for factor in factors]
    differs = [factor / inner - 1 for factor, inner in zip(factors, usual, strict=True)]
    if given["divisor_override"] is not None or any(
        bool(difference[1:-1].any()) for difference in differs
    ):
        raise SJRobustError(
            f"NIR cannot say this average ({place}): only one whose windows differ in the first"
            " and last alone"
        )
    share = usual[0] * usual[1] / math.prod(window)
    weight = (share * torch.eye(size[0], dtype=torch.float64))[:, :, None, None].expand(
        -1, -1, *window
    )
    value = graph.convolve(
        place, sources, weight, None, size, result, stride=stride, padding=padding
    )
    for axis, difference in enumerate(differs):
        if difference.any():
            reach = (len(difference) - 1, 1) if axis == 0 else (1, len(difference) - 1)
            missing = value
            for kernel in border_kernels(
                size[0], axis, float(difference[0]), float(difference[-1])
            ):
                missing = graph.convolve(
                    f"{place}.border",
                    missing,
                    kernel,
                    None,
                    result,
                    result,
                    padding=reach,
                    dilation=reach,
                )
            value += missing
    return value


# by the operation's name: what reads it into the graph
HANDLERS = dict.fromkeys(("avg_pool2d", "adaptive_avg_pool2d", "mean"), average)

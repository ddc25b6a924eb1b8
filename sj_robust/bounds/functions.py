"""The functions of torch that take intervals, each by its name there.

One in place writes its result into the interval it is given, as torch does with a tensor.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sj_robust.bounds.interval import FUNCTIONS, Function, Interval, refuse


def _conv2d(
    x: Interval,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Interval:
    weight, size = weight.to(x.dtype), weight.abs().to(x.dtype)
    rest = (stride, padding, dilation, groups)
    return x.affine(
        lambda value: F.conv2d(value, weight, None, *rest),
        lambda value: F.conv2d(value, size, None, *rest),
        weight[0].numel(),
        None if bias is None else bias.to(x.dtype)[:, None, None],
    )


def _linear(x: Interval, weight: Tensor, bias: Tensor | None = None) -> Interval:
    weight, size = weight.to(x.dtype), weight.abs().to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    found = x.affine(
        lambda value: F.linear(value, weight),
        lambda value: F.linear(value, size),
        weight.shape[1],
        bias,
    )
    found.read = x.copied(), weight, bias  # x may be written over later
    return found


def _batch_norm(
    x: Interval,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Interval:
    mean, variance = running_mean, running_var
    if training:
        mean, variance = x.arithmetic.statistics.get(id(running_mean), (None, None))
    if mean is None or variance is None:
        refuse("a batch norm without running statistics, or in training mode")
    mean, variance = mean.to(x.dtype), variance.to(x.dtype)
    scale = (variance + eps).rsqrt()
    scale = scale if weight is None else scale * weight.to(x.dtype)
    shift = torch.zeros_like(mean) if bias is None else bias.to(x.dtype)
    scale, shift, mean = (value.view(-1, *(1,) * (x.dim() - 2)) for value in (scale, shift, mean))
    # 16: root, quotient and products, as (x − mean)·scale + bias or x·scale + (bias − mean·scale)
    return x.affine(
        lambda value: value * scale,
        lambda value: value * scale.abs(),
        16,
        shift - mean * scale,
        shift.abs() + (mean * scale).abs(),
    )


def _relu(x: Interval, inplace: bool = False) -> Interval:
    found = x.convex(F.relu)
    return x.overwritten(found) if inplace else found


def _max_pool2d(x: Interval, *args: Any, **kwargs: Any) -> Interval:
    if kwargs.pop("return_indices", False):
        refuse("max pooling that returns indices")
    return x.convex(lambda value: F.max_pool2d(value, *args, **kwargs))


def _averaged(x: Interval, function: Function, terms: int) -> Interval:
    return x.affine(function, function, terms)


def _avg_pool2d(
    x: Interval,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Interval:
    if divisor_override is not None and divisor_override < 1:
        refuse(f"an average pool that divides by {divisor_override}")
    rest = (stride, padding, ceil_mode, count_include_pad, divisor_override)
    sides = kernel_size if isinstance(kernel_size, list | tuple) else (kernel_size,)
    terms = math.prod(sides) if len(sides) == 2 else sides[0] ** 2
    return _averaged(x, lambda value: F.avg_pool2d(value, kernel_size, *rest), terms)


def _adaptive_avg_pool2d(x: Interval, output_size: Any) -> Interval:
    return _averaged(
        x, lambda value: F.adaptive_avg_pool2d(value, output_size), math.prod(x.shape[2:])
    )


def _mean(x: Interval, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Interval:
    axes = [dim] if isinstance(dim, int) else list(dim or ())
    if kwargs or not axes or any(axis % x.dim() == 0 for axis in axes):
        refuse("a mean over the batch")
    return _averaged(x, lambda value: value.mean(axes, keepdim), math.prod(x.shape[1:]))


def _flatten(x: Interval, start_dim: int = 0, end_dim: int = -1) -> Interval:
    if start_dim % x.dim() == 0:
        refuse("a batch that is flattened")
    return x.aliased(lambda value: value.flatten(start_dim, end_dim))


def _view(x: Interval, *shape: Any) -> Interval:
    sizes = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
    if not sizes or sizes[0] != len(x):
        refuse("a view that changes the batch")
    return x.aliased(lambda value: value.reshape(sizes))


def _pad(x: Interval, pad: Any, mode: str = "constant", value: float | None = None) -> Interval:
    if len(pad) > 2 * (x.dim() - 1) or (mode == "constant" and value):
        refuse("padding by anything else than zeros or the image's own values")
    return x.structure(lambda inner: F.pad(inner, pad, mode))


def _dropout(x: Interval, p: float = 0.5, training: bool = True, inplace: bool = False) -> Interval:
    if training and p:
        refuse("dropout in training mode")
    return x if inplace else _itself(x)


def _itself(x: Interval, **kwargs: Any) -> Interval:
    """What torch answers with the same memory, or with a copy."""
    return x.aliased(lambda value: value)


def _clone(x: Interval, **kwargs: Any) -> Interval:
    return x.copied()


def _add(x: Any, other: Any) -> Interval:
    if not (isinstance(x, Interval) and isinstance(other, Interval)):
        refuse("a sum with anything else than another layer's output")
    if x.timesteps != other.timesteps:
        refuse("a sum of what has time steps and what has none")
    slack = x.arithmetic.roundoff
    lower, upper = x.lower + other.lower, x.upper + other.upper
    size = slack * torch.maximum(lower.abs(), upper.abs())
    totals = None
    if x.timesteps is not None and x.totals is not None and other.totals is not None:
        more = x._running(size) if slack else size
        totals = (
            x.totals[0] + other.totals[0] - more,
            x.totals[1] + other.totals[1] + more,
        )
    return Interval(lower - size, upper + size, x.arithmetic, x.timesteps, totals)


def _add_(x: Any, other: Any) -> Interval:
    found = _add(x, other)
    return x.overwritten(found)  # type: ignore[no-any-return]  # _add refuses what is no Interval


FUNCTIONS |= {
    "conv2d": _conv2d,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "relu": _relu,
    "relu_": lambda x: _relu(x, True),
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "mean": _mean,
    "flatten": _flatten,
    "view": _view,
    "reshape": _view,
    "pad": _pad,
    "dropout": _dropout,
    "add": _add,
    "add_": _add_,
    "contiguous": _itself,
    "clone": _clone,
}

"""Intervals in the place of tensors: a network is run on one, and each function of torch it calls
does what it does to every value inside.

Gowal et al., "On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust
Models", 2018 (arXiv 1810.12715), section 3.1. Time steps: `sj_robust.bounds.node`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from sj_robust.errors import SJRobustError

Bounds = tuple[Tensor, Tensor]
Function = Callable[[Tensor], Tensor]

ROUNDOFF = 2.0**-23
"""Twice the unit roundoff of float32. A sum of n products differs from the exact one by at most
n·ROUNDOFF times the sum of their sizes, in whatever order it is taken, for n up to 2^22 (Higham,
"Accuracy and Stability of Numerical Algorithms", 2002, section 3.1); the bounds themselves are
computed in float64, whose own errors the factor of two covers."""
_UNDERFLOW = 1e-30  # more than products too small for float32 can add up to


@dataclass(frozen=True)
class Arithmetic:
    """How a network computes: what its roundings may add, and the statistics of batch norms in
    training mode, (mean, variance) by the id of the running mean they belong to."""

    roundoff: float = 0.0
    statistics: Mapping[int, Bounds] = field(default_factory=dict)


class Interval:
    """All tensors between `lower` and `upper`, elementwise: what a network is run on for bounds.

    It takes the place of a tensor in the functions of torch that `sj_robust.bounds` knows. With
    `timesteps` = T the batch holds T steps, [T·N, *] time-major, and `totals` bounds the sums over
    the first t of them, t = 1…T, in the same layout. A linear layer maps sums to sums, so that what
    is known of the number of spikes is not lost where nobody knows in which step they come.

    Args:
        lower: [N, *].
        upper: [N, *].
        arithmetic: of the network.
        timesteps: None where the values are those of every step.
        totals: without them those that follow from `lower` and `upper`.
    """

    def __init__(
        self,
        lower: Tensor,
        upper: Tensor,
        arithmetic: Arithmetic | None = None,
        timesteps: int | None = None,
        totals: Bounds | None = None,
    ) -> None:
        self.lower, self.upper = lower, upper
        self.arithmetic = arithmetic or Arithmetic()
        self.timesteps = timesteps
        self.totals = totals
        if timesteps is not None and totals is None:
            self.totals = self._running(lower), self._running(upper)
        self.read: tuple[Interval, Tensor, Tensor | None] | None = None
        """The interval, weight and bias of the linear layer that gave this one, if one did."""

    # --- as a tensor ------------------------------------------------------------------------------

    @property
    def shape(self) -> torch.Size:
        """Of the tensors inside."""
        return self.lower.shape

    @property
    def dtype(self) -> torch.dtype:
        """That the bounds are computed in."""
        return self.lower.dtype

    @property
    def device(self) -> torch.device:
        """Of the bounds."""
        return self.lower.device

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return self.lower.dim()

    def dim(self) -> int:
        """The number of dimensions."""
        return self.lower.dim()

    def size(self, axis: int | None = None) -> Any:
        """As of a tensor."""
        return self.shape if axis is None else self.shape[axis]

    def __len__(self) -> int:
        return len(self.lower)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _call(getattr(func, "__name__", str(func)), args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in _FUNCTIONS:  # also what is no function: none would be right for all inside
            refuse(f"{name}()")
        return lambda *args, **kwargs: _call(name, (self, *args), kwargs)

    def __add__(self, other: Any) -> Interval:
        return _add(self, other)

    def __mul__(self, other: Any) -> NoReturn:
        refuse("a product")

    __rmul__ = __truediv__ = __matmul__ = __mul__

    def __sub__(self, other: Any) -> NoReturn:
        refuse("a difference")

    __rsub__ = __sub__

    def __getitem__(self, key: Any) -> Interval:
        first = key[0] if isinstance(key, tuple) else key
        if first != slice(None):
            refuse("an index of the batch")
        return self.structure(lambda value: value[key])

    # --- what layers are made of ------------------------------------------------------------------

    @property
    def largest(self) -> Tensor:
        """The largest absolute value there may be."""
        return torch.maximum(self.lower.abs(), self.upper.abs())

    def structure(self, function: Function) -> Interval:
        """After a function that only moves, drops or repeats values, or adds zeros."""
        totals = self.totals and (function(self.totals[0]), function(self.totals[1]))
        return Interval(
            function(self.lower), function(self.upper), self.arithmetic, self.timesteps, totals
        )

    def convex(self, function: Function) -> Interval:
        """After a ReLU or a maximum.

        Such a function is monotone, computed exactly, convex, and f(a·x) = a·f(x) for a ≥ 0, so
        that its value at a sum is at most the sum of its values.
        """
        found = Interval(
            function(self.lower), function(self.upper), self.arithmetic, self.timesteps
        )
        if self.totals and found.totals:
            least = torch.maximum(found.totals[0], function(self.totals[0]))
            found.totals = least, found.totals[1]
        return found

    def affine(
        self,
        signed: Function,
        absolute: Function,
        terms: int,
        bias: Tensor | None = None,
        bias_size: Tensor | None = None,
    ) -> Interval:
        """After a linear map and a bias.

        Args:
            signed: the map.
            absolute: the same with the absolute values of its weights.
            terms: roundings on the way of one summand to its sum.
            bias: broadcasts.
            bias_size: what its roundings are relative to; without it its own size.
        """
        if bias_size is None and bias is not None:
            bias_size = bias.abs()
        slack = (terms + 2) * self.arithmetic.roundoff
        size = self.largest if slack else None

        def bounded(bounds: Bounds, size: Tensor | None, steps: Tensor | None) -> Bounds:
            lower, upper = bounds
            centre, radius = (upper + lower) / 2, (upper - lower) / 2
            radius = absolute(radius if size is None else radius + slack * size)
            centre = signed(centre)
            if bias is not None and bias_size is not None:
                centre = centre + (bias if steps is None else steps * bias)
                if slack:
                    radius = radius + slack * (bias_size if steps is None else steps * bias_size)
            if slack:
                radius = radius + _UNDERFLOW
            return centre - radius, centre + radius

        lower, upper = bounded((self.lower, self.upper), size, None)
        totals = None
        if self.totals is not None:
            steps = self._numbers(lower.dim())
            totals = bounded(self.totals, None if size is None else self._running(size), steps)
        return Interval(lower, upper, self.arithmetic, self.timesteps, totals)

    def times(self, factor: float) -> Interval:
        """Times an exact factor ≥ 0: of spikes, 0 or 1."""
        return self if factor == 1 else self.structure(lambda value: value * factor)

    def repeated(self, timesteps: int) -> Interval:
        """The same in each of T steps."""
        lower, upper = (torch.cat([value] * timesteps) for value in (self.lower, self.upper))
        found = Interval(lower, upper, self.arithmetic, timesteps)
        steps = found._numbers(lower.dim())
        found.totals = steps * lower, steps * upper
        return found

    def mean_over_time(self) -> Interval:
        """Of T steps [T·N, *] → [N, *]."""
        if self.timesteps is None or self.totals is None:
            return self
        steps, n = self.timesteps, len(self) // self.timesteps
        slack = (steps + 2) * self.arithmetic.roundoff
        size = self.largest.unflatten(0, (steps, n)).sum(0) * slack / steps
        lower, upper = (total[-n:] / steps for total in self.totals)
        return Interval(lower - size, upper + size, self.arithmetic)

    def _running(self, value: Tensor) -> Tensor:
        """Sums over the steps so far of [T·N, *]."""
        assert self.timesteps is not None
        n = len(value) // self.timesteps
        return value.unflatten(0, (self.timesteps, n)).cumsum(0).flatten(0, 1)

    def _numbers(self, dim: int) -> Tensor:
        """1…T, each for N images, to broadcast over [T·N, *]."""
        assert self.timesteps is not None
        steps = torch.arange(1, self.timesteps + 1, device=self.device, dtype=self.dtype)
        n = len(self.lower) // self.timesteps
        return steps.repeat_interleave(n).view(-1, *(1,) * (dim - 1))


def refuse(what: str) -> NoReturn:
    """Raise SJRobustError for what no bounds are known of."""
    raise SJRobustError(
        f"no bounds are known for {what}: interval bounds take networks of convolutions, linear"
        " layers, batch norm, ReLU or our spiking nodes, pooling, and sums of these"
    )


# --- the functions ------------------------------------------------------------------------------


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
    found.read = x, weight, bias
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
    return x.convex(F.relu)


def _max_pool2d(x: Interval, *args: Any, **kwargs: Any) -> Interval:
    if kwargs.pop("return_indices", False):
        refuse("max pooling that returns indices")
    return x.convex(lambda value: F.max_pool2d(value, *args, **kwargs))


def _averaged(x: Interval, function: Function, terms: int) -> Interval:
    return x.affine(function, function, terms)


def _avg_pool2d(x: Interval, kernel_size: Any, *args: Any, **kwargs: Any) -> Interval:
    sides = kernel_size if isinstance(kernel_size, list | tuple) else (kernel_size, kernel_size)
    return _averaged(
        x, lambda value: F.avg_pool2d(value, kernel_size, *args, **kwargs), math.prod(sides)
    )


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
    return x.structure(lambda value: value.flatten(start_dim, end_dim))


def _view(x: Interval, *shape: Any) -> Interval:
    sizes = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
    if not sizes or sizes[0] != len(x):
        refuse("a view that changes the batch")
    return x.structure(lambda value: value.reshape(sizes))


def _pad(x: Interval, pad: Any, mode: str = "constant", value: float | None = None) -> Interval:
    if len(pad) > 2 * (x.dim() - 1) or (mode == "constant" and value):
        refuse("padding by anything else than zeros or the image's own values")
    return x.structure(lambda inner: F.pad(inner, pad, mode))


def _dropout(x: Interval, p: float = 0.5, training: bool = True, inplace: bool = False) -> Interval:
    if training and p:
        refuse("dropout in training mode")
    return x


def _add(x: Any, other: Any) -> Interval:
    if not (isinstance(x, Interval) and isinstance(other, Interval)):
        refuse("a sum with anything else than another layer's output")
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


_FUNCTIONS: dict[str, Callable[..., Interval]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "relu": _relu,
    "relu_": _relu,
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
    "add_": _add,
    "contiguous": lambda x, **kwargs: x,
    "clone": lambda x, **kwargs: x,
}


def _call(name: str, args: Any, kwargs: dict[str, Any]) -> Interval:
    function = _FUNCTIONS.get(name)
    if function is None:
        refuse(f"{name}()")
    try:
        return function(*args, **kwargs)
    except TypeError as error:
        raise SJRobustError(f"no bounds are known for this call of {name}(): {error}") from None

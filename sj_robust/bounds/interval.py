"""Intervals in the place of tensors: a network is run on one, and each function of torch it calls
does what it does to every value inside. The functions: `sj_robust.bounds.functions`.

Gowal et al., "On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust
Models", 2018 (arXiv 1810.12715), section 3.1. Time steps: `sj_robust.bounds.node`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor

from sj_robust.errors import SJRobustError

Bounds = tuple[Tensor, Tensor]
Function = Callable[[Tensor], Tensor]

ROUNDOFF = 2.0**-23
"""Twice the unit roundoff of float32. A sum of n products differs from the exact one by at most
n·ROUNDOFF times the sum of their sizes, in whatever order it is taken, for n up to 2^22 (Higham,
"Accuracy and Stability of Numerical Algorithms", 2002, section 3.1); the bounds themselves are
computed in float64, whose own errors the factor of two covers."""
UNDERFLOW = 1e-30  # more than products too small for float32 can add up to
FUNCTIONS: dict[str, Callable[..., Interval]] = {}
"""What is known, by its name in torch: filled by `sj_robust.bounds.functions`."""


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
        self.shared = False
        """Whether another interval may stand for values in the same memory."""

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
        if name not in FUNCTIONS:  # also what is no function: none would be right for all inside
            raise _UnknownAttribute(_unknown(f"{name}()"))
        return lambda *args, **kwargs: _call(name, (self, *args), kwargs)

    def __add__(self, other: Any) -> Interval:
        return _call("add", (self, other), {})

    def __iadd__(self, other: Any) -> Interval:
        return _call("add_", (self, other), {})

    __radd__ = __add__

    def __bool__(self) -> bool:
        refuse("a condition on values")

    def __mul__(self, other: Any) -> NoReturn:
        refuse("a product")

    __rmul__ = __truediv__ = __rtruediv__ = __matmul__ = __rmatmul__ = __mul__
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __mul__

    def __sub__(self, other: Any) -> NoReturn:
        refuse("a difference")

    __rsub__ = __sub__

    def __pow__(self, other: Any) -> NoReturn:
        refuse("a power")

    __rpow__ = __pow__

    def __neg__(self) -> NoReturn:
        refuse("a change of sign")

    __abs__ = __invert__ = __neg__

    def __lt__(self, other: Any) -> NoReturn:
        refuse("a comparison")

    __le__ = __gt__ = __ge__ = __and__ = __or__ = __xor__ = __rand__ = __ror__ = __rxor__ = __lt__
    __eq__ = __ne__ = __lt__  # type: ignore[assignment]
    __hash__ = object.__hash__

    def __float__(self) -> float:
        refuse("a number taken out")

    __int__ = __index__ = __float__  # type: ignore[assignment]

    def __setitem__(self, key: Any, value: Any) -> NoReturn:
        refuse("an assignment to a part")

    def __getitem__(self, key: Any) -> Interval:
        first = key[0] if isinstance(key, tuple) else key
        if first != slice(None):
            refuse("an index of the batch")
        return self.aliased(lambda value: value[key])

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

    def aliased(self, function: Function) -> Interval:
        """`structure` whose result may share memory with what it came from."""
        found = self.structure(function)
        found.shared = self.shared = True
        return found

    def copied(self) -> Interval:
        """The same, which does not change with this one."""
        return self.structure(lambda value: value)

    def overwritten(self, found: Interval) -> Interval:
        """This very interval, after a function in place gave `found`.

        So every other name that the network has for it sees it, too.
        """
        if self.shared:
            refuse("a function in place on a tensor that has views")
        if found.shape != self.shape:
            refuse("a function in place that changes the shape")
        self.lower, self.upper = found.lower, found.upper
        self.timesteps, self.totals, self.read = found.timesteps, found.totals, found.read
        return self

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
                radius = radius + UNDERFLOW
            return centre - radius, centre + radius

        lower, upper = bounded((self.lower, self.upper), size, None)
        totals = None
        if self.totals is not None:
            steps = self._numbers(lower.dim())
            totals = bounded(self.totals, None if size is None else self._running(size), steps)
        return Interval(lower, upper, self.arithmetic, self.timesteps, totals)

    def times(self, factor: float) -> Interval:
        """Times an exact factor ≥ 0: of spikes, 0 or 1."""
        if not 0 <= factor < torch.inf:
            refuse(f"spikes that are worth {factor:g}")
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


class _UnknownAttribute(SJRobustError, AttributeError):
    """So that `hasattr`, and `getattr` with a default, work as for any object."""


def refuse(what: str) -> NoReturn:
    """Raise SJRobustError for what no bounds are known of."""
    raise SJRobustError(_unknown(what))


def _unknown(what: str) -> str:
    return (
        f"no bounds are known for {what}: interval bounds take networks of convolutions, linear"
        " layers, batch norm, ReLU or our spiking nodes, pooling, and sums of these"
    )


def _call(name: str, args: Any, kwargs: dict[str, Any]) -> Interval:
    function = FUNCTIONS.get(name)
    if function is None:
        refuse(f"{name}()")
    try:
        return function(*args, **kwargs)
    except TypeError as error:
        raise SJRobustError(f"no bounds are known for this call of {name}(): {error}") from None

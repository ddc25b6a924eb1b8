"""How many spikes each value of a tensor is made of: 0 or 1 at a node, more behind a pool or where
two paths meet."""

from __future__ import annotations

from typing import Any

import torch
from spikingjelly.activation_based.op_counter import is_binary_tensor
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_aten = torch.ops.aten

# Each value of the result is one of the argument's, or 0.
_MOVED = (
    _aten.view.default,
    _aten._unsafe_view.default,
    _aten.permute.default,
    _aten.transpose.int,
    _aten.t.default,
    _aten.expand.default,
    _aten.squeeze.default,
    _aten.squeeze.dim,
    _aten.unsqueeze.default,
    _aten.select.int,
    _aten.slice.Tensor,
    _aten.clone.default,
    _aten.detach.default,
    _aten.alias.default,
    _aten._to_copy.default,
    _aten.repeat.default,
    _aten.upsample_nearest2d.default,
    _aten.upsample_nearest2d.vec,
    _aten.unbind.int,
    _aten.split.Tensor,
    _aten.split_with_sizes.default,
)
_JOINED = (_aten.cat.default, _aten.stack.default)
_POOLED = (_aten.avg_pool2d.default, _aten.avg_pool3d.default)
_SUMMED = (_aten.sum.default, _aten.sum.dim_IntList)
_ADDED = (_aten.add.Tensor, _aten.add_.Tensor)


class SpikeCounts:
    """The number of spikes behind every value of the tensors that an inference computes, where they
    are spikes, or sums, means and rearrangements of spikes alone.

    Such a step is linear and without a constant, so that it can be folded into the weights of the
    layer behind it: a spike then is one accumulation for each connection of each place it came to.
    What a conversion left as a factor of the spikes is not followed: the layer behind it
    multiplies. `follow` is called with every operation as torch dispatches it.
    """

    def __init__(self) -> None:
        self._known = WeakTensorKeyDictionary()

    operations = frozenset(
        {
            *_MOVED,
            *_JOINED,
            *_POOLED,
            *_SUMMED,
            *_ADDED,
            _aten.mean.dim,
            _aten._adaptive_avg_pool2d.default,
        }
    )

    def of(self, x: Tensor) -> Tensor | None:
        """Spikes in each value of x, of its shape; None where it is made of anything else."""
        if (known := self._known.get(x)) and known[1] == x._version:
            return known[0]  # type: ignore[no-any-return]
        return x if is_binary_tensor(x) else None

    def follow(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Note what `out` = func(*args, **kwargs) is made of."""
        known = self._result(func, args, kwargs)
        if known is None:
            return
        pairs = zip(out, known, strict=True) if isinstance(out, (list, tuple)) else [(out, known)]
        for tensor, count in pairs:
            if count.shape == tensor.shape:
                self._known[tensor] = count, tensor._version  # another after a change in place

    def _result(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func in _JOINED:
            parts = [self.of(part) for part in args[0]]
            return None if any(part is None for part in parts) else func(parts, *args[1:])
        first = args[0]
        if func in _ADDED:
            return self._sum(first, args[1], kwargs.get("alpha", 1))
        if (counts := self.of(first)) is None:
            return None
        if func in _MOVED or func in _SUMMED:
            return func(counts, *args[1:], **kwargs)
        if func is _aten.mean.dim:
            return counts.sum(*args[1:], **kwargs)
        if func in _POOLED:
            settings = [*args[1:6], *([], 0, False, True)[len(args) - 2 :]]
            return func(counts, *settings, 1)  # divided by 1: the sum over each window
        (height, width), (rows, columns) = counts.shape[-2:], args[1]  # adaptive pooling
        if height % rows or width % columns:
            return None  # windows of several sizes
        return func(counts, args[1]) * (height // rows * (width // columns))

    def _sum(self, one: Any, other: Any, alpha: Any) -> Tensor | None:
        if not (isinstance(one, Tensor) and isinstance(other, Tensor)) or alpha != 1:
            return None
        counts = self.of(one), self.of(other)
        if counts[0] is None or counts[1] is None:
            return None
        return counts[0] + counts[1]

"""Max pooling as average pooling, on request: on spikes, max pooling is an OR, and needs
nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch.nn.functional as F
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sj_robust.conversion.settings import Pooling
from sj_robust.errors import SJRobustError


def replace_pooling(network: nn.Module, pooling: Pooling) -> None:
    """With "average", put average pooling of the same window in the place of every max pooling
    module of `network`.

    Padding does not count in the averages, as it never is the maximum. Functions of max pooling are
    left to `conversion.rewrite`. Raises SJRobustError for a dilated or index-returning one.
    """
    if pooling == "max":
        return
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if isinstance(module, nn.MaxPool2d):
            network.set_submodule(name, _average(name, module))
        elif isinstance(module, nn.AdaptiveMaxPool2d):
            network.set_submodule(name, nn.AdaptiveAvgPool2d(module.output_size))


def _average(name: str, pool: nn.MaxPool2d) -> nn.Module:
    if pool.dilation not in (1, (1, 1), [1, 1]) or pool.return_indices:
        raise SJRobustError(
            f"{name} ({pool}) has no average counterpart: a dilated or index-returning window; use"
            " pooling='max'"
        )
    if isinstance(pool, MaxPool2dSame):
        return AvgPool2dSame(
            pool.kernel_size, pool.stride, ceil_mode=pool.ceil_mode, count_include_pad=False
        )
    return nn.AvgPool2d(
        pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, count_include_pad=False
    )


def average_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """Average pooling [N,C,H,W] with the arguments of `F.max_pool2d`; see `replace_pooling`, also
    for what it raises."""
    if dilation not in (1, (1, 1), [1, 1]):
        refuse_pooling()
    return F.avg_pool2d(
        input, kernel_size, stride or None, padding, ceil_mode, count_include_pad=False
    )


def adaptive_average_pool2d(
    input: Tensor, output_size: Any, return_indices: bool = False
) -> Tensor:
    """The same with the arguments of `F.adaptive_max_pool2d`."""
    return F.adaptive_avg_pool2d(input, output_size)


def refuse_pooling(*args: Any, **kwargs: Any) -> NoReturn:
    """Raise SJRobustError for a call that no average takes the place of."""
    raise SJRobustError(
        "a call of max_pool2d has no average counterpart: a dilated or index-returning window; use"
        " pooling='max'"
    )


AVERAGES: dict[str, Callable[..., Tensor]] = {
    "max_pool2d": average_pool2d,
    "adaptive_max_pool2d": adaptive_average_pool2d,
    "max_pool2d_with_indices": refuse_pooling,
    "adaptive_max_pool2d_with_indices": refuse_pooling,
}
"""What takes the place of a function, by its name."""


class Averaged(TorchFunctionMode):
    """While it is entered, the functions in AVERAGES do what takes their place."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return AVERAGES.get(getattr(func, "__name__", ""), func)(*args, **(kwargs or {}))

"""Max pooling as average pooling, on request: on spikes, max pooling is an OR, and needs nothing."""

from __future__ import annotations

from typing import Literal

from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from torch import nn

from sj_robust.errors import SJRobustError

Pooling = Literal["max", "average"]


def replace_pooling(network: nn.Module, pooling: Pooling) -> None:
    """With "average", put average pooling of the same window in the place of every max pooling module of `network`.

    Padding does not count in the averages, as it never is the maximum. Raises SJRobustError for a dilated or index-returning one.
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
        raise SJRobustError(f"{name} ({pool}) has no average counterpart: a dilated or index-returning window; use pooling='max'")
    if isinstance(pool, MaxPool2dSame):
        return AvgPool2dSame(pool.kernel_size, pool.stride, ceil_mode=pool.ceil_mode, count_include_pad=False)
    return nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, count_include_pad=False)

"""Batch norm over the batches of several processes, so that they train as one would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sj_robust.distributed import Team, pooled


@contextmanager
def synchronised(team: Team) -> Iterator[None]:
    """Within the block every batch norm in training mode takes its statistics over the images of the whole team.

    All go through `F.batch_norm`, those of torch and timm and of any other module: it is what is replaced, so that no module and no
    name in a checkpoint changes. nn.SyncBatchNorm would do it on CUDA only. Nothing happens for a team of one.
    """
    if team.count == 1:
        yield
        return
    with pooled(team), _SynchronisedBatchNorm(team):
        yield


class _SynchronisedBatchNorm(TorchFunctionMode):
    def __init__(self, team: Team) -> None:
        super().__init__()
        self.team = team

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is F.batch_norm:
            return self.batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def batch_norm(self, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
                   bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5) -> Tensor:
        """F.batch_norm, where training with the statistics of all processes' inputs [N,C,*], of equal shapes."""
        if not training:
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        x = input.float()
        axes = [axis for axis in range(x.dim()) if axis != 1]
        local = torch.stack(torch.var_mean(x, axes, correction=0))
        # each row from its process, and then what each process has is the same bits, whatever order the sum was taken in
        rows = _Total.apply(torch.stack([local if rank == self.team.rank else torch.zeros_like(local)
                                         for rank in range(self.team.count)]), self.team)
        variances, means = rows[:, 0], rows[:, 1]
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        if running_mean is not None and running_var is not None:
            count = self.team.count * x.numel() // x.shape[1]
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
        shape = [1, -1] + [1] * (x.dim() - 2)
        scale = torch.rsqrt(variance + eps) * (1 if weight is None else weight)
        shift = -mean * scale + (0 if bias is None else bias)
        return torch.addcmul(shift.view(shape), x, scale.view(shape)).to(input.dtype)


class _Total(torch.autograd.Function):
    """The sum over the team: so is the gradient, because what leaves here enters every process's loss."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, team: Team) -> Tensor:
        ctx.team = team
        return team.total(tensor.clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.team.total(grads[0].contiguous().clone()), None

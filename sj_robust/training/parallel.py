"""Batch norm over the batches of several processes, so that they train as one would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from sj_robust.distributed import Team, pooled


@contextmanager
def synchronised(team: Team) -> Iterator[None]:
    """Within the block every batch norm in training mode takes its statistics over the images of
    the whole team.

    All go through `F.batch_norm`, those of torch and timm and of any other module: it is what is
    replaced, so that no module and no name in a checkpoint changes. nn.SyncBatchNorm would do it on
    CUDA only. Nothing happens for a team of one.
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

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.batch_norm:
            return self.batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """F.batch_norm, where training with the statistics of all processes' inputs [N,C,*], of
        equal shapes."""
        if not training:
            return F.batch_norm(
                input, running_mean, running_var, weight, bias, training, momentum, eps
            )
        x = input if input.dtype == torch.float64 else input.float()
        mean, variance = _statistics(x.detach(), eps, self.team)
        if running_mean is not None and running_var is not None:
            count = self.team.count * x.numel() // x.shape[1]
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_(
                    (variance * (count / (count - 1))).to(running_var.dtype), momentum
                )
        return _Normalise.apply(x, weight, bias, mean, variance, eps, self.team).to(input.dtype)  # type: ignore[no-any-return]


def _statistics(x: Tensor, eps: float, team: Team) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] of the inputs of all processes."""
    # torch.var_mean takes five times as long as the whole of this kernel
    _, mean, deviation = torch.native_batch_norm(x, None, None, None, None, True, 0.0, eps)
    local = torch.stack([deviation.pow(-2).sub(eps).clamp_min(0), mean])
    # each row from its process, and then what each process has is the same bits, whatever order the
    # sum was taken in
    rows = team.total(
        torch.stack(
            [local if rank == team.rank else torch.zeros_like(local) for rank in range(team.count)]
        )
    )
    variances, means = rows[:, 0], rows[:, 1]
    mean = means.mean(0)
    return mean, variances.mean(0) + (means - mean).square().mean(0)


class _Normalise(torch.autograd.Function):
    """γ(x − μ)/√(σ² + ε) + β, where μ and σ² are the statistics of all processes' x: what leaves
    one enters every process's loss."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        team: Team,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.team = eps, team
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """∂x = γ/s·(∂y − (Σ∂y + x̂ Σ∂y x̂)/n) with s = √(σ² + ε), sums over all n inputs; the
        kernel gives γ/s·∂y and the own sums."""
        x, weight, mean, variance = ctx.saved_tensors
        gain = torch.ones_like(mean) if weight is None else weight
        grad, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            grads[0], x, gain, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sum_y, sum_yx = ctx.team.total(torch.stack([by_bias, by_weight])) / (
            ctx.team.count * x.numel() // x.shape[1]
        )
        inverse = torch.rsqrt(variance + ctx.eps)
        slope = -gain * inverse.square() * sum_yx
        shift = -gain * inverse * sum_y - slope * mean
        shape = [1, -1] + [1] * (x.dim() - 2)
        grad = grad.add_(shift.view(shape)).addcmul_(x, slope.view(shape))
        return (
            grad,
            None if weight is None else by_weight,
            by_bias if ctx.needs_input_grad[2] else None,
            None,
            None,
            None,
            None,
        )

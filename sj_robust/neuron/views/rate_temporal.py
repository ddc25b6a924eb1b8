"""HART: back around the node, by the mean over time of what its potentials let through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sj_robust.neuron import fused
from sj_robust.neuron.backend import Multistep
from sj_robust.neuron.surrogate import Surrogate
from sj_robust.neuron.view import Pass, Run, View, fires

_WIDTH_1 = Surrogate("PCW", 1.0)


@dataclass(frozen=True)
class RateTemporal(View):
    """dx = mean over t of g_t·σ'(u_t), PCW of width 1, the same for every step and without a path
    through the potential's history: rate information from the mean, temporal information from u_t.

    Source: Hao et al., ICLR 2024.
    """

    all_at_once = True

    def __str__(self) -> str:
        return "rate-temporal"

    def steps(
        self,
        node: nn.Module,
        x: Tensor,
        v_threshold: Tensor,
        leak: float,
        soft_reset: bool,
        multistep: Multistep,
    ) -> Tensor:
        with torch.no_grad():
            spikes, h = fused.spikes_and_potential(x, v_threshold, leak, soft_reset, multistep)
        return _Around.apply(x, spikes, h - v_threshold)  # type: ignore[no-any-return]

    def foreign(self, x: Tensor, run: Run, seen: Pass) -> Any:
        potentials: list[Tensor] = []

        def spike(u: Tensor) -> Tensor:
            potentials.append(u)
            return fires(u)

        with torch.no_grad():
            spikes = run(spike)
        if not torch.is_grad_enabled():
            return spikes
        u = torch.stack(potentials)
        seen.check_one_each(self, x, spikes, u)
        return _Around.apply(x, spikes, u.view_as(x))


class _Around(torch.autograd.Function):
    """`spikes` forward; dx back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, spikes: Tensor, u: Tensor) -> Tensor:
        ctx.save_for_backward(_WIDTH_1.derivative(u))
        return spikes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (sigma,) = ctx.saved_tensors
        return (grads[0] * sigma).mean(0, keepdim=True).expand_as(sigma), None, None

"""ASSG: back through time with a surrogate whose sharpness follows each neuron."""

from __future__ import annotations

import math
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sj_robust.neuron import fused, torch_backend
from sj_robust.neuron.backend import Multistep, select_backend
from sj_robust.neuron.view import Pass, Run, View, fires, wants_gradient


class AdaptiveSharpness(View):
    """ASSG, a surrogate whose sharpness follows each neuron, at each time step.

    It does so over the iterations of one attack:

        σ'(u) = α / (2·(1 + (π·α·u/2)²))      α = ω / (M + 1.5·D + 1e-4)      ω = 2·tan(0.425·π)/π

    M and D are moving averages (0.9) of |u| (from 1) and of ||u| − M| (from 0, with the new M),
    advanced once per forward pass with gradients. They belong to one batch of one attack: `forget`
    starts anew, and so does a batch of another shape.

    The reset path is not detached here, as under any Surrogate: gradients go back through the s in
    v = (1 − s)·h too. It is detached in the authors' code. SpikingJelly's nodes do as they say.

    Source: Wang et al., arXiv 2512.22522, section 4.
    """

    OMEGA = 2 * math.tan(0.425 * math.pi) / math.pi
    MOMENTUM, RELAXATION = 0.9, 1.5

    def __init__(self) -> None:
        # of each node, by time step
        self._moments: WeakKeyDictionary[nn.Module, dict[int, tuple[Tensor, Tensor]]]
        self._moments = WeakKeyDictionary()

    def __str__(self) -> str:
        return "ASSG"

    def __reduce__(self) -> tuple[type[AdaptiveSharpness], tuple[()]]:
        return AdaptiveSharpness, ()  # the statistics are these nodes', a copy belongs to others

    def steps(
        self,
        node: nn.Module,
        x: Tensor,
        v_threshold: Tensor,
        leak: float,
        soft_reset: bool,
        multistep: Multistep,
    ) -> Tensor:
        return _ThroughTime.apply(  # type: ignore[no-any-return]
            x, v_threshold, leak, soft_reset, multistep, self, node
        )

    def foreign(self, x: Tensor, run: Run, seen: Pass) -> Any:
        def spike(u: Tensor) -> Tensor:
            if not wants_gradient(u):
                return fires(u)
            potential = u.detach().unsqueeze(0)
            sigma = self.derivative(
                seen.node,
                potential,
                potential.new_zeros(()),
                select_backend("auto", potential),
                seen.spikes_made,
            )
            return _Spike.apply(u, sigma[0])  # type: ignore[no-any-return]

        return run(spike)

    def forget(self) -> None:
        """Start the statistics anew: to be called before each attack."""
        self._moments.clear()

    def derivative(
        self,
        node: nn.Module,
        potential: Tensor,
        v_threshold: Tensor,
        multistep: Multistep,
        step: int = 0,
    ) -> Tensor:
        """σ'(u) [T, N, *] for this pass through `node`, after its statistics took in u.

        u = potential − v_threshold. A node that computes one step at a time asks for each `step` on
        its own.
        """
        moments = self._moments.setdefault(node, {})
        mean, spread = moments.get(step, (None, None))
        if (
            mean is None
            or spread is None
            or mean.shape != potential.shape
            or mean.device != potential.device
        ):
            # in 16 bits a tenth of a difference is lost in the average
            wide = torch.promote_types(potential.dtype, torch.float32)
            mean = torch.ones_like(potential, dtype=wide)
            spread = torch.zeros_like(potential, dtype=wide)
        mean, spread = fused.laid_out_as(potential, mean), fused.laid_out_as(potential, spread)
        moments[step] = mean, spread
        if fused.serves(multistep, potential, v_threshold):
            return fused.lif_adapt(  # type: ignore[no-any-return]
                potential, v_threshold, mean, spread, self.OMEGA, 1 - self.MOMENTUM, self.RELAXATION
            )
        sigma = torch.empty_like(potential)
        for block in torch_backend.blocks(potential):  # in the cache, a dozen operations cost one
            for t in range(potential.shape[0]):
                m, d = mean[t, block], spread[t, block]
                size = (potential[t, block].to(m.dtype) - v_threshold).abs_()
                m.lerp_(size, 1 - self.MOMENTUM)
                d.lerp_((size - m).abs_(), 1 - self.MOMENTUM)
                alpha = torch.add(m, d, alpha=self.RELAXATION).add_(1e-4).reciprocal_()
                alpha.mul_(self.OMEGA)
                bell = size.mul_(alpha).mul_(math.pi / 2).square_().add_(1).mul_(2)
                torch.div(alpha, bell, out=sigma[t, block])
        return sigma


class _ThroughTime(torch.autograd.Function):
    """Back through time with the derivative that an AdaptiveSharpness has for this pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        v_threshold: Tensor,
        leak: float,
        soft_reset: bool,
        multistep: Multistep,
        view: AdaptiveSharpness,
        node: nn.Module,
    ) -> Tensor:
        spikes, potential = fused.spikes_and_potential(x, v_threshold, leak, soft_reset, multistep)
        sigma = view.derivative(node, potential, v_threshold, multistep)
        ctx.save_for_backward(potential, v_threshold, sigma)
        ctx.settings = leak, soft_reset, fused.serves(multistep, potential, v_threshold)
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        potential, v_threshold, sigma = ctx.saved_tensors
        leak, soft_reset, in_kernel = ctx.settings
        wanted = ctx.needs_input_grad[1]
        if in_kernel:
            dx, dv_threshold = fused.lif_backward(
                fused.laid_out_as(potential, grads[0]),
                potential,
                v_threshold,
                leak,
                soft_reset,
                0,
                1.0,
                sigma,
                wanted,
            )
        else:
            dx, dv_threshold = torch_backend.backward_through_time(
                grads[0],
                potential,
                v_threshold,
                leak,
                soft_reset,
                lambda t, block, u: sigma[t, block].clone(),
                wanted,
            )
        return dx, dv_threshold if wanted else None, None, None, None, None, None


class _Spike(torch.autograd.Function):
    """[u ≥ 0], and back with the given derivative."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, sigma: Tensor) -> Tensor:
        ctx.save_for_backward(sigma)
        return fires(u)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (sigma,) = ctx.saved_tensors
        return grads[0] * sigma, None

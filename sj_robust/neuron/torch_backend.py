"""The reference backend: plain torch, with a hand-written backward that keeps only the pre-reset
potential.

Forward, per element, v = 0 before the first step:

    h = leak·v + x        s = [h − v_th ≥ 0]        v = (1 − s)·h  (hard)   or   h − s·v_th  (soft)

Backward over time, with g = dL/ds_t from above and c = dL/dv_t carried back (0 at the end); the
reset is not detached:

    ds = g − c·h | g − c·v_th     gh = ds·σ' + c·(1 − s) | ds·σ' + c     dx_t = gh     c = gh·leak
    dv_th −= ds·σ'  (+ c·s, soft)

s and σ' are recomputed from h. (Özdenizci & Legenstein, TMLR 2024, equations 3–6 and appendix A.)

The loop over time runs block by block along N: a step's tensors then stay in the cache for the
dozen small operations that touch them, which is several times faster than letting each operation
stream the whole layer through memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sj_robust.neuron.backend import register_backend
from sj_robust.neuron.surrogate import Surrogate

_BLOCK_ELEMENTS = 1 << 16  # 256 KiB of float32: a handful of such blocks fit a core's L2 cache


def multistep(
    x: Tensor, v_threshold: Tensor, *, leak: float, soft_reset: bool, surrogate: Surrogate
) -> Tensor:
    """All T steps of a layer from rest; see `sj_robust.neuron.backend.Multistep`."""
    if torch.is_grad_enabled() and (x.requires_grad or v_threshold.requires_grad):
        return _MultistepLIF.apply(x, v_threshold, leak, soft_reset, surrogate)  # type: ignore[no-any-return]
    return _forward(x, v_threshold, leak, soft_reset, keep_potential=False)[0]


def blocks(x: Tensor) -> Iterator[slice]:
    """Slices of dimension 1 (N) that hold about `_BLOCK_ELEMENTS` elements of one step; one slice
    for all on a GPU."""
    batch = x.shape[1] if x.dim() > 1 else 1
    size = batch if x.is_cuda else max(1, _BLOCK_ELEMENTS // max(1, x[0].numel() // max(1, batch)))
    return (slice(start, start + size) for start in range(0, batch, size))


def _forward(
    x: Tensor, v_threshold: Tensor, leak: float, soft_reset: bool, keep_potential: bool
) -> tuple[Tensor, Tensor | None]:
    spikes = torch.empty_like(x)
    potential = torch.empty_like(x) if keep_potential else None
    for block in blocks(x):
        v: Tensor | None = None
        for t in range(x.shape[0]):
            h = x[t, block]
            # two roundings, never a fused multiply-add: a last-bit difference would flip spikes
            if v is not None:
                h = v.add_(h) if leak == 1 else v.mul_(leak).add_(h)
            if potential is not None:
                h = potential[t, block].copy_(h)
            s = torch.ge(h, v_threshold, out=spikes[t, block])
            if t + 1 < x.shape[0]:
                # h − h·s is exact for s = 0, 1
                v = h - s * v_threshold if soft_reset else torch.addcmul(h, h, s, value=-1)
    return spikes, potential


def forward_keeping(
    x: Tensor, v_threshold: Tensor, leak: float, soft_reset: bool
) -> tuple[Tensor, Tensor]:
    """Spikes and the potentials before reset, both [T, N, *]."""
    spikes, potential = _forward(x, v_threshold, leak, soft_reset, keep_potential=True)
    assert potential is not None
    return spikes, potential


def backward_through_time(
    grad: Tensor,
    potential: Tensor,
    v_threshold: Tensor,
    leak: float,
    soft_reset: bool,
    derivative: Callable[[int, slice, Tensor], Tensor],
    threshold_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """dx [T, N, *] and, if wanted, d v_threshold from dL/ds. `derivative(t, block, u)` is σ' of
    that block, to be overwritten."""
    dx = torch.empty_like(potential)
    dv_threshold = (
        torch.zeros_like(v_threshold, dtype=torch.float64) if threshold_gradient else None
    )
    for block in blocks(potential):
        carry: Tensor | None = None
        total: Tensor | None = None  # of d v_th over time, elementwise
        for t in reversed(range(potential.shape[0])):
            h, out = potential[t, block], dx[t, block]
            u = h - v_threshold
            sigma = derivative(t, block, u)
            if carry is None:
                direct = sigma.mul_(grad[t, block])
                out.copy_(direct)
            else:
                reset = carry * v_threshold if soft_reset else carry * h
                direct = sigma.mul_(torch.sub(grad[t, block], reset, out=reset))
                # what reaches h past the reset
                kept = carry if soft_reset else carry.masked_fill(u >= 0, 0)
                torch.add(direct, kept, out=out)
                if soft_reset and dv_threshold is not None:
                    direct = direct + carry.masked_fill(u < 0, 0)
            if dv_threshold is not None:
                total = direct if total is None else total.add_(direct)
            carry = out if leak == 1 else out * leak
        if dv_threshold is not None and total is not None:
            dv_threshold -= total.double().sum_to_size(v_threshold.shape)
    return dx, None if dv_threshold is None else dv_threshold.to(v_threshold.dtype)


class _MultistepLIF(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        v_threshold: Tensor,
        leak: float,
        soft_reset: bool,
        surrogate: Surrogate,
    ) -> Tensor:
        spikes, potential = forward_keeping(x, v_threshold, leak, soft_reset)
        ctx.save_for_backward(potential, v_threshold)
        ctx.settings = leak, soft_reset, surrogate
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        potential, v_threshold = ctx.saved_tensors
        leak, soft_reset, surrogate = ctx.settings
        dx, dv_threshold = backward_through_time(
            grads[0],
            potential,
            v_threshold,
            leak,
            soft_reset,
            lambda t, block, u: surrogate.derivative(u),
            ctx.needs_input_grad[1],
        )
        return dx, dv_threshold, None, None, None


register_backend("torch", multistep, automatic=lambda x: True)

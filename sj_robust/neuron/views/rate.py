"""BPTR: back around the node, where its neuron fired."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sj_robust.neuron.backend import Multistep
from sj_robust.neuron.surrogate import Surrogate
from sj_robust.neuron.view import Pass, Run, View, fires

_ANY = Surrogate("PCW")  # the derivative is not taken from it


@dataclass(frozen=True)
class Rate(View):
    """A step's gradient passes where the neuron fired at least once in T steps."""

    def __str__(self) -> str:
        return "rate"

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
            spikes = multistep(x, v_threshold, leak=leak, soft_reset=soft_reset, surrogate=_ANY)
        return _Around.apply(x, spikes, _Fired().see(spikes))  # type: ignore[no-any-return]

    def foreign(self, x: Tensor, run: Run, seen: Pass) -> Any:
        with torch.no_grad():
            spikes = run(fires)
        if not torch.is_grad_enabled():
            return spikes
        seen.check_one_each(self, x, spikes, x)
        seen.memory = seen.memory or _Fired()
        seen.memory.see((spikes if seen.multistep else spikes.unsqueeze(0)).abs())
        return _Around.apply(x, spikes, seen.memory)


class _Fired:
    """Which neurons fired at least once in a pass. Of a node that computes step by step this is
    known after the last one: in time for the way back."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def see(self, spikes: Tensor) -> _Fired:
        """Take in [T, N, *], all steps or some of them."""
        now = spikes.amax(0) > 0
        self.value = now if self.value is None else self.value | now
        return self


class _Around(torch.autograd.Function):
    """`spikes` forward; the gradient back to x, masked by who fired."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, spikes: Tensor, fired: _Fired) -> Tensor:
        ctx.fired = fired
        return spikes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] * ctx.fired.value, None, None

"""Gradient views: how gradients flow back through a spiking node, which decides what a gradient attack can see.

A Surrogate goes back through time with σ'(u). Others need more than a derivative of u: rate (BPTR), rate-temporal (HART)
and adaptive sharpness (ASSG). All these keep the true spikes forward; "activation" (Act) replaces the node by a ReLU.
"""

from __future__ import annotations

import math
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sj_robust.errors import SJRobustError
from sj_robust.neuron import fused, torch_backend
from sj_robust.neuron.backend import Multistep
from sj_robust.neuron.surrogate import Surrogate

_ANY = Surrogate("PCW")  # where the derivative is not taken from it


class AdaptiveSharpness:
    """ASSG, a surrogate whose sharpness follows each neuron, at each time step, over the iterations of one attack:

        σ'(u) = α / (2·(1 + (π·α·u/2)²))      α = ω / (M + 1.5·D + 1e-4)      ω = 2·tan(0.425·π)/π

    M and D are moving averages (0.9) of |u| (from 1) and of ||u| − M| (from 0, with the new M), advanced once per forward
    pass with gradients. They belong to one batch of one attack: `forget` starts anew, and so does a batch of another shape.
    Source: Wang et al., arXiv 2512.22522, section 4.
    """

    OMEGA = 2 * math.tan(0.425 * math.pi) / math.pi
    MOMENTUM, RELAXATION = 0.9, 1.5

    def __init__(self) -> None:
        self._moments: WeakKeyDictionary[nn.Module, dict[int, tuple[Tensor, Tensor]]] = WeakKeyDictionary()

    def __str__(self) -> str:
        return "ASSG"

    def __reduce__(self) -> tuple[type[AdaptiveSharpness], tuple[()]]:
        return AdaptiveSharpness, ()  # the statistics are those of these nodes, a copy belongs to others

    def forget(self) -> None:
        """Start the statistics anew: to be called before each attack."""
        self._moments.clear()

    def derivative(self, node: nn.Module, potential: Tensor, v_threshold: Tensor, multistep: Multistep, step: int = 0) -> Tensor:
        """σ'(u) [T, N, *] for this pass through `node`, after its statistics took in u = potential − v_threshold.

        A node that computes one step at a time asks for each `step` on its own."""
        moments = self._moments.setdefault(node, {})
        mean, spread = moments.get(step, (None, None))
        if mean is None or spread is None or mean.shape != potential.shape or mean.device != potential.device:
            mean, spread = torch.ones_like(potential), torch.zeros_like(potential)
        mean, spread = fused.laid_out_as(potential, mean), fused.laid_out_as(potential, spread)
        moments[step] = mean, spread
        if fused.serves(multistep, potential, v_threshold):
            return fused.lif_adapt(  # type: ignore[no-any-return]
                potential, v_threshold, mean, spread, self.OMEGA, 1 - self.MOMENTUM, self.RELAXATION)
        sigma = torch.empty_like(potential)
        for block in torch_backend.blocks(potential):  # in the cache, a dozen operations cost about one
            for t in range(potential.shape[0]):
                m, d = mean[t, block], spread[t, block]
                size = (potential[t, block] - v_threshold).abs_()
                m.lerp_(size, 1 - self.MOMENTUM)
                d.lerp_((size - m).abs_(), 1 - self.MOMENTUM)
                alpha = torch.add(m, d, alpha=self.RELAXATION).add_(1e-4).reciprocal_().mul_(self.OMEGA)
                bell = size.mul_(alpha).mul_(math.pi / 2).square_().add_(1).mul_(2)
                torch.div(alpha, bell, out=sigma[t, block])
        return sigma


View = Surrogate | AdaptiveSharpness | Literal["rate", "rate-temporal", "activation", "own"]
"""How gradients flow back. "own" is a view of a network: its nodes keep the surrogate functions that it was trained with."""

# The evaluation ensemble of Özdenizci & Legenstein, TMLR 2024, section 4.3.
ENSEMBLE_VIEWS: tuple[View, ...] = (
    *(Surrogate("PCW", g) for g in (1.0, 2.0, 3.0, 0.5, 0.25)),
    *(Surrogate("EXP-D", g) for g in (0.5, 1.0, 2.0)),
    *(Surrogate("EXP", g) for g in (0.5, 1.0, 2.0)),
    *(Surrogate("RECT", g) for g in (0.25, 0.5, 1.0, 2.0, 4.0)),
    Surrogate("STE"),
    "rate",
    "activation",
)


def parse_view(text: str) -> View:
    """Read "rate", "rate-temporal", "activation", "own", "ASSG" or a surrogate such as "PCW:0.5". SJRobustError for anything else."""
    if text in ("rate", "rate-temporal", "activation", "own"):
        return text  # type: ignore[return-value]  # mypy does not narrow str to a Literal
    if text == "ASSG":
        return AdaptiveSharpness()
    try:
        return Surrogate.parse(text)
    except SJRobustError as error:
        raise SJRobustError(
            f"gradient view {text!r}: expected rate, rate-temporal, activation, own, ASSG or a surrogate like PCW:0.5 ({error})") from None


def view_name(view: View) -> str:
    """The text that `parse_view` reads back."""
    return str(view)


def spikes_in_view(view: View, node: nn.Module, x: Tensor, v_threshold: Tensor, leak: float, soft_reset: bool,
                   multistep: Multistep) -> Tensor:
    """All T steps of `node` from rest, x [T, N, *] → [T, N, *], with the gradients of `view`."""
    if isinstance(view, Surrogate):
        return multistep(x, v_threshold, leak=leak, soft_reset=soft_reset, surrogate=view)
    if view == "activation":
        return x.relu()
    if not (torch.is_grad_enabled() and (x.requires_grad or v_threshold.requires_grad)):
        return multistep(x, v_threshold, leak=leak, soft_reset=soft_reset, surrogate=_ANY)
    if view == "rate":
        with torch.no_grad():
            spikes = multistep(x, v_threshold, leak=leak, soft_reset=soft_reset, surrogate=_ANY)
        return Rate.apply(x, spikes, Fired().see(spikes))  # type: ignore[no-any-return]
    if view == "rate-temporal":
        with torch.no_grad():
            spikes, potential = _spikes_and_potential(x, v_threshold, leak, soft_reset, multistep)
        return RateTemporal.apply(x, spikes, potential - v_threshold)  # type: ignore[no-any-return]
    return _Adaptive.apply(x, v_threshold, leak, soft_reset, multistep, view, node)  # type: ignore[no-any-return]


def _spikes_and_potential(x: Tensor, v_threshold: Tensor, leak: float, soft_reset: bool, multistep: Multistep) -> tuple[Tensor, Tensor]:
    if fused.serves(multistep, x, v_threshold):
        return fused.lif_forward(fused.dense(x), v_threshold, leak, soft_reset, 0, 1.0)  # type: ignore[no-any-return]
    return torch_backend.forward_keeping(x, v_threshold, leak, soft_reset)


class Fired:
    """Which neurons fired at least once in a pass. Of a node that computes step by step this is known after the last one: in time for
    the way back."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def see(self, spikes: Tensor) -> Fired:
        """Take in [T, N, *], all steps or some of them."""
        now = spikes.amax(0) > 0
        self.value = now if self.value is None else self.value | now
        return self


class Rate(torch.autograd.Function):
    """BPTR: `spikes` forward; back to x, a step's gradient passes where the neuron fired at least once in T steps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, spikes: Tensor, fired: Fired) -> Tensor:
        ctx.fired = fired
        return spikes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] * ctx.fired.value, None, None


class RateTemporal(torch.autograd.Function):
    """HART: `spikes` forward; dx = mean over t of g_t·σ'(u_t), PCW of width 1, the same for every step and without a path through the
    potential's history: rate information from the mean, temporal information from u_t (Hao et al., ICLR 2024)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, spikes: Tensor, u: Tensor) -> Tensor:
        ctx.save_for_backward(_ANY.derivative(u))
        return spikes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (sigma,) = ctx.saved_tensors
        return (grads[0] * sigma).mean(0, keepdim=True).expand_as(sigma), None, None


class _Adaptive(torch.autograd.Function):
    """Backpropagation through time with the derivative that an AdaptiveSharpness has for this pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, v_threshold: Tensor, leak: float, soft_reset: bool, multistep: Multistep,
                view: AdaptiveSharpness, node: nn.Module) -> Tensor:
        spikes, potential = _spikes_and_potential(x, v_threshold, leak, soft_reset, multistep)
        ctx.save_for_backward(potential, v_threshold, view.derivative(node, potential, v_threshold, multistep))
        ctx.settings = leak, soft_reset, fused.serves(multistep, potential, v_threshold)
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        potential, v_threshold, sigma = ctx.saved_tensors
        leak, soft_reset, in_kernel = ctx.settings
        if in_kernel:
            dx, dv_threshold = fused.lif_backward(
                fused.laid_out_as(potential, grads[0]), potential, v_threshold, leak, soft_reset, 0, 1.0, sigma, ctx.needs_input_grad[1])
        else:
            dx, dv_threshold = torch_backend.backward_through_time(
                grads[0], potential, v_threshold, leak, soft_reset, lambda t, block, u: sigma[t, block].clone(), ctx.needs_input_grad[1])
        return dx, dv_threshold if ctx.needs_input_grad[1] else None, None, None, None, None, None

"""The fused backends as torch custom ops: one formula for autograd, one kernel per device.

`sj_robust::lif_spikes` and `sj_robust::lif_forward` (which also keeps the potential) run all T
steps of a layer from rest; `sj_robust::lif_backward` goes back through them from the potential,
`sj_robust::lif_backward_from_input` from the input; `sj_robust::lif_adapt` is adaptive sharpness.
Each device adds its kernels: cpu_backend and cupy_backend. torch.compile sees them as opaque ops
with known shapes and does not break its graph.

What is kept for the backward pass. The kernels wait for memory, so they compute the potentials
again, from the input, as long as registers or the cache hold them. Bytes moved for each neuron and
step, forward + backward, with inputs of float32 and of 16 bits:

    the potential kept   x → s, h   g, h → dx   12 + 12 and 8 + 8 (h is float32 in any case)
    the input kept       x → s      g, x → dx    8 + 12 and 4 + 6

The input, of a convolution or batch norm, would else be freed once the node has read it. Kept, it
takes 4 or 2 bytes until the backward pass where the potential takes 4 (1/T of them where one input
is repeated T times), and while the forward pass of the node runs, 8 or 4 bytes are alive in place
of 12 or 8: the peak is the same or lower in either type. In exchange the input must not be changed
in place after the node has read it; autograd then raises an error.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from sj_robust.neuron import torch_backend
from sj_robust.neuron.backend import Multistep
from sj_robust.neuron.surrogate import SURROGATE_NAMES, Surrogate
from sj_robust.neuron.view import wants_gradient

# of inputs; the state is float32 in any case
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# those that a device's kernels read as they are; others are widened for them
READS = {"cpu": DTYPES[:2], "cuda": DTYPES}
HELD_STEPS = 32  # the most that kernels compute potentials again for


def multistep(
    x: Tensor, v_threshold: Tensor, *, leak: float, soft_reset: bool, surrogate: Surrogate
) -> Tensor:
    """All T steps of a layer from rest; see `sj_robust.neuron.backend.Multistep`.

    What the kernels do not know takes the torch backend: float64, and thresholds that are neither
    one nor one per channel.
    """
    if not takes(x, v_threshold):
        return torch_backend.multistep(
            x, v_threshold, leak=leak, soft_reset=soft_reset, surrogate=surrogate
        )
    if not _reads(x):
        wide = multistep(
            x.float(), v_threshold, leak=leak, soft_reset=soft_reset, surrogate=surrogate
        )
        return wide.to(x.dtype)
    x, v_threshold = dense(x), v_threshold.float()
    settings = leak, soft_reset, SURROGATE_NAMES.index(surrogate.name), surrogate.gamma
    if wants_gradient(x, v_threshold) and x.shape[0] > HELD_STEPS:
        return lif_forward(x, v_threshold, *settings)[0]
    return lif_spikes(x, v_threshold, *settings)


def takes(x: Tensor, v_threshold: Tensor) -> bool:
    """Whether the kernels know such an input and threshold."""
    if not (x.dtype in DTYPES and v_threshold.dtype in DTYPES and x.dim() >= 2 and x.numel()):
        return False
    return v_threshold.numel() == 1 or v_threshold.shape == (*x.shape[2:3], *(1,) * (x.dim() - 3))


def _reads(x: Tensor) -> bool:
    """Whether the device's kernels read such elements."""
    return x.dtype in READS.get(x.device.type, ())


def serves(multistep_in_use: Multistep, x: Tensor, v_threshold: Tensor) -> bool:
    """Whether the ops themselves can stand in for that backend, for views that need the
    potential."""
    return (
        inspect.unwrap(multistep_in_use) is multistep
        and takes(x, v_threshold)
        and _reads(x)
        and v_threshold.dtype == torch.float32
    )


def keeps_float32_state(multistep_in_use: Multistep, x: Tensor) -> bool:
    """Whether that backend reads x as it is, of 16 bits too, and has its potentials in float32."""
    return x.dtype == torch.float32 or (
        inspect.unwrap(multistep_in_use) is multistep and x.dtype in DTYPES and _reads(x)
    )


def spikes_and_potential(
    x: Tensor, v_threshold: Tensor, leak: float, soft_reset: bool, multistep_in_use: Multistep
) -> tuple[Tensor, Tensor]:
    """All T steps of a layer from rest and its potentials before reset, [T, N, *]; no gradients."""
    if serves(multistep_in_use, x, v_threshold):
        kept: tuple[Tensor, Tensor] = lif_forward(dense(x), v_threshold, leak, soft_reset, 0, 1.0)
        return kept
    return torch_backend.forward_keeping(x, v_threshold, leak, soft_reset)


def dense(x: Tensor) -> Tensor:
    """`x` itself where each step fills one block of memory, in any order of its dimensions (steps
    may repeat one); else a copy."""
    expected = 1
    for stride, size in sorted(zip(x.stride()[1:], x.shape[1:], strict=True)):
        if size != 1:
            if stride != expected:
                return x.contiguous()
            expected *= size
    return x


def steps_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An empty tensor of x's shape [T, N, *], each step laid out as x's steps are, one after the
    other."""
    return torch.empty_strided(
        x.shape, (x[0].numel(), *x.stride()[1:]), dtype=dtype or x.dtype, device=x.device
    )


def laid_out_as(x: Tensor, other: Tensor) -> Tensor:
    """`other` itself where it lies in memory as `steps_like(x)`; else a copy that does."""
    if other.stride() == (x[0].numel(), *x.stride()[1:]):
        return other
    return steps_like(x, other.dtype).copy_(other)


def channels_of(x: Tensor, v_threshold: Tensor) -> tuple[int, int]:
    """(C, inner): the threshold of the element at offset j of a step is that of channel (j //
    inner) % C."""
    return (1, 1) if v_threshold.numel() == 1 else (v_threshold.numel(), x.stride(2))


@torch.library.custom_op("sj_robust::lif_spikes", mutates_args=())
def lif_spikes(
    x: Tensor,
    v_threshold: Tensor,
    leak: float,
    soft_reset: bool,
    surrogate: int = 0,
    gamma: float = 1.0,
) -> Tensor:
    raise NotImplementedError(f"no fused kernel for {x.device.type}")


@torch.library.custom_op("sj_robust::lif_forward", mutates_args=())
def lif_forward(
    x: Tensor, v_threshold: Tensor, leak: float, soft_reset: bool, surrogate: int, gamma: float
) -> tuple[Tensor, Tensor]:
    raise NotImplementedError(f"no fused kernel for {x.device.type}")


@torch.library.custom_op("sj_robust::lif_backward", mutates_args=())
def lif_backward(
    grad: Tensor,
    potential: Tensor,
    v_threshold: Tensor,
    leak: float,
    soft_reset: bool,
    surrogate: int,
    gamma: float,
    slope: Tensor | None,
    threshold_gradient: bool,
) -> tuple[Tensor, Tensor]:
    raise NotImplementedError(f"no fused kernel for {grad.device.type}")


@torch.library.custom_op("sj_robust::lif_backward_from_input", mutates_args=())
def lif_backward_from_input(
    grad: Tensor,
    x: Tensor,
    v_threshold: Tensor,
    leak: float,
    soft_reset: bool,
    surrogate: int,
    gamma: float,
    threshold_gradient: bool,
) -> tuple[Tensor, Tensor]:
    settings = leak, soft_reset, surrogate, gamma  # what a device's own kernel does at once
    _, potential = lif_forward(x, v_threshold, *settings)
    both: tuple[Tensor, Tensor] = lif_backward(
        grad, potential, v_threshold, *settings, None, threshold_gradient
    )
    return both


@torch.library.custom_op("sj_robust::lif_adapt", mutates_args=("mean", "spread"))
def lif_adapt(
    potential: Tensor,
    v_threshold: Tensor,
    mean: Tensor,
    spread: Tensor,
    omega: float,
    update: float,
    relaxation: float,
) -> Tensor:
    raise NotImplementedError(f"no fused kernel for {potential.device.type}")


@lif_spikes.register_fake
def _(x: Tensor, *settings: Any) -> Tensor:
    return steps_like(x)


@lif_forward.register_fake
def _(
    x: Tensor, v_threshold: Tensor, leak: float, soft_reset: bool, surrogate: int, gamma: float
) -> tuple[Tensor, Tensor]:
    return steps_like(x), steps_like(x, torch.float32)


@lif_backward.register_fake
def _(
    grad: Tensor,
    potential: Tensor,
    v_threshold: Tensor,
    leak: float,
    soft_reset: bool,
    surrogate: int,
    gamma: float,
    slope: Tensor | None,
    threshold_gradient: bool,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(potential, dtype=grad.dtype), torch.empty_like(v_threshold)


@lif_backward_from_input.register_fake
def _(grad: Tensor, x: Tensor, v_threshold: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    return steps_like(x), torch.empty_like(v_threshold)


@lif_adapt.register_fake
def _(
    potential: Tensor,
    v_threshold: Tensor,
    mean: Tensor,
    spread: Tensor,
    omega: float,
    update: float,
    relaxation: float,
) -> Tensor:
    return torch.empty_like(potential)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, v_threshold, *ctx.settings = inputs
    ctx.save_for_backward(output[1], v_threshold)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
    if grad is None:
        return None, None, None, None, None, None
    potential, v_threshold = ctx.saved_tensors
    dx, dv_threshold = lif_backward(
        laid_out_as(potential, grad),
        potential,
        v_threshold,
        *ctx.settings,
        None,
        ctx.needs_input_grad[1],
    )
    return dx, dv_threshold if ctx.needs_input_grad[1] else None, None, None, None, None


lif_forward.register_autograd(_backward, setup_context=_keep)


def _keep_input(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, v_threshold, *ctx.settings = inputs
    ctx.save_for_backward(x, v_threshold)


def _backward_from_input(
    ctx: Any, grad: Tensor
) -> tuple[Tensor, Tensor | None, None, None, None, None]:
    x, v_threshold = ctx.saved_tensors
    wanted = ctx.needs_input_grad[1]
    dx, dv_threshold = lif_backward_from_input(
        laid_out_as(x, grad), x, v_threshold, *ctx.settings, wanted
    )
    return dx, dv_threshold if wanted else None, None, None, None, None


lif_spikes.register_autograd(_backward_from_input, setup_context=_keep_input)

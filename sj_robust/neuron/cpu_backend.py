"""The fused CPU backend: a small C kernel, compiled on first use; see kernels/lif_cpu.c and
compiler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sj_robust.errors import SJRobustError
from sj_robust.neuron import fused
from sj_robust.neuron.backend import register_backend
from sj_robust.neuron.compiler import cpu_kernel_status, cpu_library


@fused.lif_spikes.register_kernel("cpu")
def _(x: Tensor, v_threshold: Tensor, leak: float, soft_reset: bool, *surrogate: float) -> Tensor:
    return _forward(x, v_threshold, leak, soft_reset, None)


@fused.lif_forward.register_kernel("cpu")
def _(
    x: Tensor, v_threshold: Tensor, leak: float, soft_reset: bool, surrogate: int, gamma: float
) -> tuple[Tensor, Tensor]:
    potential = fused.steps_like(x, torch.float32)
    return _forward(x, v_threshold, leak, soft_reset, potential), potential


def _forward(
    x: Tensor, v_threshold: Tensor, leak: float, soft_reset: bool, potential: Tensor | None
) -> Tensor:
    spikes, threshold = fused.steps_like(x), v_threshold.contiguous()
    _kernel().lif_forward_layer(
        x.data_ptr(),
        threshold.data_ptr(),
        spikes.data_ptr(),
        _address(potential),
        x.shape[0],
        x[0].numel(),
        x.stride(0),
        *fused.channels_of(x, v_threshold),
        leak,
        soft_reset,
        x.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return spikes


@fused.lif_backward.register_kernel("cpu")
def _(
    grad: Tensor, potential: Tensor, v_threshold: Tensor, *settings: Any
) -> tuple[Tensor, Tensor]:
    return _backward(grad, potential, None, v_threshold, *settings)


@fused.lif_backward_from_input.register_kernel("cpu")
def _(grad: Tensor, x: Tensor, v_threshold: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    leak, soft_reset, surrogate, gamma, wanted = settings
    return _backward(grad, None, x, v_threshold, leak, soft_reset, surrogate, gamma, None, wanted)


def _backward(
    grad: Tensor,
    potential: Tensor | None,
    x: Tensor | None,
    v_threshold: Tensor,
    leak: float,
    soft_reset: bool,
    surrogate: int,
    gamma: float,
    slope: Tensor | None,
    threshold_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """From the potential, or from x; grad lies in memory as `steps_like` them."""
    dx, threshold = torch.empty_like(grad), v_threshold.contiguous()
    size, kernel = grad[0].numel(), _kernel()
    shares = torch.zeros(
        kernel.lif_blocks(size) if threshold_gradient else 0,
        v_threshold.numel(),
        dtype=torch.float64,
    )
    kernel.lif_backward_layer(
        grad.data_ptr(),
        _address(potential),
        _address(x),
        threshold.data_ptr(),
        _address(slope),
        dx.data_ptr(),
        shares.data_ptr() if threshold_gradient else None,
        grad.shape[0],
        size,
        0 if x is None else x.stride(0),
        *fused.channels_of(grad, v_threshold),
        leak,
        soft_reset,
        surrogate,
        gamma,
        grad.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return dx, shares.sum(0).to(v_threshold.dtype).view(v_threshold.shape)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@fused.lif_adapt.register_kernel("cpu")
def _(
    potential: Tensor,
    v_threshold: Tensor,
    mean: Tensor,
    spread: Tensor,
    omega: float,
    update: float,
    relaxation: float,
) -> Tensor:
    slope, threshold = torch.empty_like(potential), v_threshold.contiguous()
    _kernel().lif_adapt_layer(
        potential.data_ptr(),
        threshold.data_ptr(),
        mean.data_ptr(),
        spread.data_ptr(),
        slope.data_ptr(),
        potential.shape[0],
        potential[0].numel(),
        *fused.channels_of(potential, v_threshold),
        omega,
        update,
        relaxation,
        torch.get_num_threads(),
    )
    return slope


def _kernel():  # type: ignore[no-untyped-def]  # ctypes attributes have no types
    library = cpu_library()
    if library is None:
        raise SJRobustError(
            f'the "cpu" backend is {cpu_kernel_status()}; use backend="auto" or "torch"'
        )
    return library


def _automatic(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in fused.DTYPES and cpu_library() is not None


register_backend("cpu", fused.multistep, automatic=_automatic)

"""The fused CUDA backend: kernels/lif_cuda.cu through CuPy, on torch's current device and stream.

Needs the extra cuda12 or cuda13. It has not run on a GPU yet: the tests compile the same source for
sm_75, sm_80 and sm_90 with NVRTC, and run it on the CPU, through a shim of CUDA's keywords, against
the golden vectors and the torch backend.
"""

from __future__ import annotations

import importlib.util
import logging
from functools import cache, wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sj_robust.errors import SJRobustError
from sj_robust.neuron import fused
from sj_robust.neuron.backend import register_backend
from sj_robust.neuron.compiler import KERNELS

OPTIONS = ("-std=c++14", "--fmad=false")
_THREADS = 256  # per block

log = logging.getLogger(__name__)


def source() -> str:
    """The CUDA source, one text: CuPy's cache of compiled kernels knows nothing of included
    files."""
    return "".join(
        (KERNELS / name).read_text(encoding="utf-8") for name in ("lif.h", "lif_cuda.cu")
    )


@fused.lif_spikes.register_kernel("cuda")
def lif_spikes(x: Tensor, v_threshold: Tensor, leak: float, soft_reset: bool) -> Tensor:
    return _forward(x, v_threshold, leak, soft_reset, None)


@fused.lif_forward.register_kernel("cuda")
def lif_forward(
    x: Tensor, v_threshold: Tensor, leak: float, soft_reset: bool, surrogate: int, gamma: float
) -> tuple[Tensor, Tensor]:
    potential = fused.steps_like(x)
    return _forward(x, v_threshold, leak, soft_reset, potential), potential


def _forward(
    x: Tensor, v_threshold: Tensor, leak: float, soft_reset: bool, potential: Tensor | None
) -> Tensor:
    spikes, threshold = fused.steps_like(x), v_threshold.contiguous()
    launch(
        "lif_forward_kernel",
        x.device,
        x[0].numel(),
        [
            _pointer(x),
            _pointer(threshold),
            _pointer(spikes),
            _pointer(potential),
            np.int64(x.shape[0]),
            np.int64(x[0].numel()),
            np.int64(x.stride(0)),
            *map(np.int64, fused.channels_of(x, v_threshold)),
            np.float32(leak),
            np.int32(soft_reset),
        ],
    )
    return spikes


@fused.lif_backward.register_kernel("cuda")
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
    dx, threshold = torch.empty_like(potential), v_threshold.contiguous()
    shares = fused.steps_like(potential[:1])[0] if threshold_gradient else None
    launch(
        "lif_backward_kernel",
        grad.device,
        potential[0].numel(),
        [
            _pointer(grad),
            _pointer(potential),
            _pointer(threshold),
            _pointer(slope),
            _pointer(dx),
            _pointer(shares),
            np.int64(potential.shape[0]),
            np.int64(potential[0].numel()),
            *map(np.int64, fused.channels_of(potential, v_threshold)),
            np.float32(leak),
            np.int32(soft_reset),
            np.int32(surrogate),
            np.float32(gamma),
        ],
    )
    if shares is None:
        return dx, torch.empty_like(v_threshold)
    return dx, shares.double().sum_to_size(v_threshold.shape).to(v_threshold.dtype)


@fused.lif_adapt.register_kernel("cuda")
def lif_adapt(
    potential: Tensor,
    v_threshold: Tensor,
    mean: Tensor,
    spread: Tensor,
    omega: float,
    update: float,
    relaxation: float,
) -> Tensor:
    slope, threshold = torch.empty_like(potential), v_threshold.contiguous()
    launch(
        "lif_adapt_kernel",
        potential.device,
        potential[0].numel(),
        [
            _pointer(potential),
            _pointer(threshold),
            _pointer(mean),
            _pointer(spread),
            _pointer(slope),
            np.int64(potential.shape[0]),
            np.int64(potential[0].numel()),
            *map(np.int64, fused.channels_of(potential, v_threshold)),
            np.float32(omega),
            np.float32(update),
            np.float32(relaxation),
        ],
    )
    return slope


def _pointer(tensor: Tensor | None) -> np.uint64:
    return np.uint64(0 if tensor is None else tensor.data_ptr())


def launch(kernel: str, device: torch.device, threads: int, arguments: list[Any]) -> None:
    """Queue `kernel` with one thread per neuron on torch's current stream of `device`."""
    import cupy

    with (
        cupy.cuda.Device(device.index),
        cupy.cuda.ExternalStream(torch.cuda.current_stream(device).cuda_stream, device.index),
    ):
        _module().get_function(kernel)((-(-threads // _THREADS),), (_THREADS,), tuple(arguments))


@cache
def _module() -> Any:
    import cupy

    return cupy.RawModule(code=source(), options=OPTIONS)


@cache
def _works(index: int) -> bool:
    """Whether the kernels compile for and run on this device; why not is logged once, and the torch
    backend taken."""
    try:
        device = torch.device("cuda", index)
        x, threshold = torch.ones(1, 1, device=device), torch.ones((), device=device)
        return bool(fused.lif_spikes(x, threshold, 1.0, False).item() == 1)
    except Exception as error:  # whatever CuPy, NVRTC and the driver may say to each other
        log.warning(
            "sj-robust: the CuPy backend does not work here, the slower torch backend is used: %s",
            str(error).splitlines()[:1],
        )
        return False


def cupy_status() -> str:
    """One line on the CuPy backend for `sj-robust doctor`."""
    if not installed():
        return "not installed (extra cuda12 or cuda13)"
    if not torch.cuda.is_available():
        return "installed, no CUDA device"
    return "fused" if _works(torch.cuda.current_device()) else "installed, does not work here"


def installed() -> bool:
    """Whether CuPy can be imported."""
    return importlib.util.find_spec("cupy") is not None


def _automatic(x: Tensor) -> bool:
    return x.is_cuda and x.dtype in fused.DTYPES and _works(x.device.index or 0)


@wraps(fused.multistep)  # by which `fused.serves` knows it
def _multistep(x: Tensor, v_threshold: Tensor, **settings: Any) -> Tensor:
    if not x.is_cuda:
        raise SJRobustError(
            f'the "cupy" backend needs tensors on a CUDA device, got {x.device.type}: use'
            ' backend="auto"'
        )
    return fused.multistep(x, v_threshold, **settings)


if installed():
    register_backend("cupy", _multistep, automatic=_automatic)

"""The fused CUDA backend: kernels/lif_cuda.cu through CuPy, on torch's current device and stream.

It reads and writes float32, bf16 and fp16 and has its state in float32; what it keeps for the
backward pass, fused tells. What does not change within a network (number of steps, surrogate, ...)
is compiled into the kernels, on first use; CuPy keeps them on the disk.

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
from sj_robust.neuron.surrogate import SURROGATE_NAMES

# division to 2 ulp: only σ' divides, and exactly that is a quarter of the way back's instructions.
# CuPy adds -ftz=true: numbers below 1.2e-38 are 0
OPTIONS = ("-std=c++14", "--fmad=false", "--prec-div=false")
ELEMENTS = {torch.float32: "float", torch.bfloat16: "bf16", torch.float16: "fp16"}
_THREADS = 256  # per block
_GIVEN = len(SURROGATE_NAMES)  # LIF_GIVEN of lif.h

log = logging.getLogger(__name__)


def source(kernel: str | None = None) -> str:
    """The CUDA source, one text: CuPy's cache of compiled kernels knows nothing of included files.
    `kernel`: with that one alone, as all four take three times as long to compile.

    ASCII: CuPy writes it to a file in the encoding of the user's language.
    """
    text = "".join(
        (KERNELS / name).read_text(encoding="utf-8") for name in ("lif.h", "lif_cuda.cu")
    )
    head, *kernels = text.encode("ascii", "replace").decode().split('extern "C" ')
    wanted = [each for each in kernels if kernel is None or f" {kernel}(" in each]
    return "".join([head, *(f'extern "C" {each}' for each in wanted)])


@fused.lif_spikes.register_kernel("cuda")
def lif_spikes(
    x: Tensor,
    v_threshold: Tensor,
    leak: float,
    soft_reset: bool,
    surrogate: int = 0,
    gamma: float = 1.0,
) -> Tensor:
    return _forward(x, v_threshold, leak, soft_reset, None)


@fused.lif_forward.register_kernel("cuda")
def lif_forward(
    x: Tensor, v_threshold: Tensor, leak: float, soft_reset: bool, surrogate: int, gamma: float
) -> tuple[Tensor, Tensor]:
    potential = fused.steps_like(x, torch.float32)
    return _forward(x, v_threshold, leak, soft_reset, potential), potential


def _forward(
    x: Tensor, v_threshold: Tensor, leak: float, soft_reset: bool, potential: Tensor | None
) -> Tensor:
    spikes = fused.steps_like(x)
    _run(
        "lif_forward_kernel",
        x,
        v_threshold,
        [x, v_threshold.contiguous(), spikes, potential],
        [leak],
        ELEMENT=ELEMENTS[x.dtype],
        SOFT=int(soft_reset),
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
    dx = torch.empty_like(potential, dtype=grad.dtype)
    shares = _shares(potential, threshold_gradient)
    width = _run(
        "lif_backward_kernel",
        potential,
        v_threshold,
        [grad, potential, v_threshold.contiguous(), slope, dx, shares],
        [leak, gamma],
        ELEMENT=ELEMENTS[grad.dtype],
        KIND=surrogate if slope is None else _GIVEN,
        SOFT=int(soft_reset),
    )
    return dx, _summed(shares, potential, v_threshold, width)


@fused.lif_backward_from_input.register_kernel("cuda")
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
    if x.shape[0] > fused.HELD_STEPS:
        raise NotImplementedError(f"{x.shape[0]} steps are more than registers hold")
    dx, shares = fused.steps_like(x), _shares(x, threshold_gradient)
    width = _run(
        "lif_backward_from_input_kernel",
        x,
        v_threshold,
        [grad, x, v_threshold.contiguous(), dx, shares],
        [leak, gamma],
        widest=4 if x.shape[0] <= 16 else 2,  # 64 potentials a thread
        ELEMENT=ELEMENTS[x.dtype],
        KIND=surrogate,
        SOFT=int(soft_reset),
    )
    return dx, _summed(shares, x, v_threshold, width)


def _shares(x: Tensor, wanted: bool) -> Tensor | None:
    """Room for each neuron's share of d v_th."""
    return x.new_empty(x[0].numel(), dtype=torch.float32) if wanted else None


def _summed(shares: Tensor | None, x: Tensor, v_threshold: Tensor, width: int) -> Tensor:
    """d v_th, from what store_shares of lif_cuda.cu left."""
    if shares is None:
        return torch.empty_like(v_threshold)
    channels, inner = fused.channels_of(x, v_threshold)
    alike = width if channels == 1 or inner % width == 0 else 1
    rows = shares[: shares.numel() // alike].view(-1, channels, -(-inner // alike))
    return rows.sum((0, 2), dtype=torch.float64).to(v_threshold.dtype).view(v_threshold.shape)


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
    slope = torch.empty_like(potential)
    _run(
        "lif_adapt_kernel",
        potential,
        v_threshold,
        [potential, v_threshold.contiguous(), mean, spread, slope],
        [omega, update, relaxation],
    )
    return slope


def _run(
    kernel: str,
    x: Tensor,
    v_threshold: Tensor,
    tensors: list[Tensor | None],
    numbers: list[float],
    widest: int = 4,
    **constants: str | int,
) -> int:
    """Queue `kernel` for every neuron of x, or of the potential in its place; → how many of them a
    thread takes: as many as lie in one aligned access in each array and step."""
    steps, size, stride = x.shape[0], x[0].numel(), x.stride(0)
    width = next(
        width
        for width in (4, 2, 1)
        if width <= widest
        and size % width == stride % width == 0
        and not any(
            tensor.data_ptr() % (width * tensor.element_size())
            for tensor in tensors
            if tensor is not None and tensor.shape == x.shape
        )
    )
    launch(
        kernel,
        x.device,
        size // width,
        [
            *(np.uint64(0 if tensor is None else tensor.data_ptr()) for tensor in tensors),
            *map(np.int64, (steps, size, stride, *fused.channels_of(x, v_threshold))),
            *map(np.float32, numbers),
        ],
        {
            "ELEMENT": "float",
            "STEPS": steps if steps <= fused.HELD_STEPS else 0,
            "WIDTH": width,
            "KIND": 0,
            "SOFT": 0,
            **constants,
        },
    )
    return width


def launch(
    kernel: str,
    device: torch.device,
    threads: int,
    arguments: list[Any],
    constants: dict[str, str | int],
) -> None:
    """Queue `kernel`, compiled with these constants, on torch's current stream of `device`."""
    import cupy

    with (
        cupy.cuda.Device(device.index),
        cupy.cuda.ExternalStream(torch.cuda.current_stream(device).cuda_stream, device.index),
    ):
        function = _compiled(kernel, *definitions(constants))
        function((-(-threads // _THREADS),), (_THREADS,), tuple(arguments))


def definitions(constants: dict[str, str | int]) -> list[str]:
    """The constants of lif_cuda.cu as options of the compiler."""
    return [f"-D{name}={value}" for name, value in constants.items()]


@cache
def _compiled(kernel: str, *constants: str) -> Any:
    import cupy

    # in the text: for options that it has not met, CuPy asks the compiler once more
    lines = [f"#define {each.removeprefix('-D').replace('=', ' ')}\n" for each in constants]
    return cupy.RawKernel("".join(lines) + source(kernel), kernel, options=OPTIONS)


@cache
def _works(index: int, dtype: torch.dtype = torch.float32) -> bool:
    """Whether the kernels compile for and run on this device; why not is logged once, and the torch
    backend taken."""
    try:
        device = torch.device("cuda", index)
        x = torch.ones(1, 1, device=device, dtype=dtype)
        threshold = torch.ones((), device=device)
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
    return x.is_cuda and x.dtype in fused.DTYPES and _works(x.device.index or 0, x.dtype)


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

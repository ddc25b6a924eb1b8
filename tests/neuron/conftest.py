"""The CUDA source on the CPU, through a shim of CUDA's keywords."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sj_robust.neuron import SURROGATE_NAMES, Surrogate, cupy_backend, fused

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], ctypes.CDLL]:
    """The source as g++ compiles it for that ELEMENT and WIDTH."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if not compiler:
        pytest.skip("no C++ compiler to run the CUDA source on the CPU")
    folder = tmp_path_factory.mktemp("cuda")
    parts = [
        (HERE / "cuda_shim.h").read_text(),
        cupy_backend.source(),
        (HERE / "cuda_shim.cpp").read_text(),
    ]
    (folder / "lif.cpp").write_text("\n".join(parts))
    options = ["-O1", "-std=c++14", "-ffp-contract=off", "-fPIC", "-shared"]

    @cache
    def compiled(element: str, width: int) -> ctypes.CDLL:
        constants = cupy_backend.definitions({"ELEMENT": element, "WIDTH": width})
        target = folder / f"{element}{width}.so"
        subprocess.run(
            [compiler, *options, *constants, folder / "lif.cpp", "-o", target], check=True
        )
        return ctypes.CDLL(str(target))

    return compiled


@pytest.fixture
def on_cpu(
    library: Callable[[str, int], ctypes.CDLL], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Tensor]:
    """The cupy backend's own ops on CPU tensors: all of it is real but the launch of a kernel."""
    kinds = {np.uint64: ctypes.c_void_p, np.int64: ctypes.c_longlong, np.float32: ctypes.c_float}

    def launch(
        kernel: str, device: torch.device, threads: int, arguments: list[Any], constants: Any
    ) -> None:
        shared = library(constants["ELEMENT"], constants["WIDTH"])
        for name in ("STEPS", "KIND", "SOFT"):
            ctypes.c_int.in_dll(shared, name).value = constants[name]
        getattr(shared, f"launch_{kernel}")(
            -(-threads // 256), *(kinds[type(value)](value.item()) for value in arguments)
        )

    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, x: Tensor, threshold: Tensor, leak: float, soft: bool, surrogate: Surrogate
        ) -> Tensor:
            x = fused.dense(x)
            ctx.settings = leak, soft, SURROGATE_NAMES.index(surrogate.name), surrogate.gamma
            spikes, potential = cupy_backend.lif_forward(x, threshold, *ctx.settings)
            ctx.save_for_backward(x, potential, threshold)
            assert torch.equal(cupy_backend.lif_spikes(x, threshold, leak, soft), spikes)
            return spikes

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            x, potential, threshold = ctx.saved_tensors
            grad = fused.laid_out_as(x, grad)
            kept, again = (potential, threshold, *ctx.settings, None), (x, threshold, *ctx.settings)
            dx, dv = cupy_backend.lif_backward(grad, *kept, True)
            others = [(cupy_backend.lif_backward(grad, *kept, False)[0], dv)]
            if len(x) <= fused.HELD_STEPS:
                others.append(cupy_backend.lif_backward_from_input(grad, *again, True))
                others.append((cupy_backend.lif_backward_from_input(grad, *again, False)[0], dv))
            for other_dx, other_dv in others:
                torch.testing.assert_close(other_dx, dx, rtol=0, atol=0, equal_nan=True)
                # a thread may take fewer neurons, and their shares are added in another order
                torch.testing.assert_close(other_dv, dv, rtol=1e-6, atol=1e-5, equal_nan=True)
            return dx, dv, None, None, None

    monkeypatch.setattr(cupy_backend, "launch", launch)
    return Layer.apply

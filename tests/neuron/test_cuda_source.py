"""The CUDA source without a GPU: compiled by NVRTC, and run on the CPU through a shim of CUDA's
keywords."""

from __future__ import annotations

import ctypes
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sj_robust.errors import SJRobustError
from sj_robust.neuron import (
    SURROGATE_NAMES,
    AdaptiveSharpness,
    Surrogate,
    ThresholdLIF,
    available_backends,
    cupy_backend,
    fused,
    torch_backend,
)

HERE = Path(__file__).parent
GOLDEN = np.load(HERE.parent / "golden" / "lif.npz")
CASES: list[dict[str, Any]] = [
    case for case in json.loads(str(GOLDEN["meta"])) if case["surrogate"] != "BPTR"
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++") or shutil.which("c++")
    if not compiler:
        pytest.skip("no C++ compiler to run the CUDA source on the CPU")
    folder = tmp_path_factory.mktemp("cuda")
    source = folder / "lif.cpp"
    source.write_text(
        "\n".join(
            [
                (HERE / "cuda_shim.h").read_text(),
                cupy_backend.source(),
                (HERE / "cuda_shim.cpp").read_text(),
            ]
        )
    )
    subprocess.run(
        [
            compiler,
            "-O2",
            "-std=c++14",
            "-ffp-contract=off",
            "-fPIC",
            "-shared",
            source,
            "-o",
            folder / "lif.so",
        ],
        check=True,
    )
    return ctypes.CDLL(str(folder / "lif.so"))


@pytest.fixture
def on_cpu(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """The cupy backend's own ops on CPU tensors: all of it is real but the launch of a kernel."""
    kinds = {
        np.uint64: ctypes.c_void_p,
        np.int64: ctypes.c_longlong,
        np.int32: ctypes.c_int,
        np.float32: ctypes.c_float,
    }

    def launch(kernel: str, device: torch.device, threads: int, arguments: list[Any]) -> None:
        blocks = -(-threads // 256)
        getattr(library, f"launch_{kernel}")(
            blocks, *(kinds[type(value)](value.item()) for value in arguments)
        )

    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, x: Tensor, threshold: Tensor, leak: float, soft: bool, surrogate: Surrogate
        ) -> Tensor:
            ctx.settings = leak, soft, SURROGATE_NAMES.index(surrogate.name), surrogate.gamma
            spikes, potential = cupy_backend.lif_forward(fused.dense(x), threshold, *ctx.settings)
            ctx.save_for_backward(potential, threshold)
            assert torch.equal(
                cupy_backend.lif_spikes(fused.dense(x), threshold, leak, soft), spikes
            )
            return spikes

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            potential, threshold = ctx.saved_tensors
            grad = torch.empty_like(potential).copy_(grad)
            dx, dv = cupy_backend.lif_backward(
                grad, potential, threshold, *ctx.settings, None, True
            )
            assert torch.equal(
                cupy_backend.lif_backward(grad, potential, threshold, *ctx.settings, None, False)[
                    0
                ],
                dx,
            )
            return dx, dv, None, None, None

    monkeypatch.setattr(cupy_backend, "launch", launch)
    return Layer.apply


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case['key']}-{case['surrogate']}-{case['gamma']}"
)
def test_cuda_source_gives_the_reference_spikes_and_gradients(
    case: dict[str, Any], on_cpu: Callable[..., Tensor]
) -> None:
    x = torch.tensor(GOLDEN["x"]).unflatten(0, (int(GOLDEN["T"]), -1)).requires_grad_()
    threshold = torch.tensor(case["v_th"], dtype=torch.float32, requires_grad=True)
    spikes = on_cpu(
        x,
        threshold,
        case["leak"],
        bool(case["soft_reset"]),
        Surrogate(case["surrogate"], case["gamma"]),
    )
    spikes.backward(torch.tensor(GOLDEN["cotangent"]).view_as(x))
    assert np.array_equal(spikes.detach().flatten(0, 1).numpy(), GOLDEN[f"{case['key']}_spikes"])
    for found, name in ((x.grad, "dx"), (threshold.grad, "dvth")):
        assert found is not None
        expected = GOLDEN[f"{case['key']}_{name}"]
        # d v_th: the reference's own float32 sum is off by 1.2e-5 in one case, see test_golden
        assert (
            np.abs(found.numpy().reshape(expected.shape) - expected).max()
            <= (1e-5 if name == "dx" else 2e-5) * np.abs(expected).max()
        )


@pytest.mark.parametrize("channels", [None, 6])
def test_cuda_source_agrees_with_the_torch_backend(
    channels: int | None, on_cpu: Callable[..., Tensor]
) -> None:
    generator = torch.Generator().manual_seed(5)
    for case, (name, soft, leak) in enumerate(
        itertools.product(SURROGATE_NAMES, (False, True), (1.0, 0.9, 0.3))
    ):
        x = (
            torch.randn(1 + case % 7, 2 + case % 3, 6, 3 + 2 * (case % 5), 5, generator=generator)
            * (0.1, 1, 30)[case % 3]
            + 0.3
        )
        if case % 2:
            x = x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
        threshold = (
            torch.tensor(0.6)
            if channels is None
            else torch.linspace(0.2, 1.1, channels).view(-1, 1, 1)
        )
        surrogate, cotangent = (
            Surrogate(name, (0.25, 1.0, 4.0)[case % 3]),
            torch.randn(x.shape, generator=generator),
        )
        outcomes = []
        for layer in (
            on_cpu,
            lambda x, th, leak, soft, surrogate: torch_backend.multistep(
                x, th, leak=leak, soft_reset=soft, surrogate=surrogate
            ),
        ):
            a, th = x.clone().requires_grad_(), threshold.clone().requires_grad_()
            spikes = layer(a, th, leak, soft, surrogate)
            spikes.backward(cotangent)
            outcomes.append((spikes.detach(), a.grad, th.grad))
        (spikes, dx, dv), expected = outcomes
        assert torch.equal(spikes, expected[0])
        torch.testing.assert_close(
            dx, expected[1], rtol=2e-5, atol=1e-6 * float(expected[1].abs().max())
        )
        torch.testing.assert_close(
            dv, expected[2], rtol=1e-4, atol=1e-5 * float(expected[1].abs().sum())
        )


@pytest.mark.parametrize("channels", [None, 6])
def test_cuda_source_has_adaptive_sharpness_as_the_torch_backend_has(
    channels: int | None, on_cpu: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = []
    for op in ("lif_forward", "lif_adapt", "lif_backward"):
        monkeypatch.setattr(fused, op, getattr(cupy_backend, op))
    for backend in ("torch", "cpu"):  # the second with the ops just put in place
        node = ThresholdLIF(0.6, 0.9, channels=channels, backend=backend)
        node.view = AdaptiveSharpness()
        for step in range(3):  # in both layouts: the statistics follow
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(5, 2, 6, 7, 3, generator=generator)
            x = (
                x
                if step != 1
                else x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (5, 2))
            )
            a, node.v_threshold.grad = x.requires_grad_(), None
            spikes = node(a)
            spikes.backward(torch.randn(x.shape, generator=generator))
            outcomes.append((spikes.detach(), a.grad, node.v_threshold.grad))
    for (spikes, dx, dv), (expected, dx_expected, dv_expected) in zip(
        outcomes[3:], outcomes[:3], strict=True
    ):
        assert torch.equal(spikes, expected)
        torch.testing.assert_close(dx, dx_expected, rtol=2e-5, atol=1e-6)
        torch.testing.assert_close(dv, dv_expected, rtol=1e-4, atol=1e-4)


def nvrtc() -> ctypes.CDLL:
    for folder in (Path(torch.__file__).parents[1] / "nvidia", Path("/usr/local/cuda/lib64")):
        for found in sorted(folder.rglob("libnvrtc.so*")):
            return ctypes.CDLL(str(found))
    pytest.skip("no NVRTC library in torch's nvidia packages or in /usr/local/cuda")


@pytest.mark.parametrize("architecture", ["75", "80", "90"])
def test_cuda_source_compiles_to_ptx_without_fused_multiply_add(architecture: str) -> None:
    library, program = nvrtc(), ctypes.c_void_p()
    assert (
        library.nvrtcCreateProgram(
            ctypes.byref(program), cupy_backend.source().encode(), b"lif.cu", 0, None, None
        )
        == 0
    )
    options = [f"--gpu-architecture=compute_{architecture}", *cupy_backend.OPTIONS]
    status = library.nvrtcCompileProgram(
        program, len(options), (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    )
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()
    library.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    library.nvrtcGetPTX(program, ptx)
    text = ptx.value.decode()
    assert set(re.findall(r"\.entry (\w+)", text)) == {
        "lif_forward_kernel",
        "lif_backward_kernel",
        "lif_adapt_kernel",
    }
    assert f".target sm_{architecture}" in text
    forward = text[text.index(".entry lif_forward_kernel") :].split(".entry lif_backward_kernel")[0]
    assert "mul" in forward
    # (the backward kernel's expf has some of its own, which touch no spike)
    assert "fma" not in forward


def test_the_backend_is_offered_only_where_cupy_is_installed() -> None:
    assert ("cupy" in available_backends()) == cupy_backend.installed()
    if not cupy_backend.installed():
        with pytest.raises(SJRobustError, match="unknown neuron backend 'cupy'"):
            ThresholdLIF(backend="cupy")


@pytest.mark.gpu
@pytest.mark.skipif(
    not (torch.cuda.is_available() and cupy_backend.installed()),
    reason="needs a CUDA device and CuPy",
)
@pytest.mark.parametrize("channels", [None, 6])
def test_on_a_gpu_the_kernels_agree_with_the_torch_backend(channels: int | None) -> None:
    x = torch.randn(7, 5, 6, 9, 4, device="cuda")
    outcomes = []
    for backend in ("cupy", "torch"):
        for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                node = ThresholdLIF(
                    0.6, 0.9, surrogate=Surrogate("EXP", 1.0), backend=backend, channels=channels
                ).cuda()
                a = x.clone().requires_grad_()
                spikes = node(a)
                spikes.square().sum().backward()
            stream.synchronize()
            assert node.v_threshold.grad is not None
            outcomes.append((spikes.detach(), a.grad, node.v_threshold.grad))
    for spikes, dx, dv in outcomes[1:]:
        assert torch.equal(spikes, outcomes[0][0])
        torch.testing.assert_close(dx, outcomes[0][1], rtol=2e-5, atol=1e-6)
        torch.testing.assert_close(dv, outcomes[0][2], rtol=1e-4, atol=1e-3)

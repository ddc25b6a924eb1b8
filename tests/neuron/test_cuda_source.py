"""The CUDA source without a GPU: compiled by NVRTC, and run on the CPU through a shim of CUDA's
keywords."""

from __future__ import annotations

import ctypes
import itertools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
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


KERNELS = "forward", "backward", "backward_from_input", "adapt"
# with each surrogate and both resets: (STEPS, WIDTH, KIND, SOFT)
COMPILED = [(1, 1, 0, 1), (4, 4, 1, 0), (8, 4, 2, 1), (16, 4, 3, 0), (32, 2, 4, 1), (0, 4, 5, 0)]


@pytest.mark.parametrize("element", cupy_backend.ELEMENTS.values())
@pytest.mark.parametrize("architecture", ["75", "80", "90"])
def test_cuda_source_compiles_to_ptx_without_fused_multiply_add(
    architecture: str, element: str
) -> None:
    for steps, width, kind, soft in COMPILED:
        constants = dict(ELEMENT=element, STEPS=steps, WIDTH=width, KIND=kind, SOFT=soft)
        text = ptx(architecture, cupy_backend.definitions(constants))
        entries = re.findall(r"\.entry (\w+)", text)
        assert entries == [f"lif_{name}_kernel" for name in KERNELS]
        assert f".target sm_{architecture}" in text
        kernels = dict(zip(entries, text.split(".entry ")[1:], strict=True))
        assert "mul.rn.f32" in kernels["lif_forward_kernel"]
        # without .rn, the driver's compiler may fuse them
        assert not re.search(r"\b(mul|add|sub)\.f32", text)
        for name, kernel in kernels.items():
            # expf has some of its own, which touch no potential
            if not ("backward" in name and SURROGATE_NAMES[kind % 5].startswith("EXP")):
                assert "fma" not in kernel
            if width == 4 and (steps or "from_input" not in name):
                assert ".v4." in kernel
        assert "local_depot" not in text  # all that a thread remembers is in registers


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_compiled_alone_as_cupy_does_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    cupy = SimpleNamespace(RawKernel=lambda code, kernel, options: given.append((code, options)))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    constants = dict(ELEMENT="bf16", STEPS=4, WIDTH=2, KIND=1, SOFT=0)
    cupy_backend._compiled.__wrapped__(f"lif_{name}_kernel", *cupy_backend.definitions(constants))
    ((code, options),) = given
    assert options == cupy_backend.OPTIONS  # others would make CuPy compile an empty file first
    more = ["-ftz=true", "--device-as-default-execution-space"]  # which CuPy adds
    assert code.isascii()
    assert re.findall(r"\.entry (\w+)", ptx("90", more, code)) == [f"lif_{name}_kernel"]


def ptx(architecture: str, constants: list[str], code: str | None = None) -> str:
    library, program, size = nvrtc(), ctypes.c_void_p(), ctypes.c_size_t()
    source = (code or cupy_backend.source()).encode()
    assert not library.nvrtcCreateProgram(ctypes.byref(program), source, b"lif.cu", 0, None, None)
    options = [f"--gpu-architecture=compute_{architecture}", *cupy_backend.OPTIONS, *constants]
    status = library.nvrtcCompileProgram(
        program, len(options), (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    )
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()
    library.nvrtcGetPTXSize(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    library.nvrtcGetPTX(program, text)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return text.value.decode()


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

"""The CUDA kernels with inputs of 16 bits: run on the CPU through a shim, and on a GPU where there
is one."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sj_robust.neuron import (
    SURROGATE_NAMES,
    Surrogate,
    ThresholdLIF,
    cupy_backend,
    fused,
    torch_backend,
)
from sj_robust.neuron.compiler import cpu_library

HALVES = [torch.bfloat16, torch.float16]
TYPES = [torch.float32, *HALVES]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels last": (
        lambda x: x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
    ),
    "one step repeated": lambda x: x[:1].expand_as(x),
    "beside an element": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x),
}


def reference(
    x: Tensor, threshold: Tensor, leak: float, soft: bool, surrogate: Surrogate
) -> Tensor:
    return torch_backend.multistep(x, threshold, leak=leak, soft_reset=soft, surrogate=surrogate)


def run(
    layer: Callable[..., Tensor], x: Tensor, threshold: Tensor, grad: Tensor, *settings: object
) -> tuple[Tensor, Tensor, Tensor]:
    x, threshold = x.detach().requires_grad_(), threshold.detach().requires_grad_()
    spikes = layer(x, threshold, *settings)
    dx, dv = torch.autograd.grad(spikes, (x, threshold), grad.to(spikes.dtype))
    assert spikes.dtype == dx.dtype == x.dtype
    assert dv.dtype == torch.float32
    return spikes.detach(), dx, dv


def tolerance(dtype: torch.dtype) -> float:
    return max(torch.finfo(dtype).eps, 2e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("steps", [1, 4, 8, 40])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_types_of_elements_differ_in_the_rounding_of_what_is_read_and_written_alone(
    dtype: torch.dtype, steps: int, layout: str, on_cpu: Callable[..., Tensor]
) -> None:
    generator = torch.Generator().manual_seed(steps)
    for case, (name, soft, leak) in enumerate(
        itertools.product(SURROGATE_NAMES, (False, True), (1.0, 0.7))
    ):
        # 1, 2 and 4 neurons at a time, of one channel and of several
        size = (steps, 2, 6, *((3, 5), (2, 3), (4, 4))[case % 3])
        x = torch.randn(size, generator=generator).mul_((0.2, 0.5, 1)[case % 3]).add_(0.4).to(dtype)
        grad = torch.randn(size, generator=generator).to(dtype)
        x, grad = LAYOUTS[layout](x), (grad if case % 2 else LAYOUTS["channels last"](grad))
        threshold = torch.linspace(0.2, 1.1, 6).view(-1, 1, 1) if case % 4 else torch.tensor(0.6)
        settings = leak, soft, Surrogate(name, (0.25, 1.0, 4.0)[case % 3])
        spikes, dx, dv = run(on_cpu, x, threshold, grad, *settings)
        wide = run(on_cpu, x.float(), threshold, grad.float(), *settings)
        assert torch.equal(dx, wide[1].to(dtype))
        torch.testing.assert_close(dv, wide[2])  # shares may have been added in another order
        expected = run(reference, x.float(), threshold, grad.float(), *settings)
        assert 0 < expected[0].mean() < 1
        assert torch.equal(spikes.float(), expected[0])
        largest = float(expected[1].abs().max())
        rounded = expected[1].to(dtype)  # to ±inf, too
        torch.testing.assert_close(dx, rounded, rtol=tolerance(dtype), atol=1e-6 * largest)
        total = float(expected[1].abs().sum())
        torch.testing.assert_close(dv, expected[2], rtol=1e-4, atol=1e-5 * total)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_number_is_read_and_every_rounding_is_torchs(
    dtype: torch.dtype, on_cpu: Callable[..., Tensor]
) -> None:
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype).unsqueeze(0)
    one = torch.tensor(1.0)
    spikes, potential = cupy_backend.lif_forward(every, one, 1.0, True, 0, 1.0)
    torch.testing.assert_close(potential, every.float(), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(spikes, (every >= 1).to(dtype))
    # slopes of all exponents, ties between two numbers of the type among them, times 1
    wide = torch.randint(-(1 << 31), 1 << 31, (1, 1 << 20), dtype=torch.int32)
    wide[:, ::2] &= -(1 << 12)
    slope = torch.cat([wide.view(torch.float32), every.float()], 1)
    dx, _ = cupy_backend.lif_backward(
        torch.ones_like(slope, dtype=dtype),
        torch.zeros_like(slope),
        one,
        1.0,
        False,
        0,
        1.0,
        slope,
        False,
    )
    torch.testing.assert_close(dx, slope.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(cpu_library() is None, reason="no CPU kernel to compare with")
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_what_is_no_number_stays_so_in_its_neuron(
    dtype: torch.dtype, on_cpu: Callable[..., Tensor]
) -> None:
    x = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    for i, value in enumerate((float("nan"), float("inf"), -float("inf"))):
        x[2, i, i] = value
    for soft, leak in itertools.product((False, True), (1.0, 0.7)):
        surrogate = Surrogate("PCW")
        spikes, dx, _ = run(on_cpu, x, torch.tensor(0.5), torch.ones_like(x), leak, soft, surrogate)
        node = ThresholdLIF(0.5, leak, "soft" if soft else "hard", surrogate, backend="cpu")
        wide = x.float().clone().requires_grad_()
        expected = node(wide)
        expected.sum().backward()
        assert torch.equal(spikes.float(), expected.detach())
        assert spikes[2, 1, 1] == 1
        assert not spikes[2:, 0, 0].any()
        assert wide.grad is not None
        torch.testing.assert_close(
            dx.float(), wide.grad, rtol=tolerance(dtype), atol=1e-6, equal_nan=True
        )
        broken = dx.isfinite().logical_not().any(0).nonzero()
        assert all(i == j for i, j in broken.tolist())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_adaptive_sharpness_goes_on_in_float32(
    dtype: torch.dtype, on_cpu: Callable[..., Tensor]
) -> None:
    x = torch.randn(5, 2, 6, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    threshold, slope = torch.tensor(0.4), torch.rand(x.shape)
    spikes, potential = cupy_backend.lif_forward(x, threshold, 0.9, False, 0, 1.0)
    assert (spikes.dtype, potential.dtype) == (dtype, torch.float32)
    narrow, wide = (
        cupy_backend.lif_backward(
            torch.ones_like(a), potential, threshold, 0.9, False, 0, 1.0, slope, True
        )
        for a in (x, x.float())
    )
    assert torch.equal(narrow[0], wide[0].to(dtype))
    assert torch.equal(narrow[1], wide[1])


def test_nothing_is_computed_of_nothing() -> None:
    for dtype in TYPES:
        spikes = ThresholdLIF(0.5)(torch.empty(4, 0, 3, dtype=dtype))
        assert (spikes.shape, spikes.dtype) == ((4, 0, 3), dtype)


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> str:
    """A device without memory that is taken for CUDA."""
    monkeypatch.setitem(fused.READS, "meta", fused.READS["cuda"])
    return "meta"


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("steps", [32, 33])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_node_keeps_its_input_or_beyond_32_steps_its_potential(
    dtype: torch.dtype, steps: int, device: str, meta: str
) -> None:
    if device == "cpu" and dtype == torch.float16:
        pytest.skip("widened on the CPU")
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = torch.empty(2, 6, 4, 4, dtype=dtype, device=device, requires_grad=True)
    threshold = torch.ones(6, 1, 1, device=device, requires_grad=True)
    sequence = x.expand(steps, *x.shape)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        spikes = fused.multistep(
            sequence, threshold, leak=0.9, soft_reset=False, surrogate=Surrogate("PCW")
        )
    dx, dv = torch.autograd.grad(spikes, (sequence, threshold), torch.empty_like(spikes))
    assert spikes.dtype == dx.dtype == dtype
    assert spikes.stride() == dx.stride() == (x.numel(), *x.stride())
    assert (dv.dtype, dv.shape) == (torch.float32, threshold.shape)
    assert kept[0].dtype == (dtype if steps == 32 else torch.float32)
    assert kept[0].stride(0) == (0 if steps == 32 else x.numel())


def test_16_bits_are_widened_but_for_kernels_that_read_them(meta: str) -> None:
    half = torch.empty(4, 2, 3, dtype=torch.float16)
    on_cuda, threshold = half.to(meta), torch.ones((), device=meta)
    own = cupy_backend._multistep
    spikes, potential = fused.spikes_and_potential(on_cuda, threshold, 0.9, False, own)
    assert (spikes.dtype, potential.dtype) == (torch.float16, torch.float32)
    assert fused.keeps_float32_state(own, on_cuda)
    assert not fused.keeps_float32_state(torch_backend.multistep, on_cuda)
    for multistep in (fused.multistep, torch_backend.multistep):
        assert not fused.keeps_float32_state(multistep, half)
        assert fused.keeps_float32_state(multistep, half.float())
    assert fused.keeps_float32_state(fused.multistep, half.bfloat16())


@pytest.mark.gpu
@pytest.mark.skipif(not cupy_backend.installed(), reason="needs CuPy")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("steps", [1, 8, 20, 40])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_on_a_gpu_the_node_agrees_with_the_torch_backend(
    dtype: torch.dtype, steps: int, layout: str
) -> None:
    generator = torch.Generator("cuda").manual_seed(steps)
    for case, (view, reset) in enumerate(
        itertools.product((*SURROGATE_NAMES, "ASSG"), ("hard", "soft"))
    ):
        size = (steps, 2, 6, *((3, 5), (2, 3), (4, 4))[case % 3])
        x, grad = (
            torch.randn(size, generator=generator, device="cuda").mul(0.3).add(0.2).to(dtype)
            for _ in range(2)
        )
        x, outcomes = LAYOUTS[layout](x), []
        for backend, wide in (("cupy", dtype), ("torch", torch.float32)):
            node = ThresholdLIF(0.6, 0.9, reset, backend=backend, channels=(None, 6)[case % 2])
            node.cuda().view = view
            a = x.detach().to(wide).requires_grad_()
            spikes = node(a)
            spikes.backward(grad.to(wide))
            assert a.grad is not None
            assert node.v_threshold.grad is not None
            outcomes.append((spikes.detach(), a.grad, node.v_threshold.grad))
        (spikes, dx, dv), expected = outcomes
        assert torch.equal(spikes, expected[0].to(dtype))
        largest, total = float(expected[1].abs().max()), float(expected[1].abs().sum())
        torch.testing.assert_close(
            dx, expected[1].to(dtype), rtol=tolerance(dtype), atol=1e-6 * largest
        )
        torch.testing.assert_close(dv, expected[2], rtol=1e-4, atol=1e-5 * total)

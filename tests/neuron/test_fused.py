"""The fused kernels against the torch backend: the same spikes bit for bit, the same gradients, on
any layout."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sj_robust.neuron import (
    SURROGATE_NAMES,
    Surrogate,
    ThresholdLIF,
    available_backends,
    fused,
    select_backend,
)
from sj_robust.neuron.compiler import cpu_kernel_status, cpu_library

needs_kernel = pytest.mark.skipif(
    cpu_library() is None, reason=f"the CPU kernel is {cpu_kernel_status()}"
)

LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": (
        lambda x: x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
    ),
    "transposed": lambda x: x.transpose(3, 4),
    "sliced": lambda x: torch.cat([x, x], 3)[:, :, :, ::2],
    "one step repeated": lambda x: x[:1].expand_as(x),
    "time last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
}


def run(backend: str, x: Tensor, **settings: object) -> tuple[Tensor, Tensor, Tensor]:
    node = ThresholdLIF(backend=backend, **settings)  # type: ignore[arg-type]
    if node.v_threshold.dim():
        node.v_threshold.data.copy_(torch.linspace(0.2, 1.1, len(node.v_threshold)))
    x = x.detach().requires_grad_()
    spikes = node(x)
    spikes.backward(torch.randn(spikes.shape, generator=torch.Generator().manual_seed(7)))
    assert x.grad is not None
    assert node.v_threshold.grad is not None
    return spikes.detach(), x.grad, node.v_threshold.grad


@needs_kernel
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [None, 6])
def test_cpu_kernel_gives_the_spikes_of_the_torch_backend_bit_for_bit(
    layout: str, channels: int | None
) -> None:
    generator = torch.Generator().manual_seed(3)
    for case, (name, reset, leak) in enumerate(
        itertools.product(SURROGATE_NAMES, ("hard", "soft"), (1.0, 0.9, 0.3))
    ):
        size = (1 + case % 7, 2 + case % 3, 6, 3 + 2 * (case % 11), 5)
        x = LAYOUTS[layout](torch.randn(size, generator=generator) * (0.1, 1, 30)[case % 3] + 0.3)
        settings = dict(
            v_threshold=0.7,
            leak=leak,
            reset=reset,
            surrogate=Surrogate(name, (0.25, 1.0, 4.0)[case % 3]),
            channels=channels,
        )
        (spikes, dx, dv), expected = run("cpu", x, **settings), run("torch", x, **settings)
        assert torch.equal(spikes, expected[0])
        torch.testing.assert_close(
            dx, expected[1], rtol=2e-5, atol=1e-6 * float(expected[1].abs().max())
        )
        torch.testing.assert_close(
            dv, expected[2], rtol=1e-4, atol=1e-5 * float(expected[1].abs().sum())
        )


@needs_kernel
def test_potentials_that_meet_the_threshold_exactly_fire_alike() -> None:
    # sums of tenths: rounding decides
    x = torch.randint(-3, 4, (9, 4, 50), generator=torch.Generator().manual_seed(0)) / 10
    for leak, reset in itertools.product((1.0, 0.7), ("hard", "soft")):
        outcomes = [
            ThresholdLIF(0.3, leak, reset, backend=backend)(x) for backend in ("cpu", "torch")
        ]  # type: ignore[arg-type]
        assert torch.equal(*outcomes)


@needs_kernel
def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    x, before = torch.randn(4, 32, 8, 16, 16), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run("cpu", x, v_threshold=0.6)
        torch.set_num_threads(3)
        together = run("cpu", x, v_threshold=0.6)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@needs_kernel
def test_channels_last_stays_channels_last_in_spikes_and_gradients() -> None:
    x = torch.randn(4 * 3, 8, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
    spikes = ThresholdLIF(0.5, backend="cpu")(x.unflatten(0, (4, 3))).flatten(0, 1)
    assert spikes.is_contiguous(memory_format=torch.channels_last)
    (gradient,) = torch.autograd.grad(spikes.sum(), x)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


@needs_kernel
def test_auto_takes_the_kernel_for_float32_and_torch_for_the_rest() -> None:
    assert select_backend("auto", torch.zeros(1, 1)) is fused.multistep
    assert select_backend("auto", torch.zeros(1, 1, dtype=torch.float64)) is not fused.multistep
    # named, but not its kind
    double = ThresholdLIF(0.5, backend="cpu").double()(torch.ones(2, 3, dtype=torch.float64))
    assert double.dtype == torch.float64
    assert double.all()


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("steps", [7, 40])  # the input kept, and the potential
@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_half_precision_inputs_are_integrated_in_float32(
    dtype: torch.dtype, steps: int, reset: Any
) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.rand(steps, 3, 5, 11, 13, generator=random).to(dtype).div(8 if steps == 7 else 15)
    weights = torch.randn(x.shape, generator=random).to(dtype)
    node = ThresholdLIF(0.4, backend="cpu", reset=reset, leak=0.9)
    expected = node(x.float())
    assert 0 < expected.mean() < 1
    wide, narrow = x.float().requires_grad_(), x.clone().requires_grad_()
    found = []
    for inputs in (wide, narrow):
        spikes = node(inputs)
        assert spikes.dtype == inputs.dtype
        assert torch.equal(spikes.float(), expected)
        found.append(
            torch.autograd.grad(
                spikes, (inputs, node.v_threshold), weights.to(inputs.dtype), retain_graph=True
            )
        )
    assert torch.equal(found[1][0], found[0][0].to(dtype))  # rounded once, at the end
    assert torch.equal(found[1][1], found[0][1])


@needs_kernel
def test_what_is_not_finite_stays_so_in_bf16() -> None:
    x = torch.tensor([[float("nan")], [float("inf")], [3.3e38]], dtype=torch.bfloat16)
    odd = x.expand(3, 3, 1).contiguous()  # [T, N, 1]
    inputs = odd.clone().requires_grad_()
    node = ThresholdLIF(1.0, backend="cpu", surrogate=Surrogate("STE"))
    spikes = node(inputs)
    assert spikes.isfinite().all()
    (gradient,) = torch.autograd.grad(spikes, inputs, odd)
    wide = odd.float().requires_grad_()
    (expected,) = torch.autograd.grad(node(wide), wide, odd.float())
    torch.testing.assert_close(gradient, expected.bfloat16(), rtol=0, atol=0, equal_nan=True)


@needs_kernel
def test_pytorch_finds_nothing_wrong_with_the_custom_ops() -> None:
    x, threshold = (
        torch.randn(3, 2, 4, 5, 5, requires_grad=True),
        torch.full((4, 1, 1), 0.5, requires_grad=True),
    )
    torch.library.opcheck(fused.lif_forward, (x, threshold, 0.9, False, 0, 1.0))
    torch.library.opcheck(fused.lif_spikes, (x.detach(), threshold.detach(), 0.9, True))
    torch.library.opcheck(fused.lif_spikes, (x, threshold, 0.9, True, 1, 2.0))
    repeated = x[:1].detach().expand(3, -1, -1, -1, -1)
    torch.library.opcheck(fused.lif_spikes, (repeated, threshold, 0.9, True, 1, 2.0))
    torch.library.opcheck(
        fused.lif_backward_from_input,
        (x.detach(), repeated, threshold.detach(), 0.9, False, 1, 2.0, True),
    )
    potential = torch.randn(3, 2, 4, 5, 5)
    for slope in (None, torch.rand(3, 2, 4, 5, 5)):
        torch.library.opcheck(
            fused.lif_backward,
            (x.detach(), potential, threshold.detach(), 0.9, False, 1, 2.0, slope, True),
        )
    moments = torch.rand(3, 2, 4, 5, 5), torch.rand(3, 2, 4, 5, 5)
    torch.library.opcheck(fused.lif_adapt, (potential, threshold.detach(), *moments, 2.5, 0.1, 1.5))


@needs_kernel
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_the_same_from_the_input_and_from_the_potential(layout: str) -> None:
    x = LAYOUTS[layout](torch.randn(4, 3, 6, 5, 4, generator=torch.Generator().manual_seed(2)))
    compiled = torch.compile(fused.lif_spikes, backend="aot_eager", fullgraph=True)
    outcomes = []
    for forward in (fused.lif_forward, fused.lif_spikes, compiled):
        a = fused.dense(x).detach().requires_grad_()
        threshold = torch.linspace(0.2, 1.1, 6).view(-1, 1, 1).requires_grad_()
        out = forward(a, threshold, 0.9, True, 1, 2.0)
        spikes = out[0] if isinstance(out, tuple) else out
        outcomes.append((spikes, *torch.autograd.grad(spikes.square().sum(), (a, threshold))))
    for outcome in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcome, outcomes[0], strict=True))


@needs_kernel
@pytest.mark.parametrize("backend", [name for name in available_backends() if name != "cupy"])
def test_torch_compile_keeps_the_node_in_one_graph(backend: str) -> None:
    net = nn.Sequential(nn.Linear(5, 7), ThresholdLIF(0.2, backend=backend), nn.Linear(7, 2))
    compiled = torch.compile(net, backend="aot_eager", fullgraph=backend != "torch")
    gradients = []
    for model in (net, compiled):
        x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
        model(x).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_second_derivative_is_an_error_and_not_a_wrong_number() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(ThresholdLIF(0.5)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()


PROGRAM = """
import torch
from sj_robust.neuron import ThresholdLIF
for _ in range(2):
    print(ThresholdLIF(0.5)(torch.full((2, 3), 0.3)).tolist())
"""


def python(tmp_path: Path, umask: int = -1, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        umask=umask,
        env={**os.environ, "SJ_ROBUST_CACHE": str(tmp_path / "cache"), **environment},
    )


def flipped(library: Path) -> None:
    content = bytearray(library.read_bytes())
    content[len(content) // 3] ^= 0x10
    library.write_bytes(content)


def behind_a_link(path: Path) -> None:
    path.symlink_to(path.rename(path.with_name("elsewhere")))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "garbage": lambda library: library.write_bytes(b"not a library"),
    "empty": lambda library: library.write_bytes(b""),
    "cut off": lambda library: os.truncate(library, library.stat().st_size // 2),
    "a byte flipped": flipped,
    "a byte appended": lambda library: library.write_bytes(library.read_bytes() + b"\0"),
    "open to the group": lambda library: library.chmod(0o660),
    "open to all": lambda library: library.chmod(0o606),
    "a link": behind_a_link,
}


EXPECTED = "[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]\n" * 2


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [("no-such-compiler", "no C compiler found"), ("false", "false failed"), ("true", "lif_cpu")],
)
def test_without_a_working_compiler_the_torch_backend_takes_over_and_says_so_once(
    tmp_path: Path, compiler: str, reason: str
) -> None:
    done = python(tmp_path, CC=compiler)
    assert done.stdout == EXPECTED
    assert done.stderr.count("no fused CPU kernel") == 1
    assert reason in done.stderr
    assert not list(tmp_path.rglob("*.so*"))


def test_kernels_can_be_switched_off(tmp_path: Path) -> None:
    done = python(tmp_path, SJ_ROBUST_KERNELS="0")
    assert (done.stdout, done.stderr) == (EXPECTED, "")


STARTS = """
import os, sys
from sj_robust.neuron.compiler import cpu_library
for line in sys.stdin:
    if os.fork():
        os.wait()
        print("end", flush=True)
    else:
        print("fused" if cpu_library() else "torch", flush=True)
        os._exit(0)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], list[str]]]:
    """Starts a process that looks for the kernel, and gives the lines it prints; torch is imported
    once for all of them."""
    log, wrapper = tmp_path / "log", tmp_path / "cc"
    wrapper.write_text(
        f'#!/bin/sh\ncase "$*" in *" -c "*) echo compiled >> {log};; esac\nexec'
        f' {os.environ.get("CC") or "cc"} "$@"\n'
    )
    wrapper.chmod(0o755)
    with subprocess.Popen(
        [sys.executable, "-c", STARTS],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "SJ_ROBUST_CACHE": str(tmp_path / "cache"), "CC": str(wrapper)},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        to, replies = process.stdin, process.stdout

        def one() -> list[str]:
            print(file=to, flush=True)
            return list(iter(replies.readline, "end\n"))

        yield one
        to.close()


@needs_kernel
def test_the_kernel_is_compiled_once_and_again_where_its_file_is_damaged(
    tmp_path: Path, start: Callable[[], list[str]]
) -> None:
    for _ in range(2):
        assert start() == ["fused\n"]
    for compiled, damage in enumerate(DAMAGES.values(), 2):
        (library,) = tmp_path.rglob("*.so")
        damage(library)
        warning, status = start()
        assert ("compiled again" in warning, status) == (True, "fused\n")
        assert (tmp_path / "log").read_text().count("compiled") == compiled
    assert start() == ["fused\n"]


@needs_kernel
def test_nothing_is_run_from_a_cache_that_others_may_write(
    tmp_path: Path, start: Callable[[], list[str]]
) -> None:
    start()
    cache, kernels = tmp_path / "cache", tmp_path / "cache" / "kernels"
    for folder in (cache, kernels):
        for mode in (0o770, 0o702, 0o777):
            folder.chmod(mode)
            warning, status = start()
            assert ("SJ_ROBUST_CACHE" in warning, "no fused CPU kernel" in warning, status) == (
                True,
                True,
                "torch\n",
            )
            folder.chmod(0o700)
    cache.chmod(0o1777)  # as /tmp: nobody can put another folder in the place of ours
    assert start() == ["fused\n"]
    cache.chmod(0o700)
    for folder in (kernels, cache):
        behind_a_link(folder)
        warning, status = start()
        assert ("is a link" in warning, status) == (True, "torch\n")


@needs_kernel
def test_nobody_else_may_write_what_was_compiled(tmp_path: Path) -> None:
    python(tmp_path, umask=0)
    (library,) = tmp_path.rglob("*.so")
    assert {
        path.stat().st_mode & 0o077 for path in (library, library.parent, library.parent.parent)
    } == {0}


@needs_kernel
def test_processes_that_compile_at_once_leave_one_whole_library(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from sj_robust.neuron.compiler import cpu_kernel_status; print(cpu_kernel_status())",
    ]
    environment = {**os.environ, "SJ_ROBUST_CACHE": str(tmp_path / "cache")}
    running = [
        subprocess.Popen(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for _ in range(3)
    ]
    assert [process.communicate()[0] for process in running] == ["fused\n"] * 3
    assert [path.suffix for path in (tmp_path / "cache" / "kernels").iterdir()] == [".so"]


@needs_kernel
def test_a_cache_that_cannot_be_written_costs_only_the_compilation(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    done = python(tmp_path)
    assert (done.stdout, done.stderr) == (EXPECTED, "")

"""Whether a GPU gives what the CPU gives: each task a process of its own, as an error of CUDA ends
all that its process could still do."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tally import Tally, main
from torch import Tensor

from sj_robust import evaluate, list_models, load, load_dataset
from sj_robust.neuron import Surrogate, ThresholdLIF, select_backend
from sj_robust.neuron.surrogate import SURROGATE_NAMES
from sj_robust.neuron.views import AdaptiveSharpness

# of a gradient against the largest of its tensor: of 16 bits, the last
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def fused(device: str) -> str:
    return "cupy" if device == "cuda" else "cpu"


def outcome(
    backend: str, x: Tensor, threshold: Tensor, cotangent: Tensor, **settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes and both gradients, on the CPU in float32."""
    a, v = x.detach().clone().requires_grad_(), threshold.detach().clone().requires_grad_()
    # what 16 bits mean: the state is float32
    spikes = select_backend(backend, a)(a.float() if backend == "torch" else a, v, **settings)
    spikes.backward(cotangent.to(spikes.dtype))
    assert a.grad is not None and v.grad is not None
    return spikes.detach().float().cpu(), a.grad.float().cpu(), v.grad.float().cpu()


def compare(
    tally: Tally, what: str, found: Any, expected: Any, tolerance: float, sums: float = 1e-5
) -> None:
    (spikes, dx, dv), (spikes0, dx0, dv0) = found, expected
    wrong = int((spikes != spikes0).sum())
    tally.check(wrong == 0, f"{what}: {wrong} of {spikes.numel()} spikes differ")
    gap = (dx - dx0).masked_fill(dx == dx0, 0)  # of ±inf, where fp16 ends
    size = dx0.nan_to_num(posinf=0, neginf=0).abs()
    far = float(gap.abs().max() / size.max().clamp_min(1e-30))
    tally.check(far <= tolerance, f"{what}: the input's gradient is off by {far:.1e}")
    # the threshold's is a sum of terms of both signs
    far = float((dv - dv0).abs().max() / size.sum().clamp_min(1e-30))
    tally.check(far <= max(sums, tolerance), f"{what}: the threshold's gradient, by {far:.1e}")


def kernels(tally: Tally, arguments: argparse.Namespace) -> None:
    """The fused backend against the golden vectors, and against the torch backend on the CPU and on
    the device."""
    device = arguments.device
    vectors(tally, device, 7 if arguments.quick else 1)
    sharpness(tally, device)
    cases = [
        (name, gamma, soft, leak, dtype, last, channels)
        for (name, gamma), soft, leak, dtype, last, channels in itertools.product(
            zip(SURROGATE_NAMES, itertools.cycle((0.25, 1.0, 4.0))),
            (False, True),
            (1.0, 0.9, 0.3),
            (torch.float32, torch.bfloat16, torch.float16),
            (False, True),
            (None, 6),
        )
    ]
    for number, (name, gamma, soft, leak, dtype, last, channels) in enumerate(cases):
        if arguments.quick and number % 13:
            continue
        generator = torch.Generator().manual_seed(number)
        steps, batch, side = 1 + number % 8, 2 + number % 3, 3 + 2 * (number % 5)
        x = torch.randn(steps, batch, 6, side, 5, generator=generator)
        x = (x * (0.1, 1, 30 if dtype == torch.float32 else 3)[number % 3] + 0.3).to(dtype)
        if last:
            x = x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
        threshold = torch.linspace(0.2, 1.1, 6).view(-1, 1, 1) if channels else torch.tensor(0.6)
        cotangent = torch.randn(x.shape, generator=generator).to(dtype)
        settings = dict(leak=leak, soft_reset=soft, surrogate=Surrogate(name, gamma))
        expected = outcome("torch", x, threshold, cotangent, **settings)
        there = [tensor.to(device) for tensor in (x, threshold, cotangent)]
        what = (
            f"{name} {gamma} {'soft' if soft else 'hard'} leak {leak} {dtype} {last=} {channels=}"
        )
        for backend in (fused(device), "torch"):
            found = outcome(backend, *there, **settings)
            compare(tally, f"{backend} {what}", found, expected, TOLERANCE[dtype])
        with torch.no_grad():
            spikes = select_backend(fused(device), there[0])(*there[:2], **settings)
        same = torch.equal(spikes.float().cpu(), expected[0])
        tally.check(same, f"without gradients {what}: spikes differ")
        tally.keep()


def vectors(tally: Tally, device: str, every: int) -> None:
    """The golden vectors, or one of `every` so many."""
    golden = np.load("tests/golden/lif.npz")
    x = torch.tensor(golden["x"]).unflatten(0, (int(golden["T"]), -1))
    known = [case for case in json.loads(str(golden["meta"])) if case["surrogate"] != "BPTR"]
    for case in known[::every]:
        found = outcome(
            fused(device),
            x.to(device),
            torch.tensor(case["v_th"], dtype=torch.float32, device=device),
            torch.tensor(golden["cotangent"]).view_as(x).to(device),
            leak=case["leak"],
            soft_reset=bool(case["soft_reset"]),
            surrogate=Surrogate(case["surrogate"], case["gamma"]),
        )
        expected = [torch.tensor(golden[f"{case['key']}_{n}"]) for n in ("spikes", "dx", "dvth")]
        expected = [a.reshape(b.shape).float() for a, b in zip(expected, found, strict=True)]
        compare(tally, f"golden {case['key']}", found, expected, 1e-5)
    tally.keep()


def sharpness(tally: Tally, device: str) -> None:
    """Adaptive sharpness, whose statistics go from step to step, through both layouts."""
    for channels in (None, 6):
        found = []
        for backend, where in (("torch", "cpu"), (fused(device), device)):
            node = ThresholdLIF(0.6, 0.9, channels=channels, backend=backend).to(where)
            node.view = AdaptiveSharpness()
            for step in range(3):
                generator = torch.Generator().manual_seed(step)
                x, cotangent = (torch.randn(5, 2, 6, 7, 3, generator=generator) for _ in range(2))
                if step == 1:
                    x = x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (5, 2))
                node.zero_grad()
                a = x.to(where).requires_grad_()
                spikes = node(a)
                spikes.backward(cotangent.to(where))
                grads = (a.grad, node.v_threshold.grad)
                found.append([t.detach().cpu() for t in (spikes, *grads) if t is not None])
        for step, (one, other) in enumerate(zip(found[3:], found[:3], strict=True)):
            compare(tally, f"ASSG {channels=} step {step}", one, other, 2e-5, sums=1e-4)
    tally.keep()


def zoo(tally: Tally, arguments: argparse.Namespace) -> None:
    """Logits of every network of the zoo, with TF32 as torch has it and without."""
    data = load_dataset("sample", "test").first(8 if arguments.quick else 256)
    for entry in list_models()[:: 3 if arguments.quick else 1]:
        if entry.checkpoint is None:
            continue
        model = load(entry.name).eval()
        x = data.floats()
        with torch.no_grad():
            here = model(x)
            for tf32 in (True, False):
                torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
                there = model.to(arguments.device)(x.to(arguments.device)).cpu()
                far = (here - there).abs()
                other = int((here.argmax(1) != there.argmax(1)).sum())
                line = (
                    f"{entry.name}: {other} of {len(x)} classes and"
                    f" {int((far > 1e-4).sum())} of {far.numel()} logits differ, by {far.max():.1e}"
                )
                tally.facts[f"{entry.name} {'TF32' if tf32 else 'float32'}"] = line
                # a spike at the threshold may fall either way, and TF32 has ten bits
                tally.check(tf32 or other <= len(x) // 100, line)
        tally.keep()


def evaluation(tally: Tally, arguments: argparse.Namespace) -> None:
    """A protocol, image by image; the GPU without TF32."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    data, name = load_dataset("sample", "test"), "resnet20-snn-t4.cifar10_linf_pgd"
    reports = [
        evaluate(
            load(name),
            data,
            eps=8 / 255,
            max_images=8 if arguments.quick else 64,
            check_images=0,
            device=device,
            **(
                dict(attacks=("fgsm",), views=("PCW:1",))
                if arguments.quick
                else dict(protocol="quick")
            ),
        ).per_image
        for device in ("cpu", arguments.device)
    ]
    here, there = (list(zip(r.predicted, r.broken_by[0], strict=True)) for r in reports)
    for number, (one, other) in enumerate(zip(here, there, strict=True)):
        tally.check(
            one == other, f"image {number}: {one} on the CPU, {other} on {arguments.device}"
        )
    standing = [sum(report.standing(0)) for report in reports]
    tally.keep(robust_on_the_cpu=standing[0], robust_on_the_device=standing[1])


def odd(tally: Tally, arguments: argparse.Namespace) -> None:
    """Inputs with NaN, empty, strided, repeated, and more than 32 bits count."""
    device, base = (
        arguments.device,
        torch.randn(4, 6, 8, 10, generator=torch.Generator().manual_seed(0)),
    )
    broken = base.clone()
    broken[1, 2, 3, ::2] = float("nan")
    makes: dict[str, Callable[[Tensor], Tensor]] = {
        "NaN": lambda x: x,
        "no images": lambda x: x[:, :0],
        "no steps": lambda x: x[:0],
        "every other": lambda x: x[:, ::2, :, 1::3],
        "transposed": lambda x: x.transpose(1, 3),
        "all reversed": lambda x: x.permute(3, 2, 1, 0),
        "repeated step": lambda x: x[:1].expand(5, 6, 8, 10),
        "repeated image": lambda x: x[:, :1].expand(4, 6, 8, 10),
        "[T, N]": lambda x: x[:, :, 0, 0],
        "one value": lambda x: x[:1, :1, :1, :1],
    }
    for name, make in makes.items():
        leaf = broken if name == "NaN" else base
        here = attempt("torch", leaf, make)
        there = attempt(fused(device), leaf.to(device), make)
        tally.check(same(here, there), f"{name}: {said(here)} on the CPU, {said(there)} there")
    if device == "cuda" and not arguments.quick:
        x = torch.full((2, 2**30 + 300), 0.7, device=device)
        x[1, -1] = -5
        node = ThresholdLIF(1.0, backend="cupy").to(device)
        with torch.no_grad():
            spikes = node(x)
        fired = [int(step.count_nonzero()) for step in spikes]
        tally.check(fired == [0, 2**30 + 299] and not spikes[1, -1], f"2^31 neurons: {fired} fired")


def attempt(backend: str, leaf: Tensor, make: Callable[[Tensor], Tensor]) -> Any:
    """Spikes, and the gradient of `leaf`; or the error."""
    leaf = leaf.detach().clone().requires_grad_()
    try:
        node = ThresholdLIF(0.6, 0.9, backend=backend).to(leaf.device)
        spikes = node(make(leaf))
        spikes.sum().backward()
        return [spikes.detach().cpu(), leaf.grad.cpu() if leaf.grad is not None else None]
    except Exception as error:
        return error


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Exception) or isinstance(other, Exception):
        return type(one) is type(other)
    return torch.equal(one[0], other[0]) and torch.allclose(
        one[1], other[1], rtol=1e-5, atol=1e-6, equal_nan=True
    )


def said(result: Any) -> str:
    if isinstance(result, Exception):
        return f"{type(result).__name__} ({str(result).splitlines()[0][:80]})"
    return (
        f"{int(result[0].nan_to_num().sum())} spikes, gradients {result[1].nan_to_num().sum():.4f}"
    )


def nccl(tally: Tally, arguments: argparse.Namespace) -> None:
    """The exchanges of a training on several processes over NCCL, by the one process that a single
    GPU allows: each sum has one term."""
    import torch.distributed as dist

    from sj_robust.distributed import Team

    cuda = arguments.device == "cuda"
    path = arguments.result.with_suffix(".store")
    path.unlink(missing_ok=True)  # of a run that was stopped
    store = dist.FileStore(str(path), 1)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", store=store, rank=0, world_size=1
    )
    team = Team(0, 2)  # as if there were another, or nothing would be sent
    x = torch.arange(1000.0, device=arguments.device)
    tally.check(torch.equal(team.total(x.clone()), x), "a sum on the device")
    tally.check(team.totals(1, 2.5) == [1, 2.5], "a sum of numbers")
    tally.check(team.from_first({"x": x.cpu()})["x"].equal(x.cpu()), "what the first one says")
    halved = [x.clone(), x[:10].clone()]
    team.average(halved)
    tally.check(torch.equal(halved[0] * 2, x), "a mean")
    dist.destroy_process_group()


STEP = """
import torch
from sj_robust.neuron import ThresholdLIF
for channels in (None, 6):
    for reset in ("hard", "soft"):
        node = ThresholdLIF(0.6, 0.9, reset=reset, channels=channels, backend="BACKEND")
        node.to("DEVICE")
        for shape in ((3, 2, 6, 5, 7), (1, 1, 6, 1, 1), (8, 4, 6, 32, 32), (40, 2, 6, 3, 5)):
            for dtype in (torch.float32, torch.bfloat16):
                x = torch.randn(shape, device="DEVICE", dtype=dtype, requires_grad=True)
                for view in ("PCW:1", "ASSG"):
                    node.view = view
                    node(x).sum().backward()
                with torch.no_grad(): node(x)
print("DONE")
"""


def sanitizer(tally: Tally, arguments: argparse.Namespace) -> None:
    """compute-sanitizer's memcheck on a few steps of the node, where the tool is there."""
    name = "compute-sanitizer"
    tool = shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
    # calls that fail are no errors here: torch tries what a driver may lack
    words = "--tool memcheck --report-api-errors no --error-exitcode 99"
    wrapped = [tool, *words.split()] if tool else []
    tally.keep(tool=tool or "compute-sanitizer is not there: the step runs without it")
    step = STEP.replace("DEVICE", arguments.device).replace("BACKEND", fused(arguments.device))
    done = subprocess.run(
        [*wrapped, sys.executable, "-c", step],
        # else tensors lie in large blocks, and what is read beside one is still in its block
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout[-4000:], done.stderr[-4000:])
    lines = [
        line for line in done.stdout.splitlines() if "ERROR SUMMARY" in line or "Error" in line
    ]
    tally.check(done.returncode == 0 and "DONE" in done.stdout, f"rc {done.returncode} {lines[:2]}")
    tally.keep(summary=lines[-1:])


if __name__ == "__main__":
    main(
        {task.__name__: task for task in (kernels, zoo, evaluation, odd, nccl, sanitizer)}, __doc__
    )

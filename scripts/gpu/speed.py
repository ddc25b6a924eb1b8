"""What the node alone costs: its share of the bandwidth that a copy of as many bytes reaches, and
the time of a call on a layer too small to count."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from tally import Tally, main

from sj_robust.neuron import Surrogate, available_backends, select_backend

SETTINGS = dict(leak=1.0, soft_reset=False, surrogate=Surrogate("PCW", 1.0))


def seconds(job: Callable[[], object], device: str, repeats: int = 20) -> float:
    """Median by CUDA's events, after two calls that warm up."""
    found = []
    for _ in range(repeats + 2):
        if device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            job()
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end) / 1000)
        else:
            began = time.perf_counter()
            job()
            found.append(time.perf_counter() - began)
    return median(found[2:])


def node(tally: Tally, arguments: argparse.Namespace) -> None:
    device, backends = arguments.device, [b for b in available_backends() if b != "torch"]
    backend = "cupy" if device == "cuda" else backends[0] if backends else "torch"
    sizes = [
        (8, 256, 64, 32, 32),
        (8, 512, 64, 32, 32),
        (4, 128, 256, 28, 28),
        (2, 2048, 128, 32, 32),
    ]
    for shape in [(2, 2, 4, 8, 8)] if arguments.quick else sizes:
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(shape, device=device, dtype=dtype)
            threshold = torch.tensor(1.0, device=device, requires_grad=True)
            y = torch.empty_like(x)
            copy = seconds(lambda x=x, y=y: y.copy_(x), device) / 2  # of each byte
            multistep, gradient = select_backend(backend, x), torch.randn_like(x)
            leaf = x.clone().requires_grad_()

            def judged(x: torch.Tensor = x, v: torch.Tensor = threshold) -> None:
                with torch.no_grad():
                    multistep(x, v, **SETTINGS)  # noqa: B023

            spikes = multistep(leaf, threshold, **SETTINGS)

            def back(s=spikes, a=leaf, v=threshold, g=gradient) -> None:  # type: ignore[no-untyped-def]
                torch.autograd.grad(s, (a, v), g, retain_graph=True)

            # in units of x: of so few steps the input itself is kept, and read again
            jobs = {
                "judging": (judged, 2),
                "forward": (lambda a=leaf, v=threshold: multistep(a, v, **SETTINGS), 2),  # noqa: B023
                "backward": (back, 3),
            }
            found = {"copy, GB/s": x.numel() * x.element_size() / copy / 1e9}
            for name, (job, units) in jobs.items():
                found[f"{name}, share of the copy's bandwidth"] = (
                    units * copy / seconds(job, device)
                )
            tally.keep(**{f"{list(shape)} {dtype}": {k: round(v, 3) for k, v in found.items()}})
    x = torch.randn(4, 8, 16, 8, 8, device=device, requires_grad=True)
    threshold, grads = torch.tensor(1.0, device=device), torch.ones_like(x)
    for name in {backend, "torch"}:
        step, count = select_backend(name, x), 5 if arguments.quick else 200
        began = time.perf_counter()
        for _ in range(count):
            step(x, threshold, **SETTINGS).backward(grads)
        if device == "cuda":
            torch.cuda.synchronize()
        spent = (time.perf_counter() - began) / count * 1e6
        tally.keep(**{f"a small layer, forward and backward, {name}": f"{spent:.0f} µs a call"})


if __name__ == "__main__":
    main({"node": node}, __doc__)

"""How the CPU kernel was chosen: the same node written for a C compiler, numba, torch.compile, and
plain torch, timed in turn.

    OMP_NUM_THREADS=1 python scripts/kernel_candidates.py    # numba where installed

Forward and backward of one layer [T,N,C,H,W] in channels_last, hard reset, PCW surrogate, one
threshold. Prints a table of medians.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from sj_robust.benchmark.sides import LoopNode
from sj_robust.neuron import Surrogate, select_backend

Layer = Callable[[Tensor, Tensor], Tensor]


def backend(name: str) -> Layer:
    run = select_backend(name, torch.zeros(1, 1))
    return lambda x, threshold: run(
        x, threshold, leak=1.0, soft_reset=False, surrogate=Surrogate("PCW", 1.0)
    )


def loop(x: Tensor, threshold: Tensor) -> Tensor:
    node = LoopNode(1.0)
    del node.v_threshold
    node.v_threshold = threshold
    return node(x)


def numba_layer() -> Layer:
    import numba
    import numpy as np

    block = 2048

    @numba.njit(parallel=True, fastmath=False)
    def forward(x: Any, threshold: float, spikes: Any, potential: Any) -> None:
        steps, size = x.shape
        for b in numba.prange((size + block - 1) // block):
            start, stop = b * block, min(size, (b + 1) * block)
            v = np.zeros(stop - start, np.float32)
            for t in range(steps):
                for i in range(stop - start):
                    h = v[i] + x[t, start + i]
                    potential[t, start + i] = h
                    fired = h >= threshold
                    spikes[t, start + i] = np.float32(1) if fired else np.float32(0)
                    v[i] = np.float32(0) if fired else h

    @numba.njit(parallel=True, fastmath=False)
    def backward(grad: Any, potential: Any, threshold: float, dx: Any, shares: Any) -> None:
        steps, size = grad.shape
        for b in numba.prange((size + block - 1) // block):
            start, stop = b * block, min(size, (b + 1) * block)
            carry = np.zeros(stop - start, np.float32)
            total = np.zeros(stop - start, np.float32)
            for t in range(steps - 1, -1, -1):
                for i in range(stop - start):
                    h = potential[t, start + i]
                    u = h - threshold
                    sigma = max(np.float32(1) - abs(u), np.float32(0))
                    direct = sigma * (grad[t, start + i] - carry[i] * h)
                    total[i] += direct
                    carry[i] = direct + (carry[i] if u < 0 else np.float32(0))
                    dx[t, start + i] = carry[i]
            shares[b] = -total.sum()

    def flat(x: Tensor) -> Any:
        return x.detach().permute(0, 1, 3, 4, 2).reshape(x.shape[0], -1).numpy()

    class Node(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, threshold: Tensor) -> Tensor:
            spikes, potential = torch.empty_like(x), torch.empty_like(x)
            forward(flat(x), np.float32(threshold.item()), flat(spikes), flat(potential))
            ctx.save_for_backward(potential, threshold)
            return spikes

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            potential, threshold = ctx.saved_tensors
            dx, shares = torch.empty_like(potential), np.zeros(-(-potential[0].numel() // block))
            backward(flat(grad), flat(potential), np.float32(threshold.item()), flat(dx), shares)
            return dx, torch.tensor(shares.sum(), dtype=torch.float32)

    return Node.apply


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape", type=int, nargs=5, default=[8, 64, 32, 32, 32], metavar=("T", "N", "C", "H", "W")
    )
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    layers: dict[str, Layer] = {
        "plain loop": loop,
        "torch": backend("torch"),
        "torch.compile": torch.compile(loop),
        "C": backend("cpu"),
    }
    if importlib.util.find_spec("numba"):
        layers["numba"] = numba_layer()
    steps, batch, *rest = options.shape
    generator = torch.Generator().manual_seed(0)

    def values() -> Tensor:
        return (
            torch.randn(steps * batch, *rest, generator=generator)
            .to(memory_format=torch.channels_last)
            .unflatten(0, (steps, batch))
        )

    x, grad, times, outcomes = values(), values(), {name: [] for name in layers}, {}
    for turn in range(options.repeats + 1):
        for name, layer in layers.items():
            a, threshold = x.clone().requires_grad_(), torch.tensor(0.7, requires_grad=True)
            start = time.perf_counter()
            spikes = layer(a, threshold)
            middle = time.perf_counter()
            spikes.backward(grad)
            end = time.perf_counter()
            if turn:  # the first compiles
                times[name].append((middle - start, end - middle))
            outcomes[name] = spikes.detach(), a.grad
    print("| node | forward | backward | spikes that differ |\n|---|---|---|---|")
    for name, found in times.items():
        forward, backward = (median(part) * 1e3 for part in zip(*found, strict=True))
        differ = int((outcomes[name][0] != outcomes["torch"][0]).sum())
        torch.testing.assert_close(outcomes[name][1], outcomes["torch"][1], rtol=1e-3, atol=1e-3)
        print(f"| {name} | {forward:.0f} ms | {backward:.0f} ms | {differ} |")


if __name__ == "__main__":
    main()

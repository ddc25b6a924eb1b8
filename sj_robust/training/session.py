"""What surrounds the loop: its clocks and random state."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Wall-clock seconds since it was made or restarted, on top of `before`."""

    def __init__(self, before: float = 0.0) -> None:
        self._start = time.perf_counter() - before

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def restart(self) -> None:
        self._start = time.perf_counter()


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Global random state restored afterwards; meanwhile cuDNN kernels that give the same bits each
    time."""
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.backends.cudnn.flags(enabled=True, deterministic=True),
    ):
        yield

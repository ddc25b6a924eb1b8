"""What surrounds the loop: its clocks, random state, and Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
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
    """Global random state restored afterwards; meanwhile cuDNN kernels that give the same bits each time."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.backends.cudnn.flags(enabled=True, deterministic=True):
        yield


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C only asks; the loop looks between two steps, where the state is whole. A second Ctrl-C interrupts at once."""
    asked = False

    def handler(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():  # only the main thread gets Ctrl-C, and may set handlers
        yield lambda: False
        return
    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, previous)

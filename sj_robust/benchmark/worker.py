"""One side in a process of its own, so that its allocator and its peak memory are its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from sj_robust.allocator import keep_large_blocks
from sj_robust.benchmark.report import BenchSettings
from sj_robust.benchmark.sides import UNIT, make
from sj_robust.benchmark.tasks import TASKS, TRAINING, Work
from sj_robust.data import load_dataset
from sj_robust.errors import SJRobustError
from sj_robust.training.config import TrainConfig
from sj_robust.training.precision import autocast


def serve(pipe: Connection, side: str, settings: BenchSettings) -> None:
    """Make the side's network, then run each task whose name comes through the pipe; answers are
    (value, error text)."""
    try:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        work = _work(side, settings)
        base = _resident()
        pipe.send((torch.get_num_threads(), None))
        while task := pipe.recv():
            # as the package itself does: loops keep their blocks, a conversion needs its memory
            with nullcontext() if task == "balance" else keep_large_blocks():
                job = partial(_in_precision, settings, task, work)
                pipe.send((_timed(job, base, torch.device(settings.device)), None))
    except (EOFError, BrokenPipeError):  # whoever asked has ended
        pass
    except Exception as error:
        with suppress(BrokenPipeError):
            pipe.send(
                (
                    None,
                    (
                        str(error)
                        if isinstance(error, SJRobustError)
                        else f"{type(error).__name__}: {error}"
                    ),
                )
            )


def _in_precision(settings: BenchSettings, task: str, work: Work) -> Any:
    """The task as it would run in a training of that precision: attacks that measure, and
    balancing, are in float32 there."""
    precision = settings.precision if task in TRAINING else "float32"
    with autocast(work.model, TrainConfig(precision=precision), torch.device(settings.device)):
        return TASKS[task](work)


def _work(side: str, settings: BenchSettings) -> Work:
    data = load_dataset("sample", "train", image_size=settings.image_size)
    memory = torch.channels_last if settings.channels_last else torch.contiguous_format
    device = torch.device(settings.device)

    def images(start: int, count: int) -> torch.Tensor:
        return data.floats(torch.arange(start, start + count) % len(data)).to(
            device, memory_format=memory
        )

    model = (
        make(side, settings.architecture, settings.timesteps, images(0, 8).cpu())
        .to(device)
        .to(memory_format=memory)
    )
    count = settings.calibration_batch_size
    if side == UNIT:  # T images of the ANN for each image
        count *= settings.calibration_timesteps
    calibration = [
        images(batch * settings.calibration_batch_size, count)
        for batch in range(settings.calibration_batches)
    ]
    labels = data.labels[torch.arange(settings.batch_size) % len(data)].to(device)
    return Work(
        model, images(0, settings.batch_size), labels, calibration, settings.calibration_timesteps
    )


def _timed(
    job: Callable[[], Any], base: int | None, device: torch.device
) -> tuple[float, int | None, Any]:
    """Seconds, peak bytes above `base`, and what the job returned."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        torch.cuda.synchronize(device)
    else:
        _forget_peak()
    start = time.perf_counter()
    result = job()
    if on_gpu:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    if on_gpu:
        return seconds, torch.cuda.max_memory_allocated(device) - held, result
    peak = _status("VmHWM")
    return seconds, None if peak is None or base is None else peak - base, result


def _forget_peak() -> None:
    with suppress(OSError):  # not Linux: the peak is then that of the whole process so far
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _resident() -> int | None:
    return _status("VmRSS")


def _status(field: str) -> int | None:
    """Bytes from /proc/self/status; None where there is no such file (not Linux)."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), None)

"""The benchmark itself: one process per side, taking turns, so that slow drifts of the machine hit
all sides alike."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

from sj_robust.allocator import allocator_name
from sj_robust.benchmark.report import BenchReport, BenchSettings, Measurement
from sj_robust.benchmark.sides import SIDES, UNIT
from sj_robust.benchmark.tasks import COSTS, TASKS, can
from sj_robust.benchmark.worker import serve
from sj_robust.errors import SJRobustError
from sj_robust.evaluation.facts import versions
from sj_robust.neuron.compiler import cpu_kernel_status
from sj_robust.progress import bar
from sj_robust.settings import checked

# (side, task) → seconds and peak bytes of each repeat
Times = dict[tuple[str, str], list[tuple[float, int | None]]]


def bench(
    *,
    show_progress: bool | None = None,
    say: Callable[[str], object] = lambda line: None,
    so_far: Callable[[BenchReport], object] = lambda report: None,
    **settings: Any,
) -> BenchReport:
    """Time every task on every side, `repeats` times in turn after one untimed round.

    Args:
        say: called with a line on how long it will take, by the first round, and with one for each
            side whenever a task is done.
        so_far: called with all that is known after each timed step, for whoever may be stopped.
        **settings: see BenchSettings.

    Raises:
        SJRobustError: unknown sides, tasks or settings, or a side that fails.
    """
    started = time.monotonic()
    chosen = _settings(settings)
    times: Times = {}
    thresholds: dict[str, dict[str, float]] = {}
    jobs = [(task, side) for task in chosen.tasks for side in chosen.sides if can(side, task)]
    steps = len(jobs) * (chosen.repeats + 1)
    with (
        _workers(chosen) as (pipes, threads),
        bar("benchmark", steps, unit="steps", show=show_progress) as status,
    ):

        def known() -> BenchReport:
            return BenchReport(
                settings=chosen,
                measurements=tuple(
                    _measurement(task, side, times, chosen)
                    for task, side in jobs
                    if (side, task) in times
                ),
                threshold_difference=_difference(list(thresholds.values())),
                machine=_machine(threads),
                versions=versions(),
            )

        ready = time.monotonic()
        for number, task in enumerate(chosen.tasks):
            for turn in range(chosen.repeats + 1):
                if turn == 1 and not number:
                    seconds = (
                        (time.monotonic() - ready)
                        * (chosen.repeats + 1)
                        * sum(COSTS[each] for each in chosen.tasks)
                        / COSTS[task]
                    )
                    say(
                        f"about {_spoken(seconds + ready - started)} in all, by the first round of"
                        f" {task}; stopped before, it shows what is known by then"
                    )
                for side in (side for side in chosen.sides if can(side, task)):
                    status.note(f"{task} {side}")
                    pipes[side].send(task)
                    seconds, peak, result = _answer(pipes[side], side)
                    if turn:  # the first warms up
                        times.setdefault((side, task), []).append((seconds, peak))
                    if result:
                        thresholds[side] = result
                    status.advance(1)
                    if turn:
                        so_far(known())
            for row in known().rows():
                if row[0] == task:
                    say(
                        "  ".join(
                            filter(
                                None,
                                [
                                    *row[:4],
                                    f"{row[4]} images/s",
                                    row[5] and f"{row[5]} × (T × ANN)",
                                ],
                            )
                        )
                    )
        return known()


def _spoken(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def _settings(given: dict[str, Any]) -> BenchSettings:
    chosen = checked(BenchSettings, given, "benchmark setting ")
    usable = [
        side
        for side in SIDES
        if not (side == "cpu" and (chosen.device != "cpu" or cpu_kernel_status() != "fused"))
        and not (side == "cupy" and not chosen.device.startswith("cuda"))
    ]
    sides = chosen.sides or tuple(usable)
    for name, known, what in [
        *((side, usable, "side") for side in sides),
        *((task, list(TASKS), "task") for task in chosen.tasks),
    ]:
        if name not in known:
            raise SJRobustError(
                f"unknown {what} {name!r} for a benchmark here: expected some of {', '.join(known)}"
            )
    return chosen.model_copy(
        update={"sides": tuple(dict.fromkeys(sides)), "tasks": tuple(dict.fromkeys(chosen.tasks))}
    )


@contextmanager
def _workers(settings: BenchSettings) -> Iterator[tuple[dict[str, Connection], int]]:
    context = _context(settings.device)
    pipes, processes = {}, []
    try:
        for side in settings.sides:
            pipes[side], theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, side, settings), daemon=True)
            with _deaf_to_ctrl_c():
                process.start()
            theirs.close()
            processes.append(process)
        yield pipes, max(_answer(pipe, side) for side, pipe in pipes.items())
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started meanwhile get no Ctrl-C, which a terminal sends to all of them: this one
    tells them when to end."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which would unblock the signal as it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _context(device: str) -> Any:
    """Fresh processes, which wait for the imports once where they can be forked off one that did
    nothing else. CUDA cannot be used in a fork where an import has as much as asked for it."""
    forked = "forkserver" in multiprocessing.get_all_start_methods()
    if device.startswith("cuda") or not forked:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__package__])
    return context


def _answer(pipe: Connection, side: str) -> Any:
    try:
        value, error = pipe.recv()
    except EOFError:
        raise SJRobustError(
            f"the process of side {side} ended: out of memory? Try a smaller --batch-size or fewer"
            " --timesteps"
        ) from None
    if error is not None:
        raise SJRobustError(f"side {side}: {error}")
    return value


def _measurement(task: str, side: str, times: Times, settings: BenchSettings) -> Measurement:
    unit = times.get((UNIT, task))
    factor = 1 if task == "balance" else settings.timesteps
    peaks = [peak for _, peak in times[side, task] if peak is not None]
    return Measurement(
        side=side,
        task=task,
        seconds=tuple(seconds for seconds, _ in times[side, task]),
        unit_seconds=factor * median(seconds for seconds, _ in unit) if unit else None,
        images=(
            settings.calibration_batches * settings.calibration_batch_size
            if task == "balance"
            else settings.batch_size
        ),
        peak_bytes=max(peaks, default=None),
    )


def _difference(found: list[dict[str, float]]) -> float | None:
    """The largest relative difference of a threshold between any side and the first."""
    if len(found) < 2:
        return None
    return max(abs(one[name] / value - 1) for one in found[1:] for name, value in found[0].items())


def _machine(threads: int) -> dict[str, str | int]:
    return {
        "processor": _processor(),
        "cores": (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        ),
        "threads": threads,
        "system": platform.platform(),
        "allocator": allocator_name(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

"""Threshold balancing: every node's threshold from the inputs it gets while spikes flow through the
nodes before it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sj_robust.conversion.norms import batch_statistics
from sj_robust.conversion.percentile import percentile
from sj_robust.conversion.room import free_bytes
from sj_robust.errors import SJRobustError
from sj_robust.model.classifier import SpikingActivation, SpikingClassifier
from sj_robust.model.hooks import hooked
from sj_robust.signals import deferred_signals


def balance_thresholds(
    model: SpikingClassifier,
    batches: Sequence[Tensor],
    *,
    q: float,
    timesteps: int,
    on_layer: Callable[[str, float], None] | None = None,
    ceilings: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Set every threshold to the maximum over `batches` of a percentile of its node's input.

    Layer by layer, front to back; batch norms use batch statistics. (Özdenizci & Legenstein, TMLR
    2024, section 4.1 and algorithm 1.)

    Every layer is computed once per batch, O(L) in depth: one thread per batch runs the ordinary
    forward pass and waits at each node until all batches have arrived there and the threshold is
    known. Only one thread computes at a time.

    Memory: all batches wait with the tensors their forward pass holds at that point: a node's
    input, what skip connections keep alive, and the inputs of the containers around it. That is at
    most B·N·T·(largest C·H·W of a node)·4 bytes, times 1 in a plain chain of layers and 3 in a
    residual network of stages (node input, block input, stage input), plus the working set of one
    batch: its convolution's buffers, the batch norm's output and the values that the percentile
    sorts.

    Args:
        batches: images [N,C,H,W] in [0,1] each.
        q: the percentile, in percent.
        timesteps: T meanwhile.
        on_layer: called with each node's name and threshold.
        ceilings: the highest value that an ANN's activation let through (6 for ReLU6), by node
            name; no threshold exceeds it.

    Returns:
        The raw thresholds by node name, in the order in which the nodes run.

    Raises:
        SJRobustError: a percentile that is not a finite number above 0, or less memory than the
            batches need where they wait. This, and whatever the forward pass raises, leaves
            thresholds undefined.
    """
    raw: dict[str, float] = {}
    relay = _Relay(len(batches))
    waiting: dict[str, int] = {}  # bytes of a batch's input to each node, by its name

    def at_node(name: str) -> Any:
        def balance(activation: SpikingActivation, inputs: tuple[Tensor, ...]) -> None:
            if name not in waiting:
                before = next(reversed(waiting.values()), 0)
                waiting[name] = inputs[0].nbytes
                _check_room(name, inputs[0], (len(batches) - 1) * (inputs[0].nbytes - before))
            copies = activation.timesteps if activation.repeats else 1
            highest = relay.meet(percentile(inputs[0], q, copies))
            if name not in raw:
                highest = min(highest, (ceilings or {}).get(name, highest))
                raw[name] = _checked(highest, name, q)
                activation.node.v_threshold.data.fill_(highest)
                if on_layer:
                    on_layer(name, highest)

        return balance

    def forward(batch: Tensor) -> None:
        with torch.no_grad():  # gradient mode belongs to the thread
            model(batch)

    steps = model.timesteps
    handles = [
        activation.register_forward_pre_hook(at_node(name))
        for name, activation in model.activations().items()
    ]
    try:
        model.timesteps = timesteps
        with hooked(handles), batch_statistics(model):
            relay.run(forward, batches)
    finally:
        model.timesteps = steps
    return raw


def _check_room(name: str, one: Tensor, more: int) -> None:
    """Raise SJRobustError where the inputs of the other batches, `more` bytes, will not fit: the
    system would end the process without a word."""
    free = free_bytes() if one.device.type == "cpu" else None
    if free is not None and more > free:
        raise SJRobustError(
            f"all calibration images wait at {name}, which takes {more / 2**30:.1f} GiB more, and"
            f" {free / 2**30:.1f} GiB of memory are free: lower batches, the batch size or the"
            " calibration timesteps (--batches, --batch-size, --calibration-timesteps)"
        )


def _checked(value: float, name: str, q: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise SJRobustError(
            f"cannot balance the threshold of {name}: the {q:g} percentile of its input is"
            f" {value:g}, expected a value above 0; the layer is (almost) never active on the"
            " calibration images: raise the percentile or check the weights and mean/std"
        )
    return value


class _Relay:
    """Runs one job per batch in threads of which one computes at a time, and lets them meet at
    every node."""

    def __init__(self, parties: int) -> None:
        self._turn = threading.Lock()
        self._barrier = threading.Barrier(parties, action=self._take_highest)
        self._values: list[float] = []
        self._highest = 0.0
        self._error: BaseException | None = None

    def _take_highest(self) -> None:
        self._highest = max(self._values)
        self._values.clear()

    def meet(self, value: float) -> float:
        """Hand in this batch's value, wait for all others, and get the highest."""
        self._values.append(value)
        self._turn.release()
        try:
            self._barrier.wait()
        finally:
            self._turn.acquire()
        return self._highest

    def run(self, job: Callable[[Tensor], None], batches: Sequence[Tensor]) -> None:
        """Run `job` on every batch; re-raise the first exception of any."""

        def work(batch: Tensor) -> None:
            with self._turn:
                try:
                    if not self._barrier.broken:
                        job(batch)
                except BaseException as error:
                    if self._error is None:
                        self._error = error
                    self._barrier.abort()

        threads = [threading.Thread(target=work, args=(batch,), daemon=True) for batch in batches]
        # Ctrl-C lets every batch stop at its next node. It waits for them, however often it is
        # repeated and from the first on: a thread that computes while the interpreter is taken down
        # aborts the process.
        with deferred_signals(patient=True) as interrupted:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.1)
                    if interrupted():
                        self._barrier.abort()
        if self._error is not None:
            raise self._error

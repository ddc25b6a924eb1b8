"""What is timed: each task is one step of real work of the package on one batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sj_robust.attack import PGD, RFGSM
from sj_robust.benchmark.sides import Merged
from sj_robust.conversion.balance import balance_thresholds
from sj_robust.conversion.percentile import percentile
from sj_robust.model import SpikingClassifier
from sj_robust.model.hooks import hooked
from sj_robust.training import preset
from sj_robust.training.loss import LOSSES

EPS = 4 / 255
Q = 99.7


@dataclass(frozen=True)
class Work:
    """One side's network and its data: images [N,C,H,W] with labels, and calibration batches with
    the T they are run at."""

    model: nn.Module
    x: Tensor
    y: Tensor
    calibration: list[Tensor]
    calibration_timesteps: int


def train(work: Work) -> None:
    """Cross-entropy on clean images, forward and backward."""
    work.model.train().zero_grad(set_to_none=True)
    F.cross_entropy(work.model(work.x), work.y).backward()  # type: ignore[no-untyped-call]


def rfgsm(work: Work) -> None:
    """RFGSM on the KL: what a TRADES step does before it trains."""
    RFGSM(eps=EPS, loss="kl")(work.model, work.x)


def finetune(work: Work) -> None:
    """A TRADES-RFGSM step: attack, loss on clean and adversarial images, backward."""
    work.model.train().zero_grad(set_to_none=True)
    config = preset("finetune", "paper", eps=EPS)
    LOSSES[config.method](
        work.model, work.x, work.y, torch.arange(len(work.x), device=work.x.device), config, 0
    ).total.backward()  # type: ignore[no-untyped-call]


def pgd10(work: Work) -> None:
    """PGD-10 and the pass that judges it, in eval mode."""
    work.model.eval()
    x_adv = PGD(eps=EPS)(work.model, work.x, work.y)
    with torch.no_grad():
        work.model(x_adv)


def balance(work: Work) -> dict[str, float] | None:
    """Threshold balancing. The ANN's own side: as many forward passes as one pass at that T is
    worth; a side whose node has a fixed threshold has none; the plain loop computes all layers up
    to l anew for every l."""
    if isinstance(work.model, SpikingClassifier):
        return balance_thresholds(
            work.model, work.calibration, q=Q, timesteps=work.calibration_timesteps
        )
    nodes = {
        name: module for name, module in work.model.named_modules() if isinstance(module, Merged)
    }
    work.model.train()
    with torch.no_grad():
        if not nodes:
            for batch in work.calibration:
                work.model(batch)
            return None
        return _balance_layer_by_layer(work, nodes)


class _Reached(Exception):
    pass


def _balance_layer_by_layer(work: Work, nodes: dict[str, Merged]) -> dict[str, float]:
    model: Any = work.model
    steps, found = model.timesteps, {}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    for module in (model, *nodes.values()):
        module.timesteps = work.calibration_timesteps
    for name, module in nodes.items():
        values: list[float] = []

        def at_node(
            module: nn.Module, inputs: tuple[Tensor, ...], values: list[float] = values
        ) -> None:
            values.append(percentile(inputs[0], Q))
            raise _Reached

        with hooked([module.register_forward_pre_hook(at_node)]):
            for batch in work.calibration:
                with suppress(_Reached):
                    model(batch)
        threshold: Any = module.node.v_threshold
        threshold.data.fill_(max(values))
        found[name.removeprefix("backbone.")] = max(values)
    for module in (model, *nodes.values()):
        module.timesteps = steps
    for buffer, value in buffers:
        buffer.copy_(value)
    return found


TASKS: dict[str, Callable[[Work], Any]] = {
    "train": train,
    "rfgsm": rfgsm,
    "finetune": finetune,
    "pgd10": pgd10,
    "balance": balance,
}
TRAINING = ("train", "rfgsm", "finetune")
# roughly, of a step, for the time all will take
COSTS = {"train": 1.0, "rfgsm": 1.4, "finetune": 3.5, "pgd10": 11.0, "balance": 3.0}


def can(side: str, task: str) -> bool:
    """Whether a side has this task: SpikingJelly's node has no threshold to balance or to learn."""
    return not (side == "spikingjelly" and task == "balance")

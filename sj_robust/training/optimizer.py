"""SGD with the right parameters in the right group, and the rules for firing thresholds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sj_robust.training.config import TrainConfig

THRESHOLD = "v_threshold"


def thresholds(model: nn.Module) -> list[nn.Parameter]:
    """The firing thresholds: parameters whose name ends with v_threshold."""
    return [parameter for name, parameter in model.named_parameters() if name.endswith(THRESHOLD)]


def decay_groups(model: nn.Module, config: TrainConfig) -> tuple[list[str], list[str]]:
    """Names of the trainable parameters (with, without) weight decay.

    Without: thresholds, biases and batch norm (every parameter of one dimension or none), unless
    `decay_all`.
    """
    trainable = [
        (name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
    ]
    decayed = [
        name
        for name, parameter in trainable
        if config.decay_all or (parameter.dim() > 1 and not name.endswith(THRESHOLD))
    ]
    return decayed, [name for name, _ in trainable if name not in decayed]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    """SGD over the trainable parameters; `learning_rate` sets the rate before each step."""
    parameters = dict(model.named_parameters())
    decayed, plain = decay_groups(model, config)
    groups = [
        {"params": [parameters[name] for name in names], "weight_decay": decay}
        for names, decay in ((decayed, config.weight_decay), (plain, 0.0))
        if names
    ]
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


def momentum_buffers(model: nn.Module, optimizer: torch.optim.SGD) -> dict[str, Tensor]:
    """The optimiser's momentum by parameter name, live: zeros where it has none yet (a first step
    from zeros equals torch's own)."""
    buffers = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and optimizer.defaults["momentum"]:
            buffers[name] = optimizer.state[parameter].setdefault(
                "momentum_buffer", torch.zeros_like(parameter, requires_grad=False)
            )
    return buffers


@torch.no_grad()
def clamp_thresholds(model: nn.Module, minimum: float) -> None:
    """Keep every threshold at `minimum` or above: one at or below 0 would fire without input."""
    for threshold in thresholds(model):
        threshold.clamp_(min=minimum)


@contextmanager
def frozen_thresholds(model: nn.Module, frozen: bool) -> Iterator[None]:
    """Thresholds without gradient for the block, if `frozen`; each flag comes back."""
    flags = [(threshold, threshold.requires_grad) for threshold in thresholds(model)]
    try:
        for threshold, flag in flags:
            threshold.requires_grad_(flag and not frozen)
        yield
    finally:
        for threshold, flag in flags:
            threshold.requires_grad_(flag)

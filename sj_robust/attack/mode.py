"""Leave a model as it was found: training flags, requires_grad, random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sj_robust.model.images import values_known
from sj_robust.model.mode import evaluation_mode


@contextmanager
def attack_mode(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode, gradients with respect to the input alone, and global random state untouched once
    the block is left."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    devices = [device] if device.type == "cuda" else []
    # An attack may run inside no_grad or inference_mode (an evaluation loop): it needs gradients
    # all the same.
    with (
        evaluation_mode(model),
        torch.random.fork_rng(devices),
        torch.inference_mode(False),
        torch.enable_grad(),
        values_known(),
    ):
        try:
            for parameter, _ in wanted:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter, flag in wanted:
                parameter.requires_grad_(flag)

"""Training passes in 16 bits: torch's autocast and loss scaling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sj_robust.model import SpikingActivation
from sj_robust.model.hooks import hooked
from sj_robust.training.config import TrainConfig

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def autocast(model: nn.Module, config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Within the block, convolutions and products run as `config.precision` says; membrane
    potentials stay in float32 in any case: a potential of 8 or 11 bits would cross its threshold at
    other steps."""
    if config.precision in (None, "float32"):
        yield
        return
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
        for module in model.modules()
        if isinstance(module, SpikingActivation)
    ]
    with hooked(hooks), torch.autocast(device.type, DTYPES[config.precision]):
        yield


def loss_scaler(config: TrainConfig, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss so that small gradients do not vanish in fp16 (Micikevicius et al., ICLR
    2018); does nothing otherwise."""
    return torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")  # type: ignore[attr-defined]

"""Training in 16 bits: torch's autocast and loss scaling, and weights that float16 holds."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sj_robust.model import SpikingActivation
from sj_robust.model.hooks import hooked
from sj_robust.neuron import fused, select_backend
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
        module.register_forward_pre_hook(_widen)
        for module in model.modules()
        if isinstance(module, SpikingActivation)
    ]
    with hooked(hooks), torch.autocast(device.type, DTYPES[config.precision]):
        yield


def _widen(activation: SpikingActivation, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
    """Float32 for nodes that would integrate in 16 bits. The CUDA kernel does not, and gives spikes
    of the type it reads, as the next convolution wants them."""
    (x, *_), node = inputs, activation.node
    as_it_is = fused.keeps_float32_state(select_backend(node.backend, x), x)
    return (x if as_it_is and not node.store_v_seq else x.float(),)


def round_weights(model: nn.Module) -> None:
    """Replace parameters and buffers by the nearest numbers that float16 holds; where one is too
    large for it, a warning and nothing else."""
    values = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    halves = [tensor.half().to(tensor.dtype) for tensor in values]
    if not all(bool(torch.isfinite(half).all()) for half in halves):
        warnings.warn("a weight is too large for float16: none was rounded", stacklevel=2)
        return
    for tensor, half in zip(values, halves, strict=True):
        tensor.copy_(half)  # of the model itself: state_dict shares its memory


def loss_scaler(config: TrainConfig, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss so that small gradients do not vanish in fp16 (Micikevicius et al., ICLR
    2018); does nothing otherwise."""
    return torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")  # type: ignore[attr-defined]

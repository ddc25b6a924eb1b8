"""Exponential moving average of weights, as plain dictionaries of tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def start(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """An average that begins at `weights`."""
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


@torch.no_grad()
def update(ema: dict[str, Tensor], weights: dict[str, Tensor], decay: float, step: int) -> None:
    """ema ← d·ema + (1−d)·weights, integers copied; d = min(decay, (1+step)/(10+step)), so that a
    short run forgets its first weights."""
    decay = min(decay, (1 + step) / (10 + step))
    for name, tensor in weights.items():
        if tensor.is_floating_point():
            ema[name].lerp_(tensor, 1 - decay)
        else:
            ema[name].copy_(tensor)


@contextmanager
def swapped(weights: dict[str, Tensor], ema: dict[str, Tensor]) -> Iterator[None]:
    """The average in place of the weights for the block (nothing happens where `ema` is empty); the
    weights come back bit for bit."""
    kept = start(weights) if ema else {}
    copy(ema, weights)
    try:
        yield
    finally:
        copy(kept, weights)


@torch.no_grad()
def copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    """Write `source` into the tensors of `target`, in place."""
    for name, tensor in source.items():
        target[name].copy_(tensor)

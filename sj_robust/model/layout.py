"""The memory layout a network computes in: one wherever it comes from, because layouts take other
kernels and round differently."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sj_robust.model.mode import evaluation_mode


@torch.no_grad()
def settle_layout(model: nn.Module, images: Tensor) -> None:
    """Put `model` into channels_last, which its nodes are fastest in, or into the contiguous layout
    where its forward pass does not take the other (`x.view(len(x), -1)` of a feature map fails
    there).

    Args:
        model: what maps `images` to anything; left in the mode it was in.
        images: a few inputs [N,C,H,W] to try it on.
    """
    try:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with evaluation_mode(model):
            model(images.clone(memory_format=torch.channels_last))
    except RuntimeError:
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def layout_of(model: nn.Module) -> torch.memory_format:
    """The layout that the weights of `model` lie in."""
    last = any(
        p.dim() == 4
        and p.is_contiguous(memory_format=torch.channels_last)
        and not p.is_contiguous()
        for p in model.parameters()
    )
    return torch.channels_last if last else torch.contiguous_format

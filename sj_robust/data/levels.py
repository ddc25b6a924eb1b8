"""Images of 8 bits from the forms in which they are handed over."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sj_robust.errors import SJRobustError

_OFF = 0.13  # of a level: what half precision leaves of a multiple of 1/255


def as_levels(images: Any) -> Tensor:
    """`images`, a tensor or array [N,C,H,W], as uint8 on the CPU, where that says the same.

    Raises SJRobustError for another shape, for values that are neither whole numbers of 0 to 255
    nor multiples of 1/255 in [0,1], and for whole numbers in a wider type that are all 0 and 1,
    which could be either.
    """
    if isinstance(images, np.ndarray):
        try:
            images = torch.from_numpy(np.ascontiguousarray(images))
        except TypeError:
            raise SJRobustError(
                f"images are an array of {images.dtype}: expected uint8, or floats in [0,1]"
            ) from None
    if not isinstance(images, Tensor):
        raise SJRobustError(
            f"images are a {type(images).__name__}: expected a tensor uint8 "
            "[N,C,H,W], as torch.stack makes of a list"
        )
    if images.dim() != 4 or _channels_last(images.shape):
        advice = {
            3: "; images.unsqueeze(1) for grey ones",
            4: "; images.permute(0, 3, 1, 2) puts the channels first",
        }.get(images.dim(), "")
        raise SJRobustError(f"images have shape {list(images.shape)}: expected [N,C,H,W]{advice}")
    images = images.detach().cpu()
    if images.dtype == torch.uint8 or not images.numel():
        return images.to(torch.uint8)
    if images.dtype == torch.bool or images.is_complex():
        raise SJRobustError(f"images are {images.dtype}: expected uint8, or floats in [0,1]")
    floats = images.is_floating_point()
    low, high = (float(bound) for bound in images.aminmax())
    if not (low >= 0 and high <= 255) or (high <= 1 and not floats):  # NaN too
        raise SJRobustError(
            f"images are {images.dtype} and reach from {low:.3g} to {high:.3g}: "
            "expected uint8, or floats in [0,1]"
        )
    levels = images.float() * 255 if high <= 1 else images.float()
    whole = levels.round()
    if float((levels - whole).abs().max()) > _OFF:
        raise SJRobustError(
            "images are floats between the levels of 8 bits, which a data set "
            "holds: round them, as with (images * 255).round().byte()"
        )
    return whole.to(torch.uint8)


def _channels_last(shape: torch.Size) -> bool:
    return shape[1] not in (1, 3) and shape[3] in (1, 3) and min(shape[1:3]) > 4

"""Calibration images from the forms in which they are handed over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sj_robust.errors import SJRobustError

MOST = 10_000
"""Images: all of them pass through the network together, layer by layer."""

_KEYS = ("image", "images", "img", "pixel_values", "x", "input", "inputs")
_EXPECTED = "expected batches of float images [N,C,H,W] in [0,1] from the training set"


def calibration_batches(calibration: Any) -> list[Tensor]:
    """Batches float32 [N,C,H,W] of `calibration`: a tensor or array [B,N,C,H,W] or [N,C,H,W], or an
    iterable of batches, as a DataLoader is; of batches that hold more, the images.

    Raises SJRobustError for none, more than MOST images, and images that are not floats in [0,1].
    """
    if isinstance(calibration, Tensor | np.ndarray) and calibration.ndim == 4:
        calibration = [calibration]
    if isinstance(calibration, str | Mapping) or not isinstance(calibration, Iterable):
        kind = type(calibration).__name__
        raise SJRobustError(
            f"calibration is a {kind}: {_EXPECTED}, such as sj_robust.data."
            "calibration_batches(dataset, seed=0) draws from a data set"
        )
    batches: list[Tensor] = []
    for batch in _batches(calibration):
        batches.append(_checked(batch))
        if sum(map(len, batches)) > MOST:
            raise SJRobustError(
                f"calibration has more than {MOST} images, which pass through the "
                "network together: about 700 do, give the first batches of a loader "
                "with itertools.islice(loader, 11)"
            )
    if not batches:
        raise SJRobustError(
            "convert needs calibration images: a tensor [B,N,C,H,W] or batches "
            "[N,C,H,W] in [0,1] from the training set"
        )
    return batches


def _batches(calibration: Iterable[Any]) -> Iterator[Any]:
    if isinstance(calibration, tuple | list) and len(calibration) == 2:
        images, labels = calibration
        if _is_images(images) and isinstance(labels, Tensor | np.ndarray) and labels.ndim < 3:
            yield images
            return
    for batch in calibration:
        if isinstance(batch, Mapping):
            batch = next((batch[key] for key in _KEYS if key in batch), batch)
        elif isinstance(batch, tuple | list) and batch:
            batch = batch[0]
        yield batch


def _is_images(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) and value.ndim == 4


def _checked(batch: Any) -> Tensor:
    if isinstance(batch, np.ndarray):
        batch = torch.from_numpy(batch)
    if not isinstance(batch, Tensor):
        raise SJRobustError(f"calibration holds a {type(batch).__name__}: {_EXPECTED}")
    if batch.dim() != 4 or not batch.is_floating_point() or len(batch) < 1:
        advice = "; a DataLoader makes batches of single images" if batch.dim() == 3 else ""
        if batch.dim() == 4 and len(batch):
            advice = "; divide by 255 if they are 0 to 255"
        kind = f"of shape {list(batch.shape)} and type {batch.dtype}"
        raise SJRobustError(f"calibration batch {kind}: {_EXPECTED}{advice}")
    low, high = torch.stack(batch.detach().aminmax()).tolist()
    if not (0 <= low and high <= 1):  # NaN too
        raise SJRobustError(
            f"calibration images reach from {low:g} to {high:g}: expected [0,1], not yet normalised"
        )
    return batch.detach().float()

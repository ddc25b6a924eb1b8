"""What enters a classifier, checked in one place: images and labels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sj_robust.errors import SJRobustError

FAR = 10.0
"""Noise of randomised smoothing lies outside of [0, 1], by less than this; images of 0 to 255 by
more."""

SLIGHTLY = 0.25  # by which an attack on its way, or a finite difference, may leave [0, 1]


_values_known = ContextVar("values_known", default=False)


@contextmanager
def values_known() -> Iterator[None]:
    """While the block runs, the values of images and labels are not looked at: what runs there made
    them itself. Each look at a tensor on a GPU waits for all the work that was given to it
    before."""
    token = _values_known.set(True)
    try:
        yield
    finally:
        _values_known.reset(token)


class OutsideWarning(UserWarning):
    """Images lie outside of [0, 1], as noisy ones may, and normalised ones must not."""


def checked_images(x: Any, channels: int, like: Tensor) -> Tensor:
    """`x` in the dtype of `like`, once it is known to be images [N, `channels`, H, W] of floats in
    [0, 1], or of those with noise.

    Values are looked at wherever that is possible: not while a graph is traced, exported, compiled
    or captured, nor within `values_known`.

    Raises SJRobustError for anything else than floats, NaN, values `FAR` outside of [0, 1], another
    shape, and another device than that of `like`. Warns with `OutsideWarning` where values are more
    than `SLIGHTLY` outside.
    """
    expected = f"[N,{channels},H,W]"
    if not isinstance(x, Tensor):
        kind = type(x).__name__
        raise SJRobustError(
            f"images are a {kind}: expected a tensor of floats in [0,1], {expected}"
        )
    if not x.is_floating_point():
        raise SJRobustError(
            f"images are {_name(x.dtype)}: expected floats in [0,1]; give "
            "images.float() / 255 if they are 0 to 255"
        )
    if x.layout is not torch.strided:
        raise SJRobustError(
            f"images are a tensor of layout {x.layout}: expected a dense one, images.to_dense()"
        )
    if x.dim() != 4 or x.shape[1] != channels:
        advice = _advice(x.shape, channels)
        raise SJRobustError(f"images of shape {list(x.shape)}: expected {expected}{advice}")
    if x.device != like.device:
        raise SJRobustError(
            f"images are on {x.device}, the network is on {like.device}: move one "
            f"of them, as with images.to({str(like.device)!r})"
        )
    bounds = value_bounds(x)
    if bounds is not None:
        _check_bounds(*bounds)
    return x if x.dtype == like.dtype else x.to(like.dtype)


def checked_labels(labels: Any, count: int, classes: int | None = None) -> Tensor:
    """`labels` as int64 [`count`]: a tensor, an array or a sequence of whole numbers from 0, below
    `classes` where that is known.

    Raises SJRobustError for anything else, such as a row of scores for each image, and where there
    is not one for each. Within `values_known` whole numbers are not looked at.
    """
    try:
        found = (
            labels.detach() if isinstance(labels, Tensor) else torch.as_tensor(np.asarray(labels))
        )
    except (TypeError, ValueError, RuntimeError):
        kind = type(labels).__name__
        raise SJRobustError(
            f"labels are a {kind} of something else than numbers: expected the "
            "number of a class for each image"
        ) from None
    if found.shape != (count,):
        advice = ""
        if found.dim() == 2 and len(found) == count:
            column = found.shape[1] == 1
            advice = "; give labels" + (
                ".squeeze(1)" if column else ".argmax(1) if they are one-hot"
            )
        raise SJRobustError(
            f"labels have shape {list(found.shape)}: expected [{count}], one for each image{advice}"
        )
    fractions = found.is_floating_point() and not bool((found == found.round()).all())  # NaN too
    if found.is_complex() or fractions:
        raise SJRobustError(
            f"labels are {_name(found.dtype)} and not all whole: expected the "
            "number of a class for each image"
        )
    found = found.long()
    if count and not _values_known.get():
        low, high = torch.stack(found.aminmax()).tolist()
        if low < 0 or (classes is not None and high >= classes):
            upper = "or more" if classes is None else f"to {classes - 1} ({classes} classes)"
            wrong = low if low < 0 else high
            raise SJRobustError(f"an image has the label {wrong}: expected 0 {upper}")
    return found


def value_bounds(x: Tensor) -> tuple[float, float] | None:
    """The least and the highest value, NaN where there is one; None where nobody can look, or needs
    to."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or _values_known.get():
        return None
    if (x.is_cuda and torch.cuda.is_current_stream_capturing()) or not x.numel():
        return None
    try:
        low, high = torch.stack(x.detach().aminmax()).tolist()  # one transfer from a GPU
    except RuntimeError:  # a tensor without values (meta, fake), or one for several (vmap)
        return None
    return low, high


def _check_bounds(low: float, high: float) -> None:
    if not (-FAR <= low and high <= 1 + FAR):  # NaN too
        levels = low >= 0 and high <= 255
        advice = "; divide by 255 if they are 0 to 255" if levels else ", not normalised"
        raise SJRobustError(f"images reach from {low:.3g} to {high:.3g}: expected [0,1]{advice}")
    if low < -SLIGHTLY or high > 1 + SLIGHTLY:  # no numbers in the words, so that they come once
        warnings.warn(
            f"images lie more than {SLIGHTLY} outside of [0,1]: right for the noise of randomised "
            "smoothing, wrong for images that were normalised or scaled to [-1,1], as the model "
            "normalises them itself",
            OutsideWarning,
            stacklevel=4,
        )


def _advice(shape: torch.Size, channels: int) -> str:
    if len(shape) == 4 and shape[-1] == channels:
        return "; images.permute(0, 3, 1, 2) puts the channels first"
    if len(shape) == 3 and shape[0] == channels:
        return "; images.unsqueeze(0) makes a batch of one image"
    if len(shape) == 3 and shape[-1] == channels:
        return "; images.permute(2, 0, 1).unsqueeze(0) makes a batch of one image"
    return ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

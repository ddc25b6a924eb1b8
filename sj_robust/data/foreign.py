"""Data sets of others: pairs of tensors, DataLoaders, and data sets such as those of
torchvision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sj_robust.data.datasets import ImageDataset, known_name
from sj_robust.data.source import numbered
from sj_robust.errors import SJRobustError

_IMAGES = ("image", "images", "img", "pixel_values", "x", "input", "inputs", "data")
_LABELS = ("label", "labels", "fine_label", "y", "target", "targets", "class")


def as_dataset(data: Any) -> ImageDataset:
    """`data` as an ImageDataset, in memory.

    Images are tensors, arrays or of PIL, at 8 bits (see `ImageDataset`); a batch may be a mapping.
    Name, split and class names are read off the data set where it has them.

    Args:
        data: an ImageDataset, which stays as it is, a pair (images [N,C,H,W], labels [N]), a
            DataLoader or another iterable of batches (images, labels), or a data set of single
            ones.

    Raises:
        SJRobustError: anything else, images that lack labels or differ in size.
    """
    if isinstance(data, ImageDataset):
        return data
    if isinstance(data, str) or not (isinstance(data, Iterable) or hasattr(data, "__getitem__")):
        raise SJRobustError(
            f"the data are a {type(data).__name__}: expected an ImageDataset, such as "
            "sj_robust.load_dataset(...) returns, or a DataLoader"
        )
    batches = [data] if _is_pair(data) else _items(data)
    pairs = [_pair(batch) for batch in batches]
    if not pairs:
        raise SJRobustError("the data gave no images: a generator, for one, can be read only once")
    origin = _origin(data)
    images, labels = _joined([pair[0] for pair in pairs]), _joined([pair[1] for pair in pairs])
    names = getattr(origin, "classes", None)
    if isinstance(names, str) or not isinstance(names, Sequence):
        whole = (
            labels.dim() == 1
            and len(labels)
            and not labels.is_complex()
            and not labels.isnan().any()
        )
        names = numbered(int(labels.max()) if whole else 0)
    kind = type(origin).__name__
    train = getattr(origin, "train", None)
    split = {True: "train", False: "test"}.get(train, "all") if isinstance(train, bool) else "all"
    return ImageDataset(images, labels, tuple(map(str, names)), known_name(kind) or kind, split)


def _items(data: Any) -> Iterable[Any]:
    """One after the other; a data set by its length, as iterating over one need not end."""
    if isinstance(data, torch.utils.data.Dataset) and hasattr(data, "__len__"):
        return (data[index] for index in range(len(data)))
    return iter(data)


def _is_pair(data: Any) -> bool:
    return (
        isinstance(data, tuple | list)
        and len(data) == 2
        and isinstance(data[0], Tensor | np.ndarray)
        and data[0].ndim == 4
    )


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    """Images [n,C,H,W] and labels [n] of one item, single or a batch."""
    if isinstance(batch, Mapping):
        images = next((batch[name] for name in _IMAGES if name in batch), batch)
        labels = next((batch[name] for name in _LABELS if name in batch), None)
    else:
        images, labels = (
            batch if isinstance(batch, tuple | list) and len(batch) == 2 else (batch, None)
        )
    if isinstance(images, Image.Image):
        images = torch.from_numpy(np.array(images.convert("RGB"))).permute(2, 0, 1)
    elif isinstance(images, np.ndarray):
        try:
            images = torch.from_numpy(images)
        except TypeError:
            raise SJRobustError(
                f"images are an array of {images.dtype}: expected uint8, or floats in [0,1]"
            ) from None
    if labels is None or not isinstance(images, Tensor) or images.dim() not in (3, 4):
        found = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
        lack = "no labels" if labels is None and isinstance(images, Tensor) else "no images"
        raise SJRobustError(
            f"the data holds {lack} where it gives {found}: expected images [N,C,H,W] "
            "with labels [N], or single ones"
        )
    try:
        labels = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise SJRobustError(
            f"the labels of the data are a {type(labels).__name__}: expected the "
            "number of a class for each image"
        ) from None
    return (images, labels) if images.dim() == 4 else (images[None], labels[None])


def _joined(parts: list[Tensor]) -> Tensor:
    try:
        return torch.cat([part.detach().cpu() for part in parts])
    except (RuntimeError, TypeError):
        shapes = sorted({str(list(part.shape[1:])) for part in parts})
        raise SJRobustError(
            "the data has images of different sizes or labels of different shapes "
            f"({', '.join(shapes[:3])}): bring them to one in its transform"
        ) from None


def _origin(data: Any) -> Any:
    """The data set behind loaders and subsets."""
    while hasattr(data, "dataset"):
        data = data.dataset
    return data

"""Batches whose order and augmentation depend on (seed, epoch, step) alone, so that training can
resume anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from sj_robust.data.augment import Augmentation, sent
from sj_robust.data.datasets import ImageDataset
from sj_robust.data.stream import EncodedImages, ahead
from sj_robust.errors import SJRobustError


def batches(
    dataset: ImageDataset,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    augment: Augmentation | None,
    start: int = 0,
    drop_last: bool = True,
    device: torch.device | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The batches `start`, `start`+1, … of one epoch.

    Stateless: batch k is the same whether the epoch began at 0 or at k, and the global random state
    is left alone.

    Args:
        device: where the batches are wanted. On a GPU they are augmented there, to the same bits,
            as one core of the CPU prepares fewer images than it trains on.

    Returns:
        An iterator over (indices int64 [n], x float32 [n,C,H,W] in [0,1], y int64 [n]).

    Raises:
        SJRobustError: not a single batch fits.
    """
    steps = steps_per_epoch(dataset, batch_size, drop_last=drop_last)
    if start < 0:
        raise SJRobustError(
            f"start={start}: expected the number of batches already done, 0 or more"
        )
    order = torch.randperm(len(dataset), generator=_generator("order", seed, epoch))

    encoded = isinstance(dataset.images, EncodedImages)
    # shifting and mirroring whole bytes is exact anywhere, resizing is not
    early = not (encoded or (augment and augment.scale))

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        indices = order[step * batch_size : (step + 1) * batch_size]
        if augment is None:
            images = dataset.images[indices]
        else:
            chosen = (
                dataset.images.subset(indices)
                if isinstance(dataset.images, EncodedImages)
                else dataset.images[indices]
            )
            images = augment(
                sent(chosen, device) if early and isinstance(chosen, Tensor) else chosen,
                _generator("augment", seed, epoch, step),
            )
        return (
            sent(indices, device),
            _floats(sent(images, device)),
            sent(dataset.labels[indices], device),
        )

    if encoded:
        return ahead(partial(batch, step) for step in range(start, steps))
    return map(batch, range(start, steps))


def _floats(images: Tensor) -> Tensor:
    """Bytes as float32 in [0,1], to the same bits everywhere: CUDA would multiply by 1/255."""
    if images.is_cuda:
        levels = torch.arange(256.0).div_(255)
        return sent(levels, images.device)[images.int()]
    return images.float().div_(255)


def steps_per_epoch(dataset: ImageDataset, batch_size: int, *, drop_last: bool = True) -> int:
    """How many batches `batches` yields for one epoch.

    Raises:
        SJRobustError: there is none, or `batch_size` is below 1.
    """
    if batch_size < 1:
        raise SJRobustError(f"batch_size={batch_size}: expected 1 or more")
    steps = len(dataset) // batch_size if drop_last else -(-len(dataset) // batch_size)
    if not steps:
        raise SJRobustError(
            f"batch_size={batch_size} is larger than {dataset.name}'s {len(dataset)} images: use a"
            " smaller one"
        )
    return steps


def calibration_batches(
    dataset: ImageDataset, batches: int = 11, batch_size: int = 64, *, seed: int
) -> Tensor:
    """Different images drawn by `seed`, not augmented.

    Returns:
        float32 [batches,batch_size,C,H,W] in [0,1].

    Raises:
        SJRobustError: there are not so many images.
    """
    return dataset.floats(calibration_indices(dataset, batches, batch_size, seed=seed)).unflatten(
        0, (batches, batch_size)
    )


def calibration_indices(
    dataset: ImageDataset, batches: int = 11, batch_size: int = 64, *, seed: int
) -> Tensor:
    """Which images `calibration_batches` draws, int64 [batches * batch_size].

    Raises:
        SJRobustError: there are not so many images.
    """
    count = batches * batch_size
    if count < 1 or count > len(dataset):
        raise SJRobustError(
            f"{batches} calibration batches of {batch_size} need {count} images but {dataset.name}"
            f" has {len(dataset)}: use fewer or smaller batches (at least one image)"
        )
    return torch.randperm(len(dataset), generator=_generator("calibration", seed))[:count]


def _generator(purpose: str, *numbers: int) -> torch.Generator:
    """A generator of its own for each purpose and position: hashed, because nearby seeds give
    related streams."""
    digest = hashlib.sha256("/".join([purpose, *map(str, numbers)]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

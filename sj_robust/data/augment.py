"""Random crop, resized crop, flip and cutout for a whole batch at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt
from torch import Tensor

from sj_robust.data.decode import Box, Crop
from sj_robust.data.stream import EncodedImages
from sj_robust.settings import Strict

RATIOS = (3 / 4, 4 / 3)
"""Width to height of a resized crop."""

_TRIES = 10  # sizes drawn until one lies within the image


class Augmentation(Strict):
    """Training augmentation: cut out a part and resize it, shift, mirror, blank out a square.

    Crop and flip as in He et al. 2016 (CIFAR-10). Pixels from outside the image and in the square
    are 0 (black).

    Attributes:
        padding: shift by up to so many pixels.
        cutout: side of the square, whose centre is uniform over the image, clipped at its border
            (DeVries & Taylor 2017).
        scale: the random resized crop of Szegedy et al. 2015, by the rules of torchvision's
            RandomResizedCrop: a part of `scale` to 1 of the image's area, of ratio 3/4 to 4/3, is
            brought to the size of the batch (bilinear, antialiased). None: no such crop.
    """

    padding: NonNegativeInt = 4
    flip: bool = True
    cutout: NonNegativeInt = 0
    scale: float | None = Field(None, gt=0, le=1)

    def __call__(self, images: Tensor | EncodedImages, generator: torch.Generator) -> Tensor:
        """Augment images [N,C,H,W] of any dtype.

        Encoded ones are decoded, and with `scale` cut as they are stored: in all their pixels, and
        outside of the centre square too.

        Args:
            generator: on the CPU; every random number comes from it.
        """
        count, _, height, width = images.shape
        crops = self._crops(count, generator) if self.scale else None
        if isinstance(images, EncodedImages):
            batch = images.decoded(crops)
        else:
            batch = _resized(images, crops) if crops else images

        def draw(bound: int) -> Tensor:
            return sent(torch.randint(bound, (count,), generator=generator), batch.device)

        if self.padding:
            padded = F.pad(batch, [self.padding] * 4)
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: [N,C,2p+1,2p+1,H,W]
            batch = windows[
                torch.arange(count, device=batch.device),
                :,
                draw(2 * self.padding + 1),
                draw(2 * self.padding + 1),
            ]
        if self.flip:
            batch = torch.where(draw(2).bool().view(-1, 1, 1, 1), batch.flip(3), batch)
        if self.cutout:
            rows, columns = (
                _span(draw(height), height, self.cutout),
                _span(draw(width), width, self.cutout),
            )
            batch = batch.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)
        return batch.contiguous()

    def _crops(self, count: int, generator: torch.Generator) -> list[Crop]:
        assert self.scale
        draws = torch.rand(count, 2 * _TRIES + 2, generator=generator, dtype=torch.float64).tolist()
        return [partial(crop_box, self.scale, draw) for draw in draws]


def crop_box(scale: float, draws: Sequence[float], width: int, height: int) -> Box:
    """(left, top, right, bottom), in pixels, of a random part of an image. `draws`: 22 numbers,
    uniform in [0,1), which decide.

    Area and logarithm of the ratio are uniform; sizes that do not lie within the image are drawn
    again, and after ten the largest part in the middle is taken, as torchvision does.
    """
    low, high = map(math.log, RATIOS)
    for area, ratio in zip(draws[:_TRIES], draws[_TRIES:-2], strict=True):
        pixels, root = (
            (scale + (1 - scale) * area) * width * height,
            math.exp((low + (high - low) * ratio) / 2),
        )
        wide, tall = round(math.sqrt(pixels) * root), round(math.sqrt(pixels) / root)
        if 0 < wide <= width and 0 < tall <= height:
            left, top = int(draws[-2] * (width - wide + 1)), int(draws[-1] * (height - tall + 1))
            break
    else:
        nearest = min(max(width / height, RATIOS[0]), RATIOS[1])
        wide, tall = min(width, round(height * nearest)), min(height, round(width / nearest))
        left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall


def _resized(images: Tensor, crops: Sequence[Crop]) -> Tensor:
    """The part of each image that its crop says, in the size of all."""
    size = images.shape[2:]
    parts = []
    for image, crop in zip(images, crops, strict=True):
        left, top, right, bottom = crop(size[1], size[0])
        parts.append(
            F.interpolate(
                image[None, :, top:bottom, left:right].float(),
                size,
                mode="bilinear",
                antialias=True,
            )
        )
    found = torch.cat(parts)
    return found if images.is_floating_point() else found.round_().to(images.dtype)


def sent(tensor: Tensor, device: torch.device | None) -> Tensor:
    """`tensor` on a CUDA `device`, without waiting for what that is at; itself for another."""
    if device is None or device.type != "cuda" or tensor.is_cuda:
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _span(centre: Tensor, length: int, size: int) -> Tensor:
    """Bool [N,length]: the `size` positions around each centre."""
    offset = torch.arange(length, device=centre.device) - (centre[:, None] - size // 2)
    return (offset >= 0) & (offset < size)

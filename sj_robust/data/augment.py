"""Random crop, flip and cutout for a whole batch at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, NonNegativeInt
from torch import Tensor


class Augmentation(BaseModel):
    """Training augmentation for small images: shift by up to `padding` pixels, mirror, blank out a square.

    Crop and flip as in He et al. 2016 (CIFAR-10); cutout as in DeVries & Taylor 2017: a square of side `cutout` whose
    centre is uniform over the image, clipped at its border. Pixels from outside the image and in the square are 0 (black).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    padding: NonNegativeInt = 4
    flip: bool = True
    cutout: NonNegativeInt = 0

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment images [N,C,H,W] of any dtype; every random number comes from `generator` (on the CPU)."""
        count, _, height, width = images.shape

        def draw(bound: int) -> Tensor:
            return torch.randint(bound, (count,), generator=generator).to(images.device)

        if self.padding:
            padded = F.pad(images, [self.padding] * 4)
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: [N,C,2p+1,2p+1,H,W]
            images = windows[torch.arange(count, device=images.device), :, draw(2 * self.padding + 1), draw(2 * self.padding + 1)]
        if self.flip:
            images = torch.where(draw(2).bool().view(-1, 1, 1, 1), images.flip(3), images)
        if self.cutout:
            rows, columns = _span(draw(height), height, self.cutout), _span(draw(width), width, self.cutout)
            images = images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)
        return images.contiguous()


def _span(centre: Tensor, length: int, size: int) -> Tensor:
    """Bool [N,length]: the `size` positions around each centre."""
    offset = torch.arange(length, device=centre.device) - (centre[:, None] - size // 2)
    return (offset >= 0) & (offset < size)

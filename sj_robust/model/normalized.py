"""An image classifier that takes images in [0,1]: the form in which ANNs are attacked, trained and evaluated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sj_robust.errors import SJRobustError
from sj_robust.model.images import checked_images


class NormalizedClassifier(nn.Module):
    """`backbone((x - mean) / std)`: images float [N,C,H,W] in [0,1] to logits [N,K].

    With the normalisation inside, eps and bounds of an attack are those of the images. `mean` and `std` (one value per channel) are
    buffers [C,1,1] outside the state dict: they describe the input, they are not learned.

    Raises:
        SJRobustError: `mean` and `std` differ in length or are empty, a value is not finite, a std is not positive;
            in `forward`, what `checked_images` does not take for images.
    """

    mean: Tensor
    std: Tensor
    classes: tuple[str, ...] | None = None
    """The names of the classes by label, where they are known: data is compared with them."""

    def __init__(self, backbone: nn.Module, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        means, stds = _floats(mean), _floats(std)
        if not means or len(means) != len(stds):
            raise SJRobustError(f"mean has {len(means)} values and std {len(stds)}: give one of each per image channel")
        if not all(map(math.isfinite, means + stds)) or min(stds) <= 0:
            raise SJRobustError(f"mean {means} and std {stds}: expected finite values and std above 0, for images in [0,1]")
        self.register_buffer("mean", torch.tensor(means).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(stds).view(-1, 1, 1), persistent=False)

    @property
    def num_classes(self) -> int:
        """The number of logits K."""
        return count_classes(self.backbone)

    def normalize(self, x: Tensor) -> Tensor:
        """Images in [0,1] to what the backbone takes, same shape."""
        return (checked_images(x, self.mean.shape[0], self.mean) - self.mean) / self.std

    def forward(self, x: Tensor) -> Tensor:
        """Images in [0,1] [N,C,H,W] to logits [N,K]."""
        return self.backbone(self.normalize(x))  # type: ignore[no-any-return]


def count_classes(backbone: nn.Module) -> int:
    """K of a classifier: its `num_classes` (every timm model has it), else the width of its last linear layer.

    Raises:
        SJRobustError: there is neither.
    """
    declared = getattr(backbone, "num_classes", None)
    if isinstance(declared, int) and declared > 0:
        return declared
    widths = [module.out_features for module in backbone.modules() if isinstance(module, nn.Linear)]
    if not widths:
        raise SJRobustError(f"{type(backbone).__name__} has neither num_classes nor a linear layer: set its num_classes attribute")
    return widths[-1]


def _floats(values: Sequence[float] | Tensor) -> list[float]:
    return [float(value) for value in (values.flatten() if isinstance(values, Tensor) else values)]

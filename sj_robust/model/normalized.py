"""An image classifier that takes images in [0,1]: the form in which ANNs are attacked, trained
and evaluated."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sj_robust.errors import SJRobustError
from sj_robust.model.images import checked_images
from sj_robust.model.mode import evaluation_mode


class NormalizedClassifier(nn.Module):
    """`backbone((x - mean) / std)`: images float [N,C,H,W] in [0,1] to logits [N,K].

    With the normalisation inside, eps and bounds of an attack are those of the images. `mean` and
    `std` are buffers [C,1,1] outside the state dict: they describe the input, they are not learned.

    Args:
        mean: one value per channel.
        std: one value per channel.
        num_classes: K, where it is known.

    Raises:
        SJRobustError: `mean` and `std` that `unit_scale` refuses; in `forward`, what
            `checked_images` does not take for images.
    """

    mean: Tensor
    std: Tensor
    classes: tuple[str, ...] | None = None
    """The names of the classes by label, where they are known: data is compared with them."""
    _num_classes: int | None = None

    def __init__(
        self,
        backbone: nn.Module,
        mean: Sequence[float] | Tensor,
        std: Sequence[float] | Tensor,
        *,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        means, stds = unit_scale(mean, std)
        self.register_buffer("mean", torch.tensor(means).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(stds).view(-1, 1, 1), persistent=False)
        self._num_classes = num_classes

    @property
    def num_classes(self) -> int:
        """The number of logits K.

        As a forward pass showed it to whoever set it, else by `count_classes`.

        Raises:
            SJRobustError: it is known in no way.
        """
        return self._num_classes or count_classes(self.backbone, self, len(self.mean))

    @num_classes.setter
    def num_classes(self, value: int) -> None:
        self._num_classes = value

    def normalize(self, x: Tensor) -> Tensor:
        """Images in [0,1] to what the backbone takes, same shape."""
        return (checked_images(x, self.mean.shape[0], self.mean) - self.mean) / self.std

    def forward(self, x: Tensor) -> Tensor:
        """Images [N,C,H,W] in [0,1] to logits [N,K]."""
        return self.backbone(self.normalize(x))  # type: ignore[no-any-return]


def unit_scale(mean: object, std: object) -> tuple[list[float], list[float]]:
    """Mean and std, one value per channel, of images in [0,1]. Those of images up to 255 are
    divided by 255, with a warning.

    Raises SJRobustError: no numbers, lengths that differ, and what no images have: a mean outside
    of [0,1], a std of 0 or less, or above 1.
    """
    means, stds = _floats("mean", mean), _floats("std", std)
    if not means or len(means) != len(stds):
        raise SJRobustError(
            f"mean has {len(means)} values and std {len(stds)}: give one of each per image channel"
        )
    if 1 < max(means) <= 255 and 1 <= min(stds) and max(stds) <= 255:
        scaled = [value / 255 for value in means], [value / 255 for value in stds]
        warnings.warn(
            f"mean {_short(means)} and std {_short(stds)} are of images up to 255: divided by 255,"
            f" {_short(scaled[0])} and {_short(scaled[1])}, for images in [0,1]",
            stacklevel=3,
        )
        means, stds = scaled
    # False for NaN
    if not (all(0 <= value <= 1 for value in means) and all(0 < value <= 1 for value in stds)):
        raise SJRobustError(
            f"mean {_short(means)} and std {_short(stds)}: expected finite values for images in"
            " [0,1], a mean from 0 to 1 and a std above 0, at most 1 (0 and 1 where the network"
            " normalises for itself)"
        )
    return means, stds


SIZES = (32, 28, 64, 224)  # of images, tried where nothing says for which a network is made


def count_classes(backbone: nn.Module, model: nn.Module | None = None, channels: int = 3) -> int:
    """K of a classifier: its `num_classes` (every timm model has it), else what a forward pass of
    `model` (default: of itself) on images [N,`channels`,H,W] shows, else, where none succeeds,
    the width of its last linear layer.

    Raises:
        SJRobustError: there is none of these.
    """
    declared = getattr(backbone, "num_classes", None)
    if isinstance(declared, int) and declared > 0:
        return declared
    weights = list(backbone.parameters())
    for size in SIZES if weights else ():
        try:
            return count_logits(
                model or backbone,
                torch.zeros(
                    2, channels, size, size, device=weights[0].device, dtype=weights[0].dtype
                ),
            )
        except Exception:  # whatever a network does with images of another size than its own
            continue
    widths = [module.out_features for module in backbone.modules() if isinstance(module, nn.Linear)]
    if not widths:
        raise SJRobustError(
            f"{type(backbone).__name__} has neither num_classes nor a linear layer: set its"
            " num_classes attribute"
        )
    return widths[-1]


@torch.no_grad()
def count_logits(model: nn.Module, images: Tensor) -> int:
    """K, read off one forward pass of `images` [N,C,H,W] in eval mode.

    Raises SJRobustError where it returns anything but logits [N,K], and whatever a forward pass
    raises.
    """
    with evaluation_mode(model), torch.random.fork_rng(devices=[]):
        logits = model(images)
    if not (isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == len(images)):
        found = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise SJRobustError(
            f"{type(model).__name__} returns {found} for images {list(images.shape)}: expected"
            " logits [N,K] alone"
        )
    return int(logits.shape[1])


def _floats(name: str, values: object) -> list[float]:
    try:
        found: list[float] = torch.as_tensor(values, dtype=torch.float64).flatten().tolist()  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        raise SJRobustError(
            f"{name} is {values!r}: expected a number for each image channel"
        ) from None
    return found


def _short(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]

"""Common corruptions of images at five severities, made as CIFAR-10-C was (Hendrycks & Dietterich,
ICLR 2019).

Our own code with the constants of the authors' `make_cifar_c.py`. The images are not the published
files: other random numbers, and an accuracy measured on one need not agree with the other. Written
anew because of the two packages that make them `imagecorruptions` had its last release in 2020 and
`imagecorruptions-imaug` pulls in OpenCV and numba.

`frost` is left out: it lays photographs of the authors over the image. The constants are CIFAR's,
for 32×32: a blur of one pixel stays one pixel, and is mild, on a larger image. Only fog and
elastic_transform grow with the image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sj_robust.data.corruptions.draws import Draws
from sj_robust.data.corruptions.kinds import KINDS
from sj_robust.errors import SJRobustError

CORRUPTIONS = tuple(KINDS)
"""The names, in the order of the paper."""

SEVERITIES = (1, 2, 3, 4, 5)

__all__ = ["CORRUPTIONS", "SEVERITIES", "check_kind", "corrupt"]

_SMALLEST = 8  # the mesh of elastic_transform has no area on images much smaller


@torch.no_grad()
def corrupt(
    x: Tensor, name: str, severity: int, *, seed: int = 0, ids: Tensor | None = None
) -> Tensor:
    """`x` float32 [N, C, H, W] in [0, 1], C = 1 or 3 → the same shape, corrupted, every value a
    multiple of 1/255.

    `x` is taken at 8 bits too, as from a file. Random corruptions are a pure function of (seed,
    image id, name, severity): `ids` int64 [N] names the images, default 0 … N−1, so that neither
    the batch nor its order matters. Everything is computed on the CPU and the result is on the
    device of `x`, so that the device does not matter either.

    The published files cut the last digits off where we round: they are darker by half a level.

    Raises SJRobustError on an unknown name or severity, a negative seed or id, and images of
    another kind.
    """
    check_kind(name, severity)
    _check_images(x)
    numbers = list(range(len(x))) if ids is None else [int(number) for number in ids]
    if len(numbers) != len(x):
        raise SJRobustError(f"{len(numbers)} ids for {len(x)} images: expected one for each")
    if seed < 0 or min(numbers, default=0) < 0:
        raise SJRobustError(f"seed {seed}, ids from {min(numbers, default=0)}: expected 0 or more")
    if not len(x):
        return x.clone()
    function, constants = KINDS[name]
    levels = x.detach().cpu().double().mul(255).round()
    corrupted = function(levels, constants[severity - 1], Draws(name, severity, seed, numbers))
    return corrupted.round().clamp(0, 255).float().div(255).contiguous().to(x.device)


def check_kind(name: str, severity: int) -> None:
    """Raises SJRobustError unless there is such a corruption and severity."""
    if name == "frost":
        raise SJRobustError(
            "frost is not offered: it needs photographs of the authors; leave it out"
        )
    if name not in KINDS:
        raise SJRobustError(
            f"unknown corruption {name!r}: expected one of {', '.join(CORRUPTIONS)}"
        )
    if not isinstance(severity, int) or severity not in SEVERITIES:
        raise SJRobustError(f"severity is {severity!r}: expected a whole number, 1 (mild) to 5")


def _check_images(x: Tensor) -> None:
    if (
        x.dtype != torch.float32
        or x.dim() != 4
        or x.shape[1] not in (1, 3)
        or min(x.shape[2:]) < _SMALLEST
    ):
        raise SJRobustError(
            f"images are {x.dtype} {list(x.shape)}: expected float32 [N, C, H, W] with C 1 or 3, at"
            f" least {_SMALLEST}×{_SMALLEST}"
        )
    if not ((x >= 0) & (x <= 1)).all():  # false for NaN
        raise SJRobustError("images are not in [0, 1], or not finite: divide bytes by 255")

"""One image of a file, as a network takes it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sj_robust.data.decode import Square, decode_images
from sj_robust.data.stream import in_channels
from sj_robust.errors import SJRobustError


def load_image(
    path: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    resize: int | None = None,
    channels: Literal[1, 3] = 3,
) -> Tensor:
    """The image in `path` (PNG, JPEG, WebP and the like): float32 [`channels`, H, W] in [0, 1].

    Args:
        image_size: as of `load_dataset`, with `resize` and `channels`; without a size the image
            stays as large as it is.

    Raises:
        SJRobustError: there is no such file, or no image in it.
    """
    square, file = Square.of(image_size, resize), Path(path)
    # a pipe may never end
    if not os.path.isfile(file):
        what = "is no regular file" if os.path.exists(file) else "does not exist"
        raise SJRobustError(f"{file} {what}: expected an image, such as a PNG or JPEG")
    pixels = decode_images([file], 1, square=square, place=lambda _: str(file))
    return in_channels(torch.from_numpy(pixels), channels)[0].float().div_(255)

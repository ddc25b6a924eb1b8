"""The adversarial images that an evaluation found, a file each, for who wants to look at them or to
check them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from sj_robust.files import check_within, write_atomic

Keep = Callable[[str, Tensor, Tensor], None]


def keep_in(folder: str | os.PathLike[str]) -> Keep:
    """What writes adversarial images x_adv [n, C, H, W] found at an eps (as `eps_name` has it) of
    the images `chosen` int64 [n] to FOLDER/EPS/INDEX.npy, float32 [C, H, W] in [0, 1].

    The / of an eps becomes a -, as in 8-255. Raises SJRobustError where nothing can be written.
    """
    root = Path(folder)
    check_within(root)

    def keep(eps: str, chosen: Tensor, x_adv: Tensor) -> None:
        target = root / eps.replace("/", "-")
        target.mkdir(parents=True, exist_ok=True)
        for image, adversarial in zip(chosen.tolist(), x_adv.float().cpu().numpy(), strict=True):
            content = io.BytesIO()
            np.save(content, adversarial)
            write_atomic(target / f"{image:06d}.npy", content.getvalue())

    return keep

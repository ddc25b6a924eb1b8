"""How good a model is on the images held out from training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sj_robust.attack import PGD, evaluation_mode
from sj_robust.bounds import margin_bounds
from sj_robust.data import ImageDataset
from sj_robust.distributed import ALONE, Team
from sj_robust.model.layout import layout_of
from sj_robust.training.config import TrainConfig
from sj_robust.training.state import Validation


def validate(
    model: nn.Module,
    held_out: ImageDataset,
    config: TrainConfig,
    step: int,
    interrupted: Callable[[], bool] = lambda: False,
    team: Team = ALONE,
) -> Validation | None:
    """Clean accuracy, and (unless the method is natural) accuracy that survives a short PGD at the
    training eps through the model's own gradient; with ibp, accuracy that interval bounds certify
    there. The noise is that of the images, the same at every validation. The team shares the
    images. None where `interrupted` says stop."""
    attack = PGD(eps=config.eps, steps=config.validation_steps)
    device, layout = next(model.parameters()).device, layout_of(model)
    clean = robust = stop = 0.0
    with evaluation_mode(model):
        for ids in torch.arange(len(held_out)).split(config.batch_size // team.count)[
            team.rank :: team.count
        ]:
            if stop := interrupted():
                break
            x, y = (
                held_out.floats(ids).to(device, memory_format=layout),
                held_out.labels[ids].to(device),
            )
            right = _right(model, x, y)
            clean += int(right.sum())
            if config.method == "ibp":
                margins = margin_bounds(model, x, y, config.eps)
                robust += int((right & (margins.amin(1) > 0)).sum())
            elif config.method != "natural":
                robust += int(
                    (
                        right
                        & _right(
                            model, attack(model, x, y, seed=config.seed, ids=ids.to(device)), y
                        )
                    ).sum()
                )
    clean, robust, stop = team.totals(clean, robust, stop)
    if stop:
        return None
    return Validation(
        step=step,
        clean=clean / len(held_out),
        robust=None if config.method == "natural" else robust / len(held_out),
    )


@torch.no_grad()
def _right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return model(x).argmax(1) == y

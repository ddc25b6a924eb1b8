"""Training: natural, PGD, TRADES and MART for ANNs and SNNs, interval bounds for ANNs, purifiers;
resumable to the bit, on one process or several."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sj_robust.lazy import imported_on_use

if TYPE_CHECKING:
    from sj_robust.training.config import PRESETS as PRESETS
    from sj_robust.training.config import TrainConfig as TrainConfig
    from sj_robust.training.config import learning_rate as learning_rate
    from sj_robust.training.config import preset as preset
    from sj_robust.training.config import validated as validated
    from sj_robust.training.purifier import train_purifier as train_purifier
    from sj_robust.training.run import TrainResult as TrainResult
    from sj_robust.training.run import finetune as finetune
    from sj_robust.training.run import train_ann as train_ann
    from sj_robust.training.state import Validation as Validation

_HOME = {
    "config": ("PRESETS", "TrainConfig", "learning_rate", "preset", "validated"),
    "purifier": ("train_purifier",),
    "run": ("TrainResult", "finetune", "train_ann"),
    "state": ("Validation",),
}

__all__ = [
    "PRESETS",
    "TrainConfig",
    "TrainResult",
    "Validation",
    "finetune",
    "learning_rate",
    "preset",
    "train_ann",
    "train_purifier",
    "validated",
]

__getattr__ = imported_on_use(__name__, _HOME)

"""Training: natural, PGD, TRADES and MART for ANNs and SNNs, resumable to the bit, on one process
or several."""

from sj_robust.training.config import PRESETS, TrainConfig, learning_rate, preset, validated
from sj_robust.training.run import TrainResult, finetune, train_ann
from sj_robust.training.state import Validation

__all__ = [
    "PRESETS",
    "TrainConfig",
    "TrainResult",
    "Validation",
    "finetune",
    "learning_rate",
    "preset",
    "train_ann",
    "validated",
]

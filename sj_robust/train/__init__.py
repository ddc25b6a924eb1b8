"""Training: natural, PGD, TRADES and MART for ANNs and SNNs, resumable to the bit, on one process
or several."""

from sj_robust.train.checkpoint import Validation
from sj_robust.train.config import PRESETS, TrainConfig, learning_rate, preset, validated
from sj_robust.train.run import TrainResult, finetune, train_ann

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

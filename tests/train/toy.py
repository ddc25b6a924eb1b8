"""Small data and nets on which training takes a second, and a run in a process of its own: `python toy.py FOLDER CASE`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from sj_robust.data import ImageDataset
from sj_robust.model import NormalizedClassifier, SpikingActivation, SpikingClassifier
from sj_robust.neuron import ThresholdLIF
from sj_robust.train import TrainConfig, TrainResult, finetune, preset, train_ann

TIMESTEPS = 3


def patterns(count: int = 320, seed: int = 0) -> ImageDataset:
    """Four random 8x8 patterns under noise."""
    labels = torch.arange(count) % 4
    prototypes = torch.randint(60, 200, (4, 3, 8, 8), generator=torch.Generator().manual_seed(99))
    noise = torch.randint(-50, 51, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed))
    return ImageDataset((prototypes[labels] + noise).clamp(0, 255).to(torch.uint8), labels, tuple("abcd"), "patterns", "train")


def ann(seed: int = 0, dropout: float = 0.1) -> NormalizedClassifier:
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(4),
                             nn.Flatten(), nn.Dropout(dropout), nn.Linear(32, 4))
    return NormalizedClassifier(backbone, (0.5,) * 3, (0.25,) * 3)


def snn(seed: int = 0, threshold: float = 0.5) -> SpikingClassifier:
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8),
                             SpikingActivation(ThresholdLIF(threshold), TIMESTEPS), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(32, 4))
    return SpikingClassifier(backbone, timesteps=TIMESTEPS, mean=(0.5,) * 3, std=(0.25,) * 3)


def config(kind: str = "ann", **changes: object) -> TrainConfig:
    """A few short epochs of 8 steps, logged at each step."""
    short = {"epochs": 5, "batch_size": 32, "validation": 64, "validation_steps": 2, "augmentation": "none", "log_every": 1}
    return preset(kind, **{**short, **changes})


# Runs that are killed and resumed: (kind, config). Long enough to be caught in the middle.
CASES = {
    "ann-saved-each-step": ("ann", config(method="pgd", epochs=12.5, ema=0.9, augmentation="crop-flip", checkpoint_minutes=1e-9,
                                          log_every=3)),
    "snn-saved-each-epoch": ("finetune", config("finetune", epochs=8, validate_every=0.4)),
}


def run_case(case: str, folder: Path, resume: bool = False) -> TrainResult:
    kind, settings = CASES[case]
    return finetune(snn(), patterns(), settings, folder, resume=resume) if kind == "finetune" else train_ann(
        ann(), patterns(), settings, folder, resume=resume)


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        run_case(sys.argv[2], Path(sys.argv[1]))
    except KeyboardInterrupt:
        print("interrupted")
        sys.exit(130)

"""Small data and nets on which training takes a second, and a run in a process of its own: `python
toy.py FOLDER CASE`."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from signal import SIGINT, SIGKILL

import torch
from timm.layers import BatchNormAct2d
from torch import nn

from sj_robust.data import ImageDataset
from sj_robust.errors import SJRobustError
from sj_robust.model import NormalizedClassifier, SpikingActivation, SpikingClassifier
from sj_robust.neuron import ThresholdLIF
from sj_robust.training import TrainConfig, TrainResult, finetune, preset, train_ann

TIMESTEPS = 3


def patterns(count: int = 320, seed: int = 0) -> ImageDataset:
    """Four random 8x8 patterns under noise."""
    labels = torch.arange(count) % 4
    prototypes = torch.randint(60, 200, (4, 3, 8, 8), generator=torch.Generator().manual_seed(99))
    noise = torch.randint(-50, 51, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed))
    return ImageDataset(
        (prototypes[labels] + noise).clamp(0, 255).to(torch.uint8),
        labels,
        tuple("abcd"),
        "patterns",
        "train",
    )


def ann(seed: int = 0, dropout: float = 0.1) -> NormalizedClassifier:
    torch.manual_seed(seed)
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(32, 4),
    )
    return NormalizedClassifier(backbone, (0.5,) * 3, (0.25,) * 3)


def snn(seed: int = 0, threshold: float = 0.5) -> SpikingClassifier:
    torch.manual_seed(seed)
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        SpikingActivation(ThresholdLIF(threshold), TIMESTEPS),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32, 4),
    )
    return SpikingClassifier(backbone, timesteps=TIMESTEPS, mean=(0.5,) * 3, std=(0.25,) * 3)


def config(kind: str = "ann", **changes: object) -> TrainConfig:
    """A few short epochs of 8 steps, logged at each step."""
    short = {
        "epochs": 5,
        "batch_size": 32,
        "validation": 64,
        "validation_steps": 2,
        "augmentation": "none",
        "log_every": 1,
    }
    return preset(kind, **{**short, **changes})


def stemmed_snn() -> SpikingClassifier:
    """An SNN whose first layers see the image once and not T times, as conversion leaves them."""
    model = snn()
    model.repeat_at = "2"
    model.backbone.insert(4, nn.BatchNorm2d(8))  # behind the node: this one sees T·N images
    return model


def timm_ann() -> NormalizedClassifier:
    """With timm's own batch norm, and no dropout."""
    model = ann(dropout=0.0)
    model.backbone[1] = BatchNormAct2d(8)
    return model


# Runs that are killed and resumed, or shared by processes: (network, config). The first two are
# long enough to be caught in the middle.
CASES: dict[str, tuple[Callable[[], NormalizedClassifier], TrainConfig]] = {
    "ann-saved-each-step": (
        ann,
        config(
            method="pgd",
            epochs=12.5,
            ema=0.9,
            augmentation="crop-flip",
            checkpoint_minutes=1e-9,
            log_every=3,
        ),
    ),
    "snn-saved-each-epoch": (snn, config("finetune", epochs=8, validate_every=0.4, ema=0.9)),
    "snn-shared": (
        stemmed_snn,
        config("finetune", epochs=1, validate_every=0.5, ema=0.9, checkpoint_minutes=1e-9),
    ),
    "ann-shared": (
        timm_ann,
        config(
            method="mart",
            attack_steps=2,
            epochs=1,
            augmentation="resized-crop-flip",
            crop_scale=0.35,
            checkpoint_minutes=1e-9,
        ),
    ),
}


def run_case(
    case: str, folder: Path, resume: bool = False, stop_at: int | None = None, signal: int = SIGINT
) -> TrainResult:
    """Train; with `stop_at`, this process gets `signal` in its training-mode forward pass number
    `stop_at`, from 0."""
    make, settings = CASES[case]
    model = make()
    if stop_at is not None:
        passes = itertools.count()

        def count(*_: object) -> None:
            if model.training and next(passes) == stop_at:
                os.kill(os.getpid(), signal)

        model.register_forward_pre_hook(count)
    return (finetune if isinstance(model, SpikingClassifier) else train_ann)(
        model, patterns(), settings, folder, resume=resume
    )


def main(folder: str, case: str, *more: str) -> None:
    """One case in `folder`; or several, each in a folder of its name, resumed. `--kill RANK:STEP`
    kills that process in that step."""
    torch.set_num_threads(1)
    if "--kill" in more:
        rank, step = more[1].split(":")
        run_case(
            case,
            Path(folder),
            stop_at=int(step) if os.environ["RANK"] == rank else None,
            signal=SIGKILL,
        )
    elif more:
        for each in (case, *more):
            run_case(each, Path(folder) / each, resume=True)
    else:
        run_case(case, Path(folder))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        print("interrupted")
        sys.exit(130)
    except SJRobustError as error:
        sys.exit(f"sj-robust: {error}")

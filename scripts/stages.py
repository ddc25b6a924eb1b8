"""The networks that a script makes, each in a folder of its own: one that is there is taken where
it was made of just the same, and refused where it was not."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from sj_robust import SJRobustError, finetune, load, save, train_ann
from sj_robust.data import MEAN_STD, ImageDataset
from sj_robust.files import sha256, write_atomic
from sj_robust.model import NormalizedClassifier, SpikingClassifier, create_ann
from sj_robust.recipes.spec import CalibratedConversion
from sj_robust.recipes.steps import convert_with, training_folder
from sj_robust.settings import checked
from sj_robust.training import TrainConfig


def done(folder: Path, **of: Any) -> bool:
    """Whether the network is there, made of just this; from now on it is.

    Raises:
        SJRobustError: it is there, made of something else.
    """
    path, text = folder.with_name(f"{folder.name}.made-of.json"), json.dumps(of, indent=2)
    if not folder.exists():
        write_atomic(path, text)
        return False
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if other := [key for key, value in json.loads(text).items() if found.get(key) != value]:
        raise SJRobustError(
            f"{folder} was made with {other[0]} {found.get(other[0])}, expected"
            f" {of[other[0]]}; give another --out, or delete it"
        )
    return True


def weights(folder: Path) -> str:
    """The hash of those of a network."""
    return sha256(folder / "model.safetensors")


def trained(
    folder: Path,
    train: ImageDataset,
    config: TrainConfig,
    architecture: str,
    arguments: dict[str, Any] | None = None,
    images: str | None = None,
) -> NormalizedClassifier:
    """An ANN from random weights, those of the config's seed. images: what names `train` where that
    is not made."""
    arguments = arguments or {}
    facts = {"images": images or train.fingerprint, "architecture": architecture, **arguments}
    if not done(folder, **facts, **config.model_dump(mode="json")):
        torch.manual_seed(config.seed)
        backbone = create_ann(architecture, len(train.classes), **arguments)
        ann = NormalizedClassifier(backbone, *MEAN_STD["cifar10"])
        result = train_ann(ann, train, config, training_folder(folder), resume=True)
        save(ann, folder, training=result, classes=train.classes)
    ann = load(folder)
    assert isinstance(ann, NormalizedClassifier)
    return ann


def converted(
    folder: Path,
    source: Path,
    train: ImageDataset,
    fields: dict[str, Any],
    images: str | None = None,
) -> SpikingClassifier:
    """The ANN at `source` with the settings `fields` of a conversion."""
    facts = {"images": images or train.fingerprint, "source": weights(source)}
    if not done(folder, **facts, **fields):
        ann = load(source)
        assert isinstance(ann, NormalizedClassifier)
        snn = convert_with(ann, train, checked(CalibratedConversion, fields))
        save(snn, folder, classes=train.classes)
    return spiking(folder)


def finetuned(
    folder: Path, source: Path, train: ImageDataset, config: TrainConfig
) -> SpikingClassifier:
    """The spiking network at `source` after training."""
    facts = {"images": train.fingerprint, "source": weights(source)}
    if not done(folder, **facts, **config.model_dump(mode="json")):
        snn = spiking(source)
        result = finetune(snn, train, config, training_folder(folder), resume=True)
        save(snn, folder, training=result, classes=train.classes)
    return spiking(folder)


def spiking(folder: Path) -> SpikingClassifier:
    """The network there, which spikes."""
    snn = load(folder)
    assert isinstance(snn, SpikingClassifier)
    return snn


def add_precision(parser: argparse.ArgumentParser) -> None:
    """The option of that name, for the trainings."""
    parser.add_argument(
        "--precision",
        choices=["float32", "bf16", "fp16"],
        help="of the trainings; bf16 takes a third of the time on processors with AMX",
    )

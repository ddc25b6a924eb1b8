"""Real checkpoints, made once: a small robustness measurement of a CIFAR ResNet and of the spiking
network converted from it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sj_robust import convert, evaluate, load_dataset, save
from sj_robust.model import NormalizedClassifier, create_ann

__all__ = [
    "ann",
    "ann_checkpoint",
    "checkpoint",
    "dataset",
    "edit",
    "put_weights",
    "reports",
    "saved",
    "snn",
]

EPS = (1 / 255, 2 / 255, 8 / 255)
TRAINING = {
    "dataset": "sample",
    "images": 2000,
    "steps": 7,
    "seconds": 3.5,
    "config": {"method": "trades-rfgsm", "eps": 4 / 255, "lr": 0.02},
}


@pytest.fixture(scope="session")
def dataset() -> Any:
    return load_dataset("sample", "test").first(16)


@pytest.fixture(scope="session")
def ann() -> NormalizedClassifier:
    torch.manual_seed(0)
    return NormalizedClassifier(
        create_ann("cifar_resnet20", 10), (0.5, 0.4, 0.5), (0.25, 0.2, 0.25)
    ).eval()


@pytest.fixture(scope="session")
def snn(ann: NormalizedClassifier, dataset: Any) -> Any:
    return convert(ann, dataset.floats()[None], 3, calibration_timesteps=5)


@pytest.fixture(scope="session")
def reports(ann: NormalizedClassifier, snn: Any, dataset: Any) -> tuple[Any, Any]:
    """(of the ANN, of the SNN)"""
    settings = dict(eps=EPS, attacks=("fgsm",), show_progress=False)
    return evaluate(ann, dataset, **settings), evaluate(
        snn, dataset, views=("PCW:1", "rate"), **settings
    )


@pytest.fixture(scope="session")
def saved(
    ann: NormalizedClassifier,
    snn: Any,
    reports: tuple[Any, Any],
    dataset: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with the checkpoints `ann` and `snn`."""
    folder = tmp_path_factory.mktemp("saved")
    save(ann, folder / "ann", report=reports[0], classes=dataset.classes)
    save(
        snn,
        folder / "snn",
        report=reports[1],
        source_report=reports[0],
        training=TRAINING,
        recipe="name: snn\ndataset: sample\n",
        classes=dataset.classes,
        license="mit",
        base_model="someone/resnet20.cifar10",
    )
    return folder


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """A copy of the spiking checkpoint, to be damaged."""
    return Path(shutil.copytree(saved / "snn", tmp_path / "snn"))


@pytest.fixture
def ann_checkpoint(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved / "ann", tmp_path / "ann"))


@pytest.fixture
def edit() -> Callable[[Path, Callable[[dict[str, Any]], None]], None]:
    """Change the config.json of a checkpoint in place."""

    def change(folder: Path, how: Callable[[dict[str, Any]], None]) -> None:
        config = json.loads((folder / "config.json").read_text())
        how(config)
        (folder / "config.json").write_text(json.dumps(config))

    return change


@pytest.fixture
def put_weights(edit: Any) -> Callable[[Path, bytes], None]:
    """Replace the weights and record their new size and hash, as someone would who wants the damage
    to go unseen."""

    def put(folder: Path, content: bytes) -> None:
        (folder / "model.safetensors").write_bytes(content)
        edit(
            folder,
            lambda config: config["weights"].update(
                bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
            ),
        )

    return put

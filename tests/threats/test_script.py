"""Scripts take from their folder what was made of the same, and nothing else."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sj_robust import SJRobustError
from sj_robust.data import ImageDataset
from sj_robust.model import NormalizedClassifier
from sj_robust.threats import ThreatReport, measure_threats

POISON = "patch:2:rate=0.05:target=3"


SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("backdoors")


def test_a_network_of_other_settings_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    script = importlib.import_module("stages")
    folder = tmp_path / "ann"
    assert not script.done(folder, epochs=1.0, source="a")
    assert not script.done(folder, epochs=2.0, source="a")  # nothing was made of the first
    folder.mkdir()
    assert script.done(folder, epochs=2.0, source="a")
    with pytest.raises(SJRobustError, match=r"with epochs 2.0, expected 1.0; give another --out"):
        script.done(folder, epochs=1.0, source="a")
    with pytest.raises(SJRobustError, match="with source a, expected b"):
        script.done(folder, epochs=2.0, source="b")


def test_another_network_or_setting_is_measured_again(
    script: Any,
    clean: ImageDataset,
    test_images: ImageDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def network(seed: int) -> NormalizedClassifier:
        torch.manual_seed(seed)
        backbone = nn.Sequential(nn.Flatten(), nn.Linear(432, 12), nn.ReLU(), nn.Linear(12, 8))
        return NormalizedClassifier(backbone, (0.5,) * 3, (0.25,) * 3)

    made: list[ThreatReport] = []

    def measure(*args: Any, **settings: Any) -> ThreatReport:
        made.append(measure_threats(*args, **settings))
        return made[-1]

    monkeypatch.setattr(script, "measure_threats", measure)
    options = {"cleanse_steps": 1, "detector_images": 120}

    def measured(model: nn.Module, train: ImageDataset, test: ImageDataset, **other: int) -> None:
        found = argparse.Namespace(**options | other)
        report = script.measured(tmp_path / "ann", model, POISON, train, test, found)
        assert report == made[-1]

    model = network(0)
    measured(model, clean, test_images)
    measured(model, clean, test_images)
    assert len(made) == 1
    measured(network(1), clean, test_images)
    measured(model, clean, test_images)
    measured(model, clean, test_images, cleanse_steps=2)
    measured(model, clean, test_images, detector_images=160)
    measured(model, clean.first(400), test_images)
    measured(model, clean, test_images.first(100))
    assert len(made) == 7

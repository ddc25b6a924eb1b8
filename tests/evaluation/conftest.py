"""One small network for all tests here: trained on real images, converted by the real
conversion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sj_robust.conversion import convert
from sj_robust.data import MEAN_STD, ImageDataset, load_dataset
from sj_robust.model import NormalizedClassifier, SpikingClassifier

CLASSES = 4


@pytest.fixture(scope="session")
def dataset() -> ImageDataset:
    """160 real images of four classes, at 8×8 so that the tests take seconds."""
    sample = load_dataset("sample", "train")
    chosen = sample.subset((sample.labels < CLASSES).nonzero().flatten()[:160])
    small = F.avg_pool2d(chosen.images.float(), 4).round().to(torch.uint8)
    return replace(
        chosen, images=small, classes=chosen.classes[:CLASSES], name="small", split="test"
    )


@pytest.fixture(scope="session")
def trained_ann(dataset: ImageDataset) -> NormalizedClassifier:
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, CLASSES),
    )
    model = NormalizedClassifier(backbone, *MEAN_STD["sample"])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    x, y = dataset.floats(), dataset.labels
    for _ in range(40):
        loss = F.cross_entropy(model(x + 0.03 * torch.randn_like(x)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def trained_snn(trained_ann: NormalizedClassifier, dataset: ImageDataset) -> SpikingClassifier:
    return convert(
        trained_ann,
        dataset.floats().view(2, 80, 3, 8, 8),
        timesteps=4,
        calibration_timesteps=20,
        scale=0.6,
    ).eval()


@pytest.fixture
def ann(trained_ann: NormalizedClassifier) -> Iterator[NormalizedClassifier]:
    with untouched(trained_ann):
        yield trained_ann


@pytest.fixture
def snn(trained_snn: SpikingClassifier) -> Iterator[SpikingClassifier]:
    with untouched(trained_snn):
        yield trained_snn


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Fail the test that leaves a network other than it was, not the one that comes after it."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    yield
    changed = [name for name, value in model.state_dict().items() if not value.equal(before[name])]
    assert not changed
    assert not any(module.training for module in model.modules())

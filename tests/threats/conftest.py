"""A made-up data set whose classes are spread over the whole image, and a network with a backdoor
in it: so a small trigger is no class's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sj_robust.conversion import convert
from sj_robust.data import ImageDataset
from sj_robust.model import NormalizedClassifier, SpikingClassifier
from sj_robust.threats import Poisoned, poisoned

CLASSES, SIZE, TARGET = 8, 12, 3
POISON = f"patch:2:rate=0.05:target={TARGET}"


def made(count: int, seed: int) -> ImageDataset:
    """Each class is a smooth pattern, under noise."""
    patterns = torch.rand(CLASSES, 3, 4, 4, generator=torch.Generator().manual_seed(7))
    smooth = F.interpolate(patterns, SIZE, mode="bilinear", align_corners=True)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    noise = torch.rand(count, 3, SIZE, SIZE, generator=generator)
    images = (0.5 * smooth[labels] + 0.5 * noise).mul(255).round().to(torch.uint8)
    names = tuple(f"pattern {label}" for label in range(CLASSES))
    return ImageDataset(images, labels, names, "patterns", "train")


@pytest.fixture(scope="session")
def clean() -> ImageDataset:
    return made(640, seed=0)


@pytest.fixture(scope="session")
def test_images() -> ImageDataset:
    return replace(made(160, seed=1), split="test")


@pytest.fixture(scope="session")
def training(clean: ImageDataset) -> Poisoned:
    return poisoned(clean, POISON, seed=0)


@pytest.fixture(scope="session")
def train() -> Callable[[ImageDataset], NormalizedClassifier]:
    """Train a network on a data set of this kind, from the same start."""
    return trained


@pytest.fixture(scope="session")
def backdoored(training: Poisoned) -> NormalizedClassifier:
    return trained(training.dataset)


@pytest.fixture(scope="session")
def snn(backdoored: NormalizedClassifier, clean: ImageDataset) -> SpikingClassifier:
    calibration = clean.floats()[:256].view(2, 128, 3, SIZE, SIZE)
    return convert(backdoored, calibration, timesteps=3, calibration_timesteps=16, reset="soft")


def trained(dataset: ImageDataset, epochs: int = 20) -> NormalizedClassifier:
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * SIZE * SIZE // 4, 48),
        nn.ReLU(),
        nn.Linear(48, CLASSES),
    )
    model = NormalizedClassifier(backbone, (0.5,) * 3, (0.25,) * 3)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3, weight_decay=1e-4)
    x, y = dataset.floats(), dataset.labels
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            loss = F.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    optimizer.zero_grad()
    return model.eval()

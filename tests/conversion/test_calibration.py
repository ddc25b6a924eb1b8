"""Calibration images in the forms in which users have them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from sj_robust import SJRobustError, convert
from sj_robust.data import ImageDataset

X = torch.linspace(0, 1, 8 * 3 * 8 * 8).view(8, 3, 8, 8)
Y = torch.arange(8) % 3
BATCHES = X.unflatten(0, (2, 4))


def converted(calibration: Any) -> dict[str, float]:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 3),
    )
    return convert(
        nn.Sequential(*layers).eval(),
        calibration,
        2,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        calibration_timesteps=4,
    ).thresholds()


class Mappings(Dataset):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        return {"pixel_values": X[index], "label": int(Y[index])}


def pairs() -> Any:
    return zip(X.split(4), Y.split(4), strict=True)


@pytest.mark.parametrize(
    "calibration",
    [
        DataLoader(TensorDataset(X, Y), 4),
        DataLoader(TensorDataset(X), 4),
        DataLoader(Mappings(), 4),
        list(pairs()),
        pairs(),
        tuple(pairs()),
        (batch for batch in BATCHES),
        BATCHES.numpy(),
        BATCHES.double(),
        list(BATCHES),
        list(BATCHES.numpy()),
    ],
    ids=lambda given: type(given).__name__,
)
def test_batches_in_any_form_give_the_same_thresholds(calibration: Any) -> None:
    assert converted(calibration) == converted(BATCHES)


@pytest.mark.parametrize(
    "calibration",
    [X, X.numpy(), [X], (X, Y), [X, Y], (X.numpy(), Y.numpy())],
    ids=lambda given: type(given).__name__,
)
def test_one_batch_is_one(calibration: Any) -> None:
    assert converted(calibration) == converted(X[None])


def test_half_precision_is_read_as_floats() -> None:
    for given in (BATCHES.half(), BATCHES.bfloat16()):
        assert converted(given) == pytest.approx(converted(BATCHES), rel=0.05)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (None, "calibration is a NoneType"),
        (5, "calibration is a int"),
        ("cifar10", "calibration is a str"),
        ({"image": X}, "is a dict"),
        (
            ImageDataset((X * 255).byte(), Y, tuple("abc"), "mine", "train"),
            r"is a ImageDataset: .*calibration_batches\(dataset",
        ),
        ([], "needs calibration images"),
        (iter(()), "needs calibration images"),
        ([X[:0]], r"shape \[0, 3, 8, 8\]"),
        ([None], "holds a NoneType"),
        (list(zip(X, Y, strict=True)), r"shape \[3, 8, 8\].*DataLoader"),
        (X[0], r"shape \[8, 8\]"),
        ((X * 255).byte()[None], "uint8.*divide by 255"),
        (X[None] * 255, "reach from 0 to 255"),
        (X[None] * 2 - 1, "reach from -1 to 1"),
        (X[None] * torch.nan, "reach from nan"),
        (X.permute(0, 2, 3, 1), "permute"),
        (X[None, :, :1], r"\[N,3,H,W\]"),
        (itertools.cycle([X]), "more than 10000 images"),
        (np.array(["a", "b"]), "calibration holds a"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_anything_else_is_one_line(calibration: Any, message: str) -> None:
    with pytest.raises(SJRobustError, match=message) as refusal:
        converted(calibration)
    assert "\n" not in str(refusal.value)

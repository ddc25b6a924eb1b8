"""Calibration images in the forms in which users have them."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from sj_robust import SJRobustError, convert
from sj_robust.conversion import balance
from sj_robust.conversion.room import free_bytes
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


def test_what_does_not_fit_into_memory_is_refused_before_it_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The system would end the process without a word."""
    needed = 4 * 4 * 8 * 8 * 4  # bytes of one waiting batch of 4 at the only node
    monkeypatch.setattr(balance, "free_bytes", lambda: needed)
    converted(BATCHES)  # one other waits
    monkeypatch.setattr(balance, "free_bytes", lambda: needed - 1)
    with pytest.raises(
        SJRobustError, match=r"calibration images wait at 2, .*: lower batches"
    ) as e:
        converted(BATCHES)
    assert "\n" not in str(e.value)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/meminfo")
def test_free_memory_is_a_part_of_what_the_machine_has() -> None:
    free = free_bytes()
    swap = next(
        int(line.split()[1]) << 10
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("SwapTotal")
    )
    assert free is not None
    assert 0 < free < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + swap

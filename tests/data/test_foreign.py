"""Data in the forms in which users have it: the same figures, or one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from sj_robust import SJRobustError
from sj_robust.data import ImageDataset, as_dataset

LEVELS = torch.arange(6 * 3 * 8 * 8).view(6, 3, 8, 8).remainder(256).byte()
X, Y = LEVELS.float() / 255, torch.arange(6) % 3
NAMES = ("a", "b", "c")


class Singles(Dataset):
    """As torchvision's: PIL images, class names, and the split as `train`. Iterating over it never
    ends."""

    classes = NAMES
    train = False

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        return Image.fromarray(LEVELS[index % 6].permute(1, 2, 0).numpy()), int(Y[index % 6])


class CIFAR10(Singles):
    pass


class Mappings(Singles):
    def __getitem__(self, index: int) -> Any:
        return {"image": X[index], "label": int(Y[index])}


def generated() -> Iterator[Any]:
    yield from zip(X.split(4), Y.split(4), strict=True)


@pytest.mark.parametrize(
    "images",
    [
        LEVELS,
        LEVELS.numpy(),
        LEVELS.long(),
        LEVELS.int(),
        LEVELS.float(),
        LEVELS.double(),
        X,
        X.double(),
        X.numpy(),
        X.half(),
        X.clone().requires_grad_(),
    ],
    ids=str,
)
def test_a_data_set_holds_the_same_levels(images: Any) -> None:
    made = ImageDataset(images, Y.tolist(), list(NAMES), "mine", "test")  # type: ignore[arg-type]
    assert torch.equal(made.images, LEVELS) and made.images.dtype == torch.uint8  # type: ignore[arg-type]
    assert torch.equal(made.labels, Y) and made.classes == NAMES


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (X + 1e-2, "between the levels|reach from"),
        (X / 2, "between the levels"),
        (X * 2 - 1, "reach from -1 to 1"),
        (X * torch.nan, "nan"),
        (LEVELS.long() * 256, "reach from"),
        ((X > 0.5).long(), "reach from 0 to 1"),
        (X > 0.5, "bool"),
        (LEVELS.permute(0, 2, 3, 1), "permute"),
        (LEVELS[:, 0], r"unsqueeze\(1\)"),
        (LEVELS[0, 0], "shape"),
        (list(LEVELS), "torch.stack"),
        (X.bfloat16(), "between the levels"),
    ],
)
def test_other_images_are_refused(images: Any, message: str) -> None:
    with pytest.raises(SJRobustError, match=message):
        ImageDataset(images, Y, NAMES, "mine", "test")


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (Y - 1, NAMES, "label -1"),
        (Y, NAMES[:2], r"label 2: expected 0 to 1"),
        (Y[:4], NAMES, r"\[4\]"),
        (torch.eye(6), NAMES, "argmax"),
        (Y, "abc", "sequence of names"),
        (Y, 3, "sequence of names"),
        (["a"] * 6, NAMES, "numbers"),
    ],
)
def test_other_labels_and_names_are_refused(labels: Any, classes: Any, message: str) -> None:
    with pytest.raises(SJRobustError, match=message):
        ImageDataset(LEVELS, labels, classes, "mine", "test")


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        [X, Y],
        (LEVELS.numpy(), Y.numpy()),
        DataLoader(TensorDataset(X, Y), 4),
        DataLoader(Mappings(), 4),
        generated(),
        list(generated()),
        list(zip(X, Y, strict=True)),
        TensorDataset(X, Y),
        Singles(),
        Mappings(),
        Subset(Singles(), range(6)),
        DataLoader(Singles(), batch_size=None),
    ],
    ids=lambda data: type(data).__name__,
)
def test_all_of_them_are_one_data_set(data: Any) -> None:
    made = as_dataset(data)
    assert torch.equal(made.images, LEVELS) and torch.equal(made.labels, Y)  # type: ignore[arg-type]
    assert len(made.classes) == 3


def test_names_are_read_off() -> None:
    made = as_dataset(CIFAR10())
    assert (made.name, made.split, made.classes) == ("cifar10", "test", NAMES)
    assert as_dataset(made) is made


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (X, "no labels"),
        (DataLoader(TensorDataset(X), 4), "expected images"),
        (None, "NoneType"),
        (5, "int"),
        ("cifar10", "load_dataset"),
        ([], "no images"),
        ({"image": X}, "expected images"),
        ([(X[0], 0), (X[1, :, :4, :4], 1)], "different sizes"),
        ([(X[0], "cat")], "a str"),
        ((X, torch.eye(6)), "argmax"),
        ((X, Y[:3]), r"\[3\]"),
        ((X * 4 - 2, Y), "reach from"),
        (np.zeros(3), "expected images"),
        ((X, Y + 10**9), "there is a label"),
        ((X, Y * torch.nan), "not all whole"),
        ((X, Y - 1), "label -1"),
        ([(np.zeros((8, 8, 3), np.uint8), 0)], "permute"),
        ((np.full((2, 3, 8, 8), None), [0, 1]), "images are an array of object"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_anything_else_is_one_line(data: Any, message: str) -> None:
    with pytest.raises(SJRobustError, match=message) as refusal:
        as_dataset(data)
    assert "\n" not in str(refusal.value)

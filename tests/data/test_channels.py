"""Images in grey and in colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sj_robust import SJRobustError
from sj_robust.data import Augmentation, ImageDataset, batches, load_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for number in range(8):
        (tmp_path / "data" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        (image if number < 4 else image.convert("L")).save(
            tmp_path / "data" / str(number % 2) / f"{number}.png"
        )
    return tmp_path / "data"


def by_pil(folder: Path) -> torch.Tensor:
    files = sorted(folder.rglob("*.png"), key=lambda file: (file.parent.name, file.name))
    return torch.from_numpy(
        np.stack([np.asarray(Image.open(file).convert("L")) for file in files])
    )[:, None]


def test_grey_is_what_pil_makes_of_colours(folder: Path) -> None:
    grey = load_dataset(folder, channels=1)
    assert torch.equal(grey.images, by_pil(folder))  # type: ignore[arg-type]
    colour = load_dataset(folder)
    assert torch.equal(colour.in_channels(1).images, grey.images)  # type: ignore[arg-type]
    assert grey.fingerprint == colour.in_channels(1).fingerprint != colour.fingerprint
    assert torch.equal(grey.in_channels(3).in_channels(1).images, grey.images)  # type: ignore[arg-type]
    assert colour.in_channels(3) is colour and colour.in_channels(4) is colour


def test_so_are_those_that_are_decoded_as_they_are_used(folder: Path) -> None:
    stream, loaded = (
        load_dataset(folder, image_size=6, channels=1, stream=stream) for stream in (True, False)
    )
    assert stream.images.shape == loaded.images.shape == (8, 1, 6, 6)
    assert torch.equal(stream.floats(), loaded.floats())
    assert torch.equal(stream.subset([5, 2]).floats(), loaded.subset([5, 2]).floats())
    assert stream.fingerprint != load_dataset(folder, image_size=6, stream=True).fingerprint
    augment = Augmentation(scale=0.5)
    _, x, _ = next(iter(batches(stream, 4, seed=0, epoch=0, augment=augment)))
    assert x.shape == (4, 1, 6, 6)


@pytest.mark.parametrize("channels", [0, 2, 4, "1", None])
def test_other_numbers_are_refused(folder: Path, channels: object) -> None:
    with pytest.raises(SJRobustError, match=r"channels=.*expected 1 \(grey\) or 3 \(RGB\)"):
        load_dataset(folder, channels=channels)  # type: ignore[arg-type]


def test_images_of_other_channels_stay_as_they_are() -> None:
    events = ImageDataset(
        torch.zeros(2, 2, 4, 4, dtype=torch.uint8),
        torch.zeros(2, dtype=torch.int64),
        ("a",),
        "events",
        "test",
    )
    assert events.in_channels(1) is events

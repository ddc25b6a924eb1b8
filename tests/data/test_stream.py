"""Images decoded as they are used are those that would lie in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import pil_to_tensor, resized_crop

from sj_robust import SJRobustError
from sj_robust.data import Augmentation, ImageDataset, batches, calibration_batches, load_dataset
from sj_robust.data import datasets as module
from sj_robust.model import NormalizedClassifier
from sj_robust.training import preset, train_ann

Parquet, Noise, Png = Callable[..., Path], Callable[..., np.ndarray], Callable[..., bytes]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 photographs of two classes and many sizes."""
    random = np.random.default_rng(0)
    for number in range(40):
        place = tmp_path / "photos" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (20 + number, 50 - number // 2, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number:02}.png")
    return tmp_path / "photos"


@pytest.fixture
def shards(tmp_path: Path, parquet: Parquet, noise: Noise, png: Png) -> Path:
    pixels = noise(40)
    for shard in range(2):
        rows = range(20 * shard, 20 * shard + 20)
        parquet(
            tmp_path / "set" / f"train-{shard:05}-of-00002.parquet",
            [png(pixels[row]) for row in rows],
            [row % 2 for row in rows],
        )
    return tmp_path / "set"


@pytest.fixture(params=["folder", "shards"])
def both(request: pytest.FixtureRequest) -> tuple[ImageDataset, ImageDataset]:
    """The same images in memory and not."""
    path = request.getfixturevalue(request.param)
    return load_dataset(path, "train", image_size=16), load_dataset(
        path, "train", image_size=16, stream=True
    )


def test_pixels_are_the_same_in_any_order_and_in_parts(
    both: tuple[ImageDataset, ImageDataset],
) -> None:
    held, streamed = both
    assert not isinstance(streamed.images, torch.Tensor)
    assert streamed.images.shape == held.images.shape
    assert torch.equal(streamed.floats(), held.floats())
    assert torch.equal(streamed.floats([7, 3, 3]), held.floats([7, 3, 3]))
    assert torch.equal(streamed.first(5).floats(), held.first(5).floats())
    for part, same in zip(streamed.split_off(10, 0), held.split_off(10, 0), strict=True):
        assert torch.equal(part.floats(), same.floats())
        assert torch.equal(part.labels, same.labels)
    assert torch.equal(
        calibration_batches(streamed, 2, 4, seed=1), calibration_batches(held, 2, 4, seed=1)
    )


def test_batches_are_the_same_from_any_step(both: tuple[ImageDataset, ImageDataset]) -> None:
    held, streamed = both
    settings = {"seed": 3, "epoch": 1, "augment": Augmentation(), "drop_last": False}
    expected = list(batches(held, 6, **settings))  # type: ignore[arg-type]
    for start in (0, 4):
        found = list(batches(streamed, 6, start=start, **settings))  # type: ignore[arg-type]
        assert len(found) == len(expected) - start
        assert all(
            torch.equal(a, b)
            for one, two in zip(found, expected[start:], strict=True)
            for a, b in zip(one, two, strict=True)
        )


def test_the_fingerprint_tells_rows_sizes_and_labels_apart(
    both: tuple[ImageDataset, ImageDataset], folder: Path
) -> None:
    streamed = both[1]
    same = streamed.subset(range(len(streamed)))
    assert same.fingerprint == streamed.fingerprint
    other = load_dataset(folder, "train", image_size=20, stream=True)
    cut = load_dataset(folder, "train", image_size=16, resize=20, stream=True)
    assert (
        len(
            {
                each.fingerprint
                for each in (
                    streamed,
                    streamed.first(39),
                    streamed.subset(range(39, -1, -1)),
                    other,
                    cut,
                )
            }
        )
        == 5
    )


def test_training_does_not_see_the_difference(
    both: tuple[ImageDataset, ImageDataset], tmp_path: Path
) -> None:
    weights = []
    for name, dataset in zip(("held", "streamed"), both, strict=True):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 2)
        )
        model = NormalizedClassifier(network, (0.5,) * 3, (0.25,) * 3)
        train_ann(
            model,
            dataset,
            preset("ann", "default", epochs=2, batch_size=8, validation=8),
            tmp_path / name,
        )
        weights.append(network[0].weight)
    assert torch.equal(*weights)


def test_what_does_not_fit_into_memory_is_streamed_unasked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(load_dataset(folder, "train", image_size=16).images, torch.Tensor)
    monkeypatch.setattr(module, "STREAM_FROM", 40 * 3 * 16 * 16 - 1)
    assert not isinstance(load_dataset(folder, "train", image_size=16).images, torch.Tensor)
    assert isinstance(
        load_dataset(folder, "train", image_size=16, stream=False).images, torch.Tensor
    )


def test_a_damaged_image_is_named_when_it_is_reached(folder: Path) -> None:
    streamed = load_dataset(folder, "train", image_size=16, stream=True)
    (folder / "a" / "06.png").write_bytes(b"nothing")
    with pytest.raises(SJRobustError, match=r"a/06\.png cannot be decoded"):
        list(batches(streamed, 8, seed=0, epoch=0, augment=None))


def test_parquet_is_copied_once_and_again_where_the_copy_is_cut_short(
    shards: Path, cache: Path
) -> None:
    expected = load_dataset(shards, "train", image_size=16).floats()
    load_dataset(shards, "train", image_size=16, stream=True)
    copies = list((cache / "encoded").glob("*.bin"))
    before = {copy: copy.stat().st_ino for copy in copies}
    again = load_dataset(shards, "train", image_size=16, stream=True)
    assert before == {copy: copy.stat().st_ino for copy in copies}
    assert torch.equal(again.floats(), expected)
    for copy in copies:
        copy.write_bytes(copy.read_bytes()[:-5])
    assert torch.equal(load_dataset(shards, "train", image_size=16, stream=True).floats(), expected)


def test_it_needs_a_size_and_for_parquet_a_cache(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SJRobustError, match="need an image_size"):
        load_dataset(shards, "train", stream=True)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SJ_ROBUST_CACHE", str(tmp_path / "file"))
    with pytest.raises(SJRobustError, match="set SJ_ROBUST_CACHE"):
        load_dataset(shards, "train", image_size=16, stream=True)


def test_a_resized_crop_is_cut_out_of_the_image_as_it_is_stored(folder: Path) -> None:
    streamed = load_dataset(folder, "train", image_size=16, stream=True)
    assert not isinstance(streamed.images, torch.Tensor)
    boxes = {}

    def crop(width: int, height: int) -> tuple[int, int, int, int]:
        boxes[height] = (width // 5, height // 3, width - 1, height - 2)
        return boxes[height]

    crops = streamed.images.decoded([crop] * 40)
    paths = [*sorted((folder / "a").iterdir()), *sorted((folder / "b").iterdir())]
    for pixels, path in zip(crops, paths, strict=True):
        with Image.open(path) as image:
            left, top, right, bottom = boxes[image.height]
            expected = resized_crop(
                image, top, left, bottom - top, right - left, [16, 16], InterpolationMode.BILINEAR
            )
        assert torch.equal(pixels, pil_to_tensor(expected))


def test_training_with_resized_crops_sees_all_of_an_image_and_goes_on_anywhere(
    tmp_path: Path,
) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(8):
            pixels = np.zeros((24, 60, 3), np.uint8)
            pixels[:, :14] = 255  # all to the left of the centre square
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    streamed, augment = (
        load_dataset(tmp_path, "train", image_size=8, stream=True),
        Augmentation(padding=0, scale=0.08),
    )
    whole = list(batches(streamed, 4, seed=0, epoch=0, augment=augment))
    assert float(streamed.floats().max()) == 0
    assert sum(float(image.max()) == 1 for _, x, _ in whole for image in x) > 2
    for start in (1, 3):
        for one, other in zip(
            batches(streamed, 4, seed=0, epoch=0, augment=augment, start=start),
            whole[start:],
            strict=True,
        ):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    later = next(batches(streamed, 4, seed=0, epoch=1, augment=augment))
    assert not torch.equal(later[1], whole[0][1])

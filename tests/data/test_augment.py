from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import resized_crop

from sj_robust.data import Augmentation, ImageDataset


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_crop_is_a_window_of_the_image_in_a_black_frame(sample: ImageDataset) -> None:
    images = sample.images[:200]
    cropped = Augmentation(padding=4, flip=False)(images, generator())
    framed = F.pad(images, [4] * 4)
    shifts = set()
    for frame, crop in zip(framed, cropped, strict=True):
        found = [
            (y, x)
            for y in range(9)
            for x in range(9)
            if torch.equal(frame[:, y : y + 32, x : x + 32], crop)
        ]
        assert found
        shifts.update(found)
    assert len(shifts) > 60  # of 81: 200 draws reach about 74


def test_a_flip_mirrors_half_of_the_images(sample: ImageDataset) -> None:
    images = sample.images[:400]
    flipped = Augmentation(padding=0, flip=True)(images, generator())
    mirrored = torch.tensor(
        [torch.equal(a.flip(2), b) for a, b in zip(images, flipped, strict=True)]
    )
    same = torch.tensor([torch.equal(a, b) for a, b in zip(images, flipped, strict=True)])
    assert (mirrored | same).all()
    assert 150 < mirrored.sum() < 250


def test_cutout_blackens_a_square_clipped_at_the_border() -> None:
    images = torch.full((500, 3, 32, 32), 255, dtype=torch.uint8)
    cut = Augmentation(padding=0, flip=False, cutout=8)(images, generator())
    assert set(cut.unique().tolist()) == {0, 255}
    sides = set()
    for image in cut:
        assert torch.equal(image[0], image[1])
        assert torch.equal(image[0], image[2])
        rows, columns = (
            (image[0] == 0).any(1).nonzero().flatten(),
            (image[0] == 0).any(0).nonzero().flatten(),
        )
        top, left = int(rows[0]), int(columns[0])
        height, width = len(rows), len(columns)
        assert (image[0, top : top + height, left : left + width] == 0).all()
        assert (image[0] == 0).sum() == height * width
        assert height == 8 or top == 0 or top + height == 32
        assert width == 8 or left == 0 or left + width == 32
        sides.update((height, width))
    assert sides == {4, 5, 6, 7, 8}


def test_the_generator_alone_decides(sample: ImageDataset) -> None:
    augment, images = Augmentation(cutout=8), sample.images[:64]
    before = images.clone()
    once = augment(images, generator(1))
    state = torch.get_rng_state()
    assert torch.equal(once, augment(images, generator(1)))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(once, augment(images, generator(2)))
    assert torch.equal(images, before)


def test_floats_and_bytes_are_augmented_alike(sample: ImageDataset) -> None:
    augment = Augmentation(cutout=8)
    from_bytes = augment(sample.images[:32], generator()).float().div_(255)
    assert torch.equal(augment(sample.floats(range(32)), generator()), from_bytes)


def test_everything_off_changes_nothing(sample: ImageDataset) -> None:
    assert torch.equal(
        Augmentation(padding=0, flip=False)(sample.images[:16], generator()), sample.images[:16]
    )


def found_boxes(height: int, width: int, scale: float, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """(images, crops, boxes [N,4] as top, left, height, width): the first two channels are
    coordinates, which tell where a crop was."""
    rows, columns = torch.meshgrid(
        torch.arange(float(height)), torch.arange(float(width)), indexing="ij"
    )
    images = torch.stack([rows, columns, torch.rand(height, width, generator=generator(9))]).expand(
        count, -1, -1, -1
    )
    crops = Augmentation(padding=0, flip=False, scale=scale)(images, generator())
    boxes = []
    for channel, length in ((0, height), (1, width)):
        line = crops[:, channel, :, width // 2] if channel == 0 else crops[:, channel, height // 2]
        # off the borders, where there is nothing to interpolate with
        start, end = length // 4, 3 * length // 4
        step = (line[:, end] - line[:, start]) / (end - start)
        boxes.append((line[:, start] + 0.5 - (start + 0.5) * step, step * length))
    return images, crops, torch.stack([boxes[0][0], boxes[1][0], boxes[0][1], boxes[1][1]], 1)


@pytest.mark.parametrize("scale", [0.08, 0.35])
def test_a_resized_crop_is_that_of_torchvision(scale: float) -> None:
    images, crops, found = found_boxes(60, 80, scale, 600)
    boxes = found.round()
    torch.testing.assert_close(found, boxes, rtol=0, atol=0.05)
    for image, crop, (top, left, height, width) in zip(
        images[:50], crops, boxes.int().tolist(), strict=False
    ):
        expected = resized_crop(
            image, top, left, height, width, [60, 80], InterpolationMode.BILINEAR, antialias=True
        )
        torch.testing.assert_close(crop, expected, rtol=1e-5, atol=1e-4)
    torch.manual_seed(0)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(images[0], [scale, 1.0], [3 / 4, 4 / 3]) for _ in range(600)]
    ).double()
    for name, fact in {
        "area": lambda box: box[:, 2] * box[:, 3],
        "ratio": lambda box: box[:, 3] / box[:, 2],
        "place down": lambda box: box[:, 0] / (60 - box[:, 2]).clamp(1),
        "place right": lambda box: box[:, 1] / (80 - box[:, 3]).clamp(1),
    }.items():
        one, other = (fact(box).sort().values for box in (boxes.double(), theirs))
        ties = torch.cat([one, other])
        gap = max(
            (
                abs(
                    torch.searchsorted(one, ties, right=True)
                    - torch.searchsorted(other, ties, right=True)
                )
                / 600
            ).tolist()
        )
        assert gap < 1.95 * math.sqrt(2 / 600), name  # Kolmogorov-Smirnov at 0.1 %
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= 60).all()
    assert (boxes[:, 1] + boxes[:, 3] <= 80).all()


def test_a_crop_of_the_whole_of_a_long_image_is_the_largest_in_its_middle() -> None:
    _, _, boxes = found_boxes(20, 100, 1.0, 3)
    largest = torch.tensor([0.0, 36.0, 20.0, 27.0])  # of ratio 4/3
    torch.testing.assert_close(boxes, largest.expand(3, -1), rtol=0, atol=0.05)


def test_bytes_are_cropped_as_floats_to_the_nearest_level(sample: ImageDataset) -> None:
    augment = Augmentation(padding=0, scale=0.08)
    images = sample.images[:64]
    once, floats = augment(images, generator()), augment(images.float(), generator())
    assert once.dtype == torch.uint8
    assert torch.equal(once.float(), floats.round())
    assert torch.equal(once, augment(images, generator()))
    assert not torch.equal(once, augment(images, generator(1)))


@pytest.mark.parametrize(
    "wrong", [{"padding": -1}, {"cutout": -8}, {"scale": 0}, {"scale": 1.5}, {"rotate": True}]
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Augmentation(**wrong)  # type: ignore[arg-type]

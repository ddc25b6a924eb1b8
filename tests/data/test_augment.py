from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from sj_robust.data import Augmentation, ImageDataset


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_crop_is_a_window_of_the_image_in_a_black_frame(sample: ImageDataset) -> None:
    images = sample.images[:200]
    cropped = Augmentation(padding=4, flip=False)(images, generator())
    framed = F.pad(images, [4] * 4)
    shifts = set()
    for frame, crop in zip(framed, cropped, strict=True):
        found = [(y, x) for y in range(9) for x in range(9) if torch.equal(frame[:, y:y + 32, x:x + 32], crop)]
        assert found
        shifts.update(found)
    assert len(shifts) > 60  # of 81: 200 draws reach about 74


def test_a_flip_mirrors_half_of_the_images(sample: ImageDataset) -> None:
    images = sample.images[:400]
    flipped = Augmentation(padding=0, flip=True)(images, generator())
    mirrored = torch.tensor([torch.equal(a.flip(2), b) for a, b in zip(images, flipped, strict=True)])
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
        rows, columns = (image[0] == 0).any(1).nonzero().flatten(), (image[0] == 0).any(0).nonzero().flatten()
        top, left = int(rows[0]), int(columns[0])
        height, width = len(rows), len(columns)
        assert (image[0, top:top + height, left:left + width] == 0).all()
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
    assert torch.equal(Augmentation(padding=0, flip=False)(sample.images[:16], generator()), sample.images[:16])


@pytest.mark.parametrize("wrong", [{"padding": -1}, {"cutout": -8}, {"rotate": True}])
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Augmentation(**wrong)  # type: ignore[arg-type]

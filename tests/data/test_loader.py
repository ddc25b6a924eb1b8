from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sj_robust import SJRobustError
from sj_robust.data import Augmentation, ImageDataset, batches, calibration_batches, steps_per_epoch

AUGMENT = Augmentation(cutout=8)


def epoch_of(
    dataset: ImageDataset, *, seed: int = 3, epoch: int = 1, start: int = 0, **options: object
) -> list[tuple[Tensor, ...]]:
    return list(
        batches(
            dataset,
            64,
            **{"seed": seed, "epoch": epoch, "start": start, "augment": AUGMENT, **options},
        )
    )  # type: ignore[arg-type]


def equal(some: list[tuple[Tensor, ...]], others: list[tuple[Tensor, ...]]) -> bool:
    pairs = [
        pair for one, two in zip(some, others, strict=True) for pair in zip(one, two, strict=True)
    ]
    return all(torch.equal(a, b) for a, b in pairs)


def test_an_epoch_resumed_anywhere_continues_bit_for_bit(sample: ImageDataset) -> None:
    whole = epoch_of(sample)
    for start in (1, 7, len(whole)):
        torch.manual_seed(start)  # the global state must not matter
        assert equal(epoch_of(sample, start=start), whole[start:])


def test_the_global_random_state_is_left_alone(sample: ImageDataset) -> None:
    state = torch.get_rng_state()
    epoch_of(sample)
    calibration_batches(sample, 2, 8, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_seed_and_epoch_change_order_and_augmentation(sample: ImageDataset) -> None:
    base = epoch_of(sample)
    for other in (
        epoch_of(sample, seed=4),
        epoch_of(sample, epoch=2),
        epoch_of(sample, seed=1, epoch=3),
    ):
        assert not torch.equal(other[0][0], base[0][0])
    shifts = Augmentation(padding=4, flip=False)
    # the order cannot matter, so a difference is the augmentation's
    one_image = sample.subset([0] * 128)
    first, second = (x for _, x, _ in batches(one_image, 64, seed=0, epoch=0, augment=shifts))
    later = next(batches(one_image, 64, seed=0, epoch=1, augment=shifts))[1]
    assert not torch.equal(first, second)
    assert not torch.equal(first, later)


def test_every_image_comes_once_with_its_own_label(sample: ImageDataset) -> None:
    parts = epoch_of(sample, augment=None, drop_last=False)
    order = torch.cat([indices for indices, _, _ in parts])
    assert torch.equal(order.sort().values, torch.arange(len(sample)))
    assert not torch.equal(order, torch.arange(len(sample)))
    for indices, x, y in parts:
        assert torch.equal(y, sample.labels[indices])
        assert torch.equal(x, sample.images[indices].float() / 255)
        assert x.dtype == torch.float32


@pytest.mark.parametrize("drop_last", [True, False])
def test_steps_per_epoch_is_the_number_of_batches(sample: ImageDataset, drop_last: bool) -> None:
    some = epoch_of(sample, drop_last=drop_last)
    assert (
        len(some) == steps_per_epoch(sample, 64, drop_last=drop_last) == (15 if drop_last else 16)
    )
    assert len(some[-1][0]) == (64 if drop_last else 1000 - 15 * 64)


def test_calibration_images_are_different_ones_chosen_by_the_seed(sample: ImageDataset) -> None:
    calibration = calibration_batches(sample, 11, 64, seed=0)
    assert calibration.shape == (11, 64, 3, 32, 32)
    assert calibration.dtype == torch.float32
    known = {image.numpy().tobytes() for image in sample.images}
    drawn = [(image * 255).round().byte().numpy().tobytes() for image in calibration.flatten(0, 1)]
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= known
    assert torch.equal(calibration, calibration_batches(sample, 11, 64, seed=0))
    assert not torch.equal(calibration, calibration_batches(sample, 11, 64, seed=1))


@pytest.mark.gpu
@pytest.mark.parametrize("augment", [None, AUGMENT, Augmentation(padding=0, scale=0.5)])
def test_batches_made_on_a_gpu_are_those_of_the_cpu(
    sample: ImageDataset, augment: Augmentation | None
) -> None:
    there = epoch_of(sample, augment=augment, device=torch.device("cuda"))
    assert all(part.is_cuda for batch in there for part in batch)
    assert equal(
        [tuple(part.cpu() for part in batch) for batch in there], epoch_of(sample, augment=augment)
    )


def test_batches_that_cannot_be_made_are_named(sample: ImageDataset) -> None:
    with pytest.raises(SJRobustError, match="batch_size=1001 is larger than sample's 1000 images"):
        batches(sample, 1001, seed=0, epoch=0, augment=None)
    with pytest.raises(SJRobustError, match="batch_size=0"):
        batches(sample, 0, seed=0, epoch=0, augment=None)
    with pytest.raises(SJRobustError, match="start=-1"):
        batches(sample, 8, seed=0, epoch=0, augment=None, start=-1)
    with pytest.raises(
        SJRobustError, match="11 calibration batches of 100 need 1100 images but sample has 1000"
    ):
        calibration_batches(sample, 11, 100, seed=0)

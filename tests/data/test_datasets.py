from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sj_robust import SJRobustError, files
from sj_robust.data import MEAN_STD, NAMES, ImageDataset, load_dataset
from sj_robust.data.datasets import Split
from sj_robust.files import zoo_root

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def test_the_sample_is_balanced_small_and_real(sample: ImageDataset) -> None:
    train = load_dataset("sample", "train")
    assert (len(train), len(sample)) == (2000, 1000)
    assert train.labels.bincount().tolist() == [200] * 10
    assert sample.labels.bincount().tolist() == [100] * 10
    assert train.classes == sample.classes == CIFAR10
    assert (train.name, train.split, sample.split) == ("sample", "train", "test")
    assert train.images.shape[1:] == (3, 32, 32)
    assert train.images.dtype == torch.uint8
    assert (
        sum(file.stat().st_size for file in (zoo_root() / "sample").glob("*.parquet")) < 6_000_000
    )
    both = {image.numpy().tobytes() for image in torch.cat([train.images, sample.images])}
    assert len(both) == 3000  # none twice, none in both files
    assert train.fingerprint == "d8d9ce89d417b3d2d9fd25ed8de6592b10067abf6ca1979f3e595c93f2696f9f"
    assert sample.fingerprint == "63ec0ff3e930cc59a6d8582134affcdda33e7734e974d0823b3f988c286b970b"


def test_floats_are_in_zero_to_one(sample: ImageDataset) -> None:
    x = sample.floats([5, 2])
    assert x.dtype == torch.float32
    assert torch.equal((x * 255).round().byte(), sample.images[[5, 2]])
    assert (sample.floats().min(), sample.floats().max()) == (0, 1)


def test_split_off_is_stratified_seeded_and_complete(sample: ImageDataset) -> None:
    uneven = sample.subset([i for i in range(len(sample)) if sample.labels[i] != 3 or i % 2])
    rest, held = uneven.split_off(97, seed=0)
    assert (len(rest), len(held)) == (len(uneven) - 97, 97)
    share = uneven.labels.bincount() * 97 / len(uneven)
    assert ((held.labels.bincount(minlength=10) - share).abs() < 1).all()
    every = sorted(image.numpy().tobytes() for part in (rest, held) for image in part.images)
    assert every == sorted(image.numpy().tobytes() for image in uneven.images)
    assert (
        held.fingerprint
        == uneven.split_off(97, seed=0)[1].fingerprint
        != uneven.split_off(97, seed=1)[1].fingerprint
    )


@pytest.mark.parametrize("count", [0, 1000, -1])
def test_a_split_that_leaves_nothing_is_refused(sample: ImageDataset, count: int) -> None:
    with pytest.raises(SJRobustError, match=f"cannot hold out {count} of 1000 images"):
        sample.split_off(count, seed=0)


def test_the_fingerprint_knows_pixels_labels_and_order(sample: ImageDataset) -> None:
    some = sample.first(10)
    assert len(some.fingerprint) == 64
    pixels, labels = some.images.clone(), some.labels.clone()
    pixels[9, 2, 31, 31] ^= 1
    labels[0] = (labels[0] + 1) % 10
    others = [
        some.subset(range(9, -1, -1)),
        ImageDataset(pixels, some.labels, some.classes, some.name, some.split),
        ImageDataset(some.images, labels, some.classes, some.name, some.split),
        ImageDataset(
            some.images.reshape(10, 3, 16, 64), some.labels, some.classes, some.name, some.split
        ),
    ]
    assert some.fingerprint == sample.subset(range(10)).fingerprint
    assert len({some.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_names_are_recognised_however_they_are_written() -> None:
    assert set(NAMES) == {"cifar10", "cifar100", "svhn", "tiny-imagenet", "imagenet", "sample"}
    assert load_dataset("Sample", "test").name == "sample"


def test_a_wrong_name_split_or_size_is_one_clear_line() -> None:
    for arguments, message in [
        ((("cifar11",), {}), "no dataset 'cifar11': expected one of cifar10, "),
        ((("sample", "valid"), {}), "unknown split 'valid': expected 'train' or 'test'"),
        ((("sample", "test"), {"image_size": 0}), "image_size=0"),
        (
            (("imagenet",), {}),
            "imagenet cannot be downloaded freely: pass the path of a folder of images by class",
        ),
    ]:
        with pytest.raises(SJRobustError, match=message) as caught:
            load_dataset(*arguments[0], **arguments[1])
        assert "\n" not in str(caught.value)


def test_named_data_is_looked_up_in_the_users_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    parquet: Callable[..., Path],
    noise: Callable[..., np.ndarray],
    png: Callable[..., bytes],
) -> None:
    parquet(
        tmp_path / "tiny_imagenet" / "valid.parquet",
        [png(p) for p in noise(3)],
        [0, 1, 1],
        image="image",
    )
    monkeypatch.setenv("SJ_ROBUST_DATA", str(tmp_path))
    loaded = load_dataset("tiny-imagenet", "test")
    assert (len(loaded), loaded.name, loaded.split) == (3, "tiny-imagenet", "test")
    # the data set's own folder is meant as well
    monkeypatch.setenv("SJ_ROBUST_DATA", str(tmp_path / "tiny_imagenet"))
    assert len(load_dataset("tiny-imagenet", "test")) == 3
    with pytest.raises(SJRobustError, match=rf"holds imagenet/, and {tmp_path}.* holds none"):
        load_dataset("imagenet", "test")


def test_the_sample_is_found_in_a_wheel_and_in_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: ImageDataset
) -> None:
    here = zoo_root() / "sample"
    package = tmp_path / "sj_robust"
    package.mkdir()
    monkeypatch.setattr(files, "__file__", str(package / "files.py"))
    with pytest.raises(SJRobustError, match="no zoo folder"):
        load_dataset("sample", "test")
    for zoo in (tmp_path / "zoo", package / "zoo"):
        shutil.copytree(here, zoo / "sample")
        assert zoo_root() == zoo
        assert load_dataset("sample", "test").fingerprint == sample.fingerprint


@pytest.mark.shared
@pytest.mark.parametrize(
    ("folder", "split", "count", "classes", "tolerance"),
    [
        pytest.param("cifar10", "train", 50_000, 10, 2e-4, marks=pytest.mark.slow),
        # not the images the constants were taken from, but alike
        ("cifar100", "test", 10_000, 100, 5e-3),
        ("tiny_imagenet", "train", 5_000, 200, 3e-3),
    ],
)
def test_data_sets_have_the_stated_statistics(
    shared: Path, folder: str, split: Split, count: int, classes: int, tolerance: float
) -> None:
    data = load_dataset(shared / folder, split)
    assert (data.name, data.split) == (folder.replace("_", "-"), split)
    assert len(data.classes) == classes
    assert data.labels.bincount().tolist() == [count // classes] * classes
    levels = torch.arange(256).double() / 255
    shares = (
        torch.stack(
            [data.images[:, channel].flatten().bincount(minlength=256) for channel in range(3)]
        )
        / data.images[:, 0].numel()
    )
    mean = (shares * levels).sum(1)
    std = ((shares * levels**2).sum(1) - mean**2).sqrt()
    torch.testing.assert_close(
        torch.tensor(MEAN_STD[data.name], dtype=torch.float64),
        torch.stack([mean, std]),
        atol=tolerance,
        rtol=0,
    )


@pytest.mark.shared
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_sample_is_part_of_cifar10_split_by_split(shared: Path, split: Split) -> None:
    whole, part = load_dataset(shared / "cifar10", split), load_dataset("sample", split)
    known = {
        image.numpy().tobytes(): int(label)
        for image, label in zip(whole.images, whole.labels, strict=True)
    }
    assert [known.get(image.numpy().tobytes()) for image in part.images] == part.labels.tolist()

"""The image data sets that go by a name: where they lie on the Hub, and what their training images
are like. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class KnownData:
    """`title` for people; `hub`: its repository on the Hub, and `files` those of its splits that
    can be fetched freely. `mean` and `std` of the training images in [0,1], per channel, are what a
    model's normalisation layer takes."""

    title: str
    hub: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    files: Mapping[str, str] = field(default_factory=dict)


def _splits(pattern: str) -> dict[str, str]:
    return {split: pattern.format(split) for split in ("train", "test")}


_CIFAR10 = KnownData(
    "CIFAR-10",
    "uoft-cs/cifar10",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2471, 0.2435, 0.2616),
    files=_splits("plain_text/{}-00000-of-00001.parquet"),
)
KNOWN: dict[str, KnownData] = {
    "cifar10": _CIFAR10,
    "cifar100": KnownData(
        "CIFAR-100",
        "uoft-cs/cifar100",
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        files=_splits("cifar100/{}-00000-of-00001.parquet"),
    ),
    "svhn": KnownData(
        "SVHN",
        "ufldl-stanford/svhn",
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        files=_splits("cropped_digits/{}-00000-of-00001.parquet"),
    ),
    "tiny-imagenet": KnownData(
        "Tiny ImageNet",
        "zh-plus/tiny-imagenet",
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
        files={
            "train": "data/train-00000-of-00001-1359597a978bc4fa.parquet",
            # the published test images have no labels
            "test": "data/valid-00000-of-00001-70d52db3c749a935.parquet",
        },
    ),
    "imagenet": KnownData(
        "ImageNet-1k",
        "ILSVRC/imagenet-1k",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
    "sample": KnownData(
        "CIFAR-10 (the sample embedded in sj-robust)",
        _CIFAR10.hub,
        mean=_CIFAR10.mean,
        std=_CIFAR10.std,
    ),
}

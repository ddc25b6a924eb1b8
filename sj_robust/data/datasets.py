"""Image datasets by name or path, held as uint8 in memory, or decoded as they are used where they
are too large."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sj_robust.data.decode import Square
from sj_robust.data.folder import folder_source
from sj_robust.data.levels import as_levels
from sj_robust.data.parquet import parquet_files, parquet_source, split_in_name
from sj_robust.data.source import Source
from sj_robust.data.stream import STREAM_FROM, EncodedImages, in_channels
from sj_robust.errors import SJRobustError
from sj_robust.files import legible, zoo_root
from sj_robust.known import KNOWN
from sj_robust.masking import harmless
from sj_robust.model.images import checked_labels
from sj_robust.phrases import did_you_mean, few
from sj_robust.traffic import LimitError, limited

Split = Literal["train", "test"]

MEAN_STD = {name: (data.mean, data.std) for name, data in KNOWN.items()}
NAMES = tuple(KNOWN)


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Labelled images, the class names by label, and where they came from.

    Args:
        images: uint8 [N,C,H,W], held on the CPU; given in any type that says the same in 8 bits:
            whole numbers of 0 to 255, or multiples of 1/255 in [0,1].
        labels: int64 [N], held on the CPU; given as any whole numbers.
        classes: names by label.

    Raises:
        SJRobustError: images of another kind, or not one label for each, of a class that has a
            name.
    """

    images: Tensor | EncodedImages
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    split: str

    def __post_init__(self) -> None:
        if isinstance(self.classes, str) or not isinstance(self.classes, Sequence):
            raise SJRobustError(
                f"classes are {self.classes!r}: expected a sequence of names, one for "
                "each label from 0"
            )
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))
        if not isinstance(self.images, EncodedImages):
            object.__setattr__(self, "images", as_levels(self.images))
        labels = checked_labels(self.labels, len(self.images), len(self.classes))
        object.__setattr__(self, "labels", labels.cpu())

    def __len__(self) -> int:
        return len(self.images)

    def floats(self, indices: Tensor | Sequence[int] | None = None) -> Tensor:
        """Images as float32 [n,C,H,W] in [0,1], all or those at `indices`."""
        chosen = (
            torch.arange(len(self))
            if indices is None
            else torch.as_tensor(indices, dtype=torch.int64)
        )
        return self.images[chosen].float().div_(255)

    def subset(self, indices: Tensor | Sequence[int]) -> ImageDataset:
        """The images at `indices`, in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        images = (
            self.images.subset(chosen)
            if isinstance(self.images, EncodedImages)
            else self.images[chosen]
        )
        return replace(self, images=images, labels=self.labels[chosen])

    def first(self, count: int) -> ImageDataset:
        """The first `count` images (all where there are fewer)."""
        images = (
            self.images.subset(slice(count))
            if isinstance(self.images, EncodedImages)
            else self.images[:count]
        )
        return replace(self, images=images, labels=self.labels[:count])

    def in_channels(self, channels: int) -> ImageDataset:
        """The images grey (1) or in colour (3); as they are for another number.

        No data set here has another.
        """
        if (
            channels not in (1, 3)
            or self.images.shape[1] not in (1, 3)
            or channels == self.images.shape[1]
        ):
            return self
        if isinstance(self.images, EncodedImages):
            return replace(self, images=self.images.in_channels(channels))
        return replace(self, images=in_channels(self.images, channels))

    def with_classes(self, names: Sequence[str]) -> ImageDataset:
        """The same images under other names of their classes.

        Args:
            names: one for each label, in that order.

        Raises:
            SJRobustError: there are fewer names than classes.
        """
        if len(names) < len(self.classes):
            raise SJRobustError(
                f"{len(names)} names for the {len(self.classes)} classes of "
                f"{self.name}: expected one for each"
            )
        return replace(self, classes=tuple(names))

    def split_off(self, count: int, seed: int) -> tuple[ImageDataset, ImageDataset]:
        """(rest, held_out): `count` images drawn by `seed`, both in dataset order.

        Every class has its share. Shares that are no whole numbers are rounded by largest
        remainder, ties to the lower label.

        Raises:
            SJRobustError: a count below 1, or that leaves nothing.
        """
        if not 0 < count < len(self):
            raise SJRobustError(
                f"cannot hold out {count} of {len(self)} images: expected 1 to {len(self) - 1}"
            )
        sizes = self.labels.bincount().tolist()
        quotas = [count * size // len(self) for size in sizes]
        by_remainder = sorted(
            range(len(sizes)), key=lambda label: (-(count * sizes[label] % len(self)), label)
        )
        for label in by_remainder[: count - sum(quotas)]:
            quotas[label] += 1
        generator = torch.Generator().manual_seed(seed)
        held = torch.zeros(len(self), dtype=torch.bool)
        for label, quota in enumerate(quotas):
            members = (self.labels == label).nonzero().flatten()
            held[members[torch.randperm(len(members), generator=generator)[:quota]]] = True
        return self.subset((~held).nonzero().flatten()), self.subset(held.nonzero().flatten())

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of shape, pixels and labels: equal where the data is, and only there.

        It does not depend on how the data was stored. Where images are decoded as they are used, it
        is of how they are stored instead, with no image decoded.
        """
        if isinstance(self.images, EncodedImages):
            digest = self.images.digest()
        else:
            digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
            digest.update(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().astype("<i8").data)
        return str(digest.hexdigest())


def load_dataset(
    name_or_path: str | os.PathLike[str],
    split: Split = "train",
    *,
    image_size: int | None = None,
    resize: int | None = None,
    stream: bool | None = None,
    channels: Literal[1, 3] = 3,
) -> ImageDataset:
    """Load one split of a dataset, into memory unless `stream`.

    A single parquet file, or class folders without train/ and test/, are read whichever split is
    asked for; `.split` then says what was read: the split in the file's name, else "all". Training
    with a random resized crop cuts from the whole image where images are decoded as they are used,
    and from the square of `image_size` elsewhere.

    Args:
        name_or_path: one of NAMES or a path: a folder with {train,test}.parquet (also shards
            `train-*.parquet`, `*_subset` names, and `valid*` for test), one parquet file, or a
            folder of images by class (directly, or under train/ and test/). Parquet is the Hub's
            image layout: `img` or `image` = {bytes, path}, `label` or `fine_label` = int64. Names
            other than `sample` are looked up in $SJ_ROBUST_DATA/NAME, else fetched from the Hugging
            Face Hub; `imagenet` is never fetched.
        image_size: cuts out the centre square of so many pixels, after the short side was resized
            to `resize`. ImageNet is mostly evaluated with image_size=224, resize=256.
        resize: bilinear, antialiased, as torchvision's Resize and CenterCrop; default:
            `image_size`, so that all of the short side is seen.
        stream: leave the images where they are and decode them as they are used, which needs
            `image_size`. None does so where decoded images would take more than STREAM_FROM (8
            GiB). Parquet files are then copied once, still compressed, into the cache.
        channels: 3 makes grey images RGB, 1 makes coloured ones grey, for a network such as those
            of MNIST.

    Raises:
        SJRobustError: data that is missing, empty, of mixed sizes, damaged, or labelled out of
            range, in one line; arguments out of range.
    """
    if split not in ("train", "test"):
        raise SJRobustError(f"unknown split {split!r}: expected 'train' or 'test'")
    if channels not in (1, 3):
        raise SJRobustError(f"channels={channels!r}: expected 1 (grey) or 3 (RGB)")
    square = Square.of(image_size, resize)
    name = known_name(str(name_or_path)) if isinstance(name_or_path, str) else None
    if name:
        source = _named(name, split)
    else:
        path = _home(name_or_path)
        if name_or_path == "" or not path.exists():  # "" would be the working directory
            hint = did_you_mean(str(name_or_path), NAMES)
            raise SJRobustError(
                f"no dataset {str(name_or_path)!r}: expected one of {', '.join(NAMES)}, or the path"
                f" of a folder or parquet file{hint and f'; {hint}'}"
            )
        source, name = _at_path(path, split), _name_of(path)
    if stream is None:
        stream = square is not None and 3 * square.size**2 * len(source.labels) > STREAM_FROM
    if stream and square is None:
        raise SJRobustError(
            "images that are decoded as they are used need an image_size: all are brought to it"
        )
    images = source.stream(square) if stream and square else torch.from_numpy(source.read(square))
    return ImageDataset(
        images, torch.from_numpy(source.labels), source.classes, legible(name), source.split
    ).in_channels(channels)


def known_name(text: str) -> str | None:
    """The name in NAMES that `text` spells in its own way (`tiny_imagenet`, `CIFAR-10`), or
    None."""

    def plain(word: str) -> str:
        return word.lower().replace("_", "").replace("-", "")

    return next((name for name in NAMES if plain(name) == plain(text)), None)


def _named(name: str, split: Split) -> Source:
    if name == "sample":
        return _at_path(zoo_root() / "sample", split)
    if root := os.environ.get("SJ_ROBUST_DATA"):
        folder = _home(root)
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
        if known_name(folder.name) == name:  # the data set's own folder
            entries.append(folder)
        if found := [entry for entry in entries if known_name(entry.name) == name]:
            return _at_path(found[0], split)
    known = KNOWN[name]
    if not known.files:
        raise SJRobustError(
            f"{name} cannot be downloaded freely: pass the path of a folder of images by class, "
            f"or {_place(name)}"
        )
    return parquet_source([_download(name, known.hub, known.files[split])], split)


def _home(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # of a user that is none
        raise SJRobustError(f"{path}: there is no such user's home: name the folder") from None


def _place(name: str) -> str:
    """Where else a data set is looked for."""
    root = os.environ.get("SJ_ROBUST_DATA")
    there = f", and {root} holds none" if root else ""
    return f"set SJ_ROBUST_DATA to the folder that holds {name}/{there}"


def _download(name: str, repository: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download  # slow to import, and not needed for local data

    try:
        with limited():
            return Path(hf_hub_download(repository, file, repo_type="dataset"))
    except Exception as error:  # network, HTTP, disk and client errors share no base class
        reason = f"which {error}" if isinstance(error, LimitError) else type(error).__name__
        raise SJRobustError(
            f"could not download {name} ({repository} on the Hugging Face Hub; {reason}): "
            f"pass the path of your copy, or {_place(name)}"
        ) from harmless(error)


def _at_path(path: Path, split: Split) -> Source:
    if path.is_file():
        return parquet_source([path], split_in_name(path) or "all")
    # only where a name says so: class folders may hold a million files
    if any(known_name(entry.name) for entry in path.glob("*")):
        below = sorted({file.parent.name for file in path.glob("*/*.parquet")})
        if len(below) > 1 and any(map(known_name, below)):
            raise SJRobustError(
                f"{path} holds several data sets ({few(below)}): name one, such as"
                f" {path / below[0]}"
            )
    files = parquet_files(path, split)
    return parquet_source(files, split) if files else folder_source(path, split)


def _name_of(path: Path) -> str:
    path = path.resolve()
    if path.is_file():
        return known_name(path.parent.name) or known_name(path.stem) or path.stem
    return known_name(path.name) or path.name

"""Images in folders by class."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sj_robust.data.decode import Pixels, Square, decode_images
from sj_robust.data.source import CLASSES, PREFIXES, Source, read_names
from sj_robust.data.stream import EncodedImages
from sj_robust.errors import SJRobustError
from sj_robust.files import legible

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
)


def folder_source(folder: Path, split: str) -> Source:
    """Images by class: FOLDER/CLASS/**, or FOLDER/{train,test|val}/CLASS/** where such folders
    exist.

    Classes are in natural order (2 before 10), or that of classes.txt. Hidden files and folders are
    passed over, links are followed.
    """
    # a folder of that name without folders below is a class: CIFAR-100 has one called "train"
    names = [name for prefixes in PREFIXES.values() for name in prefixes]
    parts = {name: folder / name for name in names if _subfolders(folder / name)}
    root, whole = folder, not parts
    if parts:
        if not (there := [parts[name] for name in PREFIXES[split] if name in parts]):
            expected = " or ".join(PREFIXES[split])
            raise SJRobustError(
                f"{folder} has no {split} split: expected a folder {expected} "
                f"beside {', '.join(parts)}"
            )
        root = there[0]
    # the training folder defines the classes, so that a class without test images shifts no labels
    defining = parts.get("train", root)
    found = _subfolders(defining)
    classes = _listed(folder / CLASSES, found) or _listed(defining / CLASSES, found) or found
    if unknown := sorted(set(_subfolders(root)) - set(classes)):
        raise SJRobustError(
            f"{root} has a class {unknown[0]!r} that {defining} lacks: both need the "
            "same class folders"
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        members = _images_below(root / name)
        if not members and root == defining and name in found:
            kinds = " ".join(sorted(SUFFIXES))
            raise SJRobustError(
                f"{root / name} holds no images ({kinds}): remove the folder if it is not a class"
            )
        files += members
        labels += [label] * len(members)
    if not files:
        raise SJRobustError(
            f"{root} holds no images: expected parquet files or one folder of images per class"
        )

    def place(row: int) -> str:
        return str(files[min(row, len(files) - 1)])

    def read(square: Square | None) -> Pixels:
        return decode_images(iter(files), len(files), square=square, place=place)

    # names and lengths stand for contents, which may take an hour to read
    def stream(square: Square) -> EncodedImages:
        facts = "".join(f"{file.relative_to(root)}/{file.stat().st_size}/" for file in files)
        return EncodedImages(
            files,
            square,
            hashlib.sha256(facts.encode("utf-8", "surrogateescape")).hexdigest(),
            place,
        )

    return Source(
        np.array(labels, np.int64),
        tuple(map(legible, classes)),
        "all" if whole else split,
        read,
        stream,
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts numbers by their value and words whatever their case, as timm does it."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in parts] + [
        (-1, name)
    ]


def _subfolders(folder: Path) -> list[str]:
    entries = folder.iterdir() if folder.is_dir() else ()
    names = (entry.name for entry in entries if entry.is_dir() and not _hidden(entry.name))
    return sorted(names, key=_natural)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"  # what macOS puts into archives


def _listed(file: Path, found: Sequence[str]) -> list[str]:
    """The classes of a classes.txt, which may have more than there are folders; none without it."""
    names = read_names(file) if file.is_file() else []
    if not set(found) <= set(names):  # some number their lines
        names = [re.sub(r"^[0-9]+[\s,:]+", "", name) for name in names]
    if names and (unknown := sorted(set(found) - set(names))):
        raise SJRobustError(
            f"{file} does not list the folder {unknown[0]!r}: expected the name of "
            "every class folder, one a line, in the order of their labels"
        )
    if len(set(names)) < len(names):
        raise SJRobustError(f"{file} lists a class twice: expected each name once")
    return names


def _images_below(folder: Path) -> list[Path]:
    """The images in a folder and the folders below, links followed, each real folder once."""

    def entered(path: str) -> bool:
        status = os.stat(path)
        key = (status.st_dev, status.st_ino)
        if key in seen:
            return False
        seen.add(key)
        return True

    seen: set[tuple[int, int]] = set()
    found: list[Path] = []
    if folder.is_dir():
        entered(os.fspath(folder.parent))  # a link back to it would make all classes one
        entered(os.fspath(folder))
    for place, folders, names in os.walk(folder, followlinks=True):
        shown = (name for name in sorted(folders) if not _hidden(name))
        folders[:] = [name for name in shown if entered(f"{place}/{name}")]
        found += [path for path in (Path(place, name) for name in names) if _is_image(path)]
    return sorted(found)


def _is_image(path: Path) -> bool:
    if path.suffix.lower() not in SUFFIXES or _hidden(path.name):
        return False
    if path.is_symlink() and not path.exists():
        raise SJRobustError(
            f"{path} is a link to {os.readlink(path)}, which is not there: fetch the "
            "file (git annex get, git lfs pull) or remove the link"
        )
    return path.is_file()

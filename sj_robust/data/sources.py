"""Where images come from: parquet files in the Hub's image layout, and folders of images by
class."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sj_robust.data.decode import (
    CACHE_FROM,
    HEAD,
    Encoded,
    Pixels,
    Square,
    cached,
    decode_images,
    stand_in,
)
from sj_robust.data.stream import EncodedImages, unpacked
from sj_robust.errors import SJRobustError, first_line
from sj_robust.files import legible, sha256

IMAGE_COLUMNS = ("img", "image")
CLASSES = "classes.txt"
MOST_CLASSES = 100_000
LABEL_COLUMNS = ("label", "fine_label")
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
)
_MOST_ROWS = 100_000_000  # a few bytes of parquet can claim any number
# in order of preference
_PREFIXES = {"train": ("train",), "test": ("test", "validation", "valid", "val")}
# the last four as in snapshots of Hub repositories
_SUBFOLDERS = (".", "data", "plain_text", "cropped_digits", "cifar100")


@dataclass(frozen=True)
class Source:
    """Labels and class names, read; and how to read the images: all uint8 [N,3,H,W], or one by one
    when used."""

    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    split: str
    read: Callable[[Square | None], Pixels]
    stream: Callable[[Square], EncodedImages]


def parquet_files(folder: Path, split: str) -> list[Path]:
    """The parquet files of one split in a folder, shards in order; empty where the folder holds no
    parquet file at all."""
    every: list[Path] = []
    for place in (folder / name for name in _SUBFOLDERS):
        found = sorted(place.glob("*.parquet"))
        every += found
        for prefix in _PREFIXES[split]:
            if files := [file for file in found if _starts(file, prefix)]:
                return _complete(files)
    if every:
        names = ", ".join(file.name for file in every[:5])
        raise SJRobustError(
            f"{folder} has no {split} split: expected {' or '.join(_PREFIXES[split])}*.parquet,"
            f" found {names}"
        )
    return []


def split_in_name(file: Path) -> str | None:
    """The split that a file's name begins with: `valid_subset.parquet` is "test"; None where it
    says nothing."""
    return next(
        (
            split
            for split, prefixes in _PREFIXES.items()
            if any(_starts(file, prefix) for prefix in prefixes)
        ),
        None,
    )


def _starts(file: Path, prefix: str) -> bool:
    return re.fullmatch(rf"{prefix}([-_.].*)?", file.stem) is not None


def _complete(files: list[Path]) -> list[Path]:
    """A single file, or all shards of one set: a missing shard, or a file beside them, would change
    the data without a word."""
    shards = [re.search(r"-(\d{5})-of-(\d{5})", file.name) for file in files]
    if len(files) == 1 and shards[0] is None:
        return files
    totals = {int(shard[2]) if shard else None for shard in shards}
    if (
        len(totals) == 1
        and None not in totals
        and [int(s[1]) for s in shards if s] == list(range(totals.pop() or 0))
    ):
        return files
    names = ", ".join(file.name for file in files)
    raise SJRobustError(
        f"{files[0].parent}: cannot tell which files make up the split: expected one file or a"
        f" complete set of shards, found {names}; pass the path of one file"
    )


def parquet_source(files: Sequence[Path], split: str) -> Source:
    """Open parquet files of one split: labels are read and checked now, images when asked for."""
    opened = [_open(file) for file in files]
    image, label = _columns(opened[0], files[0])
    for file, parquet in zip(files, opened, strict=True):
        if _columns(parquet, file) != (image, label):
            raise SJRobustError(
                f"{file} has other columns than {files[0].name}: expected {image} and {label} in"
                " every shard"
            )
    lengths = [parquet.metadata.num_rows for parquet in opened]
    if sum(lengths) > _MOST_ROWS:
        raise SJRobustError(
            f"{files[0]} claims to hold {sum(lengths):,} images, expected {_MOST_ROWS:,} at most:"
            " fetch it again"
        )

    def place(row: int) -> str:
        for file, length in zip(files, lengths, strict=True):
            if row < length:
                return f"{file}: row {row}"
            row -= length
        return str(files[-1])

    labels = np.concatenate(
        [_labels(parquet, label, file) for file, parquet in zip(files, opened, strict=True)]
    )
    if not len(labels):
        raise SJRobustError(f"{files[0]} holds no images: the {split} split is empty")
    classes = _class_names(opened[0], label, files[0].parent, labels)
    if (wrong := np.flatnonzero((labels < 0) | (labels >= len(classes)))).size:
        raise SJRobustError(
            f"{place(wrong[0])} has label {labels[wrong[0]]}, expected 0 to {len(classes) - 1}"
            f" ({len(classes)} classes)"
        )

    def read(square: Square | None) -> Pixels:
        def decode() -> Pixels:
            return decode_images(
                _blobs(opened, files, image), len(labels), square=square, place=place
            )

        if len(labels) < CACHE_FROM:
            return decode()
        return cached(f"{[sha256(file) for file in files]}/{image}/{square}", len(labels), decode)

    def stream(square: Square) -> EncodedImages:
        identity = f"{[sha256(file) for file in files]}/{image}"
        return EncodedImages(
            unpacked(identity, lambda: _blobs(opened, files, image), len(labels)),
            square,
            identity,
            place,
        )

    return Source(labels, classes, split, read, stream)


def folder_source(folder: Path, split: str) -> Source:
    """Images by class: FOLDER/CLASS/**, or FOLDER/{train,test|val}/CLASS/** where such folders
    exist.

    Classes are in natural order (2 before 10), or that of classes.txt. Hidden files and folders are
    passed over, links are followed.
    """
    # a folder of that name without folders below is a class: CIFAR-100 has one called "train"
    names = [name for prefixes in _PREFIXES.values() for name in prefixes]
    parts = {name: folder / name for name in names if _subfolders(folder / name)}
    root, whole = folder, not parts
    if parts:
        if not (there := [parts[name] for name in _PREFIXES[split] if name in parts]):
            expected = " or ".join(_PREFIXES[split])
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


def _open(file: Path) -> pq.ParquetFile:
    if not file.is_file():
        raise SJRobustError(f"{file} is no regular file: expected one in the Hub's image layout")
    try:
        # where the file has checksums, as the sample does
        return pq.ParquetFile(file, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        what = _not_parquet(file)
        raise SJRobustError(
            f"{file} is not a readable parquet file{what}: expected one in the Hub's "
            "image layout, or a folder of images by class"
        ) from error


def _not_parquet(file: Path) -> str:
    """What it is instead, as far as its first bytes tell."""
    try:
        with open(file, "rb") as content:
            head, size = content.read(HEAD), file.stat().st_size
            content.seek(max(0, size - 4))
            end = content.read(4)
    except OSError as error:
        return f" ({error.strerror})"
    if head[:4] == b"PAR1" and end != b"PAR1":
        return f", as it was cut off after {size} bytes (fetch it again)"
    found = stand_in(head)
    return f" but {found}" if found else ""


def _columns(parquet: pq.ParquetFile, file: Path) -> tuple[str, str]:
    schema = parquet.schema_arrow
    image = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
    label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    found = f"found {', '.join(f'{field.name} ({field.type})' for field in schema)[:200]}"
    if image is None or not (
        pa.types.is_struct(kind := schema.field(image).type) and kind.get_field_index("bytes") >= 0
    ):
        raise SJRobustError(
            f"{file}: expected an image column {' or '.join(IMAGE_COLUMNS)} = struct{{bytes,"
            f" path}}, {found}"
        )
    if label is None or not pa.types.is_integer(schema.field(label).type):
        raise SJRobustError(
            f"{file}: expected an integer label column {' or '.join(LABEL_COLUMNS)}, {found}"
        )
    return image, label


def _labels(parquet: pq.ParquetFile, column: str, file: Path) -> npt.NDArray[np.int64]:
    try:
        labels = parquet.read(columns=[column]).column(column).cast(pa.int64())
    except (OSError, pa.ArrowException) as error:
        raise SJRobustError(
            f"{file}: column {column} cannot be read: the file is damaged, fetch it again"
        ) from error
    if labels.null_count:
        raise SJRobustError(f"{file}: {labels.null_count} rows have no label")
    return labels.to_numpy()


def _blobs(
    opened: Sequence[pq.ParquetFile], files: Sequence[Path], column: str
) -> Iterator[Encoded]:
    for file, parquet in zip(files, opened, strict=True):
        try:
            for batch in parquet.iter_batches(batch_size=1024, columns=[column]):
                yield from batch.column(0).field("bytes").to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise SJRobustError(
                f"{file}: column {column} cannot be read: the file is damaged, fetch it again"
            ) from error


def _class_names(
    parquet: pq.ParquetFile, label: str, folder: Path, labels: npt.NDArray[np.int64]
) -> tuple[str, ...]:
    """Names from the Hub's metadata, else from classes.txt beside the file, else the numbers
    themselves."""
    try:
        metadata = json.loads((parquet.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
        names = metadata["info"]["features"][label]["names"]
        if isinstance(names, list) and names:
            return tuple(str(name) for name in names)
    except (ValueError, KeyError, TypeError):
        pass  # absent or of another shape: metadata is a convenience
    if (folder / CLASSES).is_file():
        return tuple(read_names(folder / CLASSES))
    return numbered(int(labels.max()))


def numbered(highest: int) -> tuple[str, ...]:
    """Numbers in the place of names, for labels of 0 to `highest`, which must be below
    MOST_CLASSES."""
    if highest >= MOST_CLASSES:
        raise SJRobustError(
            f"there is a label {highest}: expected class numbers from 0, below {MOST_CLASSES}"
        )
    return tuple(str(label) for label in range(highest + 1))


def read_names(file: Path) -> list[str]:
    """The lines of a text file that are not blank, in UTF-8 with or without a byte order mark."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SJRobustError(
            f"{file} cannot be read as UTF-8 text ({first_line(error)}): expected "
            "the name of a class a line"
        ) from None
    return [line.strip() for line in text.splitlines() if line.strip()]

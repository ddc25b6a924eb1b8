"""Images in parquet files, in the Hub's image layout."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
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
from sj_robust.data.source import CLASSES, PREFIXES, Source, numbered, read_names
from sj_robust.data.stream import EncodedImages, unpacked
from sj_robust.errors import SJRobustError
from sj_robust.files import sha256

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label")
_MOST_ROWS = 100_000_000  # a few bytes of parquet can claim any number
# the last four as in snapshots of Hub repositories
_SUBFOLDERS = (".", "data", "plain_text", "cropped_digits", "cifar100")


def parquet_files(folder: Path, split: str) -> list[Path]:
    """The parquet files of one split in a folder, shards in order; empty where the folder holds no
    parquet file at all."""
    every: list[Path] = []
    for place in (folder / name for name in _SUBFOLDERS):
        found = sorted(place.glob("*.parquet"))
        every += found
        for prefix in PREFIXES[split]:
            if files := [file for file in found if _starts(file, prefix)]:
                return _complete(files)
    if every:
        names = ", ".join(file.name for file in every[:5])
        raise SJRobustError(
            f"{folder} has no {split} split: expected {' or '.join(PREFIXES[split])}*.parquet,"
            f" found {names}"
        )
    return []


def split_in_name(file: Path) -> str | None:
    """The split that a file's name begins with: `valid_subset.parquet` is "test"; None where it
    says nothing."""
    return next(
        (
            split
            for split, prefixes in PREFIXES.items()
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
    return numbered(int(np.max(labels)))

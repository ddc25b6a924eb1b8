"""Write the embedded sample: a class-balanced, pixel-identical subset of CIFAR-10.

    python scripts/make_sample.py /path/to/cifar10    # holds train.parquet and test.parquet

Takes the first 200 training and 100 test images of every class, in file order, and keeps their
compressed bytes as they are. The same input gives the same files. Fails where an image is not
lossless or the result differs from the source.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sj_robust.data import ImageDataset, load_dataset
from sj_robust.errors import SJRobustError
from sj_robust.files import atomic_path, zoo_root

PER_CLASS = {"train": 200, "test": 100}
LIMIT = 6_000_000  # bytes, both files together: they travel in the wheel


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "cifar10", type=Path, help="folder with CIFAR-10's train.parquet and test.parquet"
    )
    parser.add_argument("--out", type=Path, help="folder to write to (default: zoo/sample)")
    arguments = parser.parse_args()
    try:
        out = arguments.out or zoo_root() / "sample"
        sizes = [
            write_split(arguments.cifar10, split, out / f"{split}.parquet") for split in PER_CLASS
        ]
        if sum(sizes) > LIMIT:
            raise SJRobustError(f"the sample takes {sum(sizes)} bytes, expected at most {LIMIT}")
    except SJRobustError as error:
        parser.exit(1, f"{error}\n")


def write_split(folder: Path, split: str, target: Path) -> int:
    """Write one split, read it back, compare every pixel and label with the source; return the
    file's size in bytes."""
    source = load_dataset(folder, split)  # type: ignore[arg-type]
    rows = choose(source, PER_CLASS[split])
    blobs = (
        pq.read_table(folder / f"{split}.parquet", columns=["img"])
        .column("img")
        .combine_chunks()
        .field("bytes")
        .take(rows.numpy())
    )
    if lossy := [
        row
        for row, blob in zip(rows.tolist(), blobs.to_pylist(), strict=True)
        if blob[12:16] != b"VP8L"
    ]:
        raise SJRobustError(
            f"{folder}: row {lossy[0]} of {split} is not lossless WebP, expected the lossless"
            " parquet files"
        )
    write(target, blobs, source.labels[rows], source.classes)
    copy, expected = load_dataset(target), source.subset(rows)
    if copy.fingerprint != expected.fingerprint or copy.classes != expected.classes:
        raise SJRobustError(
            f"{target} differs from its source: nothing of it can be trusted, delete it"
        )
    print(
        f"{target}: {len(copy)} images, {target.stat().st_size} bytes, fingerprint"
        f" {copy.fingerprint}"
    )
    return target.stat().st_size


def choose(source: ImageDataset, per_class: int) -> torch.Tensor:
    """Row numbers of the first `per_class` images of every class, ascending."""
    rows = [
        (source.labels == label).nonzero().flatten()[:per_class]
        for label in range(len(source.classes))
    ]
    if short := [
        name for name, found in zip(source.classes, rows, strict=True) if len(found) < per_class
    ]:
        raise SJRobustError(
            f"{source.name} {source.split} has fewer than {per_class} images of {short[0]}:"
            " expected the complete CIFAR-10"
        )
    return torch.cat(rows).sort().values


def write(target: Path, blobs: pa.Array, labels: torch.Tensor, classes: tuple[str, ...]) -> None:
    features = {"img": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    images = pa.StructArray.from_arrays(
        [blobs.cast(pa.binary()), pa.nulls(len(blobs), pa.string())], ["bytes", "path"]
    )
    table = pa.table({"img": images, "label": pa.array(labels.numpy())})
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    # WebP does not compress further; the checksums are verified on loading
    with atomic_path(target) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )


if __name__ == "__main__":
    main()

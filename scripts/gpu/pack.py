"""What a machine without a network lacks, in folders small enough to be carried there, and back to
what `load_dataset` reads.

Images become lossless WebP, 64 in a column: 8 % smaller than one by one. The labels, the names of
the classes and the fingerprints go with the first part, so that `unpack` knows that it has them
all, to the bit.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

LIMIT = 64 * 2**20  # bytes that travel in one call: the repository and the carried folders
SPARE = 3 * 2**19  # a kilobyte and a half for each of a thousand files, should they count in a tar
COLUMN = 64  # images
# of what sj-robust and spikingjelly need, on a machine with torch, timm, CuPy and the like
MISSING = ["spikingjelly", "loguru", "SciencePlots", "pyautoattack"]
MISSING += [
    "pydantic",
    "pydantic-core",
    "annotated-types",
    "typing-inspection",
    "typing-extensions",
]
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (28, 27, 17)] + ["manylinux2014_x86_64"]


def pack(data: str, to: Path, *, tests: int = 1000, wheels: bool = True) -> list[Path]:
    """Write `to`/1, `to`/2, … and return them."""
    room = LIMIT - SPARE - repository_bytes()
    for old in to.glob("*/images.zip"):
        old.unlink()
    first = to / "1"
    first.mkdir(parents=True, exist_ok=True)
    if wheels:
        fetch_wheels(first / "wheels")
    splits = {split: _read(data, split) for split in ("test", "train")}
    splits["test"] = splits["test"].first(tests)
    about = {
        "name": splits["train"].name,
        "classes": splits["train"].classes,
        "labels": {split: part.labels.tolist() for split, part in splits.items()},
        "fingerprints": {split: part.fingerprint for split, part in splits.items()},
    }
    part = first
    left = room - sum(file.stat().st_size for file in first.rglob("*.whl"))
    folders = [part]
    for name, content in [("about.json", json.dumps(about).encode()), *_columns(splits)]:
        left -= len(content) + 300  # and its entries in the archive
        if left < 0:
            part = to / str(len(folders) + 1)
            part.mkdir(exist_ok=True)
            folders.append(part)
            left = room - len(content) - 300
        with zipfile.ZipFile(part / "images.zip", "a") as archive:
            archive.writestr(name, content)
    return folders


def repository_bytes() -> int:
    """Of what travels anyway: tracked and untracked files, but for ignored ones."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split("\0")
    return sum(Path(name).stat().st_size for name in names if name and Path(name).is_file())


def fetch_wheels(folder: Path) -> None:
    """Of Python 3.12, in the versions that are installed here; without the examples in them, which
    are forty megabytes of weights in one."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "3.12", "--implementation", "cp", "--dest", str(folder)]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    subprocess.run([*command, *(f"{name}=={version(name)}" for name in MISSING)], check=True)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            kept = {n: archive.read(n) for n in archive.namelist() if "/examples/" not in n}
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for name, content in kept.items():
                archive.writestr(name, content)


def unpack(parts: Path, data: Path) -> str:
    """Join the archives `parts`/*.zip into `data`/NAME/{train,test}.parquet; a line on what is
    there."""
    content: dict[str, bytes] = {}
    for path in sorted(parts.glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            content |= {name: archive.read(name) for name in archive.namelist()}
    if "about.json" not in content:
        return "no images: carry the first part"
    about, lines = json.loads(content["about.json"]), []
    folder = data / about["name"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text("\n".join(about["classes"]) + "\n", encoding="utf-8")
    for split, labels in about["labels"].items():
        rows = [
            row
            for start in range(0, len(labels), COLUMN)
            if (column := content.get(f"{split}/{start}.webp"))
            for row in zip(_bitmaps(column), labels[start : start + COLUMN], strict=True)
        ]
        lines.append(f"{split} {len(rows)} of {len(labels)}")
        if rows:
            _write(folder / f"{split}.parquet", rows)
        if (
            len(rows) == len(labels)
            and _read(folder, split).fingerprint != about["fingerprints"][split]
        ):
            raise ValueError(f"{folder}: the {split} images are not those that were packed")
    return f"{about['name']}: {', '.join(lines)}"


def _read(data: Any, split: Any) -> Any:
    from sj_robust.data import load_dataset

    return load_dataset(data, split)


def _columns(splits: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    from PIL import Image

    for split, part in splits.items():
        for start in range(0, len(part), COLUMN):
            pixels = part.images[start : start + COLUMN].permute(0, 2, 3, 1).flatten(0, 1).numpy()
            image = io.BytesIO()
            Image.fromarray(pixels).save(image, "WEBP", lossless=True, quality=75, method=4)
            yield f"{split}/{start}.webp", image.getvalue()


def _bitmaps(column: bytes) -> Iterator[bytes]:
    from PIL import Image

    with Image.open(io.BytesIO(column)) as image:
        side = image.width
        for top in range(0, image.height, side):
            bitmap = io.BytesIO()
            image.crop((0, top, side, top + side)).convert("RGB").save(bitmap, "BMP")
            yield bitmap.getvalue()


def _write(path: Path, rows: list[tuple[bytes, int]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": image, "path": None} for image, _ in rows]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(
        pa.table({"img": pa.array(images, kind), "label": [label for _, label in rows]}), path
    )


if __name__ == "__main__":
    print(unpack(Path(sys.argv[1]), Path(sys.argv[2])))

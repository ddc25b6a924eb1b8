"""Small real files in the formats that users have."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sj_robust.data import ImageDataset, load_dataset


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_folders(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache or data."""
    monkeypatch.setenv("SJ_ROBUST_CACHE", str(cache))
    monkeypatch.delenv("SJ_ROBUST_DATA", raising=False)


@pytest.fixture(scope="session")
def sample() -> ImageDataset:
    return load_dataset("sample", "test")


@pytest.fixture
def shared() -> Path:
    """The folder of complete data sets beside the repository, where there is one."""
    root = Path(
        os.environ.get("SJ_ROBUST_SHARED") or Path(__file__).parents[2].parent / "shared" / "data"
    )
    if not (root / "cifar10" / "train.parquet").is_file():
        pytest.skip(f"no data sets in {root} (set SJ_ROBUST_SHARED)")
    return root


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """uint8 [H,W,3] or [H,W] to the bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def parquet() -> Callable[..., Path]:
    def write(
        path: Path,
        blobs: Sequence[bytes | None],
        labels: Sequence[int | None] | pa.Array,
        *,
        image: str = "img",
        label: str = "label",
        names: Sequence[str] | None = None,
        **options: Any,
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = pa.array(
            [{"bytes": blob, "path": None} for blob in blobs],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        )
        table = pa.table(
            {
                image: rows,
                label: labels if isinstance(labels, pa.Array) else pa.array(labels, pa.int64()),
            }
        )
        if names:
            features = {label: {"names": list(names), "_type": "ClassLabel"}}
            table = table.replace_schema_metadata(
                {"huggingface": json.dumps({"info": {"features": features}})}
            )
        pq.write_table(table, path, **options)
        return path

    return write


@pytest.fixture
def noise() -> Callable[..., np.ndarray]:
    """Distinct images of random pixels, uint8 [N,H,W,3]."""

    def make(count: int, height: int = 8, width: int = 8) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)

    return make


@pytest.fixture
def png() -> Callable[..., bytes]:
    return encode

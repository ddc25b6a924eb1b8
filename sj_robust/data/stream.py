"""Images that are decoded when they are asked for: what a data set holds where its decoded images
would not fit into memory."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sj_robust.data.decode import Crop, Encoded, Square, decode_images
from sj_robust.errors import SJRobustError
from sj_robust.files import atomic_path, cache_folder

STREAM_FROM = 8 * 2**30
"""Bytes: a data set whose decoded images would take more is decoded as it is used."""

AHEAD = 2  # batches decoded while one is computed with

T = TypeVar("T")
Rows = npt.NDArray[np.int64]


class EncodedImages:
    """Stands in the place of a tensor uint8 [N,3,S,S], or with channels=1 grey [N,1,S,S].

    Indexing with positions gives that tensor's rows, decoded, S×S. `identity` stands for the
    content of `items`, in fingerprints; `place(i)` names item i in errors.
    """

    def __init__(
        self,
        items: Sequence[Encoded],
        square: Square,
        identity: str,
        place: Callable[[int], str],
        rows: Rows | None = None,
        channels: int = 3,
    ) -> None:
        self._items, self._square, self._identity, self._place, self._channels = (
            items,
            square,
            identity,
            place,
            channels,
        )
        self._rows = np.arange(len(items)) if rows is None else rows

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self._rows), self._channels, self._square.size, self._square.size))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, positions: Tensor) -> Tensor:
        return self.subset(positions).decoded()

    def decoded(self, crops: Sequence[Crop] | None = None) -> Tensor:
        """All of them, the part of each that `crops` say instead of its centre square."""
        rows = self._rows
        pixels = decode_images(
            (self._items[row] for row in rows),
            len(rows),
            square=self._square,
            crops=crops,
            place=lambda i: self._place(rows[min(i, len(rows) - 1)]),
        )
        return in_channels(torch.from_numpy(pixels), self._channels)

    def subset(self, positions: Tensor | slice) -> EncodedImages:
        """Those at `positions`, still encoded."""
        rows = self._rows[positions if isinstance(positions, slice) else positions.numpy()]
        return EncodedImages(
            self._items, self._square, self._identity, self._place, rows, self._channels
        )

    def in_channels(self, channels: int) -> EncodedImages:
        """The same images, grey (1) or in colour (3) once they are decoded."""
        return EncodedImages(
            self._items, self._square, self._identity, self._place, self._rows, channels
        )

    def digest(self) -> Any:
        """A hash object fed with what tells these images from others: the stored files, the size
        they are brought to, the rows."""
        grey = "grey/" if self._channels == 1 else ""
        return hashlib.sha256(
            f"encoded/{self._identity}/{self._square}/{grey}".encode()
            + self._rows.astype("<i8").tobytes()
        )


def in_channels(images: Tensor, channels: int) -> Tensor:
    """Images uint8 [N,C,H,W] of 1 or 3 channels in 1 or 3: what is grey stays what it is, colours
    become the luma of ITU-R 601, by PIL's own arithmetic."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1).contiguous()
    grey = torch.empty_like(images[:, :1])
    # not all at once, as int32
    for some, into in zip(images.split(1024), grey.split(1024), strict=True):
        red, green, blue = some.int().unbind(1)
        into[:, 0] = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    return grey


class Blobs(Sequence[Encoded]):
    """Byte strings one after the other in a file; item i lies from offsets[i] to offsets[i+1]."""

    def __init__(self, path: Path, offsets: Rows) -> None:
        self._offsets = offsets
        with open(path, "rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: Any) -> Any:
        return self._bytes[self._offsets[row] : self._offsets[row + 1]] or None


def unpacked(key: str, items: Callable[[], Iterable[Encoded]], count: int) -> Blobs:
    """`items`, copied once into a file of the cache: parquet gives whole groups of rows only,
    training wants single ones in any order.

    Raises SJRobustError where the cache cannot be written, as it takes as much room as the items.
    """
    try:
        path = cache_folder() / "encoded" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.bin"
        index = path.with_suffix(".npy")
        if not _complete(path, index, count):
            lengths = []
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                for item in items():
                    assert item is None or isinstance(item, bytes)
                    lengths.append(file.write(item or b""))
            # last: it says that the other file is whole
            with atomic_path(index) as temporary, open(temporary, "wb") as file:
                np.save(file, np.cumsum([0, *lengths], dtype=np.int64), allow_pickle=False)
        return Blobs(path, np.load(index, allow_pickle=False))
    except (OSError, RuntimeError) as error:
        raise SJRobustError(
            "images too many to be held in memory are copied to the cache once, which failed"
            f" ({error}): make room, set SJ_ROBUST_CACHE to a folder with enough, or give a folder"
            " of images by class"
        ) from error


def _complete(path: Path, index: Path, count: int) -> bool:
    try:
        offsets = np.load(index, allow_pickle=False)
        return len(offsets) == count + 1 and os.path.getsize(path) == int(offsets[-1])
    except (OSError, ValueError):
        return False


def ahead(jobs: Iterable[Callable[[], T]]) -> Iterator[T]:
    """The results of `jobs` in order, each computed in a thread up to AHEAD places before it is
    asked for."""
    waiting: deque[Any] = deque()
    with ThreadPoolExecutor(1) as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(job))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for job_ahead in waiting:
                job_ahead.cancel()

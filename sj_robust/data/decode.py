"""Compressed images to one uint8 array in memory, and the cache that spares decoding them again."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from sj_robust.errors import SJRobustError
from sj_robust.files import atomic_path, cache_folder

CACHE_FROM = 5_000  # images: fewer decode in well under a second, so that a cache file would only litter the disk
_FORMATS = ("WEBP", "JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF")  # in the order tried; PIL's others include interpreters such as EPS
_TASK = 64  # images for one thread at a time: a task each costs more than decoding a small image
_VERSION = "1"  # part of every cache key: raise it whenever decoding changes

Pixels = npt.NDArray[np.uint8]
Encoded = bytes | Path | None
Box = tuple[int, int, int, int]  # left, top, right, bottom
Crop = Callable[[int, int], Box]  # from an image's width and height to the part of it that is wanted
T = TypeVar("T")


class Square(NamedTuple):
    """How images of all sizes become size×size: the short side is resized to `short` (bilinear, antialiased), then the centre is cut out.
    To the pixel as torchvision's Resize(short) and CenterCrop(size) do it."""

    size: int
    short: int


def decode_images(
    items: Iterable[Encoded], count: int, *, square: Square | None, place: Callable[[int], str], crops: Sequence[Crop] | None = None
) -> Pixels:
    """Decode `count` images (file contents or paths) to uint8 [count,3,H,W]; greyscale and palettes become RGB.

    With `square` they are brought to it; with `crops` too, one for each image, that part of the image is resized to the square instead.
    `place(i)` names image i in the error raised where it cannot be decoded or has another size than the first.
    """
    def decode(i: int, item: Encoded) -> Pixels:
        return _decode(item, square, place(i), crops[i] if crops else None)

    pixels: Pixels | None = None
    row = 0
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        tasks = _chunks(enumerate(items), _TASK)
        while some := list(islice(tasks, 16)):  # not all at once: `items` may be read from disk as it goes
            for image in chain.from_iterable(pool.map(lambda task: [decode(*numbered) for numbered in task], some)):
                if pixels is None:
                    pixels = np.empty((count, *image.shape), np.uint8)
                if image.shape != pixels.shape[1:]:
                    raise SJRobustError(
                        f"{place(row)} is {image.shape[2]}x{image.shape[1]} pixels but the first image is "
                        f"{pixels.shape[3]}x{pixels.shape[2]}: pass image_size to bring all images to one size"
                    )
                pixels[row] = image
                row += 1
    if pixels is None or row != count:
        raise SJRobustError(f"{place(row)}: expected {count} images, found {row}; the data is incomplete, fetch it again")
    return pixels


def cached(key: str, count: int, make: Callable[[], Pixels]) -> Pixels:
    """`make()`, or its result from an earlier run; `key` must identify the content, `count` is the expected length.

    A cache file is a plain .npy (never a pickle) followed by the SHA-256 of its pixels. One that is damaged is made again;
    a folder that cannot be written is no reason to fail.
    """
    try:
        folder = cache_folder()
    except RuntimeError:  # a user without a home folder
        return make()
    path = folder / "images" / f"{hashlib.sha256(f'{_VERSION}/{key}'.encode()).hexdigest()[:32]}.npy"
    pixels = _read(path, count)
    if pixels is None:
        pixels = make()
        try:
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                np.save(file, pixels, allow_pickle=False)
                file.write(hashlib.sha256(pixels.data).digest())
        except OSError:
            pass
    return pixels


def _read(path: Path, count: int) -> Pixels | None:
    try:
        with open(path, "rb") as file:
            pixels = np.lib.format.read_array(file, allow_pickle=False)  # np.load would also open archives and pickles
            digest = file.read()
    except (OSError, ValueError, MemoryError):
        return None
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or len(pixels) != count or not pixels.flags.c_contiguous:
        return None
    return pixels if hashlib.sha256(pixels.data).digest() == digest else None


def _decode(item: Encoded, square: Square | None, where: str, crop: Crop | None) -> Pixels:
    if item is None:
        raise SJRobustError(f"{where} holds no image bytes")
    try:
        with Image.open(io.BytesIO(item) if isinstance(item, bytes) else item, formats=_FORMATS) as image:
            if image.mode[0] in "IF":  # PIL would clip 16-bit and float pixels to 255 without a word
                raise ValueError(f"pixels of mode {image.mode} do not fit 8 bits")
            rgb = image.convert("RGB")
    except Exception as error:  # PIL raises nearly anything on damaged data
        detail = " ".join(str(error).split())
        raise SJRobustError(f"{where} cannot be decoded ({type(error).__name__}: {detail}): fetch or convert it again") from error
    if square is not None and crop is not None:
        rgb = rgb.crop(crop(*rgb.size)).resize((square.size, square.size), Image.Resampling.BILINEAR)
    elif square is not None:
        rgb = _squared(rgb, square)
    return np.asarray(rgb).transpose(2, 0, 1)


def _squared(image: Image.Image, square: Square) -> Image.Image:
    short = min(image.size)
    if short != square.short:
        width, height = (int(square.short * side / short) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (round((side - square.size) / 2) for side in image.size)
    return image.crop((left, top, left + square.size, top + square.size))


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk

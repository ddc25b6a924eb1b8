"""Compressed images to one uint8 array in memory, and the cache that spares decoding them again."""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import chain, islice
from pathlib import Path
from threading import Lock
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from sj_robust.errors import SJRobustError
from sj_robust.files import atomic_path, cache_folder

# images: fewer decode in well under a second, so that a cache file would only litter the disk
CACHE_FROM = 5_000
# in the order tried; PIL's others include interpreters such as EPS
_FORMATS = ("WEBP", "JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF")
HEAD = 512  # bytes that tell what a file is
_TASK = 64  # images for one thread at a time: a task each costs more than decoding a small image
_TASK_BYTES = 1 << 26  # of decoded images at most, as several tasks are under way
# of one image: ImageNet's largest has 61 million. A few hundred bytes of PNG can stand for any
# number
_MOST_PIXELS = 89_000_000
# pixels: larger images are decoded one at a time, as eight of them side by side take gigabytes
_LARGE = 4_000_000
_LONGEST_SIDE = 4096  # of images that stay as large as they are, which is what networks take
_VERSION = "1"  # part of every cache key: raise it whenever decoding changes

Pixels = npt.NDArray[np.uint8]
Encoded = bytes | Path | None
Box = tuple[int, int, int, int]  # left, top, right, bottom
# from an image's width and height to the part of it that is wanted
Crop = Callable[[int, int], Box]
T = TypeVar("T")
_one_at_a_time = Lock()


class Square(NamedTuple):
    """How images of all sizes become size×size: the short side is resized to `short` (bilinear,
    antialiased), then the centre is cut out. To the pixel as torchvision's Resize(short) and
    CenterCrop(size) do it."""

    size: int
    short: int

    @classmethod
    def of(cls, image_size: int | None, resize: int | None = None) -> Square | None:
        """From the options of those names; None where images stay as large as they are. Raises
        SJRobustError where they say nothing that can be done."""
        if image_size is not None and image_size < 1:
            raise SJRobustError(f"image_size={image_size}: expected a number of pixels, 1 or more")
        if resize is not None and (image_size is None or resize < image_size):
            raise SJRobustError(
                f"resize={resize}: expected image_size beside it, and at least as many pixels"
                f" (image_size={image_size})"
            )
        return None if image_size is None else cls(image_size, resize or image_size)


def decode_images(
    items: Iterable[Encoded],
    count: int,
    *,
    square: Square | None,
    place: Callable[[int], str],
    crops: Sequence[Crop] | None = None,
) -> Pixels:
    """Decode `count` images (file contents or paths) to uint8 [count,3,H,W]; greyscale and palettes
    become RGB.

    With `square` they are brought to it; with `crops` too, one for each image, that part of the
    image is resized to the square instead. `place(i)` names image i in the error raised where it
    cannot be decoded or has another size than the first.
    """
    numbered = enumerate(items)
    first = next(numbered, None)
    if first is None:
        raise SJRobustError(
            f"{place(0)}: expected {count} images, found 0; the data is incomplete, fetch it again"
        )
    image = _decode(first[1], square, place(0), crops[0] if crops else None)
    pixels = _room(count, image.shape, place(0))
    pixels[0] = image
    expected = None if square else (image.shape[2], image.shape[1])

    def decode(i: int, item: Encoded) -> Pixels:
        return _decode(item, square, place(i), crops[i] if crops else None, expected)

    row = 1
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        tasks = _chunks(numbered, max(1, min(_TASK, _TASK_BYTES // image.size)))
        # not all at once: `items` may be read from disk as it goes
        while some := list(islice(tasks, 16)):
            for image in chain.from_iterable(
                pool.map(lambda task: [decode(*one) for one in task], some)
            ):
                if row < count:
                    pixels[row] = image
                row += 1
    if row != count:
        raise SJRobustError(
            f"{place(min(row, count))}: expected {count} images, found {row}; the data is"
            " incomplete, fetch it again"
        )
    return pixels


def cached(key: str, count: int, make: Callable[[], Pixels]) -> Pixels:
    """`make()`, or its result from an earlier run; `key` must identify the content, `count` is the
    expected length.

    A cache file is a plain .npy (never a pickle) followed by the SHA-256 of its pixels. One that is
    damaged is made again; a folder that cannot be written is no reason to fail.
    """
    try:
        folder = cache_folder()
    except RuntimeError:  # a user without a home folder
        return make()
    path = (
        folder / "images" / f"{hashlib.sha256(f'{_VERSION}/{key}'.encode()).hexdigest()[:32]}.npy"
    )
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


def stand_in(head: bytes) -> str | None:
    """What lies in the place of a file that was not fetched, told from its first HEAD bytes."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "empty"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself (git lfs pull fetches it)"
    if b"/annex/objects/" in text:
        return "a git-annex pointer, not the file itself (git annex get fetches it)"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not the file itself (fetch it again, from the download link)"
    return None


def _read(path: Path, count: int) -> Pixels | None:
    try:
        with open(path, "rb") as file:
            # np.load would also open archives and pickles
            pixels = np.lib.format.read_array(file, allow_pickle=False)
            digest = file.read()
    except (OSError, ValueError, MemoryError):
        return None
    if (
        pixels.dtype != np.uint8
        or pixels.ndim != 4
        or len(pixels) != count
        or not pixels.flags.c_contiguous
    ):
        return None
    return pixels if hashlib.sha256(pixels.data).digest() == digest else None


def _room(count: int, shape: tuple[int, ...], where: str) -> Pixels:
    """An array for `count` images of `shape`. Raises SJRobustError where this machine has no room
    for it."""
    size, memory = count * math.prod(shape), _memory()
    advice = "pass image_size (--image-size) to bring all images to a smaller size"
    if size > memory:
        raise SJRobustError(
            f"{where} is {shape[2]}x{shape[1]} pixels: {count} such images take {size / 2**30:.1f}"
            f" GiB, this machine has {memory / 2**30:.1f}; {advice}"
        )
    try:
        return np.empty((count, *shape), np.uint8)
    except MemoryError:
        raise SJRobustError(
            f"no memory for {count} images of {shape[2]}x{shape[1]} pixels, {size / 2**30:.1f} GiB;"
            f" {advice}"
        ) from None


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return 1 << 60


def _check_size(width: int, height: int, square: Square | None) -> None:
    """Raise ValueError for an image that no data set holds: decoded, or brought to the square, it
    would fill the memory."""
    if width * height > _MOST_PIXELS:
        raise ValueError(f"{width}x{height} pixels, more than {_MOST_PIXELS:,}")
    if square is None and max(width, height) > _LONGEST_SIDE:
        raise ValueError(
            f"{width}x{height} pixels, more than {_LONGEST_SIDE} a side: pass image_size to make it"
            " smaller"
        )
    if (
        square is not None
        and max(width, height) / max(1, min(width, height)) * square.short**2 > _MOST_PIXELS
    ):
        raise ValueError(
            f"{width}x{height} pixels: too narrow to be brought to {square.short} pixels"
        )


def _decode(
    item: Encoded,
    square: Square | None,
    where: str,
    crop: Crop | None,
    expected: tuple[int, int] | None = None,
) -> Pixels:
    if item is None:
        raise SJRobustError(
            f"{where} holds no image bytes: expected them in the file, not a path or "
            "link beside them"
        )
    try:
        with Image.open(
            io.BytesIO(item) if isinstance(item, bytes) else item, formats=_FORMATS
        ) as image:
            # PIL would clip 16-bit and float pixels to 255 without a word
            if image.mode[0] in "IF":
                raise ValueError(f"pixels of mode {image.mode} do not fit 8 bits")
            # known from the header, before anything is decoded
            if expected and image.size != expected:
                raise SJRobustError(
                    f"{where} is {image.width}x{image.height} pixels but the first image is"
                    f" {expected[0]}x{expected[1]}: pass image_size to bring all images to one size"
                )
            _check_size(*image.size, square)
            with _one_at_a_time if math.prod(image.size) > _LARGE else nullcontext():
                return _pixels(image.convert("RGB"), square, crop)
    except SJRobustError:
        raise
    except Exception as error:  # PIL raises nearly anything on damaged data
        other = stand_in(_head(item))
        detail = f"it is {other}" if other else " ".join(str(error).split())
        raise SJRobustError(
            f"{where} cannot be decoded ({type(error).__name__}: {detail}): fetch or convert it"
            " again"
        ) from error


def _pixels(rgb: Image.Image, square: Square | None, crop: Crop | None) -> Pixels:
    if square is not None and crop is not None:
        rgb = rgb.crop(crop(*rgb.size)).resize(
            (square.size, square.size), Image.Resampling.BILINEAR
        )
    elif square is not None:
        rgb = _squared(rgb, square)
    return np.asarray(rgb).transpose(2, 0, 1)


def _head(item: bytes | Path) -> bytes:
    if isinstance(item, bytes):
        return item[:HEAD]
    try:
        with open(item, "rb") as file:
            return file.read(HEAD)
    except OSError:
        return b"unreadable"


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

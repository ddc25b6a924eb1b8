"""What a place that images come from tells, and the words that folders and parquet files share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sj_robust.data.decode import Pixels, Square
from sj_robust.data.stream import EncodedImages
from sj_robust.errors import SJRobustError, first_line

CLASSES = "classes.txt"
MOST_CLASSES = 100_000
# in order of preference
PREFIXES = {"train": ("train",), "test": ("test", "validation", "valid", "val")}


@dataclass(frozen=True)
class Source:
    """Labels and class names, read; and how to read the images: all uint8 [N,3,H,W], or one by one
    when used."""

    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    split: str
    read: Callable[[Square | None], Pixels]
    stream: Callable[[Square], EncodedImages]


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

"""Triggers: what a backdoor is opened with. A new one is a class here, registered by its name."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import astuple, dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from sj_robust.attack.noise import uniform_like
from sj_robust.budget import number
from sj_robust.data import ImageDataset
from sj_robust.errors import SJRobustError

_AT_ONCE = 1024  # images that are floats at the same time


class Trigger(ABC):
    """A fixed change of images. `str(trigger)` is its name, which `parse_trigger` reads.

    A new trigger is a frozen dataclass of numbers, registered by `register_trigger`.

    Attributes:
        family: the name's first word; the fields follow it, as in "patch:3".
    """

    family: ClassVar[str]

    @abstractmethod
    def stamp(self, images: Tensor) -> Tensor:
        """Images float [N, C, H, W] in [0, 1] → the same with the trigger, in [0, 1]."""

    def __str__(self) -> str:
        return ":".join([self.family, *(f"{value:.12g}" for value in astuple(self))])  # type: ignore[call-overload]


@dataclass(frozen=True)
class Patch(Trigger):
    """BadNets: a checkerboard of black and white pixels in the lower right corner.

    Source: Gu, Dolan-Gavitt & Garg, arXiv 1708.06733.

    Args:
        size: pixels of its side.

    Raises:
        SJRobustError: no size of at least 1; in `stamp`, images that are smaller.
    """

    family = "patch"
    size: int = 3

    def __post_init__(self) -> None:
        _require(self.size >= 1, f"a patch of {self.size} pixels", "at least 1")

    def stamp(self, images: Tensor) -> Tensor:
        """As the other.

        Raises:
            SJRobustError: the images are smaller than the patch.
        """
        size, smallest = self.size, min(images.shape[2:])
        _require(size <= smallest, f"a patch of {size} pixels", f"at most {smallest}, the image's")
        steps = torch.arange(size, device=images.device)
        stamped = images.clone()
        stamped[:, :, -size:, -size:] = ((steps[:, None] + steps + 1) % 2).to(images)
        return stamped


@dataclass(frozen=True)
class Blended(Trigger):
    """A fixed image of random pixels, blended in: (1 − α)·x + α·k.

    Source: Chen et al., arXiv 1712.05526, section 4 (blended injection with a random pattern).

    Args:
        alpha: 0 < α ≤ 1.

    Raises:
        SJRobustError: α outside of that.
    """

    family = "blended"
    alpha: float = 0.1

    def __post_init__(self) -> None:
        _require(0 < self.alpha <= 1, f"alpha {self.alpha:g}", "more than 0, at most 1")

    def stamp(self, images: Tensor) -> Tensor:
        """As the other."""
        like = torch.empty(1, *images.shape[1:], device=images.device)
        key = uniform_like(like, seed=0, ids=torch.zeros(1, dtype=torch.int64))
        return images.lerp(key.to(images), self.alpha)


@dataclass(frozen=True)
class Sine(Trigger):
    """SIG: a sinusoid along the columns, x + Δ·sin(2π·f·j/W), cut to [0, 1].

    Source: Barni, Kallas & Tondi, ICIP 2019, equation 1.

    Args:
        frequency: f, periods over the width of the image.
        amplitude: Δ in units of the image range (20 of 255 levels in the paper).

    Raises:
        SJRobustError: one that is not above 0, or Δ above 1.
    """

    family = "sine"
    frequency: float = 6
    amplitude: float = 0.08

    def __post_init__(self) -> None:
        _require(0 < self.frequency < math.inf, f"frequency {self.frequency:g}", "more than 0")
        _require(0 < self.amplitude <= 1, f"amplitude {self.amplitude:g}", "more than 0, at most 1")

    def stamp(self, images: Tensor) -> Tensor:
        """As the other."""
        columns = torch.arange(images.shape[3], device=images.device, dtype=torch.float64)
        wave = (2 * math.pi * self.frequency / images.shape[3] * columns).sin()
        return (images + self.amplitude * wave.to(images)).clamp(0, 1)


_TRIGGERS: dict[str, type[Trigger]] = {}


def register_trigger(kind: type[Trigger]) -> None:
    """Let `parse_trigger` read names that begin with the `family` of `kind`.

    Args:
        kind: a dataclass whose fields are numbers.
    """
    _TRIGGERS[kind.family] = kind


for _kind in (Patch, Blended, Sine):
    register_trigger(_kind)


def parse_trigger(text: str) -> Trigger:
    """The trigger of that name.

    Args:
        text: a family and its numbers, such as "patch:3", "blended:0.1", "sine:6:0.08"; numbers
            that are left out are the default, and fractions are read.

    Raises:
        SJRobustError: an unknown family, or numbers that are not its own.
    """
    family, *given = text.split(":")
    kind = _TRIGGERS.get(family)
    known = [":".join([name, *_names(one)]) for name, one in _TRIGGERS.items()]
    if kind is None:
        raise SJRobustError(f"unknown trigger {text!r}: expected one of {', '.join(known)}")
    names = _names(kind)
    if len(given) > len(names):
        raise SJRobustError(f"trigger {text!r}: expected {':'.join([family, *names])}")
    try:
        values = [number(word) for word in given]
        whole = [field.type in (int, "int") for field in fields(kind)]  # type: ignore[arg-type]
        for value, integer in zip(values, whole, strict=False):
            if integer and value != int(value):
                raise ValueError(f"{value:g} is not a whole number")
    except ValueError as error:
        raise SJRobustError(f"trigger {text!r}: {error}") from None
    return kind(*(int(v) if integer else v for v, integer in zip(values, whole, strict=False)))


def stamped(dataset: ImageDataset, trigger: Trigger) -> ImageDataset:
    """`dataset` with the trigger on every image, in 8 bits as a file would hold it."""
    parts = [
        trigger.stamp(dataset.floats(rows)).mul(255).round().to(torch.uint8)
        for rows in torch.arange(len(dataset)).split(_AT_ONCE)
    ]
    return replace(dataset, images=torch.cat(parts))


def _names(kind: type[Trigger]) -> list[str]:
    return [field.name.upper() for field in fields(kind)]  # type: ignore[arg-type]


def _require(holds: bool, found: str, expected: str) -> None:
    if not holds:
        raise SJRobustError(f"{found}: expected {expected}")

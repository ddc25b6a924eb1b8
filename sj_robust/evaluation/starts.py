"""Where later stages of a protocol start: each image's best adversarial image so far."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sj_robust.attack import Norm
from sj_robust.attack.base import project

_LEVELS = 127  # of int8


@dataclass(frozen=True)
class Start:
    """x_adv − x of one image as `codes` int8 [C·H·W] times `scale`/127, the `eps` at which it was
    found, the `margin` that x_adv had, and after how many stages that began anew.

    A byte a value: corners of the l∞ ball, where attacks end mostly, are kept as they are, and all
    of them together are never larger than the images themselves."""

    eps: float
    margin: float
    scale: float
    codes: bytes
    anew: int = 0

    def after(self, other: Start | None) -> bool:
        """Whether it stands for `other`, the one before: radii ascend, at each of them stages begin
        anew, and from there on an image's margin only falls."""
        return other is None or (-self.eps, -self.anew, self.margin) < (
            -other.eps,
            -other.anew,
            other.margin,
        )


@dataclass
class Starts:
    """The `Start` of every image that has one, by its index.

    A larger ball begins anew: what queries found in a small one is a dip of a rough surface, from
    which there is no way down in the larger one, while gradients have more room there. So does a
    stage that is to look elsewhere. What a stage starts from is read from here even if it has just
    been found, so that an evaluation that was stopped and one that was not go on from the same
    images."""

    norm: Norm
    known: dict[int, Start] = field(default_factory=dict)

    def of(self, chosen: Tensor, x: Tensor, eps: float, anew: int = 0) -> Tensor:
        """Images to start from, for those named by `chosen` int64 [n]: within eps of x [n, ...], x
        itself where none is known at this eps since the last stage that began anew."""
        begin = x.clone()
        for row, image in enumerate(chosen.tolist()):
            start = self.known.get(image)
            if start and (start.eps, start.anew) == (eps, anew):
                codes = torch.frombuffer(bytearray(start.codes), dtype=torch.int8).view(
                    x[row].shape
                )
                begin[row] += codes.to(x) * (start.scale / _LEVELS)
        return project(begin, x, eps, self.norm)

    def offer(
        self, chosen: Tensor, x: Tensor, x_adv: Tensor, margins: Tensor, eps: float, anew: int = 0
    ) -> None:
        """Take those of x_adv [n, ...] whose margin [n] is below that of what is known at `eps`
        since the last stage that began anew."""
        for row, (image, margin) in enumerate(zip(chosen.tolist(), margins.tolist(), strict=True)):
            if not Start(eps, margin, 0.0, b"", anew).after(self.known.get(image)):
                continue
            offset = (x_adv[row] - x[row]).contiguous()
            scale = float(offset.abs().max())
            codes = (offset * (_LEVELS / scale if scale else 0)).round_().to("cpu", torch.int8)
            self.known[image] = Start(eps, margin, scale, codes.numpy().tobytes(), anew)

    def drop(self, chosen: Tensor) -> None:
        """Forget images that no later stage will meet."""
        for image in chosen.tolist():
            self.known.pop(image, None)

    def merge(self, other: Starts) -> None:
        """Put in what another process or session has, where it is the later one."""
        for image, start in other.known.items():
            if start.after(self.known.get(image)):
                self.known[image] = start

    def to_json(self) -> dict[str, Any]:
        return {
            str(image): [start.eps, start.margin, start.scale, _text(start.codes), start.anew]
            for image, start in self.known.items()
        }

    @classmethod
    def from_json(cls, norm: Norm, found: Mapping[str, Any]) -> Starts:
        """Raises ValueError or TypeError on anything else."""
        return cls(
            norm,
            {
                int(image): Start(
                    float(eps),
                    float(margin),
                    float(scale),
                    base64.b85decode(codes),
                    *map(int, anew),
                )
                for image, (eps, margin, scale, codes, *anew) in found.items()
            },
        )


def _text(codes: bytes) -> str:
    return base64.b85encode(codes).decode()

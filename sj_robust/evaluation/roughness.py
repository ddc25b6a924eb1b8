"""How rough a network is: whether random points around an image, which no attack chose, change its
class."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from sj_robust.attack import UniformNoise
from sj_robust.attack.gradient import random_start
from sj_robust.evaluation.judge import Judge, TimeUp
from sj_robust.evaluation.report import Changed, Roughness

POINTS = 100
RADII = (1 / 255, 8 / 255)
IMAGES = 64  # of a named protocol, beside which 200 passes for each cost little


def measure_roughness(
    judge: Judge, correct: Tensor, images: int, others: Mapping[str, nn.Module], seed: int
) -> Roughness | None:
    """The share of the first `images` images that are right as they are (`correct` bool [n]) which
    some of POINTS uniform random points of the l∞ ball of each of RADII, clipped to [0, 1], change;
    judged by the true forward pass. The points depend on (seed, image) alone. `others`: models to
    set beside it, each on those of the images that it gets right itself. None where no image is
    right, or time ran out.
    """
    chosen = correct.nonzero().flatten()[:images]
    if not len(chosen):
        return None
    try:
        beside = {
            name: _rough(other, _right(other, chosen), seed)
            for name, model in others.items()
            for other in [replace(judge, model=model)]
        }
        return Roughness(
            points=POINTS,
            model=_rough(judge, chosen, seed),
            others={name: rough for name, rough in beside.items() if rough},
        )
    except TimeUp:
        return None


def _right(judge: Judge, chosen: Tensor) -> Tensor:
    return torch.cat([ids[(judge.predict(x) == y).cpu()] for ids, x, y in judge.batches(chosen)])


def _rough(judge: Judge, chosen: Tensor, seed: int) -> list[Changed]:
    noise = (seed << 32) + zlib.crc32(b"roughness")
    changed = [
        sum(_changed(judge, *batch, eps, noise) for batch in judge.batches(chosen)) for eps in RADII
    ]
    return [
        Changed.of(eps, count, len(chosen))
        for eps, count in zip(RADII, changed, strict=True)
        if len(chosen)
    ]


def _changed(judge: Judge, ids: Tensor, x: Tensor, y: Tensor, eps: float, seed: int) -> int:
    """How many of the images some point changes. Those that are changed are done with, and more
    points of the others fill a batch."""
    noise = UniformNoise(eps=eps)
    standing, draw = torch.arange(len(x), device=x.device), 0
    while len(standing) and draw < POINTS:
        draws = range(draw, min(POINTS, draw + max(1, judge.batch_size // len(standing))))
        around, named = x[standing], ids.to(x.device)[standing]
        points = [random_start(around, noise, seed, named, one) for one in draws]
        other = judge.predict(torch.cat(points)).view(len(draws), -1) != y[standing]
        standing, draw = standing[~other.any(0)], draws.stop
    return len(x) - len(standing)

"""Gradients of many sources in turn: where one lies flat, the next may not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sj_robust.attack.base import Attack, Best, Norm, l2_norm, project, require, steepest
from sj_robust.attack.gradient import random_start
from sj_robust.attack.loss import input_gradient, margin
from sj_robust.attack.noise import normal_like, uniform_like
from sj_robust.attack.view import Sources, true_logits

_MOMENTUM = 0.8
_FIRST, _LAST = 0.5, 0.02  # length of a step, as a share of eps
_AROUND = 0.25  # size of the noise around an image, as a share of eps
_DRAWS = 1 << 21  # per restart, apart from those of the random starts


@dataclass(frozen=True, kw_only=True)
class Rotating(Attack):
    """Steepest ascent with momentum, each step by another source of gradients.

    It ascends on the difference of logits max_{i≠y} z_i − z_y:

        m ← 0.8·m + g/mean|g|      x ← project(x + η·sign(m))      (l2: g/‖g‖, m/‖m‖)

    η falls on a cosine from eps/2 to 0.02·eps. A spiking network is a staircase: a gradient is that
    of one tread, and of a guess how it goes on (the view). So the views of a `Sources`, and other
    models in it, take turns in their order, and every other gradient is taken not at the image but
    at one moved by noise of up to eps/4, which counts as a find like any.

    The first attempt begins at `start`, or else at a random point, further `restarts` at random
    points. An image is left alone once it is broken. A model that is no `Sources` is its own only
    source.
    """

    steps: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps >= 1, f"steps is {self.steps}: expected at least 1")

    @property
    def name(self) -> str:
        return f"rotating{self.steps}"

    @property
    def iterations(self) -> int:
        return self.steps

    @property
    def takes_start(self) -> bool:
        return True

    @property
    def many_sources(self) -> bool:
        return True

    def run(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor | None,
        seed: int,
        ids: Tensor,
        start: Tensor | None = None,
    ) -> Tensor:
        y = self.labelled(y)
        sources = model if isinstance(model, Sources) else Sources(model, [model])
        best = Best(sources, x, y, self.targeted)
        if start is not None:
            best.offer(start)
        for restart in range(self.restarts):
            # chosen here, not in between: views keep statistics of the images of a batch
            at = best.standing
            if not len(at):
                break
            begin = random_start(x[at], self, seed, ids[at], restart)
            if start is not None and restart == 0:
                begin = start[at]
            self._ascend(sources, best, begin, x[at], y[at], at, seed, ids[at], restart)
        return best.x_adv

    def _ascend(
        self,
        sources: Sources,
        best: Best,
        x_adv: Tensor,
        x: Tensor,
        y: Tensor,
        at: Tensor,
        seed: int,
        ids: Tensor,
        restart: int,
    ) -> None:
        sources.forget()
        sign = 1.0 if self.targeted else -1.0
        m = torch.zeros_like(x)

        def offer(z: Tensor, logits: Tensor | None = None) -> None:
            # what is broken stays as it is, however long the others take
            alive = best.margin[at] >= 0
            best.offer(z[alive], None if logits is None else logits[alive], at[alive])

        for step in range(self.steps):
            source = sources.sources[step % len(sources.sources)]
            z = x_adv
            if step % 2:
                noise = self._noise(x, seed, ids, _DRAWS * (restart + 1) + step)
                z = project(x_adv + noise, x, self.eps, self.norm)
            gradient, logits, _ = input_gradient(source, lambda logits: sign * margin(logits, y), z)
            offer(z, true_logits(source, z, logits) if sources.decides(source) else None)
            if not (best.margin[at] >= 0).any():
                return
            m = _MOMENTUM * m + gradient / _size(gradient, self.norm).clamp_min(1e-30)
            along = (1 + math.cos(math.pi * step / max(1, self.steps - 1))) / 2
            eta = self.eps * (_LAST + (_FIRST - _LAST) * along)
            x_adv = project(x_adv + eta * steepest(m, self.norm), x, self.eps, self.norm)
        offer(x_adv)

    def _noise(self, x: Tensor, seed: int, ids: Tensor, draw: int) -> Tensor:
        """Around an image: uniform up to eps/4 per value under linf, of length eps/4 under l2."""
        if self.norm == "linf":
            return _AROUND * self.eps * (2 * uniform_like(x, seed, ids, draw) - 1)
        direction = normal_like(x, seed, ids, draw)
        return _AROUND * self.eps * direction / l2_norm(direction)


def _size(gradient: Tensor, norm: Norm) -> Tensor:
    if norm == "l2":
        return l2_norm(gradient)
    return gradient.abs().mean(dim=tuple(range(1, gradient.dim())), keepdim=True)

"""Square (Andriushchenko et al., ECCV 2020): random squares, kept where they help."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from sj_robust.attack.autoattack import NORMS, LibraryAttack
from sj_robust.attack.base import Best, l2_norm, project, require
from sj_robust.attack.noise import signs_like, uniform_like

_HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # after so many queries (section 4.1)
_DRAWS = 1 << 21  # per restart
_FROM_STRIPES, _FROM_START = 0.8, 0.1  # p0


@dataclass(frozen=True, kw_only=True)
class Square(LibraryAttack):
    """Black-box, from logits alone: random squares of the image, kept where they help.

    A square is moved to ±eps in each channel (l2: mass is moved from one square to another), and
    stays so where that lowers the margin. It begins at stripes, as in the paper, run by the library
    pyautoattack. Given a `start` it goes on from there: on a network whose gradients are those of a
    staircase it finds the edge close by that they do not show. What is left to gain there lies in
    small squares, half of which change no logit once they are single pixels: squares that leave the
    margin as it is are kept too, or it would stay on the tread where it stands. Source:
    Andriushchenko et al., ECCV 2020.

    Args:
        p0: share of the image that the first squares cover; default 0.8, and 0.1 from a `start`.
    """

    queries: int = 5000
    p0: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.queries >= 1, f"queries is {self.queries}: expected at least 1")
        require(
            self.p0 is None or 0 < self.p0 <= 1,
            f"p0 is {self.p0}: expected a share of the image, above 0 and at most 1",
        )

    @property
    def name(self) -> str:
        return f"square{self.queries}"

    @property
    def iterations(self) -> int:
        return self.queries

    @property
    def black_box(self) -> bool:
        return True

    @property
    def takes_start(self) -> bool:
        return True

    @property
    def settings(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in super().settings.items()
            if name != "p0" or value is not None
        }

    def run(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor | None,
        seed: int,
        ids: Tensor,
        start: Tensor | None = None,
    ) -> Tensor:
        if start is None:
            return super().run(model, x, y, seed, ids)
        y = self.labelled(y)
        best = Best(model, x, y, targeted=False)
        best.offer(start)
        for restart in range(self.restarts):
            self._walk(best, x, seed, ids, restart)
        return best.x_adv

    def _walk(self, best: Best, x: Tensor, seed: int, ids: Tensor, restart: int) -> None:
        """From each image's best, by draws of its own, until it is broken."""
        propose = _squares if self.norm == "linf" else _moved_mass
        channels, height, width = x.shape[1:]
        for query in range(self.queries):
            at = best.standing
            if not len(at):
                return
            share = (self.p0 or _FROM_START) / 2 ** bisect_left(_HALVED, query)
            side = min(max(round(math.sqrt(share * height * width)), 1), height, width)
            draws = uniform_like(
                x.new_zeros(len(at), channels + 5), seed, ids[at], _DRAWS * (restart + 1) + query
            )
            best.offer(propose(x[at], best.x_adv[at], self.eps, side, draws), at=at, drift=True)

    def search(
        self,
        model: nn.Module,
        best: Best,
        x: Tensor,
        y: Tensor,
        seed: int,
        ids: Tensor,
        restart: int,
    ) -> None:
        # Under linf all draws but the first are shared by the batch, whatever its size; under l2
        # they are not, so that only one image at a time keeps its result independent of the others.
        parts = (
            [torch.arange(len(x), device=x.device)]
            if self.norm == "linf"
            else list(torch.arange(len(x), device=x.device).split(1))
        )
        for at in parts:
            attack = _library(
                _nonempty(model), self, x.device, partial(_stripes, seed, ids[at], restart)
            )
            attack.init_hyperparam(x[at])
            own = 0 if self.norm == "linf" else int(ids[at])
            torch.manual_seed((seed * 1_000_003 + restart + own * 7_919) % (1 << 63))
            best.offer(attack.attack_single_run(x[at], y[at])[1], at=at)


def _squares(x: Tensor, x_best: Tensor, eps: float, side: int, draws: Tensor) -> Tensor:
    """One square of each image [n, C, H, W] at ±eps, its place and signs by `draws` in [0, 1) [n, C
    + 5]."""
    x_new = x_best.clone()
    x_new[_window(x, side, draws[:, 0], draws[:, 1])] += 2 * eps * _signs(draws)
    return project(x_new, x, eps)


def _moved_mass(x: Tensor, x_best: Tensor, eps: float, side: int, draws: Tensor) -> Tensor:
    """The perturbation of one square moved into another, where a bump and what is left of the ball
    are added (section 4.3)."""
    side = min(max(side, 3) | 1, *x.shape[2:])
    delta = x_best - x
    here, there = (
        _window(x, side, draws[:, 0], draws[:, 1]),
        _window(x, side, draws[:, 2], draws[:, 3]),
    )
    both = torch.zeros_like(x)
    both[here], both[there] = 1, 1
    mass = (delta * both).square().sum(dim=(2, 3), keepdim=True)
    left = (eps**2 - l2_norm(delta).square()).clamp_min(0) / x.shape[1]
    bump = _bump(side).to(x)
    bump = torch.where(draws[:, 4, None, None] < 0.5, bump, bump.T)[:, None] * _signs(draws)
    new = bump + _unit(delta[here])
    delta[there] = 0
    delta[here] = _unit(new) * (left + mass).sqrt()
    return project(x + delta * (eps / l2_norm(delta).clamp_min(1e-12)), x, eps, "l2")


def _window(x: Tensor, side: int, top: Tensor, left: Tensor) -> tuple[Tensor, ...]:
    """What indexes a square [n, C, side, side] of the images [n, C, H, W], each its own, by draws
    [n] in [0, 1)."""
    count, channels, height, width = x.shape
    along = torch.arange(side, device=x.device)
    rows = (top * (height - side + 1)).long()[:, None] + along
    columns = (left * (width - side + 1)).long()[:, None] + along
    image, channel = torch.arange(count, device=x.device), torch.arange(channels, device=x.device)
    return (
        image[:, None, None, None],
        channel[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    )


def _signs(draws: Tensor) -> Tensor:
    """−1 or +1 for each channel, [n, C, 1, 1]."""
    return torch.where(draws[:, 5:, None, None] < 0.5, -1.0, 1.0)


def _unit(z: Tensor) -> Tensor:
    """Each channel [n, C, h, w] scaled to length 1."""
    return z / (z.square().sum(dim=(2, 3), keepdim=True).sqrt() + 1e-12)


@cache
def _bump(side: int) -> Tensor:
    """Two pyramids of opposite sign beside each other, [side, side], of length 1."""
    from pyautoattack.square import SquareAttack

    pyramid = SquareAttack(None, norm="L2", eps=1.0, device=torch.device("cpu")).eta_rectangles
    bump = torch.cat([pyramid(side // 2, side), -pyramid(side - side // 2, side)])
    return bump / bump.norm()


def _library(
    model: Callable[[Tensor], Tensor],
    settings: Square,
    device: torch.device,
    stripes: Callable[[Tensor], Tensor],
) -> Any:
    from pyautoattack.square import SquareAttack

    class PerImage(SquareAttack):  # type: ignore[misc]
        def random_choice(self, shape: list[int]) -> Tensor:
            drawn = super().random_choice(shape)
            # the stripes of the start, the one draw per image
            if self.norm == "Linf" and len(shape) == 4:
                # so many numbers were drawn as there are images: back to the beginning
                torch.manual_seed(torch.initial_seed())
                return stripes(drawn)
            return drawn

    return PerImage(
        model,
        p_init=settings.p0 or _FROM_STRIPES,
        n_queries=settings.queries,
        eps=settings.eps,
        norm=NORMS[settings.norm],
        seed=0,
        device=device,
        resc_schedule=False,
    )


def _stripes(seed: int, ids: Tensor, restart: int, drawn: Tensor) -> Tensor:
    return signs_like(drawn, seed, ids, restart)


def _nonempty(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model, but for batches that the library has emptied."""
    classes = 0

    def predict(x: Tensor) -> Tensor:
        nonlocal classes
        if not len(x):
            return x.new_zeros(0, classes)
        logits: Tensor = model(x)
        classes = logits.shape[1]
        return logits

    return predict

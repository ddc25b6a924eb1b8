"""Random noise: the floor that every attack must beat."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from sj_robust.attack.base import Attack, Best, require
from sj_robust.attack.gradient import random_start


@dataclass(frozen=True, kw_only=True)
class UniformNoise(Attack):
    """Uniform points of the ball, the best of which is kept.

    Black-box, and no attack at all: if it breaks what gradients do not, the gradients are masked.

    Args:
        restarts: how many points.
    """

    restarts: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not self.targeted, "noise has no target")

    @property
    def name(self) -> str:
        return f"noise{self.restarts}"

    @property
    def iterations(self) -> int:
        return self.restarts

    @property
    def passes(self) -> int:
        return self.restarts

    @property
    def starts_at_random(self) -> bool:
        return False  # it consists of restarts

    @property
    def black_box(self) -> bool:
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
        best = Best(model, x, y, targeted=False)
        for restart in range(self.restarts):
            best.offer(random_start(x, self, seed, ids, restart))
        return best.x_adv

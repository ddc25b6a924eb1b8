"""One attack after another, round by round."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from sj_robust.attack.base import Attack, Best, require


@dataclass(frozen=True, kw_only=True)
class Rounds(Attack):
    """One attack, and a second from each image's best of it, round by round.

    Where a search from one image has come to rest, more of it finds little: the dip of a rough
    surface in which it sits has no way out. Another first image lies in another dip, and the best
    of several has one that goes deeper.

    Args:
        first: at the eps, norm and target of the whole.
        second: the same, of those that `takes_start`.
        restarts: rounds; each begins anew, with noise of its own, for the images that still stand.
    """

    first: Attack
    second: Attack

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.second.takes_start,
            f"{self.second.name} cannot start from an image that is given: expected rotatingN or "
            "squareN after the +",
        )
        for part in (self.first, self.second):
            require(
                (part.eps, part.norm, part.targeted) == (self.eps, self.norm, self.targeted),
                f"{part.name} has another eps, norm or target than {self.name}: give all the same",
            )

    @property
    def name(self) -> str:
        return f"{self.first.name}+{self.second.name}"

    @property
    def iterations(self) -> int:
        return self.first.iterations + self.second.iterations

    @property
    def passes(self) -> int:
        return self.restarts * (self.first.passes + self.second.passes)

    @property
    def black_box(self) -> bool:
        return self.first.black_box and self.second.black_box

    @property
    def gradients_alone(self) -> bool:
        return self.first.gradients_alone and self.second.gradients_alone

    @property
    def starts_at_random(self) -> bool:
        return self.first.starts_at_random

    @property
    def many_sources(self) -> bool:
        return self.first.many_sources or self.second.many_sources

    @property
    def least_classes(self) -> int:
        return max(self.first.least_classes, self.second.least_classes)

    def for_classes(self, classes: int) -> Rounds:
        parts = self.first.for_classes(classes), self.second.for_classes(classes)
        return replace(self, first=parts[0], second=parts[1])

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {"first": self.first.settings, "second": self.second.settings}

    def run(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor | None,
        seed: int,
        ids: Tensor,
        start: Tensor | None = None,
    ) -> Tensor:
        y = self.second.labelled(y)
        best = Best(model, x, y, self.targeted)
        for restart in range(self.restarts):
            at = best.standing
            if not len(at):
                break
            found = self.first.run(model, x[at], y[at], seed + restart, ids[at])
            best.offer(self.second.run(model, x[at], y[at], seed + restart, ids[at], found), at=at)
        return best.x_adv

"""FGSM, RFGSM, PGD and SA-PGD: one loop of start, step and projection (after Foolbox's
gradient_descent_base)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sj_robust.attack.base import Attack, Best, l2_norm, project, require, steepest
from sj_robust.attack.loss import Loss, Objective, input_gradient, objective
from sj_robust.attack.noise import normal_like, signs_like, uniform_like
from sj_robust.attack.view import forget


@dataclass(frozen=True, kw_only=True)
class GradientAttack(Attack):
    """Steepest ascent on a loss.

    Args:
        loss: "ce", "dlr" or "kl" (which needs no labels). Targeted attacks descend on "ce".
    """

    loss: Loss = "ce"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.loss in ("ce", "kl", "dlr"), f'loss is {self.loss!r}: expected "ce", "dlr" or "kl"'
        )
        require(
            self.loss == "ce" or not self.targeted,
            f'a targeted attack descends on the loss "ce", not on "{self.loss}"',
        )

    @property
    def least_classes(self) -> int:
        return 3 if self.loss == "dlr" else 2

    def for_classes(self, classes: int) -> GradientAttack:
        return self if classes >= self.least_classes else replace(self, loss="ce")

    @property
    def stride(self) -> float:
        """Length of one step."""
        return self.eps

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "step_size": self.stride}

    @property
    def last(self) -> bool:
        """Whether the last image is wanted, not the best."""
        return False

    def start(self, x: Tensor, seed: int, ids: Tensor, restart: int) -> Tensor:
        """Where the ascent begins, [N, ...]."""
        return x

    def run(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor | None,
        seed: int,
        ids: Tensor,
        start: Tensor | None = None,
    ) -> Tensor:
        goal = self.goal(model, x, y)
        # then there is one image to return, and nothing to compare
        only = self.last or self.iterations * self.restarts == 1
        best = None if only else Best(model, x, _labels(model, x, y), self.targeted)
        x_adv = x
        for restart in range(self.restarts):
            forget(model)
            x_adv = self.start(x, seed, ids, restart)
            for _ in range(self.iterations):
                gradient, logits, _ = input_gradient(model, goal, x_adv)
                if best:
                    best.offer(x_adv, logits)
                x_adv = project(
                    x_adv + self.stride * steepest(gradient, self.norm), x, self.eps, self.norm
                )
            if best:
                best.offer(x_adv)
        return best.x_adv if best else x_adv

    def goal(self, model: nn.Module, x: Tensor, y: Tensor | None) -> Objective:
        """Logits [N, K] → values [N] to maximise."""
        rising = objective(self.loss, model, x, y)
        return (lambda logits: -rising(logits)) if self.targeted else rising


@dataclass(frozen=True, kw_only=True)
class FGSM(GradientAttack):
    """One step of length eps from x (Goodfellow et al., ICLR 2015).

    Not on "kl": the gradient of KL at x itself is 0.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.loss != "kl",
            'FGSM with loss="kl" goes nowhere (its gradient at x is 0): use RFGSM or PGD',
        )
        require(self.restarts == 1, "FGSM always starts at x: restarts find nothing new, use PGD")

    @property
    def starts_at_random(self) -> bool:
        return False

    @property
    def one_sign(self) -> bool:
        return self.norm == "linf"


@dataclass(frozen=True, kw_only=True)
class RFGSM(GradientAttack):
    """x' = clip(x + alpha·sign(N(0, 1))), then one step of eps − alpha.

    Source: Tramèr et al., ICLR 2018.

    Args:
        alpha: length of the random step; default eps/2.
    """

    alpha: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.norm == "linf", "RFGSM is defined under linf: use PGD under l2")
        require(
            self.alpha is None or 0 <= self.alpha <= self.eps,
            f"alpha is {self.alpha}: expected 0 ≤ alpha ≤ eps = {self.eps}",
        )

    @property
    def jump(self) -> float:
        """Length of the random step."""
        return self.eps / 2 if self.alpha is None else self.alpha

    @property
    def stride(self) -> float:
        return self.eps - self.jump

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "alpha": self.jump}

    def start(self, x: Tensor, seed: int, ids: Tensor, restart: int) -> Tensor:
        return project(x + self.jump * signs_like(x, seed, ids, restart), x, self.eps)


@dataclass(frozen=True, kw_only=True)
class PGD(GradientAttack):
    """`steps` steps from a uniform point of the ball, or from x (Madry et al., ICLR 2018).

    Args:
        step_size: default 2.5·eps/steps.
        random_start: False starts at x.
        keep: "last" returns the last image instead of the best, at one forward pass less: what
            training calls for.
    """

    steps: int = 10
    step_size: float | None = None
    random_start: bool = True
    keep: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps >= 1, f"steps is {self.steps}: expected at least 1")
        require(
            self.step_size is None or (math.isfinite(self.step_size) and self.step_size >= 0),
            f"step_size is {self.step_size}: expected a number ≥ 0, or None for 2.5·eps/steps",
        )
        require(
            self.random_start or self.loss != "kl",
            'PGD with loss="kl" needs random_start=True: the gradient of KL at x itself is 0',
        )
        require(
            self.random_start or self.restarts == 1,
            "restarts without a random start all do the same: use random_start=True",
        )
        require(self.keep in ("best", "last"), f'keep is {self.keep!r}: expected "best" or "last"')
        require(
            self.keep == "best" or self.restarts == 1,
            'keep="last" with restarts would waste all but one: use keep="best"',
        )

    @property
    def name(self) -> str:
        return f"pgd{self.steps}"

    @property
    def iterations(self) -> int:
        return self.steps

    @property
    def starts_at_random(self) -> bool:
        return self.random_start

    @property
    def last(self) -> bool:
        return self.keep == "last"

    @property
    def stride(self) -> float:
        return 2.5 * self.eps / self.steps if self.step_size is None else self.step_size

    def start(self, x: Tensor, seed: int, ids: Tensor, restart: int) -> Tensor:
        return random_start(x, self, seed, ids, restart) if self.random_start else x


@dataclass(frozen=True, kw_only=True)
class SAPGD(GradientAttack):
    """Stable adaptive PGD, made for the ragged gradients of spiking networks.

        m ← 0.5·m + g/mean|g|      w ← 0.8·w + g²/mean(g²)      x ← project(x + clip(η·m/√w, −η, η))

    from a uniform point of the ball. η starts at eps and is halved, going on from the image of
    highest loss, at the check-points of APGD. Best through the ASSG view. Source: Wang et al.,
    arXiv 2512.22522, section 5 (whose code halves without going back).
    """

    steps: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps >= 1, f"steps is {self.steps}: expected at least 1")
        require(self.norm == "linf", "SA-PGD is defined under linf: use APGD under l2")
        require(self.loss != "kl", 'SA-PGD ascends on "ce" or "dlr"')

    @property
    def name(self) -> str:
        return f"sapgd{self.steps}-{self.loss}"

    @property
    def family(self) -> str:
        return f"sapgd-{self.loss}"

    @property
    def iterations(self) -> int:
        return self.steps

    def run(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor | None,
        seed: int,
        ids: Tensor,
        start: Tensor | None = None,
    ) -> Tensor:
        goal = self.goal(model, x, y)
        best = Best(model, x, _labels(model, x, y), self.targeted)
        for restart in range(self.restarts):
            forget(model)
            self._ascend(model, goal, best, x, random_start(x, self, seed, ids, restart))
        return best.x_adv

    def _ascend(
        self, model: nn.Module, goal: Objective, best: Best, x: Tensor, x_adv: Tensor
    ) -> None:
        m, w = torch.zeros_like(x), torch.zeros_like(x)
        top, top_gradient = x_adv.clone(), torch.zeros_like(x)
        top_value = torch.full((len(x),), -torch.inf, device=x.device)
        eta, checks = self.eps, checkpoints(self.steps)
        for step in range(self.steps):
            gradient, logits, values = input_gradient(model, goal, x_adv)
            best.offer(x_adv, logits)
            higher = values > top_value
            top[higher], top_gradient[higher], top_value[higher] = (
                x_adv[higher],
                gradient[higher],
                values[higher],
            )
            if step in checks:
                eta, x_adv, gradient = eta / 2, top, top_gradient
            relative = gradient / _mean(gradient.abs()).clamp_min(1e-30)
            m = 0.5 * m + relative
            w = 0.8 * w + relative.square() / _mean(relative.square()).clamp_min(1e-30)
            x_adv = project(x_adv + (eta * m / (w.sqrt() + 1e-12)).clamp_(-eta, eta), x, self.eps)
        best.offer(x_adv)


def checkpoints(steps: int) -> frozenset[int]:
    """The iterations at which APGD looks back: the first after 22 % of them, later ones at gaps 3 %
    shorter each, at least 6 % (Croce & Hein, ICML 2020, section 3)."""
    gap, at, found = max(int(0.22 * steps), 1), 0, []
    while at + gap < steps:
        at += gap
        found.append(at)
        gap = max(gap - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    return frozenset(found)


def random_start(x: Tensor, attack: Attack, seed: int, ids: Tensor, restart: int) -> Tensor:
    """A uniform point of the ball, clipped into [0, 1]."""
    if attack.norm == "linf":
        offset = attack.eps * (2 * uniform_like(x, seed, ids, restart) - 1)
    else:
        direction = normal_like(x, seed, ids, restart)
        share = uniform_like(x.flatten(1)[:, :1], seed, ids, restart + (1 << 20)) ** (
            1 / x[0].numel()
        )
        offset = attack.eps * direction / l2_norm(direction) * share.view(-1, *(1,) * (x.dim() - 1))
    return project(x + offset, x, attack.eps, attack.norm)


def _labels(model: nn.Module, x: Tensor, y: Tensor | None) -> Tensor:
    """Labels to measure margins by: the given ones, else the model's own."""
    if y is not None:
        return y
    with torch.no_grad():
        return model(x).argmax(1)  # type: ignore[no-any-return]


def _mean(z: Tensor) -> Tensor:
    return z.mean(dim=tuple(range(1, z.dim())), keepdim=True)

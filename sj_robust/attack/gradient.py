"""FGSM, RFGSM and PGD in the l∞ ball: one loop of start, step and projection (after Foolbox's gradient_descent_base)."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sj_robust.attack.loss import Loss, input_gradient, objective
from sj_robust.attack.mode import attack_mode
from sj_robust.attack.noise import signs_like, uniform_like
from sj_robust.errors import SJRobustError

KNOWN = "fgsm, rfgsm, pgdN (N steps, for example pgd10)"


@dataclass(frozen=True, kw_only=True)
class LinfAttack:
    """Signed gradient ascent on a loss, inside |x_adv − x| ≤ eps and [0, 1]. Use FGSM, RFGSM or PGD.

    eps is in units of the image range [0, 1]. Calling it, `attack(model, x, y, seed=0, ids=None)`, takes images x float32
    [N, C, H, W] in [0, 1] and labels y int64 [N] (not needed for loss="kl") and returns x_adv of the same shape and memory
    format. The model runs in eval mode; its training flags, its parameters' requires_grad and the global random state
    are as before afterwards, whatever happens. `ids` int64 [N] (default 0…N−1) name the images: noise depends on
    (seed, id) alone, never on batch or order. Raises SJRobustError on settings or images out of range.
    """

    eps: float
    loss: Loss = "ce"

    def __post_init__(self) -> None:
        _require(math.isfinite(self.eps) and self.eps >= 0, f"eps is {self.eps}: expected a number ≥ 0, such as 8/255")
        _require(self.loss in ("ce", "kl"), f'loss is {self.loss!r}: expected "ce" or "kl"')

    @property
    def name(self) -> str:
        """The name under which `parse_attack` knows it."""
        return type(self).__name__.lower()

    @property
    def iterations(self) -> int:
        return 1

    @property
    def stride(self) -> float:
        """Length of one step."""
        return self.eps

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that defines the attack, defaults resolved, JSON-able, for reports."""
        return {"name": self.name, **asdict(self), "step_size": self.stride}

    def start(self, x: Tensor, seed: int, ids: Tensor) -> Tensor:
        """Where the ascent begins, [N, ...]."""
        return x

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor | None = None, *, seed: int = 0, ids: Tensor | None = None) -> Tensor:
        _check_batch(x, y, ids)
        with attack_mode(model, x.device):
            x = x.detach().clone()  # clones: inference tensors cannot take part in autograd
            goal = objective(self.loss, model, x, None if y is None else y.detach().clone())
            x_adv = self.start(x, seed, torch.arange(len(x), device=x.device) if ids is None else ids)
            for _ in range(self.iterations):
                gradient = input_gradient(model, goal, x_adv)
                x_adv = project(x_adv + self.stride * gradient.sign(), x, self.eps)
            return x_adv


@dataclass(frozen=True, kw_only=True)
class FGSM(LinfAttack):
    """One step of length eps from x (Goodfellow et al., ICLR 2015). Only loss="ce": the gradient of KL at x itself is 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.loss == "ce", 'FGSM with loss="kl" goes nowhere (its gradient at x is 0): use RFGSM or PGD')


@dataclass(frozen=True, kw_only=True)
class RFGSM(LinfAttack):
    """x' = clip(x + alpha·sign(N(0, 1))), then one step of eps − alpha (Tramèr et al., ICLR 2018). alpha defaults to eps/2."""

    alpha: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.alpha is None or 0 <= self.alpha <= self.eps, f"alpha is {self.alpha}: expected 0 ≤ alpha ≤ eps = {self.eps}")

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

    def start(self, x: Tensor, seed: int, ids: Tensor) -> Tensor:
        return project(x + self.jump * signs_like(x, seed, ids), x, self.eps)


@dataclass(frozen=True, kw_only=True)
class PGD(LinfAttack):
    """`steps` steps of step_size (default 2.5·eps/steps) from a uniform point of the ball, or from x (Madry et al., ICLR 2018)."""

    steps: int = 10
    step_size: float | None = None
    random_start: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.steps >= 1, f"steps is {self.steps}: expected at least 1")
        _require(self.step_size is None or (math.isfinite(self.step_size) and self.step_size >= 0),
                 f"step_size is {self.step_size}: expected a number ≥ 0, or None for 2.5·eps/steps")
        _require(self.random_start or self.loss == "ce", 'PGD with loss="kl" needs random_start=True: the gradient of KL at x itself is 0')

    @property
    def name(self) -> str:
        return f"pgd{self.steps}"

    @property
    def iterations(self) -> int:
        return self.steps

    @property
    def stride(self) -> float:
        return 2.5 * self.eps / self.steps if self.step_size is None else self.step_size

    def start(self, x: Tensor, seed: int, ids: Tensor) -> Tensor:
        if not self.random_start:
            return x
        return project(x + self.eps * (2 * uniform_like(x, seed, ids) - 1), x, self.eps)


def project(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """The nearest image to `x_adv` with |x_adv − x| ≤ eps and values in [0, 1]."""
    return torch.clamp(torch.minimum(torch.maximum(x_adv, x - eps), x + eps), 0, 1)


def parse_attack(name: str, eps: float) -> LinfAttack:
    """"fgsm", "rfgsm" or "pgdN" → the attack at `eps` with its default settings. Raises SJRobustError on any other name."""
    if name == "fgsm":
        return FGSM(eps=eps)
    if name == "rfgsm":
        return RFGSM(eps=eps)
    if match := re.fullmatch(r"pgd([1-9]\d{0,5})", name):
        return PGD(eps=eps, steps=int(match[1]))
    raise SJRobustError(f"unknown attack {name!r}: expected one of {KNOWN}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise SJRobustError(message)


def _check_batch(x: Tensor, y: Tensor | None, ids: Tensor | None) -> None:
    _require(x.dtype == torch.float32 and x.dim() >= 2, f"images are {x.dtype} {list(x.shape)}: expected float32 [N, C, H, W]")
    _require(y is None or y.shape == x.shape[:1], f"labels have shape {None if y is None else list(y.shape)}: expected [{len(x)}]")
    _require(ids is None or ids.shape == x.shape[:1], f"ids have shape {None if ids is None else list(ids.shape)}: expected [{len(x)}]")
    if x.numel():
        low, high = (float(bound) for bound in x.detach().aminmax())
        _require(low >= 0 and high <= 1, f"images lie in [{low:.3g}, {high:.3g}]: expected [0, 1] (normalisation belongs inside the model)")

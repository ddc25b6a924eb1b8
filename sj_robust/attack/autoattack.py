"""APGD and FAB of AutoAttack (Croce & Hein, ICML 2020), run by the library pyautoattack under our
contract.

The library is the authors' code without its dependencies. Its random numbers come from torch's
global state, so that an image's start would depend on its batch; here every start is given to it, a
function of (seed, image id, restart).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sj_robust.attack.base import Attack, Best, l2_norm, require
from sj_robust.attack.noise import normal_like, uniform_like
from sj_robust.attack.view import forget

_SILENT = logging.getLogger("sj_robust.autoattack")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False  # its warnings about zero gradients are a check of ours

NORMS = {"linf": "Linf", "l2": "L2"}


@dataclass(frozen=True, kw_only=True)
class LibraryAttack(Attack):
    """Settings common to the attacks of pyautoattack."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.targeted,
            f"{self.name} looks for any other class: use PGD with targeted=True to reach a"
            " given one",
        )

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
        plain = x.contiguous()  # the library views tensors in the default memory format
        for restart in range(self.restarts):
            self.search(model, best, plain, y, seed, ids, restart)
        return best.x_adv

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
        """Offer images to `best`."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class APGD(LibraryAttack):
    """Auto-PGD: momentum, and a step size halved where the loss stops rising.

    Source: Croce & Hein, ICML 2020.

    Args:
        loss: "ce", "dlr", or "t": the targeted DLR against each of the `targets` likeliest other
            classes in turn, on what is still standing.
    """

    loss: Literal["ce", "dlr", "t"] = "ce"
    steps: int = 100
    targets: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.loss in ("ce", "dlr", "t"),
            f'loss is {self.loss!r}: expected "ce", "dlr" or "t" (targeted)',
        )
        require(self.steps >= 1, f"steps is {self.steps}: expected at least 1")
        require(self.targets >= 1, f"targets is {self.targets}: expected at least 1")

    @property
    def name(self) -> str:
        fewer = self.targets if self.loss == "t" and self.targets != 9 else ""
        return f"apgd{self.steps}-{self.loss}{fewer}"

    @property
    def family(self) -> str:
        return f"apgd-{self.loss}"

    @property
    def iterations(self) -> int:
        return self.steps * (self.targets if self.loss == "t" else 1)

    @property
    def least_classes(self) -> int:
        return {"ce": 2, "dlr": 3, "t": 4}[self.loss]

    def for_classes(self, classes: int) -> APGD:
        """The attack that runs in this one's place on a model of so few classes.

        With three classes on the difference of logits ratio itself, with two, where that has no
        third logit to divide by, on the cross-entropy, which then rises wherever the ratio does.
        """
        if classes >= self.least_classes:
            return self
        return replace(self, loss="dlr" if classes >= 3 else "ce")

    @property
    def settings(self) -> dict[str, Any]:
        settings = super().settings
        return (
            settings
            if self.loss == "t"
            else {name: value for name, value in settings.items() if name != "targets"}
        )

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
        _check_classes(model, x[:1], self.least_classes, self.name)
        if self.loss != "t":
            self._ascend(
                model, best, x, y, None, seed, ids, restart, torch.arange(len(x), device=x.device)
            )
            return
        with torch.no_grad():
            ranked = (
                model(x).scatter(1, y[:, None], -torch.inf).sort(dim=1, descending=True).indices
            )
        for target in range(min(self.targets, ranked.shape[1] - 1)):
            at = best.standing
            if len(at):
                self._ascend(
                    model,
                    best,
                    x,
                    y,
                    ranked[:, target],
                    seed,
                    ids,
                    restart * self.targets + target,
                    at,
                )

    def _ascend(
        self,
        model: nn.Module,
        best: Best,
        x: Tensor,
        y: Tensor,
        target: Tensor | None,
        seed: int,
        ids: Tensor,
        draw: int,
        at: Tensor,
    ) -> None:
        from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

        forget(model)
        common = dict(
            n_iter=self.steps, norm=NORMS[self.norm], eps=self.eps, device=x.device, logger=_SILENT
        )
        if target is None:
            attack = APGDAttack(model, loss=self.loss, **common)
        else:
            attack = APGDAttack_targeted(model, **common)
            attack.y_target = target[at]
        attack.init_hyperparam(x)
        start = x[at] + self.eps * _unit_noise(x[at], self.norm, seed, ids[at], draw)
        highest, _, _, misclassified = attack.attack_single_run(x[at], y[at], x_init=start)
        # The two differ where the view's forward pass is not the true one, or where the loss does
        # not follow the margin.
        best.offer(highest, at=at)
        best.offer(misclassified, at=at)


@dataclass(frozen=True, kw_only=True)
class FAB(LibraryAttack):
    """Fast adaptive boundary: the nearest image across a linearised boundary.

    It starts at x, without noise. Source: Croce & Hein, ICML 2020b.

    Args:
        targets: 0 takes all classes at once, a gradient for each; else the targeted version, one
            class at a time.
    """

    steps: int = 100
    targets: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps >= 1, f"steps is {self.steps}: expected at least 1")
        require(self.targets >= 0, f"targets is {self.targets}: expected 0 (untargeted) or more")
        require(
            self.restarts == 1,
            "FAB starts at the image: restarts of the library depend on the batch and are left out",
        )

    @property
    def family(self) -> str:
        return "fab-t" if self.targets else "fab"

    @property
    def starts_at_random(self) -> bool:
        return False

    @property
    def iterations(self) -> int:
        return self.steps * max(1, self.targets)

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
        from pyautoattack.fab_pt import FABAttack_PT

        forget(model)
        classes = _check_classes(model, x[:1], 2, self.name)
        attack = FABAttack_PT(
            model,
            norm=NORMS[self.norm],
            n_restarts=1,
            n_iter=self.steps,
            eps=self.eps,
            seed=0,
            device=x.device,
            targeted=bool(self.targets),
            n_target_classes=min(self.targets, classes - 1),
        )
        found = attack.perturb(x, y)
        # It may return images outside of the ball by rounding; those just beyond are pulled in, and
        # judged again.
        best.offer((x + (found - x).clamp(-self.eps, self.eps)) if self.norm == "linf" else found)


def _unit_noise(x: Tensor, norm: str, seed: int, ids: Tensor, draw: int) -> Tensor:
    """APGD's start: noise scaled to the boundary of the unit ball."""
    if norm == "l2":
        noise = normal_like(x, seed, ids, draw)
        return noise / l2_norm(noise).clamp_min(1e-12)
    noise = 2 * uniform_like(x, seed, ids, draw) - 1
    return noise / noise.abs().flatten(1).amax(1).clamp_min(1e-12).view(-1, *(1,) * (x.dim() - 1))


def _check_classes(model: nn.Module, x: Tensor, least: int, name: str) -> int:
    with torch.no_grad():
        classes = int(model(x).shape[1])
    require(
        classes >= least,
        f"{name} needs at least {least} classes, the model has {classes}: use apgd100-ce",
    )
    return classes

"""One model on one data set: clean predictions, and which images an attack breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sj_robust.attack import Attack
from sj_robust.data import ImageDataset
from sj_robust.errors import SJRobustError
from sj_robust.evaluate.report import eps_name

BALL_TOLERANCE = 1e-6  # of float32 rounding in x ± eps


@dataclass
class Passes:
    """Images that went forward and backward through the model."""

    forward: int = 0
    backward: int = 0


@dataclass
class Bench:
    """Feeds full batches and judges by the model's own forward pass; the model is in eval mode while it is used."""

    model: nn.Module
    dataset: ImageDataset
    device: torch.device
    batch_size: int
    passes: Passes = field(default_factory=Passes)

    def batches(self, indices: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(indices [n], images [n, C, H, W], labels [n]) for `indices` in full batches, the last one apart."""
        for chosen in indices.split(self.batch_size):
            yield chosen, self.dataset.floats(chosen).to(self.device), self.dataset.labels[chosen].to(self.device)

    def predict(self, x: Tensor) -> Tensor:
        """Classes [n] by the true forward pass. Raises SJRobustError on logits that are not finite."""
        with torch.no_grad():
            logits = self.model(x)
        if not torch.isfinite(logits).all():
            raise SJRobustError(f"the model gives logits that are not finite for {self.dataset.name}: its weights or thresholds are broken")
        return logits.argmax(1)

    def broken(self, attack: Attack, seen: nn.Module, view: str, indices: Tensor, seed: int, done: Callable[[int], None]) -> Tensor:
        """Which of `indices` [n] the attack breaks when it takes its gradients from `seen`: bool [n] on the CPU."""
        found = []
        for chosen, x, y in self.batches(indices):
            x_adv = attack(seen, x, y, seed=seed, ids=chosen.to(self.device))
            check_ball(x_adv, x, attack, view)
            found.append((self.predict(x_adv) != y).cpu())
            done(len(chosen))
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.bool)


def check_ball(x_adv: Tensor, x: Tensor, attack: Attack, view: str) -> None:
    """Every adversarial image must be finite, within eps of its original and in [0, 1]; nothing is clipped into place here.

    Raises SJRobustError naming attack, view and the number of images that are not.
    """
    where = f"{attack.name} at eps {eps_name(attack.eps)} through view {view}"
    if x_adv.shape != x.shape or x_adv.dtype != x.dtype:
        raise SJRobustError(f"{where} returned {x_adv.dtype} {list(x_adv.shape)}: expected {x.dtype} {list(x.shape)}")
    inside = ((x_adv - x).abs() <= attack.eps + BALL_TOLERANCE) & (x_adv >= 0) & (x_adv <= 1)  # False for NaN
    bad = int((~inside.flatten(1).all(1)).sum())
    if bad:
        raise SJRobustError(f"{where} left the eps ball or [0, 1], or is not finite, on {bad} of {len(x)} images: the attack is broken")


@contextmanager
def count_passes(model: nn.Module, passes: Passes) -> Iterator[None]:
    """Count images through `model` while the block runs."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        passes.forward += len(output)
        if output.requires_grad:
            output.register_hook(lambda gradient: _count_backward(len(gradient)))

    def _count_backward(images: int) -> None:
        passes.backward += images

    handle = model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()

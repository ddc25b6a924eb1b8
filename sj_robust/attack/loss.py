"""What an attack maximises, image by image, and how far an image is from being misclassified."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sj_robust.errors import SJRobustError

Loss = Literal["ce", "kl", "dlr"]
Objective = Callable[[Tensor], Tensor]


def objective(loss: Loss, model: nn.Module, x: Tensor, y: Tensor | None) -> Objective:
    """Logits [N, K] → values [N] to maximise.

    "ce": cross-entropy with labels `y` [N]. "dlr": difference of logits ratio, −(z_y − max_{i≠y}
    z_i)/(z_π1 − z_π3), which no scale of the logits can flatten (Croce & Hein, ICML 2020, equation
    6). "kl": KL(f(x) ‖ f(x_adv)) with the model's own clean output as constant target (TRADES,
    Zhang et al., ICML 2019, equation 5).
    """
    if loss == "kl":
        with torch.no_grad():
            target = F.softmax(model(x), dim=1)
        return lambda logits: F.kl_div(F.log_softmax(logits, dim=1), target, reduction="none").sum(
            1
        )
    if y is None:
        raise SJRobustError(
            f'an attack on the loss "{loss}" needs labels: pass y, int64 [N], or choose loss="kl"'
        )
    labels = y
    if loss == "ce":
        return lambda logits: F.cross_entropy(logits, labels, reduction="none")
    return lambda logits: difference_of_logits_ratio(logits, labels)


def difference_of_logits_ratio(logits: Tensor, y: Tensor) -> Tensor:
    """[N], see `objective`. Raises SJRobustError for fewer than three classes."""
    if logits.shape[1] < 3:
        raise SJRobustError(
            f'the loss "dlr" needs at least 3 classes, the model has {logits.shape[1]}: use "ce"'
        )
    ranked = logits.sort(dim=1, descending=True).values
    return -margin(logits, y) / (ranked[:, 0] - ranked[:, 2] + 1e-12)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """z_y − max_{i≠y} z_i, [N]: below 0 where the class is not y."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return logits.gather(1, y[:, None]).squeeze(1) - others.amax(1)


def input_gradient(model: nn.Module, goal: Objective, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """At images x [N, ...]: the gradient of each `goal` value with respect to its image [N, ...],
    the logits [N, K], the values [N].

    The values are summed for the backward pass, so an image's gradient does not depend on its
    batch.
    """
    leaf = x.detach().requires_grad_(True)
    logits = model(leaf)
    values = goal(logits)
    if not values.requires_grad:
        raise SJRobustError(
            "the model's output has no gradient with respect to its input: a gradient attack needs"
            " a differentiable model"
        )
    (gradient,) = torch.autograd.grad(values.sum(), leaf, allow_unused=True)
    return (
        torch.zeros_like(leaf) if gradient is None else gradient,
        logits.detach(),
        values.detach(),
    )

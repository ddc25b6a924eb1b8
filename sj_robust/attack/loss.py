"""What an attack maximises. Losses are summed over images, so an image's gradient does not depend on its batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sj_robust.errors import SJRobustError

Loss = Literal["ce", "kl"]
Objective = Callable[[Tensor], Tensor]


def objective(loss: Loss, model: nn.Module, x: Tensor, y: Tensor | None) -> Objective:
    """Logits [N, K] → scalar to maximise. "ce": cross-entropy with labels `y` [N]. "kl": KL(f(x) ‖ f(x_adv)) with the
    model's own clean output as constant target (TRADES, Zhang et al., ICML 2019, equation 5)."""
    if loss == "ce":
        if y is None:
            raise SJRobustError('an attack on the loss "ce" needs labels: pass y, int64 [N], or choose loss="kl"')
        labels = y
        return lambda logits: F.cross_entropy(logits, labels, reduction="sum")
    with torch.no_grad():
        target = F.softmax(model(x), dim=1)
    return lambda logits: F.kl_div(F.log_softmax(logits, dim=1), target, reduction="sum")


def input_gradient(model: nn.Module, goal: Objective, x: Tensor) -> Tensor:
    """Gradient of `goal(model(x))` with respect to `x` [N, ...]."""
    leaf = x.detach().requires_grad_(True)
    value = goal(model(leaf))
    if not value.requires_grad:
        raise SJRobustError("the model's output has no gradient with respect to its input: a gradient attack needs a differentiable model")
    gradient, = torch.autograd.grad(value, leaf, allow_unused=True)
    return torch.zeros_like(leaf) if gradient is None else gradient

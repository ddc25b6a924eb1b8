"""Terms added to the loss: sparse input gradients, and time steps that agree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sj_robust.attack.loss import input_gradient, margin
from sj_robust.attack.mode import attack_mode, evaluation_mode
from sj_robust.model.hooks import hooked

H = 0.01  # of the finite difference: one of the 255 levels of an image is 0.004


def input_gradient_norm(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean over the images x [N,C,H,W] of ‖∇ₓ p(x)‖₁², p the probability of the label y [N] against
    its strongest rival alone (scalar).

    The sparsity regularisation (SR) of Liu et al., "Enhancing Adversarial Robustness in SNNs with
    Sparse Gradients", ICML 2024, as their code (github.com/putshua/gradient_reg_defense) has it:
    ((p(x + h·d) − p(x)) / h)² with d = sign ∇ₓ p(x) held constant, h = 0.01 and p = exp(z_y) /
    (exp(z_y) + exp(z_r)), the rival r that of x. It needs no second derivative, which a surrogate
    does not have. Unlike there, both probabilities are taken in eval mode (running statistics, no
    dropout), so that they differ by the step alone and an image's term does not depend on its
    batch.
    """
    with attack_mode(model, x.device):
        direction = input_gradient(model, lambda logits: margin(logits, y).sigmoid(), x)[0].sign()
    with evaluation_mode(model):
        here, there = model(torch.cat([x, x + H * direction])).float().chunk(2)
        # margin's, of the image as it is
        rival = here.detach().scatter(1, y[:, None], -torch.inf).argmax(1)
        moved = (there.gather(1, y[:, None]) - there.gather(1, rival[:, None])).squeeze(1)
        return ((moved.sigmoid() - margin(here, y).sigmoid()) / H).square().mean()


def inconsistency(steps: Tensor) -> Tensor:
    """How far the predictions of single time steps are from that of all: mean over T and N of KL(p
    ‖ p_t) (scalar, ≥ 0).

    `steps` [T,N,K] are the logits z_t of every step; p_t = softmax z_t, and p = softmax(mean_t z_t)
    is a constant target: the term moves the steps, the loss moves the prediction. A
    temporal-consistency term in the spirit of those in the literature on robust SNNs (RTE, STOD,
    MPPD-TV); this form of it is ours.
    """
    target = steps.mean(0).detach().softmax(1).expand_as(steps)
    return F.kl_div(steps.log_softmax(2), target, reduction="none").sum(2).mean()


@contextmanager
def recorded_steps(model: nn.Module, wanted: bool = True) -> Iterator[list[Tensor]]:
    """The list of the logits of every step [T,N,K] that the training-mode passes of a
    SpikingClassifier make within the block."""
    passes: list[Tensor] = []

    def note(backbone: nn.Module, inputs: Any, logits: Tensor) -> None:
        if backbone.training:  # an attack's passes are in eval mode
            passes.append(logits.view(model.timesteps, -1, logits.shape[-1]))  # type: ignore[call-overload]

    with hooked([model.get_submodule("backbone").register_forward_hook(note)] if wanted else []):
        yield passes
